"""The engine, against rankings worked out by hand and by a slow sort."""

import gc
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from models.bundle import read_bundle
from models.neighbours import Neighbours
from models.runtime import Runtime
from service.attributes import ItemState
from service.engine import Engine, EngineError, Query


def engine_over(folder: Path) -> Engine:
    return Engine(Runtime(read_bundle(folder), device="cpu", threads=1))


def query(sequence: list[int], *excluded: int, k: int) -> Query:
    return Query(np.array(sequence, np.int64), np.array(excluded, np.int64), k)


def test_each_query_gets_its_own_k_and_exclusions(make_bundle: Callable[..., Path]) -> None:
    engine = engine_over(make_bundle("v1"))
    found = engine.rank(
        [query([1, 3], 3, k=2), query([12], k=1), query([5], 6, 7, 8, k=3), query([2], *range(1, 12), k=9)]
    )
    assert [ranking.indices for ranking in found] == [[4, 5], [12], [5, 9, 10], [12]]
    assert [ranking.scores for ranking in found] == [[11, 10], [12], [12, 8, 7], [2]]


def test_rankings_equal_a_slow_sort(make_bundle: Callable[..., Path]) -> None:
    generator = np.random.default_rng(3)
    table = generator.integers(-3, 4, (41, 40)).astype(float)  # small integers, so that ties are everywhere
    engine = engine_over(make_bundle("v1", table=table))
    queries = []
    for _ in range(50):
        excluded = generator.choice(40, generator.integers(0, 40), replace=False) + 1
        queries.append(
            query(
                generator.integers(1, 41, generator.integers(1, 9)).tolist(),
                *excluded,
                k=int(generator.integers(1, 45)),
            )
        )
    for asked, ranking in zip(queries, engine.rank(queries), strict=True):
        scores = {item: table[asked.sequence[-1], item - 1] for item in range(1, 41) if item not in asked.excluded}
        expected = sorted(scores, key=lambda item: (-scores[item], item))[: asked.k]
        assert ranking.indices == expected
        assert ranking.scores == [scores[item] for item in expected]


def test_neighbours_of_the_history_count_in_a_blended_model(make_bundle: Callable[..., Path]) -> None:
    """Item 3 pulls item 9 by 8, and by 0.8 * 8 once it is the newest but one; nobody pulls from item 5."""
    items, affinities = np.zeros((13, 1), np.int32), np.zeros((13, 1), np.float32)
    items[3], affinities[3] = 9, 8
    engine = engine_over(make_bundle("v1", neighbours=Neighbours(items, affinities)))
    found = engine.rank([query([3], 3, k=2), query([3, 5], k=2), query([5], k=2), query([3], 9, k=1)])
    assert [ranking.indices for ranking in found] == [[9, 4], [9, 5], [5, 6], [3]]
    assert found[0].scores == [14, 11]  # 12 less 6 steps from 3, and 8
    assert found[1].scores == pytest.approx([8 + 6.4, 12])


def test_popularity_breaks_ties_by_item_order_and_leaves_out_what_is_excluded(make_bundle: Callable[..., Path]) -> None:
    engine = engine_over(make_bundle("v1"))
    ranking = engine.popular(query([], 1, 1, 3, k=3))
    assert (ranking.indices, ranking.scores) == ([2, 4, 5], [11, 9, 8])
    assert engine.popular(query([], *range(1, 13), k=3)).indices == []
    assert engine.popular(query([], k=500)).indices == list(range(1, 13))


def test_a_model_that_gives_no_numbers_is_an_error(make_bundle: Callable[..., Path]) -> None:
    table = np.ones((7, 6))
    table[5] = np.nan
    engine = engine_over(make_bundle("v1", table=table))
    assert engine.rank([query([4], k=1)])[0].indices == [1]
    with pytest.raises(EngineError, match="not finite"):
        engine.rank([query([5], k=1)])


def test_a_score_beyond_what_a_number_can_hold_is_an_error(make_bundle: Callable[..., Path]) -> None:
    items, affinities = np.zeros((13, 1), np.int32), np.zeros((13, 1), np.float32)
    items[5:7], affinities[5:7] = 9, 3e38
    engine = engine_over(make_bundle("v1", neighbours=Neighbours(items, affinities)))
    assert engine.rank([query([5], k=1)])[0].scores == [pytest.approx(3e38)]
    with pytest.raises(EngineError, match="not finite"):
        engine.rank([query([6, 5], k=1)])


def test_no_queries_are_no_rankings(make_bundle: Callable[..., Path]) -> None:
    assert engine_over(make_bundle("v1")).rank([]) == []


def test_what_the_warm_up_measured_decides_where_rankings_run(
    make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.engine._BRIEF_S", 60.0)  # however slow the machine
    folder = make_bundle("v1")
    engine = engine_over(folder)
    assert not engine.brief  # nothing is known yet
    engine.warm_up()
    assert engine.brief
    assert engine.batch_s > 0
    several = Engine(Runtime(read_bundle(folder), device="cpu", threads=2))
    several.warm_up()
    assert not several.brief
    monkeypatch.setattr("service.engine._BRIEF_S", 0.0)
    engine.warm_up()
    assert not engine.brief


def test_queries_that_ask_for_more_than_the_warm_up_tried_are_not_brief(
    make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.engine._BRIEF_S", 60.0)
    engine = engine_over(make_bundle("v1"))
    engine.warm_up()
    usual = query([3], 3, k=10)
    assert engine.brief_for([usual] * 64)
    assert not engine.brief_for([usual] * 65)
    assert not engine.brief_for([usual, query([3], 3, k=51)])
    assert not engine.brief_for([usual, query([3], *([3] * 129), k=10)])


def test_a_slow_model_is_warmed_up_with_full_batches_too(
    make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_over(make_bundle("v1"))
    sizes: list[int] = []

    def timed(queries: Sequence[Query]) -> float:
        sizes.append(len(queries))
        return 9.0

    monkeypatch.setattr(engine, "_timed", timed)
    engine.warm_up()
    assert sizes == [1, 8, 64]
    sizes.clear()
    engine.warm_up(6)  # a larger one, which never comes, would cost memory for good
    assert sizes == [1, 6]
    assert not engine.brief_for([query([3], k=10)] * 7)


def test_an_engine_goes_with_the_last_reference_to_it(make_bundle: Callable[..., Path]) -> None:
    """Without a collection, which passes over what was frozen while it served."""
    engine = engine_over(make_bundle("v1", attributes={"genres": [None, *[["a", "b"]] * 12]}))
    engine.warm_up()
    engine.catalogue.change({"i1": ItemState({"genres": ["c"]})})
    gc.disable()
    try:
        held: list[object] = [engine, engine.bundle.items, engine.catalogue]
        gone = [*map(weakref.ref, held)]
        del engine, held
        assert [reference() for reference in gone] == [None] * 3
    finally:
        gc.enable()


def test_only_events_that_the_model_reads_are_told_as_reasons(make_bundle: Callable[..., Path]) -> None:
    """The model reads four, and item 3 before them pulls item 9 by neighbours alone."""
    items, affinities = np.zeros((13, 1), np.int32), np.zeros((13, 1), np.float32)
    items[3], affinities[3] = 9, 80
    engine = engine_over(make_bundle("v1", neighbours=Neighbours(items, affinities)))
    asked = query([3, 5, 6, 7, 8], k=1)
    (ranking,) = engine.rank([asked])
    (reasons,) = engine.reasons(asked, ranking)
    assert ranking.indices == [9]
    assert {reason.place for reason in reasons} <= {1, 2, 3, 4}
