"""Splits of a data set into what is learned, what steers the learning, and what judges it.

The test part is sealed: nothing but `open_test` gives it out, and evaluation alone may call that, so no choice made
while training can have looked at it. The train part is a copy that holds nothing of the other two.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from training.dataset import Dataset, DatasetError, Sequences

_OTHERWISE = "take --split loo, which train and evaluate have"


@dataclass(frozen=True, slots=True, eq=False)
class Holdout:
    """One target per user, and what the user did before it.

    users int64 (n,), row numbers of the data set; histories, a sequence per target; targets int32 (n,), rows of the
    vocabulary; strictly_later bool (n,), True where the target is later than the last event of the
    history, which a tie in time is not. Without timestamps the order of the file is all there is, and every target
    counts as strictly later. values float32 (n,), the targets' ratings, NaN or None as in Sequences. In a split of
    ratings a user has as many targets as held-out ratings, and the history is what is left for training, which may be
    nothing; elsewhere it never is.
    """

    users: NDArray[np.int64]
    histories: Sequences
    targets: NDArray[np.int32]
    strictly_later: NDArray[np.bool_]
    values: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        """Number of targets."""
        return self.targets.size

    @property
    def repeats(self) -> int:
        """How many targets are in their own history: no ranking without it can hit them."""
        # One history a user: that of someone with a thousand held-out ratings is not laid out a thousand times.
        _, firsts, owners = np.unique(self.users, return_index=True, return_inverse=True)
        histories = self.histories.take(firsts)
        rows = 1 + max(int(self.histories.items.max(initial=0)), int(self.targets.max(initial=0)))
        met = histories.owners * rows + histories.compact().items
        return int(np.isin(owners * rows + self.targets, met).sum())

    def take(self, some: NDArray[np.int64]) -> "Holdout":
        """The targets of these places, with their histories."""
        values = None if self.values is None else self.values[some]
        return Holdout(
            self.users[some], self.histories.take(some), self.targets[some], self.strictly_later[some], values
        )


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """The train sequences of all users of the data set (some may be empty), the validation targets, a sealed test.

    train and the histories of validation share their arrays, which hold no held-out item. `left_out` counts users
    without a target, by reason. `cuts_ms` are the times where validation and test begin, for a split by time.
    `test_ties` counts test targets with the time of the event before, for leave-one-out: a cut in time ties none.
    """

    train: Sequences
    validation: Holdout
    _test: Holdout = field(repr=False)
    left_out: dict[str, int]
    cuts_ms: tuple[int, int] | None = None
    test_ties: int = 0

    @property
    def judges(self) -> int:
        """How many users the test part has: whether it can judge anything, and not by what."""
        return len(self._test)

    @property
    def test_repeats(self) -> int:
        """How many targets of the test part are in their own history, and not which."""
        return self._test.repeats


def open_test(split: Split) -> Holdout:
    """The sealed test part. For training.evaluate alone; a test holds that."""
    return split._test


def split_leave_one_out(dataset: Dataset) -> Split:
    """Each user's last item is the test target, the one before it the validation target, the rest is for training.

    The test history holds the validation item. Users with fewer than 3 interactions go whole to train, without a
    target, and are counted. Raises DatasetError if no user has 3.
    """
    whole = dataset.sequences
    split_users = whole.lengths >= 3
    users = np.flatnonzero(split_users)
    if not users.size:
        raise DatasetError(
            "no user has 3 interactions, so none can be split into train, validation and test; if the users stand in "
            "another column, name it with --user-column"
        )
    train = Sequences(whole.items, whole.starts, whole.ends - 2 * split_users, whole.timestamps, whole.values).compact()
    test = _holdout(whole, users, whole.ends[users] - 1)
    return Split(
        train=train,
        validation=_holdout(whole, users, whole.ends[users] - 2, train.take(users)),
        _test=test,
        left_out={"fewer than 3 interactions": int((~split_users).sum())},
        test_ties=int((~test.strictly_later).sum()),
    )


def split_by_time(dataset: Dataset, *, validation_share: float = 0.1, test_share: float = 0.1) -> Split:
    """Two moments cut the log of everybody: before the first is for training, then comes validation, then test.

    The moments are the times of the interactions that close to `validation_share + test_share` and `test_share` of
    all interactions are not earlier than. Whatever happened exactly at a cut belongs to the later side, so a tie
    never straddles it. A user's target is the first event in the window, the history everything before the window
    began (for test: the validation window included). Users with events in a window and none before it have no
    history to rank from: they are left out of it and counted; those without events in it are no loss.
    Raises DatasetError without timestamps, with shares that are not above 0 and together below 1, or if ties leave a
    part empty.
    """
    whole = dataset.sequences
    times = whole.timestamps
    if times is None:
        raise DatasetError(
            "a split by time needs timestamps and the interactions have none; name their column with "
            f"--timestamp-column, or {_OTHERWISE}"
        )
    if not (validation_share > 0 and test_share > 0 and validation_share + test_share < 1):
        raise DatasetError(
            f"validation_share {validation_share} and test_share {test_share} must be above 0 and together below 1"
        )
    # The share of the k newest of n must give k of them, and rounding errors not the one before them too.
    starts = (1 - validation_share - test_share, 1 - test_share)
    positions = [min(times.size - 1, int(times.size * start + 1e-6)) for start in starts]
    first_cut, second_cut = (int(time) for time in np.partition(times, positions)[positions])

    before_first = whole.starts + _count_before(whole, times, first_cut)  # where a user's validation window begins
    before_second = whole.starts + _count_before(whole, times, second_cut)
    train = Sequences(whole.items, whole.starts, before_first, times, whole.values).compact()
    has_validation = (before_first < before_second) & (before_first > whole.starts)
    has_test = (before_second < whole.ends) & (before_second > whole.starts)
    for part, present in (
        ("train", train.items.size > 0),
        ("validation", has_validation.any()),
        ("test", has_test.any()),
    ):
        if not present:
            raise DatasetError(
                f"the {part} part is empty with cuts at {first_cut} and {second_cut} ms: too few users have events on "
                f"both sides of a cut; give a log that spans more time, or {_OTHERWISE}"
            )
    validation_users, test_users = np.flatnonzero(has_validation), np.flatnonzero(has_test)
    newcomers_first = (before_first < before_second) & (before_first == whole.starts)
    newcomers_second = (before_second < whole.ends) & (before_second == whole.starts)
    return Split(
        train=train,
        validation=_holdout(whole, validation_users, before_first[validation_users], train.take(validation_users)),
        _test=_holdout(whole, test_users, before_second[test_users]),
        left_out={
            "no history before validation": int(newcomers_first.sum()),
            "no history before test": int(newcomers_second.sum()),
        },
        cuts_ms=(first_cut, second_cut),
    )


def split_ratings(dataset: Dataset, *, test: float | NDArray[np.bool_], validation_share: float, seed: int) -> Split:
    """Single ratings are held out, whoever's and of whatever time: how rating prediction is judged in the literature.

    test: a share of all ratings, drawn with the seed, or which of the interactions it is, bool (interactions,), in the
    order of the compact sequences. Of the others validation_share is drawn for validation, the rest is for training.
    Users and items may so be left without a train rating; their targets stay. Raises DatasetError for shares outside 0
    to 1, or if a part is empty.
    """
    whole = dataset.sequences.compact()
    generator = np.random.default_rng([seed, 2])  # as an AutoRec's second epoch orders rows, which tells of no rating
    if not isinstance(test, np.ndarray):
        held_out = np.zeros(whole.interactions, np.bool_)
        held_out[generator.permutation(whole.interactions)[: _part(test, "test", whole.interactions)]] = True
    else:
        held_out = test
    rest = np.flatnonzero(~held_out)
    validating = np.zeros(whole.interactions, np.bool_)
    validating[generator.permutation(rest)[: _part(validation_share, "validation", len(rest))]] = True
    learned = ~(held_out | validating)
    for part, mask in (("train", learned), ("validation", validating), ("test", held_out)):
        if not mask.any():
            raise DatasetError(f"the {part} part is empty: {whole.interactions:,} ratings are too few for these shares")
    train = whole.where(learned)
    parts = []
    for mask in (validating, held_out):
        users, targets = whole.owners[mask], whole.items[mask]
        values = None if whole.values is None else whole.values[mask]
        later = np.zeros(len(users), np.bool_)  # a rating held out by chance may be older than the history
        parts.append(Holdout(users, train.take(users), targets, later, values))
    return Split(train, parts[0], parts[1], left_out={})


def _part(share: float, name: str, whole: int) -> int:
    if not 0 < share < 1:
        raise DatasetError(f"the {name} share is {share}; it must be above 0 and below 1")
    return round(share * whole)


def unsplit(dataset: Dataset) -> Split:
    """Everything for training, nothing held out: for a last fit of a model that was judged on less."""
    everything = dataset.sequences.compact()
    return Split(train=everything, validation=nobody(everything), _test=nobody(everything), left_out={})


def nobody(train: Sequences) -> Holdout:
    """A held-out part without users."""
    none = np.empty(0, np.int64)
    return Holdout(none, train.take(none), none.astype(np.int32), none.astype(np.bool_))


def _count_before(sequences: Sequences, times: NDArray[np.int64], cut_ms: int) -> NDArray[np.int64]:
    """How many of each user's events are earlier than the cut, int64 (users,)."""
    earlier = np.concatenate(([0], np.cumsum(times < cut_ms, dtype=np.int64)))
    return earlier[sequences.ends] - earlier[sequences.starts]


def _holdout(
    whole: Sequences, users: NDArray[np.int64], positions: NDArray[np.int64], histories: Sequences | None = None
) -> Holdout:
    """The events at these flat positions as targets, each after what its user did before."""
    if histories is None:
        histories = Sequences(whole.items, whole.starts[users], positions, whole.timestamps, whole.values)
    times = whole.timestamps
    later = np.ones(users.size, dtype=np.bool_) if times is None else times[positions] > times[positions - 1]
    values = None if whole.values is None else whole.values[positions]
    return Holdout(users, histories, whole.items[positions], later, values)
