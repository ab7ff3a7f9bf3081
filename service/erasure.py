"""Erasure of a user from the store: history, record of event ids and log, and a tombstone for what is archived.

What is erased at once is what serving reads. The log is then swept in steps that are short, for the server does
nothing else meanwhile. A sweep that was cut off is finished by the next erasure of the same user, which a client that
got no answer asks for; until then the other sweeps of that log leave out what they meet of the user.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.eventlog import START, digest_of, log_key, partition_of, tombstones_key
from service.connection import Connection, Script
from service.sequences import history_key, record_key

_PAGE = 500  # entries read at once
_MOVED = 200  # entries a step of a sweep moves: a few milliseconds


@dataclass(frozen=True, slots=True)
class Erased:
    """What was removed: events of the history, ids remembered against repeats, entries of the log."""

    history_events: int
    event_ids: int
    logged_events: int


class Erasure:
    """Erases users. Every call raises StoreUnavailable soon if it cannot be done; then ask for the same again."""

    def __init__(self, connection: Connection, *, log_length: int, log_min_s: float = 0) -> None:
        """log_length: of a partition; log_min_s: how old an entry must be to be dropped for a newer one."""
        self._connection = connection
        self._log_bounds = log_length, log_min_s
        folder = Path(__file__).parent
        self._erase = Script(folder.joinpath("erase.lua").read_bytes(), keys=5)
        self._sweep = Script(folder.joinpath("sweep.lua").read_bytes(), keys=3)

    async def erase(self, user_id: str) -> Erased:
        """Erase all that was stored of a user up to now. When this returns, it is in no value of the server.

        The server's own files keep it until they are written anew, which the archiver asks for.
        """
        partition = partition_of(user_id)
        log, pending = log_key(partition).encode(), _pending_key(partition)
        swept = (log, pending, tombstones_key(partition).encode())
        user = (user_id, digest_of(user_id))
        history_events, event_ids, upto = await self._connection.run_one(
            self._erase, (history_key(user_id), record_key(user_id), *swept, *user, *self._log_bounds)
        )
        last = await self._last_of(user_id, log, upto)
        logged_events, done = 0, False
        while not done:
            removed, done = await self._connection.run_one(self._sweep, (*swept, *user, upto, last, _MOVED))
            logged_events += removed
        return Erased(history_events, event_ids, logged_events)

    async def _last_of(self, user_id: str, log: bytes, upto: bytes) -> str:
        """Id of the user's last entry up to this one; the sweep need not go further. START if there is none."""
        before = upto
        while True:
            page: Any = await self._connection.read(
                log,
                lambda client, before=before: client.xrevrange(log, before, count=_PAGE),  # type: ignore[misc]
                large=True,
            )
            for entry_id, fields in page:
                if fields.get(b"user_id") == user_id.encode():
                    return str(entry_id.decode())
            if not page:
                return START
            before = b"(" + page[-1][0]


def _pending_key(partition: int) -> bytes:
    return f"recserve:{{{partition}}}:erasing".encode()
