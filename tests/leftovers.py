"""What a program that was stopped has left behind."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path


def left_behind(pids: Sequence[int], within_s: float = 20) -> list[int]:
    """Those of the processes that still run after so long, which are killed then. One that has ended runs no more,
    whether or not somebody has waited for it."""
    until = time.monotonic() + within_s
    while (left := [pid for pid in pids if _runs(pid)]) and time.monotonic() < until:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return left


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
