"""Arrays of a bundle: what numpy would have believed of a file is refused, and what it writes is read."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.arrays import Shape, load_archive, load_array, save_array
from models.manifest import BundleError, open_own


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "items.npy"


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_what_numpy_writes_is_read(path: Path, mapped: bool, transposed: bool) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    array = array.T if transposed else array
    np.save(path, array)
    found = load_array(path, np.float32, (None, array.shape[1]), mapped=mapped)
    np.testing.assert_array_equal(found, array)
    assert isinstance(found.base, np.memmap) == mapped
    save_array(path, array)
    assert load_array(
        path, np.float32, array.shape, mapped=True
    ).flags.c_contiguous  # row by row, so that rows are near


@pytest.mark.parametrize("kind", ["<f4", "<i8", "|u1"])
@pytest.mark.parametrize("shape", ["(1099511627776,)", "(3, 4611686018427387904)", "(99999999999, 99999999999)"])
def test_a_shape_that_the_file_does_not_have_takes_no_memory(path: Path, kind: str, shape: str) -> None:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(64))
    sizes = shape.strip("(),").count(",") + 1
    with pytest.raises(BundleError, match=r"items\.npy"):
        load_array(path, np.dtype(kind).type, (None,) * sizes)


def test_infinity_in_the_last_row_of_many_is_found(path: Path) -> None:
    array = np.zeros((70_000, 2), np.float32)
    array[-1, 1] = np.inf
    np.save(path, array)
    with pytest.raises(BundleError, match="not a finite number"):
        load_array(path, np.float32, array.shape, mapped=True)


def test_an_archive_holds_what_is_wanted_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    wanted: dict[str, tuple[type[np.number[Any]], Shape]] = {"a": (np.float32, (None,)), "b": (np.int64, (None, 2))}
    np.savez(path, a=np.array([1, np.nan], np.float32), b=np.zeros((3, 2), np.int64))
    assert {name: array.shape for name, array in load_archive(path, wanted).items()} == {"a": (2,), "b": (3, 2)}
    np.savez(path, c=np.zeros(2, np.float32))
    with pytest.raises(BundleError, match=r"'c\.npy' does not belong"):
        load_archive(path, wanted)
    np.savez_compressed(path, a=np.zeros(2, np.float32))
    with pytest.raises(BundleError, match="is compressed"):
        load_archive(path, wanted)


def test_only_a_file_of_its_own_is_opened(tmp_path: Path) -> None:
    file, other, pipe = tmp_path / "file", tmp_path / "other", tmp_path / "pipe"
    file.write_bytes(b"x")
    with open_own(file) as opened:
        assert opened.read() == b"x"
    other.symlink_to(file)
    os.mkfifo(pipe)
    for path, reason in ((other, "not a link"), (pipe, "regular"), (tmp_path, "folder"), (tmp_path / "no", "No such")):
        with pytest.raises(BundleError, match=reason):
            open_own(path)
    other.unlink()
    other.hardlink_to(file)
    with pytest.raises(BundleError, match="hard link"):
        open_own(file)
