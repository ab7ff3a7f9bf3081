"""Large catalogues: the scan against slow oracles that rank with nothing but loops and sorting."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.bundle import read_bundle
from models.manifest import BundleError, Manifest, sealed
from models.neighbours import Neighbours
from models.quantised import GROUP, Quantised
from models.runtime import EXCLUDED_SCORE, Runtime, overlap
from models.scan import BLOCK
from models.selection import Selection

ITEMS = 3 * GROUP * BLOCK + 65  # three whole blocks and a rest
DIM = 16
settings.register_profile("scan", suppress_health_check=[HealthCheck.function_scoped_fixture])


def clusters(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Item matrix and vectors, both (rows, DIM), as training leaves them: items that go together point one way, some
    are longer than others, and a vector is near the items that may come next."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(60, DIM))
    of = generator.integers(0, 60, ITEMS + 1)
    lengths = generator.lognormal(0, 0.3, (ITEMS + 1, 1))
    items = (lengths * (centres[of] + 0.4 * generator.normal(size=(ITEMS + 1, DIM)))).astype(np.float32)
    items[0] = 0
    vectors = centres[of[::-1]] + 0.4 * generator.normal(size=(ITEMS + 1, DIM))
    return items, vectors.astype(np.float32)


def some_neighbours() -> Neighbours:
    generator = np.random.default_rng(3)
    items = generator.integers(1, ITEMS + 1, (ITEMS + 1, 5)).astype(np.int32)
    affinities = generator.uniform(0, 20, (ITEMS + 1, 5)).astype(np.float32)
    items[0], affinities[0] = 0, 0
    return Neighbours(items, affinities)


@pytest.fixture(params=["float32", "int8"])
def tied(make_bundle: Callable[..., Path], request: pytest.FixtureRequest) -> Runtime:
    """Numbers so few that most items tie, and sums are exact."""
    generator = np.random.default_rng(0)
    items = generator.integers(-1, 2, (ITEMS + 1, 4)).astype(np.float32)
    table = generator.integers(-2, 3, (ITEMS + 1, 4)).astype(np.float32)
    folder = make_bundle("v1", table=table, matrix=items, scan=request.param)
    return Runtime(read_bundle(folder), device="cpu", threads=1)


@pytest.fixture
def int8(make_bundle: Callable[..., Path]) -> Runtime:
    items, table = clusters()
    folder = make_bundle("v8", table=table, matrix=items, scan="int8")
    return Runtime(read_bundle(folder), device="cpu", threads=1)


def ranked(scores: np.ndarray, excluded: set[int], k: int) -> list[int]:
    """The k best of items 1 to n by score, ties in item order; scores[0] is padding."""
    allowed = [item for item in range(1, len(scores)) if item not in excluded]
    return sorted(allowed, key=lambda item: (-scores[item], item))[:k]


rows_of_excluded = st.lists(
    st.one_of(
        st.lists(st.integers(1, ITEMS), max_size=40),
        st.tuples(st.integers(1, ITEMS), st.integers(0, ITEMS)).map(lambda cut: list(range(cut[0], cut[1]))),
    ),
    min_size=1,
    max_size=5,
)


@settings(settings.get_profile("scan"), max_examples=60)
@given(excluded=rows_of_excluded, k=st.one_of(st.integers(1, 20), st.integers(1, 500)), seed=st.integers(0, 2**32 - 1))
def test_a_scan_ranks_as_the_oracle_ties_and_exclusion_included(
    tied: Runtime, excluded: list[list[int]], k: int, seed: int
) -> None:
    vectors = np.random.default_rng(seed).integers(-2, 3, (len(excluded), 4)).astype(np.float32)
    indices, scores = tied.rank(vectors, [np.array(row, np.int64) for row in excluded], k)
    assert indices.shape == scores.shape == (len(excluded), k)
    for row, out in enumerate(excluded):
        truth = tied.bundle.items @ vectors[row]
        expected = ranked(truth, set(out), k)
        eligible = scores[row] > EXCLUDED_SCORE
        assert indices[row][eligible].tolist() == expected
        assert scores[row][eligible].tolist() == truth[expected].tolist()
        assert not eligible[len(expected) :].any()


@settings(settings.get_profile("scan"), max_examples=40)
@given(
    excluded=rows_of_excluded,
    k=st.one_of(st.integers(1, 20), st.integers(1, 500)),
    power=st.integers(-18, 18),
    seed=st.integers(0, 2**32 - 1),
)
def test_over_int8_the_best_of_all_are_found(
    int8: Runtime, excluded: list[list[int]], k: int, power: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(len(excluded), DIM)).astype(np.float32) * np.float32(2.0**power)
    if seed % 2:  # some item's own direction, in which those of its cluster lie close together
        vectors = int8.bundle.items[generator.integers(1, ITEMS + 1, len(excluded))] * np.float32(2.0**power)
    indices, scores = int8.rank(vectors, [np.array(row, np.int64) for row in excluded], k)
    for row, out in enumerate(excluded):
        truth = int8.bundle.items.astype(np.float64) @ vectors[row].astype(np.float64)
        expected = ranked(truth, set(out), k)
        eligible = indices[row][scores[row] > EXCLUDED_SCORE].tolist()
        assert len(eligible) == len(set(eligible)) == len(expected)
        assert not {0, *out} & set(eligible)
        # Of two that float32 cannot tell apart either may come back; what comes back is as good.
        np.testing.assert_allclose(truth[eligible], truth[expected], rtol=1e-5, atol=1e-5 * 2.0**power)


@pytest.mark.parametrize("batch", [0, 1, 2, 64, 200])
@pytest.mark.parametrize("k", [1, 10, 500])
def test_over_int8_batches_of_any_size_find_what_one_run_finds(int8: Runtime, batch: int, k: int) -> None:
    histories = [np.array([number + 1, 7, 2 * number + 3]) for number in range(batch)]
    vectors = int8.encode(histories)
    found, _ = int8.rank(vectors, histories, k)
    expected, _ = int8.rank(vectors, histories, k, whole=True)
    assert found.shape == (batch, k)
    assert found.tolist() == expected.tolist()


def test_a_query_that_int8_cannot_tell_apart_is_ranked_whole(int8: Runtime) -> None:
    """All scores are 0, so that every group could hold the best, beside one that has few candidates."""
    vectors = np.stack([int8.bundle.items[7], np.zeros(DIM, np.float32), int8.bundle.items[9]])
    scan, none = int8._search, [np.array([1, 2])] * 3
    assert scan is not None
    assert [one is None for one in scan.candidates(vectors, none, 5)] == [False, True, False]
    found, scores = int8.rank(vectors, none, 5)
    assert found[1].tolist() == [3, 4, 5, 6, 7]
    assert scores[1].tolist() == [0] * 5
    expected, _ = int8.rank(vectors, none, 5, whole=True)
    assert found.tolist() == expected.tolist()


def test_numbers_too_small_for_float32_are_ranked_whole(int8: Runtime) -> None:
    vectors, none = int8.bundle.items[[7, 9]] * np.float32(1e-41), [np.array([1])] * 2
    assert int8._search is not None
    assert int8._search.candidates(vectors, none, 5) == [None, None]
    found, _ = int8.rank(vectors, none, 10)
    expected, _ = int8.rank(vectors, none, 10, whole=True)
    assert found.tolist() == expected.tolist()


def test_an_int8_copy_of_other_items_costs_time_and_no_answer(int8: Runtime) -> None:
    bundle, vectors = int8.bundle, int8.bundle.items[1:9]
    of_others = Quantised.of(-bundle.items)
    measured = Quantised.beside(bundle.items, of_others.items, of_others.scales)
    assert measured.furthest > 10 * of_others.furthest
    for scales in (of_others.scales, of_others.scales / 1e38):  # divided by these, items are beyond float32
        with_others = replace(bundle, quantised=Quantised.beside(bundle.items, of_others.items, scales))
        runtime = Runtime(with_others, device="cpu", threads=1)
        runtime.replay_golden()
        found, _ = runtime.rank(vectors, [np.array([1])] * 8, 10)
        expected, _ = int8.rank(vectors, [np.array([1])] * 8, 10, whole=True)
        assert found.tolist() == expected.tolist()


def test_an_empty_history_is_ranked_too(int8: Runtime) -> None:
    nothing = [np.array([], np.int64)]
    found, scores = int8.rank(int8.encode(nothing), nothing, 10)
    assert 0 not in found
    assert (scores > EXCLUDED_SCORE).all()


def test_where_all_or_nearly_all_is_excluded_the_rest_is_found(int8: Runtime) -> None:
    everything = np.arange(1, ITEMS + 1)
    excluded = [everything, np.delete(everything, [99, 800]), everything[:-1]]
    indices, scores = int8.rank(np.ones((3, DIM), np.float32), excluded, 3)
    assert (scores > EXCLUDED_SCORE).sum(axis=1).tolist() == [0, 2, 1]
    assert set(indices[1, :2].tolist()) == {100, 801}
    assert indices[2, 0] == ITEMS


@settings(settings.get_profile("scan"), max_examples=60)
@given(
    excluded=rows_of_excluded,
    share=st.sampled_from([0.0, 0.01, 0.2, 0.5]),
    k=st.one_of(st.integers(1, 5), st.integers(1, 500)),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_scan_passes_over_what_is_out_for_everybody(
    tied: Runtime, excluded: list[list[int]], share: float, k: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    vectors = generator.integers(-2, 3, (len(excluded), 4)).astype(np.float32)
    # The best of a row among them, so that whole groups of the best are out.
    out = np.union1d(
        1 + np.flatnonzero(generator.random(ITEMS) < share), ranked(tied.bundle.items @ vectors[0], set(), 40)
    )
    among = Selection.of(~np.isin(np.arange(ITEMS + 1), [0, *out]), tied.bundle.items, scanned=True)
    indices, scores = tied.rank(vectors, [np.array(row, np.int64) for row in excluded], k, among=among)
    for row, theirs in enumerate(excluded):
        truth = tied.bundle.items @ vectors[row]
        expected = ranked(truth, {*theirs, *out.tolist()}, k)
        eligible = scores[row] > EXCLUDED_SCORE
        assert indices[row][eligible].tolist() == expected
        assert scores[row][eligible].tolist() == truth[expected].tolist()
        assert not eligible[len(expected) :].any()


@pytest.mark.parametrize("scan", ["float32", "int8"])
@pytest.mark.parametrize("count", [1, 501, ITEMS // 2 - 1])
def test_items_that_are_out_copy_no_matrix_and_leave_the_scan_on(
    make_bundle: Callable[..., Path], scan: str, count: int
) -> None:
    items, table = clusters(3)
    folder = make_bundle("v1", table=table, matrix=items, scan=scan, neighbours=some_neighbours())
    runtime = Runtime(read_bundle(folder), device="cpu", threads=1)
    generator = np.random.default_rng(count)
    out = generator.permutation(ITEMS)[:count] + 1
    among = Selection.of(~np.isin(np.arange(ITEMS + 1), [0, *out]), runtime.bundle.items, scanned=runtime.scans)
    assert among.subset.matrix is None
    assert among.left_out is not None
    histories = [generator.integers(1, ITEMS + 1, length) for length in (1, 2, 5, 20) for _ in range(5)]
    vectors = runtime.encode(histories)
    found, scores = runtime.rank(vectors, histories, 5, histories, among=among)
    expected, _ = runtime.rank(vectors, histories, 5, histories, among=among, whole=True)
    assert found.tolist() == expected.tolist()
    assert not np.isin(found, [0, *out]).any()
    assert (scores > EXCLUDED_SCORE).all()
    assert runtime._search is not None
    groups = runtime._search.candidates(vectors, histories, 1, among.left_out)
    assert not all(row is None for row in groups)


def test_where_the_best_are_all_out_the_rest_is_ranked_whole(int8: Runtime) -> None:
    vector = int8.encode([np.array([7])])
    order = ranked(int8.bundle.items @ vector[0], set(), ITEMS)
    out = np.sort(order[: ITEMS // 2])
    among = Selection.of(~np.isin(np.arange(ITEMS + 1), [0, *out]), int8.bundle.items, scanned=True)
    assert int8._search is not None
    assert int8._search.candidates(vector, [np.array([0])], 3, out) == [None]
    found, _ = int8.rank(vector, [np.array([order[ITEMS // 2]])], 3, among=among)
    assert found.tolist() == [order[ITEMS // 2 + 1 : ITEMS // 2 + 4]]


@pytest.mark.parametrize("scan", ["float32", "int8"])
def test_the_best_is_found_behind_a_whole_block_that_is_excluded(make_bundle: Callable[..., Path], scan: str) -> None:
    items, table = clusters(2)
    runtime = Runtime(read_bundle(make_bundle("v1", table=table, matrix=items, scan=scan)), device="cpu", threads=1)
    for vector in runtime.encode([np.array([item]) for item in range(1, 40)]):
        block = np.argmax(items[: 3 * GROUP * BLOCK] @ vector) // (GROUP * BLOCK)
        excluded = np.arange(GROUP * BLOCK) + block * GROUP * BLOCK
        # Twice the same: other queries would bring candidates of their own, and float32 is not scanned for single ones.
        found, scores = runtime.rank(np.stack([vector] * 2), [excluded] * 2, 1)
        assert (scores > EXCLUDED_SCORE).all()
        assert found.tolist() == [ranked(items @ vector, set(excluded.tolist()), 1)] * 2


@pytest.mark.parametrize("scan", ["float32", "int8"])
def test_what_neighbours_raise_is_found_wherever_it_is(make_bundle: Callable[..., Path], scan: str) -> None:
    items, table = clusters(1)
    folder = make_bundle("v1", table=table, matrix=items, scan=scan, neighbours=some_neighbours())
    runtime = Runtime(read_bundle(folder), device="cpu", threads=1)
    runtime.replay_golden()
    generator = np.random.default_rng(4)
    histories = [generator.integers(1, ITEMS + 1, length) for length in (0, 1, 2, 5, 19, 20, 30) for _ in range(5)]
    vectors = runtime.encode(histories)
    bonus = some_neighbours().bonus(histories)
    found, scores = runtime.rank(vectors, histories, 10, histories)
    expected, _ = runtime.rank(vectors, histories, 10, histories, whole=True)
    truth = np.take_along_axis(vectors @ runtime.bundle.items.T + bonus, found, axis=1)
    np.testing.assert_allclose(scores, truth, rtol=1e-4, atol=1e-4)
    assert overlap(found, expected) == 1
    with pytest.raises(ValueError, match="give the sequences"):
        runtime.rank(vectors, histories, 10)


def test_neighbours_that_lower_a_score_go_with_no_scan(make_bundle: Callable[..., Path]) -> None:
    items, table = clusters(1)
    lowering = some_neighbours()
    lowering.affinities[5, 1] = -1
    bundle = read_bundle(make_bundle("v1", table=table, matrix=items, scan="float32", neighbours=lowering))
    with pytest.raises(BundleError, match="lower a score"):
        Runtime(bundle, device="cpu")


def test_rounding_to_a_byte_is_off_by_half_a_level_at_most() -> None:
    items, _ = clusters()
    quantised = Quantised.of(items)
    assert quantised.items.min() >= 1
    back = (quantised.items.astype(np.float32) - 128) * quantised.scales
    assert (np.abs(back - items) <= 0.501 * quantised.scales).all()
    assert (Quantised.of(np.zeros((3, 2), np.float32)).items == 128).all()
    levels, rounding, beside = quantised.queries(np.zeros((2, DIM), np.float32), 63)
    assert (levels == 0).all()
    assert (rounding.tolist(), beside.tolist()) == ([0, 0], [1, 1])
    assert np.abs(quantised.queries(items[:50], 63)[0]).max() <= 63


@pytest.mark.parametrize("limit", [63, 127])
def test_no_product_is_further_off_than_the_bound_says(limit: int) -> None:
    items, vectors = clusters(5)
    quantised = Quantised.of(items)
    levels, rounding, beside = quantised.queries(vectors[:100], limit)
    products = (quantised.items.astype(np.int64) - 128) @ levels.astype(np.int64)  # (items, queries)
    scaled = vectors[:100].astype(np.float64) * quantised.scales
    scores = items.astype(np.float64) @ vectors[:100].astype(np.float64).T / (np.abs(scaled).max(axis=1) / limit)
    off = np.abs(products - scores)[: len(quantised.longest) * GROUP].reshape(-1, GROUP, 100).max(axis=1)
    bound = quantised.longest[:, None] * rounding + beside  # (groups, queries)
    assert (off <= bound).all()
    assert (bound < 10 * off.max(axis=0)).mean() > 0.9  # and it is no bound that everything keeps


def test_a_graph_that_is_no_scan_is_refused(int8: Runtime) -> None:
    folder = int8.bundle.folder
    (folder / "scan.onnx").chmod(0o644)
    (folder / "scan.onnx").write_bytes((folder / "ranker.onnx").read_bytes())
    resealed(folder)
    with pytest.raises(BundleError, match=r"scan\.onnx: cannot search"):
        Runtime(read_bundle(folder), device="cpu")


def resealed(folder: Path, **changes: object) -> None:
    """Recompute every digest, as somebody would who wants to be believed."""
    raw = json.loads((folder / "manifest.json").read_text())
    names = [path.name for path in folder.iterdir() if path.name != "manifest.json"]
    raw["files"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    (folder / "manifest.json").chmod(0o644)
    (folder / "manifest.json").write_bytes(sealed(Manifest.model_validate(raw | changes)))


@pytest.mark.parametrize("name", ["scan.onnx", "items8.npy", "scales.npy"])
def test_a_part_that_is_missing_is_named(int8: Runtime, name: str) -> None:
    folder = int8.bundle.folder
    (folder / name).unlink()
    with pytest.raises(BundleError, match=rf"{name}.*missing"):
        read_bundle(folder)
    resealed(folder)
    with pytest.raises(BundleError, match=f"int8, which {name} contradicts"):
        read_bundle(folder)


def test_int8_in_a_bundle_that_is_to_be_searched_over_float32_is_refused(int8: Runtime) -> None:
    folder = int8.bundle.folder
    resealed(folder, scoring={"kind": "float32"})
    with pytest.raises(BundleError, match=r"float32, which items8\.npy, scales\.npy contradicts"):
        read_bundle(folder)


@pytest.mark.parametrize(
    ("name", "array", "says"),
    [
        ("items8.npy", np.zeros((5, DIM), np.uint8), r"items8\.npy: is uint8 \(5, 16\)"),
        ("items8.npy", np.zeros((ITEMS + 1, DIM), np.int8), r"items8\.npy: is int8"),
        ("scales.npy", np.zeros(DIM, np.float32), "a scale must be positive"),
        ("scales.npy", np.full(DIM, np.nan, np.float32), "not a finite number"),
        ("scales.npy", np.ones(DIM + 1, np.float32), r"scales\.npy: is float32 \(17,\)"),
    ],
)
def test_a_part_that_does_not_fit_is_refused(int8: Runtime, name: str, array: np.ndarray, says: str) -> None:
    folder = int8.bundle.folder
    (folder / name).chmod(0o644)
    np.save(folder / name, array)
    with pytest.raises(BundleError, match="sha256"):
        read_bundle(folder)
    resealed(folder)
    with pytest.raises(BundleError, match=says):
        read_bundle(folder)


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_a_scan_that_finds_other_items_does_not_serve(make_bundle: Callable[..., Path], kind: str) -> None:
    items, table = clusters()
    folder = make_bundle("v1", table=table, matrix=items, scan=kind)
    graph = onnx.load(folder / "scan.onnx")
    for node in graph.graph.node:
        node.op_type = node.op_type.replace("ReduceMax", "ReduceMin")
    (folder / "scan.onnx").chmod(0o644)
    onnx.save(graph, folder / "scan.onnx")
    resealed(folder)
    with pytest.raises(BundleError, match="golden inputs"):
        Runtime(read_bundle(folder), device="cpu").replay_golden()
