"""Bundles small enough to work out by hand, and the service on a real socket, shared by all tests."""

import asyncio
import contextlib
import gc
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

from reliability.bundle import last_item_encoder
from tests.service.sockets import PLAIN

# A machine that is busy with something else makes no test wrong.
hypothesis.settings.register_profile("untimed", parent=hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("untimed")


def succession(items: int, step: int) -> np.ndarray:
    """Score of every item after every item, (items + 1, items): after i come i, i + step, ... in a circle.

    An item scores the number of items less its steps from i, so all scores of a row differ.
    """
    position = np.arange(1, items + 1)
    table = np.zeros((items + 1, items))
    table[1:] = items - (step * (position[None, :] - position[:, None])) % items
    return table


def write_tiny(
    artifacts: Path,
    version: str,
    table: np.ndarray,
    *,
    created: str,
    golden_table: np.ndarray | None = None,
    encoder: bytes | None = None,
    neighbours: Any = None,
    attributes: dict[str, list[Any]] | None = None,
    test: dict[str, float] | None = None,
    matrix: np.ndarray | None = None,
    scan: str | None = None,
    learned: Any = None,
) -> Path:
    """Bundle of items i1, i2, ... in which item j scores `table[i, j - 1]` after item i; i1 is the most popular.

    It is certified with the answers of `golden_table`, by default the same, and of `neighbours` (models.neighbours);
    `attributes` have a value for each of its rows, padding first, `learned` (models.cold) a vector for some values;
    `test` are its figures. With an item matrix (rows, dim) the table (rows, dim) holds vectors instead of scores. scan:
    "float32" or "int8", what a bundle reads that scans its catalogue.
    """
    from models.bundle import Golden
    from models.draft import Content, write_bundle
    from models.manifest import DataWindow, Manifest, Parity, Scoring
    from models.quantised import Quantised
    from training.ranker import build_ranker, build_scan, build_shortlist

    if matrix is None:
        matrix = np.eye(table.shape[1] + 1, dtype=np.float32)[:, 1:]  # (rows, items): scores are the vector itself
    rows = len(matrix)
    items = rows - 1
    vectors = (table if golden_table is None else golden_table)[[2, 2, 0]].astype(np.float32)
    scores = (vectors @ matrix.T)[:, 1:]
    if neighbours is not None:
        scores += neighbours.bonus([np.array([1, 2]), np.array([2]), np.array([], np.int64)])[:, 1:]
    order = np.argsort(-scores, axis=1, kind="stable")[:, :2]
    manifest = Manifest(
        version=version,
        created=created,
        model="last_item",
        items=items,
        dim=table.shape[1],
        length=4,
        config={},
        seed=0,
        data=DataWindow(files={}, users=1, items=items, interactions=10),
        metrics={"test": test or {"ndcg@10": 0.5}},
        parity=Parity(cases=1, largest_difference=0.0, top_k_agreed=True),
        scoring=Scoring(kind="int8" if scan == "int8" else "float32"),
    )
    golden = Golden(
        sequences=np.array([[1, 2], [2, 0], [0, 0]]),
        lengths=np.array([2, 1, 0]),
        excluded=np.zeros((3, 1), np.int64),
        vectors=vectors,
        indices=order + 1,
        scores=np.take_along_axis(scores, order, 1),
    )
    content = Content(
        manifest=manifest,
        encoder=encoder or last_item_encoder(table),
        ranker=build_ranker(neighbours=neighbours.width if neighbours is not None else 0),
        items=matrix,
        ids=["", *(f"i{row}" for row in range(1, rows))],
        popularity=np.array([0, *range(items, 0, -1)], np.float32),
        attributes=attributes,
        golden=golden,
        learned=learned,
        neighbours=neighbours,
        scan=None if scan is None else build_scan(quantised=scan == "int8"),
        quantised=Quantised.of(matrix) if scan == "int8" else None,
        shortlist=build_shortlist(),
    )
    return write_bundle(artifacts, content)


_freeze = gc.freeze


@pytest.fixture(autouse=True)
def same_signals() -> Iterator[None]:
    """What a program does when it is ended from outside is its own affair, and not that of the tests after it."""
    numbers = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def _only_files_freeze() -> Iterator[None]:
    """Turns gc.freeze off in this process, whose heap is that of all tests and their libraries.

    A service freezes all that is there when it has started, which here would be what tests have made. The services that
    are processes of their own do freeze.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "freeze", lambda: None)
        yield


@pytest.fixture(scope="module", autouse=True)
def _imports_are_frozen(_only_files_freeze: None) -> None:
    """What is alive before a file's first test is looked at by no collection from here on."""
    gc.collect()
    _freeze()


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    return tmp_path / "artifacts"


@pytest.fixture
def make_bundle(artifacts: Path) -> Callable[..., Path]:
    """Write a bundle of `items` items in steps of `step` (or with a score table of one's own) and promote it.

    `details` are those of write_tiny.
    """
    from models.registry import Registry

    def make(
        version: str,
        *,
        items: int = 12,
        step: int = 1,
        table: np.ndarray | None = None,
        promote: bool = True,
        **details: Any,
    ) -> Path:
        registry = Registry(artifacts)
        created = f"2026-01-01T00:00:{len(registry.versions()):02d}Z"
        scores = succession(items, step) if table is None else table
        folder = write_tiny(artifacts, version, scores, created=created, **details)
        if promote:
            registry.promote(version)
        return folder

    return make


@contextlib.contextmanager
def service_on_a_thread(settings: Any, store_url: str) -> Iterator[str]:
    """URL of a service with its own event loop and socket, as `python -m service serve` runs it."""
    import uvloop

    from service.app import running
    from service.metrics import Metrics
    from service.server import Server

    started = threading.Event()
    holder: dict[str, Any] = {}

    async def serve() -> None:
        metrics = Metrics()
        async with running(settings, store_url, metrics) as app:
            listener = socket.create_server(("127.0.0.1", 0))
            holder["port"] = listener.getsockname()[1]
            holder["server"] = server = Server(app, settings, metrics, started.set)
            await server.serve(sockets=[listener])

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(serve())
        except Exception as error:  # noqa: BLE001 - raised again on the test's thread
            holder["error"] = error
        finally:
            started.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    started.wait(20)
    if "error" in holder:
        raise holder["error"]
    try:
        yield f"http://127.0.0.1:{holder['port']}"
    finally:
        holder["server"].stop()
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def _shared_store_url() -> Iterator[str]:
    from service.embedded import EmbeddedStore

    # pytest's own temporary folders have paths too long for a socket beside the data.
    with tempfile.TemporaryDirectory() as folder, EmbeddedStore(Path(folder)) as store:
        yield store.url


@pytest.fixture
def store_url(_shared_store_url: str) -> str:
    """URL of a real server, empty."""
    import redis

    with redis.Redis.from_url(_shared_store_url) as client:
        client.flushall()
    return _shared_store_url


@pytest.fixture(scope="session")
def _shared_service_url(_shared_store_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from models.registry import Registry
    from service.settings import Settings

    folder = tmp_path_factory.mktemp("shared-artifacts")
    write_tiny(folder, "v1", succession(12, 1), created="2026-01-01T00:00:00Z")
    Registry(folder).promote("v1")
    settings = Settings(artifacts=folder, redis=_shared_store_url, device="cpu")
    with service_on_a_thread(settings, _shared_store_url) as url:
        yield url


@pytest.fixture
def client(_shared_service_url: str, store_url: str) -> Iterator[Any]:
    """httpx.Client of a service with 12 items in steps of 1 and an empty store; only for tests that promote nothing."""
    import httpx

    with httpx.Client(base_url=_shared_service_url, timeout=10, verify=PLAIN) as client:
        yield client


@pytest.fixture
def start_service(artifacts: Path) -> Iterator[Callable[..., Any]]:
    """Start a service: `start_service(store_url, **settings)` gives an httpx.Client for it."""
    import httpx

    from service.settings import Settings

    with contextlib.ExitStack() as stack:

        def start(store_url: str, **options: Any) -> httpx.Client:
            settings = Settings(artifacts=artifacts, redis=store_url, device="cpu", **options)
            url = stack.enter_context(service_on_a_thread(settings, store_url))
            return stack.enter_context(httpx.Client(base_url=url, timeout=10, verify=PLAIN))

        yield start
