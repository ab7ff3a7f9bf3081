"""Numbering, the k-core and both splits, by hand and against slow plain Python; and the seal on the test part."""

import ast
import tracemalloc
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from training.dataset import Dataset, DatasetError, Sequences, Vocabulary, build_dataset
from training.interactions import Columns, interactions_from_frame, read_interactions
from training.splits import Holdout, Split, open_test, split_by_time, split_leave_one_out

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"

Event = tuple[str, str, int]  # user, item, second


def dataset_of(events: list[Event], *, timed: bool = True, **minima: int) -> Dataset:
    frame = pl.DataFrame(
        events, schema={"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}, orient="row"
    )
    log = interactions_from_frame(frame if timed else frame.drop("timestamp"), source="events")
    return build_dataset(log, **minima)


def by_user(dataset: Dataset, sequences: Sequences | None = None) -> dict[str, list[str]]:
    sequences = dataset.sequences if sequences is None else sequences
    return {user: dataset.vocabulary.decode(sequences[row]) for row, user in enumerate(dataset.users)}


def targets_of(dataset: Dataset, part: Holdout) -> dict[str, tuple[list[str], str, bool]]:
    """History, target and whether it is strictly later, by user."""
    return {
        dataset.users[user]: (
            dataset.vocabulary.decode(part.histories[row]),
            dataset.vocabulary.ids[part.targets[row]],
            bool(part.strictly_later[row]),
        )
        for row, user in enumerate(part.users)
    }


EVENTS: list[Event] = [
    ("ann", "tea", 10),
    ("bob", "jam", 20),
    ("ann", "jam", 30),
    ("ann", "pie", 30),
    ("bob", "tea", 40),
    ("ann", "tea", 50),
    ("cat", "pie", 60),
]


def test_users_and_items_are_numbered_as_they_first_occur_and_row_0_is_padding() -> None:
    dataset = dataset_of(EVENTS)

    assert dataset.users == ("ann", "bob", "cat")
    assert dataset.vocabulary.ids == ("", "tea", "jam", "pie")
    assert dataset.sequences.items.tolist() == [1, 2, 3, 1, 2, 1, 3]
    assert dataset.sequences.items.dtype == np.int32
    assert dataset.sequences.starts.tolist() == [0, 4, 6]
    assert dataset.sequences.ends.tolist() == [4, 6, 7]
    assert dataset.sequences.timestamps is not None
    assert dataset.sequences.timestamps.tolist() == [10_000, 30_000, 30_000, 50_000, 20_000, 40_000, 60_000]
    assert dataset.sequences.values is None
    assert dataset.core.interactions_removed == dataset.core.rounds == 0


def test_values_stay_beside_their_items() -> None:
    frame = pl.DataFrame({"user_id": ["a", "b", "a"], "item_id": ["x", "y", "z"], "value": [1.0, 2.0, None]})

    dataset = build_dataset(interactions_from_frame(frame, source="events"))

    assert dataset.sequences.timestamps is None
    np.testing.assert_array_equal(dataset.sequences.values, np.array([1.0, np.nan, 2.0], dtype=np.float32))


def test_a_vocabulary_translates_both_ways() -> None:
    vocabulary = Vocabulary(("", "tea", "jam"))

    assert (vocabulary.items, vocabulary.rows) == (2, 3)
    assert (vocabulary.index_of("jam"), vocabulary.index_of("ink"), vocabulary.index_of("")) == (2, None, None)
    assert vocabulary.encode(["jam", "ink", "tea"]).tolist() == [2, 0, 1]
    assert vocabulary.decode([2, 1]) == ["jam", "tea"]
    for row in (0, 3, -1):
        with pytest.raises(DatasetError, match=f"row {row} is no item"):
            vocabulary.decode([row])


@pytest.mark.parametrize("ids", [(), ("tea",), ("", "tea", "tea"), ("", "")])
def test_a_vocabulary_needs_padding_first_and_distinct_ids(ids: tuple[str, ...]) -> None:
    with pytest.raises(DatasetError):
        Vocabulary(ids)


def test_sequences_that_do_not_fit_their_arrays_are_refused() -> None:
    items, one, four = np.arange(3, dtype=np.int32), np.array([1]), np.array([4])
    for starts, ends in ((one, four), (four, one), (-one, one), (np.array([0, 1]), one)):
        with pytest.raises(DatasetError):
            Sequences(items, starts, ends)
    with pytest.raises(DatasetError, match="timestamps"):
        Sequences(items, one, one, timestamps=np.zeros(2, dtype=np.int64))


def test_a_subset_shares_memory_until_it_is_made_compact() -> None:
    sequences = dataset_of(EVENTS).sequences

    subset = sequences.take(np.array([2, 0]))
    compact = subset.compact()

    assert np.shares_memory(subset.items, sequences.items)
    assert [subset[0].tolist(), subset[1].tolist()] == [compact[0].tolist(), compact[1].tolist()] == [[3], [1, 2, 3, 1]]
    assert compact.items.tolist() == [3, 1, 2, 3, 1]
    assert compact.timestamps is not None
    assert compact.timestamps.tolist() == [60_000, 10_000, 30_000, 30_000, 50_000]
    assert (len(subset), subset.interactions, subset.lengths.tolist()) == (2, 5, [1, 4])
    assert len(sequences.take(np.array([], dtype=np.int64)).compact()) == 0


def test_the_core_filter_removes_until_both_minima_hold() -> None:
    # cat has one event; without it pie has one; without pie ann has 3; bob keeps 2: rounds of 1, 1, 0 removals.
    dataset = dataset_of(EVENTS, min_user_interactions=2, min_item_interactions=2)

    assert by_user(dataset) == {"ann": ["tea", "jam", "tea"], "bob": ["jam", "tea"]}
    assert dataset.vocabulary.ids == ("", "tea", "jam")
    core = dataset.core
    assert (core.rounds, core.users_removed, core.items_removed, core.interactions_removed) == (2, 1, 1, 2)


def test_nothing_left_or_a_minimum_below_one_is_an_error() -> None:
    with pytest.raises(DatasetError, match="no interaction is left"):
        dataset_of(EVENTS, min_user_interactions=5)
    with pytest.raises(DatasetError, match="min_item_interactions is 0"):
        dataset_of(EVENTS, min_item_interactions=0)


def test_leave_one_out_holds_out_the_last_two_events_and_no_short_user() -> None:
    dataset = dataset_of([*EVENTS, ("bob", "pie", 40)])

    split = split_leave_one_out(dataset)

    assert by_user(dataset, split.train) == {"ann": ["tea", "jam"], "bob": ["jam"], "cat": ["pie"]}
    assert targets_of(dataset, split.validation) == {
        "ann": (["tea", "jam"], "pie", False),
        "bob": (["jam"], "tea", True),
    }
    assert targets_of(dataset, open_test(split)) == {
        "ann": (["tea", "jam", "pie"], "tea", True),
        "bob": (["jam", "tea"], "pie", False),
    }
    assert split.left_out == {"fewer than 3 interactions": 1}


def test_without_timestamps_every_target_counts_as_strictly_later() -> None:
    dataset = dataset_of(EVENTS, timed=False)

    split = split_leave_one_out(dataset)

    assert split.validation.strictly_later.all()
    assert open_test(split).strictly_later.all()
    with pytest.raises(DatasetError, match="timestamps"):
        split_by_time(dataset)


def test_leave_one_out_needs_a_user_with_three_events() -> None:
    with pytest.raises(DatasetError, match=r"3 interactions.*name it with --user-column"):
        split_leave_one_out(dataset_of([("u", "a", 1), ("u", "b", 2)]))


# Ten events; shares of .2 cut at the 7th (time 60) and the 9th (time 80).
TIMED: list[Event] = [
    ("ann", "a", 0),
    ("bob", "a", 10),
    ("cat", "b", 20),
    ("ann", "b", 30),
    ("ann", "c", 40),
    ("bob", "c", 50),
    ("ann", "d", 60),  # at the cut: validation
    ("dan", "a", 70),  # new: no history before validation
    ("ann", "e", 80),  # at the cut: test
    ("dan", "e", 90),
]


def test_a_split_by_time_cuts_everybody_at_the_same_moments() -> None:
    dataset = dataset_of(TIMED)

    split = split_by_time(dataset, validation_share=0.2, test_share=0.2)

    assert split.cuts_ms == (60_000, 80_000)
    assert by_user(dataset, split.train) == {"ann": ["a", "b", "c"], "bob": ["a", "c"], "cat": ["b"], "dan": []}
    assert targets_of(dataset, split.validation) == {"ann": (["a", "b", "c"], "d", True)}
    assert targets_of(dataset, open_test(split)) == {
        "ann": (["a", "b", "c", "d"], "e", True),
        "dan": (["a"], "e", True),
    }
    assert split.left_out == {"no history before validation": 1, "no history before test": 0}


@pytest.mark.parametrize(("events", "newest"), [(1000, 66), (997, 13), (40, 3)])
def test_a_share_of_so_many_events_gives_so_many(events: int, newest: int) -> None:
    """Cut off, 1000 * (1 - 66 / 1000) is 933 and not 934, and one event more is judged."""
    dataset = dataset_of([(f"u{number % 4}", f"i{number % 7}", number) for number in range(events)])
    split = split_by_time(dataset, test_share=newest / events)
    assert split.cuts_ms is not None
    assert split.cuts_ms[1] == (events - newest) * 1000


def test_only_the_first_event_in_a_window_is_a_target() -> None:
    dataset = dataset_of([*TIMED, ("ann", "z", 75), ("ann", "y", 95)])

    split = split_by_time(dataset, validation_share=0.25, test_share=0.25)  # of 12: the 7th and the 10th

    assert split.cuts_ms == (60_000, 80_000)
    assert targets_of(dataset, split.validation) == {"ann": (["a", "b", "c"], "d", True)}
    assert targets_of(dataset, open_test(split))["ann"] == (["a", "b", "c", "d", "z"], "e", True)


@pytest.mark.parametrize(("validation", "test"), [(0.0, 0.1), (0.1, 0.0), (0.5, 0.5), (-0.1, 0.1), (float("nan"), 0.1)])
def test_shares_that_leave_a_part_empty_are_refused(validation: float, test: float) -> None:
    with pytest.raises(DatasetError, match="validation_share"):
        split_by_time(dataset_of(TIMED), validation_share=validation, test_share=test)


@pytest.mark.parametrize(
    ("events", "part"),
    [
        ([("u", item, 5) for item in "abcdef"], "train"),
        ([("u", "a", 1), *(("u", item, 5) for item in "bcdef")], "validation"),
        ([(user, "a", second) for second, user in enumerate("abcdefghij")], "validation"),
    ],
)
def test_a_part_that_ties_or_newcomers_leave_empty_is_an_error(events: list[Event], part: str) -> None:
    with pytest.raises(DatasetError, match=f"the {part} part is empty .* spans more time, or take --split loo, which"):
        split_by_time(dataset_of(events), validation_share=0.3, test_share=0.3)


def test_neither_train_nor_validation_holds_the_memory_of_a_test_item() -> None:
    dataset = dataset_of(TIMED)
    for split in (split_leave_one_out(dataset), split_by_time(dataset)):
        secret = open_test(split).histories.items
        assert split.train.items.size == split.train.interactions
        for visible in (split.train.items, split.validation.histories.items, split.validation.targets):
            assert not np.shares_memory(visible, secret)
        assert "_test" not in repr(split)


def test_targets_that_their_own_users_met_are_counted_with_one_history_a_user() -> None:
    """A rater of 2,000 items has 2,000 targets, half of which the history has; another met what the first did not."""
    items = np.concatenate([np.arange(1, 2001), np.arange(2001, 4001)]).astype(np.int32)
    whole = Sequences(items, np.array([0, 2000]), np.array([2000, 4000]))
    users = np.repeat([1, 0], [2, 2000])
    targets = np.concatenate([[1, 4000], np.arange(1001, 3001)]).astype(np.int32)
    part = Holdout(users, whole.take(users), targets, np.ones(len(users), np.bool_))
    tracemalloc.start()
    try:
        assert part.repeats == 1001
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2000 * 2000  # bytes: a history beside each of the targets takes many times that


def test_nothing_but_evaluation_opens_the_test_part() -> None:
    allowed = {"splits.py", "evaluate.py"}
    for path in sorted((ROOT / "training").glob("**/*.py")):
        tree = ast.parse(path.read_text())
        names = {
            name
            for node in ast.walk(tree)
            for name in (
                getattr(node, "id", None),
                getattr(node, "attr", None),
                getattr(node, "name", None),
                getattr(node, "value", None) if isinstance(node, ast.Constant) else None,
            )
            if isinstance(name, str)
        }
        assert path.name in allowed or not names & {"open_test", "_test"}, f"{path} reaches for the test part"


# Slow oracles: dictionaries and loops, written from the definitions.


def oracle_core(events: list[Event], min_user: int, min_item: int) -> list[Event]:
    while True:
        users: defaultdict[str, int] = defaultdict(int)
        items: defaultdict[str, int] = defaultdict(int)
        for user, item, _ in events:
            users[user] += 1
            items[item] += 1
        left = [event for event in events if users[event[0]] >= min_user and items[event[1]] >= min_item]
        if len(left) == len(events):
            return left
        events = left


def oracle_sequences(events: list[Event]) -> dict[str, list[Event]]:
    sequences: dict[str, list[Event]] = {}
    for event in sorted(events, key=lambda event: event[2]):
        sequences.setdefault(event[0], []).append(event)
    return sequences


def oracle_target(sequence: list[Event], position: int) -> tuple[list[str], str, bool]:
    return (
        [item for _, item, _ in sequence[:position]],
        sequence[position][1],
        sequence[position][2] > sequence[position - 1][2],
    )


logs = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.sampled_from("stuvwxyz"), st.integers(0, 12)), min_size=1, max_size=40
)


