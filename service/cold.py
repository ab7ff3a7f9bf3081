"""Items that came after the bundle was made: placed by what is known of them and ranked beside the bundle's items.

They form a small matrix of their own, the tail, which is scored whole for every query; the bundle's is never copied. A
tail is replaced and never changed, so that a query ranks and names its items by the same one.
"""

import logging
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.cold import Placing, typical_norm
from models.sequence import PADDING
from service.attributes import ItemAttributes, ItemState
from service.filters import Filter

logger = logging.getLogger(__name__)

MAX_COLD = 10_000  # items of a tail, the newest: scoring so many takes a query half a millisecond
_ROUNDING = 1e-9  # of a share times k, which may fall short of the whole number that it is


@dataclass(frozen=True, slots=True, eq=False)
class Tail:
    """Cold items in the order of their ids; row 0 is padding, as in a bundle.

    matrix float32 (rows, dim) and `attributes` have a row for each of `ids`.
    """

    ids: list[str]
    index_of: dict[str, int]
    matrix: NDArray[np.float32]
    attributes: ItemAttributes

    def __len__(self) -> int:
        """Number of items."""
        return len(self.index_of)

    def mask(self, items: Iterable[str]) -> NDArray[np.bool_]:
        """Where these items are, those that are not cold passed over: bool (rows,)."""
        found = np.zeros(len(self.ids), np.bool_)
        found[[self.index_of[item] for item in items if item in self.index_of]] = True
        return found


@dataclass(frozen=True, slots=True, eq=False)
class ColdChoice:
    """The cold items that a query may get, eligible bool (rows of the tail,), and how many of an answer at most.

    There may be more of them where the bundle's items do not suffice for k.
    """

    tail: Tail
    eligible: NDArray[np.bool_]
    most: int

    def among(self, wanted: Filter | None, candidates: Iterable[str] | None) -> "ColdChoice":
        """What a filter and candidates leave of them."""
        eligible = self.eligible
        if candidates is not None:
            eligible = eligible & self.tail.mask(candidates)
        if wanted is not None:
            eligible = eligible & wanted.mask(self.tail.attributes)
        return replace(self, eligible=eligible)

    def best(self, vector: NDArray[np.float32], k: int) -> list[tuple[int, float]]:
        """Rows of the tail with their scores, at most k, best first and ties in the order of ids: vector (dim,)."""
        if k < 1:
            return []
        scores = np.einsum("nd,d->n", self.tail.matrix, vector)  # matmul would wake threads for so little
        if k == 1:  # as usual
            best = int(np.where(self.eligible, scores, -np.inf).argmax())
            return [(best, float(scores[best]))] if self.eligible[best] else []
        rows = np.flatnonzero(self.eligible)
        scores = scores[rows]
        if len(rows) > k:  # with all that tie with the last of them
            near = scores >= np.partition(scores, -k)[-k]
            rows, scores = rows[near], scores[near]
        order = np.argsort(-scores, kind="stable")[:k]
        return list(zip(rows[order].tolist(), scores[order].tolist(), strict=True))

    def first(self, k: int) -> list[int]:
        """Rows of the tail in the order of ids, at most k: where there is nothing to score them by."""
        rows: list[int] = np.flatnonzero(self.eligible)[:k].tolist()
        return rows


class ColdItems:
    """The cold items of one bundle as they are now. Safe for threads.

    share: of an answer, at most; with 0 there are none.
    """

    def __init__(self, bundle: Bundle, *, share: float) -> None:
        self._bundle = bundle
        self._share = share
        self._placed: dict[str, _Placed] = {}  # in the order they were put
        self._placing: Placing | None = None
        self._lock = threading.Lock()
        self.tail: Tail | None = None  # where there are any
        self._names: frozenset[str] = frozenset()

    def change(self, states: Mapping[str, ItemState]) -> None:
        """Take over what became known of items that the bundle lacks, by id, what became known last at the end.

        One without a vector is passed over: it is not available, or too little is known of it.
        """
        if not self._share:
            return
        with self._lock:
            fresh: dict[str, _Placed] = {}
            for item, state in reversed(list(states.items())):
                if len(fresh) == MAX_COLD:
                    logger.warning("of the new items the last %d can be recommended", MAX_COLD)
                    break
                placed = self._placed.get(item)
                if placed is None or placed.state != state:
                    placed = self._place(state)
                if placed is not None:
                    fresh[item] = placed
            kept = [(item, placed) for item, placed in self._placed.items() if item not in states]
            before, self._placed = self._placed, dict([*kept, *reversed(fresh.items())][-MAX_COLD:])
            if self._placed != before:
                self.tail = self._gathered() if self._placed else None
                self._names = frozenset(
                    name for placed in self._placed.values() for name in placed.state.attributes or ()
                )

    def has_attribute(self, name: str) -> bool:
        """Whether any of them has an attribute of this name."""
        return name in self._names

    def choice(self, k: int, unwanted: Iterable[str]) -> ColdChoice | None:
        """All but the unwanted ones for an answer of k items; None where there are none."""
        tail = self.tail
        if tail is None:
            return None
        eligible = ~tail.mask(unwanted)
        eligible[PADDING] = False
        return ColdChoice(tail, eligible, most=int(self._share * k + _ROUNDING))

    def _place(self, state: ItemState) -> "_Placed | None":
        if not state.available:
            return None
        bundle = self._bundle
        if self._placing is None:
            # An autoencoder's vectors hold biases: as means they are right, and at another length they are not.
            norm = None if bundle.inputs is not None else typical_norm(bundle.items)
            known = bundle.items, bundle.attributes or {}, bundle.popularity
            self._placing = Placing(*known, norm=norm, learned=bundle.learned)
        contexts = [bundle.indices(list(context)).tolist() for context in state.contexts]
        vector = self._placing.vector(state.attributes, contexts)
        return None if vector is None else _Placed(state, vector)

    def _gathered(self) -> Tail:
        ids = sorted(self._placed)
        nothing = np.zeros(self._bundle.manifest.dim, np.float32)
        attributes = ItemAttributes(None, len(ids) + 1, elsewhere=lambda name: True)  # the bundle's items say what is
        attributes.change({row: self._placed[item].state.attributes for row, item in enumerate(ids, start=1)})
        return Tail(
            ids=["", *ids],
            index_of={item: row for row, item in enumerate(ids, start=1)},
            matrix=np.stack([nothing, *(self._placed[item].vector for item in ids)]),
            attributes=attributes,
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Placed:
    state: ItemState
    vector: NDArray[np.float32]
