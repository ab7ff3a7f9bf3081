"""How a history becomes model input: truncated to its newest items and padded on the right.

Training, export and service all import this one copy; two copies that differ by one position cost accuracy silently.
"""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

PADDING = 0  # the index no item has; row 0 of every item matrix

Indices = NDArray[np.integer]
Values = NDArray[np.float32]  # beside indices: a rating or weight of each event, NaN where it has none
Entries = TypeVar("Entries", NDArray[np.integer], NDArray[np.float32])

_WIDTHS = (8, 16, 32, 64, 128, 256)  # that rows are padded to at most; padding costs at most half of a row


def truncate(sequence: Entries, length: int) -> Entries:
    """The newest `length` entries of a sequence, or of the values beside one, oldest first."""
    return sequence[max(0, len(sequence) - length) :]


def by_length(lengths: Indices) -> Iterator[NDArray[np.int64]]:
    """Rows of like length, to be encoded together: a batch padded to its longest row is mostly padding.

    lengths (batch,) -> int64 (up to batch,) each, every row once.
    """
    order = np.argsort(lengths, kind="stable")
    cuts = np.searchsorted(lengths[order], _WIDTHS, side="right")
    begin = 0
    for end in [*cuts.tolist(), len(order)]:
        if begin < end:
            yield order[begin:end]
            begin = end


def pad_flat(flat: Indices, starts: Indices, lengths: Indices) -> NDArray[np.int64]:
    """Cut pieces out of a flat array into a right-padded matrix, as wide as the longest piece (at least 1).

    flat (entries,); starts and lengths (batch,) -> int64 (batch, width).
    """
    columns = np.arange(max(1, int(lengths.max(initial=0))))
    inside = columns < lengths[:, None]  # (batch, width)
    padded = np.full(inside.shape, PADDING, np.int64)
    padded[inside] = flat[(starts[:, None] + columns)[inside]]
    return padded


def pad(sequences: Sequence[Indices]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Stack sequences into a right-padded int64 (batch, width), with their lengths (batch,).

    The width is that of the longest sequence and at least 1, so that an empty history is a row of padding.
    """
    lengths = np.fromiter((len(sequence) for sequence in sequences), np.int64, len(sequences))
    flat = np.concatenate(sequences) if sequences else np.empty(0, np.int64)
    return pad_flat(flat, np.cumsum(lengths) - lengths, lengths), lengths


def pad_values(values: Sequence[Values], width: int) -> NDArray[np.float32]:
    """Values beside the items that `pad` stacks: float32 (batch, width), NaN where a row has ended."""
    padded = np.full((len(values), width), np.nan, np.float32)
    for row, given in zip(padded, values, strict=True):
        row[: len(given)] = given
    return padded
