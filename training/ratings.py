"""Ratings in: which interactions are one, each pair of user and item once, as a matrix, and what biases alone explain.

An interaction log may hold a film twice, or events without a rating; a matrix has one number in a cell, the newest of
what is learned from. What is left out on the way is counted and shown.
"""

from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from training.config import AutoRecRunConfig
from training.dataset import Dataset, DatasetError, Sequences, build_dataset
from training.interactions import Interactions
from training.spec import RATED
from training.splits import Split, split_by_time, split_leave_one_out, split_ratings

_ROUNDS = 10  # of the alternation between users' and items' biases; the fifth digit stands after five

Matrix = sparse.csr_array


@dataclass(frozen=True, slots=True, eq=False)
class Rated:
    """Ratings ready to train on, and sentences about what was left out."""

    interactions: Interactions
    dataset: Dataset
    split: Split
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Biases:
    """Mean of the train ratings, and how far each row and column of their matrix is from it, float64."""

    mean: float
    rows: NDArray[np.float64]
    columns: NDArray[np.float64]

    def __call__(self, rows: NDArray[np.integer], columns: NDArray[np.integer]) -> NDArray[np.float64]:
        """Mean and both biases of cells; an unseen row or column has none: (cells,) twice -> (cells,)."""
        return np.asarray(self.mean + self.rows[rows] + self.columns[columns], np.float64)


def rated(
    interactions: Interactions,
    config: AutoRecRunConfig,
    *,
    split: str,
    held_out: float,
    seed: int,
    test: Interactions | None,
) -> Rated:
    """Interactions -> ratings of explicit feedback, or pairs of implicit -> data set -> split.

    split: "loo" and "time" as for sequences, repeats included, "random" for single ratings, "file" for those of `test`.
    Raises DatasetError if too many interactions have no rating or one outside a configured scale
    (`data.max_dropped`), if `test` is given without split "file" or the reverse, if a pair is in both, if all ratings
    are the same, if there are none to hold out, or for a validation share that the split does not use.
    """
    of_ratings = split in RATED
    if of_ratings and config.model.feedback == "implicit":
        raise DatasetError(
            f"the split {split} holds out single ratings, and feedback 'implicit' predicts none; split loo or time"
        )
    shares = config.training.validation_share
    if not of_ratings and shares != type(config.training).model_fields["validation_share"].default:
        raise DatasetError(f"training.validation_share {shares} does nothing with the split {split}; leave it out")
    if (test is not None) != (split == "file"):
        raise DatasetError("a split by file needs the ratings to test on, --test FILE, and no other split takes them")
    notes: list[str] = []
    interactions = _usable(interactions, config, "", notes)
    if of_ratings:  # of the others only the train part, or what is to be predicted would decide what is learned
        interactions = _newest(interactions, "", notes)
    if test is not None:
        test = _newest(_usable(test, config, "of the test: ", notes), "of the test: ", notes)
        shared = test.frame.join(interactions.frame, on=["user_id", "item_id"], how="semi").height
        if shared:
            raise DatasetError(
                f"{shared:,} pairs of user and item are in the train files and in the test files, so the test would "
                "judge what was learned; take them out of one of the two"
            )
    whole = interactions if test is None else interactions.extended(test)
    dataset = build_dataset(whole, **config.data.minima)
    if split == "loo":
        parts = split_leave_one_out(dataset)
    elif split == "time":
        parts = split_by_time(dataset, validation_share=held_out, test_share=held_out)
    else:
        chosen = held_out if test is None else _those_of(test, dataset)
        parts = split_ratings(dataset, test=chosen, validation_share=shares, seed=seed)
    older = parts.train.interactions - len(_newest_cells(parts.train, dataset.vocabulary.items))
    if older:
        notes.append(f"{older:,} older train interactions of a user with the same item left out")
    if config.model.feedback == "explicit":
        low, high = scale_of(parts.train, config)
        held = parts.validation.values
        outside = 0 if held is None else int(np.sum((held < low) | (held > high)))
        if outside:
            notes.append(f"{outside:,} validation ratings are outside the train ratings, {low:g} to {high:g}")
    return Rated(whole, dataset, parts, tuple(notes))


def scale_of(train: Sequences, config: AutoRecRunConfig) -> tuple[float, float]:
    """Lowest and highest rating: as configured, else of the train part. Raises DatasetError if they are the same."""
    if config.training.scale is not None:
        return config.training.scale
    values = train.values
    if values is None or not values.size:
        raise DatasetError("there are no ratings; name their column with --value-column")
    low, high = float(values.min()), float(values.max())
    if low == high:
        raise DatasetError(f"all train ratings are {low:g}, so there is nothing to predict; is it feedback 'implicit'?")
    return low, high


