"""What is recommended under any mixture of wishes, whatever searches the catalogue, against a loop over all items.

Scores are small integers, so that ties are everywhere and no rounding decides.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.bundle import Bundle, read_bundle
from models.neighbours import Neighbours
from models.runtime import Runtime
from service import filters
from service.attributes import ItemState
from service.engine import Engine
from service.metrics import Metrics
from service.recommender import Recommender, Wish
from service.scoring import ScoringThread

pytestmark = pytest.mark.anyio

ITEMS, DIM, WIDTH = 1500, 8, 4
KINDS = ["a", "b", "c", "z"]
SHARE = 0.3  # of an answer that cold items may have


class Oracle:
    """What is known of every item, and the answer that a loop over all of them gives."""

    def __init__(self, bundle: Bundle, table: np.ndarray, neighbours: Neighbours | None) -> None:
        self.bundle, self.table, self.neighbours = bundle, table, neighbours
        columns = bundle.attributes or {}
        self.attributes: dict[str, dict[str, Any]] = {
            item: {name: column[row] for name, column in columns.items() if column[row] is not None}
            for row, item in enumerate(bundle.ids)
            if row
        }
        self.available = set(self.attributes)
        self.cold: dict[str, np.ndarray] = {}  # vectors of those that are placed

    def answer(self, wish: Wish, expression: dict[str, Any] | None) -> list[str]:
        """Ids for a wish whose filter is the expression."""
        gone = {*wish.exclude_item_ids, *(wish.history if wish.exclude_seen else ())}
        wanted = self.available - gone
        if expression is not None:
            wanted = {item for item in wanted if matches(self.attributes[item], expression)}
        if wish.candidates is not None:
            wanted &= set(wish.candidates)
        rows = [self.bundle.index_of[item] for item in wanted if item in self.bundle.index_of]
        new = sorted(item for item in wanted if item in self.cold)
        known = [self.bundle.index_of[item] for item in wish.history if item in self.bundle.index_of]
        if not known:
            popular = sorted(rows, key=lambda row: (-self.bundle.popularity[row], row))[: wish.k]
            return [self.bundle.ids[row] for row in popular] + new[: wish.k - len(popular)]
        vector = self.table[known[-1]]
        scores = self.bundle.items @ vector
        if self.neighbours is not None:
            scores = scores + self.neighbours.bonus([np.array(known)])[0]
        best = sorted(rows, key=lambda row: (-scores[row], row))[: wish.k]
        ranked = [(float(scores[row]), self.bundle.ids[row]) for row in best]
        most = max(int(SHARE * wish.k + 1e-9), wish.k - len(best))
        ranked += sorted(((float(self.cold[item] @ vector), item) for item in new), key=lambda one: -one[0])[:most]
        return [item for _, item in sorted(ranked, key=lambda one: -one[0])[: wish.k]]


def matches(attributes: dict[str, Any], expression: dict[str, Any]) -> bool:
    ((operator, given),) = expression.items()
    if operator in ("all", "any"):
        return (all if operator == "all" else any)(matches(attributes, one) for one in given)
    if operator == "not":
        return not matches(attributes, given)
    ((name, value),) = given.items()
    if name not in attributes:
        return False
    found = attributes[name]
    if operator in ("eq", "in"):
        return found == value if operator == "eq" else found in value
    return bool({"lt": found < value, "lte": found <= value, "gt": found > value, "gte": found >= value}[operator])


def expression(random: np.random.Generator, depth: int = 0) -> dict[str, Any]:
    kind = random.random()
    if depth < 2 and kind < 0.4:
        if kind < 0.1:
            return {"not": expression(random, depth + 1)}
        return {"all" if kind < 0.25 else "any": [expression(random, depth + 1) for _ in range(random.integers(1, 3))]}
    if kind < 0.7:
        some = random.choice(KINDS, 2).tolist()
        return {"eq": {"kind": some[0]}} if kind < 0.6 else {"in": {"kind": some}}
    return {str(random.choice(["lt", "lte", "gt", "gte"])): {"year": int(random.integers(-1, 52))}}


def state(random: np.random.Generator, *, available: float) -> ItemState:
    attributes = {"kind": str(random.choice(KINDS)), "year": int(random.integers(50))}
    return ItemState(attributes, bool(random.random() < available))


def wish(random: np.random.Generator, filtering: dict[str, Any] | None) -> Wish:
    def some(most: int, *, beyond: int = 0) -> list[str]:
        return [f"i{row}" for row in random.integers(1, ITEMS + 1 + beyond, random.integers(0, most + 1))]

    if random.random() < 0.2 and filtering is None:  # hardly anything is left
        return Wish(None, [f"i{row}" for row in range(1, ITEMS - int(random.integers(0, 9)))], 10, True, [])
    history = some(int(random.choice([0, 1, 4, 60])))
    if random.random() < 0.3:
        history.insert(0, f"n{random.integers(40)}")
    candidates = [*some(1000, beyond=20), *(f"n{number}" for number in random.integers(0, 40, 6))]
    return Wish(
        user_id=None,
        history=history,
        k=int(random.choice([1, 3, 10, 50, 500])),
        exclude_seen=bool(random.random() < 0.7),
        exclude_item_ids=[*some(int(random.choice([0, 5, 700]))), f"n{random.integers(40)}"],
        wanted=None if filtering is None else filters.parse(filtering),
        candidates=candidates if random.random() < 0.3 else None,
        explain=bool(random.random() < 0.1),
    )


@pytest.mark.parametrize("way", ["one run", "float32 scan", "int8 scan", "float16"])
@pytest.mark.parametrize("blended", [False, True])
async def test_any_wishes_in_any_batch_get_the_items_that_a_slow_search_finds(
    make_bundle: Callable[..., Path], way: str, blended: bool
) -> None:
    random = np.random.default_rng([5, blended])
    table, matrix = (random.integers(-3, 4, (ITEMS + 1, DIM)).astype(np.float32) for _ in range(2))
    matrix[0] = 0
    neighbours = None
    if blended:
        beside = np.array([random.choice(ITEMS, WIDTH, replace=False) + 1 for _ in range(ITEMS + 1)], np.int32)
        beside[0] = 0
        neighbours = Neighbours(
            beside, np.where(beside > 0, random.integers(1, 40, beside.shape), 0).astype(np.float32)
        )
    columns = {
        "kind": [None, *random.choice(KINDS, ITEMS).tolist()],
        "year": [None, *(int(year) if year else None for year in random.integers(0, 50, ITEMS))],
    }
    scan = way.partition(" scan")[0] if "scan" in way else None
    folder = make_bundle("v1", table=table, matrix=matrix, scan=scan, neighbours=neighbours, attributes=columns)
    bundle = read_bundle(folder)
    half = way == "float16"
    engine = Engine(Runtime(bundle, device="cpu", threads=1, bound=half or None, float16=half), cold_share=SHARE)
    oracle = Oracle(bundle, table, neighbours)
    async with ScoringThread() as scoring:
        recommender = Recommender(None, lambda: engine, scoring, Metrics())  # type: ignore[arg-type]
        for share_gone in (0.0, 0.02, 0.5, 0.97, 0.1):
            changed = {
                item: state(random, available=0.0 if random.random() < share_gone else 1.0)
                for item in list(bundle.ids)[1:]
                if share_gone
            } | {f"n{random.integers(40)}": state(random, available=0.8) for _ in range(10 if share_gone else 0)}
            engine.catalogue.change(changed)
            for item, now in changed.items():
                oracle.attributes[item] = dict(now.attributes or {})
                (oracle.available.add if now.available else oracle.available.discard)(item)
            tail = engine.catalogue.cold.tail
            oracle.cold = {} if tail is None else dict(zip(tail.ids[1:], tail.matrix[1:], strict=True))
            expressions = [expression(random) if random.random() < 0.5 else None for _ in range(20)]
            wishes = [wish(random, one) for one in expressions]
            alone = [await recommender.recommend([one]) for one in wishes[:10]]
            found = [*(one for (one,) in alone), *await recommender.recommend(wishes[10:])]
            for asked, filtering, answer in zip(wishes, expressions, found, strict=True):
                assert not isinstance(answer, Exception), answer
                assert [item for item, *_ in answer.items] == oracle.answer(asked, filtering)
