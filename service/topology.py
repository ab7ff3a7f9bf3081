"""Where keys lie: on one server, or spread over the primaries of a cluster.

A cluster is spoken to through one plain client for each primary, so that deadlines, pipelines and WAIT mean there what
they mean on a single server; which primary has which slot is asked when a primary fails, or says that a key has moved
or that the cluster is down.
"""

import binascii
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import redis.asyncio
from redis.asyncio.client import Pipeline
from redis.asyncio.connection import AbstractConnection, SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelManagedSSLConnection
from redis.backoff import NoBackoff
from redis.exceptions import AskError, RedisError, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError

from models.storeurl import BAD_OPTIONS, Several, several
from service.pools import Address, Pool, SentinelPool, Sentinels, Tls, first_of

_SLOTS = 1 << 14


class Single:
    """All keys on one server, of which `connect` gives connections, perhaps after it has asked others."""

    def __init__(self, connect: Callable[[], Pool], asked: Sequence[redis.asyncio.Redis] = ()) -> None:
        self._connect = connect
        self._asked = asked
        self.pool = connect()
        self._client = redis.asyncio.Redis(connection_pool=self.pool)
        self._doubted = False

    async def at(self, _key: bytes) -> redis.asyncio.Redis:
        """The server, which has every key."""
        if self._doubted:
            self._doubted = False
            left, self.pool = self.pool, self._connect()
            self._client = redis.asyncio.Redis(connection_pool=self.pool)
            await left.leave()
        return self._client

    async def grouped(self, keys: Sequence[bytes]) -> list[tuple[redis.asyncio.Redis, Sequence[int]]]:
        """The server with the places of all keys."""
        return [(await self.at(b""), range(len(keys)))]

    async def mget(self, client: redis.asyncio.Redis, keys: list[bytes]) -> list[Any]:
        """Values of keys, None where there is none."""
        values: list[Any] = await client.mget(keys)
        return values

    async def primaries(self) -> list[redis.asyncio.Redis]:
        """Every server that takes writes: this one."""
        return [await self.at(b"")]

    def forget(self) -> None:
        """Connect anew at the next call: the name may lead to another server by then."""
        self._doubted = True

    async def aclose(self) -> None:
        """Close the connections to it and to those who were asked for it."""
        for client in (self._client, *self._asked):
            await client.aclose(close_connection_pool=True)


class Cluster:
    """Clients of a cluster's primaries."""

    def __init__(self, seeds: tuple[Address, ...], connect: Callable[[Address], redis.asyncio.Redis]) -> None:
        self._seeds = seeds
        self._connect = connect
        self._clients: dict[Address, redis.asyncio.Redis] = {}
        self._ranges: list[tuple[int, int, Address]] = []  # slots, first and last, of each primary

    async def at(self, key: bytes) -> redis.asyncio.Redis:
        """The primary that has the key."""
        slot = slot_of(key)
        for first, last, address in await self._known():
            if first <= slot <= last:
                return self._client(address)
        raise RedisConnectionError(f"no node of the cluster has slot {slot}")

    async def grouped(self, keys: Sequence[bytes]) -> list[tuple[redis.asyncio.Redis, Sequence[int]]]:
        """Each primary with the places of its keys."""
        places: dict[redis.asyncio.Redis, list[int]] = {}
        for place, key in enumerate(keys):
            places.setdefault(await self.at(key), []).append(place)
        return list(places.items())

    async def mget(self, client: redis.asyncio.Redis, keys: list[bytes]) -> list[Any]:
        """Values of keys of one primary, where a command takes those of one slot alone."""
        by_slot: dict[int, list[bytes]] = {}
        for key in keys:
            by_slot.setdefault(slot_of(key), []).append(key)
        pipeline = client.pipeline(transaction=False)
        for own in by_slot.values():
            pipeline.mget(own)
        found: dict[bytes, Any] = {}
        for own, values in zip(by_slot.values(), await _replies(pipeline), strict=True):
            moving = type(values) in (AskError, TryAgainError)
            found |= zip(own, await self._moving(client, own) if moving else _good(values), strict=True)
        return [found[key] for key in keys]

    async def _moving(self, client: redis.asyncio.Redis, keys: list[bytes]) -> list[Any]:
        """Values of keys of a slot on its way to another primary: a key is still here, or there if at all."""
        pipeline = client.pipeline(transaction=False)
        for key in keys:
            pipeline.get(key)
        values = await _replies(pipeline)
        asks = {place: value for place, value in enumerate(values) if type(value) is AskError}
        if asks:
            host, port = next(iter(asks.values())).node_addr
            there = self._client((host or client.connection_pool.connection_kwargs["host"], port))
            pipeline = there.pipeline(transaction=False)
            for place in asks:
                pipeline.execute_command("ASKING")  # is for the one command behind it
                pipeline.get(keys[place])
            for place, value in zip(asks, (await _replies(pipeline))[1::2], strict=True):
                values[place] = value
        return [_good(value) for value in values]

    async def primaries(self) -> list[redis.asyncio.Redis]:
        """Every server that takes writes, in the order of their addresses."""
        return [self._client(address) for address in sorted({address for *_, address in await self._known()})]

    def forget(self) -> None:
        """Ask anew which primary has what, at the next call."""
        self._ranges = []

    async def aclose(self) -> None:
        """Close the connections to all nodes."""
        for client in self._clients.values():
            await client.aclose(close_connection_pool=True)

    async def _known(self) -> list[tuple[int, int, Address]]:
        if not self._ranges:
            nodes = dict.fromkeys((*self._seeds, *self._clients))
            self._ranges = await first_of(self._slots(address) for address in nodes)
        return self._ranges

    async def _slots(self, address: Address) -> list[tuple[int, int, Address]]:
        """Which primary has which slots, as one node says."""
        pipeline = self._client(address).pipeline(transaction=False)
        # In two words, or the client would parse the replies, in a way that differs between its versions.
        pipeline.execute_command("CLUSTER", "INFO")
        pipeline.execute_command("CLUSTER", "SLOTS")
        state, slots = await _replies(pipeline)
        found: list[Any] = _good(slots)
        if not found:
            raise RedisConnectionError(f"{address[0]}:{address[1]} knows of no slots")
        # A node that is cut off from the others does not hear who has taken over, and names itself. One that may not
        # say how it is counts as well.
        if isinstance(state, bytes) and b"cluster_state:fail" in state:
            raise RedisConnectionError(f"{address[0]}:{address[1]} says that the cluster is down")
        # Where a node does not know a host, or may not say it, it is the one that was asked.
        return [
            (first, last, (host.decode() if host else address[0], port)) for first, last, (host, port, *_), *_ in found
        ]

    def _client(self, address: Address) -> redis.asyncio.Redis:
        if address not in self._clients:
            self._clients[address] = self._connect(address)
        return self._clients[address]


