"""Clients that keep their connections and never stop asking, and note what became of every request."""

import http.client
import json
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any, Self


class Callers:
    """Clients at work while entered, each sending the (path, body) in turn.

    counts: answers by status; "lost": sent on a connection that was not about to be closed, and never answered; "not
    taken": a connection that was refused. A client that is told that its connection will be closed opens another, as
    it does for every request if they are not `kept`, and one that is not taken ends. errors: the answers among them
    that were errors, by status and code.
    """

    def __init__(
        self, address: tuple[str, int], requests: Sequence[tuple[str, Any]], *, clients: int = 8, kept: bool = True
    ) -> None:
        self.counts: Counter[int | str] = Counter()
        self.errors: Counter[str] = Counter()
        self._address = address
        self._requests = [(path, json.dumps(body)) for path, body in requests]
        self._headers = {"Content-Type": "application/json", **({} if kept else {"Connection": "close"})}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(n,), daemon=True) for n in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def answered(self) -> int:
        return sum(count for status, count in self.counts.items() if isinstance(status, int))

    def _work(self, number: int) -> None:
        while not self._stop.is_set() and self._connected(number):
            pass

    def _connected(self, number: int) -> bool:
        """Use one connection until it is closed; whether there was one."""
        connection = http.client.HTTPConnection(*self._address, timeout=40)
        asked = 0
        try:
            try:
                connection.connect()
            except OSError:
                self._count("not taken")
                return False
            while not self._stop.is_set():
                path, body = self._requests[(number + asked) % len(self._requests)]
                try:
                    connection.request("POST", path, body, self._headers)
                    response = connection.getresponse()
                    answer = response.read()
                except (OSError, http.client.HTTPException):
                    self._count("lost")
                    return True
                asked += 1
                self._count(response.status)
                if response.status >= 400:
                    self._refused(response.status, answer)
                if response.will_close:
                    return True
        finally:
            connection.close()
        return True

    def _refused(self, status: int, answer: bytes) -> None:
        try:
            code = json.loads(answer)["code"]  # every error has one, by the contract
        except (ValueError, TypeError, KeyError):
            code = "without a code"
        with self._lock:
            self.errors[f"{status} {code}"] += 1

    def _count(self, what: int | str) -> None:
        with self._lock:
            self.counts[what] += 1
