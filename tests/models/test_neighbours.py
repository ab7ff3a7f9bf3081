"""What neighbours add to scores, against a loop over the formula; and bundles that have them."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.bundle import read_bundle
from models.manifest import BundleError, Manifest, sealed
from models.neighbours import DECAY, RECENT, Neighbours, asked, recent
from models.runtime import EXCLUDED_SCORE, Runtime

ITEMS = 30


def some_neighbours(seed: int = 0) -> Neighbours:
    """Five neighbours an item, some rows shorter; affinities are small integers, so that sums are exact enough."""
    generator = np.random.default_rng(seed)
    items = np.zeros((ITEMS + 1, 5), np.int32)
    affinities = np.zeros((ITEMS + 1, 5), np.float32)
    for row in range(1, ITEMS + 1):
        count = generator.integers(0, 6)
        items[row, :count] = generator.choice(np.arange(1, ITEMS + 1), count, replace=False)
        affinities[row, :count] = generator.integers(1, 9, count)
    return Neighbours(items, affinities)


def slow_bonus(neighbours: Neighbours, history: list[int]) -> list[float]:
    """The formula, a neighbour at a time: of five, those asked are 5, 3, 2 and then one."""
    gains = [0.0] * len(neighbours.items)
    for age, item in enumerate(reversed(history)):
        asked = (5, 3, 2)[age] if age < 3 else 1 if age < 20 else 0
        for other, affinity in list(zip(neighbours.items[item], neighbours.affinities[item], strict=True))[:asked]:
            gains[other] += 0.8**age * float(affinity)
    return gains


@pytest.fixture
def runtime(make_bundle: Callable[..., Path]) -> Runtime:
    table = np.random.default_rng(1).integers(0, 5, (ITEMS + 1, ITEMS)).astype(np.float32)
    folder = make_bundle("v1", table=table, neighbours=some_neighbours())
    return Runtime(read_bundle(folder), device="cpu", threads=1)


def test_the_newest_twenty_items_come_newest_first() -> None:
    assert (RECENT, DECAY) == (20, 0.8)
    found = recent([np.arange(1, 31), np.array([5, 7]), np.array([], np.int64)])
    assert found[0].tolist() == list(range(30, 10, -1))
    assert found[1].tolist() == [7, 5] + [0] * 18
    assert found[2].tolist() == [0] * 20


def test_older_items_ask_fewer_of_their_neighbours_the_strongest_first() -> None:
    ages, ranks = asked(10)
    assert [int((ages == age).sum()) for age in range(20)] == [10, 6, 4, 3, 2, *[1] * 15]
    assert ranks[:12].tolist() == [*range(10), 0, 1]


def test_a_bonus_by_hand() -> None:
    items = np.array([[0, 0], [2, 3], [1, 0], [0, 0]], np.int32)
    neighbours = Neighbours(items, np.array([[0, 0], [2, 1], [4, 0], [0, 0]], np.float32))
    found = neighbours.bonus([np.array([1]), np.array([1, 2]), np.array([1, 1])])
    np.testing.assert_allclose(found, [[0.0, 0, 2, 1], [0, 4, 1.6, 0], [0, 0, 3.6, 1]], rtol=1e-6)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.integers(1, ITEMS), max_size=25), min_size=1, max_size=12),
    st.lists(st.integers(1, ITEMS), max_size=5),
    st.integers(1, ITEMS + 2),
)
def test_the_graph_ranks_as_a_loop_over_the_formula(
    runtime: Runtime, histories: list[list[int]], excluded: list[int], k: int
) -> None:
    arrays = [np.array(history, np.int64) for history in histories]
    neighbours = runtime.bundle.neighbours
    assert neighbours is not None
    vectors = runtime.encode(arrays)
    indices, scores = runtime.rank(vectors, [np.array(excluded, np.int64)] * len(arrays), k, arrays)
    for row, history in enumerate(histories):
        truth = runtime.bundle.items @ vectors[row] + slow_bonus(neighbours, history)
        np.testing.assert_allclose(neighbours.bonus([arrays[row]])[0], slow_bonus(neighbours, history), atol=1e-5)
        allowed = [item for item in range(1, ITEMS + 1) if item not in excluded]
        eligible = scores[row] > EXCLUDED_SCORE
        assert eligible.sum() == min(k, len(allowed))
        np.testing.assert_allclose(scores[row][eligible], np.sort(truth[allowed])[::-1][:k], atol=1e-4)
        np.testing.assert_allclose(truth[indices[row][eligible]], scores[row][eligible], atol=1e-4)
        assert not set(indices[row][eligible].tolist()) & {0, *excluded}


def test_ranking_without_the_histories_is_refused_and_not_done_otherwise(runtime: Runtime) -> None:
    with pytest.raises(ValueError, match="give the sequences"):
        runtime.rank(runtime.encode([np.array([3])]), [np.array([3])], 5)


def test_neighbours_change_what_is_ranked_first(make_bundle: Callable[..., Path]) -> None:
    """After item i comes i + 1, but item 3 has a far stronger neighbour."""
    items, affinities = np.zeros((13, 1), np.int32), np.zeros((13, 1), np.float32)
    items[3], affinities[3] = 9, 100
    runtime = Runtime(read_bundle(make_bundle("v1", neighbours=Neighbours(items, affinities))), device="cpu")
    histories = [np.array([3]), np.array([3, 5]), np.array([5])]
    indices, _ = runtime.rank(runtime.encode(histories), histories, 2, histories)
    assert indices.tolist() == [[9, 4], [9, 6], [6, 7]]


def test_a_bundle_gives_back_its_neighbours_mapped(runtime: Runtime) -> None:
    found = runtime.bundle.neighbours
    assert found is not None
    assert isinstance(found.items.base, np.memmap)
    assert found.items.tolist() == some_neighbours().items.tolist()
    assert found.affinities.tolist() == some_neighbours().affinities.tolist()
    runtime.replay_golden()


def rewritten(folder: Path, **arrays: Any) -> Path:
    """Other arrays (None: no file) under right digests, as somebody would who wants to be believed."""
    folder.chmod(0o755)
    for name, array in arrays.items():
        path = folder / f"{name}.npy"
        path.chmod(0o644)
        path.unlink()
        if array is not None:
            np.save(path, array)
    (folder / "manifest.json").chmod(0o644)
    manifest = json.loads((folder / "manifest.json").read_text())
    files = [path for path in folder.iterdir() if path.name != "manifest.json"]
    manifest["files"] = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}
    (folder / "manifest.json").write_bytes(sealed(Manifest.model_validate(manifest)))
    return folder


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"affinities": None}, "neighbours.npy alone"),
        ({"neighbours": None}, "affinities.npy alone"),
        ({"affinities": np.zeros((ITEMS + 1, 4), np.float32)}, "affinities.npy"),
        ({"neighbours": np.zeros((ITEMS, 5), np.int32)}, "neighbours.npy"),
        ({"neighbours": np.zeros((ITEMS + 1, 5), np.int64)}, "int64"),
        ({"affinities": np.full((ITEMS + 1, 5), np.nan, np.float32)}, "not a finite number"),
        ({"neighbours": np.full((ITEMS + 1, 5), ITEMS + 1, np.int32)}, "outside the rows 0 to 30"),
        ({"neighbours": np.full((ITEMS + 1, 5), -1, np.int32)}, "outside the rows 0 to 30"),
        ({"affinities": np.ones((ITEMS + 1, 5), np.float32)}, "row 0 is no item"),
    ],
)
def test_neighbours_that_fit_no_catalogue_are_found(runtime: Runtime, arrays: dict[str, Any], words: str) -> None:
    with pytest.raises(BundleError, match=words):
        read_bundle(rewritten(runtime.bundle.folder, **arrays))


def test_golden_inputs_unmask_other_neighbours_under_right_digests(runtime: Runtime) -> None:
    affinities = some_neighbours().affinities
    affinities[2] += 0.5 * (affinities[2] > 0)
    changed = Runtime(read_bundle(rewritten(runtime.bundle.folder, affinities=affinities)), device="cpu")
    with pytest.raises(BundleError, match="away from torch's answers"):
        changed.replay_golden()


def test_a_ranker_and_its_bundle_must_agree_about_neighbours(
    runtime: Runtime, make_bundle: Callable[..., Path]
) -> None:
    with pytest.raises(BundleError, match=r"ranker\.onnx: reads neighbours and the bundle has none"):
        Runtime(replace(runtime.bundle, neighbours=None), device="cpu")
    plain = read_bundle(make_bundle("v2", items=ITEMS))
    with pytest.raises(BundleError, match=r"ranker\.onnx: does not read the bundle's neighbours"):
        Runtime(replace(plain, neighbours=some_neighbours()), device="cpu")
