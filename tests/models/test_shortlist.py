"""The best items by way of float16: the same as over the whole catalogue, whatever rounding does."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import models.shortlist as shortlist_module
from models.bundle import Bundle, read_bundle
from models.device import DeviceError
from models.manifest import BundleError
from models.neighbours import Neighbours
from models.runtime import EXCLUDED_SCORE, Runtime
from models.selection import Selection
from models.shortlist import Shortlist, _within

ROWS, DIM, K = 3000, 16, 10
RANDOM = np.random.default_rng(5)
MATRIX = RANDOM.normal(size=(ROWS, DIM)).astype(np.float32)


def bundle_of(make_bundle: Callable[..., Path], matrix: np.ndarray, neighbours: Neighbours | None = None) -> Bundle:
    folder = make_bundle("v1", table=np.zeros((len(matrix), matrix.shape[1])), matrix=matrix, neighbours=neighbours)
    return read_bundle(folder)


def half(bundle: Bundle) -> Runtime:
    """By the code that a GPU runs."""
    return Runtime(bundle, device="cpu", threads=1, bound=True, float16=True)


def agree(bundle: Bundle, vectors: np.ndarray, excluded: list[np.ndarray], k: int = K) -> None:
    """The same items in the same order, by one run over everything and by way of float16."""
    plain = Runtime(bundle, device="cpu", threads=1)
    expected, scores = plain.rank(vectors, excluded, k, excluded)
    found, found_scores = half(bundle).rank(vectors, excluded, k, excluded)
    eligible = scores > EXCLUDED_SCORE
    np.testing.assert_array_equal(found[eligible], expected[eligible])
    np.testing.assert_allclose(found_scores[eligible], scores[eligible], rtol=1e-5, atol=1e-5)
    assert (found_scores[~eligible] <= EXCLUDED_SCORE).all()


def near(count: int) -> np.ndarray:
    """Items that float16 does not tell apart, and float32 does."""
    matrix = np.repeat(MATRIX[:1], count, axis=0)
    matrix[:, 0] += np.arange(count, dtype=np.float32) * np.float32(2e-6)
    return matrix


@pytest.mark.parametrize(
    "matrix",
    [
        MATRIX,
        MATRIX * np.float32(300),
        MATRIX * np.float32(1e-6),  # float16 has few digits there, and none below 6e-8
        MATRIX * np.float32(1e-12),
        MATRIX.round(),  # ties, which are in item order
        np.repeat(MATRIX[:500], 6, axis=0),
        np.zeros_like(MATRIX),
        near(400),
        near(20),
        np.concatenate([near(90), MATRIX]),
    ],
    ids=["usual", "large", "small", "tiny", "ties", "copies", "zeros", "near", "near and few", "near and others"],
)
@pytest.mark.parametrize("batch", [1, 9])
def test_the_answer_is_that_over_the_whole_catalogue(
    make_bundle: Callable[..., Path], matrix: np.ndarray, batch: int
) -> None:
    vectors = np.random.default_rng(batch).normal(size=(batch, DIM)).astype(np.float32)
    excluded = [RANDOM.integers(1, len(matrix), length) for length in RANDOM.integers(0, 30, batch)]
    agree(bundle_of(make_bundle, matrix), vectors, excluded)


@pytest.mark.parametrize("factor", [0.0, 1e-30, 1e-9, 1e4, 1e6, 1e30])
def test_a_vector_of_any_size_gives_the_answer_though_its_products_are_beyond_float16(
    make_bundle: Callable[..., Path], factor: float
) -> None:
    vectors = np.random.default_rng(1).normal(size=(4, DIM)).astype(np.float32) * np.float32(factor)
    agree(bundle_of(make_bundle, MATRIX), vectors, [np.array([1, 2, 3])] * 4)


@pytest.mark.parametrize("left", [0, 3, 9, 10, 11])
def test_where_hardly_any_item_is_left_those_come_back(make_bundle: Callable[..., Path], left: int) -> None:
    vectors = np.random.default_rng(1).normal(size=(2, DIM)).astype(np.float32)
    gone = np.random.default_rng(2).permutation(np.arange(1, ROWS))[left:]
    bundle = bundle_of(make_bundle, MATRIX)
    agree(bundle, vectors, [gone, np.array([7])])
    agree(bundle, vectors[:1], [gone])  # whose candidates are all that is ranked


@pytest.mark.parametrize("k", [1, 200, ROWS - 1, 10 * ROWS])
def test_any_number_of_items_comes_back(make_bundle: Callable[..., Path], k: int) -> None:
    agree(bundle_of(make_bundle, MATRIX), MATRIX[5:8], [np.array([4])] * 3, k)


def test_what_neighbours_raise_is_found_wherever_it_is(make_bundle: Callable[..., Path]) -> None:
    worst = np.argsort(MATRIX @ MATRIX[9])[:4].astype(np.int32)
    neighbours = Neighbours(np.zeros((ROWS, 4), np.int32), np.zeros((ROWS, 4), np.float32))
    neighbours.items[9], neighbours.affinities[9] = worst, np.float32(1000)
    bundle = bundle_of(make_bundle, MATRIX, neighbours)
    agree(bundle, MATRIX[9:10], [np.array([9])])
    assert set(half(bundle).rank(MATRIX[9:10], [np.array([9])], 3, [np.array([9])])[0][0]) <= set(worst.tolist())
    neighbours.affinities[9] = -1
    with pytest.raises(BundleError, match="neighbours that lower a score"):
        half(replace(bundle, neighbours=neighbours))


def test_few_candidates_are_ranked_in_float32(
    make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    found_by = Shortlist.candidates

    def noted(self: Shortlist, *args: object) -> list[np.ndarray | None]:
        found = found_by(self, *args)  # type: ignore[arg-type]
        sizes.extend(-1 if one is None else len(one) for one in found)
        return found

    monkeypatch.setattr(Shortlist, "candidates", noted)
    vectors = np.random.default_rng(3).normal(size=(50, DIM)).astype(np.float32)
    half(bundle_of(make_bundle, MATRIX)).rank(vectors, [np.array([1])] * 50, K, [np.array([1])] * 50)
    assert len(sizes) == 50
    assert min(sizes) >= K
    assert max(sizes) < 2 * K


@pytest.mark.parametrize(("factor", "item"), [(1, 1), (1e-3, 1), (1, 1e-3), (30, 10), (1e-6, 50), (1e-5, 1e3)])
def test_no_score_is_further_off_than_the_bound_says(
    make_bundle: Callable[..., Path], factor: float, item: float
) -> None:
    vectors = np.random.default_rng(4).normal(size=(20, DIM)).astype(np.float32) * np.float32(factor)
    bound, off = bound_and_error(bundle_of(make_bundle, MATRIX * np.float32(item)), vectors)
    assert (off <= bound).all()
    assert bound.max() < 12 * off.max()  # and it is no bound that everything keeps


def test_the_bound_counts_what_rounding_the_sum_costs(make_bundle: Callable[..., Path]) -> None:
    matrix = np.zeros((ROWS, DIM), np.float32)
    matrix[:, 0], matrix[:, 1] = 2048, np.arange(ROWS) % 50  # which float16 holds, and no odd number above 2048
    vectors = np.zeros((1, DIM), np.float32)
    vectors[:, :2] = 1
    bound, off = bound_and_error(bundle_of(make_bundle, matrix), vectors)
    assert off.max() == 1
    assert (off <= bound).all()


def test_the_bound_counts_what_rounding_the_items_costs(make_bundle: Callable[..., Path]) -> None:
    matrix = np.zeros((ROWS, DIM), np.float32)
    matrix[:, 0], matrix[:, 1] = 1000 + np.arange(ROWS) % 7 / 10, -1000  # scores of less than 1, halves apart
    vectors = np.zeros((1, DIM), np.float32)
    vectors[:, :2] = 1
    bound, off = bound_and_error(bundle_of(make_bundle, matrix), vectors)
    assert off.max() > 0.1
    assert (off <= bound).all()


def bound_and_error(bundle: Bundle, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By how much each rounded score may be off, and by how much it is: both (batch, items)."""
    shortlist = half(bundle)._search
    assert isinstance(shortlist, Shortlist)
    rounded = vectors.astype(np.float16)
    feeds = {
        "vectors": rounded,
        "items": bundle.items.astype(np.float16),
        "excluded": np.zeros((len(vectors), 1), np.int64),
        "k": np.array([ROWS - 1], np.int64),
    }
    items, scores = shortlist._session.run(["indices", "scores"], feeds)
    exact = np.take_along_axis(vectors.astype(np.float64) @ bundle.items.T.astype(np.float64), items, axis=1)
    highest, least = _within(scores.astype(np.float64), shortlist._off(vectors, rounded)[:, None])
    return (highest - least) / 2, np.abs(scores - exact)


