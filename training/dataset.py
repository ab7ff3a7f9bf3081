"""What training reads: a vocabulary, and every user's interactions as flat arrays.

Flat arrays with a start and an end per user cost 4 bytes an interaction instead of a Python list per user, can be cut
into batches without a loop, and let a split or a subset of users share the memory of the whole.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.interactions import Interactions

PADDING_ID = ""  # what row 0 of a vocabulary is called: no interaction can have an empty id


class DatasetError(ValueError):
    """The interactions cannot become a data set, or not this split of it; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """External item ids and the rows they have in every item matrix; row 0 is padding.

    `ids` has one entry per row, ids[0] being PADDING_ID; items are numbered from 1 in the order they first occur.
    Raises DatasetError if row 0 is not padding, or an id is empty or occurs twice.
    """

    ids: tuple[str, ...]
    _rows: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.ids or self.ids[0] != PADDING_ID:
            raise DatasetError(f"row 0 of a vocabulary is padding and must be {PADDING_ID!r}, got {self.ids[:1]!r}")
        rows = {item_id: row for row, item_id in enumerate(self.ids) if row}
        if PADDING_ID in rows or len(rows) != len(self.ids) - 1:
            raise DatasetError(
                f"{len(self.ids) - 1} vocabulary rows hold {len(rows)} distinct ids; each id needs one row"
            )
        object.__setattr__(self, "_rows", rows)

    @property
    def items(self) -> int:
        """Number of items, padding not counted."""
        return len(self.ids) - 1

    @property
    def rows(self) -> int:
        """Rows of an item matrix: items + 1."""
        return len(self.ids)

    def index_of(self, item_id: str) -> int | None:
        """The item's row (1..items), or None if it is unknown."""
        return self._rows.get(item_id)

    def encode(self, item_ids: Iterable[str]) -> NDArray[np.int32]:
        """The rows of these ids, int32 (ids,); 0 where an id is unknown."""
        return np.fromiter((self._rows.get(item_id, 0) for item_id in item_ids), dtype=np.int32)

    def decode(self, rows: Iterable[int]) -> list[str]:
        """The ids of these rows; raises DatasetError for padding or a row outside the vocabulary."""
        wanted = [int(row) for row in rows]
        for row in wanted:
            if not 1 <= row <= self.items:
                raise DatasetError(f"row {row} is no item: rows are 1 to {self.items}")
        return [self.ids[row] for row in wanted]


