"""The past for a service whose store begins empty: each user's newest interactions of a log, sent over HTTP.

They go through `POST /events` like any client's, so that the service checks, stores and logs them as it does all
others, and one that was sent before has no effect.
"""

import http.client
import json
import math
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import polars as pl
from rich.console import Console
from rich.progress import Progress

from training.interactions import Interactions

_EVENTS = 1000  # a request, which is the most that the service takes
_BYTES = 500_000  # half of the most
_ANSWER_S = 30.0
_PATIENCE_S = 400.0  # a full event log has room again when the archiver has been, which is every five minutes
_LONGEST_WAIT_S = 60.0
_LATER = (429, 502, 503, 504)  # the same request may succeed


class BackfillError(Exception):
    """The service did not take the events; the message says why, and how far it came."""


@dataclass(slots=True)
class Backfilled:
    """What became of the events that were sent."""

    users: int
    accepted: int = 0
    duplicates: int = 0
    unknown_items: int = 0
    rejected: Counter[str] = field(default_factory=Counter)  # by code
    first: dict[str, str] = field(default_factory=dict)  # what was said of the first of each code

    @property
    def sent(self) -> int:
        """Events that had an answer."""
        return self.accepted + self.duplicates + self.rejected.total()

    def __str__(self) -> str:
        said = f"{self.accepted:,} events of {self.users:,} users stored; {self.duplicates:,} are repeats"
        if self.unknown_items:
            said += f"; {self.unknown_items:,} are of items that the served model does not know"
        reasons = (
            f"\n  {count:>10,}  {code}, first: {self.first[code]}" for code, count in self.rejected.most_common()
        )
        return said + (f"; {self.rejected.total():,} rejected" if self.rejected else "") + "".join(reasons)

    def reject(self, code: str, detail: str, events: int = 1) -> None:
        """Count events that the service does not accept."""
        self.rejected[code] += events
        self.first.setdefault(code, detail)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would become a GET, and take the key elsewhere."""

    def redirect_request(self, *_: Any) -> None:
        return None


class _Service:
    """The service's `POST /events`."""

    def __init__(self, url: str, key: str | None) -> None:
        try:
            parts = urlsplit(url)
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or not url.isascii():
            raise BackfillError(f"{url!r} is not the URL of a service; give one such as http://127.0.0.1:8000")
        if key and not (key.isascii() and key.isprintable()):
            raise BackfillError("the key is not as `python -m service keys create` prints it; give that one line")
        self._url = url.rstrip("/") + "/events"
        self._headers = {"Content-Type": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        here = parts.hostname in ("localhost", "127.0.0.1", "::1")  # of which a proxy knows nothing
        proxies = [urllib.request.ProxyHandler({})] if here else []
        self._opener = urllib.request.build_opener(_NoRedirect, *proxies)

    def send(self, body: bytes, *, patience_s: float, say: Callable[[str], None]) -> tuple[int, dict[str, Any]]:
        """Status and answer, 200 or 422. What may succeed later is tried again for `patience_s` seconds, and said once.

        Raises BackfillError if the service takes no events.
        """
        said = False
        until = time.monotonic() + patience_s
        while True:
            wait_s = 1.0
            try:
                status, answer, headers = self._ask(body)
                if status in (200, 422):
                    return status, answer
                reason = f"{status}: {answer.get('detail') or 'no reason given'}"
                if status not in _LATER:
                    raise BackfillError(f"{self._url} answered {reason}")
                asked = headers.get("Retry-After", "")
                wait_s = min(float(asked), _LONGEST_WAIT_S) if asked.isdigit() else wait_s
            except (OSError, http.client.HTTPException) as error:
                reason = str(getattr(error, "reason", error) or type(error).__name__)
            if time.monotonic() + wait_s > until:
                raise BackfillError(f"{self._url} takes no events ({reason})")
            if not said:
                say(f"the service takes no events just now, which is tried for {patience_s:.0f} s ({reason})")
                said = True
            time.sleep(wait_s)

    def _ask(self, body: bytes) -> tuple[int, dict[str, Any], Any]:
        request = urllib.request.Request(self._url, body, self._headers, method="POST")  # noqa: S310 - the scheme is checked
        try:
            with self._opener.open(request, timeout=_ANSWER_S) as response:
                return response.status, _object(response.read()), response.headers
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.code, _object(refusal.read()), refusal.headers


def backfill(
    interactions: Interactions,
    url: str,
    *,
    console: Console,
    files: Sequence[Path],
    newest: int = 50,
    event_type: str = "interaction",
    key: str | None = None,
) -> Backfilled:
    """Send the `newest` interactions of every user, oldest first, to the service at a URL.

    An interaction is its user, item, type and time, so that a repeated call adds nothing within 24 hours. Without times
    rows lie a millisecond apart, the last of them when the newest of `files` was written.
    Raises BackfillError if the service is not there, refuses the key, or takes none for minutes.
    """
    frame = interactions.frame
    if not interactions.has_timestamps:
        last_ms = math.floor(max(path.stat().st_mtime for path in files) * 1000)
        frame = frame.with_columns(timestamp=last_ms - pl.int_range(pl.len() - 1, -1, -1, dtype=pl.Int64))
        console.print("no timestamps: the order of the rows is taken as the order of events")
    frame = frame.group_by("user_id", maintain_order=True).tail(newest)
    service, done = _Service(url, key), Backfilled(frame["user_id"].n_unique())
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("events", total=len(frame))
        for body, events in _bodies(frame, event_type):
            try:  # who names a wrong address learns it at once
                status, answer = service.send(
                    body, patience_s=_PATIENCE_S if done.sent else 0.0, say=progress.console.print
                )
            except BackfillError as error:
                came = (
                    f"; {done.sent:,} of {len(frame):,} events were sent, the same command goes on" if done.sent else ""
                )
                raise BackfillError(f"{error}{came}") from error
            _count(done, status, answer, events)
            progress.update(task, completed=done.sent)
    return done


def _count(done: Backfilled, status: int, answer: dict[str, Any], events: int) -> None:
    if status == 422 and answer.get("code") != "no_valid_event":
        raise BackfillError(f"the service refused the request: {answer.get('detail')}")
    if status == 422:
        done.reject(str(answer["code"]), str(answer.get("detail")), events)
        return
    try:
        done.accepted += answer["accepted"]
        done.duplicates += answer["duplicates"]
        done.unknown_items += answer["unknown_items"]
        for one in answer["rejected"]:
            done.reject(one["code"], one["detail"])
    except (KeyError, TypeError) as error:
        raise BackfillError("what answers there is not a service of recserve: it did not say what it stored") from error


def _bodies(frame: pl.DataFrame, event_type: str) -> Iterator[tuple[bytes, int]]:
    """Bodies of requests, and how many events each has; a user's lie together, which is stored at once."""
    held: list[bytes] = []
    size = 0
    for user, item, timestamp, value in frame.select("user_id", "item_id", "timestamp", "value").iter_rows():
        event = {"user_id": user, "item_id": item, "timestamp": timestamp, "type": event_type}
        if value is not None:
            event["value"] = value
        written = json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()
        if held and (len(held) == _EVENTS or size + len(written) > _BYTES):
            yield _body(held), len(held)
            held, size = [], 0
        held.append(written)
        size += len(written) + 1
    if held:
        yield _body(held), len(held)


def _body(events: Sequence[bytes]) -> bytes:
    return b'{"events":[' + b",".join(events) + b"]}"


def _object(text: bytes) -> dict[str, Any]:
    """The JSON object of an answer; an empty one if it is none, as of a proxy."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
