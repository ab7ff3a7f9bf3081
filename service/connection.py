"""The way to Redis that every store of the service takes: deadlines, repeats and scripts, in one place.

Whatever goes wrong on it is one exception, StoreUnavailable, and it comes soon: reads degrade and writes refuse, which
is for the caller to decide, not for a client library that waits.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import redis.asyncio
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ClusterDownError, MovedError, NoScriptError, ReadOnlyError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.breaker import Breaker
from service.topology import Cluster, Single, moved, opened

T = TypeVar("T")
C = TypeVar("C")
logger = logging.getLogger(__name__)

ATTEMPTS = 2  # the second meets a fresh connection, which is what a restarted server needs
# What a connection can raise: RuntimeError is uvloop's word for a transport that the peer has closed.
CONNECTION_ERRORS = (RedisConnectionError, RedisTimeoutError, OSError, RuntimeError)
# Another server has the key, or has become the primary, or may have, where this one is cut off from its cluster.
ELSEWHERE = (MovedError, ReadOnlyError, ClusterDownError)


class StoreUnavailable(Exception):  # noqa: N818 - a condition of the world, as in 503 Service Unavailable
    """Redis did not do what was asked; nothing may be counted as stored. The message says why."""

    level = logging.WARNING  # in the log: what does not answer may do so again by itself, and metrics tell


class StillUnavailable(StoreUnavailable):
    """As was already known, and said in the log, so that nothing was tried."""


class Refused(StoreUnavailable):
    """The store has answered, and will not do it."""

    level = logging.ERROR


class Unfit(StoreUnavailable):
    """The store would do it, or has, and is not one to which it may be left."""

    level = logging.ERROR


class Connection:
    """Connections to a server or to those of a cluster, made at the first call, so that they may come later.

    Safe for any number of tasks of one event loop. Every call raises StoreUnavailable within two attempts' timeouts,
    before which it waits as long at most for a connection that is free, and a script within three such times where the
    store is vetted before and after it; those after it do at once, and calls work again a moment after the server does.
    """

    def __init__(
        self, url: str, *, read_timeout_s: float, write_timeout_s: float, max_connections: int, replicas: int = 0
    ) -> None:
        """At a URL as in models.storeurl; a timeout is that of one attempt, of which there are two.

        max_connections: for reads and for writes each; replicas: how many must have what a script has written before
        it counts. Raises ValueError if the URL is not one.
        """
        self._reads = _Way("reads", url, read_timeout_s, max_connections)
        self._writes = _Way("writes", url, write_timeout_s, max_connections)
        self.vet: Callable[[], Awaitable[object]] | None = None  # raises Unfit if the store may not be written to
        self.unfit: str | None = None  # why it may not, as was last seen
        self._vetted = -1  # changes of those who take writes that there had been when it last was
        self._replicas = replicas
        self._write_timeout_s = write_timeout_s
        self._wait_ms = int(write_timeout_s * 1000 / 2)  # for replicas: less than the call has

    async def read(
        self, key: bytes, command: Callable[[redis.asyncio.Redis], Awaitable[T]], *, large: bool = False
    ) -> T:
        """Result of a command that changes nothing, on the server that has the key; large: it may take as long as a
        write."""
        way = self._writes if large else self._reads

        async def ask() -> T:
            return await command(await way.store.at(key))

        return await way.call(ask)

    async def values(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values of keys, wherever they lie; None where there is none. One round trip."""
        store = self._reads.store
        return await self._reads.call(lambda: _by_server(store, keys, keys, store.mget))

    async def lengths(self, keys: Sequence[bytes]) -> list[int]:
        """How many entries the streams of keys have, wherever they lie. One round trip, with a write's patience: who
        asks serves nobody meanwhile, and a late answer is not to keep histories from being read."""

        async def of(client: redis.asyncio.Redis, own: list[bytes]) -> list[int]:
            pipeline = client.pipeline(transaction=False)
            for key in own:
                pipeline.xlen(key)
            return await pipeline.execute()

        return await self._writes.call(lambda: _by_server(self._writes.store, keys, keys, of))

    async def run(self, script: Script, calls: list[tuple[Any, ...]]) -> list[Any]:
        """For each call's keys and arguments the script's reply, or what the server refused it with.

        It may be repeated: it must change nothing the second time. Raises StoreUnavailable, for a durable script also
        when all of it is written and too few replicas have it, or the store that has it is not one that may be used:
        nothing may be acknowledged then, and the same calls may be made again.
        """

        replicas = self._replicas if script.durable else 0

        async def of(client: redis.asyncio.Redis, own: list[tuple[Any, ...]]) -> list[Any]:
            return await script.run(client, own, replicas, self._wait_ms)

        async def ask() -> list[Any]:
            try:
                return await _by_server(self._writes.store, keys, calls, of)
            except ELSEWHERE:
                self._reads.store.forget()  # a replica answers reads, late or with what is old
                raise

        keys = [call[0] for call in calls]
        if not script.durable:
            return await self._writes.call(ask)
        await self._sure()
        replies = await self._writes.call(ask)
        await self._sure()  # it may have been connected to anew meanwhile
        return replies

    async def run_one(self, script: Script, call: tuple[Any, ...]) -> Any:
        """The script's reply to one call. Raises StoreUnavailable as `run`, and if the server refused it."""
        (reply,) = await self.run(script, [call])
        if isinstance(reply, Exception):
            raise Refused(f"Redis refused: {reply}") from reply
        return reply

    async def each(self, command: Callable[[redis.asyncio.Redis], Awaitable[T]]) -> list[T]:
        """Results of a command that changes nothing on every server that takes writes."""

        async def ask() -> list[T]:
            return [await command(client) for client in await self._writes.store.primaries()]

        return await self._writes.call(ask)

    @property
    def refusing(self) -> str | None:
        """Why scripts are refused without being tried, in a word, as the log says why; None where they are tried."""
        if self.unfit is not None:
            return "store_unfit"
        return "store_unreachable" if self._writes.breaker.reason is not None else None

    def refuse(self, reason: str | None) -> None:
        """Let no script count, because of this; None: let them count again."""
        self.unfit = reason
        if reason is not None:
            self._writes.forget()  # its name may lead to a better one

    async def follow(self) -> None:
        """Leave a primary in whose place sentinels name another: cut off from them alone, it goes on answering."""
        try:
            async with asyncio.timeout(self._write_timeout_s):
                if await moved((self._reads.store, self._writes.store)):
                    self._reads.forget()
                    self._writes.forget()
        except (*CONNECTION_ERRORS, RedisError) as error:  # then they know of no better one
            logger.debug("sentinels were asked for the primary: %s", error)

    async def _sure(self) -> None:
        """Vet a store that may be another one than before, or have restarted with other settings.

        Raises StoreUnavailable.
        """
        if self.vet is None:
            return
        if self.unfit is not None:  # whoever refused it looks again
            raise Unfit(self.unfit)
        changes = self._writes.changes
        if changes != self._vetted:
            try:
                await self.vet()
            except Unfit as error:
                self.refuse(str(error))
                raise
            self._vetted = changes

    async def aclose(self) -> None:
        """Close all connections; calls under way fail."""
        for way in (self._reads, self._writes):
            await way.breaker.aclose()
            try:
                await way.store.aclose()
            except (RedisError, OSError) as error:  # closing a connection to a dead server is still closing it
                logger.debug("closing a connection to the store: %s", error)


