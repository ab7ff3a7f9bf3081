"""Ranks worked out by hand, and all metrics against an oracle that sorts and counts in Python."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.dataset import Sequences
from training.evaluate import (
    MISS,
    Evaluation,
    EvaluationError,
    evaluate,
    evaluate_test,
    paired_interval,
    rank_of,
    summarise,
)
from training.splits import Holdout, Split


def holdout(histories: list[list[int]], targets: list[int], later: list[bool] | None = None) -> Holdout:
    lengths = np.array([len(history) for history in histories], np.int64)
    ends = np.cumsum(lengths)
    items = np.array([item for history in histories for item in history], np.int32)
    return Holdout(
        users=np.arange(len(targets)),
        histories=Sequences(items, ends - lengths, ends),
        targets=np.array(targets, np.int32),
        strictly_later=np.array(later if later is not None else [True] * len(targets)),
    )


def fixed(scores: list[list[float]] | np.ndarray) -> Callable[[Sequences], np.ndarray]:
    """A scorer with these scores for users in turn; it checks that it is asked for each once."""
    table, asked = np.asarray(scores, np.float32), [0]

    def scorer(histories: Sequences) -> np.ndarray:
        begin = asked[0]
        asked[0] += len(histories)
        return table[begin : asked[0]]

    return scorer


def test_ranks_by_hand() -> None:
    # Columns: padding, then items 1 to 5. The history is out before the target is looked up.
    scores = [
        [9, 0.5, 0.4, 0.3, 0.2, 0.1],  # history 1 and 2, target 3: first
        [9, 0.5, 0.4, 0.3, 0.2, 0.1],  # history 5, target 3: third
        [9, 0.1, 0.5, 0.5, 0.2, 0.5],  # history 1, target 3 ties with 2 and 5: last of the three
        [9, 0.5, 0.4, 0.3, 0.2, 0.1],  # target 5 is in the history: cannot be hit
        [9, -5, -1, -3, -2, -4],  # scores below zero: history 2, target 4 is first
    ]
    found = evaluate(fixed(scores), holdout([[1, 2], [5], [1], [5, 2], [2]], [3, 3, 3, 5, 4]), 5)
    assert found.ranks.tolist() == [1, 3, 3, MISS, 1]
    metrics = found.metrics()
    assert metrics["hr@5"] == metrics["hr@10"] == pytest.approx(4 / 5)
    assert metrics["ndcg@10"] == pytest.approx((1 + 0.5 + 0.5 + 0 + 1) / 5)  # 1 / log2(3 + 1) = 1/2
    assert metrics["mrr"] == pytest.approx((1 + 1 / 3 + 1 / 3 + 0 + 1) / 5)
    assert metrics["users"] == 5


def test_cutoffs_count_the_last_rank_that_fits() -> None:
    metrics = summarise(np.array([5, 6, 10, 11, 20, 21]))
    assert [metrics[f"hr@{cutoff}"] for cutoff in (5, 10, 20)] == [1 / 6, 3 / 6, 5 / 6]
    assert metrics["ndcg@5"] == pytest.approx(1 / math.log2(6) / 6)


def test_no_users_have_no_metrics() -> None:
    assert set(summarise(np.array([], np.int64)).values()) == {0.0}


def ranked_slowly(scores: list[float], history: list[int], target: int) -> int | None:
    """Sort what may be recommended, best first and the target behind its equals, and look for it."""
    candidates = [item for item in range(1, len(scores)) if item not in history]
    candidates.sort(key=lambda item: (-scores[item], item == target))
    return candidates.index(target) + 1 if target in candidates else None


@settings(deadline=None, max_examples=150)
@given(st.data(), st.integers(2, 30), st.integers(1, 8))
def test_every_metric_agrees_with_sorting_and_counting(data: st.DataObject, items: int, users: int) -> None:
    item = st.integers(1, items)
    histories = data.draw(st.lists(st.lists(item, min_size=1, max_size=items), min_size=users, max_size=users))
    targets = data.draw(st.lists(item, min_size=users, max_size=users))
    score = st.integers(-3, 3).map(float)  # few values, many ties
    row = st.lists(score, min_size=items + 1, max_size=items + 1)
    scores = data.draw(st.lists(row, min_size=users, max_size=users))
    found = evaluate(fixed(scores), holdout(histories, targets), items)
    ranks = [ranked_slowly(*case) for case in zip(scores, histories, targets, strict=True)]
    assert [None if rank == MISS else rank for rank in found.ranks.tolist()] == ranks
    metrics = found.metrics()
    for cutoff in (5, 10, 20):
        hits = [rank for rank in ranks if rank is not None and rank <= cutoff]
        assert metrics[f"hr@{cutoff}"] == pytest.approx(len(hits) / users)
        assert metrics[f"ndcg@{cutoff}"] == pytest.approx(sum(1 / math.log2(rank + 1) for rank in hits) / users)
    assert metrics["mrr"] == pytest.approx(sum(1 / rank for rank in ranks if rank is not None) / users)


def test_constant_scores_earn_nothing() -> None:
    found = evaluate(fixed(np.zeros((40, 101))), holdout([[1]] * 40, list(range(2, 42))), 100)
    assert found.ranks.tolist() == [99] * 40
    assert found.metrics()["ndcg@20"] == 0


def test_a_target_never_trained_on_stays_in_the_denominator() -> None:
    scores = np.zeros((2, 4), np.float32)
    scores[:, 2], scores[:, 3] = 1, -np.inf  # what a scorer gives for an item that it does not know
    found = evaluate(fixed(scores), holdout([[1], [1]], [2, 3]), 3)
    assert (found.metrics()["hr@10"], found.metrics()["users"]) == (0.5, 2)


def test_coverage_is_the_share_of_the_catalogue_in_anyones_first_ten() -> None:
    scores = np.tile(np.arange(41.0), (3, 1))  # items 40, 39, ... for everybody, without what they had
    found = evaluate(fixed(scores), holdout([[40], [40, 39], [1]], [1, 1, 2]), 40)
    assert found.coverage == pytest.approx(12 / 40)  # 40 to 31, then 39 to 30, then 38 to 29
    few = evaluate(fixed(np.ones((1, 4))), holdout([[1, 2]], [3]), 3)
    assert few.coverage == pytest.approx(1 / 3)  # what is filtered is never recommended, nor is padding


def test_scores_that_are_no_numbers_are_an_error_and_not_a_zero() -> None:
    scores = np.zeros((1, 4))
    scores[0, 2] = np.nan
    with pytest.raises(EvaluationError, match="NaN"):
        evaluate(fixed(scores), holdout([[1]], [3]), 3)
    scores[0, 2], scores[0, 0] = 0, np.nan
    evaluate(fixed(scores), holdout([[1]], [3]), 3)  # padding may be anything


@pytest.mark.parametrize("shape", [(1, 3), (2, 4), (1, 4, 1)])
def test_scores_of_another_shape_are_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(EvaluationError, match=r"expected \(1, 4\)"):
        evaluate(lambda histories: np.zeros(shape, np.float32), holdout([[1]], [3]), 3)


def test_the_scorers_own_array_is_left_alone() -> None:
    scores = np.ones((1, 4), np.float32)
    evaluate(lambda histories: scores, holdout([[1]], [3]), 3)
    assert scores.tolist() == [[1, 1, 1, 1]]


def test_many_users_are_ranked_in_parts_without_mixing_them_up() -> None:
    users = 600
    targets = [user % 49 + 2 for user in range(users)]
    scores = np.zeros((users, 51))
    scores[np.arange(users), targets] = [1 if user % 3 else -1 for user in range(users)]
    found = evaluate(fixed(scores), holdout([[1]] * users, targets), 50)
    assert found.ranks.tolist() == [1 if user % 3 else 49 for user in range(users)]


def test_the_sealed_part_and_no_other_is_judged() -> None:
    one, two = holdout([[1]], [2]), holdout([[1]], [3])
    split = Split(train=one.histories, validation=one, _test=two, left_out={})
    scores = [[0, 0, 5, 4]]
    assert evaluate(fixed(scores), split.validation, 3).ranks.tolist() == [1]
    assert evaluate_test(fixed(scores), split, 3).ranks.tolist() == [2]


def test_the_report_shows_the_strictly_later_targets_apart() -> None:
    scores = [[0, 3, 2, 1], [0, 3, 2, 1], [0, 3, 2, 1]]
    report = evaluate(fixed(scores), holdout([[1], [1], [2]], [2, 3, 3], [True, False, True]), 3).report()
    later = report["strictly_later"]
    assert isinstance(later, dict)
    assert later["users"] == 2
    assert later["mrr"] == pytest.approx((1 + 1 / 2) / 2)
    assert report["users"] == 3


def test_rank_of_counts_ties_against_the_target_even_at_infinity() -> None:
    scores = np.array([[-np.inf, np.inf, np.inf, 0]], np.float32)
    assert rank_of(scores, np.array([1], np.int32)).tolist() == [2]
    assert rank_of(scores, np.array([3], np.int32)).tolist() == [3]
    scores[0, 3] = -np.inf
    assert rank_of(scores, np.array([3], np.int32)).tolist() == [MISS]


def judged(ranks: list[int]) -> Evaluation:
    return Evaluation(np.array(ranks), np.ones(len(ranks), np.bool_), 1.0)


def test_intervals_are_those_of_the_textbook_and_repeat() -> None:
    """HR over 2,000 users of whom 300 hit is binomial: .15, give or take 1.96 * sqrt(.15 * .85 / 2000)."""
    evaluation = judged([1] * 300 + [50] * 1700)
    low, high = evaluation.intervals()["hr@10"]
    margin = 1.96 * math.sqrt(0.15 * 0.85 / 2000)
    assert low == pytest.approx(0.15 - margin, abs=0.003)
    assert high == pytest.approx(0.15 + margin, abs=0.003)
    assert evaluation.intervals() == evaluation.intervals()
    assert evaluation.intervals(seed=1) != evaluation.intervals()
    assert judged([1] * 10).intervals()["ndcg@10"] == (1.0, 1.0)


def test_intervals_hold_the_truth_about_nineteen_times_in_twenty() -> None:
    generator = np.random.default_rng(0)
    chances = 1 / np.arange(1, 41)
    truth = sum(
        chance / math.log2(rank + 1) for rank, chance in zip(range(1, 11), chances / chances.sum(), strict=False)
    )
    held = 0
    for _ in range(200):
        ranks = generator.choice(np.arange(1, 41), 300, p=chances / chances.sum())
        low, high = judged(ranks.tolist()).intervals()["ndcg@10"]
        held += low <= truth <= high
    assert 180 <= held <= 199


def test_paired_intervals_see_a_difference_that_separate_ones_cannot() -> None:
    generator = np.random.default_rng(0)
    ranks = generator.integers(1, 12, 400)
    better = np.maximum(ranks - 1, 1)
    low, high = paired_interval(judged(better.tolist()), judged(ranks.tolist()))
    assert 0 < low < high
    one, two = judged(better.tolist()).intervals()["ndcg@10"], judged(ranks.tolist()).intervals()["ndcg@10"]
    assert high - low < min(one[1] - one[0], two[1] - two[0])
    assert paired_interval(judged(ranks.tolist()), judged(ranks.tolist())) == (0.0, 0.0)


def test_a_million_users_have_intervals_within_seconds() -> None:
    evaluation = judged(np.random.default_rng(0).integers(1, 50, 1_000_000).tolist())
    low, high = evaluation.intervals()["hr@10"]
    assert high - low < 0.002
