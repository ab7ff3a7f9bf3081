"""Windows and negatives: what is learned from, how often, and in which order."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.batches import Batch, NegativeSampler, Windows
from training.dataset import Sequences


def flat(lengths: list[int]) -> Sequences:
    """Users with so many items; every interaction has an item of its own, so that it can be recognised."""
    ends = np.cumsum(lengths, dtype=np.int64)
    items = np.arange(1, int(sum(lengths)) + 1, dtype=np.int32)
    return Sequences(items, ends - np.array(lengths, np.int64), ends)


def windows(sequences: Sequences, **options: int | bool | None) -> Windows:
    values = {"length": 5, "stride": None, "batch": 4, "seed": 0} | options
    return Windows(sequences, **values)  # type: ignore[arg-type]


def rows(batches: list[Batch]) -> list[tuple[int, list[int], list[int]]]:
    """User, inputs and targets of every window, the padding cut off."""
    found = []
    for batch in batches:
        for user, inputs, targets in zip(batch.users, batch.inputs, batch.targets, strict=True):
            count = int((inputs > 0).sum())
            assert (inputs[:count] > 0).all()  # padding on the right alone, and targets under the inputs
            assert ((targets > 0) == (inputs > 0)).all()
            found.append((int(user), inputs[:count].tolist(), targets[:count].tolist()))
    return found


def assert_seen_is_the_past(source: Windows, epoch: int) -> None:
    """Of every target, whatever part of a batch it is in: all that its user met before it, in windows cut off too."""
    for batch in source.epoch(epoch):
        for part in (batch, batch.take(slice(1, None, 2))):
            expected = []
            for user, targets in zip(part.users, part.targets, strict=True):
                history = source.sequences[user].tolist()
                expected += [history[: history.index(target)] for target in targets[targets > 0]]
            numbers, items = source.seen(part).pairs(slice(None))
            assert [items[numbers == number].tolist() for number in range(len(expected))] == expected


lengths_of_users = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda lengths: max(lengths) >= 2)


@given(lengths_of_users, st.integers(1, 9), st.none() | st.integers(1, 9), st.integers(1, 5), st.integers(0, 3))
def test_every_interaction_but_a_users_first_is_learned_from_in_its_own_context(
    lengths: list[int], length: int, stride: int | None, batch: int, epoch: int
) -> None:
    stride = stride if stride is None else min(stride, length)
    sequences = flat(lengths)
    source = windows(sequences, length=length, stride=stride, batch=batch)
    found = rows(list(source.epoch(epoch)))
    assert len(found) == source.count(epoch)
    assert_seen_is_the_past(source, epoch)
    seen: dict[int, int] = {}
    for user, inputs, targets in found:
        history = sequences[user].tolist()
        begin = history.index(inputs[0])  # a window holds one user's items, in order and without a gap
        assert inputs == history[begin : begin + len(inputs)]
        assert targets == history[begin + 1 : begin + 1 + len(inputs)]
        assert 1 <= len(inputs) <= length
        for target in targets:
            seen[target] = seen.get(target, 0) + 1
    assert set(seen) == {item for user in range(len(lengths)) for item in sequences[user][1:].tolist()}
    for user, count in enumerate(lengths):
        if 2 <= count <= length + 1:  # fits one window: exactly once
            assert {seen[item] for item in sequences[user][1:].tolist()} == {1}
            assert [row[0] for row in found].count(user) == 1


def test_without_a_stride_only_the_newest_window_overlaps_another() -> None:
    """The newest window is always full, the cuts before it move: each target comes once, or twice near the end."""
    sequences = flat([38])
    for epoch in range(20):
        found = sorted(rows(list(windows(sequences, length=5).epoch(epoch))), key=lambda row: -row[2][-1])
        (_, newest, _), *older = found
        assert newest == list(range(33, 38))
        targets = [target for _, _, window in older for target in window]
        assert len(targets) == len(set(targets))
        assert set(range(2, 34)) <= set(targets) | {33}
        assert {len(inputs) for _, inputs, _ in older[:-1]} == {5}


def test_a_stride_below_the_length_shows_each_target_in_more_contexts() -> None:
    sequences = flat([100])
    found = rows(list(windows(sequences, length=8, stride=2).epoch(0)))
    counts = np.bincount([target for _, _, targets in found for target in targets], minlength=101)
    assert counts[30:80].tolist() == [4] * 50


def test_long_histories_are_cut_elsewhere_in_another_epoch() -> None:
    source = windows(flat([38]), length=5)
    starts = [frozenset(inputs[0] for _, inputs, _ in rows(list(source.epoch(epoch)))) for epoch in range(12)]
    assert len(set(starts)) > 2


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    sequences = flat([6] * 50)  # one window a user

    def order(source: Windows, epoch: int) -> list[int]:
        return [row[0] for row in rows(list(source.epoch(epoch)))]

    used = windows(sequences)
    first, second = order(used, 1), order(used, 2)
    assert first != second
    assert sorted(first) == sorted(second) == list(range(50))
    fresh = windows(sequences)
    next(fresh.epoch(7))  # an epoch that was broken off changes nothing
    assert (order(fresh, 2), order(fresh, 1)) == (second, first)
    assert order(windows(sequences, seed=1), 1) != first


def test_little_of_a_batch_is_padding_on_lengths_like_those_of_a_shop() -> None:
    generator = np.random.default_rng(0)
    lengths = 3 + generator.geometric(1 / 5, 20_000)  # 5-core reviews: a few of most people, hundreds of some
    lengths[:20] = 300
    source = windows(flat(lengths.tolist()), length=50, batch=128)
    cells = padding = 0
    targets = []
    for batch in source.epoch(0):
        cells += batch.inputs.size
        padding += int((batch.inputs == 0).sum())
        targets.append(int((batch.targets > 0).sum()))
    assert np.quantile(targets, 0.95) < 1.1 * np.quantile(targets, 0.05)  # a target counts alike in every batch
    assert padding / cells < 0.15  # unsorted it is four fifths; Amazon Beauty itself gives 12 %


def test_a_batch_mixes_users_of_all_kinds_over_an_epoch() -> None:
    """Sorted by length over the whole epoch, long histories would always be learned last."""
    source = windows(flat([3] * 300 + [6] * 300), batch=10)
    widths = [batch.inputs.shape[1] for batch in source.epoch(0)]
    changes = sum(one != two for one, two in pairwise(widths))
    assert changes > 10


def test_nobody_with_a_single_interaction_is_learned_from() -> None:
    source = windows(flat([1, 0, 1]))
    assert source.count(0) == 0
    assert list(source.epoch(0)) == []


def test_sequences_taken_out_of_a_larger_log_leave_the_rest_alone() -> None:
    whole = flat([4, 5, 6])
    found = rows(list(windows(whole.take(np.array([2, 0]))).epoch(0)))
    assert sorted(found) == [
        (0, [10, 11, 12, 13, 14], [11, 12, 13, 14, 15]),
        (1, [1, 2, 3], [2, 3, 4]),
    ]


def test_events_at_one_time_are_learned_in_a_new_order_every_epoch() -> None:
    whole = flat([6, 6])
    times = np.array([1, 2, 2, 2, 3, 4, 4, 4, 5, 6, 7, 7])  # the first user's last and the second's first tie as well
    sequences = Sequences(whole.items, whole.starts, whole.ends, times)
    orders = set()
    for epoch in range(40):
        found = {row[0]: [row[1][0], *row[2]] for row in rows(list(windows(sequences, shuffle_ties=True).epoch(epoch)))}
        first, second = found[0], found[1]
        assert (first[0], first[4:], second[2:4]) == (1, [5, 6], [9, 10])
        assert (set(first[1:4]), set(second[:2]), set(second[4:])) == ({2, 3, 4}, {7, 8}, {11, 12})
        orders.add(tuple(first[1:4]))
        again = windows(sequences, shuffle_ties=True)
        assert rows(list(again.epoch(epoch))) == rows(list(windows(sequences, shuffle_ties=True).epoch(epoch)))
    assert len(orders) == 6
    assert whole.items.tolist() == list(range(1, 13))
    plain = rows(list(windows(sequences, shuffle_ties=False).epoch(0)))
    assert sorted(plain) == [(0, [1, 2, 3, 4, 5], [2, 3, 4, 5, 6]), (1, [7, 8, 9, 10, 11], [8, 9, 10, 11, 12])]


def test_without_times_there_are_no_ties_to_shuffle() -> None:
    one, two = (rows(list(windows(flat([9, 4]), shuffle_ties=flag).epoch(1))) for flag in (True, False))
    assert one == two


@settings(max_examples=30)
@given(st.lists(st.sets(st.integers(1, 40), max_size=10), min_size=1, max_size=5).filter(any), st.integers(0, 99))
def test_a_negative_is_never_in_the_users_history(histories: list[set[int]], seed: int) -> None:
    lengths = np.array([len(history) for history in histories])
    ends = np.cumsum(lengths)
    items = np.array([item for history in histories for item in sorted(history)], np.int32)
    sampler = NegativeSampler(Sequences(items, ends - lengths, ends), 40)
    users = np.repeat(np.arange(len(histories)), 40)
    drawn = sampler.draw(users, np.random.default_rng(seed))
    assert drawn.min() >= 1
    assert drawn.max() <= 40
    assert not any(int(item) in histories[user] for user, item in zip(users, drawn, strict=True))


def test_negatives_are_spread_evenly_over_the_rest() -> None:
    sampler = NegativeSampler(Sequences(np.array([2, 5, 5, 1], np.int32), np.array([0, 3]), np.array([3, 4])), 8)
    drawn = sampler.draw(np.zeros(60_000, np.int64), np.random.default_rng(0))
    counts = np.bincount(drawn, minlength=9)
    assert counts[[0, 2, 5]].tolist() == [0, 0, 0]
    allowed = counts[[1, 3, 4, 6, 7, 8]]
    assert np.abs(allowed - 10_000).max() < 5 * np.sqrt(10_000)  # five standard deviations


def test_a_user_who_has_seen_everything_still_gets_an_item() -> None:
    sampler = NegativeSampler(Sequences(np.array([1, 2, 3], np.int32), np.array([0]), np.array([3])), 3)
    assert set(sampler.draw(np.zeros(50, np.int64), np.random.default_rng(0)).tolist()) <= {1, 2, 3}


@pytest.mark.parametrize("seed", [0, 1])
def test_negatives_are_a_function_of_their_generator(seed: int) -> None:
    sampler = NegativeSampler(flat([5, 5]), 100)
    users = np.array([0, 1] * 20)
    one, two = (sampler.draw(users, np.random.default_rng(seed)) for _ in range(2))
    assert one.tolist() == two.tolist()
    assert one.tolist() != sampler.draw(users, np.random.default_rng(seed + 1)).tolist()
