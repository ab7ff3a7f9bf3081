"""Forged manifests, vocabularies and attributes: JSON that says what it should not, under digests that are right."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.manifest import GOLDEN, MANIFEST, VOCABULARY
from reliability.damage import Damage, Named


def forged_texts() -> list[Named]:
    def ids(path: Path) -> list[Any]:
        return list(json.loads(path.read_bytes()))

    texts: dict[str, Callable[[Path], str]] = {
        "an id twice": lambda path: json.dumps([*ids(path)[:-1], ids(path)[1]]),
        "an id less": lambda path: json.dumps(ids(path)[:-1]),
        "an id more": lambda path: json.dumps([*ids(path), "x"]),
        "an empty id": lambda path: json.dumps([*ids(path)[:-1], ""]),
        "a name for padding": lambda path: json.dumps(["x", *ids(path)[1:]]),
        "a number": lambda path: json.dumps([*ids(path)[:-1], 7]),
        "half a character": lambda path: json.dumps([*ids(path)[:-1], "\ud800"]),
        "an object": lambda path: json.dumps(dict.fromkeys(ids(path), 0)),
    }
    broken = {
        "deep": "[" * 100_000,
        "a number without end": "[" + "9" * 100_000 + "]",
        "no JSON": "{",
        "no text": "\udcff",
        "null": "null",
        "much too long": "[" + " " * (1 << 26) + "]",
    }
    found = [Named(f"{VOCABULARY}: {how}", _text(VOCABULARY, text)) for how, text in texts.items()]
    found += [Named(f"{VOCABULARY}: {how}", _text(VOCABULARY, lambda path, t=text: t)) for how, text in broken.items()]  # type: ignore[misc]
    brands = ", ".join(["null"] * 1600)
    columns = {
        "too short": '{"brand": ["a"]}',
        "text for a column": '{"brand": "' + "a" * 1601 + '"}',
        **{
            f"holds {value[:9]}": '{"brand": [' + f"{brands}, {value}" + "]}"
            for value in ("NaN", "Infinity", "-Infinity", "1e400", '{"a": 1}', "[[1]]", '[{"a": 1}]', "1" + "0" * 400)
        },
        **broken,
    }
    name = "attributes.json"
    return found + [Named(f"{name}: {how}", _text(name, lambda path, t=text: t)) for how, text in columns.items()]  # type: ignore[misc]


def forged_manifests() -> list[Named]:
    changes: dict[str, dict[str, Any]] = {
        f"{field} is {str(value)[:20]}": {field: value}
        for field, values in {
            "format": (3, 1, 0, True, "2", 1.5, None, [2]),
            "reader": ("0.1.1", "99.0.0", "9" * 5000 + ".0.0", "latest", None),
            "items": (1599, 1601, 0, -1, 10**30, "1600", 1600.5, None),
            "dim": (15, 17, 0, 1 << 40, "16"),
            "length": (0, -1, 10**9, 10**400, "50"),
            "version": ("../v2", "/etc", "v3", "", "v2/", ".v2", None),
            "scoring": ({"kind": "float32"}, {"kind": "none"}, None),
            "field_of_nobody": (1,),
            "created": (None, 5),
            "files": ({}, None, []),
        }.items()
        for value in values
    }
    found = [Named(f"{MANIFEST}: {how}", _manifest(change)) for how, change in changes.items()]
    for name in ("../v1/items.npy", "/etc/passwd", "../../outside", "sub/items.npy", "..", "", "manifest.json/x", "\0"):
        found.append(Named(f"{MANIFEST}: lists {name!a}", _listing(name)))
    for name in ("encoder.onnx", "items.npy", "golden.npz", "scan.onnx", "affinities.npy", "inputs.npy"):
        found.append(Named(f"{MANIFEST}: does not list {name}", _unlisted(name)))
    texts = {
        "deep": "[" * 100_000,
        "NaN": '{"format": NaN}',
        "a list": "[]",
        "half": '{"format": 2,',
        "huge": " " * (1 << 25),
    }
    return found + [Named(f"{MANIFEST}: {how}", _raw(text)) for how, text in texts.items()]


def rewritten(name: str, write: Callable[[Path], object], *also: str) -> Damage:
    def damage(folder: Path, random: np.random.Generator) -> Sequence[str]:
        write(folder / name)
        reseal(folder)
        return name, *also

    return damage


def _text(name: str, text: Callable[[Path], str]) -> Damage:
    return rewritten(name, lambda path: path.write_bytes(text(path).encode(errors="surrogateescape")))


def _manifest(change: dict[str, Any]) -> Damage:
    def damage(folder: Path, random: np.random.Generator) -> Sequence[str]:
        fields = json.loads((folder / MANIFEST).read_bytes())
        (folder / MANIFEST).write_bytes(_sealed(fields | change))
        return (MANIFEST, "items.npy", "items8.npy", GOLDEN) if "files" not in change else (MANIFEST, "encoder.onnx")

    return damage


def _listing(name: str) -> Damage:
    def damage(folder: Path, random: np.random.Generator) -> Sequence[str]:
        fields = json.loads((folder / MANIFEST).read_bytes())
        fields["files"][name] = hashlib.sha256(b"").hexdigest()
        (folder / MANIFEST).write_bytes(_sealed(fields))
        return (name,)

    return damage


def _unlisted(name: str) -> Damage:
    def damage(folder: Path, random: np.random.Generator) -> Sequence[str]:
        fields = json.loads((folder / MANIFEST).read_bytes())
        del fields["files"][name]
        (folder / MANIFEST).write_bytes(_sealed(fields))
        return (name,)

    return damage


def _raw(text: str) -> Damage:
    def damage(folder: Path, random: np.random.Generator) -> Sequence[str]:
        (folder / MANIFEST).write_text(text)
        return (MANIFEST,)

    return damage


def reseal(folder: Path) -> None:
    fields = json.loads((folder / MANIFEST).read_bytes())
    fields["files"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in fields["files"]}
    (folder / MANIFEST).write_bytes(_sealed(fields))


def _sealed(fields: dict[str, Any]) -> bytes:
    """Fields, sensible or not, under the seal that they ask for."""
    text = json.dumps({name: value for name, value in fields.items() if name != "seal"} | {"seal": ""}, indent=2)
    before, after = text.rsplit('""', 1)
    return f'{before}"{hashlib.sha256(text.encode()).hexdigest()}"{after}'.encode()
