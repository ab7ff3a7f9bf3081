"""Which items can be among the best, found by scores of half the bytes: a GPU keeps the item matrix in float16.

Rounding moves a score by no more than can be computed beforehand. So more than k items are taken by their rounded
scores, and where the k-th of them leads the last by more than rounding can have done to both, no item beyond the last
is among the k best. A ranker that scores the few in float32 then gives the answer that it would give over the whole
catalogue; a query that says too little is asked again for more.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.manifest import BundleError
from models.sequence import Indices, pad

LOWEST = float(np.finfo(np.float16).min)  # what an excluded item scores inside the graph
_WIDER = 8  # times as many items where those were too few
_MARGIN = 44  # items beyond twice k
_MOST = 8  # a query that a larger part of all items than one in so many could answer is better ranked over everything
_FEW = 4096  # items that are never too many
_CELLS = 1 << 26  # scores of one run
_MEASURED = 1 << 23  # numbers of a matrix that are measured at once
_LOST = 2.0**-11, 2.0**-24  # by rounding to float16: of the number, and of one too small to have all digits
_ADDED = 2.0**-22  # of a score's size, for each column of it: what float32 may lose in adding it up, and to spare


class Shortlist:
    """Candidates by a session over the items in float16. Thread-safe, as the session is."""

    group = 1  # items of a candidate
    single = True  # it finds those of a query alone too, and nothing else on the device can
    rest: NDArray[np.int64] = np.empty(0, np.int64)  # items that are in no candidate

    def __init__(self, session: Any, items: NDArray[np.float16], of: NDArray[np.float32]) -> None:
        """items (rows, dim) are `of` (rows, dim) in float16, an input of the session, which is a models.binding one or
        onnxruntime's own. Raises BundleError if they are beyond float16."""
        self._session = session
        self._items = items
        longest, furthest = np.zeros(()), np.zeros(())
        step = max(1, _MEASURED // of.shape[1])
        for begin in range(0, len(of), step):
            rounded = items[begin : begin + step].astype(np.float32)
            off = rounded - of[begin : begin + step]
            longest = np.maximum(longest, np.einsum("rd,rd->r", rounded, rounded).max(initial=0))
            furthest = np.maximum(furthest, np.einsum("rd,rd->r", off, off).max(initial=0))
        if not np.isfinite(longest):  # nor is what is no number
            raise BundleError("its items are beyond what float16 holds; serve it with float16 unset")
        self._longest, self._furthest = float(longest) ** 0.5, float(furthest) ** 0.5

    def candidates(
        self, vectors: NDArray[np.float32], excluded: Sequence[Indices], k: int, out: NDArray[np.int64] | None = None
    ) -> list[NDArray[np.int64] | None]:
        """Items that the k best of each row are among; None for a row that so many could answer that they are better
        all ranked.

        vectors (batch, dim), excluded the items a row that do not count, out those that count for none.
        """
        inside = np.ones(len(self._items), np.bool_)
        if out is not None:
            inside[out] = False
        found: list[NDArray[np.int64] | None] = [None] * len(vectors)
        rows = list(range(len(vectors)))
        most = max(_FEW, len(self._items) // _MOST)
        width = 2 * k + _MARGIN
        while rows and width <= most:
            width = min(width, len(self._items))
            step = max(1, _CELLS // len(self._items))
            for begin in range(0, len(rows), step):
                part = rows[begin : begin + step]
                theirs = [excluded[row] for row in part]
                for row, chosen in zip(part, self._chosen(vectors[part], theirs, k, width, inside), strict=True):
                    found[row] = chosen
            rows = [row for row in rows if found[row] is None]
            width = _WIDER * width if width < len(self._items) else most + 1
        return found

    def _chosen(
        self,
        vectors: NDArray[np.float32],
        excluded: Sequence[Indices],
        k: int,
        width: int,
        inside: NDArray[np.bool_],
    ) -> list[NDArray[np.int64] | None]:
        """Of the first `width` items by rounded scores those that may be among the k best, None where others may be.

        inside (items,): the items that count for any row.
        """
        with np.errstate(over="ignore"):  # a query beyond float16 proves nothing, and is ranked over everything
            rounded = vectors.astype(np.float16)
        matrix, _ = pad(excluded)
        feeds = {"vectors": rounded, "items": self._items, "excluded": matrix, "k": np.array([width], np.int64)}
        items, scores = self._session.run(["indices", "scores"], feeds)
        chosen: list[NDArray[np.int64] | None] = []
        with np.errstate(invalid="ignore"):  # what is endlessly off is no number and proves nothing
            highest, least = _within(scores.astype(np.float64), self._off(vectors, rounded)[:, None])
            for row, theirs in enumerate(excluded):
                counts = (scores[row] > LOWEST) & inside[items[row]]
                places = np.flatnonzero(counts)
                if len(places) < k:  # proven where nothing else is left
                    left = int(inside.sum()) - int(inside[np.unique(theirs)].sum())
                    chosen.append(items[row, places] if len(places) == left else None)
                else:
                    floor = least[row, places[k - 1]]
                    leads = floor > max(highest[row, -1], LOWEST)
                    chosen.append(items[row, counts & (highest[row] >= floor)] if leads else None)
        return chosen

    def _off(self, vectors: NDArray[np.float32], rounded: NDArray[np.float16]) -> NDArray[np.float64]:
        """How far products of rounded vectors and items may be from those of the vectors (batch, dim) as they are."""
        used = rounded.astype(np.float64)
        norm, size, lost = (np.linalg.norm(one, axis=1) for one in (vectors.astype(np.float64), used, used - vectors))
        # Float16 once besides, for parts of a sum: a GPU is told not to, by what may have another name tomorrow.
        added = (_ADDED * vectors.shape[1] + _LOST[0]) * size * self._longest
        off: NDArray[np.float64] = norm * self._furthest + lost * self._longest + added
        return off


def _within(scores: NDArray[np.float64], off: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The most and the least that may have been rounded to each score, itself off by no more than `off`."""
    most = off + 1.01 * _LOST[0] * np.abs(scores) + _LOST[1]
    return scores + most, scores - most
