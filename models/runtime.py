"""A bundle as a function: sequences in, vectors and rankings out, by onnxruntime.

The service ranks with it, training evaluates bundles with it and `python -m models verify` replays golden inputs
with it, so that what is certified is what runs.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.binding import BoundSession, Resident
from models.bundle import Bundle
from models.device import CPU, CUDA, Device, cpu_quota, open_session
from models.manifest import GOLDEN, BundleError
from models.neighbours import recent
from models.search import Search, open_search
from models.selection import Selection
from models.sequence import PADDING, Indices, Values, by_length, pad, pad_values, truncate
from models.subset import Subset, spoken_for

# Of a score, against torch: twenty times the noise seen between the two on one machine, where the largest is about 1.
TOLERANCE = 1e-4
EXCLUDED_SCORE = float(np.finfo(np.float32).min)  # finite stand-in for minus infinity inside the graph
_ENTRIES = 1 << 14  # of one run of the encoder, padding included: 32 MB of rows that an AutoRec of 500 units gathers
_CELLS = 1 << 26  # scores of one run of the ranker: 256 MB
_CANDIDATES = 1 << 14  # of one run over a subset: rows that cost little to gather and to score for each other's queries
_SMALL_BATCH = 8  # below this, one padded run costs less than several exact ones


class Runtime:
    """Encoder and ranker sessions over one bundle. Thread-safe: onnxruntime sessions are.

    threads: intra-op threads, by default as many as the CPU quota allows. bound: whether the matrices are put on the
    device once and bound to each run, by default where that is not the CPU, on which a run would take 1 to 10 % longer.
    float16: whether the device has the items in half the bytes and finds candidates by them, which are ranked on the
    CPU, for the same answers; it needs a device that is bound.
    Raises DeviceError if `device` is "cuda" and a session runs elsewhere, BundleError if a graph cannot be loaded.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: Device = "auto",
        threads: int | None = None,
        bound: bool | None = None,
        float16: bool = False,
    ) -> None:
        self.bundle = bundle
        self.reads_values: bool  # whether the encoder takes what an event was worth, as a rating, beside its item
        self.threads = threads or cpu_quota()
        self.float16 = float16
        self._encoder = open_session(bundle.encoder, device, self.threads)
        self._ranker = open_session(bundle.ranker, "cpu" if float16 else device, self.threads)
        self.provider: str = self._encoder.get_providers()[0]
        # An encoder that embeds items takes the matrix as an input: it is in memory once, not also in the graph.
        wanted = {graph_input.name for graph_input in self._encoder.get_inputs()}
        self._encoder_feeds = {"items": bundle.items} if "items" in wanted else {}
        if ("inputs" in wanted) != (bundle.inputs is not None):
            has = "reads inputs and the bundle has none" if "inputs" in wanted else "does not read the bundle's inputs"
            raise BundleError(f"{bundle.encoder}: {has}; export the model again")
        if bundle.inputs is not None:
            self._encoder_feeds["inputs"] = bundle.inputs
        self.reads_values = "values" in wanted
        if self.reads_values != (bundle.golden.values is not None):
            has = "reads values and the golden inputs have none" if self.reads_values else "does not read golden values"
            raise BundleError(f"{bundle.encoder}: {has}; export the model again")
        blends = any(graph_input.name == "recent" for graph_input in self._ranker.get_inputs())
        if blends != (bundle.neighbours is not None):
            has = "reads neighbours and the bundle has none" if blends else "does not read the bundle's neighbours"
            raise BundleError(f"{bundle.ranker}: {has}; export the model again")
        on_device = self.provider != CPU if bound is None else bound
        self._gathers = float16 and "items" in self._encoder_feeds  # the rows that a run of the encoder reads
        self._search = open_search(
            bundle, device, self.provider, threads=self.threads, on_device=on_device, float16=float16
        )
        self._neighbour_feeds: dict[str, NDArray[Any]] = {}
        if bundle.neighbours is not None:
            flat = bundle.neighbours.items.reshape(-1), bundle.neighbours.affinities.reshape(-1)
            self._neighbour_feeds = dict(zip(("neighbours", "affinities"), flat, strict=True))
        if on_device:
            matrices = [bundle.items, *self._encoder_feeds.values(), *self._neighbour_feeds.values()]
            if float16:  # beside which the device has an AutoRec's inputs: the few that are found are ranked on the CPU
                matrices = [] if bundle.inputs is None else [bundle.inputs]
            resident = Resident("cuda" if self.provider == CUDA else "cpu", matrices)
            self._encoder = BoundSession(self._encoder, resident)
            if not float16:
                self._ranker = BoundSession(self._ranker, resident)

    @property
    def scans(self) -> bool:
        """Whether a catalogue is searched for candidates first, by a scan or by a shortlist."""
        return self._search is not None

    def encode(self, sequences: Sequence[Indices], values: Sequence[Values] | None = None) -> NDArray[np.float32]:
        """Last-position vectors of histories given as item indices, oldest first: float32 (batch, dim).

        values: beside the items, NaN where there is none; read where the bundle `reads_values`, and all NaN without.
        Only the newest `manifest.length` entries are read. Histories of like length share a run, since a batch
        padded to its longest history spends most of its time on padding; and runs are bounded.
        """
        longest = self.bundle.manifest.length
        newest = [truncate(sequence, longest) for sequence in sequences]
        beside = None
        if self.reads_values:
            given = [np.full(len(one), np.nan, np.float32) for one in newest] if values is None else values
            beside = [truncate(one, longest) for one in given]
        if len(newest) <= _SMALL_BATCH and _SMALL_BATCH * longest <= _ENTRIES:
            return self._run_encoder(newest, beside)
        vectors = np.empty((len(newest), self.bundle.manifest.dim), np.float32)
        lengths = np.array([len(sequence) for sequence in newest])
        for alike in by_length(lengths):
            step = max(1, _ENTRIES // max(1, int(lengths[alike[-1]])))  # the longest is the last
            for begin in range(0, len(alike), step):
                rows = alike[begin : begin + step].tolist()
                of_rows = None if beside is None else [beside[row] for row in rows]
                vectors[rows] = self._run_encoder([newest[row] for row in rows], of_rows)
        return vectors

    def rank(
        self,
        vectors: NDArray[np.float32],
        excluded: Sequence[Indices],
        k: int,
        sequences: Sequence[Indices] | None = None,
        *,
        among: Selection | None = None,
        whole: bool = False,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The k best items of each row, best first, ties in item order: indices and scores, both (batch, k).

        Rounding may part items whose scores are equal in exact arithmetic, and not alike in batches of other sizes.

        vectors (batch, dim); excluded: item indices a row that must not come back; sequences: the histories that the
        vectors are of; among: the only items that may come back; whole: score every item by the ranker, whatever
        finds candidates. Where fewer than k items remain, the surplus entries score EXCLUDED_SCORE or less.
        Raises ValueError without sequences for a bundle with neighbours, which would rank otherwise than certified.
        """
        if self.bundle.neighbours is not None and sequences is None:
            raise ValueError(f"{self.bundle.manifest.version} ranks by neighbours too: give the sequences")
        k = min(k, self.bundle.manifest.items if among is None else len(among))
        out = None  # of every row, where the whole catalogue is ranked
        if among is not None and among.left_out is not None:
            out, among = among.left_out, None
        parts: Iterable[tuple[slice, Subset | None]]
        # Alone, a query's scores are few to write, and a run over the whole matrix reads it at the memory's own rate.
        if among is not None or self._search is None or whole or (len(vectors) == 1 and not self._search.single):
            subset = None if among is None else among.subset
            step = _at_once(len(self.bundle.items if subset is None else subset.rows), out)
            parts = ((slice(begin, begin + step), subset) for begin in range(0, len(vectors), step))
        else:
            parts = self._subsets(self._search, vectors, excluded, k, sequences, out=out)
        found = [
            self._run_ranker(
                vectors[part],
                excluded[part]
                if out is None or subset is not None
                else [np.append(row, out) for row in excluded[part]],
                k,
                None if sequences is None else sequences[part],
                subset,
            )
            for part, subset in parts
        ]
        if len(found) == 1:
            return found[0]
        none = np.empty((0, k), np.int64), np.empty((0, k), np.float32)
        indices, scores = zip(none, *found, strict=True)
        return np.concatenate(indices), np.concatenate(scores)

    def replay_golden(self) -> None:
        """Raise BundleError unless the golden inputs give the answers that torch gave."""
        golden, where = self.bundle.golden, self.bundle.folder / GOLDEN
        sequences = [row[:length] for row, length in zip(golden.sequences, golden.lengths, strict=True)]
        try:
            values = (
                None
                if golden.values is None
                else [row[:length] for row, length in zip(golden.values, golden.lengths, strict=True)]
            )
            vectors = self.encode(sequences, values)
            asked = vectors, list(golden.excluded), golden.scores.shape[1], sequences
            indices, scores = self.rank(*asked)
        except Exception as error:  # onnxruntime's own errors share no other base class
            raise BundleError(f"{where}: its graphs cannot run the golden inputs: {error}") from error
        neighbours = self.bundle.neighbours
        bonus = None if neighbours is None else neighbours.bonus(sequences)
        difference = np.max([_distance(vectors, golden.vectors), _distance(scores, golden.scores)])
        allowed = tolerance_of(golden.scores)
        if not difference <= allowed:  # so written, a NaN fails too
            raise BundleError(
                f"{where}: golden inputs come out {difference:.2g} away from torch's answers "
                f"(at most {allowed:.2g} is allowed); do not serve it, export it again"
            )
        asked_for = golden.indices, golden.scores
        if not same_items(self.bundle.items, vectors, indices, *asked_for, bonus=bonus, allowed=allowed):
            raise BundleError(
                f"{where}: golden inputs rank other items than torch did; do not serve it, export it again"
            )

    def _subsets(
        self,
        search: Search,
        vectors: NDArray[np.float32],
        excluded: Sequence[Indices],
        k: int,
        sequences: Sequence[Indices] | None,
        *,
        out: NDArray[np.int64] | None,
    ) -> Iterator[tuple[slice, Subset | None]]:
        """Rows of a batch with a part of the catalogue that holds the k best of each, None for the whole; few
        candidates at once. out: items that are excluded for all rows and in no part."""
        if not len(vectors):
            return
        # Padding is excluded, so its group is never taken for one that has an item to give because of it.
        groups = search.candidates(vectors, [np.append(row, PADDING) for row in excluded], k, out)
        neighbours = self.bundle.neighbours
        begin = 0
        while begin < len(groups):
            whole = next((at for at, one in enumerate(groups[begin:]) if one is not None), len(groups) - begin)
            if whole:
                part = slice(begin, begin + min(whole, _at_once(len(self.bundle.items), out)))
                yield part, None
                begin = part.stop
                continue
            chosen: list[NDArray[np.int64]] = []
            for one in groups[begin:]:
                if one is None or (chosen and (sum(map(len, chosen)) + len(one)) * search.group > _CANDIDATES):
                    break
                chosen.append(one)
            part = slice(begin, begin + len(chosen))
            together = np.concatenate(chosen)
            members = (together[:, None] * search.group + np.arange(search.group)).reshape(-1)
            # What neighbours raise may be anywhere; what they do not raise is as the scan found it.
            raised = [] if neighbours is None or sequences is None else [spoken_for(neighbours, sequences[part])]
            yield part, Subset.of([members, search.rest, *raised], len(self.bundle.items), out)
            begin = part.stop

    def _run_ranker(
        self,
        vectors: NDArray[np.float32],
        excluded: Sequence[Indices],
        k: int,
        sequences: Sequence[Indices] | None,
        subset: Subset | None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """`rank` in one run, over the whole catalogue or a subset, which may have fewer rows than k."""
        bundle = self.bundle
        rows = len(bundle.items if subset is None else subset.rows)
        matrix, _ = pad(excluded)  # its padding excludes row 0, which is no item
        if subset is not None:
            matrix = subset.places(matrix)
        if not (matrix == PADDING).any(axis=1).all():
            matrix = np.pad(matrix, ((0, 0), (0, 1)))
        feeds: dict[str, Any] = {
            "vectors": vectors,
            "items": bundle.items if subset is None else subset.gathered(bundle.items),
            "excluded": matrix,
            "k": np.array([min(k, rows)], np.int64),
        }
        if bundle.neighbours is not None and sequences is not None:
            feeds |= (
                subset.beside(bundle.neighbours, sequences)
                if subset is not None
                else {"recent": recent(sequences), **self._neighbour_feeds}
            )
        indices, scores = self._ranker.run(["indices", "scores"], feeds)
        if subset is not None:
            indices = subset.rows[indices]
        if rows < k:
            missing = (0, 0), (0, k - rows)
            indices, scores = np.pad(indices, missing), np.pad(scores, missing, constant_values=EXCLUDED_SCORE)
        return indices, scores

    def _run_encoder(self, sequences: Sequence[Indices], values: Sequence[Values] | None = None) -> NDArray[np.float32]:
        padded, lengths = pad(sequences)
        feeds = {"sequences": padded, "lengths": lengths, **self._encoder_feeds}
        if self._gathers:
            rows = np.unique(np.append(padded, PADDING))  # padding stays what it is
            feeds |= {"sequences": np.searchsorted(rows, padded), "items": self.bundle.items[rows]}
        if values is not None:
            feeds["values"] = pad_values(values, padded.shape[1])
        return self._encoder.run(["vectors"], feeds)[0]  # type: ignore[no-any-return]


def tolerance_of(scores: NDArray[np.float32]) -> float:
    """How far others may be from torch's scores: of the largest a share, since float32 has as many digits of each."""
    real = scores[np.isfinite(scores) & (scores > EXCLUDED_SCORE)]
    return TOLERANCE * max(1.0, float(np.abs(real).max(initial=0.0)))


def same_items(
    items: NDArray[np.float32],
    vectors: NDArray[np.float32],
    found: NDArray[np.int64],
    expected: NDArray[np.int64],
    scores: NDArray[np.float32],
    *,
    bonus: NDArray[np.float32] | None = None,
    allowed: float = TOLERANCE,
) -> bool:
    """Whether found ranks the expected items, exchanges of scores that are equal, or `allowed` apart, aside.

    items (rows, dim), vectors (batch, dim), found and expected (batch, k), scores (batch, k) of the expected, bonus
    (batch, rows) what neighbours add. Scores that agree prove nothing about the indices beside them.
    """
    if found.shape != expected.shape or found.min(initial=0) < 0 or found.max(initial=0) >= len(items):
        return False
    own = np.einsum("bd,bkd->bk", vectors, items[found])
    if bonus is not None:
        own += np.take_along_axis(bonus, found, axis=1)
    distinct = (np.diff(np.sort(found, axis=1), axis=1) > 0).all()
    return bool(distinct and ((found == expected) | (np.abs(own - scores) <= allowed)).all())


def overlap(found: NDArray[np.int64], expected: NDArray[np.int64]) -> float:
    """Mean share of each row's expected items that are found, both (batch, k): recall@k."""
    return float((found[:, :, None] == expected[:, None, :]).any(axis=1).mean()) if expected.size else 1.0


def _at_once(items: int, out: NDArray[np.int64] | None) -> int:
    """Queries of one run of the ranker over so many items, with those excluded for each of them."""
    return max(1, _CELLS // (items + 4 * (0 if out is None else len(out))))


def _distance(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")
