"""A canary: after `DELETE /users/{id}` nothing of that user is anywhere, and everything of the others still is."""

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl
from rich.console import Console

from models.archive import read, settled
from models.bundle import read_bundle
from models.eventlog import connect
from models.registry import Registry
from reliability.programs import archive, run
from reliability.promise import Finding
from reliability.serving import Service
from service.embedded import EmbeddedStore
from training.interactions import read_interactions
from training.logged import logged_interactions, without_erased

TITLE = "Erasure: after DELETE /users/{id} nothing of the user is left, and all of the others is"

_CANARY = "canary7f3a9c"  # in the user's id, items, event ids, recommendation ids and properties
_USER = f"user/{_CANARY}"
_NOW_MS = 1_780_000_000_000
_SLOW = 100_000  # commands that the slow log keeps
_REWRITTEN_S = 30.0
_CONFIG = """
[model]
dim = 8
blocks = 1
heads = 1
inner = 8
length = 8

[training]
batch = 32
epochs = 1
"""


def check(full: bool, folder: Path) -> list[Finding]:
    """Quick: 60 other users; full: 2,000, whose logs the sweep has to go through."""
    others = 2_000 if full else 60
    target = folder / "archive"
    with EmbeddedStore(folder / "store") as store:
        client = connect(store.url)
        client.config_set("rdbcompression", "no")  # so that looking for bytes in the files finds them
        client.config_set("slowlog-log-slower-than", 0)  # as if everything were slow
        client.config_set("slowlog-max-len", _SLOW)
        with Service(folder, "--log-level", "debug", redis=store.url) as service:
            url = service.url
            _send(url, others, first=0)
            said = archive(store.url, target)
            _send(url, others, first=6)
            before = {
                "the store": _in_values(client),
                "its files": _in_files(folder / "store"),
                "its slow log": _in_slow_log(client),
                "the archive": _in_parquet(target),
                "what training reads": _in_training(store.url, target),
            }
            told = _told(url, others)
            removed = _ask(url, "DELETE")["removed"]
            again = _ask(url, "DELETE")["removed"]
            history = len(_ask(url, "GET", "/history")["events"])
            values = _in_values(client)
            said += archive(store.url, target, "--compact")
            slow = _in_slow_log(client)
            _wait_until_rewritten(client)
            untold = _told(url, others)
            metrics = urllib.request.urlopen(f"{url}/metrics", timeout=10).read().decode()  # noqa: S310
        files = _in_files(folder / "store")
        data = _past(folder / "past.csv")
        learned = _in_training(store.url, target, data=data)
        if full:
            said += _retrained(folder, store.url, target, data)
            learned += _in_bundle(folder / "trained")
        rows = len(settled(read(target)))
        client.close()
    speakers = "the service, the archiver and the retraining" if full else "the service and the archiver"
    after = {
        "values of the store": values + history,
        "files of the store after they were written anew": files,
        "slow log of the store after the archiver's pass": slow,
        "rows of the Parquet after compaction": _in_parquet(target),
        f"what {speakers} said": (service.said() + said).count(_CANARY),
        "lines of the metrics": metrics.count(_CANARY),
        "what the next training reads" + (", and its bundle" if full else ""): learned,
    }
    return [
        Finding("places that had the canary before, of 5", sum(map(bool, before.values())), least=5),
        Finding("what was removed of it from the store", sum(removed.values()), least=1),
        Finding("what was removed the second time", sum(again.values()), most=0),
        *(Finding(f"the canary in {place}", found, most=0) for place, found in after.items()),
        Finding("events of the others in the Parquet", rows, least=12 * others, most=12 * others),
        Finding("histories of others that changed", sum(a != b for a, b in zip(told, untold, strict=True)), most=0),
    ]