def matrix_of(sequences: Sequences, items: int, *, explicit: bool = True) -> Matrix:
    """Users x items, float32: the ratings, of a pair the newest, or 1 if not explicit.

    Column i is item i + 1; a rating of 0 is an entry.
    """
    compact = sequences.compact()
    values = compact.values if explicit and compact.values is not None else np.ones(len(compact.items), np.float32)
    newest = _newest_cells(sequences, items)
    pointers = np.searchsorted(newest, np.concatenate([[0], compact.ends]))
    return sparse.csr_array((values[newest], compact.items[newest] - 1, pointers), shape=(len(compact), items))


def biases_of(matrix: Matrix, shrinkage: float) -> Biases:
    """Least squares of mean + row + column, each bias shrunk as if by so many ratings at the mean; rows come last.

    That a row's bias is then a function of the row and the columns' biases alone is what serving needs.
    """
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    columns, values = matrix.indices, matrix.data.astype(np.float64)
    mean = float(values.mean())
    of_rows, of_columns = np.zeros(matrix.shape[0]), np.zeros(matrix.shape[1])
    row_counts = np.bincount(rows, minlength=len(of_rows)) + max(shrinkage, 1e-6)
    column_counts = np.bincount(columns, minlength=len(of_columns)) + max(shrinkage, 1e-6)
    for _ in range(_ROUNDS):
        of_columns = np.bincount(columns, values - mean - of_rows[rows], len(of_columns)) / column_counts
        of_rows = np.bincount(rows, values - mean - of_columns[columns], len(of_rows)) / row_counts
    return Biases(mean, of_rows, of_columns)


def _usable(interactions: Interactions, config: AutoRecRunConfig, of: str, notes: list[str]) -> Interactions:
    """Interactions that count, and a note on the others."""
    frame, rows = interactions.frame, interactions.frame.height
    if config.model.feedback == "explicit":
        scale = config.training.scale
        frame = _without(frame, pl.col("value").is_null() | pl.col("value").is_nan(), "without a rating", of, notes)
        if scale is not None:
            outside = ~pl.col("value").is_between(*scale)
            frame = _without(frame, outside, f"with a rating outside {scale[0]:g} to {scale[1]:g}", of, notes)
        if rows - frame.height > config.data.max_dropped * rows:
            raise DatasetError(
                f"{rows - frame.height:,} of {rows:,} interactions cannot be used, more than the share of "
                f"{config.data.max_dropped:g} allowed (data.max_dropped): {'; '.join(notes)}. Name the ratings with "
                "--value-column, set training.scale, or set model.feedback to 'implicit'"
            )
    return replace(interactions, frame=frame)


def _newest(interactions: Interactions, of: str, notes: list[str]) -> Interactions:
    """Each pair of user and item once, and a note on the others."""
    frame = interactions.frame
    kept = frame.unique(["user_id", "item_id"], keep="last", maintain_order=True)  # oldest first: the newest
    if kept.height < frame.height:
        notes.append(f"{of}{frame.height - kept.height:,} older interactions of a user with the same item left out")
    return replace(interactions, frame=kept)


def _newest_cells(sequences: Sequences, items: int) -> NDArray[np.int64]:
    """Where in the compact sequences each user's newest interaction with each item is, ascending: int64 (cells,)."""
    compact = sequences.compact()
    backwards = (compact.owners * (items + 1) + compact.items)[::-1]
    _, places = np.unique(backwards, return_index=True)
    return np.sort(len(backwards) - 1 - places)


def _without(frame: pl.DataFrame, bad: pl.Expr, why: str, of: str, notes: list[str]) -> pl.DataFrame:
    kept = frame.filter(~bad)
    if kept.height < frame.height:
        notes.append(f"{of}{frame.height - kept.height:,} interactions {why} left out")
    return kept


def _those_of(test: Interactions, dataset: Dataset) -> NDArray[np.bool_]:
    """Which of the data set's interactions are the test's: bool (interactions,), in compact order."""
    numbers = {user: number for number, user in enumerate(dataset.users)}
    users = np.fromiter((numbers.get(user, -1) for user in test.frame["user_id"]), np.int64)
    items = dataset.vocabulary.encode(test.frame["item_id"]).astype(np.int64)
    compact = dataset.sequences.compact()
    rows = dataset.vocabulary.rows
    return np.isin(compact.owners * rows + compact.items, users * rows + items)
