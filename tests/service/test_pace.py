"""What is expected of the next batch, after some whose times are known."""

import random

import pytest

from service.pace import Pace


def after(*batches: tuple[int, float]) -> Pace:
    pace = Pace()
    for size, spent_s in batches:
        pace.learn(size, spent_s)
    return pace


def test_before_the_first_batch_one_call_is_tried() -> None:
    assert (Pace().known, Pace().expected_s(64)) == (1, 0.0)


def test_of_batches_of_one_size_all_is_taken_for_what_a_call_adds() -> None:
    pace = after(*[(4, 0.02)] * 9)
    assert pace.expected_s(4) == pytest.approx(0.02)
    assert pace.expected_s(16) == pytest.approx(0.08)


@pytest.mark.parametrize(("fixed_s", "call_s"), [(0.005, 0.0001), (0.018, 0.0027), (0.0, 0.001)])
def test_sizes_that_differ_tell_a_batch_from_its_calls(fixed_s: float, call_s: float) -> None:
    draw = random.Random(1)
    pace = after(*[(size, fixed_s + call_s * size) for size in (draw.randint(1, 64) for _ in range(200))])
    for size in (1, 20, 64):
        assert pace.expected_s(size) == pytest.approx(fixed_s + call_s * size, rel=0.2)


def test_a_service_that_has_answered_single_calls_tries_a_few_more_each_time() -> None:
    pace = after(*[(1, 0.005)] * 20)
    assert pace.known == 4
    pace.learn(4, 0.0053)
    assert pace.known == 16
    assert pace.expected_s(16) < 0.02  # and not 16 times 5 ms


def test_what_was_large_long_ago_says_little() -> None:
    assert after((64, 0.01), *[(1, 0.005)] * 40).known == 4


def test_a_batch_that_was_held_up_counts_as_four_and_is_soon_forgotten() -> None:
    usual, held_up = after(*[(4, 0.02)] * 9), after(*[(4, 0.02)] * 9, (4, 30.0))
    assert held_up.expected_s(4) < 5 * usual.expected_s(4)
    for _ in range(30):
        held_up.learn(4, 0.02)
    assert held_up.expected_s(4) == pytest.approx(0.02, rel=0.1)


def test_times_that_vary_are_expected_to_be_long() -> None:
    draw = random.Random(2)
    steady, varying = after(*[(8, 0.02)] * 50), after(*[(8, 0.02 * draw.uniform(0.5, 1.5)) for _ in range(50)])
    assert varying.expected_s(8) > 1.2 * steady.expected_s(8)


def test_more_calls_never_take_less() -> None:
    pace = after(*[(1, 0.05), (8, 0.03)] * 20)
    assert pace.expected_s(1) <= pace.expected_s(8) <= pace.expected_s(64)
