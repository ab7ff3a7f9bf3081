"""Training batches: windows of the train sequences, grouped by length so that almost nothing is padding.

The order of the data is a function of (seed, epoch) alone: a resumed run sees what an uninterrupted one would have.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.sequence import PADDING, pad_flat
from training.dataset import Sequences

_POOL = 32  # batches whose windows are sorted by length together: more saves padding, fewer mixes lengths better


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Windows with the item that follows each position.

    users int64 (batch,); inputs and targets int64 (batch, width), right-padded with 0: targets[b, i] follows
    inputs[b, i]. flat int32 (n,) has the items of all users, and inputs[b, i] at begins[b] + i, begins int64 (batch,).
    """

    users: NDArray[np.int64]
    inputs: NDArray[np.int64]
    targets: NDArray[np.int64]
    flat: NDArray[np.int32]
    begins: NDArray[np.int64]

    def take(self, rows: slice) -> "Batch":
        """Some of the windows."""
        return Batch(self.users[rows], self.inputs[rows], self.targets[rows], self.flat, self.begins[rows])


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """Items that each target does not compete with: items[begins[t] : ends[t]]; the target itself counts all the same.

    items int32 (n,), from 1, of many users one after the other; begins and ends int64 (targets,).
    """

    items: NDArray[np.int32]
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]

    def pairs(self, part: slice) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Targets of a part, counted from its first, each with every item of its own: (pairs,) twice."""
        begins, counts = self.begins[part], self.ends[part] - self.begins[part]
        targets = np.repeat(np.arange(len(counts)), counts)
        shifts = begins - (np.cumsum(counts) - counts)
        return targets, self.items[np.arange(len(targets)) + shifts[targets]]


class Windows:
    """Every train interaction but each user's first as a target, in windows of at most `length` inputs.

    A history longer than that is cut every `stride` positions at places that change with the epoch, so that no item
    is always at a window's thin beginning; a stride below `length` makes windows overlap.

    With shuffle_ties each epoch draws a new order of events of one user with the same time: which of them came first
    is not known, and a model should not learn it from the order of rows in a file.
    """

    def __init__(
        self,
        sequences: Sequences,
        *,
        length: int,
        batch: int,
        seed: int,
        stride: int | None = None,
        shuffle_ties: bool = False,
    ) -> None:
        self.sequences = sequences.compact()
        self._ties = Ties(self.sequences) if shuffle_ties else None
        self.length, self.stride, self.batch, self.seed = length, stride or length, batch, seed
        self._trainable = np.flatnonzero(self.sequences.lengths >= 2)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """All batches of one epoch, in an order drawn from (seed, epoch)."""
        generator = np.random.default_rng([self.seed, epoch])
        users, starts, lengths = self._cut(generator)
        items = self.sequences.items if self._ties is None else self._ties.shuffled(generator)
        for rows in bucketed(lengths, self.batch, generator):
            inputs = pad_flat(items, starts[rows], lengths[rows])
            targets = pad_flat(items, starts[rows] + 1, lengths[rows])
            yield Batch(users[rows], inputs, targets, items, starts[rows])

    def seen(self, batch: Batch) -> Seen:
        """What each target's user has met before it, also before the window."""
        present = batch.targets != PADDING
        places = batch.begins[:, None] + np.arange(present.shape[1])
        users = np.repeat(batch.users, present.sum(1))
        return Seen(batch.flat, self.sequences.starts[users], places[present] + 1)

    def count(self, epoch: int) -> int:
        """Windows in an epoch, for a progress bar."""
        return len(self._cut(np.random.default_rng([self.seed, epoch]))[0])

    def _cut(self, generator: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Owner, first flat position and number of inputs of every window: int64 (windows,) each.

        A window ends at a user's last input, and `shift`, `shift + stride`, ... inputs before it, until one reaches
        the beginning.
        """
        users = self._trainable
        inputs = self.sequences.lengths[users] - 1
        shifts = np.where(inputs > self.length, generator.integers(1, self.stride + 1, len(users)), 0)
        beyond = np.maximum(inputs - shifts - self.length, 0)
        counts = np.where(inputs > self.length, 2 + -(-beyond // self.stride), 1)
        owner = np.repeat(np.arange(len(users)), counts)
        nth = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        ends = inputs[owner] - np.where(nth > 0, shifts[owner] + (nth - 1) * self.stride, 0)
        begins = np.maximum(ends - self.length, 0)
        return users[owner], self.sequences.starts[users[owner]] + begins, ends - begins


def bucketed(lengths: NDArray[np.int64], batch: int, generator: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Every row once, in random batches of rows that are about as long: int64 (rows,) each.

    A batch has as many positions as `batch` rows have on average, so many rows if they are short and few if they are
    long: were it as many rows, the mean loss of a batch would count a position of a short row for several of a long.
    """
    order = generator.permutation(len(lengths))
    for begin in range(0, len(order), batch * _POOL):
        chosen = order[begin : begin + batch * _POOL]
        chosen = chosen[np.argsort(lengths[chosen], kind="stable")]
        count = -(-len(chosen) // batch)
        positions = np.cumsum(lengths[chosen])
        cuts = np.searchsorted(positions, positions[-1] * np.arange(1, count) / count)
        batches = [rows for rows in np.split(chosen, cuts) if len(rows)]
        for number in generator.permutation(len(batches)):
            yield batches[number]


class Ties:
    """Runs of events of one user at one time, in sequences that lie side by side."""

    def __init__(self, sequences: Sequences) -> None:
        self._items = sequences.items
        times = np.zeros(0, np.int64) if sequences.timestamps is None else sequences.timestamps
        owners = sequences.owners[: len(times)]
        tied = (np.diff(times) == 0) & (np.diff(owners) == 0)  # with the event before
        run = np.concatenate(([0], np.cumsum(~tied))) if len(times) else times
        self._members = np.flatnonzero(np.r_[False, tied] | np.r_[tied, False])
        self._run = run[self._members]

    def shuffled(self, generator: np.random.Generator) -> NDArray[np.int32]:
        """The items, each run in a new order: int32 (events,)."""
        items = self._items.copy()
        order = np.argsort(self._run + generator.random(len(self._run)))
        items[self._members] = self._items[self._members[order]]
        return items


class NegativeSampler:
    """Negatives: uniform over what a user has no train interaction with, or by popularity and the same for a batch."""

    def __init__(self, sequences: Sequences, items: int) -> None:
        compact = sequences.compact()
        self.rows = items + 1
        # With repeats: np.unique hashes, 20 times as slow.
        self._seen = np.sort(compact.owners * self.rows + compact.items)
        # One more than the count: an item that nobody has yet must be pushed down too.
        weights = np.bincount(compact.items, minlength=self.rows)[1:] + 1.0
        self._shares = weights / weights.sum()
        self._cumulative = np.cumsum(self._shares)

    def draw(self, users: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
        """One negative for each entry of users (targets,): int64 (targets,), from 1 to items.

        A user who has seen nearly everything may get a seen item after 20 draws; it is then as good as any.
        """
        drawn = generator.integers(1, self.rows, len(users))
        for _ in range(20):
            keys = users * self.rows + drawn
            positions = np.minimum(np.searchsorted(self._seen, keys), len(self._seen) - 1)
            clashes = np.flatnonzero(self._seen[positions] == keys)
            if not len(clashes):
                break
            drawn[clashes] = generator.integers(1, self.rows, len(clashes))
        return drawn

    def draw_popular(self, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """Items drawn in proportion to their train interactions plus one: int64 (count,), with repeats."""
        drawn = np.searchsorted(self._cumulative, generator.random(count), side="right")
        return np.minimum(drawn, self.rows - 2) + 1

    def log_expected_draws(self, count: int) -> NDArray[np.float32]:
        """Log of how often each item is expected in `draw_popular(count)`: float32 (items + 1,), 0 for padding."""
        return np.concatenate(([0.0], np.log(count * self._shares))).astype(np.float32)
