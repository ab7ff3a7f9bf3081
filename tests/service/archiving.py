"""Events in a store's log, users erased from it, and the archiver as a process."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.eventlog import LoggedEvent
from service.erasure import Erasure
from service.sequences import SequenceStore, StoreSettings
from tests.service.processes import ROOT


def append(
    url: str, first: int, last: int, *, user: str | None = None, properties: bytes | None = None, **settings: Any
) -> None:
    events = [
        LoggedEvent(
            *(user or f"user{n % 40}", f"item{n}", f"e{n}", "view", 86_400_000 * (n % 3) + n, n / 7),
            properties=properties,
        )
        for n in range(first, last)
    ]

    async def store() -> None:
        async with SequenceStore.connect(url, StoreSettings(write_timeout_s=5, **settings)) as opened:
            assert (await opened.append(events)).accepted == len(events)

    asyncio.run(store())


def erase(url: str, user: str) -> None:
    async def erased() -> None:
        async with SequenceStore.connect(url, StoreSettings(write_timeout_s=5)) as opened:
            await Erasure(opened.connection, log_length=1000).erase(user)

    asyncio.run(erased())


def archive(url: str, folder: Path, *options: str) -> str:
    """What an archiver says that runs once."""
    command = [sys.executable, "-m", "service", "archive", "--redis", url, "--to", str(folder), "--once", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    return done.stderr


def wait_until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)
