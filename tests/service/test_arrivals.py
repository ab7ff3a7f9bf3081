"""Times of events that came without one, as one process gives them."""

import pytest

from service.arrivals import Arrivals
from service.batcher import Overloaded

NOW_MS = 1_700_000_000_000
AHEAD_MS = 5 * 60 * 1000


def test_events_end_now_unless_the_users_last_are_in_the_way() -> None:
    arrivals = Arrivals()
    assert arrivals.first_ms("ada", 30, NOW_MS) == NOW_MS - 29
    assert arrivals.first_ms("bob", 30, NOW_MS + 5) == NOW_MS - 24
    assert arrivals.first_ms("ada", 30, NOW_MS + 5) == NOW_MS + 1  # up to 25 ahead
    assert arrivals.first_ms("ada", 1, NOW_MS + 6) == NOW_MS + 31
    assert arrivals.first_ms("ada", 1, NOW_MS + 32) == NOW_MS + 32
    assert arrivals.first_ms("ada", 1000, NOW_MS + 1031) == NOW_MS + 33
    assert arrivals.first_ms("bob", 1000, NOW_MS + 1005) == NOW_MS + 6


def test_times_reach_five_minutes_ahead_and_what_is_refused_then_may_come_later() -> None:
    arrivals = Arrivals()
    arrivals.first_ms("ada", 1, NOW_MS)
    for _ in range(AHEAD_MS // 1000):
        last_ms = arrivals.first_ms("ada", 1000, NOW_MS) + 999
    assert last_ms == NOW_MS + AHEAD_MS
    with pytest.raises(Overloaded, match="without a timestamp"):
        arrivals.first_ms("ada", 1, NOW_MS)
    assert arrivals.first_ms("bob", 1, NOW_MS) == NOW_MS
    assert arrivals.first_ms("ada", 1000, NOW_MS + 1000) == last_ms + 1


def test_only_users_whose_next_events_could_meet_their_last_are_remembered() -> None:
    arrivals = Arrivals()
    for _ in range(5):
        arrivals.first_ms("ahead", 1000, NOW_MS)
    for ms in range(10_000):
        arrivals.first_ms(f"user-{ms}", 1, NOW_MS + ms)
        assert len(arrivals._last_ms) <= 2001
        if ms == 3500:
            assert arrivals.first_ms("ahead", 1, NOW_MS + ms) == NOW_MS + 4001
    assert "ahead" not in arrivals._last_ms


def test_a_clock_that_was_set_back_refuses_nobody() -> None:
    arrivals = Arrivals()
    arrivals.first_ms("ada", 1, NOW_MS)
    assert arrivals.first_ms("ada", 1, NOW_MS - 100) == NOW_MS + 1
    assert arrivals.first_ms("ada", 1, NOW_MS - 3_600_000) == NOW_MS - 3_600_000
