"""The use case: history to query to ranking, and what happens when a part is down.

It answers whole batches, so that all stored histories come in one round trip, and it takes the live engine once for
each, so that a swap never falls inside an answer. Reads degrade: without the store it ranks from what the request
brought, and without any history it gives what is popular.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from service.engine import Engine, Query, Ranking
from service.metrics import Metrics
from service.sequences import SequenceStore, StoreUnavailable

logger = logging.getLogger(__name__)

_STORE_PAUSE_S = 0.5  # after a failed read: those who wait behind it get their answer without waiting for another
_NOTHING: NDArray[np.int64] = np.empty(0, np.int64)


class NoModel(Exception):  # noqa: N818 - a condition, as in 503
    """There is no bundle to rank with."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a caller asks for. user_id is given where the stored history is wanted; `history` goes behind it."""

    user_id: str | None
    history: list[str]
    k: int
    exclude_seen: bool
    exclude_item_ids: list[str]


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Items best first, by which model, and how they came about."""

    model_version: str
    history_length: int
    source: str  # "model" or "popular"
    scoring: str  # "exact" or "approximate"
    degraded: bool  # the stored history was wanted and could not be read
    items: list[tuple[str, float]]


class Recommender:
    """Answers batches of wishes with whatever engine is live."""

    def __init__(
        self, store: SequenceStore, live: Callable[[], Engine | None], executor: Executor, metrics: Metrics
    ) -> None:
        self._store = store
        self._live = live
        self._executor = executor
        self._metrics = metrics
        self._store_pause_until = 0.0

    async def recommend(self, wishes: Sequence[Wish]) -> list[Recommendation]:
        """One recommendation for each wish, all from one bundle. Raises NoModel if there is none."""
        engine = self._live()
        if engine is None:
            raise NoModel
        users = sorted({wish.user_id for wish in wishes if wish.user_id is not None})
        stored = await self._stored(users, rated=engine.reads_values)
        histories = [_whole_history(wish, stored) for wish in wishes]
        queries = [_query(engine, wish, history) for wish, history in zip(wishes, histories, strict=True)]
        if engine.reads_values:
            queries = [
                _rated(engine, query, wish, history, stored)
                for query, wish, history in zip(queries, wishes, histories, strict=True)
            ]
        rankings: list[Ranking | None] = [None] * len(queries)
        usable = [index for index, query in enumerate(queries) if len(query.sequence)]
        if usable:
            asked = [queries[index] for index in usable]
            if engine.brief_for(asked):
                ranked = engine.rank(asked)
            else:
                ranked = await asyncio.get_running_loop().run_in_executor(self._executor, engine.rank, asked)
            for index, ranking in zip(usable, ranked, strict=True):
                rankings[index] = ranking
        ids = engine.bundle.ids
        answers = []
        for wish, history, query, by_model in zip(wishes, histories, queries, rankings, strict=True):
            ranking = by_model or engine.popular(query.excluded, query.k)
            answers.append(
                Recommendation(
                    model_version=engine.version,
                    history_length=len(history),
                    source="model" if by_model else "popular",
                    scoring=engine.scoring if by_model else "exact",
                    degraded=stored is None and wish.user_id is not None,
                    items=[(ids[index], score) for index, score in zip(ranking.indices, ranking.scores, strict=True)],
                )
            )
        self._metrics.degraded_store.inc(sum(answer.degraded for answer in answers))
        return answers

    async def _stored(self, user_ids: list[str], *, rated: bool) -> "_Stored | None":
        """Histories by user, with values if rated, or None while the store does not answer."""
        if not user_ids:
            return _Stored({}, {})
        if time.monotonic() < self._store_pause_until:
            return None
        try:
            if not rated:  # the values are not even unpacked
                return _Stored(dict(zip(user_ids, await self._store.histories(user_ids), strict=True)), {})
            found = dict(zip(user_ids, await self._store.rated_histories(user_ids), strict=True))
        except StoreUnavailable as error:
            self._store_pause_until = time.monotonic() + _STORE_PAUSE_S
            self._metrics.store_read_errors.inc()
            logger.warning("answering without stored histories: %s", error)
            return None
        items = {user_id: ids for user_id, (ids, _) in found.items()}
        return _Stored(items, {user_id: values for user_id, (_, values) in found.items()})


@dataclass(frozen=True, slots=True)
class _Stored:
    """Histories by user, and the values of their events where they were asked for."""

    items: dict[str, list[str]]
    values: dict[str, list[float]]


def _whole_history(wish: Wish, stored: _Stored | None) -> list[str]:
    known = stored.items.get(wish.user_id, []) if stored and wish.user_id is not None else []
    return known + wish.history


def _rated(engine: Engine, query: Query, wish: Wish, history: list[str], stored: _Stored | None) -> Query:
    """The query with the values of its events; those of a history in the request have none."""
    known = stored.values.get(wish.user_id, []) if stored and wish.user_id is not None else []
    beside = known + [math.nan] * (len(history) - len(known))
    index_of = engine.bundle.index_of
    values = [value for item, value in zip(history, beside, strict=True) if item in index_of]
    return replace(query, values=np.array(values, np.float32))


def _query(engine: Engine, wish: Wish, history: list[str]) -> Query:
    """Ids to indices. All of the history is left out of the answer, not only what the encoder has room for."""
    sequence = engine.bundle.indices(history)
    excluded = engine.bundle.indices(wish.exclude_item_ids) if wish.exclude_item_ids else _NOTHING
    if wish.exclude_seen:
        excluded = np.concatenate([excluded, sequence])
    return Query(sequence, excluded, wish.k)
