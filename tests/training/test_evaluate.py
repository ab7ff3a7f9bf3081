"""Ranks worked out by hand, and all metrics against an oracle that sorts and counts in Python."""

import math
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from training.dataset import Sequences
from training.evaluate import (
    EvaluationError,
    Scorer,
    affordable,
    evaluate,
    evaluate_sampled,
    evaluate_test,
    evaluate_test_sampled,
    rank_of,
    rank_targets,
)
from training.measures import MISS
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


def fixed(scores: Sequence[Sequence[float]] | np.ndarray) -> Scorer:
    """A scorer with these scores for users in turn; it checks that it is asked for each once."""
    table: NDArray[np.float32] = np.asarray(scores, np.float32)
    asked = [0]

    def scorer(histories: Sequences) -> NDArray[np.float32]:
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
        [9.0, -5, -1, -3, -2, -4],  # scores below zero: history 2, target 4 is first
    ]
    found = evaluate(fixed(scores), holdout([[1, 2], [5], [1], [5, 2], [2]], [3, 3, 3, 5, 4]), 5)
    assert found.ranks.tolist() == [1, 3, 3, MISS, 1]
    metrics = found.metrics()
    assert metrics["hr@5"] == metrics["hr@10"] == pytest.approx(4 / 5)
    assert metrics["ndcg@10"] == pytest.approx((1 + 0.5 + 0.5 + 0 + 1) / 5)  # 1 / log2(3 + 1) = 1/2
    assert metrics["mrr"] == pytest.approx((1 + 1 / 3 + 1 / 3 + 0 + 1) / 5)
    assert metrics["users"] == 5


def ranked_slowly(scores: list[float], history: list[int], target: int) -> int | None:
    """Sort what may be recommended, best first and the target behind its equals, and look for it."""
    candidates = [item for item in range(1, len(scores)) if item not in history]
    candidates.sort(key=lambda item: (-scores[item], item == target))
    return candidates.index(target) + 1 if target in candidates else None


@settings(max_examples=150)
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


