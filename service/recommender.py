"""The use case: history to query to ranking, and what happens when a part is down.

It answers whole batches, so that all stored histories come in one round trip, and it takes the live engine once for
each, so that a swap never falls inside an answer. Reads degrade: without the store it ranks from what the request
brought, and without any history it gives what is popular.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from service.connection import StillUnavailable, StoreUnavailable
from service.engine import Engine, Query, Ranking, Reason
from service.filters import Filter, UnknownAttribute
from service.logs import Seldom
from service.metrics import Metrics
from service.sequences import SequenceStore

logger = logging.getLogger(__name__)

_NOTHING: NDArray[np.int64] = np.empty(0, np.int64)
_LEFT_OUT = 50  # events of an explanation that count as one query


class NoModel(Exception):  # noqa: N818 - a condition, as in 503
    """There is no bundle to rank with."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a caller asks for. user_id is given where the stored history is wanted; `history` goes behind it.

    wanted and candidates bound what may come back; pinned is the engine of a version that was asked for.
    """

    user_id: str | None
    history: list[str]
    k: int
    exclude_seen: bool
    exclude_item_ids: list[str]
    wanted: Filter | None = None
    candidates: list[str] | None = None
    explain: bool = False
    pinned: Engine | None = None

    @property
    def plain(self) -> bool:
        """Whether it asks for nothing but a ranking of the whole catalogue."""
        return self.wanted is None and self.candidates is None and not self.explain


@dataclass(frozen=True, slots=True)
class Likeness:
    """The k items most like one, asked of an engine by the index of the item."""

    engine: Engine
    index: int
    k: int


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Items best first, by which model, and how they came about.

    cold: the places of items that are newer than the model. because: beside the items, which of the history moved each,
    with the effect on its score; None if not asked for.
    """

    model_version: str
    history_length: int
    source: str  # "model" or "popular"
    degraded: bool  # the stored history was wanted and could not be read
    items: list[tuple[str, float]]
    cold: list[int]
    because: list[list[tuple[str, float]]] | None = None


Answer = Recommendation | Exception


class Recommender:
    """Answers batches of wishes with whatever engine is live."""

    def __init__(
        self, store: SequenceStore, live: Callable[[], Engine | None], executor: Executor, metrics: Metrics
    ) -> None:
        self._store = store
        self._live = live
        self._executor = executor
        self._metrics = metrics
        self._log = Seldom(logger)

    async def recommend(self, wishes: Sequence[Wish]) -> list[Answer]:
        """A recommendation for each wish, or what kept it from one: NoModel if there is none.

        All that pin no version are from one bundle.
        """
        live = self._live()
        by_engine: dict[Engine, list[int]] = {}
        for number, wish in enumerate(wishes):
            engine = wish.pinned or live
            if engine is not None:
                by_engine.setdefault(engine, []).append(number)
        users = sorted({wish.user_id for wish in wishes if wish.user_id is not None})
        stored = await self._stored(users, rated=any(engine.reads_values for engine in by_engine))
        answers: list[Answer] = [NoModel()] * len(wishes)
        for engine, numbers in by_engine.items():
            try:
                found = await self._by_one(engine, [wishes[number] for number in numbers], stored)
            except Exception as error:  # it is that engine's, and not those of others in the batch
                logger.exception("%s failed a batch of %d", engine.version, len(numbers))
                found = [error] * len(numbers)
            for number, answer in zip(numbers, found, strict=True):
                answers[number] = answer
        degraded = sum(isinstance(answer, Recommendation) and answer.degraded for answer in answers)
        self._metrics.degraded_store.inc(degraded)
        return answers

    def weight(self, wish: Wish) -> int:
        """Queries that a wish counts as in a batch: an explanation ranks without each event that the model reads."""
        engine = wish.pinned or self._live()
        if engine is None or not wish.explain:
            return 1
        most = engine.bundle.manifest.length
        events = most if wish.user_id is not None else min(most, len(wish.history))
        return max(1, math.ceil(events / _LEFT_OUT))

    async def similar(self, asked: Sequence[Likeness]) -> list[Ranking]:
        """What lies nearest each of some items."""
        loop = asyncio.get_running_loop()
        return [await loop.run_in_executor(self._executor, one.engine.similar, one.index, one.k) for one in asked]

    async def _by_one(self, engine: Engine, wishes: Sequence[Wish], stored: "_Stored | None") -> list[Answer]:
        """Answers of one engine."""
        histories = [_whole_history(wish, stored) for wish in wishes]
        queries = [_query(engine, wish, history) for wish, history in zip(wishes, histories, strict=True)]
        if engine.reads_values:
            queries = [
                _rated(engine, query, wish, history, stored)
                for query, wish, history in zip(queries, wishes, histories, strict=True)
            ]
        if engine.brief_for(queries) and all(wish.plain for wish in wishes):
            found = _ranked(engine, wishes, queries)
        else:
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self._executor, _ranked, engine, wishes, queries)
        return [
            ranked
            if isinstance(ranked, Exception)
            else _told(engine, history, ranked, degraded=stored is None and wish.user_id is not None)
            for wish, history, ranked in zip(wishes, histories, found, strict=True)
        ]

    async def _stored(self, user_ids: list[str], *, rated: bool) -> "_Stored | None":
        """Histories by user, with values if rated, or None while the store does not answer."""
        if not user_ids:
            return _Stored({}, {})
        try:
            if not rated:  # the values are not even unpacked
                return _Stored(dict(zip(user_ids, await self._store.histories(user_ids), strict=True)), {})
            found = dict(zip(user_ids, await self._store.rated_histories(user_ids), strict=True))
        except StillUnavailable:
            return None
        except StoreUnavailable as error:
            self._metrics.store_read_errors.inc()
            self._log.log(error.level, "answering without stored histories: %s", error)
            return None
        items = {user_id: ids for user_id, (ids, _) in found.items()}
        return _Stored(items, {user_id: values for user_id, (_, values) in found.items()})


