"""Metrics, intervals, tests and aggregation, on values from the textbook, by hand and by slow enumeration."""

import itertools
import math

import numpy as np
import pytest

from training.measures import (
    MISS,
    gains,
    head_items,
    hits,
    intervals,
    novelty_of_items,
    paired_difference,
    rmse_interval,
    spread,
    summarise,
)


def test_cutoffs_count_the_last_rank_that_fits() -> None:
    metrics = summarise(np.array([5, 6, 10, 11, 20, 21]))
    assert [metrics[f"hr@{cutoff}"] for cutoff in (5, 10, 20)] == [1 / 6, 3 / 6, 5 / 6]
    assert metrics["ndcg@5"] == pytest.approx(1 / math.log2(6) / 6)


def test_no_users_have_no_metrics() -> None:
    nobody = np.array([], np.int64)
    assert set(summarise(nobody).values()) == {0.0}
    assert intervals(nobody) == {"hr@10": (0.0, 0.0), "ndcg@10": (0.0, 0.0)}
    assert rmse_interval(np.array([]), nobody) == (0.0, 0.0)


def test_the_interval_of_an_rmse_knows_that_the_errors_of_a_user_are_alike() -> None:
    """Of 100 users half err by 1 in each of 25 ratings and half by 2: the mean square is that of 100 draws of 1 or 4,

    2.5 give or take 1.96 * 1.5 / sqrt(100), and not that of 2,500, as it would be if each rating had a user of its own.
    """
    errors = np.repeat([1.0, -2.0], 50 * 25)
    for users, draws in ((np.repeat(np.arange(100), 25), 100), (np.arange(2500), 2500)):
        low, high = rmse_interval(errors, users)
        margin = 1.96 * 1.5 / math.sqrt(draws)
        assert low == pytest.approx(math.sqrt(2.5 - margin), abs=0.012)
        assert high == pytest.approx(math.sqrt(2.5 + margin), abs=0.012)
        assert (low, high) == rmse_interval(errors, users)


def test_a_user_with_many_ratings_weighs_as_many_in_an_rmse() -> None:
    """Of two users one errs by 2 in one rating and one by 1 in three: drawn are the one, the other, or both."""
    assert rmse_interval(np.array([1.0, 2.0, 1.0, 1.0]), np.array([7, 3, 7, 7])) == (1.0, 2.0)
    drawn = rmse_interval(np.array([1.0, 3.0, 1.0, 3.0]), np.array([0, 0, 1, 1]))
    assert drawn == (math.sqrt(5), math.sqrt(5))


def test_intervals_are_those_of_the_textbook_and_repeat() -> None:
    """HR over 2,000 users of whom 300 hit is binomial: .15, give or take 1.96 * sqrt(.15 * .85 / 2000)."""
    ranks = np.array([1] * 300 + [50] * 1700)
    low, high = intervals(ranks)["hr@10"]
    margin = 1.96 * math.sqrt(0.15 * 0.85 / 2000)
    assert low == pytest.approx(0.15 - margin, abs=0.003)
    assert high == pytest.approx(0.15 + margin, abs=0.003)
    assert intervals(ranks) == intervals(ranks)
    assert intervals(np.array([1] * 10))["ndcg@10"] == (1.0, 1.0)


def test_intervals_hold_the_truth_about_nineteen_times_in_twenty() -> None:
    generator = np.random.default_rng(0)
    chances = 1 / np.arange(1, 41)
    truth = sum(
        chance / math.log2(rank + 1) for rank, chance in zip(range(1, 11), chances / chances.sum(), strict=False)
    )
    held = 0
    for _ in range(200):
        low, high = intervals(generator.choice(np.arange(1, 41), 300, p=chances / chances.sum()))["ndcg@10"]
        held += low <= truth <= high
    assert 180 <= held <= 199


def test_a_million_users_have_intervals_within_seconds() -> None:
    low, high = intervals(np.random.default_rng(0).integers(1, 50, 1_000_000))["hr@10"]
    assert high - low < 0.002


