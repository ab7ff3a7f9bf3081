"""Reconstruction as a training task: rows of the matrix in, the error on what was observed in them out.

On CPU rows are made dense a batch at a time, since two dense products outrun their sparse counterparts at the density
of ratings; the loss sees nothing but observed entries, and for implicit feedback the zeros drawn beside them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from models.autorec import AutoRec
from models.sequence import truncate
from training.config import AutoRecRunConfig
from training.dataset import Sequences
from training.evaluate import evaluate_ratings, evaluate_test_ratings, rank_targets
from training.fit import FitError
from training.measures import METRIC, RMSE, summarise
from training.ratings import Biases, Matrix, biases_of, matrix_of, scale_of
from training.splits import Holdout, Split

NEGATIVES = 5  # zeros for each observed entry of implicit feedback

_ROWS_AT_ONCE = 512  # made dense together outside of training


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """A batch: numbers of rows int64 (batch,), and which unobserved entries are taken as zeros, bool or None."""

    rows: NDArray[np.int64]
    zeros: NDArray[np.bool_] | None


class Reconstruction:
    """A fit.Task: rows of the train matrix, squared error on observed entries, RMSE or ranking on validation.

    Calibrates the model to the train ratings. Raises FitError if nothing was observed.
    """

    def __init__(self, model: AutoRec, split: Split, items: int, config: AutoRecRunConfig, *, seed: int) -> None:
        self._model, self._split, self._items, self._seed = model, split, items, seed
        self._config = config.training
        self._explicit = model.config.feedback == "explicit"
        self.metric = RMSE if self._explicit else METRIC
        by_user = matrix_of(split.train, items, explicit=self._explicit)
        self.matrix: Matrix = by_user if model.config.side == "user" else by_user.T.tocsr()
        self.matrix.sort_indices()
        if not self.matrix.nnz:
            raise FitError("no rating is left to train on; give more data")
        self._rows = np.flatnonzero(np.diff(self.matrix.indptr))
        self.biases = biases_of(self.matrix, model.config.shrinkage)
        if self._explicit:
            low, high = scale_of(split.train, config)
            centred = model.config.centre == "biases"
            offsets = self.biases.columns if centred else np.zeros(self.matrix.shape[1])
            model.calibrate(mean=self.biases.mean, low=low, high=high, offsets=torch.from_numpy(offsets))

    @property
    def rows(self) -> int:
        """Rows with anything in them: what an epoch takes."""
        return len(self._rows)

    def batches(self, epoch: int) -> Iterator[Rows]:
        """The rows in the epoch's order, with the zeros drawn for it."""
        generator = np.random.default_rng([self._seed, epoch])
        order = generator.permutation(self._rows)
        for begin in range(0, len(order), self._config.batch):
            rows = order[begin : begin + self._config.batch]
            yield Rows(rows, None if self._explicit else self._zeros(rows, generator))

    def part(self, batch: Rows, number: int, of: int) -> Rows:
        """One row of every `of`, from `number` on, with its zeros."""
        rows = slice(number, None, of)
        return Rows(batch.rows[rows], None if batch.zeros is None else batch.zeros[rows])

    def sizes(self, batch: Rows) -> tuple[int, int]:
        """Rows, and entries that the loss is a mean over."""
        observed = int(np.diff(self.matrix.indptr)[batch.rows].sum())
        return len(batch.rows), observed + (0 if batch.zeros is None else int(batch.zeros.sum()))

    def loss(self, batch: Rows) -> Tensor:
        """Mean squared error over the batch's entries, and the weights' share of the paper's penalty."""
        device = self._model.input_bias.device
        ratings, observed = (part.to(device) for part in dense(self.matrix, batch.rows))
        counted = observed if batch.zeros is None else observed | torch.from_numpy(batch.zeros).to(device)
        errors = observed_errors(self._model.predict(self._model(ratings, observed)), ratings, counted)
        squares = sum((weight.square().sum() for weight in self._model.weights()), torch.zeros((), device=device))
        return errors.square().sum() / counted.sum() + self._config.l2 / (2 * self.matrix.nnz) * squares

    def validate(self) -> dict[str, float]:
        """RMSE and MAE of validation with those of train and test beside them, or ranking figures of validation.

        Of the test only the RMSE is there, for the curves: nothing reads it to choose by.
        """
        split = self._split
        if not len(split.validation):
            return {}
        if not self._explicit:
            return summarise(rank_targets(self.scorer(), split.validation, self._items))
        predict = self.predictor()
        train = predict.of_cells(*_cells(self.matrix)) - self.matrix.data
        figures = evaluate_ratings(predict, split.validation, split.train, self._items).metrics()
        test = evaluate_test_ratings(predict, split, self._items).metrics()
        return {
            "train_rmse": float(np.sqrt(np.mean(train.astype(np.float64) ** 2))),
            RMSE: figures[RMSE],
            "mae": figures["mae"],
            "test_rmse": test[RMSE],
        }

    def predictor(self, *, vectors: Tensor | None = None, item_matrix: Tensor | None = None) -> "Predictor":
        """Ratings by the model as it is now, or by what another program computed in its place, as `Predictor` says."""
        return Predictor(self._model, self.matrix, self.biases, vectors=vectors, item_matrix=item_matrix)

    def scorer(self) -> "HistoryScorer | ColumnScorer":
        """Scores of all items by the model as it is now."""
        if self._model.config.side == "user":
            return HistoryScorer(self._model)
        return ColumnScorer(self._model, self.matrix)

    def _zeros(self, rows: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.bool_]:
        """About `negatives` unobserved entries of each row for each observed one."""
        observed = np.diff(self.matrix.indptr)[rows]
        columns = self.matrix.shape[1]
        share = (self._config.negatives or NEGATIVES) * observed / np.maximum(1, columns - observed)
        drawn = np.asarray(generator.random((len(rows), columns), np.float32) < share[:, None])
        drawn[np.repeat(np.arange(len(rows)), observed), self.matrix[rows].indices] = False
        return drawn