def test_items_that_are_out_for_everybody_are_in_no_answer(make_bundle: Callable[..., Path]) -> None:
    bundle = bundle_of(make_bundle, MATRIX)
    vectors = np.random.default_rng(6).normal(size=(5, DIM)).astype(np.float32)
    best = np.argsort(-(vectors @ MATRIX.T), axis=1)[:, :8].reshape(-1)
    runtime = half(bundle)
    assert runtime.scans
    for others in (0, 700, 1400):  # with more than are excluded one by one elsewhere
        mask = np.ones(ROWS, np.bool_)
        mask[best] = False
        mask[np.random.default_rng(7).permutation(ROWS)[:others]] = False
        among = Selection.of(mask, bundle.items, scanned=runtime.scans)
        assert among.left_out is not None
        excluded = [np.array([3])] * 5
        expected, _ = Runtime(bundle, device="cpu", threads=1).rank(vectors, excluded, K, excluded, among=among)
        found, _ = runtime.rank(vectors, excluded, K, excluded, among=among)
        np.testing.assert_array_equal(found, expected)


def test_what_does_not_fit_at_once_is_done_in_parts(
    make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shortlist_module, "_CELLS", 7 * ROWS)
    monkeypatch.setattr(shortlist_module, "_MEASURED", 100 * DIM)
    vectors = np.random.default_rng(8).normal(size=(30, DIM)).astype(np.float32)
    agree(bundle_of(make_bundle, MATRIX), vectors, [np.array([row + 1]) for row in range(30)])


