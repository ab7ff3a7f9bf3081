"""What machine this is, and whether it was ours: a share of CPU time that was stolen went to another guest."""

import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from models.device import cpu_quota

_STAT = Path("/proc/stat")
_PROC = Path("/proc")


def describe() -> str:
    """Processor, how many of it may be used, and the interpreter."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), model)
    return f"{cpu_quota()} CPUs ({model}), {platform.system()}, Python {platform.python_version()}"


def stolen_s() -> float | None:
    """Seconds of CPU time that a hypervisor has given to others since boot; None where nobody counts them."""
    try:
        first = _STAT.read_text(encoding="ascii").split("\n", 1)[0].split()
        return float(first[8]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return None


def memory_bytes(pids: Sequence[int]) -> int | None:
    """Memory of processes and all they have started, what several share divided among them; None if unknown."""
    total = 0
    for pid in with_children(pids):
        try:
            lines = (_PROC / str(pid) / "smaps_rollup").read_text(encoding="ascii").splitlines()
        except OSError:
            return None
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def with_children(pids: Sequence[int]) -> list[int]:
    """Processes, and after them all that they have started."""
    found = list(pids)
    for pid in found:  # grows while it is walked
        for task in (_PROC / str(pid) / "task").glob("*/children"):
            with suppress(OSError):  # it has ended
                found += map(int, task.read_text(encoding="ascii").split())
    return found