def _send(url: str, others: int, *, first: int) -> None:
    """Six events of every user, and six of the canary between them."""
    for step in range(first, first + 6):
        events: list[dict[str, Any]] = [
            {
                "user_id": f"user-{n}",
                "item_id": f"item-{(n + step) % 40}",
                "event_id": f"event-{n}-{step}",
                "timestamp": _NOW_MS + n * 100 + step * 1_000_000,
            }
            for n in range(others)
        ]
        events.insert(
            others // 2,
            {
                "user_id": _USER,
                "item_id": f"item-{_CANARY}",
                "event_id": f"event-{_CANARY}-{step}",
                "timestamp": _NOW_MS + step * 1_000_000,
                "recommendation_id": f"recommendation-{_CANARY}",
                "properties": {"note": _CANARY},
            },
        )
        for begin in range(0, len(events), 500):
            part = events[begin : begin + 500]
            if (answer := _call(f"{url}/events", "POST", {"events": part}))["accepted"] != len(part):
                raise RuntimeError(f"not all events were accepted: {answer}")


def _ask(url: str, method: str, path: str = "") -> Any:
    return _call(f"{url}/users/{quote(_USER, safe='')}{path}", method)


def _told(url: str, others: int) -> list[Any]:
    """The histories of some other users."""
    return [_call(f"{url}/users/user-{n}/history", "GET") for n in range(0, others, max(1, others // 20))]


def _call(url: str, method: str, body: object = None) -> Any:
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, content, {"Content-Type": "application/json"}, method=method)  # noqa: S310
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        return json.load(answer)


def _in_values(client: Any) -> int:
    """Keys and values of the server that have it, as the server itself holds them."""
    wanted = _CANARY.encode()
    return sum(wanted in key or wanted in (client.dump(key) or b"") for key in client.scan_iter("*"))


def _in_slow_log(client: Any) -> int:
    """Commands there that have it among their keys and arguments."""
    return sum(_CANARY.encode() in slow["command"] for slow in client.slowlog_get(_SLOW))


def _in_files(folder: Path) -> int:
    return sum(_CANARY.encode() in file.read_bytes() for file in _files(folder))


def _in_parquet(folder: Path) -> int:
    """Rows that have it in any column, of every file there is."""
    found = 0
    for file in _files(folder):
        if file.suffix == ".parquet":
            rows = pl.read_parquet(file)
            texts = [pl.col(name).cast(pl.String).str.contains(_CANARY).fill_null(False) for name in rows.columns]
            found += rows.filter(pl.any_horizontal(texts)).height
    return found


def _past(path: Path) -> Path:
    """A file of past events, which has the canary too."""
    rows = [f"user-{n},item-{(n + step) % 40},{_NOW_MS - 10**9 + step * 10**6}" for n in range(60) for step in range(6)]
    rows += [f"{_USER},item-{_CANARY},{_NOW_MS - 10**9 + step}" for step in range(6)]
    path.write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    return path


def _in_training(*sources: Any, data: Path | None = None) -> int:
    """Interactions with the canary that a training on these logs, and on a file of past events, learns from."""
    logged = logged_interactions([str(source) for source in sources], ["interaction"], Console(quiet=True))
    parts = [] if logged.interactions is None else [logged.interactions]
    if data is not None:
        parts.append(without_erased(read_interactions([data]), logged.tombstones))
    return sum(part.frame.filter(pl.col("item_id").str.contains(_CANARY)).height for part in parts)


def _retrained(folder: Path, url: str, target: Path, data: Path) -> str:
    """What the next training said."""
    config = folder / "small.toml"
    config.write_text(_CONFIG)
    sources = [word for source in (url, target) for word in ("--events-from", str(source))]
    words = ["--config", str(config), "--data", str(data), *sources, "--output", str(folder / "trained")]
    return run(["-m", "training", "retrain", *words])


def _in_bundle(artifacts: Path) -> int:
    """Files of the next bundle, and ids of it, that have the canary."""
    registry = Registry(artifacts)
    (version,) = registry.versions()
    bundle = read_bundle(registry.folder(version))
    return _in_files(bundle.folder) + sum(_CANARY in item for item in bundle.ids)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _wait_until_rewritten(client: Any) -> None:
    """Until the server has written its files anew, which the archiver asked for."""
    for _ in range(int(_REWRITTEN_S / 0.05)):
        info = client.info("persistence")
        if not info["aof_rewrite_in_progress"] and not info["aof_rewrite_scheduled"]:
            return
        time.sleep(0.05)
    raise RuntimeError(f"the store did not write its files anew within {_REWRITTEN_S:.0f} s")