def test_queries_that_prove_nothing_are_ranked_over_everything_and_together(
    make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shortlist_module, "_FEW", 300)
    bundle = bundle_of(make_bundle, near(2500))
    vectors = np.random.default_rng(9).normal(size=(8, DIM)).astype(np.float32)
    agree(bundle, vectors, [np.array([1])] * 8)
    runs: list[int] = []
    run_ranker = Runtime._run_ranker

    def counted(self: Runtime, vectors: np.ndarray, *others: object) -> object:
        runs.append(len(vectors))
        return run_ranker(self, vectors, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(Runtime, "_run_ranker", counted)
    half(bundle).rank(vectors, [np.array([1])] * 8, K, [np.array([1])] * 8)
    assert runs == [8]


@pytest.mark.parametrize("wrong", [1e30, np.nan])
def test_items_beyond_float16_are_refused(make_bundle: Callable[..., Path], wrong: float) -> None:
    bundle = bundle_of(make_bundle, MATRIX)
    items = MATRIX.copy()
    items[17, 3] = wrong
    with pytest.raises(BundleError, match="beyond what float16 holds"):
        half(replace(bundle, items=items))


def test_it_takes_a_device_and_a_bundle_that_has_the_graph(make_bundle: Callable[..., Path]) -> None:
    bundle = bundle_of(make_bundle, MATRIX)
    with pytest.raises(DeviceError, match="float16 is for a GPU and onnxruntime runs on CPUExecutionProvider"):
        Runtime(bundle, device="cpu", float16=True)
    files = {name: digest for name, digest in bundle.manifest.files.items() if name != "shortlist.onnx"}
    without = replace(bundle, manifest=bundle.manifest.model_copy(update={"files": files}))
    with pytest.raises(BundleError, match="no graph for float16; export the model again"):
        half(without)
