"""The application: everything it is made of, created in order and closed in reverse."""

import asyncio
import gc
import logging
import math
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline
from pydantic.json_schema import models_json_schema
from starlette import routing
from starlette.types import ASGIApp

from models import VERSION
from models.device import cpu_quota
from models.eventlog import PARTITIONS
from service import durability, errors, filters, users, versions
from service.auth import Keys
from service.batcher import Batcher
from service.engine import Engine, Ranking
from service.erasure import Erasure
from service.exchange import Route
from service.hot import HotRoutes
from service.intake import Intake
from service.items import ItemStore, LiveItems
from service.limits import Limits
from service.meetings import Meetings
from service.metrics import Metrics
from service.page import console
from service.recommender import Likeness, Recommendation, Recommender, Wish
from service.requests import RequestScope
from service.routes import Services, router
from service.schemas import (
    EventRequest,
    EventsRequest,
    ItemsRequest,
    ProblemResponse,
    RecommendBatchRequest,
    RecommendRequest,
)
from service.scoring import ScoringThread
from service.sequences import SequenceStore, StoreSettings
from service.settings import BadSettings, Settings
from service.slot import Slot

logger = logging.getLogger(__name__)

_ASIDE = 4  # requests with filters, candidates or explanations that are ranked together
_COLLECT_S = 60.0
_RARELY = 10_000  # times as long as it takes
_ALIKE = 100  # calls for similar items that wait: among a million, each takes a tenth of a second


@dataclass(frozen=True, slots=True)
class Application:
    """The framework's application, and by path what is answered below it."""

    framed: ASGIApp
    hot: Mapping[bytes, Route]


