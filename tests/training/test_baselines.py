"""Baselines by hand on three users, against a slow oracle of the formula, and on real data where it is present."""

import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.baselines import CoVisitation, ItemKNN, Popularity, baselines, recent
from training.dataset import Sequences, build_dataset, popularity_of
from training.evaluate import evaluate_test
from training.interactions import read_interactions
from training.splits import split_leave_one_out

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def sequences(histories: list[list[int]]) -> Sequences:
    lengths = np.array([len(history) for history in histories], np.int64)
    ends = np.cumsum(lengths)
    return Sequences(np.array([item for one in histories for item in one], np.int32), ends - lengths, ends)


TRAIN = [[1, 2, 3], [2, 3], [4]]


def test_popularity_counts_interactions() -> None:
    train = sequences([[1, 2, 2], [2], [4]])
    assert popularity_of(train, 5).tolist() == [0, 1, 3, 0, 1, 0]
    assert Popularity(train, 5)(sequences([[1], [], [4, 4]])).tolist() == [[0, 1, 3, 0, 1, 0]] * 3


def test_popularity_counts_only_the_users_it_is_given() -> None:
    assert popularity_of(sequences(TRAIN).take(np.array([1])), 4).tolist() == [0, 0, 1, 1, 0]


def test_covisitation_counts_the_neighbours_of_the_newest_item_on_both_sides() -> None:
    scores = CoVisitation(sequences(TRAIN), 4)(sequences([[4, 2], [3], [4], []]))
    assert scores.tolist() == [[0, 1, 0, 2, 0], [0, 1, 2, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]


def test_covisitation_reaches_five_positions_and_not_six() -> None:
    scores = CoVisitation(sequences([[1, 2, 3, 4, 5, 6, 7]]), 7)(sequences([[1], [7]]))
    assert scores.tolist() == [[0, 0, 1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1, 1, 0]]


def test_item_knn_by_hand() -> None:
    scores = ItemKNN(sequences(TRAIN), 4)(sequences([[2], [1, 2]]))
    one, two, three = (1 / math.sqrt(count + 10) for count in (1, 2, 2))  # popularity of items 1, 2 and 3
    # From item 2: 3 followed it twice at gap 1; 1 preceded it once at gap 1, for half.
    from_two = [0, 0.5 * two * one, 0, 2 * two * three, 0]
    assert scores[0].tolist() == pytest.approx(from_two)
    # Item 1 is one older, for 0.8: 2 followed it at gap 1, 3 at gap 2.
    from_one = [0, 0, one * two, 0.5 * one * three, 0]
    assert scores[1].tolist() == pytest.approx([new + 0.8 * old for new, old in zip(from_two, from_one, strict=True)])


def test_only_the_newest_items_speak_each_quieter_than_the_next() -> None:
    weights = recent(sequences([[1, 2, 3, 1], []]), 5, count=3, decay=0.5).toarray()
    assert weights.tolist() == [[0, 1, 0.25, 0.5, 0], [0] * 5]  # 1 is the newest; its older self is the fourth


def slow_item_knn(train: list[list[int]], history: list[int], items: int) -> list[float]:
    """The formula as it is written down, a pair at a time."""
    counts = Counter(item for one in train for item in one)
    together: dict[tuple[int, int], float] = defaultdict(float)
    for one in train:
        for first in range(len(one)):
            for second in range(first + 1, min(first + 6, len(one))):
                gap = second - first
                together[one[first], one[second]] += 1 / gap
                together[one[second], one[first]] += 0.5 / gap
    scores = [0.0] * (items + 1)
    for back, item in enumerate(reversed(history[-20:])):
        for other in range(1, items + 1):
            share = together[item, other] / math.sqrt(counts[other] + 10)
            scores[other] += 0.8**back / math.sqrt(counts[item] + 10) * share
    return scores


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.integers(1, 6), max_size=12), min_size=1, max_size=5),
    st.lists(st.lists(st.integers(1, 6), max_size=25), min_size=1, max_size=3),
)
def test_item_knn_agrees_with_the_formula_a_pair_at_a_time(train: list[list[int]], users: list[list[int]]) -> None:
    scores = ItemKNN(sequences(train), 6)(sequences(users))
    assert scores.dtype == np.float32
    for row, history in enumerate(users):
        assert scores[row].tolist() == pytest.approx(slow_item_knn(train, history, 6), abs=1e-6)


def test_all_three_are_offered_by_name() -> None:
    assert list(baselines(sequences(TRAIN), 4)) == ["popularity", "co-visitation", "item-kNN"]


def test_movielens_100k_gives_the_known_figures() -> None:
    log = DATA / "ml-100k" / "ml-100k.inter"
    if not log.is_file():
        pytest.skip(f"no MovieLens-100K at {log}")
    dataset = build_dataset(read_interactions([log]))
    split = split_leave_one_out(dataset)
    items = dataset.vocabulary.items
    figures = {
        name: evaluate_test(scorer, split, items).metrics()["ndcg@10"]
        for name, scorer in baselines(split.train, items).items()
    }
    assert figures["item-kNN"] == pytest.approx(0.119, abs=0.003)
    assert figures["popularity"] == pytest.approx(0.045, abs=0.003)