@given(logs, st.integers(1, 4), st.integers(1, 4))
def test_the_core_and_the_order_are_the_oracles(events: list[Event], min_user: int, min_item: int) -> None:
    expected = oracle_sequences(oracle_core(events, min_user, min_item))
    minima: dict[str, Any] = {"min_user_interactions": min_user, "min_item_interactions": min_item}
    if not expected:
        with pytest.raises(DatasetError):
            dataset_of(events, **minima)
        return

    dataset = dataset_of(events, **minima)

    assert by_user(dataset) == {user: [item for _, item, _ in sequence] for user, sequence in expected.items()}
    assert dataset.core.interactions_removed == len(events) - dataset.sequences.interactions


@given(logs)
def test_leave_one_out_is_the_oracles(events: list[Event]) -> None:
    sequences = oracle_sequences(events)
    long = {user: sequence for user, sequence in sequences.items() if len(sequence) >= 3}
    assume(long)
    dataset = dataset_of(events)

    split = split_leave_one_out(dataset)

    assert by_user(dataset, split.train) == {
        user: [item for _, item, _ in (sequence[:-2] if user in long else sequence)]
        for user, sequence in sequences.items()
    }
    assert targets_of(dataset, split.validation) == {u: oracle_target(s, len(s) - 2) for u, s in long.items()}
    assert targets_of(dataset, open_test(split)) == {u: oracle_target(s, len(s) - 1) for u, s in long.items()}


