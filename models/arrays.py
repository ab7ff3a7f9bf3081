"""The arrays of a bundle, read so that nothing but their header is believed before it is held against the file.

numpy's reader would allocate whatever shape a header names, and take an archive or a pickle for an array. Here a file
must be as long as its header says, and be what its manifest says, before any of it is looked at; and nothing is ever
unpickled.
"""

import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from models.manifest import BundleError, open_own

_HEADER = re.compile(  # as numpy writes it, of numbers
    rb"\{'descr': '([<>][iuf][248]|\|[iu]1)', 'fortran_order': (False|True), "
    rb"'shape': \((?:([0-9]{1,12}),(?: ([0-9]{1,12}))?)\), \} *\n"
)
_MAGIC = b"\x93NUMPY\x01\x00"
_PAGE = 4096
_ROWS = 1 << 16  # looked at together for what is no number
_ARCHIVE_BYTES = 1 << 28  # of the golden inputs, which are some tens of kilobytes as a rule
_NOT_AN_ARCHIVE = (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, struct.error)

Shape = tuple[int | None, ...]  # None: any size but 0


@dataclass(frozen=True, slots=True)
class _Header:
    dtype: np.dtype[Any]
    order: str
    shape: tuple[int, ...]
    begin: int  # where the numbers begin, in bytes

    @property
    def end(self) -> int:
        count = self.dtype.itemsize
        for size in self.shape:  # exact, whatever their product is
            count *= size
        return self.begin + count


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write an array row by row, as `load_array` reads it.

    Its numbers begin with a page, as numpy's own writer does not let them: onnxruntime multiplied a single query with a
    million mapped items of 64 columns in 10 ms so, and in 14 ms behind a header of 128 bytes.
    """
    header = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': {array.shape}, }}".encode()
    room = _PAGE - len(_MAGIC) - 2
    with path.open("wb") as file:
        file.write(_MAGIC + struct.pack("<H", room) + header.ljust(room - 1) + b"\n")
        np.ascontiguousarray(array).tofile(file)


def load_array(path: Path, dtype: type[np.number[Any]], shape: Shape, *, mapped: bool = False) -> NDArray[Any]:
    """An array of finite numbers; mapped: left in its file, which processes share.

    Raises BundleError if the file holds anything but an array of this type and shape.
    """
    with open_own(path) as file:
        header = _header(file, path)
        _check(header, path.stat().st_size, dtype, shape, str(path))
        array: NDArray[Any] = np.memmap(file, header.dtype, "r", header.begin, header.shape, header.order)  # type: ignore[call-overload]
    _check_finite(array, path)
    return np.asarray(array) if mapped else np.array(array)  # a memmap's own slices and numbers take twice as long


def load_archive(path: Path, wanted: Mapping[str, tuple[type[np.number[Any]], Shape]]) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file that was written without compression, all of them `wanted`, by name.

    Raises BundleError if there is another or one is not of its type and shape. Numbers may be NaN.
    """
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with open_own(path) as file, zipfile.ZipFile(file) as archive:
            size = path.stat().st_size
            if size > _ARCHIVE_BYTES:
                raise BundleError(f"{path}: is {size} bytes, at most {_ARCHIVE_BYTES} are read")
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if name not in wanted or name in arrays:
                    raise BundleError(f"{path}: {member.filename!r} does not belong there, or is there twice")
                if member.compress_type != zipfile.ZIP_STORED or member.file_size > size:
                    raise BundleError(f"{path}: {member.filename} is compressed; its size could be anything")
                with archive.open(member) as part:
                    header = _header(part, path)
                    _check(header, member.file_size, *wanted[name], f"{path}: {name}")
                    numbers = np.frombuffer(part.read(), header.dtype)  # to its end, where its checksum is compared
                arrays[name] = numbers.reshape(header.shape, order=header.order)  # type: ignore[call-overload]
    except _NOT_AN_ARCHIVE as error:
        raise BundleError(f"{path}: cannot be read as an archive of arrays: {error}") from error
    return arrays


def _header(file: BinaryIO | IO[bytes], path: Path) -> _Header:
    length = len(_MAGIC) + 2
    begin = file.read(length)
    if len(begin) < length or not begin.startswith(_MAGIC):
        raise BundleError(f"{path}: cannot be read as an array: it does not begin as one")
    (size,) = struct.unpack("<H", begin[len(_MAGIC) :])
    text = file.read(size)
    found = _HEADER.fullmatch(text)
    if found is None:
        raise BundleError(f"{path}: cannot be read as an array: its header is {text[:120]!r}")
    kind, transposed, *sizes = found.groups()
    shape = tuple(int(one) for one in sizes if one is not None)
    return _Header(np.dtype(kind.decode()), "F" if transposed == b"True" else "C", shape, length + size)


def _check(header: _Header, size: int, dtype: type[np.number[Any]], shape: Shape, where: str) -> None:
    fits = len(header.shape) == len(shape) and all(
        found > 0 if wanted is None else found == wanted for wanted, found in zip(shape, header.shape, strict=True)
    )
    if header.dtype != dtype or not fits:
        said = ", ".join("any" if one is None else str(one) for one in shape)
        raise BundleError(f"{where}: is {header.dtype} {header.shape}, manifest says {np.dtype(dtype)} ({said})")
    if header.begin % header.dtype.itemsize:  # numpy would copy all of it to look at a single number
        raise BundleError(f"{where}: its numbers begin at byte {header.begin}, which is no multiple of their size")
    if size != header.end:
        raise BundleError(f"{where}: takes {size} bytes, its header says {header.end}")


def _check_finite(array: NDArray[Any], path: Path) -> None:
    if np.issubdtype(array.dtype, np.floating):
        for begin in range(0, len(array), _ROWS):  # the answers for all at once would be a quarter of the array
            if not np.isfinite(array[begin : begin + _ROWS]).all():
                raise BundleError(f"{path}: holds a value that is not a finite number")