@dataclass(frozen=True, slots=True, eq=False)
class Sequences:
    """Items of many users, oldest first, in flat arrays: user u owns positions starts[u] to ends[u] - 1.

    items int32 (n,), rows of the vocabulary; starts, ends int64 (users,); timestamps int64 (n,) in epoch ms or None
    where the data has no times; values float32 (n,), NaN where an interaction has none, or None where no one has.
    A subset made by `take` shares the flat arrays, which then hold positions of nobody in it: go through starts and
    ends, or call `compact` first. Raises DatasetError if the arrays do not fit each other.
    """

    items: NDArray[np.int32]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    timestamps: NDArray[np.int64] | None = None
    values: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.starts.shape != self.ends.shape or self.starts.ndim != 1:
            raise DatasetError(f"starts {self.starts.shape} and ends {self.ends.shape} must both be (users,)")
        for name, column in (("timestamps", self.timestamps), ("values", self.values)):
            if column is not None and column.shape != self.items.shape:
                raise DatasetError(f"{name} {column.shape} must have one entry per item {self.items.shape}")
        if self.starts.size and (
            self.starts.min() < 0 or (self.ends < self.starts).any() or self.ends.max() > self.items.size
        ):
            raise DatasetError(f"a sequence lies outside the {self.items.size} items there are")

    def __len__(self) -> int:
        """Number of users."""
        return self.starts.size

    def __getitem__(self, user: int) -> NDArray[np.int32]:
        """One user's items, oldest first: a view, int32 (length,)."""
        return self.items[self.starts[user] : self.ends[user]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Items per user, int64 (users,)."""
        return self.ends - self.starts

    @property
    def interactions(self) -> int:
        """Items of all users together."""
        return int(self.lengths.sum())

    @property
    def owners(self) -> NDArray[np.int64]:
        """Which of the users each interaction is of, in the order of `compact`: int64 (interactions,)."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.lengths)

    @property
    def duplicates(self) -> int:
        """How many interactions have the user, item and time of an earlier one; 0 without times."""
        if self.timestamps is None:
            return 0
        compact = self.compact()
        rows = pl.DataFrame({"user": compact.owners, "item": compact.items, "time": compact.timestamps})
        return rows.height - rows.n_unique()

    def take(self, users: NDArray[np.int64]) -> "Sequences":
        """The sequences of these users, in this order, sharing the flat arrays."""
        return Sequences(self.items, self.starts[users], self.ends[users], self.timestamps, self.values)

    def renumbered(self, rows: NDArray[np.int32]) -> "Sequences":
        """The same sequences in another vocabulary: rows (items + 1,) has each item's row there, 0 where it has none.

        Items without one are left out, and times and values with them.
        """
        compact = self.compact()  # first: a subset's flat arrays are those of everybody
        renumbered = replace(compact, items=rows[compact.items])
        return renumbered.where(renumbered.items > 0)

    def where(self, mask: NDArray[np.bool_]) -> "Sequences":
        """The interactions of the mask alone, of the same users: bool (interactions,), in the order of `compact`."""
        compact = self.compact()
        lengths = np.bincount(self.owners[mask], minlength=len(self))
        ends = np.cumsum(lengths, dtype=np.int64)
        return Sequences(
            compact.items[mask],
            ends - lengths,
            ends,
            None if compact.timestamps is None else compact.timestamps[mask],
            None if compact.values is None else compact.values[mask],
        )

    def values_of(self, user: int) -> NDArray[np.float32]:
        """The values beside one user's items, NaN where there is none: float32 (length,)."""
        if self.values is None:
            return np.full(int(self.lengths[user]), np.nan, np.float32)
        return self.values[self.starts[user] : self.ends[user]]

    def compact(self) -> "Sequences":
        """The same sequences side by side in arrays of their own, nothing else in them: starts[u + 1] == ends[u]."""
        lengths = self.lengths
        ends = np.cumsum(lengths, dtype=np.int64)
        starts = ends - lengths
        source = np.arange(ends[-1] if ends.size else 0) + np.repeat(self.starts - starts, lengths)
        return Sequences(
            self.items[source],
            starts,
            ends,
            None if self.timestamps is None else self.timestamps[source],
            None if self.values is None else self.values[source],
        )


def popularity_of(sequences: Sequences, items: int) -> NDArray[np.float32]:
    """Interactions of every item in these sequences: float32 (items + 1,), 0 for padding."""
    return np.bincount(sequences.compact().items, minlength=items + 1).astype(np.float32)


@dataclass(frozen=True, slots=True)
class CoreReport:
    """What the k-core filter removed, and in how many rounds it settled (0: there was nothing to remove)."""

    rounds: int = 0
    users_removed: int = 0
    items_removed: int = 0
    interactions_removed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Every interaction of every user; users[u] is the external id of the user who owns sequences[u]."""

    users: tuple[str, ...]
    vocabulary: Vocabulary
    sequences: Sequences
    core: CoreReport


def build_dataset(
    interactions: Interactions, *, min_user_interactions: int = 1, min_item_interactions: int = 1
) -> Dataset:
    """Number users and items in the order they first occur, and group the interactions by user, oldest first.

    Users and items with fewer interactions than asked are removed again and again until none is left (k-core), so
    both minima hold in the result. Repeats stay, and count as interactions.
    Raises DatasetError if a minimum is below 1 or nothing is left.
    """
    for name, minimum in (
        ("min_user_interactions", min_user_interactions),
        ("min_item_interactions", min_item_interactions),
    ):
        if minimum < 1:
            raise DatasetError(f"{name} is {minimum}; it must be 1 or more")
    frame = interactions.frame
    user_ids, users = _numbered(frame["user_id"])
    item_ids, items = _numbered(frame["item_id"])
    kept, rounds = _core(users, items, min_user_interactions, min_item_interactions)
    if not kept.size:
        raise DatasetError(
            f"no interaction is left: none of {len(user_ids)} users and {len(item_ids)} items has "
            f"{min_user_interactions} and {min_item_interactions} interactions; lower the minima"
        )
    users, user_rows = _renumbered(users[kept], len(user_ids))
    items, item_rows = _renumbered(items[kept], len(item_ids))

    order = np.argsort(users, kind="stable")  # rows come sorted by time, so each user's stay so
    source = kept[order]
    lengths = np.bincount(users)
    ends = np.cumsum(lengths, dtype=np.int64)
    values = frame["value"]
    sequences = Sequences(
        items=items[order] + np.int32(1),
        starts=ends - lengths,
        ends=ends,
        timestamps=frame["timestamp"].to_numpy()[source] if interactions.has_timestamps else None,
        values=None if values.null_count() == len(values) else values.to_numpy()[source],
    )
    return Dataset(
        users=tuple(user_ids.gather(user_rows).to_list()),
        vocabulary=Vocabulary((PADDING_ID, *item_ids.gather(item_rows).to_list())),
        sequences=sequences,
        core=CoreReport(
            rounds=rounds,
            users_removed=len(user_ids) - user_rows.size,
            items_removed=len(item_ids) - item_rows.size,
            interactions_removed=frame.height - kept.size,
        ),
    )


def _numbered(ids: pl.Series) -> tuple[pl.Series, NDArray[np.int32]]:
    """The distinct ids in order of first occurrence, and the number of each row's id, int32 (rows,)."""
    distinct = ids.unique(maintain_order=True)
    return distinct, ids.cast(pl.Enum(distinct)).to_physical().to_numpy().astype(np.int32)


def _core(
    users: NDArray[np.int32], items: NDArray[np.int32], min_user: int, min_item: int
) -> tuple[NDArray[np.int64], int]:
    """The rows that survive the k-core filter, int64 in ascending order, and the rounds it took."""
    kept = np.arange(users.size, dtype=np.int64)
    rounds = 0
    while kept.size:
        user_counts, item_counts = np.bincount(users[kept]), np.bincount(items[kept])
        stays = (user_counts[users[kept]] >= min_user) & (item_counts[items[kept]] >= min_item)
        if stays.all():
            break
        kept = kept[stays]
        rounds += 1
    return kept, rounds


def _renumbered(numbers: NDArray[np.int32], count: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The numbers without gaps, their order kept, and the old number of each new one; count bounds the old ones."""
    used = np.bincount(numbers, minlength=count) > 0
    return (np.cumsum(used, dtype=np.int32) - np.int32(1))[numbers], np.flatnonzero(used)
