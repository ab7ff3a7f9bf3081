"""The peers taking turns with the service: the same bundle, the same histories in the body, 64 connections.

Each runs with batching on and, in turn, with one worker and with two; what counts is the better of the two. One that
cannot run the bundle's encoder is measured with what it does instead, and left out of what counts. A peer that does not
run here is named with the reason, and the others are measured.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import servers
from bench.child import Child, ChildError
from bench.goals import Measure, figure
from bench.load import MAX_HISTORY, Job, Load, LoadGenerator, encode
from bench.peers.ranking import BUNDLE, K
from bench.peers.users import STORE, store_users
from bench.rounds import Figures
from bench.small import WORKERS, Traffic
from models.registry import Registry

FLOORS = ("no-op ASGI, one worker",)


@dataclass(frozen=True, slots=True)
class Peer:
    """How one is started (port and workers to be filled in), asked, and what it does for a request."""

    command: tuple[str, ...]
    ready: str  # path that answers when it can
    path: str
    body: Callable[[int, list[str]], object]  # of a user's number and history
    work: str
    encodes: bool = True  # the same bundle; if not, it stands beside the others for what it is


def _tensor(number: int, ids: list[str]) -> object:
    """A history as MLServer takes it: bench.bundle calls the item of row 7 item-7."""
    rows = [int(item.removeprefix("item-")) for item in ids]
    padded = rows + [0] * (MAX_HISTORY - len(rows))
    return {"inputs": [{"name": "history", "shape": [1, MAX_HISTORY], "datatype": "INT64", "data": padded}]}


_SAME = "ids to indices, encode by length buckets, rank without the history, ids and scores as JSON"
PEERS: Mapping[str, Peer] = {
    "LitServe": Peer(
        ("-m", "bench.peers.serve_litserve", "{port}", "{workers}"),
        "/health",
        "/recommend",
        lambda number, ids: {"history": ids},
        f"{_SAME}; FastAPI without models for body and answer, ZeroMQ to a process for the model, batches of up to 64",
    ),
    "MLServer": Peer(
        ("-m", "bench.peers.serve_mlserver", "{port}", "{workers}"),
        "/v2/models/recommend/ready",
        "/v2/models/recommend/infer",
        _tensor,
        "indices in and out as tensors of JSON, padded to 50; the same encoding and ranking, batches of up to 64",
    ),
    "BentoML": Peer(
        (
            *("-m", "bentoml", "serve", "bench.peers.serve_bentoml:Recommend"),
            *("--host", "127.0.0.1", "--port", "{port}"),
        ),
        "/readyz",
        "/recommend",
        lambda number, ids: {"histories": [ids]},
        f"{_SAME}; pydantic models of body and answer, adaptive batches of up to 64",
    ),
    "LibRecommender": Peer(
        ("-m", "bench.peers.serve_librecommender", "{port}", "{workers}"),
        "/ready",
        "/embed/recommend",
        lambda number, ids: {"user": f"user-{number}", "n_rec": K},
        "encodes nothing: reads a vector made beforehand and what was seen from Redis, searches 10 of 80 lists of a "
        "FAISS index, ids without scores as JSON, one request at a time",
        encodes=False,
    ),
}
OURS = f"{_SAME}; strict validation of body and headers, request id, metrics, adaptive batches of up to 64"


def peers_best(of: Figures) -> float:
    """The most that any peer with the same bundle answered. Raises KeyError if there is none."""
    rates = [value for name, value in of.items() if name.startswith("peer ") and PEERS[_peer_of(name)].encodes]
    if not rates:
        raise KeyError("peer")
    return max(rates)


def peers_p99(of: Figures) -> float:
    """The p99 of the peer that answered most."""
    best = peers_best(of)
    name = next(name for name, value in of.items() if name.startswith("peer ") and value == best)
    return of[f"p99 of {name}"]


def _peer_of(figure_name: str) -> str:
    return figure_name.removeprefix("peer ").partition(",")[0]


MEASURES = (
    *(
        measure
        for name in PEERS
        for called in WORKERS.values()
        for measure in (
            figure(f"peer {name}, {called}", "requests/s"),
            figure(f"p99 of peer {name}, {called}", "ms", times=1e3),
        )
    ),
    figure("service, one worker", "requests/s"),
    figure("p99 of service, one worker", "ms", times=1e3),
    figure("service, two workers", "requests/s"),
    figure("p99 of service, two workers", "ms", times=1e3),
    Measure("service with one worker / the best peer", lambda of: of["service, one worker"] / peers_best(of), goal=4.5),
    Measure("service with two workers / the best peer", lambda of: of["service, two workers"] / peers_best(of), goal=6),
    Measure(
        "p99 of the best peer / p99 of the service, one worker, both saturated",
        lambda of: peers_p99(of) / of["p99 of service, one worker"],
        goal=5,
    ),
)


class Peers:
    """As small.Small; `missing` fills with what does not run here, and why."""

    def __init__(
        self, load: Child, python: Path, artifacts: Path, store_url: str, asked: Traffic, *, seconds: float
    ) -> None:
        self._python = python.absolute()
        self._artifacts, self._store_url, self._asked, self._seconds = artifacts, store_url, asked, seconds
        self._bundle = Registry(artifacts).champion().absolute()
        self._load = load
        self._counts = (1, 2) if servers.has_workers() else (1,)
        self.missing: dict[str, str] = {}
        store_users(self._bundle, store_url, asked.item_ids)

    def round(self, say: Callable[[str], None]) -> Figures:
        """Every figure once. `say` is told what is measured."""
        found: dict[str, float] = {}
        with servers.yardstick("raw", self._bundle, self._store_url) as nothing:
            found[FLOORS[0]] = self._measure(nothing, "/recommend", self._asked.given).per_second
        for workers in self._counts:
            say(f"the service, {WORKERS[workers]}")
            with servers.service(self._artifacts, self._store_url, workers=workers) as server:
                load = self._measure(server, "/recommend", self._asked.given)
            found |= {f"service, {WORKERS[workers]}": load.per_second}
            found |= {f"p99 of service, {WORKERS[workers]}": load.p99_s}
        for name, peer in PEERS.items():
            for workers, called in WORKERS.items():
                both = f"{name}, {called}"
                if both in self.missing:
                    continue
                say(both)
                try:
                    load = self._peer(peer, workers)
                except (servers.ServerError, ChildError) as error:
                    self.missing[both] = str(error).strip().splitlines()[-1]
                else:
                    found |= {f"peer {both}": load.per_second, f"p99 of peer {both}": load.p99_s}
        return found

    def _peer(self, peer: Peer, workers: int) -> Load:
        port = servers.free_port()
        command = [str(self._python), *(part.format(port=port, workers=workers) for part in peer.command)]
        environment = {
            BUNDLE: str(self._bundle),
            STORE: self._store_url,
            "BENCH_WORKERS": str(workers),
            "BENTOML_DO_NOT_TRACK": "True",
        }
        bodies = encode([peer.body(number, ids) for number, ids in enumerate(self._asked.item_ids)])
        with servers.running(command, port, peer.ready, environment=environment) as server:
            self._measure(server, peer.path, bodies[:64])  # processes of its own start with the first requests
            return self._measure(server, peer.path, bodies)

    def _measure(self, server: servers.Server, path: str, bodies: list[bytes]) -> Load:
        load: Load = self._load.call("measure", Job(server.addresses, path, bodies, self._seconds))
        return load


def works() -> list[str]:
    """What each does for a request, in sentences: a part that one leaves out is an advantage."""
    return [
        f"work a request, service: {OURS}",
        *(f"work a request, {name}: {peer.work}" for name, peer in PEERS.items()),
    ]


@contextmanager
def peers(python: Path, artifacts: Path, store_url: str, asked: Traffic, seconds: float) -> Iterator[Peers]:
    """Everything started and, at the end, stopped. python: an interpreter that has the peers."""
    with Child(LoadGenerator) as load:
        yield Peers(load, python, artifacts, store_url, asked, seconds=seconds)
