"""A finished run becomes a bundle only if onnxruntime computes what torch does."""

import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

import training.export as export_module
from models.bundle import Bundle, read_bundle
from models.draft import Content, write_bundle
from models.manifest import BundleError
from models.registry import Registry
from models.runtime import TOLERANCE, Runtime
from models.sasrec import SASRec, SASRecConfig
from training.export import ExportError, certify, encoder_graph, export
from training.ranker import build_ranker
from training.run import RunError, RunFolder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def bundle(published: Path) -> Bundle:
    return read_bundle(published)


@pytest.fixture
def model(finished_run: RunFolder) -> SASRec:
    model = finished_run.model()
    assert isinstance(model, SASRec)
    return model


def content(bundle: Bundle, **changes: Any) -> Content:
    values: dict[str, Any] = {field.name: getattr(bundle, field.name, None) for field in fields(Content)}
    values["manifest"] = bundle.manifest.model_copy(update={"files": {}, "seal": ""})
    values |= {"encoder": bundle.encoder.read_bytes(), "ranker": bundle.ranker.read_bytes(), "shortlist": None}
    return Content(**(values | changes))


@torch.no_grad()
def torch_vector(model: SASRec, history: np.ndarray) -> np.ndarray:
    """The vector at the last position, computing all of them, for one unpadded history."""
    newest = history[-model.config.length :] if len(history) else np.array([0])
    return model(torch.from_numpy(newest.astype(np.int64))[None])[0, -1].numpy()


@pytest.mark.parametrize("float16", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("batch", [1, 2, 3, 7, 64, 65])
def test_the_published_graphs_give_torchs_scores_for_every_batch_and_length(
    bundle: Bundle, model: SASRec, batch: int, float16: bool
) -> None:
    runtime = Runtime(bundle, device="cpu", threads=1, bound=float16, float16=float16)
    generator = np.random.default_rng(batch)
    for longest in (0, 1, 2, model.config.length - 1, model.config.length, model.config.length + 9):
        lengths = [longest, *generator.integers(0, longest + 1, batch - 1)]
        histories = [generator.integers(1, model.items + 1, length) for length in lengths]
        expected = np.stack([torch_vector(model, history) for history in histories])
        found = runtime.encode(histories)
        np.testing.assert_allclose(found, expected, atol=TOLERANCE)
        indices, scores = runtime.rank(found, histories, 10)
        truth = expected @ model.item_matrix().detach().numpy().T
        for row, history in enumerate(histories):
            allowed = np.setdiff1d(np.arange(1, model.items + 1), history)
            best = np.sort(truth[row, allowed])[::-1][:10]
            np.testing.assert_allclose(scores[row], best, atol=TOLERANCE)
            np.testing.assert_allclose(truth[row, indices[row]], best, atol=TOLERANCE)
            assert not set(indices[row].tolist()) & {0, *history.tolist()}


def test_an_over_long_history_is_its_newest_items(bundle: Bundle, model: SASRec) -> None:
    runtime = Runtime(bundle, device="cpu")
    history = np.random.default_rng(0).integers(1, model.items + 1, model.config.length + 20)
    whole, newest = runtime.encode([history]), runtime.encode([history[-model.config.length :]])
    assert whole.tolist() == newest.tolist()
    assert np.abs(whole - runtime.encode([history[: model.config.length]])).max() > 0.01


def test_the_encoder_file_does_not_contain_the_item_matrix(bundle: Bundle, model: SASRec) -> None:
    graph = onnx.load_from_string(bundle.encoder.read_bytes()).graph
    items = model.item_matrix().detach().numpy()
    shapes = [tuple(tensor.dims) for tensor in graph.initializer]
    assert items.shape not in shapes
    assert items[5].tobytes() not in bundle.encoder.read_bytes()
    assert [value.name for value in graph.input] == ["sequences", "lengths", "items"]
    assert not any(tensor.external_data for tensor in graph.initializer)
    np.testing.assert_array_equal(bundle.items, items)


def test_batch_and_length_are_dynamic_in_the_file(bundle: Bundle) -> None:
    graph = onnx.load_from_string(bundle.encoder.read_bytes()).graph
    dims = {value.name: [dim.dim_param for dim in value.type.tensor_type.shape.dim] for value in graph.input}
    assert all(dims["sequences"])
    assert dims["sequences"][0] == dims["lengths"][0] != dims["sequences"][1]


def test_the_manifest_says_where_the_model_comes_from(bundle: Bundle, finished_run: RunFolder) -> None:
    manifest, metrics, spec = bundle.manifest, finished_run.metrics(), finished_run.spec()
    assert (manifest.version, manifest.model, manifest.seed) == ("walks-1", "sasrec", 3)
    assert (manifest.items, manifest.dim, manifest.length) == (40, 16, 8)
    assert manifest.config["training"] == spec.config.training.model_dump(mode="json")
    assert manifest.metrics["test"] == metrics["test"]
    assert set(manifest.metrics) == {"validation", "test", "baselines"}
    assert manifest.data == spec.data
    assert manifest.data.files["walks.csv"] == finished_run.spec().data.files["walks.csv"]
    assert manifest.data.trained_until_ms is not None
    assert manifest.data.last_ms is not None
    assert manifest.data.trained_until_ms <= manifest.data.last_ms
    assert manifest.parity.cases > 300
    assert manifest.parity.top_k_agreed
    assert 0 < manifest.parity.largest_difference <= TOLERANCE
    assert list(bundle.ids) == finished_run.ids()
    assert bundle.popularity.tolist() == finished_run.popularity().tolist()
    assert bundle.attributes is not None
    titles = dict(zip(bundle.ids, bundle.attributes["title"], strict=True))
    assert titles["i7"] == "Film 7"


def test_golden_inputs_hold_an_empty_and_an_over_long_history(bundle: Bundle) -> None:
    lengths = bundle.golden.lengths
    assert lengths.min() == 0
    assert lengths.max() > bundle.manifest.length
    assert (np.diff(bundle.golden.scores, axis=1) <= 0).all()


def moved_weight(graph: bytes) -> bytes:
    """One weight of one matrix, a hundredth of what it was further."""
    model = onnx.load_from_string(graph)
    tensor = max(model.graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))
    weights = numpy_helper.to_array(tensor).copy()
    weights.flat[0] += 0.05
    tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
    return model.SerializeToString()


