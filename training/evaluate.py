"""Full-catalogue evaluation: where in the ranking of all items does the item that came next stand?

Items of the history get minus infinity before the target is looked up; padding is never a candidate; ties count
against the model, so that constant scores earn nothing. Every user with a target counts, whether or not it can be hit.
Ranking among sampled negatives is here too, to compare with papers that did so and for nothing else.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from training.dataset import Sequences, popularity_of
from training.measures import (
    MISS,
    RMSE,
    Difference,
    gains,
    head_items,
    intervals,
    novelty_of_items,
    paired_difference,
    rmse_interval,
    summarise,
)
from training.splits import Holdout, Split, open_test

_USERS_AT_ONCE = 256
_CELLS = 2_000_000_000  # scores of a validation that is made again and again; on a core they take minutes
_CELLS_AT_ONCE = 1 << 25  # and at most 128 MiB of scores, whatever the catalogue

ALONE = ", the model alone"  # behind the name of figures of a blend without its item-kNN


class EvaluationError(ValueError):
    """Scores that cannot be ranked, or a protocol that this data cannot follow."""


class Scorer(Protocol):
    """Anything that scores the whole catalogue for users."""

    def __call__(self, histories: Sequences) -> NDArray[np.float32]:
        """Scores (users, items + 1) given each user's history, oldest first; column 0 is padding and ignored."""


