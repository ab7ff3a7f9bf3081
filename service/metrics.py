"""What the service counts, in Prometheus's text format.

Observed where it happens, in routes and batches: a wrapper around every call would cost more than most calls do.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from starlette.requests import ClientDisconnect

from service.errors import Problem

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5)
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """All metrics, in a registry of their own, so that two services in one process do not share counts.

    totals: gives the text of all workers' counts, where this is one of several.
    """

    def __init__(self, totals: Callable[[], Awaitable[bytes]] | None = None) -> None:
        self.healthy: Callable[[], bool] = lambda: True
        self._totals = totals
        self.registry = CollectorRegistry()
        self._requests = Counter("recserve_requests", "Requests answered", ["route", "status"], registry=self.registry)
        self._latency = Histogram(
            "recserve_request_seconds", "Time to an answer", ["route"], buckets=_LATENCY_S, registry=self.registry
        )
        self._children: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        events = Counter("recserve_events", "Events by what became of them", ["outcome"], registry=self.registry)
        self.events_accepted = events.labels("accepted")
        self.events_duplicate = events.labels("duplicate")
        self.events_rejected = events.labels("rejected")
        self.batch_size = Histogram(
            "recserve_batch_size", "Requests ranked together", buckets=_BATCH, registry=self.registry
        )
        self.abandoned = Counter(
            "recserve_abandoned_requests", "Rankings not made because the client had left", registry=self.registry
        )
        self._waiting = Gauge("recserve_waiting_requests", "Requests in the queue", registry=self.registry)
        Gauge("recserve_workers", "Processes that answer", registry=self.registry).set(1)
        store_errors = Counter(
            "recserve_store_errors", "Calls of the sequence store that failed", ["call"], registry=self.registry
        )
        self.store_read_errors = store_errors.labels("read")
        self.store_write_errors = store_errors.labels("write")
        degraded = Counter(
            "recserve_degraded_answers", "Answers given without a part", ["missing"], registry=self.registry
        )
        self.degraded_store = degraded.labels("state_store")
        self.refused_versions = Counter(
            "recserve_refused_versions", "Champions that failed their test", registry=self.registry
        )
        self.ready = Gauge("recserve_ready", "1 when a tested bundle serves", registry=self.registry)
        self._model = Info("recserve_model", "The bundle that serves", registry=self.registry)

    def observed(self, route: str) -> "Observation":
        """Context manager that counts what happens inside it as one request to a route."""
        return Observation(self, route)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count one request, as `observed` does, where the route knows its status itself."""
        found = self._children.get((route, status))  # looking labels up costs more than counting
        if found is None:
            found = self._requests.labels(route, str(status)), self._latency.labels(route)
            self._children[route, status] = found
        requests, latency = found
        requests.inc()
        latency.observe(seconds)

    def model_loaded(self, version: str, model: str, provider: str) -> None:
        self._model.info({"version": version, "model": model, "provider": provider})
        self.ready.set(1)

    def batcher_started(self, waiting: Callable[[], int], healthy: Callable[[], bool]) -> None:
        """Look at the batcher whenever the metrics are read."""
        self._waiting.set_function(waiting)
        self.healthy = healthy

    async def text(self, log_fill: float | None) -> bytes:
        """Prometheus's text format, of all workers; the store's log, if it is known how full it is, counts once.

        Raises TimeoutError if the workers' counts do not come.
        """
        of_workers = generate_latest(self.registry) if self._totals is None else await self._totals()
        of_store = CollectorRegistry()
        if log_fill is not None:
            said = "What share of its room the fullest part of the event log takes"
            Gauge("recserve_log_fill_ratio", said, registry=of_store).set(log_fill)
        return of_workers + generate_latest(of_store)


class Observation:
    """One request: its time, and 200 or the status of the problem that ended it. Nothing where nobody was answered."""

    __slots__ = ("_metrics", "_route", "_started")

    def __init__(self, metrics: Metrics, route: str) -> None:
        self._metrics = metrics
        self._route = route

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, ClientDisconnect | asyncio.CancelledError):
            return
        status = 200 if error is None else error.status if isinstance(error, Problem) else 500
        self._metrics.answered(self._route, status, time.perf_counter() - self._started)
