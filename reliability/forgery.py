"""What a bundle can be made into by somebody who recomputes its digests afterwards, so that they tell nothing."""

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import external_data_helper, numpy_helper

from models.manifest import GOLDEN
from reliability.damage import Damage, Named
from reliability.forged_ids import forged_ids
from reliability.forged_text import forged_manifests, forged_texts, reseal, rewritten

_FLOATS = ("items.npy", "popularity.npy", "affinities.npy", "inputs.npy", "scales.npy")
_ARRAYS = (*_FLOATS, "neighbours.npy", "items8.npy")
_GRAPHS = ("encoder.onnx", "ranker.onnx", "scan.onnx")

Array = NDArray[Any]


def forgeries(canary: Path) -> list[Named]:
    """Forgeries of a bundle with every file; `canary` comes to be if one of them gets to run its code."""
    return [
        *_of_arrays(canary),
        *_of_golden(canary),
        *forged_texts(),
        *forged_ids(),
        *_of_graphs(),
        *forged_manifests(),
    ]


class _Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.canary, "w")


def _of_arrays(canary: Path) -> list[Named]:
    def at(array: Array, random: np.random.Generator, value: float) -> Array:
        array.reshape(-1)[random.integers(array.size)] = value
        return array

    changes: dict[str, Callable[[Array, np.random.Generator], Array]] = {
        "a row less": lambda array, random: array[:-1],
        "a row more": lambda array, random: np.concatenate([array, array[:1]]),
        "no rows": lambda array, random: array[:0],
        "one dimension more": lambda array, random: array[..., None],
        "wider numbers": lambda array, random: array.astype(np.float64),
        "whole numbers": lambda array, random: array.astype(np.int64),
        "complex numbers": lambda array, random: array.astype(np.complex64),
        "text": lambda array, random: array.astype("U8"),
        "bytes in another order": lambda array, random: array.astype(np.dtype(np.float32).newbyteorder()),
    }
    unreal: dict[str, Callable[[Array, np.random.Generator], Array]] = {
        "NaN": lambda array, random: at(array, random, np.nan),
        "infinity": lambda array, random: at(array, random, np.inf),
    }
    found = [Named(f"{name}: {how}", _array(name, change)) for name in _ARRAYS for how, change in changes.items()]
    found += [Named(f"{name}: {how}", _array(name, change)) for name in _FLOATS for how, change in unreal.items()]
    for name in _ARRAYS:
        for shape in ((1 << 40,), (1 << 33, 1 << 33), (10**30,), (1601, 1 << 31), (-1, 16)):
            found.append(Named(f"{name}: says its shape is {shape}", rewritten(name, _huge(shape))))
        found.append(Named(f"{name}: pickled", rewritten(name, _pickled(canary))))
        found.append(Named(f"{name}: an archive", rewritten(name, lambda path: _archive(path, {"a": np.zeros(3)}))))
        found.append(Named(f"{name}: a header of brackets", rewritten(name, _brackets)))
    found += [
        Named("popularity.npy: negative", _array("popularity.npy", lambda array, random: at(array, random, -1))),
        Named("scales.npy: zero", _array("scales.npy", lambda array, random: at(array, random, 0))),
        Named("neighbours.npy: beyond", _array("neighbours.npy", lambda array, random: at(array, random, 1 << 30))),
        Named("neighbours.npy: below", _array("neighbours.npy", lambda array, random: at(array, random, -1))),
        Named("neighbours.npy: of padding", _array("neighbours.npy", lambda array, random: array + (array == 0))),
    ]
    for name in ("items.npy", "inputs.npy", "affinities.npy", "items8.npy"):
        shuffled = _array(name, lambda array, random: random.permutation(array), "golden.npz", "neighbours.npy")
        found.append(Named(f"{name}: shuffled", shuffled))
    return found