class Script:
    """A Lua script that the server runs alone and writes to disk as one transaction.

    durable: it counts only where what it writes lasts; else a store that keeps less will do, and replicas may be away.
    """

    def __init__(self, source: bytes, keys: int, *, durable: bool = True) -> None:
        self.durable = durable
        self._source, self._keys = source, keys
        self._sha = hashlib.sha1(source, usedforsecurity=False).hexdigest()

    async def run(
        self, client: redis.asyncio.Redis, calls: list[tuple[Any, ...]], replicas: int = 0, wait_ms: int = 0
    ) -> list[Any]:
        """Replies, or what the server refused a call with; all in one round trip, or a second one if the server does
        not know the script yet. Raises StoreUnavailable if not so many replicas have them within wait_ms."""
        replies = await self._evalsha(client, calls, replicas, wait_ms)
        unknown = [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:  # the server has restarted, or an operator has flushed its scripts
            again = await self._evalsha(client, [calls[index] for index in unknown], replicas, wait_ms, load=True)
            for index, reply in zip(unknown, again, strict=True):
                replies[index] = reply
        return replies

    async def _evalsha(
        self,
        client: redis.asyncio.Redis,
        calls: list[tuple[Any, ...]],
        replicas: int,
        wait_ms: int,
        *,
        load: bool = False,
    ) -> list[Any]:
        pipeline = client.pipeline(transaction=False)
        if load:
            pipeline.execute_command("SCRIPT LOAD", self._source)
        for call in calls:
            pipeline.execute_command("EVALSHA", self._sha, self._keys, *call)
        if replicas:
            # WAIT is documented to count who has what this connection has written, and a repeated call writes nothing,
            # on a new connection perhaps: so that it is not acknowledged before its first try has reached anybody,
            # something is written behind it.
            tag = bytes(calls[-1][0]).partition(b"}")[0]
            pipeline.execute_command("SET", tag + b"}:wait", b"", "EX", 60)
            pipeline.execute_command("WAIT", replicas, wait_ms)
        replies = await pipeline.execute(raise_on_error=False)
        if load:
            replies = replies[1:]
        if replicas:
            *replies, written, reached = replies
            if isinstance(written, ELSEWHERE):
                raise written
            if isinstance(written, Exception) or not isinstance(reached, int):
                raise Refused(f"Redis refused: {written if isinstance(written, Exception) else reached}")
            if reached < replicas:
                raise Unfit(f"{reached} of {replicas} replica(s) had the write within {wait_ms} ms")
        return list(replies)


class _Way:
    """One kind of call: its client, its deadline and its bound."""

    def __init__(self, name: str, url: str, timeout_s: float, places: int) -> None:
        self.changes = 0  # of who answers: connections that were made, and failures after which it may be another
        self.store = opened(url, timeout_s, self._connected)
        self.breaker = Breaker(name, self._answers)
        self._timeout_s = timeout_s
        self._places = asyncio.Semaphore(places)  # ours, because a cancelled caller cannot leak its place in it

    async def _connected(self, connection: AbstractConnection) -> None:
        self.changes += 1
        await connection.on_connect()

    def forget(self) -> None:
        """Find out anew who answers, at the next call."""
        self.changes += 1
        self.store.forget()

    async def call(self, make: Callable[[], Awaitable[T]]) -> T:
        if self.breaker.reason is not None:  # those who found out may still have all places
            raise StillUnavailable(self.breaker.reason)
        patience_s = ATTEMPTS * self._timeout_s
        try:
            async with asyncio.timeout(patience_s if self._places.locked() else None):
                await self._places.acquire()
        except TimeoutError:  # which says nothing of the store
            raise StoreUnavailable(f"all connections were busy for {patience_s * 1000:.0f} ms") from None
        try:
            return await self._attempted(make)
        finally:
            self._places.release()

    async def _attempted(self, make: Callable[[], Awaitable[T]]) -> T:
        failure: Exception | None = None
        for _ in range(ATTEMPTS):
            if self.breaker.reason is not None:  # another call may have found out meanwhile
                raise StillUnavailable(self.breaker.reason) from failure
            try:
                async with asyncio.timeout(self._timeout_s):
                    return await make()
            except (*CONNECTION_ERRORS, *ELSEWHERE) as error:
                failure = error
                self.forget()
            except RedisError as error:  # an answer, and no better the second time
                raise Refused(f"Redis refused: {error}") from error
        if isinstance(failure, ELSEWHERE):  # an answer, and nobody has taken over yet
            raise Refused(f"Redis refused: {failure}") from failure
        said = str(failure) or f"no answer within {self._timeout_s * 1000:.0f} ms"
        reason = f"Redis cannot be reached ({ATTEMPTS} attempts): {said}"
        self.breaker.open(reason)
        raise StoreUnavailable(reason) from failure

    async def _answers(self) -> bool:
        try:
            async with asyncio.timeout(self._timeout_s):
                for client in await self.store.primaries():
                    await client.ping()
        except CONNECTION_ERRORS:
            self.forget()
            return False
        except RedisError as error:  # a refusal is an answer
            logger.debug("the store answers a PING with %s", error)
        return True


async def _by_server(
    store: Single | Cluster,
    keys: Sequence[bytes],
    calls: Sequence[C],
    make: Callable[[redis.asyncio.Redis, list[C]], Awaitable[list[Any]]],
) -> list[Any]:
    """What `make` gives for calls, each group of them on the server that has their keys; in the order of the calls."""
    groups = await store.grouped(keys)
    if len(groups) == 1:
        found: list[Any] = [await make(groups[0][0], list(calls))]
    else:
        # All are waited for, so that none goes on without a deadline when another has failed.
        found = await asyncio.gather(
            *(make(client, [calls[number] for number in numbers]) for client, numbers in groups), return_exceptions=True
        )
    replies: list[Any] = [None] * len(calls)
    for (_, numbers), of_server in zip(groups, found, strict=True):
        if isinstance(of_server, BaseException):
            raise of_server
        for number, reply in zip(numbers, of_server, strict=True):
            if isinstance(reply, ELSEWHERE):
                raise reply
            replies[number] = reply
    return replies
