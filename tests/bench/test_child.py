"""A process that works for the benchmark and is killed is a sentence for who asks it."""

import multiprocessing
import os
import signal

import pytest

from bench.child import Child, ChildError
from bench.load import LoadGenerator


@pytest.mark.parametrize("asked_before", [False, True])
def test_a_child_that_was_killed_is_named(asked_before: bool) -> None:
    with Child(LoadGenerator) as child:
        (process,) = multiprocessing.active_children()
        assert process.pid is not None
        os.kill(process.pid, signal.SIGSTOP)
        if asked_before:
            child.begin("measure", "of which it reads nothing")
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        with pytest.raises(ChildError, match="the process of LoadGenerator ended with status -9"):
            child.result() if asked_before else child.begin("measure", None)
