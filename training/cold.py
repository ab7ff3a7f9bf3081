"""How well items are placed that were not trained on: some are hidden from training and placed as the service does it.

A user who met a hidden item stops there: what came before is learned from, without the hidden items, and the last
hidden item that was new to the user is to be found among all of them. So nothing later than a target speaks for its
user, and nobody has met it before. Where events place a hidden item, they are its first ones that are nobody's target.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from models.cold import CONTEXT, FEW, FULL, Learned, Placing, typical_norm
from models.sasrec import SASRec
from training.attributes import Attributes, learnable, read_attributes
from training.config import AutoRecRunConfig, Config, ConfigError, S3RecRunConfig, load_config
from training.dataset import PADDING_ID, Dataset, DatasetError, Sequences, Vocabulary, build_dataset, popularity_of
from training.evaluate import mask_seen
from training.interactions import Columns, Interactions
from training.measures import intervals, summarise
from training.next_item import ModelScorer
from training.preparation import Prepared, prepare, read_for, spec_of
from training.report import with_interval
from training.train import train

SHARE = 0.2
_USERS_AT_ONCE = 256
_SHOWN = 10


@dataclass(frozen=True, slots=True, eq=False)
class ColdSplit:
    """A log with some items hidden.

    learned: what training may see. histories: of every judged user the ids of what came before the target, oldest
    first, without hidden items; targets int64 (users,), places in `hidden`, the ids that were hidden; met, for every
    user the places of hidden items met before; counts float32 (hidden,), how often each occurs in the whole log.
    contexts: of each hidden item, for its first events that are no target, the ids of what their users met just before,
    without hidden items.
    """

    learned: Interactions
    hidden: tuple[str, ...]
    histories: list[list[str]]
    targets: NDArray[np.int64]
    met: list[NDArray[np.int64]]
    counts: NDArray[np.float32]
    contexts: list[list[tuple[str, ...]]]


@dataclass(frozen=True, slots=True, eq=False)
class ColdResults:
    """Ranks of the targets among the hidden items, from 1, int64 (users,), by the name of what ranked them.

    placed: hidden items that attributes give a vector, of `hidden`. shown: share of the users who have one of these
    among the first ten of all items.
    """

    ranks: Mapping[str, NDArray[np.int64]]
    hidden: int
    placed: int
    shown: float

    def table(self) -> Table:
        """The figures, with bootstrap 95 % intervals over users."""
        users = len(next(iter(self.ranks.values())))
        table = Table(
            title=f"{self.hidden:,} items hidden from training, ranked among themselves for {users:,} users",
            caption=f"Attributes place {self.placed:,} of them, and {self.shown:.0%} of the users have one among the "
            "first ten of all items. Events are the first of an item that are nobody's target. Equal scores stand in "
            "random order. The oracle knows how often each item occurs, which nobody does of a new one. 95 % intervals "
            "over users",
            title_justify="left",
            caption_justify="left",
        )
        for column in ("ranked by", "HR@10", "NDCG@10", "MRR"):
            table.add_column(column, justify="left" if column == "ranked by" else "right")
        for name, ranks in self.ranks.items():
            figures: dict[str, Any] = {**summarise(ranks), "intervals": intervals(ranks)}
            table.add_row(name, *with_interval(figures), f"{figures['mrr']:.4f}")
        return table


def evaluate_cold(
    name: str,
    files: list[Path],
    columns: Columns,
    attributes: Path,
    *,
    share: float,
    seed: int,
    output: Path | None,
    console: Console,
) -> ColdResults:
    """Hide items, train on the rest as `train` does, and judge where attributes put the hidden ones.

    name: of the configuration. The same call continues a run that was interrupted. Raises ConfigError for an AutoRec,
    DatasetError if the attributes place none of the hidden items, and as `hide` and `train`.
    """
    loaded = load_config(name)
    if isinstance(loaded, AutoRecRunConfig):
        raise ConfigError(f"{name} is an autoencoder; cold judges models that are learned from sequences")
    interactions = read_for(loaded, files, columns)
    console.print(str(interactions.report))
    dataset = build_dataset(interactions, **loaded.data.minima)
    split = hide(dataset, interactions, share=share, seed=seed)
    prepared = prepare(split.learned, loaded, split="loo", attributes=attributes, item_column=columns.item)
    spec = spec_of(
        loaded, prepared, name=name, files=files, columns=columns, split="loo", seed=seed, attributes=attributes
    ).model_copy(update={"hidden": share})
    told = read_attributes(attributes, Vocabulary((PADDING_ID, *split.hidden)), item_column=columns.item)
    if not _can_place(loaded, prepared, told, len(split.hidden)):
        raise DatasetError(
            f"the attributes place none of {len(split.hidden):,} hidden items, so that there is nothing to judge; give "
            "some that these share with other items, such as genres, brands or categories"
        )
    run = train(spec, prepared, output or Path("runs") / f"{spec.name}-cold-{seed}", console)
    model, learned = run.fitted()
    return judge_cold(cast(SASRec, model), split, prepared, told, seed=seed, learned=learned)


def _can_place(config: Config | S3RecRunConfig, prepared: Prepared, told: Attributes, hidden: int) -> bool:
    """Whether attributes will place any hidden item, which can be told before hours of fitting: all vectors are one."""
    attributes = prepared.attributes
    learned = None
    if attributes is not None and isinstance(config, S3RecRunConfig) and config.model.item_attributes:
        known = learnable(attributes, config.pretraining.columns, chosen=False)
        learned = None if known is None else Learned(known.names, np.ones((known.count, 1), np.float32))
    vocabulary = prepared.dataset.vocabulary
    placing = Placing(
        np.ones((vocabulary.rows, 1), np.float32),
        {} if attributes is None else attributes.columns,
        popularity_of(prepared.split.train, vocabulary.items),
        norm=None,
        learned=learned,
    )
    return any(placing.vector(own) is not None for own in _each(told, hidden))


def hide(dataset: Dataset, interactions: Interactions, *, share: float, seed: int) -> ColdSplit:
    """Hide a share of the items, drawn with the seed, and all that follows the last of them that was new to each user.

    interactions: those the data set was made of. A user who met none of the hidden items, or no other item before the
    last new one of them, is learned from whole and not judged. Raises DatasetError if nobody can be judged.
    """
    # As the third epoch orders windows, which tells of no item.
    items, generator = dataset.vocabulary.items, np.random.default_rng([seed, 3])
    rows = np.sort(generator.permutation(items)[: round(share * items)]) + 1
    ids = dataset.vocabulary.ids
    place = np.full(items + 1, -1, np.int64)
    place[rows] = np.arange(len(rows))
    whole = dataset.sequences.compact()
    owners, places = whole.owners, place[whole.items]
    met = np.flatnonzero(places >= 0)
    _, firsts = np.unique(owners[met] * len(rows) + places[met], return_index=True)
    # Where each user's target stands, since one that was met before is no find; where there is none, the beginning.
    last = whole.starts.copy()
    np.maximum.at(last, owners[met[firsts]], met[firsts])
    shown = _Shown([ids[row] for row in whole.items[places < 0]], np.concatenate(([0], np.cumsum(places < 0))))
    judged = np.flatnonzero(shown.before[last] > shown.before[whole.starts])
    if not judged.size:
        raise DatasetError(f"no user met one of {len(rows):,} hidden items after another item; hide a larger share")
    until = whole.ends.copy()
    until[judged] = last[judged]
    earlier = met[met < last[owners[met]]]  # no target nor what follows it
    if whole.timestamps is not None:
        earlier = earlier[np.argsort(whole.timestamps[earlier], kind="stable")]
    pasts = [slice(begin, end) for begin, end in zip(whole.starts[judged], last[judged], strict=True)]
    return ColdSplit(
        learned=_only(dataset, interactions, whole.where((places < 0) & (np.arange(len(owners)) < until[owners]))),
        hidden=tuple(ids[row] for row in rows),
        histories=[shown.of(past) for past in pasts],
        targets=places[last[judged]],
        met=[np.unique(places[past][places[past] >= 0]) for past in pasts],
        counts=popularity_of(whole, items)[rows],
        contexts=_contexts(earlier, places, whole.starts[owners], shown, hidden=len(rows)),
    )


def judge_cold(
    model: SASRec,
    split: ColdSplit,
    prepared: Prepared,
    told: Attributes,
    *,
    seed: int,
    learned: Learned | None = None,
) -> ColdResults:
    """Rank every judged user's target among the hidden items: by chance, by an oracle of popularity, and by where
    attributes and first events place them.

    prepared: the data that the model was trained on, with attributes; told: those of the hidden items, in their order
    behind padding; learned: what the model knows of attributes by themselves.
    """
    known = {} if prepared.attributes is None else prepared.attributes.columns
    items: NDArray[np.float32] = model.item_matrix().detach().float().cpu().numpy()
    popularity = popularity_of(prepared.split.train, model.items)
    placing = Placing(items, known, popularity, norm=typical_norm(items), learned=learned)
    own = _each(told, len(split.hidden))
    contexts = [
        [row[row > 0].tolist() for row in map(prepared.dataset.vocabulary.encode, map(list, those))]
        for those in split.contexts
    ]
    none: list[list[int]] = []
    by = {
        "attributes": [placing.vector(one, none) for one in own],
        f"{FEW} events": [placing.vector(None, those[:FEW]) for those in contexts],
        f"attributes and {FEW} events": [
            placing.vector(one, those[:FEW]) for one, those in zip(own, contexts, strict=True)
        ],
        f"attributes and {FULL} events": [placing.vector(one, those) for one, those in zip(own, contexts, strict=True)],
    }
    placed = sum(vector is not None for vector in by["attributes"])
    histories = _sequences(prepared.dataset.vocabulary, split.histories)
    vectors = ModelScorer(model).vectors(histories)
    chance = np.zeros(len(own), np.float32)
    found: dict[str, list[NDArray[np.int64]]] = {"chance": [], "popularity, an oracle": [], **{name: [] for name in by}}
    shown = 0
    for begin in range(0, len(vectors), _USERS_AT_ONCE):
        some = slice(begin, begin + _USERS_AT_ONCE)
        scores = {name: _scores(vectors[some], those) for name, those in by.items()}
        beside = vectors[some] @ items.T
        mask_seen(beside, histories.take(np.arange(len(vectors))[some]))
        last = -min(_SHOWN, beside.shape[1])  # of fewer items all are shown
        tenth = np.partition(beside, last, axis=1)[:, last]
        shown += int((scores["attributes"].max(axis=1) > tenth).sum())
        for ranks, those in zip(found.values(), (chance, split.counts, *scores.values()), strict=True):
            generator = np.random.default_rng([seed, 4, begin])
            whole = np.broadcast_to(those, scores["attributes"].shape)
            ranks.append(_ranks(whole, split.targets[some], split.met[some], generator))
    together = {name: np.concatenate(ranks) for name, ranks in found.items()}
    return ColdResults(together, hidden=len(own), placed=placed, shown=shown / len(vectors))


def _scores(vectors: NDArray[np.float32], placed: list[NDArray[np.float32] | None]) -> NDArray[np.float32]:
    """Scores (users, hidden) of vectors (users, dim), minus infinity for what has no place."""
    nowhere = np.zeros(vectors.shape[1], np.float32)
    scores: NDArray[np.float32] = vectors @ np.stack([nowhere if one is None else one for one in placed]).T
    scores[:, [one is None for one in placed]] = -np.inf
    return scores


@dataclass(frozen=True, slots=True, eq=False)
class _Shown:
    """What is not hidden, of one user after another; before (interactions + 1,): how much of it comes before each."""

    ids: list[str]
    before: NDArray[np.int64]

    def of(self, interactions: slice) -> list[str]:
        """What is not hidden of these interactions."""
        return self.ids[self.before[interactions.start] : self.before[interactions.stop]]


def _contexts(
    meetings: NDArray[np.int64], places: NDArray[np.int64], starts: NDArray[np.int64], shown: _Shown, *, hidden: int
) -> list[list[tuple[str, ...]]]:
    """What came just before each hidden item, oldest meetings first, as the service keeps it: once, and nothing empty.

    places and starts (interactions,): which hidden item it is, and where its user's history begins.
    """
    found: list[dict[tuple[str, ...], None]] = [{} for _ in range(hidden)]
    for at in meetings:
        context = tuple(shown.of(slice(starts[at], at))[-CONTEXT:])
        if context and len(found[places[at]]) < FULL:
            found[places[at]][context] = None
    return [list(those) for those in found]


def _ranks(
    scores: NDArray[np.float32],
    targets: NDArray[np.int64],
    met: list[NDArray[np.int64]],
    generator: np.random.Generator,
) -> NDArray[np.int64]:
    """Ranks from 1 of the targets, what was met before left out: scores (users, hidden) -> (users,).

    Equal scores, as of items with the same attributes, stand in random order.
    """
    order = generator.random(scores.shape)
    rows = np.arange(len(targets))
    own, place = scores[rows, targets][:, None], order[rows, targets][:, None]
    before = (scores > own) | ((scores == own) & (order < place))
    for row, places in zip(before, met, strict=True):
        row[places] = False
    ranks: NDArray[np.int64] = before.sum(axis=1, dtype=np.int64) + 1
    return ranks


def _only(dataset: Dataset, interactions: Interactions, kept: Sequences) -> Interactions:
    """Those of the interactions that are kept; they lie side by side."""
    nothing = [None] * kept.interactions
    frame = pl.DataFrame(
        {
            "user_id": pl.Series(dataset.users, dtype=pl.String).gather(kept.owners),
            "item_id": pl.Series(dataset.vocabulary.ids, dtype=pl.String).gather(kept.items),
            "timestamp": nothing if kept.timestamps is None else kept.timestamps,
            "value": nothing if kept.values is None else kept.values,
        },
        schema=interactions.frame.schema,
    )
    if interactions.has_timestamps:
        frame = frame.sort("timestamp", maintain_order=True)
    return Interactions(frame, interactions.report, interactions.has_timestamps, interactions.sha256)


def _sequences(vocabulary: Vocabulary, histories: list[list[str]]) -> Sequences:
    """Histories in a vocabulary that may lack some of their items."""
    rows = [vocabulary.encode(history) for history in histories]
    rows = [row[row > 0] for row in rows]
    lengths = np.array([len(row) for row in rows], np.int64)
    ends = np.cumsum(lengths)
    return Sequences(np.concatenate(rows), ends - lengths, ends)


def _each(attributes: Attributes, items: int) -> list[dict[str, object]]:
    """What is known of each item by itself."""
    return [{name: column[row] for name, column in attributes.columns.items()} for row in range(1, items + 1)]