@pytest.mark.parametrize("cells", [1, 51, 52, 51 * 7, 51 * 600])
def test_how_many_users_are_ranked_at_once_changes_nothing_but_memory(
    cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = np.random.default_rng(0).integers(0, 9, (300, 51)).astype(np.float32)
    part = holdout([[1]] * 300, [user % 49 + 2 for user in range(300)])
    usual = evaluate(fixed(scores), part, 50)
    sampled = evaluate_sampled(fixed(scores), part, 50, negatives=9)
    monkeypatch.setattr("training.evaluate._CELLS_AT_ONCE", cells)
    asked: list[int] = []

    def counted(histories: Sequences) -> NDArray[np.float32]:
        asked.append(len(histories))
        return scores[sum(asked[:-1]) : sum(asked)]

    assert rank_targets(counted, part, 50).tolist() == usual.ranks.tolist()
    assert max(asked) == max(1, min(256, cells // 51))
    assert sum(asked) == 300
    again = evaluate(fixed(scores), part, 50)
    assert (again.ranks.tolist(), again.coverage) == (usual.ranks.tolist(), usual.coverage)
    assert evaluate_sampled(fixed(scores), part, 50, negatives=9).ranks.tolist() == sampled.ranks.tolist()


def test_ranking_in_a_catalogue_of_a_million_never_holds_the_scores_of_all_users() -> None:
    users, items = 96, 1_000_000
    scores = np.arange(items + 1, dtype=np.float32)
    part = holdout([[1]] * users, [items - user for user in range(users)])
    tracemalloc.start()
    try:
        found = rank_targets(lambda histories: np.broadcast_to(scores, (len(histories), items + 1)), part, items)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.tolist() == list(range(1, users + 1))
    assert peak < users * items * 4  # bytes of those scores; ranking all at once takes a quarter more


def test_the_sealed_part_and_no_other_is_judged() -> None:
    one, two = holdout([[1]], [2]), holdout([[1]], [3])
    split = Split(train=one.histories, validation=one, _test=two, left_out={})
    scores = [[0, 0, 5, 4]]
    assert evaluate(fixed(scores), split.validation, 3).ranks.tolist() == [1]
    assert evaluate_test(fixed(scores), split, 3).ranks.tolist() == [2]
    assert evaluate_test_sampled(fixed(scores), split, 3, negatives=1).ranks.tolist() == [2]


def test_novelty_is_the_mean_self_information_of_what_stood_in_the_first_ten() -> None:
    popularity = np.array([0, 4, 2, 1, 1], np.float32)  # 1, 2, 3 and 3 bits
    scores = np.zeros((2, 5))
    found = evaluate(fixed(scores), holdout([[1], [1, 2]], [2, 3]), 4, popularity=popularity)
    assert found.metrics()["novelty@10"] == pytest.approx((2 + 3 + 3 + 3 + 3) / 5)  # what is filtered does not count
    assert "novelty@10" not in evaluate(fixed(scores), holdout([[1], [1, 2]], [2, 3]), 4).metrics()


def test_slices_are_judged_apart_and_add_up() -> None:
    """Ranks 1, 2, 1, 1 of users with 1, 1, 2 and 3 items before a target; the median is 1.5."""
    scores = [[0, 3, 2, 1, 0], [0, 3, 2, 1, 0], [0, 0, 0, 1, 2], [0, 0, 0, 0, 1]]
    part = holdout([[1], [2], [1, 2], [1, 2, 3]], [2, 3, 4, 4], [True, False, True, True])
    popularity = np.array([0, 1, 1, 1, 3], np.float32)  # item 4 is the head
    report = evaluate(fixed(scores), part, 4, popularity=popularity).report()
    slices = report["slices"]
    assert isinstance(slices, dict)
    assert {name: (figures["users"], figures["mrr"]) for name, figures in slices.items()} == {
        "strictly later": (3, 1.0),
        "short history": (2, 0.75),
        "long history": (2, 1.0),
        "head target": (2, 1.0),
        "tail target": (2, 0.75),
    }
    assert slices["head target"]["intervals"]["ndcg@10"] == (1.0, 1.0)
    assert report["users"] == 4


def test_histories_of_the_median_length_are_short() -> None:
    found = evaluate(fixed(np.zeros((3, 5))), holdout([[1], [1, 2], [1, 2, 3]], [4, 4, 4]), 4)
    assert found.slices["short history"].tolist() == [True, True, False]
    assert set(found.slices) == {"strictly later", "short history", "long history"}  # no popularity, no head


def test_sampled_ranks_by_hand() -> None:
    """With as many negatives as there are items outside history and target, the sample is all of them."""
    scores = [
        [9, 0.5, 0.4, 0.3, 0.2, 0.1],  # history 1 and 2, target 3 before 4 and 5
        [9, 0.5, 0.5, 0.3, 0.5, 0.1],  # history 5 and 3, target 4 ties with 1 and 2
        [9, 0.5, 0.4, 0.3, 0.2, 0.1],  # the target repeats an item of the history: cannot be hit
    ]
    found = evaluate_sampled(fixed(scores), holdout([[1, 2], [5, 3], [4, 5, 5]], [3, 4, 5]), 5, negatives=2)
    assert found.ranks.tolist() == [1, 3, MISS]
    (label,) = found.report()
    assert label == "sampled, 2 negatives"


def test_sampled_negatives_are_drawn_evenly_without_repeats_from_what_the_user_has_not_had() -> None:
    """The target scores below item j alone, so that a rank of 2 says that j was drawn."""
    users, items, negatives = 4000, 12, 3
    for better in range(1, items + 1):
        scores = np.zeros((users, items + 1))
        scores[:, 12], scores[:, better] = 1, 2
        found = evaluate_sampled(fixed(scores), holdout([[1, 2]] * users, [12] * users), items, negatives=negatives)
        drawn = float((found.ranks > 1).mean())
        if better in (1, 2):
            assert drawn == 0
        elif better == 12:
            assert drawn == 0  # never among its own negatives
        else:
            assert drawn == pytest.approx(negatives / 9, abs=0.03)
    scores = np.tile([0.0, 0, 0, *[2.0] * 9, 1], (users, 1))
    found = evaluate_sampled(fixed(scores), holdout([[1, 2]] * users, [12] * users), items, negatives=9)
    assert found.ranks.tolist() == [10] * users  # all nine, each once


def test_of_a_large_catalogue_some_users_are_validated_evenly_drawn_and_always_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    part = holdout([[1, 2]] * 10, list(range(3, 13)))
    assert affordable(part, 12) is part
    for users, kept in ((10, [*range(3, 13)]), (9, [3, 5, 7, 9, 11]), (4, [3, 6, 9, 12]), (1, [3]), (0, [3])):
        monkeypatch.setattr("training.evaluate._CELLS", users * 13)
        for _ in range(2):
            chosen = affordable(part, 12)
            assert chosen.targets.tolist() == kept
            assert [history.tolist() for history in map(chosen.histories.__getitem__, range(len(kept)))] == [
                [1, 2] for _ in kept
            ]


def test_sampled_ranks_repeat_with_the_seed_and_change_with_it() -> None:
    scores = np.random.default_rng(0).random((600, 51))
    part = holdout([[1]] * 600, [user % 49 + 2 for user in range(600)])
    ranks = [evaluate_sampled(fixed(scores), part, 50, negatives=9, seed=seed).ranks.tolist() for seed in (0, 0, 1)]
    assert ranks[0] == ranks[1] != ranks[2]


def _never(histories: Sequences) -> np.ndarray:
    raise AssertionError("scored although nothing can come of it")


def test_too_few_items_to_draw_from_is_an_error() -> None:
    part = holdout([[1], [1, 2]], [3, 3])
    evaluate_sampled(fixed(np.zeros((2, 5))), part, 4, negatives=1)
    with pytest.raises(EvaluationError, match=r"1 of 2 users have fewer than 2 items .*; at most 1 can be drawn"):
        evaluate_sampled(_never, part, 4, negatives=2)
    with pytest.raises(EvaluationError, match=r"2 of 3 users .* some have none, so that there is no sampling"):
        evaluate_sampled(_never, holdout([[1], [1, 2, 2, 3], [2, 1, 3, 4]], [4, 4, 4]), 4, negatives=2)
    with pytest.raises(EvaluationError, match="at least 1"):
        evaluate_sampled(fixed(np.zeros((2, 5))), part, 4, negatives=0)


def test_sampled_scores_that_are_no_numbers_are_an_error_too() -> None:
    with pytest.raises(EvaluationError, match="NaN"):
        evaluate_sampled(fixed([[0, 0, np.nan, 0]]), holdout([[1]], [3]), 3, negatives=1)


def test_constant_scores_earn_nothing_among_samples_either() -> None:
    found = evaluate_sampled(fixed(np.zeros((40, 151))), holdout([[1]] * 40, list(range(2, 42))), 150, negatives=99)
    assert found.ranks.tolist() == [100] * 40


def test_rank_of_counts_ties_against_the_target_even_at_infinity() -> None:
    scores = np.array([[-np.inf, np.inf, np.inf, 0]], np.float32)
    assert rank_of(scores, np.array([1], np.int32)).tolist() == [2]
    assert rank_of(scores, np.array([3], np.int32)).tolist() == [3]
    scores[0, 3] = -np.inf
    assert rank_of(scores, np.array([3], np.int32)).tolist() == [MISS]
