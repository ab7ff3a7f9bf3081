"""Where sessions compute: which onnxruntime is installed, and a session on the device that was asked for."""

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from models.manifest import BundleError

Device = Literal["auto", "cpu", "cuda"]
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


class DeviceError(Exception):
    """The device asked for is not the one that onnxruntime gave; the message says what to do."""


def check_installation() -> None:
    """Raise DeviceError if both onnxruntime packages are installed: they overwrite each other's files."""
    found = [name for name in ("onnxruntime", "onnxruntime-gpu") if _installed(name)]
    if len(found) != 1:
        state = "both are" if found else "neither is"
        raise DeviceError(
            f"exactly one of onnxruntime and onnxruntime-gpu must be installed, {state}: "
            "delete .venv and run './run setup cpu' or './run setup gpu'"
        )


def load_onnxruntime() -> Any:
    """The module, by which everything here imports it.

    From 1.31 on, whoever imports it tells its maker by default: it begins a thread, keeps a number of this machine and
    what is to be sent in a file below the user's cache, and sends that over HTTPS. Here it does so only for whom
    ORT_DISABLE_TELEMETRY=0 says so.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read once, when it is imported for the first time
    import onnxruntime  # noqa: PLC0415 - so that check_installation can say first what is wrong with it

    return onnxruntime


def open_session(graph: Path, device: Device, threads: int) -> Any:
    """An onnxruntime session over a graph, with so many intra-op threads on the CPU.

    Raises DeviceError if `device` is "cuda" and the session runs elsewhere, BundleError if the graph cannot be loaded.
    """
    onnxruntime = load_onnxruntime()
    wanted = [CPU]
    if device == "cuda" or (device == "auto" and CUDA in onnxruntime.get_available_providers()):
        # TF32 rounds to 10 bits, far outside the tolerance that bundles are certified to.
        wanted.insert(0, (CUDA, {"use_tf32": "0"}))  # type: ignore[arg-type]
        # Nor may products of float16 be added up in float16, as cuBLAS may where it splits them: see models.shortlist.
        os.environ.setdefault("ORT_CUDA_GEMM_OPTIONS", "2")
        onnxruntime.preload_dlls()  # CUDA and cuDNN may have come as wheels, which are on no library path
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # two spinning sessions fight for cores
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=wanted)
    except Exception as error:  # onnxruntime's own errors share no other base class
        if device == "cuda":
            raise DeviceError(f"device is cuda, but onnxruntime could not start it: {error}") from error
        raise BundleError(f"{graph}: onnxruntime cannot load it: {error}") from error
    if device == "cuda" and session.get_providers()[0] != CUDA:
        raise DeviceError(
            f"device is cuda, but onnxruntime runs on {session.get_providers()[0]}: run './run setup gpu', which has "
            "CUDA and cuDNN (onnxruntime's log above names the library it missed), or set device to cpu"
        )
    return session


def cpu_quota(limit: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """CPUs this process may use: the affinity mask, cut by the control group's quota in `limit`; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = limit.read_text().split()
    except (OSError, ValueError):
        return allowed
    return allowed if quota == "max" else max(1, min(allowed, int(quota) // int(period)))


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True
