"""An object in a process of its own: what is measured must share neither an interpreter nor a heap with who measures.

Its methods are called by name over a pipe. `begin` and `result` are apart so that two can work at the same time.
"""

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Self

_END_S = 5.0  # until a process whose pipe is closed has its status


class ChildError(Exception):
    """What a child's method raised, or that its process is gone."""


class Child:
    """Makes `make(*args)` in a fresh process while entered; what goes there and back is pickled."""

    def __init__(self, make: Callable[..., object], *args: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, make, args), daemon=True)
        self._name = make.__name__
        self._theirs = theirs

    def __enter__(self) -> Self:
        self._process.start()
        self._theirs.close()  # so that its end is the end of the pipe
        return self

    def __exit__(self, *_: object) -> None:
        self._ours.close()
        self._process.terminate()
        self._process.join()

    def call(self, method: str, *args: object) -> Any:
        """Result of a method. Raises ChildError with what it raised."""
        self.begin(method, *args)
        return self.result()

    def begin(self, method: str, *args: object) -> None:
        """Let it begin with a method. Raises ChildError if its process is gone."""
        try:
            self._ours.send((method, args))
        except OSError as gone:
            raise self._ended() from gone

    def result(self) -> Any:
        """Of the method it began with. Raises ChildError with what it raised."""
        try:
            answer, error = self._ours.recv()
        except (EOFError, OSError) as gone:
            raise self._ended() from gone
        if error is not None:
            raise ChildError(f"{self._name}: {error}")
        return answer

    def _ended(self) -> ChildError:
        self._process.join(_END_S)
        return ChildError(f"the process of {self._name} ended with status {self._process.exitcode}")


def _work(pipe: Connection, make: Callable[..., object], args: tuple[object, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches it too, and is its parent's to answer
    made: object = None
    while True:
        try:
            method, given = pipe.recv()
        except EOFError:
            return
        try:
            made = made or make(*args)
            pipe.send((getattr(made, method)(*given), None))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the caller's
            pipe.send((None, repr(error)))