def reads_padding(graph: bytes) -> bytes:
    """Lengths are one too long: what stands after a history then counts as part of it."""
    model = onnx.load_from_string(graph)
    for node in model.graph.node:
        node.input[:] = ["longer" if name == "lengths" else name for name in node.input]
    model.graph.initializer.append(numpy_helper.from_array(np.array(1), "one_more"))
    model.graph.node.insert(0, helper.make_node("Add", ["lengths", "one_more"], ["longer"]))
    return model.SerializeToString()


def forgets_exclusion(graph: bytes) -> bytes:
    model = onnx.load_from_string(graph)
    for node in model.graph.node:
        node.input[:] = ["all_scores" if name == "eligible" else name for name in node.input]
    return model.SerializeToString()


def shifts_indices(graph: bytes) -> bytes:
    """Right scores beside the wrong items."""
    model = onnx.load_from_string(graph)
    top = next(node for node in model.graph.node if node.op_type == "TopK")
    top.output[:] = ["scores", "unshifted"]
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1]), "shift"))
    model.graph.node.append(helper.make_node("Add", ["unshifted", "shift"], ["indices"]))
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("part", "breaks"),
    [
        ("encoder", moved_weight),
        ("encoder", reads_padding),
        ("ranker", forgets_exclusion),
        ("ranker", shifts_indices),
    ],
)
def test_a_broken_graph_is_not_certified(
    bundle: Bundle, model: SASRec, part: str, breaks: Callable[[bytes], bytes]
) -> None:
    broken = content(bundle, **{part: breaks(getattr(bundle, part).read_bytes())})
    with pytest.raises(ExportError, match="nothing was published"):
        certify(broken, model)


def test_the_grid_finds_what_the_golden_inputs_do_not(bundle: Bundle, model: SASRec) -> None:
    """Golden answers made by the broken graph itself: the comparison with torch must still fail."""
    from dataclasses import replace

    broken = content(bundle, ranker=shifts_indices(build_ranker()))
    golden = replace(bundle.golden, indices=bundle.golden.indices - 1)
    with pytest.raises(ExportError, match="nothing was published"):
        certify(replace(broken, golden=golden), model)
    assert certify(content(bundle), model).top_k_agreed


def test_nothing_is_published_when_certification_fails(
    tmp_path: Path, finished_run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "build_ranker", lambda **options: forgets_exclusion(build_ranker(**options)))
    with pytest.raises(ExportError, match="nothing was published"):
        export(finished_run, tmp_path / "artifacts")
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.parametrize("version", ["../x", "a b", ".hidden", "a/b", "x" * 101])
def test_a_version_that_cannot_be_a_folder_is_refused_before_any_work(
    tmp_path: Path, finished_run: RunFolder, version: str
) -> None:
    with pytest.raises(ExportError, match="cannot name a folder"):
        export(finished_run, tmp_path, version=version)


def test_an_unfinished_run_is_told_how_to_go_on(tmp_path: Path, finished_run: RunFolder) -> None:
    shutil.copytree(finished_run.path, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    with pytest.raises(RunError, match="not finished; the same train command continues it"):
        export(RunFolder(tmp_path / "run"), tmp_path / "artifacts")
    with pytest.raises(RunError, match="not the folder of a training run"):
        export(RunFolder(tmp_path / "nowhere"), tmp_path / "artifacts")


def test_a_version_is_exported_once(published: Path, bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="exists already"):
        write_bundle(published.parent, content(bundle))
    assert Registry(published.parent).versions() == ["walks-1"]


@pytest.mark.parametrize(
    "config",
    [
        {"length": 1},
        {"length": 2, "heads": 4, "blocks": 3, "activation": "relu"},
        {"dim": 21, "heads": 1, "length": 20},  # item and position embeddings of one shape
    ],
)
def test_models_of_any_shape_export(bundle: Bundle, config: dict[str, Any]) -> None:
    from models.zoo import build

    torch.manual_seed(0)
    sizes = SASRecConfig(**({"dim": 8, "heads": 2, "blocks": 1, "inner": 8, "initial_deviation": 0.3} | config))
    model = build(sizes, 19).eval()
    changes = {"items": 19, "dim": sizes.dim, "length": sizes.length}
    made = content(
        bundle,
        manifest=bundle.manifest.model_copy(update={**changes, "files": {}, "seal": ""}),
        encoder=encoder_graph(model),
        items=model.item_matrix().detach().numpy(),
        ids=["", *map(str, range(19))],
        popularity=np.ones(20, np.float32),
        attributes=None,
        golden=export_module.golden(model),
    )
    assert certify(made, model).top_k_agreed