@runtime_checkable
class UserScorer(Protocol):
    """A Scorer that can score only the users of the data set it was made from, and knows them by their number."""

    def of_users(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """Scores (users, items + 1) of these rows of the data set."""


class RatingPredictor(Protocol):
    """Anything that predicts ratings."""

    def __call__(self, holdout: Holdout) -> NDArray[np.float32]:
        """A rating for every target, inside the scale: (targets,)."""


@dataclass(frozen=True, slots=True, eq=False)
class RatingEvaluation:
    """Prediction minus rating of every held-out rating, float64 (ratings,), and whose it is, int64 (ratings,).

    unseen: how many of them are of a user or an item without a train rating; they count like all others.
    """

    errors: NDArray[np.float64]
    users: NDArray[np.int64]
    unseen: int

    def metrics(self) -> dict[str, float]:
        """RMSE and MAE, and what they are of."""
        squares = self.errors**2
        return {
            RMSE: float(np.sqrt(squares.mean())),
            "mae": float(np.abs(self.errors).mean()),
            "ratings": len(self.errors),
            "unseen": self.unseen,
        }

    def report(self) -> dict[str, object]:
        """The metrics, with the bootstrap 95 % interval of the RMSE over users."""
        return {**self.metrics(), "intervals": {RMSE: rmse_interval(self.errors, self.users)}}


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Ranks of the targets, from 1, int64 (users,), parts of the users by name, and what the first ten were like.

    coverage: share of the catalogue that reached anyone's first ten. novelty: mean self-information in bits of what
    stood there; None where the popularity of items was not given.
    """

    ranks: NDArray[np.int64]
    slices: Mapping[str, NDArray[np.bool_]]
    coverage: float
    novelty: float | None = None

    def metrics(self) -> dict[str, float]:
        """What `summarise` gives, with coverage and novelty of the first ten."""
        novelty = {} if self.novelty is None else {"novelty@10": self.novelty}
        return summarise(self.ranks) | {"coverage@10": self.coverage} | novelty

    def report(self) -> dict[str, object]:
        """Metrics and their intervals, of all users and of each slice of them."""
        slices = {name: self.ranks[part] for name, part in self.slices.items()}
        return {
            **self.metrics(),
            "intervals": intervals(self.ranks),
            "slices": {name: summarise(part) | {"intervals": intervals(part)} for name, part in slices.items()},
        }


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """What a scorer is worth on both held-out parts of one split.

    Of validation, which is there to choose by, the ranks of the targets are enough: int64 (users,).
    """

    validation: NDArray[np.int64]
    test: Evaluation

    def report(self, beside: Mapping[str, "Judged"] | None = None) -> dict[str, dict[str, object]]:
        """Both reports; that of the test part with the `differences_from` those beside it, by name."""
        test = self.test.report()
        if beside:
            test["differences"] = differences_from(self.test, {name: other.test for name, other in beside.items()})
        return {"validation": summarise(self.validation) | {"intervals": intervals(self.validation)}, "test": test}


@dataclass(frozen=True, slots=True, eq=False)
class SampledEvaluation:
    """Ranks of the targets among sampled negatives, from 1, int64 (users,); never to be shown without saying so."""

    ranks: NDArray[np.int64]
    negatives: int

    def report(self) -> dict[str, object]:
        """Metrics and intervals under a name that says what they are."""
        figures = summarise(self.ranks) | {"intervals": intervals(self.ranks)}
        return {f"sampled, {self.negatives} negatives": figures}


def evaluate(
    scorer: Scorer | UserScorer, holdout: Holdout, items: int, *, popularity: NDArray[np.floating] | None = None
) -> Evaluation:
    """Rank every target of a held-out part among all `items`.

    popularity: train interactions of every item, (items + 1,); it adds novelty and the slices of head and tail
    targets. Raises EvaluationError for scores that are not numbers or have the wrong shape.
    """
    ranks = np.empty(len(holdout), np.int64)
    recommended = np.zeros(items + 1, np.int64)
    for rows, scores, _ in scored(scorer, holdout, items):
        ranks[rows] = rank_of(scores, holdout.targets[rows])
        best = np.argpartition(-scores, min(10, items) - 1, axis=1)[:, :10]
        recommended += np.bincount(best[np.take_along_axis(scores, best, axis=1) > -np.inf], minlength=items + 1)
    novelty = None
    if popularity is not None:
        novelty = float(recommended @ novelty_of_items(popularity) / max(1, recommended.sum()))
    coverage = float((recommended[1:] > 0).mean())
    return Evaluation(ranks, _slices(holdout, popularity), coverage, novelty)


def rank_targets(scorer: Scorer | UserScorer, holdout: Holdout, items: int) -> NDArray[np.int64]:
    """The ranks of `evaluate` alone, without the search for what coverage counts: int64 (users,)."""
    ranks = np.empty(len(holdout), np.int64)
    for rows, scores, _ in scored(scorer, holdout, items):
        ranks[rows] = rank_of(scores, holdout.targets[rows])
    return ranks


def affordable(holdout: Holdout, items: int) -> Holdout:
    """A validation part, or where the catalogue is large as many of its users as can be ranked again and again.

    They are evenly drawn and always the same. For choosing only: figures that are shown at the end are of all users.
    """
    users = max(1, _CELLS // (items + 1))
    if len(holdout) <= users:
        return holdout
    return holdout.take(np.arange(0, len(holdout), -(-len(holdout) // users)))


def evaluate_sampled(
    scorer: Scorer, holdout: Holdout, items: int, *, negatives: int, seed: int = 0
) -> SampledEvaluation:
    """Rank every target among this many items drawn evenly, without repeats, from those not in the user's history.

    The target is none of them. A figure so made is several times that of the whole catalogue and orders models
    otherwise (Krichene & Rendle, KDD 2020): for comparison with papers that report nothing else.
    Raises EvaluationError as `evaluate`, or before any scoring if a user has fewer items to draw from.
    """
    _require_negatives(holdout, items, negatives)
    generator = np.random.default_rng(seed)
    ranks = np.empty(len(holdout), np.int64)
    for rows, scores, histories in scored(scorer, holdout, items):
        targets = holdout.targets[rows].astype(np.int64)
        order = generator.random(scores.shape, np.float32)  # the smallest keys are the sample
        mask_seen(order, histories, mask=np.inf)
        order[np.arange(len(rows)), targets] = np.inf
        drawn = np.argpartition(order, negatives - 1, axis=1)[:, :negatives]
        own = np.take_along_axis(scores, targets[:, None], axis=1)
        beaten_by = (np.take_along_axis(scores, drawn, axis=1) >= own).sum(axis=1)
        ranks[rows] = np.where(own[:, 0] == -np.inf, MISS, beaten_by + 1)
    return SampledEvaluation(ranks, negatives)


def evaluate_test(scorer: Scorer | UserScorer, split: Split, items: int) -> Evaluation:
    """`evaluate` on the sealed test part, which nothing may choose by."""
    return evaluate(scorer, open_test(split), items, popularity=popularity_of(split.train, items))


def evaluate_test_sampled(scorer: Scorer, split: Split, items: int, *, negatives: int) -> SampledEvaluation:
    """`evaluate_sampled` on the sealed test part."""
    return evaluate_sampled(scorer, open_test(split), items, negatives=negatives)


def require_test_negatives(split: Split, items: int, negatives: int) -> None:
    """Raise EvaluationError if `evaluate_test_sampled` will: to be told before hours of anything else."""
    _require_negatives(open_test(split), items, negatives)


def evaluate_ratings(predict: RatingPredictor, holdout: Holdout, train: Sequences, items: int) -> RatingEvaluation:
    """How far predictions are from the ratings of a held-out part; train says which users and items were seen.

    Raises EvaluationError where a target has no rating, or a prediction is no number.
    """
    if holdout.values is None or np.isnan(holdout.values).any():
        raise EvaluationError("some held-out interactions have no rating to compare a prediction with")
    predictions = predict(holdout)
    if predictions.shape != holdout.targets.shape or not np.isfinite(predictions).all():
        raise EvaluationError("a predicted rating is not a number; the model has diverged")
    unseen = (train.lengths[holdout.users] == 0) | (popularity_of(train, items)[holdout.targets] == 0)
    return RatingEvaluation(predictions.astype(np.float64) - holdout.values, holdout.users, int(unseen.sum()))


def evaluate_test_ratings(predict: RatingPredictor, split: Split, items: int) -> RatingEvaluation:
    """`evaluate_ratings` on the sealed test part, which nothing may choose by."""
    return evaluate_ratings(predict, open_test(split), split.train, items)


def evaluate_both(scorer: Scorer | UserScorer, split: Split, items: int) -> Judged:
    """`rank_targets` of validation and `evaluate_test`."""
    return Judged(rank_targets(scorer, split.validation, items), evaluate_test(scorer, split, items))


def difference(one: Evaluation, other: Evaluation) -> Difference:
    """NDCG@10 of one evaluation minus that of another of the same users, with its interval and p."""
    return paired_difference(gains(one.ranks, 10), gains(other.ranks, 10))


def differences_from(one: Evaluation, beside: Mapping[str, Evaluation]) -> dict[str, dict[str, float]]:
    """The `difference` from each of some others by name, as records; none of them where there are no users."""
    return {name: asdict(difference(one, other)) for name, other in beside.items() if len(one.ranks)}


def mask_seen(scores: NDArray[np.float32], histories: Sequences, *, mask: float = -np.inf) -> None:
    """Set padding and each user's history to `mask`, in place: scores (users, items + 1)."""
    scores[histories.owners, histories.compact().items] = mask
    scores[:, 0] = mask


def rank_of(scores: NDArray[np.float32], targets: NDArray[np.int32]) -> NDArray[np.int64]:
    """Rank of each row's target, ties counted against it; MISS where it is masked. (users, items + 1) -> (users,)."""
    own = np.take_along_axis(scores, targets[:, None].astype(np.int64), axis=1)
    ranks = (scores >= own).sum(axis=1, dtype=np.int64)
    return np.where(own[:, 0] == -np.inf, MISS, ranks)


def scored(
    scorer: Scorer | UserScorer, holdout: Holdout, items: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32], Sequences]]:
    """Rows of the held-out part, their scores with the histories masked, and the histories, some users at a time."""
    users = max(1, min(_USERS_AT_ONCE, _CELLS_AT_ONCE // (items + 1)))
    for begin in range(0, len(holdout), users):
        rows = np.arange(begin, min(begin + users, len(holdout)))
        histories = holdout.histories.take(rows)
        given = scorer.of_users(holdout.users[rows]) if isinstance(scorer, UserScorer) else scorer(histories)
        scores = np.array(given, np.float32)  # a copy: it is masked below
        if scores.shape != (len(rows), items + 1):
            raise EvaluationError(f"scores have shape {scores.shape}, expected {(len(rows), items + 1)}")
        if not (scores[:, 1:] < np.inf).all():  # so written, a NaN fails too; minus infinity is what cannot be scored
            raise EvaluationError(f"scores of users {rows[0]} to {rows[-1]} hold NaN or inf; the model has diverged")
        mask_seen(scores, histories)
        yield rows, scores, histories


def _require_negatives(holdout: Holdout, items: int, negatives: int) -> None:
    """Raise EvaluationError if a user has fewer items outside history and target than are to be drawn."""
    if negatives < 1:
        raise EvaluationError(f"{negatives} sampled negatives: give at least 1")
    histories = holdout.histories
    owners = np.concatenate((histories.owners, np.arange(len(holdout))))
    met = np.sort(owners * (items + 1) + np.concatenate((histories.compact().items, holdout.targets)))
    met = met[np.diff(met, prepend=-1) > 0]  # each once; np.unique hashes, and takes thirty times as long
    left = items - np.bincount(met // (items + 1), minlength=len(holdout))
    few = int((left < negatives).sum())
    if few:
        fewest = int(left.min())
        most = f"at most {fewest} can be drawn for each" if fewest else "some have none, so that there is no sampling"
        raise EvaluationError(
            f"{few:,} of {len(holdout):,} users have fewer than {negatives} items besides history and target to draw "
            f"negatives from; {most}"
        )


def _slices(holdout: Holdout, popularity: NDArray[np.floating] | None) -> dict[str, NDArray[np.bool_]]:
    """Parts of the users that are judged apart; histories are short up to the median of their lengths."""
    lengths = holdout.histories.lengths
    short = lengths <= np.median(lengths) if len(lengths) else np.empty(0, np.bool_)
    slices = {"strictly later": holdout.strictly_later, "short history": short, "long history": ~short}
    if popularity is not None:
        head = head_items(popularity)[holdout.targets]
        slices |= {"head target": head, "tail target": ~head}
    return slices
