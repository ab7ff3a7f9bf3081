"""The servers under test, each a process of its own that is gone when the block ends."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
_START_S = 180
_STOP_S = 20


class ServerError(Exception):
    """A server that did not start; the message has what it said."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where processes listen, their ids, and how long it took from start to ready."""

    addresses: list[tuple[str, int]]
    pids: list[int]
    ready_s: float


@contextmanager
def service(artifacts: Path, store_url: str, *, workers: int = 1) -> Iterator[Server]:
    """The service on the promoted bundle, as `python -m service serve` runs it. Raises ServerError."""
    options = ["--artifacts", str(artifacts.absolute()), "--redis", store_url, "--log-level", "error"]
    if workers > 1:
        options += ["--workers", str(workers)]
    port = free_port()
    with running([sys.executable, "-m", "service", "serve", "--port", str(port), *options], port, "/readyz") as found:
        yield found


def has_workers() -> bool:
    """Whether the service can be several processes on one port here."""
    return sys.platform == "linux"


@contextmanager
def yardstick(name: str, bundle: Path, store_url: str, *, workers: int = 1) -> Iterator[Server]:
    """One of yardsticks.py, `workers` processes of it with a port each: spread evenly, which no shared port is.

    Raises ServerError.
    """
    with ExitStack() as stack:
        found = []
        for _ in range(workers):
            port = free_port()
            options = [name, str(port), str(bundle.absolute()), store_url]
            command = [sys.executable, "-m", "bench.yardsticks", *options]
            found.append(stack.enter_context(running(command, port, "/docs")))
        yield Server(
            [server.addresses[0] for server in found],
            [server.pids[0] for server in found],
            max(server.ready_s for server in found),
        )


@contextmanager
def running(
    command: Sequence[str], port: int, path: str, *, environment: dict[str, str] | None = None
) -> Iterator[Server]:
    """A command that serves on a port, once GET of a path there answers 200. Raises ServerError."""
    said = tempfile.TemporaryFile()  # noqa: SIM115 - closed below; a pipe that nobody reads would stop who writes much
    began = time.perf_counter()
    process = subprocess.Popen(  # noqa: S603 - our own programs, and peers that were asked for
        command,
        cwd=ROOT,
        env=variables() | (environment or {}),
        stdout=said,
        stderr=said,
        process_group=0,  # so that it ends with all its own processes; a new session would lose the run's priority
    )
    try:
        try:
            _wait(process, port, path, began)
        except ServerError as error:
            said.seek(0)
            tail = said.read().decode(errors="replace").strip()[-2000:]
            raise ServerError(f"{' '.join(command[1:5])} {error}: {tail}") from error
        yield Server([("127.0.0.1", port)], [process.pid], time.perf_counter() - began)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        said.close()


def variables(**settings: object) -> dict[str, str]:
    """The environment of a program of ours with these settings, and none of those of whoever starts it."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("RECSERVE_")}
    return others | {f"RECSERVE_{name.upper()}": str(value) for name, value in settings.items()}


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(process: subprocess.Popen[bytes], port: int, path: str, began: float) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever proxy the environment names
    while time.perf_counter() - began < _START_S:
        if process.poll() is not None:
            raise ServerError(f"ended with status {process.returncode}")
        with suppress(OSError):  # an answer of 400 or more is one
            direct.open(f"http://127.0.0.1:{port}{path}", timeout=5).close()
            return
        time.sleep(0.02)
    raise ServerError(f"was not ready within {_START_S} s")
