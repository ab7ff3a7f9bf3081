"""The slope of memory: found where there is one, through peaks and noise, and with its error."""

import os

import numpy as np
import pytest

from reliability.memory import allocated_mb, growth


def test_a_slope_is_found_through_noise_and_peaks() -> None:
    random = np.random.default_rng(1)
    times = np.arange(0, 600, 5.0)
    sizes = 100 + 6 * times / 3600 + random.normal(0, 0.02, len(times))
    sizes[::17] += 30  # a swap that both models are in memory for
    found = growth(times.tolist(), sizes.tolist())
    assert found.per_hour == pytest.approx(6, abs=3 * found.error + 0.2)
    assert found.error < 0.5


def test_what_does_not_grow_has_no_slope() -> None:
    found = growth(np.arange(100.0).tolist(), [80.0] * 100)
    assert (found.per_hour, found.error) == (0, 0)


def test_memory_of_processes_is_summed_and_those_that_ended_count_nothing() -> None:
    own = allocated_mb([os.getpid()])
    assert own > 5
    assert allocated_mb([os.getpid(), 2**30]) == pytest.approx(own, rel=0.2)
