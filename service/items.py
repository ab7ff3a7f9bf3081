"""What became known of items since their bundle was made, kept in Redis and followed by every process.

Of an item it is what was put, and of one that no model knew what its users met just before it. It outlives restarts and
new bundles, so that an item that is sold out stays out whatever is promoted. A process reads only what has changed
since it last looked; while the store is away, what it knows stands.
"""

import asyncio
import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import msgpack
import orjson

from models.cold import FULL
from service.attributes import AS_IN_BUNDLE, ItemState
from service.cold import MAX_COLD
from service.connection import Connection, Script, StoreUnavailable
from service.engine import Engine
from service.tasks import ended, every

logger = logging.getLogger(__name__)

MAX_KEPT = 1_000_000  # items with a state of their own
_STATES_KEY, _CONTEXTS_KEY, _CHANGES_KEY, *_STANDING_KEYS = _KEYS = tuple(
    b"recserve:{items}:" + name for name in (b"states", b"contexts", b"changes", b"floor", b"version")
)
_MET_KEY = b"recserve:{items}:met"
_PAGE = 5000  # changes read at once; more than one write can make, so that a page holds a whole one
_STATES = 200  # states read at once: at most a megabyte


class TooManyItems(Exception):  # noqa: N818 - a condition, as in 409
    """The items to be kept are more than MAX_KEPT."""


