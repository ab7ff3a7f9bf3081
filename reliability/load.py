"""Clients over HTTP: one request at a time each, every answer written into the ledger."""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from reliability.ledger import Ledger, Sent

_PAUSE_S = 0.02  # after a request that failed; a real client would heed Retry-After and press less


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, its body parsed where it is JSON, and after how long."""

    status: int
    body: Any
    retry_after: str | None
    seconds: float


class Client:
    """One kept connection, opened anew when it fails."""

    def __init__(self, address: tuple[str, int], *, timeout_s: float = 5.0) -> None:
        self._connection = http.client.HTTPConnection(*address, timeout=timeout_s)

    def post(self, path: str, body: dict[str, Any]) -> Answer:
        """Raises OSError or http.client.HTTPException if there was no answer."""
        began = time.perf_counter()
        try:
            self._connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = self._connection.getresponse()
            read = response.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            raise
        seconds = time.perf_counter() - began
        try:
            parsed = json.loads(read)
        except ValueError:
            parsed = read.decode(errors="replace")
        return Answer(response.status, parsed, response.getheader("Retry-After"), seconds)

    def close(self) -> None:
        self._connection.close()


class Load:
    """Clients that send events while entered, until they have sent `count` (None: until it is left).

    With `retry` an event is sent again until it is acknowledged, and without it once.
    """

    def __init__(
        self,
        address: tuple[str, int],
        ledger: Ledger,
        events: Iterator[Sent],
        *,
        count: int | None = None,
        clients: int = 4,
        retry: bool = True,
    ) -> None:
        self._address, self._ledger, self._events, self._retry = address, ledger, events, retry
        self._left = count
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait(self, timeout_s: float) -> None:
        """Until all are sent. Raises TimeoutError."""
        until = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                raise TimeoutError(f"{self._ledger.acknowledged:,} events were acknowledged within {timeout_s:.0f} s")

    def _next(self) -> Sent | None:
        with self._lock:
            if self._left is not None:
                if not self._left:
                    return None
                self._left -= 1
            return next(self._events)

    def _work(self) -> None:
        client = Client(self._address)
        while not self._stop.is_set() and (event := self._next()) is not None:
            self._ledger.send(event)
            while not self._sent(client, event) and self._retry and not self._stop.is_set():
                time.sleep(_PAUSE_S)
        client.close()

    def _sent(self, client: Client, event: Sent) -> bool:
        """Whether it was acknowledged."""
        try:
            answer = client.post("/events", event.body())
        except (OSError, http.client.HTTPException):
            self._ledger.fail()
            return False
        counted = answer.body if answer.status == 200 and isinstance(answer.body, dict) else {}
        if counted.get("accepted", 0) + counted.get("duplicates", 0) == 1:
            self._ledger.acknowledge(event, time.monotonic())
            return True
        if answer.status == 503 and answer.retry_after:
            self._ledger.refuse()
        else:
            self._ledger.wonder(f"{answer.status} {json.dumps(answer.body)[:200]}")
        return False


def wait_for(count: int, ledger: Ledger, timeout_s: float) -> None:
    """Until so many events are acknowledged. Raises TimeoutError."""
    until = time.monotonic() + timeout_s
    while ledger.acknowledged < count:
        if time.monotonic() > until:
            raise TimeoutError(f"{ledger.acknowledged:,} of {count:,} events were acknowledged in {timeout_s:.0f} s")
        time.sleep(0.005)
