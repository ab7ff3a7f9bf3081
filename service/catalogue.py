"""Which items a query may get: those of its filter and candidates that are available now.

What a filter chooses is kept until an item changes, so that a shop with a dozen filters evaluates each once. Nobody but
who asks for it waits while one is evaluated: plain requests are ranked on the event loop.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.selection import Selection
from models.sequence import PADDING
from service.attributes import ItemAttributes, ItemState
from service.cold import ColdItems
from service.filters import Filter

_KEPT_BYTES = 256 << 20  # of gathered rows
_KEPT = 256  # filters
_KEPT_SIZE = 64  # values in one that is kept


class Catalogue:
    """The items of one bundle as they are now, and in `cold` those that came after it. Safe for threads.

    cold_share: of an answer, that the latter may have. scanned: see Selection.of.
    """

    def __init__(self, bundle: Bundle, *, cold_share: float = 0.0, scanned: bool = False) -> None:
        self._items = bundle.items
        self._scanned = scanned
        self._rows_of = bundle.rows_of
        self.cold = ColdItems(bundle, share=cold_share)
        self.attributes = ItemAttributes(bundle.attributes, len(bundle.items), elsewhere=self.cold.has_attribute)
        self._available = np.ones(len(bundle.items), np.bool_)
        self._available[PADDING] = False
        self._here: Selection | None = None  # those that are available, if some are not
        self._kept: OrderedDict[Filter, Selection] = OrderedDict()
        self._bytes = 0  # of these
        self._changes = 0
        self._lock = threading.Lock()

    def change(self, states: Mapping[str, ItemState]) -> None:
        """Take over what was said about items, by id."""
        rows = self._rows_of(list(states)).tolist()
        unknown = [item for row, item in zip(rows, states, strict=True) if row == PADDING]
        self.cold.change({item: states[item] for item in unknown})
        known = {row: state for row, state in zip(rows, states.values(), strict=True) if row != PADDING}
        if not known:
            return
        with self._lock:
            self.attributes.change({row: state.attributes for row, state in known.items()})
            available = self._available.copy()
            for row, state in known.items():
                available[row] = state.available
            self._available = available
            all_here = available[1:].all()
            self._here = None if all_here else Selection.of(available, self._items, scanned=self._scanned)
            self._kept.clear()
            self._bytes = 0
            self._changes += 1  # at the end, or what is evaluated meanwhile would pass for one state

    def selection(self, wanted: Filter | None, candidates: NDArray[np.int64] | None = None) -> Selection | None:
        """What a filter and candidates leave of the available items; None for the whole catalogue.

        Raises filters.UnknownAttribute.
        """
        if wanted is None:
            return self._here if candidates is None else self._chosen(None, candidates)
        keep = candidates is None and wanted.size <= _KEPT_SIZE  # others are for one request, more likely than not
        with self._lock:
            changes = self._changes
            if keep and wanted in self._kept:
                self._kept.move_to_end(wanted)
                return self._kept[wanted]
        found = self._chosen(wanted, candidates)
        with self._lock:
            if self._changes != changes:  # it may be of both states
                found = self._chosen(wanted, candidates)
            if keep and wanted not in self._kept:
                self._keep(wanted, found)
        return found

    def _chosen(self, wanted: Filter | None, candidates: NDArray[np.int64] | None) -> Selection:
        mask = self._available  # replaced by a change, and never written to
        if wanted is not None:
            mask = mask & wanted.mask(self.attributes)
        if candidates is None:
            return Selection.of(mask, self._items, scanned=self._scanned)
        among = np.zeros(len(mask), np.bool_)
        among[candidates] = True
        return Selection.gathered(np.flatnonzero(among & mask), self._items)

    def _keep(self, wanted: Filter, found: Selection) -> None:
        self._kept[wanted] = found
        self._bytes += found.nbytes
        while len(self._kept) > 1 and (self._bytes > _KEPT_BYTES or len(self._kept) > _KEPT):
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.nbytes