class ItemStore:
    """The states of items in Redis. Every call raises StoreUnavailable soon if it cannot be done.

    Reads have the time of a write: no recommendation waits for them, and after a write its caller does.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        forget, put, meet = (
            Path(__file__).with_name(f"{name}.lua").read_bytes() for name in ("forget_items", "put_items", "meet_items")
        )
        self._put = Script(forget + put, keys=len(_KEYS))
        self._meet = Script(forget + meet, keys=len(_KEYS) + 1, durable=False)  # a context that is lost costs little

    async def put(self, states: Mapping[str, ItemState]) -> None:
        """Store states by item id, at most 1,000, in one step. Raises TooManyItems, and nothing is stored then."""
        packed = [(item, _packed(state)) for item, state in states.items()]
        call = (*_KEYS, MAX_KEPT, msgpack.packb(packed, use_bin_type=False))
        if not await self._connection.run_one(self._put, call):
            raise TooManyItems(f"{MAX_KEPT:,} items can have a state of their own")

    async def meet(self, contexts: Sequence[tuple[str, tuple[str, ...]]]) -> None:
        """Store contexts of items that no model knows, as pairs of the item and the known items met just before it.

        One that is stored already, or one more than FULL of an item, changes nothing.
        """
        packed = [(item, msgpack.packb(context)) for item, context in contexts]
        call = (*_KEYS, _MET_KEY, MAX_COLD, FULL, MAX_KEPT, msgpack.packb(packed, use_bin_type=False))
        await self._connection.run_one(self._meet, call)

    async def standing(self) -> tuple[int, int]:
        """Up to which write `since` may have forgotten changes, and the number of the last write; 0 before the first.

        It forgets items that are as in their bundle again, so that whoever has not come so far must read from 0.
        """
        keys = _STANDING_KEYS
        found: Any = await self._connection.read(keys[0], lambda client: client.mget(keys), large=True)
        floor, version = (int(number or 0) for number in found)
        return floor, version

    async def since(self, version: int) -> tuple[int, dict[str, ItemState]]:
        """States that have changed since a write, or the first of them, and up to which write these are all."""
        changes: Any = await self._connection.read(
            _CHANGES_KEY,
            lambda client: client.zrange(
                _CHANGES_KEY, f"({version}", "+inf", byscore=True, offset=0, num=_PAGE, withscores=True
            ),
            large=True,
        )
        if not changes:
            return version, {}
        upto = int(changes[-1][1])
        if len(changes) == _PAGE:  # the last write may go on behind the page
            changes = [change for change in changes if change[1] < upto]
            upto = int(changes[-1][1])
        return upto, await self.states([item for item, _ in changes])

    async def states(self, items: Sequence[bytes]) -> dict[str, ItemState]:
        """States of these items now, by their ids in UTF-8."""
        states: dict[str, ItemState] = {}
        for begin in range(0, len(items), _STATES):
            some = items[begin : begin + _STATES]
            put, met = await self._connection.read(
                _STATES_KEY,
                lambda client, ids=some: _both(client, ids),  # type: ignore[misc]
                large=True,
            )
            states |= {item.decode(): _unpacked(*raw) for item, *raw in zip(some, put, met, strict=True)}
        return states


class LiveItems:
    """Keeps `engines` at what the store says while entered, looking every poll_s seconds."""

    def __init__(self, store: ItemStore, engines: Callable[[], Iterable[Engine]], *, poll_s: float) -> None:
        self._store = store
        self._engines = engines
        self._poll_s = poll_s
        self._states: dict[str, ItemState] = {}
        self._version = 0
        # What engines that are made ready have still to be told; those that will never serve go by themselves.
        self._untold: weakref.WeakKeyDictionary[Engine, deque[Mapping[str, ItemState]]] = weakref.WeakKeyDictionary()
        self._noting = threading.Lock()
        self._blind = False  # the last look found no store
        self._reading = asyncio.Lock()
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._look()
        self._watcher = asyncio.create_task(
            every(self._poll_s, self._look, "following the states of items failed"), name="items"
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await ended(self._watcher)

    def prepare(self, engine: Engine) -> None:
        """Tell an engine that will serve all that is known, on whatever thread; what changes from here on is noted."""
        with self._noting:
            untold = self._untold[engine] = deque([dict(self._states)])
        _tell(engine, untold)

    def catch_up(self, engine: Engine) -> None:
        """Tell an engine that starts to serve what has changed since it was prepared, and note no more for it."""
        with self._noting:
            untold = self._untold.pop(engine, deque())
        _tell(engine, untold)

    def wanted(self, item: str) -> bool:
        """Whether more contexts of an item would be kept."""
        state = self._states.get(item)
        return state is None or len(state.contexts) < FULL

    async def put(self, states: Mapping[str, ItemState]) -> None:
        """Store states; when this returns, this process serves by them. Raises StoreUnavailable, TooManyItems."""
        await self._store.put(states)
        await self._look()  # they are stored whatever comes of this; the watch goes on looking

    async def refresh(self) -> None:
        """Take over what has changed, as one change: each costs a catalogue much. Raises StoreUnavailable."""
        async with self._reading:
            floor, version = await self._store.standing()
            if version < self._version:  # or it is another one
                logger.warning("the states of items have been set back; reading all of them again")
            anew = not floor <= self._version <= version
            at = 0 if anew else self._version
            found: dict[str, ItemState] = {}
            try:
                while at < version:
                    upto, states = await self._store.since(at)
                    for item in states:
                        found.pop(item, None)  # what was said last comes last
                    found |= states
                    at = max(upto, at + 1) if states else version
                if anew:  # what was not among the changes is as in its bundle, or was changed while they were read
                    known = [item.encode() for item in self._states.keys() - found.keys()]
                    found = await self._store.states(known) | found
                elif found and (await self._store.standing())[0] > self._version:
                    at = self._version  # some may have been forgotten before they were read: the next look reads all
            except StoreUnavailable:
                if not anew:  # then none is given up before all are read
                    await self._apply(found, at)
                raise
            await self._apply(found, at)

    async def _apply(self, states: Mapping[str, ItemState], version: int) -> None:
        """Take over states, up to a write."""
        states = {item: state for item, state in states.items() if self._states.get(item, AS_IN_BUNDLE) != state}
        if states:
            before = {item: self._states.get(item, AS_IN_BUNDLE) for item in states}
            self._note(states)
            try:
                for engine in list(self._engines()):  # one that starts to serve from here on is told by `catch_up`
                    await asyncio.to_thread(engine.catalogue.change, states)
            except Exception:
                self._note(before)  # or the next look would find no change to tell of
                raise
        self._version = version

    def _note(self, states: Mapping[str, ItemState]) -> None:
        with self._noting:
            for item, state in states.items():
                self._states.pop(item, None)  # what was said last comes last, here too
                if state != AS_IN_BUNDLE:
                    self._states[item] = state
            for untold in self._untold.values():
                untold.append(states)

    async def _look(self) -> None:
        try:
            await self.refresh()
        except StoreUnavailable as error:
            if not self._blind:  # once, and not four times a second
                logger.warning("what is said about items cannot be followed until the store answers again: %s", error)
            self._blind = True
        else:
            self._blind = False


def _tell(engine: Engine, untold: deque[Mapping[str, ItemState]]) -> None:
    while untold:
        engine.catalogue.change(untold.popleft())


def _packed(state: ItemState) -> bytes:
    if state == AS_IN_BUNDLE:
        return b""
    return orjson.dumps({"attributes": state.attributes, "available": state.available})


async def _both(client: Any, items: Sequence[bytes]) -> list[Any]:
    """What was put of each item and its contexts, in one round trip."""
    pipeline = client.pipeline(transaction=False)
    pipeline.hmget(_STATES_KEY, items)
    pipeline.hmget(_CONTEXTS_KEY, items)
    return await pipeline.execute()  # type: ignore[no-any-return]


def _unpacked(put: bytes | None, met: bytes | None) -> ItemState:
    """A state; a part that cannot be read counts as none: it must not keep the others from being followed."""
    state = AS_IN_BUNDLE
    try:
        if put is not None:
            fields = orjson.loads(put)
            state = ItemState(fields["attributes"], fields["available"])
        if met is not None:
            state = replace(
                state, contexts=tuple(tuple(msgpack.unpackb(one)) for one in msgpack.unpackb(met, raw=True))
            )
    except (ValueError, KeyError, TypeError) as error:  # those of both formats are ValueErrors
        logger.error("the state of an item is not readable and counts as none: %s", error)
    return state
