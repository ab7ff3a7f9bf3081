"""What can become of a bundle's files by accident: each damage changes a folder and tells what a reason must name."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.manifest import MANIFEST

Damage = Callable[[Path, np.random.Generator], Sequence[str]]


class Named(NamedTuple):
    """A damage and its name. It gives names, one of which the reason of the refusal has to hold."""

    name: str
    harm: Damage


def accidents(names: Sequence[str]) -> list[Named]:
    """Damages of the folder, and of each of these files of it."""
    of_files: dict[str, Callable[[Path, np.random.Generator], object]] = {
        "truncated": _truncate,
        "a bit flipped": _flip,
        "bytes appended": lambda path, random: path.write_bytes(path.read_bytes() + random.bytes(1)),
        "emptied": lambda path, random: path.write_bytes(b""),
        "missing": lambda path, random: path.unlink(),
        "renamed": lambda path, random: path.rename(path.with_name(f"{path.name}.{random.integers(9)}")),
        "a link to the same bytes": _linked,
        "a link to nothing": lambda path, random: _instead(path).symlink_to("nowhere"),
        "a link to a device": lambda path, random: _instead(path).symlink_to("/dev/zero"),
        "a hard link": lambda path, random: os.link(path, path.parent.parent / f"outside-{random.integers(1 << 60)}"),
        "a folder": lambda path, random: _instead(path).mkdir(),
        "a pipe": lambda path, random: os.mkfifo(_instead(path)),
        "zeros": lambda path, random: path.write_bytes(bytes(path.stat().st_size)),
    }
    found = [Named(f"{name}: {how}", _of(name, harm)) for name in names for how, harm in of_files.items()]
    for extra in ("readme.txt", "encoder.onnx.data", ".hidden", "items.pkl", "b\udcffd.npy", "a" * 255):
        found.append(Named(f"extra: {extra[:20]!a}", _extra(extra)))
    others = [name for name in names if name != MANIFEST]
    for one, other in zip(others, [*others[1:], others[0]], strict=True):
        found.append(Named(f"swapped: {one} and {other}", _swapped(one, other)))
    return [*found, Named("the folder is a link", _linked_folder)]


def _of(name: str, harm: Callable[[Path, np.random.Generator], object]) -> Damage:
    def damage(folder: Path, random: np.random.Generator) -> Sequence[str]:
        harm(folder / name, random)
        return (name,)

    return damage


def _instead(path: Path) -> Path:
    path.unlink()
    return path


def _truncate(path: Path, random: np.random.Generator) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: random.integers(len(content))])


def _flip(path: Path, random: np.random.Generator) -> None:
    content = bytearray(path.read_bytes())
    content[random.integers(len(content))] ^= 1 << int(random.integers(8))
    path.write_bytes(content)


def _linked(path: Path, random: np.random.Generator) -> None:
    outside = path.parent.parent / f"outside-{random.integers(1 << 60)}"
    shutil.move(path, outside)
    path.symlink_to(outside)


def _extra(name: str) -> Damage:
    def damage(folder: Path, random: np.random.Generator) -> Sequence[str]:
        (folder / name).write_bytes(random.bytes(9))
        return (name.encode(errors="backslashreplace").decode()[:200],)

    return damage


def _swapped(one: str, other: str) -> Damage:
    def damage(folder: Path, random: np.random.Generator) -> Sequence[str]:
        (folder / one).rename(folder / "between")
        (folder / other).rename(folder / one)
        (folder / "between").rename(folder / other)
        return one, other

    return damage


def _linked_folder(folder: Path, random: np.random.Generator) -> Sequence[str]:
    elsewhere = folder.parent.parent / f"elsewhere-{random.integers(1 << 60)}" / folder.name
    elsewhere.parent.mkdir()
    shutil.move(folder, elsewhere)
    folder.symlink_to(elsewhere)
    return (folder.name,)
