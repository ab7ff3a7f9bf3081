"""What of the machine a process may use, and of onnxruntime: that there is one of it, and that it reports to nobody."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.device import cpu_quota
from training.ranker import build_ranker


def test_threads_follow_what_the_process_may_use() -> None:
    one = min(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, {{{one}}})\n"
        "from models.device import cpu_quota; print(cpu_quota(), type(cpu_quota()).__name__)"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout == "1 int\n"
    assert 1 <= cpu_quota() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("limit", "share"),
    [("max 100000", 1e9), ("50000 100000", 1), ("100000 100000", 1), ("199999 100000", 1), ("1000000000 100000", 1e4)],
)
def test_a_containers_quota_is_kept(tmp_path: Path, limit: str, share: float) -> None:
    (tmp_path / "cpu.max").write_text(limit + "\n")
    assert cpu_quota(tmp_path / "cpu.max") == min(share, len(os.sched_getaffinity(0)))


@pytest.mark.parametrize("limit", ["", "max"])
def test_a_quota_that_cannot_be_read_is_none(tmp_path: Path, limit: str) -> None:
    (tmp_path / "cpu.max").write_text(limit)
    for path in (tmp_path / "cpu.max", tmp_path / "absent"):
        assert cpu_quota(path) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((), ["neither is", "./run setup cpu"]),
        (("onnxruntime",), []),
        (("onnxruntime-gpu",), []),
        (("onnxruntime", "onnxruntime-gpu"), ["both are", "./run setup cpu"]),
    ],
)
def test_one_onnxruntime_is_right_and_none_or_both_are_told(
    tmp_path: Path, names: tuple[str, ...], said: list[str]
) -> None:
    """On a path of its own, with the metadata that pip leaves behind."""
    for name in names:
        metadata = tmp_path / f"{name.replace('-', '_')}-1.25.0.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.25.0\n")
    code = (
        "import sys\nfrom models.device import DeviceError, check_installation\n"
        f"sys.path[:] = [{str(tmp_path)!r}]\n"
        "try:\n    check_installation()\nexcept DeviceError as error:\n    print(error)"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert bool(result.stdout) == bool(said)
    assert all(words in result.stdout for words in said)


@pytest.mark.parametrize(
    "use",
    [
        "from models.device import open_session; open_session(Path(sys.argv[1]), 'cpu', 1)",
        "from models.binding import Resident; Resident('cpu', [numpy.zeros(1)])",
    ],
)
def test_whoever_ranks_has_no_thread_and_no_file_that_reports_to_onnxruntimes_maker(tmp_path: Path, use: str) -> None:
    ranker, home = tmp_path / "ranker.onnx", tmp_path / "home"
    ranker.write_bytes(build_ranker())
    home.mkdir()
    code = (
        "import os, sys, numpy; from pathlib import Path\n"
        "before = len(os.listdir('/proc/self/task'))\n"  # numpy's among them
        f"{use}\nassert 'onnxruntime' in sys.modules\n"
        "print(len(os.listdir('/proc/self/task')) - before)"
    )
    unset = {"ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"}
    environment = {name: value for name, value in os.environ.items() if name not in unset} | {"HOME": str(home)}
    command = [sys.executable, "-c", code, str(ranker)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
    assert list(home.rglob("*")) == []
