"""Where new items are met: for an event of an item that no model knows, the known items its user met just before.

It is a thing on the side: an event is acknowledged before, and a context that is lost costs nothing but a later place
in answers. So it never waits, never fails anybody, and takes what it can while the store answers.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Self

from models.cold import CONTEXT
from service.connection import StoreUnavailable
from service.engine import Engine
from service.items import ItemStore, LiveItems
from service.sequences import Event, SequenceStore
from service.tasks import ended

logger = logging.getLogger(__name__)

_MOST = 10_000  # meetings that wait; more come of a flood of new ids than of a shop
_TOGETHER = 100  # a round trip


class Meetings:
    """Notes contexts of new items, on a task of its own while entered."""

    def __init__(
        self, store: SequenceStore, items: ItemStore, live_items: LiveItems, live: Callable[[], Engine | None]
    ) -> None:
        self._store = store
        self._items = items
        self._live_items = live_items
        self._live = live
        self._waiting: dict[tuple[str, str], None] = {}  # of a user and an item, in the order they came
        self._arrived = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._worker = asyncio.create_task(self._work(), name="meetings")
        return self

    async def __aexit__(self, *_: object) -> None:
        await ended(self._worker)

    def stored(self, events: Sequence[Event]) -> None:
        """Take note of stored events, those of items that the live model does not know."""
        for event in events:
            if len(self._waiting) < _MOST and self._live_items.wanted(event.item_id):
                self._waiting[event.user_id, event.item_id] = None
                self._arrived.set()

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            pairs = list(self._waiting)[:_TOGETHER]
            for pair in pairs:
                del self._waiting[pair]
            if not self._waiting:
                self._arrived.clear()
            try:
                await self._note(pairs)
            except StoreUnavailable as error:
                logger.debug("%d meetings of new items were not noted: %s", len(pairs), error)
            except Exception:  # a worker that dies would leave every later one unnoticed
                logger.exception("noting where new items are met failed")

    async def _note(self, pairs: Sequence[tuple[str, str]]) -> None:
        engine = self._live()
        if engine is None:
            return
        users = list(dict.fromkeys(user_id for user_id, _ in pairs))
        histories = dict(zip(users, await self._store.histories(users), strict=True))
        contexts = []
        for user_id, item in pairs:
            history = histories[user_id]
            if item in history:  # impressions are not in it
                earlier = history[: history.index(item)]
                before = [one for one, known in zip(earlier, engine.bundle.known(earlier), strict=True) if known]
                if before:
                    contexts.append((item, tuple(before[-CONTEXT:])))
        if contexts:
            await self._items.meet(contexts)
