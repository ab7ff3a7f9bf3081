"""A process that begins as a copy of this one: what neither changes of its memory is there once for both."""

import contextlib
import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NoReturn


class Fork:
    """A child of this process that runs `body` and ends with the status it returns.

    Of the files that are open here it has stderr and those of `keep`, whose numbers stay the same; signals do to it
    what they do to any process; those of the terminal do not reach it. `returncode` is as that of subprocess.Popen, as
    `poll` last found it. Linux only. Raises OSError if no process is to be had.
    """

    def __init__(self, body: Callable[[], int], *, keep: Collection[int]) -> None:
        self.returncode: int | None = None
        gc.collect()
        gc.freeze()  # or the first collection in the child would write to every object, and so copy them all
        _flush()
        # A signal in the child, until it has handlers of its own, would wake this process's event loop.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self.pid = os.fork()
            if self.pid == 0:
                _become(body, keep, before)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def poll(self) -> int | None:
        """The status it ended with, that of a signal below 0; None while it runs."""
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # where SIGCHLD is ignored nobody is told the status, nor is subprocess.Popen
                pid, status = self.pid, 0
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self.poll() is None:  # until it is waited for its number is nobody else's
            os.kill(self.pid, number)


def _become(body: Callable[[], int], keep: Collection[int], mask: Collection[int]) -> NoReturn:
    """What the child does, on top of the stack of whoever forked it, to which it never returns."""
    status = 1
    try:
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            for number in signal.valid_signals():
                if callable(signal.getsignal(number)):
                    signal.signal(number, signal.SIG_DFL)
            _let_go_of_files(keep)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            status = body()
        except BaseException:  # noqa: BLE001 - nothing may get past this frame
            traceback.print_exc()
        _flush()
    finally:
        os._exit(status)


def _flush() -> None:
    """Write what is left for stderr, if there is one and it can be written to."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        sys.stderr.flush()


def _let_go_of_files(keep: Collection[int]) -> None:
    """Make every file but stderr and `keep` an empty one.

    Not closed: their numbers would be given to files of the child's, which objects of the parent's would close.
    """
    empty = os.open(os.devnull, os.O_RDWR)
    kept = {empty, *keep}
    with contextlib.suppress(AttributeError, OSError, ValueError):  # none, or one that is no file
        kept.add(sys.stderr.fileno())
    for number in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        if number not in kept:
            with contextlib.suppress(OSError):  # the folder's own
                os.fstat(number)
                os.dup2(empty, number)
