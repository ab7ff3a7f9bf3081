"""Which items a query may get: those of its filter and candidates that are available now.

What a filter chooses is kept until an item changes, so that a shop with a dozen filters evaluates each once.
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

    cold_share: of an answer, that the latter may have.
    """

    def __init__(self, bundle: Bundle, *, cold_share: float = 0.0) -> None:
        self._items = bundle.items
        self._index_of = bundle.index_of
        self.cold = ColdItems(bundle, share=cold_share)
        self.attributes = ItemAttributes(bundle.attributes, len(bundle.items), elsewhere=self.cold.has_attribute)
        self._available = np.ones(len(bundle.items), np.bool_)
        self._available[PADDING] = False
        self.unavailable = 0  # items
        self._here: Selection | None = None  # those that are available, if some are not
        self._kept: OrderedDict[Filter, Selection] = OrderedDict()
        self._bytes = 0  # of these
        self._lock = threading.Lock()

    def change(self, states: Mapping[str, ItemState]) -> None:
        """Take over what was said about items, by id."""
        self.cold.change({item: state for item, state in states.items() if item not in self._index_of})
        known = {self._index_of[item]: state for item, state in states.items() if item in self._index_of}
        if not known:
            return
        self.attributes.change({row: state.attributes for row, state in known.items()})
        with self._lock:
            for row, state in known.items():
                self._available[row] = state.available
            self.unavailable = int(np.count_nonzero(~self._available[1:]))
            self._here = None
            self._kept.clear()
            self._bytes = 0

    def selection(self, wanted: Filter | None, candidates: NDArray[np.int64] | None = None) -> Selection | None:
        """What a filter and candidates leave of the available items; None for the whole catalogue.

        Raises filters.UnknownAttribute.
        """
        if candidates is not None:
            mask = np.zeros(len(self._available), np.bool_)
            mask[candidates] = True
            mask &= self._available
            if wanted is not None:
                mask &= wanted.mask(self.attributes)
            return Selection.gathered(np.flatnonzero(mask), self._items)
        with self._lock:
            if wanted is None:
                if self._here is None and self.unavailable:
                    self._here = Selection.of(self._available, self._items)
                return self._here
            if wanted in self._kept:
                self._kept.move_to_end(wanted)
                return self._kept[wanted]
            found = Selection.of(self._available & wanted.mask(self.attributes), self._items)
            if wanted.size > _KEPT_SIZE:  # made for one request, more likely than not
                return found
            self._kept[wanted] = found
            self._bytes += found.nbytes
            while len(self._kept) > 1 and (self._bytes > _KEPT_BYTES or len(self._kept) > _KEPT):
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= oldest.nbytes
            return found
