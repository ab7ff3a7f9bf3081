"""`python -m reliability.kill_at N URL FOLDER`: one pass of the archiver that kills itself before its N-th step.

A step is whatever the archiver's own code calls, a file it writes or syncs or a command it sends, except what it does
for each event. N 0 counts the steps, prints their number, and kills nothing.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType

import models.archive
import models.compaction
import models.durable
import models.eventlog
import models.rewriting
import service.archive

_MODULES = (models.archive, models.compaction, models.durable, models.rewriting, service.archive)
_FILES = {module.__file__ for module in _MODULES}
_LOG_FUNCTIONS = {"acknowledge", "archived", "forget_tombstones"}
_PER_EVENT = {"frames", "_fields", "_day", "_log", "_batches", "load_polars", "schemas"}
_PER_EVENT |= {"<genexpr>", "<listcomp>", "<dictcomp>"}


def main(kill_at: int, url: str, folder: Path) -> int:
    """Steps that were taken."""
    steps = 0

    def profile(frame: FrameType, event: str, _argument: object) -> None:
        nonlocal steps
        caller = frame if event == "c_call" else frame.f_back if event == "call" else None
        if caller is None or not _counts(caller):
            return
        steps += 1
        if steps == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(profile)
    try:
        service.archive.archive(url, folder, once=True, compacting=True, every_s=1)
    finally:
        sys.setprofile(None)
    return steps


def _counts(frame: FrameType) -> bool:
    code = frame.f_code
    if code.co_name in _PER_EVENT:
        return False
    return code.co_filename in _FILES or (
        code.co_filename == models.eventlog.__file__ and code.co_name in _LOG_FUNCTIONS
    )


if __name__ == "__main__":
    print(main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