@asynccontextmanager
async def running(settings: Settings, store_url: str, metrics: Metrics | None = None) -> AsyncIterator[Application]:
    """The application with everything behind it open. Run it without a lifespan: this is it.

    Raises BadSettings for a URL that is none, BundleError if there is a champion and it must not serve, DeviceError if
    the device is not there; at the end ScoringStuck, when all else is closed, if a ranking does not end.
    """
    metrics = metrics or Metrics()

    def on_load(engine: Engine) -> None:
        manifest = engine.bundle.manifest
        metrics.model_loaded(engine.version, manifest.model, engine.provider)
        items.catch_up(engine)
        _freeze()
        if manifest.length > settings.history_length:
            logger.warning(
                "%s reads %d events and %d are kept for each user; raise RECSERVE_HISTORY_LENGTH",
                *(manifest.version, manifest.length, settings.history_length),
            )

    try:
        store = SequenceStore.connect(store_url, _store_settings(settings))
    except ValueError as error:
        raise BadSettings(f"redis is not the URL of a Redis server: {error}") from error
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(store)
        item_store = ItemStore(store.connection)
        items = LiveItems(item_store, lambda: slot.resident().values(), poll_s=settings.poll_s)
        slot = Slot(
            settings.artifacts,
            device=settings.device,
            float16=settings.float16,
            threads=settings.threads,
            cpus=max(1, cpu_quota() // settings.workers),
            poll_s=settings.poll_s,
            max_batch=settings.max_batch,
            cold_share=settings.cold_share,
            prepare=items.prepare,  # placing new items takes a while where the catalogue is large
            on_load=on_load,
            on_refuse=lambda refused: metrics.refused_versions.inc(),
        )
        await stack.enter_async_context(slot)
        await stack.enter_async_context(items)
        try:
            await stack.enter_async_context(
                durability.checked(store.connection, settings.durability, settings.replicas)
            )
        except durability.NotDurable as error:
            raise BadSettings(str(error)) from error
        batcher, aside, similar = await stack.enter_async_context(_batchers(settings, store, slot, metrics))
        meetings = Meetings(store, item_store, items, lambda: slot.engine)
        if settings.cold_share:
            await stack.enter_async_context(meetings)
        intake = Intake(
            store,
            lambda: slot.engine,
            metrics,
            max_waiting=settings.max_waiting,
            on_unknown=meetings.stored if settings.cold_share else lambda events: None,
        )
        await stack.enter_async_context(intake)
        limits = Limits(store.connection, workers=settings.workers)
        keys = await stack.enter_async_context(Keys(settings, on_change=limits.keep))
        erasure = Erasure(
            store.connection, log_length=store.settings.log_max_events, log_min_s=store.settings.log_min_s
        )
        services = Services(keys, limits, slot, batcher, aside, similar, intake, items, store, erasure, metrics)
        application = Application(create_app(services), HotRoutes(services).routes)
        _freeze()
        collecting = asyncio.create_task(_collect(), name="collect")
        stack.callback(collecting.cancel)
        yield application


@asynccontextmanager
async def _batchers(
    settings: Settings, store: SequenceStore, slot: Slot, metrics: Metrics
) -> AsyncIterator[tuple[Batcher[Wish, Recommendation], Batcher[Wish, Recommendation], Batcher[Likeness, Ranking]]]:
    """Those of plain wishes, of others, and of calls for similar items, over the one thread that ranks for all."""
    async with ScoringThread() as scoring:
        recommender = Recommender(store, lambda: slot.engine, scoring, metrics)
        recommending = partial(
            Batcher[Wish, Recommendation],
            recommender.recommend,
            max_waiting=settings.max_waiting,
            stuck_s=settings.stuck_s,
            on_batch=metrics.batch_size.observe,
            on_abandoned=metrics.abandoned.inc,
        )
        similar = Batcher(
            recommender.similar,
            max_batch=1,
            max_waiting=min(_ALIKE, settings.max_waiting),
            stuck_s=settings.stuck_s,
            on_abandoned=metrics.abandoned.inc,
        )
        async with (
            recommending(max_batch=settings.max_batch) as batcher,
            # What takes longer, and comes rarely, waits in a queue of its own and a few at a time, so that plain
            # requests wait behind a few of these at most.
            recommending(max_batch=_ASIDE, weight=recommender.weight) as aside,
            similar,
        ):
            all_three = batcher, aside, similar
            metrics.batcher_started(
                lambda: sum(one.waiting for one in all_three),
                lambda: scoring.alive and all(one.alive for one in all_three),
            )
            yield all_three


def _freeze() -> None:
    """Let no collection look again at what is there: it lives as long as the process, or as an engine.

    An engine and its bundle go with the last reference to them, frozen or not. Attributes that are lists, of 100,000
    items, kept everything else waiting for 7 ms at every collection.
    """
    gc.collect()
    gc.freeze()


async def _collect() -> None:
    """Collect everything from time to time: as a rule a fraction of a millisecond, and a ten-thousandth of all at most.

    With so little that is not frozen no full collection would come by itself, and only that gives up the interpreter's
    free lists. What lies on these keeps pages from being used again: memory crept up by 3 MB an hour under load.
    """
    pause_s = _COLLECT_S
    while True:
        await asyncio.sleep(pause_s)
        began = time.thread_time()  # what else runs on the machine is no reason to collect more rarely
        gc.collect()
        pause_s = max(_COLLECT_S, _RARELY * (time.thread_time() - began))  # many items were put since the start


def _store_settings(settings: Settings) -> StoreSettings:
    return StoreSettings(
        history_length=settings.history_length,
        history_ttl_s=math.ceil(settings.history_days * 86_400),
        sequence_types=settings.sequence_types,
        log_max_events=math.ceil(settings.log_max_events / PARTITIONS),
        replicas=settings.replicas if settings.durability == "replicated" else 0,
        log_min_s=settings.log_min_days * 86_400,
    )


def create_app(services: Services) -> FastAPI:
    """Routes, errors and documentation over open services."""
    app = FastAPIOffline(
        title="recserve",
        version=VERSION,
        description="Next-item recommendations from an interaction log: post events, ask for recommendations.",
        docs_url="/docs",
        redoc_url=None,
        redirect_slashes=False,  # a path that does not exist is a problem, and a redirected POST a surprise
    )
    app.state.services = services
    app.include_router(router)
    app.include_router(versions.router)
    app.include_router(users.router)
    app.router.routes.append(routing.Route("/", console(), methods=["GET"], include_in_schema=False))
    app.add_middleware(RequestScope)
    errors.install(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The generated description, with the schemas of bodies that the routes parse themselves."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        parsed = (EventRequest, EventsRequest, RecommendRequest, RecommendBatchRequest, ItemsRequest, ProblemResponse)
        own = [(model, "validation") for model in parsed]
        _, definitions = models_json_schema(own, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
        components = schema.setdefault("components", {})
        components.setdefault("schemas", {}).update(definitions["$defs"], Filter=filters.schema())
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        app.openapi_schema = schema
    return app.openapi_schema