class Predictor:
    """Ratings of users by items, inside the scale; where either was never seen, what the biases say.

    vectors (rows, dim) and item_matrix (columns + 1, dim) where another program computed them, which then is judged.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: AutoRec,
        matrix: Matrix,
        biases: Biases,
        *,
        vectors: Tensor | None = None,
        item_matrix: Tensor | None = None,
    ) -> None:
        self._model, self._biases = model, biases
        self._seen_rows = np.diff(matrix.indptr) > 0
        self._seen_columns = np.bincount(matrix.indices, minlength=matrix.shape[1]) > 0
        self._vectors = vectors_of(model, matrix) if vectors is None else vectors
        self._item_matrix = model.item_matrix() if item_matrix is None else item_matrix

    def __call__(self, holdout: Holdout) -> NDArray[np.float32]:
        users, items = holdout.users, holdout.targets.astype(np.int64) - 1
        return self.of_cells(*((users, items) if self._model.config.side == "user" else (items, users)))

    @torch.no_grad()
    def of_cells(self, rows: NDArray[np.integer], columns: NDArray[np.integer]) -> NDArray[np.float32]:
        """Ratings of cells of the matrix: (cells,) twice -> (cells,)."""
        matrix = self._item_matrix[1:].T
        order = np.argsort(rows, kind="stable")
        found = np.empty(len(rows), np.float32)
        for begin in range(0, len(self._vectors), _ROWS_AT_ONCE):
            first, last = np.searchsorted(rows[order], [begin, begin + _ROWS_AT_ONCE])
            if first < last:
                cells = order[first:last]
                outputs = self._vectors[begin : begin + _ROWS_AT_ONCE] @ matrix
                picked = outputs[
                    torch.from_numpy(rows[cells] - begin), torch.from_numpy(columns[cells].astype(np.int64))
                ]
                found[cells] = self._model.clipped(picked).cpu().numpy()
        unseen = ~(self._seen_rows[rows] & self._seen_columns[columns])
        low, high = self._model.low.item(), self._model.high.item()
        found[unseen] = np.clip(self._biases(rows[unseen], columns[unseen]), low, high)
        return found


class HistoryScorer:
    """A user-based model as a Scorer: the newest ratings of each history as a dense row, outputs for all items.

    Without a graph or a gather, so that it also proves those.
    """

    def __init__(self, model: AutoRec) -> None:
        self._model = model

    @torch.no_grad()
    def __call__(self, histories: Sequences) -> NDArray[np.float32]:
        self._model.eval()
        device = self._model.input_bias.device
        rows = (part.to(device) for part in history_rows(self._model, histories))
        outputs = self._model.read(*rows) @ self._model.item_matrix()[1:].T
        return torch.nn.functional.pad(outputs, (1, 0)).float().cpu().numpy()


class ColumnScorer:
    """An item-based model as a UserScorer: a user is a column, and every item's row has an output for it."""

    @torch.no_grad()
    def __init__(self, model: AutoRec, matrix: Matrix) -> None:
        self._model = model
        self._vectors = vectors_of(model, matrix)

    @torch.no_grad()
    def of_users(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """Outputs (users, items + 1), column 0 padding."""
        columns = self._model.item_matrix()[torch.from_numpy(users) + 1]  # (users, dim)
        return torch.nn.functional.pad(columns @ self._vectors.T, (1, 0)).float().cpu().numpy()


def observed_errors(predictions: Tensor, ratings: Tensor, counted: Tensor) -> Tensor:
    """Prediction minus rating where it counts and 0 elsewhere, (batch, columns); the others have no gradient either."""
    return torch.where(counted, predictions - ratings, torch.zeros((), device=ratings.device))


def dense(matrix: Matrix, rows: NDArray[np.integer]) -> tuple[Tensor, Tensor]:
    """Rows of a matrix: ratings float32 (rows, columns), 0 where there is none, and where there are some, bool."""
    part = matrix[rows]
    observed = sparse.csr_array((np.ones(part.nnz, np.bool_), part.indices, part.indptr), shape=part.shape)
    return torch.from_numpy(part.toarray()), torch.from_numpy(observed.toarray())


def history_rows(model: AutoRec, histories: Sequences) -> tuple[Tensor, Tensor, Tensor]:
    """The newest events of histories as dense rows, of each item the newest rating, as `AutoRec.encode` reads them.

    Ratings, where there are some, and what was seen at all: what `AutoRec.read` takes.
    """
    ratings = np.zeros((len(histories), model.items), np.float32)
    observed, seen = np.zeros(ratings.shape, np.bool_), np.zeros(ratings.shape, np.bool_)
    low, high = model.low.item(), model.high.item()
    explicit = model.config.feedback == "explicit"
    for user in range(len(histories)):
        items = truncate(histories[user], model.config.length) - 1
        values = truncate(histories.values_of(user), model.config.length)
        if not explicit:
            values = np.ones_like(values)
        seen[user, items] = True
        rated = ~np.isnan(values)
        ratings[user, items[rated]] = np.clip(values[rated], low, high)  # of a repeated item the last one stays
        observed[user, items[rated]] = True
    return torch.from_numpy(ratings), torch.from_numpy(observed), torch.from_numpy(seen)


@torch.no_grad()
def vectors_of(model: AutoRec, matrix: Matrix) -> Tensor:
    """Vectors of all rows of a matrix, (rows, dim)."""
    model.eval()
    device = model.input_bias.device
    numbers = np.arange(matrix.shape[0])
    parts = []
    for begin in range(0, len(numbers), _ROWS_AT_ONCE):
        ratings, observed = dense(matrix, numbers[begin : begin + _ROWS_AT_ONCE])
        parts.append(model.read(ratings.to(device), observed.to(device)))
    return torch.cat(parts)


def _cells(matrix: Matrix) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    return rows, matrix.indices.astype(np.int64)
