"""A bundle as a function, against slow oracles that rank with nothing but loops and sorting."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.bundle import read_bundle
from models.device import DeviceError, load_onnxruntime
from models.manifest import BundleError
from models.runtime import EXCLUDED_SCORE, TOLERANCE, Runtime, same_items, tolerance_of

ITEMS = 300  # more than one history excludes


@pytest.fixture(params=[False, True], ids=["plain", "bound"])
def runtime(make_bundle: Callable[..., Path], request: pytest.FixtureRequest) -> Runtime:
    """After item i comes one of a few scores, so that many items tie. Bound, it runs as it does on a GPU."""
    table = np.random.default_rng(0).integers(0, 5, (ITEMS + 1, ITEMS)).astype(np.float32)
    return Runtime(read_bundle(make_bundle("v1", table=table)), device="cpu", threads=1, bound=request.param)


def ranked(scores: np.ndarray, excluded: set[int], k: int) -> list[int]:
    """The k best of items 1 to n by score, ties in item order; scores[0] is padding."""
    allowed = [item for item in range(1, len(scores)) if item not in excluded]
    return sorted(allowed, key=lambda item: (-scores[item], item))[:k]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(st.integers(0, ITEMS), st.lists(st.integers(1, ITEMS), max_size=30), st.booleans()),
        min_size=1,
        max_size=6,
    ),
    k=st.integers(1, ITEMS + 5),
)
def test_ranking_excludes_fills_and_breaks_ties_in_item_order(
    runtime: Runtime, rows: list[tuple[int, list[int], bool]], k: int
) -> None:
    histories = [np.array([last] if last else [], np.int64) for last, _, _ in rows]
    # Padding among the excluded must change nothing.
    excluded = [np.array([*items, 0] if padded else items, np.int64) for _, items, padded in rows]
    vectors = runtime.encode(histories)
    indices, scores = runtime.rank(vectors, excluded, k)
    assert indices.shape == scores.shape == (len(rows), min(k, ITEMS))
    for row in range(len(rows)):
        truth = runtime.bundle.items @ vectors[row]
        expected = ranked(truth, set(excluded[row].tolist()), k)
        eligible = scores[row] > EXCLUDED_SCORE
        assert indices[row][eligible].tolist() == expected  # k filled, or all there are; never padding
        assert scores[row][eligible].tolist() == truth[expected].tolist()
        assert not eligible[len(expected) :].any()  # the surplus comes last


def test_where_everything_is_excluded_nothing_is_eligible(runtime: Runtime) -> None:
    everything = np.arange(1, ITEMS + 1)
    _, scores = runtime.rank(runtime.encode([np.array([3]), np.array([4])]), [everything, everything[:-1]], 2)
    assert (scores[0] <= EXCLUDED_SCORE).all()
    assert (scores[1] > EXCLUDED_SCORE).tolist() == [True, False]


def test_padding_stays_out_when_every_row_excludes_as_many(runtime: Runtime) -> None:
    """Rows of one width need no padding, and padding is what keeps item 0 out otherwise."""
    vectors = -np.ones((2, ITEMS), np.float32)  # every item scores -1, the row of padding 0
    indices, scores = runtime.rank(vectors, [np.array([1, 2]), np.array([2, 3])], 3)
    assert indices.tolist() == [[3, 4, 5], [1, 4, 5]]
    assert (scores == -1).all()
    indices, _ = runtime.rank(vectors, [np.array([], np.int64)] * 2, 2)
    assert indices.tolist() == [[1, 2], [1, 2]]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(1, ITEMS), max_size=7), min_size=1, max_size=40))
def test_a_batch_of_any_lengths_is_encoded_as_one_by_one(runtime: Runtime, histories: list[list[int]]) -> None:
    arrays = [np.array(history, np.int64) for history in histories]
    together = runtime.encode(arrays)
    alone = np.concatenate([runtime.encode([history]) for history in arrays])
    assert together.tolist() == alone.tolist()
    table = runtime.bundle.golden.vectors  # rows 2, 2 and 0 of the table
    for history, vector in zip(histories, together, strict=True):
        if not history:
            assert vector.tolist() == table[2].tolist()
        elif history[-1] == 2:
            assert vector.tolist() == table[0].tolist()


def test_long_histories_share_buckets_and_come_back_in_their_order(make_bundle: Callable[..., Path]) -> None:
    short = read_bundle(make_bundle("short", table=np.vstack([np.zeros(50), np.eye(50)])))
    runtime = Runtime(replace(short, manifest=short.manifest.model_copy(update={"length": 300})), device="cpu")
    generator = np.random.default_rng(0)
    lengths = [0, 1, 7, 8, 9, 16, 17, 31, 32, 33, 64, 65, 128, 129, 256, 257, 299, 300, 301, 1000]
    histories = [generator.integers(1, 51, length) for length in generator.permutation(lengths)]
    expected = [history[-1] - 1 if len(history) else None for history in histories]
    found = [int(vector.argmax()) if vector.any() else None for vector in runtime.encode(histories)]
    assert found == expected


def test_runs_of_the_encoder_are_of_like_lengths_and_bounded(
    make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    short = read_bundle(make_bundle("short", table=np.vstack([np.zeros(50), np.eye(50)])))
    runtime = Runtime(replace(short, manifest=short.manifest.model_copy(update={"length": 500})), device="cpu")
    shapes: list[tuple[int, int]] = []
    run = runtime._encoder.run

    def seen(outputs: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        shapes.append(feeds["sequences"].shape)
        return run(outputs, feeds)

    monkeypatch.setattr(runtime._encoder, "run", seen)
    runtime.encode([np.ones(length, np.int64) for length in [3] * 60 + [50] * 4])
    assert sorted(shapes) == [(4, 50), (60, 3)]
    shapes.clear()
    runtime.encode([np.ones(499, np.int64)] * 500)  # as for an explanation of 500 events
    assert sum(rows for rows, _ in shapes) == 500
    assert max(rows * width for rows, width in shapes) <= 1 << 14


@pytest.mark.filterwarnings("ignore:Specified provider")  # onnxruntime's own word on it
def test_a_gpu_that_is_asked_for_and_missing_is_an_error_and_not_a_cpu(runtime: Runtime) -> None:
    if "CUDAExecutionProvider" in load_onnxruntime().get_available_providers():
        pytest.skip("this onnxruntime can use CUDA")
    with pytest.raises(DeviceError, match="device is cuda, but"):
        Runtime(runtime.bundle, device="cuda")
    assert Runtime(runtime.bundle, device="auto").provider == runtime.provider == "CPUExecutionProvider"


def test_a_file_that_is_no_graph_is_named(make_bundle: Callable[..., Path]) -> None:
    folder = make_bundle("v1")
    bundle = read_bundle(folder)
    (folder / "ranker.onnx").chmod(0o644)
    (folder / "ranker.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"ranker\.onnx.*cannot load"):
        Runtime(bundle, device="cpu")


ONE = np.array([[1.0, 0.0]], np.float32)
EXPECTED, SCORES = np.array([[1, 2]]), np.array([[3.0, 2.0]], np.float32)


@pytest.mark.parametrize(
    ("found", "same"),
    [
        ([[1, 2]], True),
        ([[1, 3]], True),  # item 3 scores 2 as well
        ([[2, 1]], False),
        ([[1, 1]], False),
        ([[1, 4]], False),
        ([[1, 5]], False),  # no such row
        ([[1, -1]], False),
        ([[1]], False),
    ],
)
def test_only_an_exchange_of_equal_scores_is_the_same_ranking(found: list[list[int]], same: bool) -> None:
    items = np.array([[0, 0], [3, 0], [2, 0], [2, 9], [1, 0]], np.float32)
    assert same_items(items, ONE, np.array(found), EXPECTED, SCORES) is same


@pytest.mark.parametrize(
    ("scores", "times"),
    [([0.5, -0.2], 1), ([], 1), ([3.0, -2000.0], 2000), ([40.0, EXCLUDED_SCORE, -np.inf], 40), ([np.nan, 2.0], 2)],
)
def test_what_rounding_may_do_grows_with_the_scores(scores: list[float], times: int) -> None:
    assert tolerance_of(np.array([scores], np.float32)) == pytest.approx(TOLERANCE * times)


def test_an_item_that_comes_twice_is_no_exchange() -> None:
    items = np.array([[0, 0], [2, 0], [2, 0]], np.float32)
    scores = np.array([[2.0, 2.0]], np.float32)
    assert same_items(items, ONE, np.array([[2, 1]]), np.array([[1, 2]]), scores)
    assert not same_items(items, ONE, np.array([[1, 1]]), np.array([[1, 2]]), scores)