def test_a_paired_difference_agrees_with_every_resample_there_is() -> None:
    """Six users have 6^6 resamples, so that interval and p can be had without drawing."""
    one, other = np.array([1.0, 0.5, 0.0, 1.0, 0.0, 0.4]), np.array([0.0, 0.0, 0.3, 0.0, 0.2, 0.0])
    differences = one - other  # 1, .5, -.3, 1, -.2, .4: mean .4
    means = [np.mean(drawn) for drawn in itertools.product(differences, repeat=6)]
    found = paired_difference(one, other)
    assert found.mean == pytest.approx(0.4)
    assert found.low == pytest.approx(np.quantile(means, 0.025), abs=0.03)
    assert found.high == pytest.approx(np.quantile(means, 0.975), abs=0.03)
    assert found.p == pytest.approx(np.mean([abs(mean - 0.4) >= 0.4 - 1e-9 for mean in means]), abs=0.01)
    turned = paired_difference(other, one)
    assert (turned.mean, turned.low, turned.high) == pytest.approx((-0.4, -found.high, -found.low), abs=0.03)


@pytest.mark.parametrize("differing", [1, 2, 5, 9])
def test_a_few_users_prove_no_more_than_their_signs_could(differing: int) -> None:
    """Resamples of differences that are all the same are all the same too, and never far from their mean."""
    one = np.array([1.0] * differing + [0.5] * 20)
    assert paired_difference(one, np.array([0.0] * differing + [0.5] * 20)).p >= 2 / 2**differing
    assert paired_difference(one[:differing], np.zeros(differing)).p == 2 / 2**differing


def test_a_paired_difference_sees_what_separate_intervals_cannot() -> None:
    ranks = np.random.default_rng(0).integers(1, 12, 400)
    better = np.maximum(ranks - 1, 1)
    found = paired_difference(gains(better, 10), gains(ranks, 10))
    assert 0 < found.low < found.mean < found.high
    assert found.p < 0.001
    one, two = intervals(better)["ndcg@10"], intervals(ranks)["ndcg@10"]
    assert found.high - found.low < min(one[1] - one[0], two[1] - two[0])


def test_a_run_is_no_better_than_itself() -> None:
    ranks = np.array([1, 3, MISS, 7])
    found = paired_difference(gains(ranks, 10), gains(ranks, 10))
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_equal_models_are_told_apart_about_once_in_twenty() -> None:
    generator = np.random.default_rng(1)
    told = sum(
        paired_difference(hits(generator.integers(1, 40, 300), 10), hits(generator.integers(1, 40, 300), 10)).p < 0.05
        for _ in range(200)
    )
    assert 3 <= told <= 19


def test_different_users_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="4 and 3 users cannot be paired"):
        paired_difference(np.zeros(4), np.zeros(3))
    with pytest.raises(ValueError, match="0 and 0"):
        paired_difference(np.zeros(0), np.zeros(0))


def test_seeds_are_put_together_as_mean_and_sample_deviation() -> None:
    found = spread([0.10, 0.12, 0.17])
    assert found.mean == pytest.approx(0.13)
    assert found.deviation == pytest.approx(math.sqrt((0.03**2 + 0.01**2 + 0.04**2) / 2))
    assert str(found) == "0.1300 ± 0.0361"
    assert str(spread([0.1234])) == "0.1234"  # one seed says nothing about others
    with pytest.raises(ValueError, match="at least one run"):
        spread([])


def test_the_head_is_the_fewest_items_that_make_up_half() -> None:
    assert head_items(np.array([0, 1, 5, 2, 2])).tolist() == [False, False, True, False, False]  # exactly half
    assert head_items(np.array([0, 1, 5, 2, 3])).tolist() == [False, False, True, False, True]
    assert head_items(np.array([0, 2, 2, 2])).tolist() == [False, True, True, False]  # ties in item order
    assert head_items(np.array([0, 0, 3])).tolist() == [False, False, True]


def test_self_information_is_in_bits_and_finite_for_items_nobody_chose() -> None:
    assert novelty_of_items(np.array([0, 4, 2, 1, 1, 0])).tolist()[1:] == [1, 2, 3, 3, 3]