def oracle_window(
    sequences: dict[str, list[Event]], begin: int, end: float
) -> tuple[dict[str, tuple[list[str], str, bool]], int]:
    targets, newcomers = {}, 0
    for user, sequence in sequences.items():
        inside = [position for position, event in enumerate(sequence) if begin <= event[2] < end]
        if inside and inside[0] == 0:
            newcomers += 1
        elif inside:
            targets[user] = oracle_target(sequence, inside[0])
    return targets, newcomers


@given(logs, st.sampled_from([0.1, 0.25, 0.4]), st.sampled_from([0.1, 0.25, 0.4]))
def test_a_split_by_time_is_the_oracles(events: list[Event], validation_share: float, test_share: float) -> None:
    sequences = oracle_sequences(events)
    times = sorted(second for _, _, second in events)
    first, second = (
        times[min(len(times) - 1, int(len(times) * start + 1e-6))]
        for start in (1 - validation_share - test_share, 1 - test_share)
    )
    validation, validation_newcomers = oracle_window(sequences, first, second)
    test, test_newcomers = oracle_window(sequences, second, float("inf"))
    dataset = dataset_of(events)
    if not (validation and test and times[0] < first):
        with pytest.raises(DatasetError, match="part is empty"):
            split_by_time(dataset, validation_share=validation_share, test_share=test_share)
        return

    split: Split = split_by_time(dataset, validation_share=validation_share, test_share=test_share)

    assert targets_of(dataset, split.validation) == validation
    assert targets_of(dataset, open_test(split)) == test
    assert list(split.left_out.values()) == [validation_newcomers, test_newcomers]
    assert by_user(dataset, split.train) == {
        user: [item for _, item, at in sequence if at < first] for user, sequence in sequences.items()
    }


def test_the_ties_of_ml_1m_are_where_they_are_known_to_be() -> None:
    path = SHARED / "ml-1m" / "ratings.tsv.gz"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    dataset = build_dataset(read_interactions([path], columns=Columns(item="movie_id")))

    test = open_test(split_leave_one_out(dataset))

    assert len(test) == 6_040
    assert test.strictly_later.mean() == pytest.approx(0.58, abs=0.005)  # the last two tie for 42 % of users
