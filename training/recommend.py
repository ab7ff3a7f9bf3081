"""Batch inference: the first k items of every user in a log, by a bundle, as it would serve them.

Users are ranked some at a time and their rows written as they come, so that memory holds the log and one part of the
output, never all of it.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from models.bundle import Bundle
from models.runtime import EXCLUDED_SCORE, Runtime
from models.vocabulary import Ids
from training.dataset import Dataset, Sequences, build_dataset, popularity_of
from training.evaluate import UserScorer, mask_seen
from training.interactions import Interactions
from training.rating_run import finished_task
from training.run import RunFolder

_USERS_AT_ONCE = 256  # a batch of the runtime; the scores of one are 4 bytes times the catalogue for each
_ROWS_A_PART = 1_000_000  # written at a time
_SUFFIXES = (".parquet", ".csv")


class RecommendError(ValueError):
    """Recommendations that cannot be made or written; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Written:
    """What is in the file: users ranked by the model, users given what is popular, rows, and the seconds it took."""

    by_model: int
    by_popularity: int
    rows: int
    seconds: float

    def __str__(self) -> str:
        users = self.by_model + self.by_popularity
        return (
            f"{self.rows:,} rows for {users:,} users ({self.by_popularity:,} of them by popularity) in "
            f"{self.seconds:.1f} s, {users / self.seconds:,.0f} users/s"
        )


def recommend(runtime: Runtime, interactions: Interactions, output: Path, *, k: int, console: Console) -> Written:
    """Write columns user_id, rank from 1, item_id, score and source ("model" or "popular") to a .parquet or .csv.

    Items of a user's own history never come back. A user of whose history the model knows nothing gets what is
    popular. Users are in order of their first event; fewer than k rows where fewer items remain. The file appears
    under its name complete or not at all.
    Raises RecommendError for another suffix, k below 1, a model that gives no finite vector, ratings that it reads
    and the log lacks, or a file that cannot be written.
    """
    if runtime.reads_values and interactions.frame["value"].is_null().all():
        raise RecommendError(
            f"{runtime.bundle.manifest.version} reads ratings and the data has none; name their column with "
            "--value-column"
        )
    dataset = build_dataset(interactions)
    histories = _translated(dataset, runtime.bundle)
    return _written(
        dataset.users,
        runtime.bundle.ids,
        lambda some: (_rank(runtime, histories.take(some), k), int((histories.lengths[some] > 0).sum())),
        output,
        k=k,
        console=console,
    )


def recommend_run(run: RunFolder, output: Path, *, k: int, console: Console) -> Written:
    """The same of an AutoRec run through torch, for every user it was trained on, whose histories are its train part.

    It is how an item-based one is put to use; scores are its predicted ratings, above or below the scale if need be.
    What was held out to judge it does not come back either: the user has rated it.
    Raises RecommendError as `recommend`, and RunError if the run is of another model or its data has changed.
    """
    prepared = run.data()
    task = finished_task(run, prepared)
    scorer, train = task.scorer(), prepared.split.train
    popularity = popularity_of(train, prepared.dataset.vocabulary.items)
    rated = prepared.dataset.sequences

    def ranked(some: NDArray[np.int64]) -> tuple[pl.DataFrame, int]:
        histories = train.take(some)
        scores = np.array(scorer.of_users(some) if isinstance(scorer, UserScorer) else scorer(histories))
        known = histories.lengths > 0
        scores[~known] = popularity
        mask_seen(scores, rated.take(some))
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        found = np.take_along_axis(scores, best, axis=1)
        frame = _frame(np.arange(len(some)), best, found, found > -np.inf, "model")
        source = pl.when(pl.col("row").is_in(np.flatnonzero(known))).then(pl.lit("model")).otherwise(pl.lit("popular"))
        return frame.with_columns(source=source), int(known.sum())

    return _written(prepared.dataset.users, run.ids(), ranked, output, k=k, console=console)


