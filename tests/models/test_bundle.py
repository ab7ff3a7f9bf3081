"""The promises of a bundle: complete or absent, never changed, verifiable, self-testing.

The fifth, equal to torch, is held where bundles are made: tests/training/test_export.py.
"""

import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import VERSION
from models.bundle import read_bundle, verify
from models.cold import Learned
from models.draft import Content, write_bundle
from models.manifest import REQUIRED, VOCABULARY, BundleError, Manifest, sealed
from models.registry import Registry, RegistryError
from models.runtime import Runtime

FILES = [*REQUIRED, VOCABULARY, "manifest.json", "attributes.json", "attribute_vectors.npy", "attribute_names.json"]


@pytest.fixture
def whole(make_bundle: Callable[..., Path]) -> Path:
    """A bundle with attributes and what was learned of some."""
    folder = make_bundle("plain", promote=False)
    titles = {"title": ["", *(f"Film {row}" for row in range(1, 13))]}
    learned = Learned([("genre", "Drama"), ("year", "1995")], np.arange(24, dtype=np.float32).reshape(2, 12))
    return write_bundle(folder.parent, content_of(folder, version="v1", attributes=titles, learned=learned))


def content_of(folder: Path, **changes: Any) -> Content:
    """What was written, to be written again with something changed."""
    bundle = read_bundle(folder)
    version = changes.pop("version")
    values: dict[str, Any] = {
        "manifest": bundle.manifest.model_copy(update={"version": version, "files": {}, "seal": ""}),
        "encoder": bundle.encoder.read_bytes(),
        "ranker": bundle.ranker.read_bytes(),
        **{name: getattr(bundle, name) for name in ("items", "ids", "popularity", "attributes", "golden")},
    }
    return Content(**(values | changes))


def writable(folder: Path) -> Path:
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o644)
    return folder


def reseal(folder: Path, **changes: Any) -> None:
    """Recompute every digest, as somebody would who wants to be believed."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.name != "manifest.json"
    }
    (folder / "manifest.json").write_bytes(sealed(Manifest.model_validate(manifest | changes)))


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(BundleError) as caught:
        read_bundle(folder)
    for word in words:
        assert word in str(caught.value)


# Complete or absent

_KILLED_WRITER = """
import os, pathlib, signal, sys
sys.path.insert(0, sys.argv[3])
from models.bundle import read_bundle
from models.draft import Content, write_bundle

source, step = pathlib.Path(sys.argv[1]), int(sys.argv[2])
original = read_bundle(source)
manifest = original.manifest.model_copy(update={"version": "late", "files": {}, "seal": ""})
content = Content(
    manifest, original.encoder.read_bytes(), original.ranker.read_bytes(), original.items, original.ids,
    original.popularity, original.attributes, original.golden,
)
taken = 0

def count(event, arguments):
    # Every file that is opened for writing, made read-only, synced or renamed below the artifacts is a step.
    global taken
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT
    if writes or event in ("os.chmod", "os.rename"):
        taken += 1
        if taken == step:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(count)
