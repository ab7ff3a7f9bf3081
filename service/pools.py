"""Connections to servers of the store: a pool that can be left, one that follows sentinels, and who answers first.

Beyond the client library's own, none is used again that leads to a server which is not the primary any more.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Iterable
from typing import Any, TypeVar

import redis.asyncio
from redis.asyncio.connection import AbstractConnection, SSLConnection
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool
from redis.connection import HiredisRespSerializer
from redis.exceptions import RedisError

T = TypeVar("T")
Address = tuple[str, int]
_SOON_S = 0.02  # after the first answer, in which others count: in one network they take a millisecond or two


class Tls:
    """What connections ask for a TLS context: one for all, since to make it takes as long as a read may."""

    def __init__(self, connection: SSLConnection, options: dict[str, Any]) -> None:
        self._context = connection.ssl_context.get()
        self._certificate = options.get("ssl_certfile"), options.get("ssl_keyfile"), options.get("ssl_password", "")

    def get(self) -> ssl.SSLContext:
        """The context, with the client's certificate as its file is now. Raises OSError."""
        certificate, key, passphrase = self._certificate
        if certificate is not None:
            self._context.load_cert_chain(certificate, key, passphrase)  # again: it may have been renewed
        return self._context


class Pool(redis.asyncio.ConnectionPool):
    """Connections of which none is used again once they are left: those in use are closed when their calls end."""

    def __init__(self, tls: Tls | None, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._left = False
        self._tls = tls

    def make_connection(self) -> Any:
        connection: Any = super().make_connection()  # type: ignore[no-untyped-call]
        connection.pack_command = HiredisRespSerializer().pack  # five times as quick as the asynchronous client's own
        if self._tls is not None:
            connection.ssl_context = self._tls
        return connection

    async def leave(self) -> None:
        """Close the connections that are idle now, and the others when their calls end."""
        self._left = True
        await self.disconnect(inuse_connections=False)

    async def release(self, connection: AbstractConnection) -> None:
        if self._left:
            await connection.disconnect(nowait=True)
        await super().release(connection)


class SentinelPool(Pool, SentinelConnectionPool):
    """To the primary that sentinels name; a connection to one that they named before is closed when its call ends."""

    async def release(self, connection: Any) -> None:
        if (connection.host, connection.port) != self.master_address:
            await connection.disconnect(nowait=True)
        await super().release(connection)


class Sentinels(Sentinel):
    """Sentinels that are asked all at once."""

    def __init__(self, clients: list[redis.asyncio.Redis]) -> None:
        super().__init__([])  # type: ignore[no-untyped-call]
        self.sentinels = clients
        self.epochs: dict[Address, int] = {}  # in which each that was named had become the primary

    async def discover_master(self, service_name: str) -> Address:
        """Where the primary is. Raises ConnectionError if none of them knows.

        One that is cut off from the others goes on naming the primary there was: of those that answer soon, the one
        that knows of the last failover tells.
        """

        async def ask(sentinel: redis.asyncio.Redis) -> tuple[int, Address]:
            primaries: Any = await sentinel.sentinel_masters()
            state = primaries.get(service_name)
            if not state or not self.check_master_state(state, service_name):
                raise MasterNotFoundError(f"a sentinel knows of no primary '{service_name}' that is up")
            return state["config-epoch"], (state["ip"], state["port"])

        epoch, address = max(await _soon(ask(sentinel) for sentinel in self.sentinels))
        self.epochs[address] = epoch
        return address


async def _soon(answers: Iterable[Awaitable[T]]) -> list[T]:
    """The first answer and those that come soon after it; where all fail, the failure of one, as `first_of`."""
    tasks = [asyncio.ensure_future(answer) for answer in answers]
    try:
        found = [await first_of(map(asyncio.shield, tasks))]
        done, _ = await asyncio.wait(tasks, timeout=_SOON_S)
        found += [task.result() for task in done if task.exception() is None]
        return found
    finally:
        for late in tasks:
            late.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def first_of(answers: Iterable[Awaitable[T]]) -> T:
    """The first answer, so that who is silent holds nobody up; where all fail, the failure of one.

    At least one has to be given.
    """
    tasks = [asyncio.ensure_future(answer) for answer in answers]
    failure: Exception
    try:
        for task in asyncio.as_completed(tasks):
            try:
                return await task
            except (RedisError, OSError, RuntimeError) as error:  # RuntimeError: as in connection.py
                failure = error
    finally:
        for late in tasks:
            late.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    raise failure