def _of_golden(canary: Path) -> list[Named]:
    changes: dict[str, Callable[[dict[str, Array]], dict[str, Array]]] = {
        "none": lambda arrays: {name: array[:0] for name, array in arrays.items()},
        "answers to nothing": lambda arrays: arrays | {name: arrays[name][:, :0] for name in ("indices", "scores")},
        "one more": lambda arrays: arrays | {"more": np.zeros(3)},
        "rated": lambda arrays: arrays | {"values": np.zeros(arrays["sequences"].shape, np.float32)},
        "pickled": lambda arrays: arrays | {"scores": np.array([_Payload(canary)] * len(arrays["scores"]))},
    }
    for name, beyond in (("sequences", 9999), ("lengths", 99), ("excluded", 9999), ("indices", 9999)):
        for value in (beyond, -1):
            changes[f"{name} {value}"] = lambda arrays, name=name, value=value: (  # type: ignore[misc]
                arrays | {name: np.full_like(arrays[name], value)}
            )
    for name in ("sequences", "lengths", "excluded", "vectors", "indices", "scores"):
        changes[f"{name} missing"] = lambda arrays, name=name: {  # type: ignore[misc]
            one: array for one, array in arrays.items() if one != name
        }
        changes[f"{name} a case short"] = lambda arrays, name=name: arrays | {name: arrays[name][:-1]}  # type: ignore[misc]
        changes[f"{name} of half numbers"] = lambda arrays, name=name: (  # type: ignore[misc]
            arrays | {name: arrays[name].astype(np.float16)}
        )
    for name in ("vectors", "scores"):
        for word, more in (("NaN", np.nan), ("other numbers", 1.0), ("infinite", np.inf)):
            changes[f"{name} {word}"] = lambda arrays, name=name, more=more: (  # type: ignore[misc]
                arrays | {name: arrays[name] + np.float32(more)}
            )

    def changed(change: Callable[[dict[str, Array]], dict[str, Array]]) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            with np.load(path) as arrays:
                found = change(dict(arrays))
            _archive(path, found)

        return write

    def compressed(path: Path) -> None:
        with np.load(path) as arrays:
            found = dict(arrays)
        np.savez_compressed(path, **found)

    def bomb(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("scores.npy", "w") as part:
            for _ in range(64):
                part.write(bytes(1 << 20))

    found = [
        Named(f"{GOLDEN}: {how}", rewritten(GOLDEN, changed(change), "encoder.onnx")) for how, change in changes.items()
    ]
    ways: dict[str, Callable[[Path], object]] = {
        "compressed": compressed,
        "a bomb": bomb,
        "an array": lambda path: np.save(path.open("wb"), np.zeros(3)),
        "no archive": lambda path: path.write_bytes(b"PK\x03\x04 no archive"),
    }
    return found + [Named(f"{GOLDEN}: {how}", rewritten(GOLDEN, way)) for how, way in ways.items()]


def _of_graphs() -> list[Named]:
    found = []
    for name in _GRAPHS:
        ways: dict[str, Callable[[Path], object]] = {
            "no graph": lambda path: path.write_bytes(b"no graph"),
            "empty": lambda path: path.write_bytes(b""),
            "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
            "another's": lambda path: path.write_bytes(
                (path.parent / ("ranker.onnx" if path.name == "encoder.onnx" else "encoder.onnx")).read_bytes()
            ),
            "of the future": lambda path: _graph(path, lambda model: setattr(model.opset_import[0], "version", 999)),
            "with an unknown operator": lambda path: _graph(path, _unknown_operator),
            "without outputs": lambda path: _graph(path, lambda model: model.graph.ClearField("output")),
            "with a huge tensor": lambda path: _graph(path, _huge_tensor),
        }
        for where in ("/etc/passwd", "../v1/items.npy", "items.npy", "encoder.onnx.data", "/dev/zero"):
            ways[f"weights in {where}"] = lambda path, where=where: _graph(  # type: ignore[misc]
                path, lambda model: _external(model, where)
            )
        found += [Named(f"{name}: {how}", rewritten(name, way, GOLDEN)) for how, way in ways.items()]
    for how, value in (("NaN", np.nan), ("infinite", np.inf), ("other", 3.0)):
        weights = rewritten("encoder.onnx", lambda path, v=value: _graph(path, lambda model: _filled(model, v)), GOLDEN)  # type: ignore[misc]
        found.append(Named(f"encoder.onnx: {how} weights", weights))
    return found


def _array(name: str, change: Callable[[Array, np.random.Generator], Array], *also: str) -> Damage:
    def damage(folder: Path, random: np.random.Generator) -> Sequence[str]:
        np.save(folder / name, change(np.load(folder / name), random))
        reseal(folder)
        return name, *also

    return damage


def _archive(path: Path, arrays: dict[str, Array]) -> None:
    with path.open("wb") as file:
        np.savez(file, allow_pickle=True, **arrays)


def _huge(shape: tuple[int, ...]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("wb") as file:
            descr = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, descr)
            file.write(bytes(64))

    return write


def _pickled(canary: Path) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        array = np.empty(np.load(path).shape, object)
        array[:] = _Payload(canary)
        np.save(path, array, allow_pickle=True)

    return write


def _brackets(path: Path) -> None:
    text = b"(" * 9000
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)


def _graph(path: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())


def _unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Imaginary"


def _huge_tensor(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [1 << 20, 1 << 20]


def _external(model: onnx.ModelProto, where: str) -> None:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "elsewhere")
    external_data_helper.set_external_data(tensor, where, offset=0, length=16)
    tensor.ClearField("raw_data")
    model.graph.initializer.append(tensor)


def _filled(model: onnx.ModelProto, value: float) -> None:
    table = next(tensor for tensor in model.graph.initializer if tensor.name == "table")
    filled = np.full(tuple(table.dims), value, np.float32)
    table.CopyFrom(numpy_helper.from_array(filled, "table"))