async def _replies(pipeline: Pipeline) -> list[Any]:
    """With the errors among them, to which the client would otherwise add the keys, which name users."""
    replies: list[Any] = await pipeline.execute(raise_on_error=False)
    return replies


def _good(reply: Any) -> Any:
    if isinstance(reply, Exception):
        raise reply
    return reply


async def moved(stores: Iterable[Single | Cluster]) -> bool:
    """Whether sentinels name another primary now than one of the stores is connected to, all of them of one URL, and
    none from before that one; False where there are no sentinels. Raises what a client does where none of them answers.
    """
    pools = [store.pool for store in stores if isinstance(store, Single) and isinstance(store.pool, SentinelPool)]
    if not pools:
        return False
    sentinels: Sentinels = pools[0].sentinel_manager
    named = await sentinels.discover_master(pools[0].service_name)
    return any(
        pool.master_address not in (None, named)
        and sentinels.epochs[named] >= pool.sentinel_manager.epochs.get(pool.master_address, 0)
        for pool in pools
    )


def slot_of(key: bytes) -> int:
    """Slot of a key, by its hash tag if it has one. Source: the Redis cluster specification."""
    _, brace, rest = key.partition(b"{")
    tag, closed, _ = rest.partition(b"}")
    return binascii.crc_hqx(tag if brace and closed and tag else key, 0) % _SLOTS


def opened(
    url: str, timeout_s: float, on_connect: Callable[[AbstractConnection], Awaitable[None]] | None = None
) -> Single | Cluster:
    """Clients for a URL, of which nothing is sent yet; connecting takes timeout_s at most.

    on_connect: called in place of a connection's own `on_connect`, which is for it to call. Raises ValueError if the
    URL is none.
    """
    options: dict[str, Any] = {
        # A whole attempt has one deadline, in connection.py; one for each read and write would only add to it.
        "socket_timeout": None,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,  # saves a new connection one round trip
        "decode_responses": False,
        "redis_connect_func": on_connect,
    }
    found = several(url)
    if found is None:
        options |= parse_url(url)
    else:
        options |= {"username": found.username, "password": found.password, **(found.tls or {})}
        if options.pop("ssl", False):
            options["connection_class"] = SSLConnection
    try:
        connection = Pool(None, **options).make_connection()
        tls = Tls(connection, options) if isinstance(connection, SSLConnection) else None
    except (TypeError, OSError, RedisError):
        raise ValueError(BAD_OPTIONS) from None
    if found is None:
        return Single(lambda: Pool(tls, **options))
    return _cluster(found, tls, options) if found.cluster else _sentinel(found, tls, options)


def _cluster(found: Several, tls: Tls | None, options: dict[str, Any]) -> Cluster:
    return Cluster(found.addresses, lambda address: _client(address, tls, options))


def _sentinel(found: Several, tls: Tls | None, options: dict[str, Any]) -> Single:
    unnamed = options | {"username": None, "password": None, "redis_connect_func": None}
    asked = [_client(address, tls, unnamed) for address in found.addresses]
    sentinels = Sentinels(asked)
    if tls is not None:
        options["connection_class"] = SentinelManagedSSLConnection
    return Single(lambda: SentinelPool(tls, found.name, sentinels, **options), asked)


def _client(address: Address, tls: Tls | None, options: dict[str, Any]) -> redis.asyncio.Redis:
    return redis.asyncio.Redis(connection_pool=Pool(tls, host=address[0], port=address[1], **options))
