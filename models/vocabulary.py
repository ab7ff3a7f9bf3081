"""The ids of a large catalogue, left in their files: a list and a dictionary of them would take more than half of what
the item matrix takes, in every process anew and before the first request.

The text of all ids lies in the order of rows. An id is found by its digest, among digests that are sorted beside the
rows they are of; digests that are equal are told apart by the text.
"""

import codecs
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.sequence import PADDING

MAPPED_FROM = 100_000  # items: below, a dictionary takes little and answers ten times as fast
_DIGEST_BYTES = 8
_TRIED = 1000  # rows looked up when a vocabulary is opened, drawn anew; all of a million would take four seconds
_CHUNK_BYTES = 1 << 20
_IN_CHARACTER, _WITHIN = 0xC0, 0x80  # of a byte, the bits and their value where it does not begin a character


class Ids(Protocol):
    """External id of every row; "" for padding."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> str: ...

    def __iter__(self) -> Iterator[str]: ...


def digests_of(ids: Sequence[str]) -> NDArray[np.uint64]:
    """A number for each id by which it is found: uint64 (ids,)."""
    found = b"".join(hashlib.blake2b(_encoded(one), digest_size=_DIGEST_BYTES).digest() for one in ids)
    return np.frombuffer(found, "<u8").astype(np.uint64, copy=False)


class MappedIds(Ids):
    """Ids by row: text uint8 (bytes,), ends int64 (rows,), where the id of each row ends in it."""

    def __init__(self, text: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self._text, self._ends = text.data, ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row: int, /) -> str:
        end = self._ends[row]  # an IndexError beyond the last, which ends an iteration
        return str(self._text[self._ends[row - 1] if row % len(self) else 0 : end], "utf-8")

    def __iter__(self) -> Iterator[str]:
        begin = 0
        for end in self._ends.tolist():
            yield str(self._text[begin:end], "utf-8")
            begin = end


class MappedIndex(Mapping[str, int]):
    """Rows by id: digests uint64 (items,), ascending, and rows int32 (items,), the row that each is of."""

    def __init__(self, ids: MappedIds, digests: NDArray[np.uint64], rows: NDArray[np.int32]) -> None:
        self._ids, self._digests, self._rows = ids, digests, rows

    def rows(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """The row of each id, PADDING for one that is unknown: int64 (ids,)."""
        digests = digests_of(ids)
        places = np.searchsorted(self._digests, digests).tolist()
        return np.array([self._row(*one) for one in zip(ids, digests.tolist(), places, strict=True)], np.int64)

    def _row(self, wanted: str, digest: int, place: int) -> int:
        while place < len(self._digests) and self._digests[place] == digest:
            row = int(self._rows[place])
            if self._ids[row] == wanted:
                return row
            place += 1
        return PADDING

    def __getitem__(self, item: str) -> int:
        row = int(self.rows([item])[0])
        if row == PADDING:
            raise KeyError(item)
        return row

    def get(self, item: str, default: Any = None) -> Any:  # the inherited one raises and catches for each unknown id
        return int(self.rows([item])[0]) or default

    def __contains__(self, item: object) -> bool:
        return isinstance(item, str) and self.get(item) is not None

    def __iter__(self) -> Iterator[str]:
        ids = iter(self._ids)
        next(ids)  # padding
        return ids

    def __len__(self) -> int:
        return len(self._rows)


def laid_out(ids: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint64], NDArray[np.int32]]:
    """Text, ends, digests and rows of the ids of all rows, for `opened`."""
    encoded = [one.encode() for one in ids]
    ends = np.cumsum([len(one) for one in encoded], dtype=np.int64)
    digests = digests_of(ids)[1:]
    order = np.argsort(digests, kind="stable")
    return np.frombuffer(b"".join(encoded), np.uint8), ends, digests[order], (order + 1).astype(np.int32)


def opened(
    text: NDArray[np.uint8], ends: NDArray[np.int64], digests: NDArray[np.uint64], rows: NDArray[np.int32]
) -> tuple[MappedIds, MappedIndex]:
    """Ids by row and rows by id. Raises ValueError, saying what is wrong, if the arrays do not fit each other.

    That every id is found is tried with some of them; a wrong digest makes an id unknown and does no other harm.
    """
    items = len(rows)
    if len(ends) != items + 1 or len(digests) != items:
        raise ValueError(f"it has {len(ends)} ends, {len(digests)} digests and {items} rows")
    if ends[PADDING] != 0 or ends[-1] != len(text) or (ends[1:] <= ends[:-1]).any():
        raise ValueError(f"the id of row {PADDING}, and of no other row, must be empty, and the ids fill the text")
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        # In one, a single rare character makes it take five times as much.
        for begin in range(0, len(text), _CHUNK_BYTES):
            decoder.decode(text.data[begin : begin + _CHUNK_BYTES], final=begin + _CHUNK_BYTES >= len(text))
    except UnicodeDecodeError as error:
        raise ValueError(f"it holds an id that is no text: {error.reason}") from error
    if (text[ends[:-1]] & _IN_CHARACTER == _WITHIN).any():
        raise ValueError("an id begins within a character")
    if (digests[1:] < digests[:-1]).any():
        raise ValueError("its digests are not sorted")
    if rows.min() < 1 or rows.max() > items or (np.bincount(rows, minlength=items + 1)[1:] != 1).any():
        raise ValueError(f"its rows are not those from 1 to {items}, each once")
    if (digests[2:] == digests[:-2]).any():  # which never happens by chance; a lookup would go through all of them
        raise ValueError("three ids have the same digest")
    ids = MappedIds(text, ends)
    index = MappedIndex(ids, digests, rows)
    same = np.flatnonzero(digests[1:] == digests[:-1])
    if twice := [ids[int(rows[place])] for place in same if ids[int(rows[place])] == ids[int(rows[place + 1])]]:
        raise ValueError(f"{len(twice)} ids occur twice")
    tried = np.unique(np.random.default_rng().integers(1, items + 1, _TRIED))
    if (index.rows([ids[row] for row in tried.tolist()]) != tried).any():
        raise ValueError("an id is not found by its digest")
    return ids, index


def _encoded(item: str) -> bytes:
    return item.encode("utf-8", "surrogatepass")  # half a character is the id of nothing, and no error
