"""How long a machine stops a process that has nothing to wait for: what lies below every time that is measured on it.

A virtual machine is stopped by its host, and a container by its quota, where all its cores are busy.
"""

import time
from contextlib import ExitStack

from bench.child import Child
from models.device import cpu_quota


class _Watch:
    """Made in a process of its own (bench.child.Child)."""

    def longest_s(self, seconds: float) -> float:
        """The longest time between two looks at the clock, one at once after the other."""
        longest = 0.0
        last = time.perf_counter()
        until = last + seconds
        while last < until:
            now = time.perf_counter()
            longest = max(longest, now - last)
            last = now
        return longest


def longest_standstill_s(seconds: float) -> float:
    """The longest time that a process stood still, of as many as there are cores, all of them busy for so long."""
    with ExitStack() as stack:
        watches = [stack.enter_context(Child(_Watch)) for _ in range(cpu_quota())]
        for watch in watches:
            watch.begin("longest_s", seconds)
        return max(float(watch.result()) for watch in watches)
