"""Sessions with resident matrices, on the CPU by the code that a GPU runs; and on a GPU where there is one."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.binding import BoundSession, Resident
from models.bundle import Bundle, read_bundle
from models.device import CUDA, DeviceError, load_onnxruntime
from models.neighbours import Neighbours
from models.runtime import EXCLUDED_SCORE, Runtime, same_items
from models.sasrec import SASRec, SASRecConfig
from models.selection import Selection
from training.export import encoder_graph
from training.ranker import build_ranker

ITEMS, DIM = 400, 16


@pytest.fixture(scope="module")
def model() -> tuple[np.ndarray, bytes]:
    """An item matrix, and the graph of an encoder that embeds items by it."""
    made = SASRec(SASRecConfig(dim=DIM, length=8, blocks=1), ITEMS).eval()
    return made.item_matrix().detach().numpy().copy(), encoder_graph(made)


@pytest.fixture
def bundle(make_bundle: Callable[..., Path], model: tuple[np.ndarray, bytes]) -> Bundle:
    """Its encoder reads the matrix that the ranker scores, and neighbours add to scores."""
    matrix, encoder = model
    generator = np.random.default_rng(0)
    neighbours = Neighbours(
        generator.integers(0, ITEMS + 1, (ITEMS + 1, 4)).astype(np.int32),
        generator.random((ITEMS + 1, 4)).astype(np.float32),
    )
    neighbours.items[0] = neighbours.affinities[0] = 0
    table = np.zeros((ITEMS + 1, DIM))
    folder = make_bundle("v1", table=table, matrix=matrix, neighbours=neighbours, encoder=encoder)
    found = read_bundle(folder)
    return replace(found, manifest=found.manifest.model_copy(update={"length": 8}))


def asked(count: int, seed: int = 1) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(1, ITEMS + 1, length) for length in generator.integers(0, 12, count)]


def answers(runtime: Runtime, histories: list[np.ndarray], among: Selection | None = None) -> list[np.ndarray]:
    vectors = runtime.encode(histories)
    return [vectors, *runtime.rank(vectors, histories, 7, histories, among=among)]


def _same(bundle: Bundle, one: Runtime, plain: Runtime, batch: int) -> None:
    """The same vectors, scores and items, but for what rounds otherwise."""
    histories = asked(batch)
    vectors, indices, scores = answers(plain, histories)
    found_vectors, found, found_scores = answers(one, histories)
    np.testing.assert_allclose(found_vectors, vectors, atol=1e-4)
    np.testing.assert_allclose(found_scores, scores, atol=1e-4)
    assert bundle.neighbours is not None
    bonus = bundle.neighbours.bonus(histories)
    assert same_items(bundle.items, vectors, found, indices, scores, bonus=bonus)


@pytest.mark.parametrize("batch", [1, 3, 20, 64])
def test_items_in_half_the_bytes_give_the_same_answers(bundle: Bundle, batch: int) -> None:
    half = Runtime(bundle, device="cpu", threads=1, bound=True, float16=True)
    _same(bundle, half, Runtime(bundle, device="cpu", threads=1), batch)
    some = np.random.default_rng(2).random(ITEMS + 1) < 0.3
    among = Selection.of(some, bundle.items)
    assert some[answers(half, asked(batch), among)[1]].all()


@pytest.mark.parametrize("batch", [1, 3, 20])
def test_bound_runs_give_what_plain_ones_give_to_the_bit(bundle: Bundle, batch: int) -> None:
    plain, bound = (Runtime(bundle, device="cpu", threads=1, bound=way) for way in (False, True))
    some = np.random.default_rng(2).random(ITEMS + 1) < 0.3
    for among in (None, Selection.of(some, bundle.items)):
        for expected, found in zip(
            answers(plain, asked(batch), among), answers(bound, asked(batch), among), strict=True
        ):
            assert np.array_equal(expected, found)


def test_on_the_cpu_a_matrix_stays_where_it_lies_and_is_there_once() -> None:
    matrix = np.arange(12, dtype=np.float32).reshape(4, 3)
    resident = Resident("cpu", [matrix, matrix])
    value = resident.value(matrix)
    assert value is not None
    assert value.data_ptr() == matrix.ctypes.data
    assert resident.value(matrix.copy()) is None  # equal, and another array


def test_a_mapped_matrix_is_bound_without_a_copy(tmp_path: Path) -> None:
    np.save(tmp_path / "items.npy", np.ones((5, 3), np.float32))
    mapped = np.load(tmp_path / "items.npy", mmap_mode="r")
    value = Resident("cpu", [mapped]).value(mapped)
    assert value is not None
    assert value.data_ptr() == mapped.ctypes.data


def test_a_bound_session_takes_arrays_as_a_plain_one_does_however_they_lie_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "ranker.onnx"
    path.write_bytes(build_ranker())
    session = load_onnxruntime().InferenceSession(path, providers=["CPUExecutionProvider"])
    matrix = np.array([[0, 0], [1, 0], [0, 1]], np.float32)
    resident = Resident("cpu", [matrix])
    feeds: dict[str, np.ndarray] = {
        "vectors": np.array([[1, 2]], np.float32),
        "items": matrix,
        "excluded": np.array([[0]], np.int64),
        "k": np.array([3], np.int64),
    }
    bound = BoundSession(session, resident)
    indices, scores = bound.run(["indices", "scores"], feeds)
    assert indices.tolist() == [[2, 1, 0]]
    assert scores[0, :2].tolist() == [2, 1]
    assert scores[0, 2] == np.float32(EXCLUDED_SCORE)
    transposed = feeds | {"vectors": np.asfortranarray(np.array([[1, 2], [3, 1]], np.float32))}
    assert bound.run(["indices"], transposed | {"excluded": np.zeros((2, 1), np.int64)})[0][:, 0].tolist() == [2, 1]


def test_threads_that_run_at_once_get_their_own_answers(bundle: Bundle) -> None:
    runtime = Runtime(bundle, device="cpu", threads=1, bound=True)
    batches = [asked(1 + number % 5, seed=number) for number in range(60)]
    expected = [answers(runtime, batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda batch: answers(runtime, batch), batches))
    for one, other in zip(expected, found, strict=True):
        assert all(np.array_equal(left, right) for left, right in zip(one, other, strict=True))


def test_a_bound_bundle_replays_its_golden_inputs(make_bundle: Callable[..., Path]) -> None:
    bundle = read_bundle(make_bundle("plain", items=20, step=3))
    for float16 in (False, True):
        Runtime(bundle, device="cpu", bound=True, float16=float16).replay_golden()


def test_a_device_that_is_not_there_is_named_with_what_was_to_be_put_on_it() -> None:
    if CUDA in load_onnxruntime().get_available_providers():
        pytest.skip("this onnxruntime can use CUDA")
    with pytest.raises(DeviceError, match=r"matrix of 16 bytes could not be put on cuda.*set device to cpu"):
        Resident("cuda", [np.zeros((2, 2), np.float32)])


@pytest.fixture
def cuda(bundle: Bundle) -> Runtime:
    try:
        runtime = Runtime(bundle, device="cuda")
    except DeviceError as error:
        pytest.skip(f"no CUDA device, so that nothing of the GPU path is shown here but its code on the CPU: {error}")
    return runtime


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Specified provider")  # onnxruntime's own word on it
def test_a_gpu_ranks_as_the_cpu_does(bundle: Bundle, cuda: Runtime) -> None:
    plain = Runtime(bundle, device="cpu")
    for runtime in (cuda, Runtime(bundle, device="cuda", float16=True)):
        for batch in (1, 3, 20, 64):
            _same(bundle, runtime, plain, batch)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_scores_exclusion_and_top_k_stay_on_the_gpu(bundle: Bundle, cuda: Runtime, tmp_path: Path) -> None:
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    session = onnxruntime.InferenceSession(bundle.ranker, options, providers=[(CUDA, {"use_tf32": "0"})])
    resident = Resident("cuda", [bundle.items])
    assert bundle.neighbours is not None
    feeds: dict[str, np.ndarray] = {
        "vectors": cuda.encode(asked(4)),
        "items": bundle.items,
        "excluded": np.zeros((4, 1), np.int64),
        "k": np.array([5], np.int64),
        "recent": np.zeros((4, 20), np.int64),
        "neighbours": bundle.neighbours.items.reshape(-1),
        "affinities": bundle.neighbours.affinities.reshape(-1),
    }
    BoundSession(session, resident).run(["indices", "scores"], feeds)
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    ran = {
        event["args"]["op_name"]: event["args"]["provider"] for event in events if "provider" in event.get("args", {})
    }
    assert {ran[name] for name in ("Gemm", "ScatterElements", "TopK")} == {CUDA}