@dataclass(frozen=True, slots=True)
class _Stored:
    """Histories by user, and the values of their events where they were asked for."""

    items: dict[str, list[str]]
    values: dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class _Ranked:
    """A query with its ranking; reasons only where they were asked for."""

    query: Query
    by_model: bool
    ranking: Ranking
    reasons: list[list[Reason]] | None


def _ranked(engine: Engine, wishes: Sequence[Wish], queries: Sequence[Query]) -> list[_Ranked | Exception]:
    """A ranking of each query, popular items where there is no history; or what is wrong with its filter."""
    limited = [_limited(engine, wish, query) for wish, query in zip(wishes, queries, strict=True)]
    rankings = iter(engine.rank([one for one in limited if isinstance(one, Query) and len(one.sequence)]))
    return [
        one if isinstance(one, Exception) else _one(engine, one, rankings, explain=wish.explain)
        for wish, one in zip(wishes, limited, strict=True)
    ]


def _limited(engine: Engine, wish: Wish, query: Query) -> Query | UnknownAttribute:
    """The query for what the wish leaves of the catalogue and of the cold items, or what is wrong with its filter."""
    candidates = None if wish.candidates is None else engine.bundle.indices(wish.candidates)
    try:
        among = engine.catalogue.selection(wish.wanted, candidates)
    except UnknownAttribute as error:
        return error
    cold = query.cold
    if cold is not None and not (wish.wanted is None and wish.candidates is None):
        cold = cold.among(wish.wanted, wish.candidates)
    return query if among is None and cold is query.cold else replace(query, among=among, cold=cold)


def _one(engine: Engine, query: Query, rankings: Iterator[Ranking], *, explain: bool) -> _Ranked:
    """A query with the next of the rankings if it has a history, else with what is popular."""
    by_model = len(query.sequence) > 0
    ranking = next(rankings) if by_model else engine.popular(query)
    return _Ranked(query, by_model, ranking, engine.reasons(query, ranking) if explain else None)


def _told(engine: Engine, history: list[str], ranked: _Ranked, *, degraded: bool) -> Recommendation:
    """Indices to ids."""
    ids, ranking, sequence = engine.bundle.ids, ranked.ranking, ranked.query.sequence
    cold = ranked.query.cold
    new = [] if cold is None else cold.tail.ids
    because = None
    if ranked.reasons is not None:
        because = [[(ids[sequence[reason.place]], reason.effect) for reason in reasons] for reasons in ranked.reasons]
    return Recommendation(
        model_version=engine.version,
        history_length=len(history),
        source="model" if ranked.by_model else "popular",
        degraded=degraded,
        items=[
            (ids[index] if index > 0 else new[-index], score)
            for index, score in zip(ranking.indices, ranking.scores, strict=True)
        ],
        cold=[] if cold is None else [place for place, index in enumerate(ranking.indices) if index < 0],
        because=because,
    )


def _whole_history(wish: Wish, stored: _Stored | None) -> list[str]:
    known = stored.items.get(wish.user_id, []) if stored and wish.user_id is not None else []
    return known + wish.history


def _rated(engine: Engine, query: Query, wish: Wish, history: list[str], stored: _Stored | None) -> Query:
    """The query with the values of its events; those of a history in the request have none."""
    known = stored.values.get(wish.user_id, []) if stored and wish.user_id is not None else []
    beside = known + [math.nan] * (len(history) - len(known))
    there = engine.bundle.known(history)
    values = [value for is_known, value in zip(there, beside, strict=True) if is_known]
    return replace(query, values=np.array(values, np.float32))


def _query(engine: Engine, wish: Wish, history: list[str]) -> Query:
    """Ids to indices. All of the history is left out of the answer, not only what the encoder has room for."""
    sequence = engine.bundle.indices(history)
    excluded = sequence if wish.exclude_seen else _NOTHING
    if wish.exclude_item_ids:
        excluded = np.concatenate([excluded, engine.bundle.indices(wish.exclude_item_ids)])
    if engine.catalogue.cold.tail is None:
        return Query(sequence, excluded, wish.k)
    unwanted = wish.exclude_item_ids + (history if wish.exclude_seen else [])
    return Query(sequence, excluded, wish.k, cold=engine.catalogue.cold.choice(wish.k, unwanted))