def _written(
    names: Sequence[str],
    ids: Ids,
    ranked: Callable[[NDArray[np.int64]], tuple[pl.DataFrame, int]],
    output: Path,
    *,
    k: int,
    console: Console,
) -> Written:
    """Rank users some at a time and write them; ranked gives rows of these users and how many are by the model."""
    if output.suffix not in _SUFFIXES:
        raise RecommendError(f"{output}: the name must end in {' or '.join(_SUFFIXES)}")
    if k < 1:
        raise RecommendError(f"k is {k}; it must be at least 1")
    output.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    users = pl.Series("user_id", names, dtype=pl.String)
    items = pl.Series("item_id", list(ids), dtype=pl.String)
    by_model = rows = 0
    columns = (TextColumn("ranking"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder,
        Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress,
    ):
        task = progress.add_task("ranking", total=len(users))
        parts = _Parts(Path(folder), output.suffix)
        for begin in range(0, len(users), _USERS_AT_ONCE):
            some = np.arange(begin, min(begin + _USERS_AT_ONCE, len(users)))
            frame, modelled = ranked(some)
            named = frame.with_columns(user_id=users.gather(frame["row"] + begin), item_id=items.gather(frame["item"]))
            parts.add(named)
            by_model += modelled
            rows += frame.height
            progress.advance(task, len(some))
        parts.close(output)
    return Written(by_model, len(users) - by_model, rows, time.perf_counter() - began)


def _translated(dataset: Dataset, bundle: Bundle) -> Sequences:
    """The histories in the bundle's rows, without the items it does not know."""
    return dataset.sequences.renumbered(bundle.rows_of(dataset.vocabulary.ids).astype(np.int32))


def _rank(runtime: Runtime, histories: Sequences, k: int) -> pl.DataFrame:
    """Columns row (of the user in this part), rank, item, score, source; each user's rows together, best first."""
    known = np.flatnonzero(histories.lengths > 0)
    sequences = [histories[int(user)].astype(np.int64) for user in known]
    frames = []
    if len(known):
        values = [histories.values_of(int(user)) for user in known] if runtime.reads_values else None
        vectors = runtime.encode(sequences, values)
        if not np.isfinite(vectors).all():
            raise RecommendError(f"{runtime.bundle.manifest.version} gave a vector that is not finite; train it again")
        indices, scores = runtime.rank(vectors, sequences, k, sequences)
        eligible = scores > EXCLUDED_SCORE
        frames.append(_frame(known, indices, scores, eligible, "model"))
    unknown = np.flatnonzero(histories.lengths == 0)
    if len(unknown):
        popularity = runtime.bundle.popularity
        best = (np.argsort(-popularity[1:], kind="stable") + 1)[:k]  # ties in item order
        shape = len(unknown), len(best)
        frames.append(
            _frame(
                unknown,
                np.broadcast_to(best, shape),
                np.broadcast_to(popularity[best], shape),
                np.ones(shape, np.bool_),
                "popular",
            )
        )
    return pl.concat(frames).sort("row", "rank")


def _frame(
    users: NDArray[np.int64],
    indices: NDArray[np.int64],
    scores: NDArray[np.float32],
    eligible: NDArray[np.bool_],
    source: str,
) -> pl.DataFrame:
    """The eligible cells of (users, k) arrays as rows."""
    user, place = np.nonzero(eligible)
    return pl.DataFrame(
        {
            "row": users[user],
            "rank": (place + 1).astype(np.int32),  # sorted, so that the eligible come first
            "item": indices[user, place],
            "score": scores[user, place],
        }
    ).with_columns(source=pl.lit(source))


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pl.exceptions.PolarsError) as error:  # polars has a word of its own for a full disk
        raise RecommendError(
            f"{path}: cannot be written ({error}); free space there, or choose another folder"
        ) from error


class _Parts:
    """Rows that come a few at a time, as one file in the end."""

    def __init__(self, folder: Path, suffix: str) -> None:
        self._folder = folder
        self._suffix = suffix
        self._waiting: list[pl.DataFrame] = []
        self._paths: list[Path] = []

    def add(self, frame: pl.DataFrame) -> None:
        self._waiting.append(frame.select("user_id", "rank", "item_id", "score", "source"))
        if sum(part.height for part in self._waiting) >= _ROWS_A_PART:
            self._write()

    def close(self, output: Path) -> None:
        """Put everything added so far under the name `output`, replacing what is there."""
        if self._waiting:
            self._write()
        with _writing(output):
            whole = self._paths[0]
            if len(self._paths) > 1:
                whole = self._folder / f"whole{self._suffix}"
                if self._suffix == ".parquet":
                    pl.scan_parquet(self._paths).sink_parquet(whole)
                else:
                    with whole.open("wb") as file:
                        for path in self._paths:
                            with path.open("rb") as part:
                                shutil.copyfileobj(part, file)
            whole.replace(output)

    def _write(self) -> None:
        path = self._folder / f"{len(self._paths):06}{self._suffix}"
        frame = pl.concat(self._waiting)
        with _writing(path):
            if self._suffix == ".parquet":
                frame.write_parquet(path)
            else:
                frame.write_csv(path, include_header=not self._paths)
        self._paths.append(path)
        self._waiting = []