write_bundle(source.parent, content)
print(taken)
"""


def test_a_bundle_is_complete_or_absent_wherever_its_writer_is_killed(whole: Path) -> None:
    root = str(Path(__file__).parents[2])

    def write(step: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", _KILLED_WRITER, str(whole), str(step), root]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    registry = Registry(whole.parent)
    before = registry.versions()
    finished = write(0)  # never killed, to count the steps
    assert finished.returncode == 0, finished.stderr
    steps = int(finished.stdout)
    assert steps >= len([*REQUIRED, VOCABULARY, "manifest.json"]) * 2  # a write and a chmod for each at least
    read_bundle(whole.parent / "late")
    shutil.rmtree(whole.parent / "late")

    for step in {1, 2, *range(3, steps, 3), steps - 1, steps}:
        assert write(step).returncode == -signal.SIGKILL
        assert registry.versions() == before
        assert not (whole.parent / "late").exists()
    drafts = [path for path in whole.parent.iterdir() if path.name.startswith(".draft-")]
    assert drafts
    for draft in drafts:
        refused(draft)
        with pytest.raises(RegistryError):
            registry.promote(draft.name)
    assert write(0).returncode == 0  # what the dead left behind is in nobody's way
    assert all(draft.exists() for draft in drafts)  # and may be what another is writing


def test_a_draft_that_nobody_has_written_for_a_day_goes_with_the_next_bundle(
    whole: Path, make_bundle: Callable[..., Path]
) -> None:
    left, written = whole.parent / ".draft-left", whole.parent / ".draft-written"
    for draft in (left, written):
        draft.mkdir()
        (draft / "items.npy").write_bytes(b"half")
    yesterday = time.time() - 25 * 3600
    for path in (left, left / "items.npy", written):
        os.utime(path, (yesterday, yesterday))
    make_bundle("next")
    assert not left.exists()
    assert written.exists()


def test_a_writer_that_fails_leaves_nothing_behind(whole: Path) -> None:
    content = content_of(whole, version="v2", attributes={"weight": [float("nan")] * 13})
    with pytest.raises(ValueError, match="JSON"):
        write_bundle(whole.parent, content)
    assert sorted(path.name for path in whole.parent.iterdir()) == ["plain", "v1"]


# Never changed


def test_a_version_is_never_written_twice(whole: Path) -> None:
    before = {path.name: path.read_bytes() for path in whole.iterdir()}
    with pytest.raises(BundleError, match=r"v1 exists already.*new version"):
        write_bundle(whole.parent, content_of(whole, version="v1", popularity=np.zeros(13, np.float32)))
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == before
    assert sorted(path.name for path in whole.parent.iterdir()) == ["plain", "v1"]


def test_files_of_a_bundle_can_be_read_by_all_and_written_by_none(whole: Path) -> None:
    assert {stat.S_IMODE(path.stat().st_mode) for path in whole.iterdir()} == {0o444}
    assert stat.S_IMODE(whole.stat().st_mode) == 0o755
    items = read_bundle(whole).items
    assert isinstance(items.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        items[1, 0] = 1


# Verifiable


def test_what_is_written_is_what_is_read(whole: Path) -> None:
    bundle = read_bundle(whole)
    assert (bundle.manifest.items, bundle.manifest.dim, bundle.items.shape) == (12, 12, (13, 12))
    assert bundle.ids == ["", *(f"i{row}" for row in range(1, 13))]
    assert bundle.index_of["i12"] == 12
    assert bundle.indices(["i3", "unknown", "", "i1", "i3"]).tolist() == [3, 1, 3]
    assert bundle.indices([]).dtype == np.int64
    assert bundle.attributes is not None
    assert bundle.attributes["title"][12] == "Film 12"
    assert set(bundle.manifest.files) == set(FILES) - {"manifest.json"}
    assert verify(whole) == bundle.manifest


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_anywhere_is_found(whole: Path, name: str) -> None:
    path = writable(whole) / name
    original = path.read_bytes()
    for position in np.linspace(0, len(original) - 1, 25).astype(int):
        damaged = bytearray(original)
        damaged[position] ^= 1 << int(position) % 8
        path.write_bytes(damaged)
        refused(whole, name)
    path.write_bytes(original)
    read_bundle(whole)


def test_a_changed_figure_in_the_manifest_is_found(whole: Path) -> None:
    path = writable(whole) / "manifest.json"
    path.write_text(path.read_text().replace('"ndcg@10": 0.5', '"ndcg@10": 0.6'))
    refused(whole, "manifest.json", "changed since it was written")


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_found(whole: Path, name: str) -> None:
    path = writable(whole) / name
    path.write_bytes(path.read_bytes()[:-1])
    refused(whole, name)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found(whole: Path, name: str) -> None:
    (whole / name).unlink()
    refused(whole, name)


@pytest.mark.parametrize("extra", ["readme.txt", "model.bin", ".hidden"])
def test_an_extra_file_is_found(whole: Path, extra: str) -> None:
    (whole / extra).write_text("")
    refused(whole, extra, "does not belong")


def test_a_file_that_is_none_of_a_bundle_is_refused_although_the_manifest_lists_it(whole: Path) -> None:
    (writable(whole) / "encoder.onnx.data").write_bytes(b"weights")
    reseal(whole)
    refused(whole, "encoder.onnx.data")


def test_swapped_files_are_found(whole: Path) -> None:
    writable(whole)
    (whole / "encoder.onnx").rename(whole / "x")
    (whole / "ranker.onnx").rename(whole / "encoder.onnx")
    (whole / "x").rename(whole / "ranker.onnx")
    refused(whole, ".onnx: sha256 is")


def test_a_renamed_folder_is_found(whole: Path) -> None:
    other = whole.rename(whole.parent / "v9")
    refused(other, "v1", "v9")


@pytest.mark.parametrize("name", FILES)
def test_a_link_out_of_the_folder_is_found_even_to_the_same_bytes(whole: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    (whole / name).rename(outside)
    (whole / name).symlink_to(outside)
    refused(whole, name, "link")


@pytest.mark.parametrize("name", ["items.npy", "popularity.npy"])
@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda array: array[:-1], "manifest says"),
        (lambda array: np.concatenate([array, array[:1]]), "manifest says"),
        (lambda array: array.astype(np.float64), "float64"),
        (lambda array: np.where(np.arange(array.size).reshape(array.shape) == 3, np.nan, array), "finite"),
        (lambda array: np.where(np.arange(array.size).reshape(array.shape) == 3, np.inf, array), "finite"),
    ],
    ids=["a row less", "a row more", "wider numbers", "NaN", "infinity"],
)
def test_wrong_rows_are_found_whatever_the_digests_say(
    whole: Path, name: str, change: Callable[[np.ndarray], np.ndarray], word: str
) -> None:
    array = np.load(whole / name)
    changed = change(array)
    np.save(writable(whole) / name, changed if word == "float64" else changed.astype(np.float32))
    reseal(whole)
    refused(whole, name, word)


@pytest.mark.parametrize(
    "ids",
    [
        ["", *(f"i{row}" for row in range(1, 12)), "i1"],
        ["", *(f"i{row}" for row in range(1, 12))],
        ["i0", *(f"i{row}" for row in range(1, 13))],
        ["", "", *(f"i{row}" for row in range(2, 13))],
        ["", 1, *(f"i{row}" for row in range(2, 13))],
        {"": 0},
    ],
    ids=["twice", "too few", "padding has a name", "an item has none", "a number", "no list"],
)
def test_a_vocabulary_that_is_none_is_found_whatever_the_digests_say(whole: Path, ids: Any) -> None:
    (writable(whole) / "vocabulary.json").write_text(json.dumps(ids))
    reseal(whole)
    refused(whole, "vocabulary.json")


def test_what_was_learned_of_attributes_comes_back(whole: Path) -> None:
    learned = read_bundle(whole).learned
    assert learned is not None
    assert learned.names == [("genre", "Drama"), ("year", "1995")]
    assert learned.vectors.tolist() == np.arange(24).reshape(2, 12).tolist()


@pytest.mark.parametrize(
    "names",
    [
        [["genre", "Drama"]],
        [["genre", "Drama"], ["year", 1995]],
        [["genre", "Drama"], ["year"]],
        ["genre", "year"],
        {"genre": "Drama", "year": "1995"},
    ],
)
def test_vectors_without_a_column_and_a_value_each_are_found(whole: Path, names: Any) -> None:
    (writable(whole) / "attribute_names.json").write_text(json.dumps(names))
    reseal(whole)
    refused(whole, "attribute_names.json")


@pytest.mark.parametrize("name", ["attribute_vectors.npy", "attribute_names.json"])
def test_vectors_without_names_and_names_without_vectors_are_found(whole: Path, name: str) -> None:
    (writable(whole) / name).unlink()
    reseal(whole)
    refused(whole, "belong together")


def test_vectors_of_another_width_than_items_are_found(whole: Path) -> None:
    np.save(writable(whole) / "attribute_vectors.npy", np.zeros((2, 11), np.float32))
    reseal(whole)
    refused(whole, "attribute_vectors.npy")


@pytest.mark.parametrize("attributes", [[], {"title": ["a"]}, {"title": "abc"}])
def test_attributes_without_a_value_for_every_row_are_found(whole: Path, attributes: Any) -> None:
    (writable(whole) / "attributes.json").write_text(json.dumps(attributes))
    reseal(whole)
    refused(whole, "attributes.json")


@pytest.mark.parametrize(
    "change",
    [
        lambda golden: golden | {"scores": golden["scores"][:-1]},
        lambda golden: golden | {"vectors": golden["vectors"][:, :-1]},
        lambda golden: golden | {"lengths": golden["lengths"][:, None]},
        lambda golden: {name: array for name, array in golden.items() if name != "indices"},
        lambda golden: {name: array[:0] for name, array in golden.items()},
    ],
    ids=["a case less", "another dim", "another shape", "a part missing", "no cases"],
)
def test_golden_inputs_that_fit_no_model_are_found(whole: Path, change: Callable[[Any], Any]) -> None:
    with np.load(whole / "golden.npz") as arrays:
        golden = dict(arrays)
    np.savez(writable(whole) / "golden.npz", **change(golden))
    reseal(whole)
    refused(whole, "golden.npz")


@pytest.mark.parametrize("found", [3, 1, 0, "2", None])
def test_a_format_of_another_time_is_told_from_damage(whole: Path, found: Any) -> None:
    manifest = json.loads((whole / "manifest.json").read_text())
    new = manifest | {"format": found, "field_of_the_future": 1}
    (writable(whole) / "manifest.json").write_text(json.dumps(new))
    refused(whole, "manifest.json", f"format is {found!r}", "reads 2")


@pytest.mark.parametrize(("oldest", "reads"), [("0.0.9", True), (VERSION, True), ("0.1.1", False), ("0.10.0", False)])
def test_a_bundle_for_a_later_version_asks_for_an_update(whole: Path, oldest: str, reads: bool) -> None:
    writable(whole)
    reseal(whole, reader=oldest)
    if reads:
        assert read_bundle(whole).manifest.reader == oldest
    else:
        refused(whole, f"needs version {oldest} or later", VERSION)


@pytest.mark.parametrize(("key", "value"), [("items", 13), ("dim", 11), ("items", 0), ("version", "../v1")])
def test_counts_and_names_that_the_files_contradict_are_found(whole: Path, key: str, value: Any) -> None:
    manifest = read_bundle(whole).manifest
    path = writable(whole) / "manifest.json"
    path.write_bytes(sealed(manifest.model_copy(update={key: value})))
    refused(whole, "manifest says" if value in (13, 11) else f"manifest.json: {key}")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\xff"])
def test_a_manifest_that_is_none_is_found(whole: Path, text: str) -> None:
    (writable(whole) / "manifest.json").write_text(text, encoding="latin-1")
    refused(whole, "manifest.json")


def test_a_manifest_that_lists_too_little_is_found(whole: Path) -> None:
    manifest = json.loads((writable(whole) / "manifest.json").read_text())
    del manifest["files"]["ranker.onnx"]
    (whole / "manifest.json").write_bytes(sealed(Manifest.model_validate(manifest)))
    refused(whole, "ranker.onnx")


def test_a_folder_that_does_not_exist_is_no_bundle(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "manifest.json")


def test_an_array_that_would_run_code_is_refused(whole: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, ("touch /tmp/should-never-exist",)

    array = np.empty((13, 12), object)
    array[:] = Evil()
    np.save(writable(whole) / "items.npy", array, allow_pickle=True)
    reseal(whole)
    refused(whole, "items.npy")
    assert not Path("/tmp/should-never-exist").exists()


# Self-testing


def test_golden_inputs_unmask_changed_weights_under_right_digests(whole: Path) -> None:
    Runtime(read_bundle(whole), device="cpu").replay_golden()
    graph = (whole / "encoder.onnx").read_bytes()
    before = np.float32(11).tobytes()  # the score of the next item
    assert before in graph
    (writable(whole) / "encoder.onnx").write_bytes(graph.replace(before, np.float32(11.01).tobytes()))
    reseal(whole)
    bundle = read_bundle(whole)  # nothing that a digest could show
    with pytest.raises(BundleError, match=r"golden.*0\.01 away"):
        Runtime(bundle, device="cpu").replay_golden()


def _nan_ranker() -> bytes:
    return _ranker_with_end("Div", "scores")  # 0 / 0 is NaN


def _shifted_ranker() -> bytes:
    return _ranker_with_end("Add", "indices")


def _ranker_with_end(operator: str, output: str) -> bytes:
    """The ranker with one more node: scores divided by zero, or indices one further than they are."""
    import onnx
    from onnx import TensorProto, helper

    from training.ranker import build_ranker

    model = onnx.load_from_string(build_ranker())
    node = next(node for node in model.graph.node if node.op_type == "TopK")
    node.output[:] = [f"raw_{name}" if name == output else name for name in node.output]
    constant = (
        helper.make_tensor("end", TensorProto.FLOAT, [1], [0.0])
        if operator == "Div"
        else helper.make_tensor("end", TensorProto.INT64, [1], [1])
    )
    model.graph.initializer.append(constant)
    raw = f"raw_{output}"
    if operator == "Div":
        model.graph.node.append(helper.make_node("Mul", [raw, "end"], ["zeros"]))
        raw = "zeros"
    model.graph.node.append(helper.make_node(operator, [raw, "end"], [output]))
    return model.SerializeToString()


@pytest.mark.parametrize("ranker", [_nan_ranker, _shifted_ranker])
def test_golden_inputs_unmask_a_ranker_that_gives_other_items_or_no_numbers(
    whole: Path, ranker: Callable[[], bytes]
) -> None:
    folder = write_bundle(whole.parent, content_of(whole, version="v2", ranker=ranker()))
    with pytest.raises(BundleError, match="golden inputs"):
        Runtime(read_bundle(folder), device="cpu").replay_golden()


def test_golden_inputs_unmask_a_graph_that_cannot_run(whole: Path) -> None:
    ranker = (whole / "ranker.onnx").read_bytes()  # a graph, but with other inputs
    folder = write_bundle(whole.parent, content_of(whole, version="v2", encoder=ranker))
    with pytest.raises(BundleError, match=r"v2.*cannot run"):
        Runtime(read_bundle(folder), device="cpu").replay_golden()
