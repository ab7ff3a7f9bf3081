"""Batch retraining: files and the live event log in, a better champion or the same one out.

Split by time, since that is what serving is: learn from before a moment, be judged by what came after it. A challenger
that passes is fitted once more on everything, for the newest events are those it has to know.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from models.bundle import Bundle, read_bundle
from models.eventlog import SEQUENCE_TYPES
from models.registry import Registry
from models.runtime import Runtime
from training.attributes import Attributes
from training.config import AutoRecRunConfig, DataConfig, RunConfig
from training.dataset import DatasetError, Vocabulary, build_dataset
from training.evaluate import Evaluation, Scorer, evaluate_test
from training.export import export
from training.gate import compare
from training.interactions import Columns, Interactions, InteractionsError
from training.logged import Logged, logged_interactions, without_erased, without_known
from training.preparation import Prepared, prepare, read_for, spec_of
from training.run import RunError, RunFolder
from training.scorers import BundleScorer, run_scorer
from training.splits import Split
from training.train import refit, train

_LARGEST_WINDOW = 0.1  # of the interactions: the newest tenth judges, the tenth before it validates
_SMALLEST_WINDOW = 0.01  # less than this after the champion's training would be judged by chance
_WIDER_WINDOWS = (0.1, 0.2, 0.3)  # where the first has too few users with a history before it
_FEWEST_JUDGES = 50  # users: below, the figure of a window is mostly chance


class NotPromoted(Exception):  # noqa: N818 - an outcome, not an error
    """The challenger was worse; the champion stays. The message has the figures."""


def retrain(
    data: Sequence[Path],
    config: RunConfig,
    *,
    name: str,
    columns: Columns,
    artifacts: Path,
    console: Console,
    events_from: Sequence[str] = (),
    event_types: Collection[str] = SEQUENCE_TYPES,
    attributes: Path | None = None,
    seed: int = 0,
) -> str:
    """Train a challenger, publish it, promote it unless the champion ranks the held-out window better.

    events_from: stores (URLs) and archives (folders) of logged events, beside files of data or without any; nobody
    erased there is learned from.
    Returns the new champion's version. Raises NotPromoted if the champion stays, RegistryError if another has become
    the champion meanwhile, which stays too, and whatever reading, training and export raise.
    """
    if isinstance(config, AutoRecRunConfig) and config.model.side == "item":  # before hours of training, not after
        raise RunError(
            f"{name} is an item-based AutoRec, which knows only the users it was trained on and cannot serve; retrain "
            "a user-based one, such as autorec-user"
        )
    registry = Registry(artifacts)
    current = registry.current()
    champion = Runtime(read_bundle(registry.folder(current)), device="cpu") if current else None
    rated = champion is not None and champion.reads_values
    files = read_for(config, data, columns, values=rated) if data else None
    if events_from:
        logged = logged_interactions(events_from, event_types, console)
        if files is not None and logged.interactions is not None and not files.has_timestamps:
            names = ", ".join(map(str, data))
            raise InteractionsError(f"{names}: no times, which logged events have; name their --timestamp-column")
        interactions = _with_logged(files, logged)
    elif files is not None:
        interactions = files
    else:
        raise InteractionsError("nothing to learn from: name interactions by --data, or logged events by --events-from")
    console.print(str(interactions.report))
    if rated and interactions.frame["value"].is_null().all():
        console.print("note: the champion reads ratings and is judged without any; name their --value-column")
    prepared, window = _prepare(interactions, config, attributes, champion, console, item_column=columns.item)
    spec = spec_of(
        config,
        prepared,
        name=name,
        files=data,
        columns=columns,
        split="time",
        seed=seed,
        attributes=attributes,
        held_out=window,
    )
    run = train(spec, prepared, artifacts / "runs" / f"{spec.name}-{spec.identity[:12]}", console)
    if champion is not None:
        challenger = _judge(run_scorer(run)(prepared.dataset.vocabulary), prepared)
        verdict = compare(challenger, _judge(BundleScorer(champion, prepared.dataset.vocabulary), prepared))
        if not verdict.promote:
            folder = _publish(run, artifacts)
            raise NotPromoted(f"{verdict.reason}; champion stays {current}, challenger kept as {folder.name}")
        console.print(verdict.reason)
    whole = refit(run, prepared, console)
    folder = _publish(whole, artifacts)
    run.drop_checkpoints()
    registry.promote(folder.name, instead_of=(current,))
    console.print(f"champion is {folder.name} (before: {current or 'none'})")
    return folder.name


def _with_logged(files: Interactions | None, logged: Logged) -> Interactions:
    """What files, if there are any, and logs have together, without erased users."""
    both = logged.interactions if files is None else files
    if both is None:
        raise InteractionsError("nothing that has been logged so far can be learned from; give --data too")
    if files is not None and logged.interactions is not None:
        both = files.extended(without_known(logged.interactions, files))
    # Of logged events too: a user's past from before the erasure may have been sent anew after it.
    return without_erased(both, logged.tombstones)


def _publish(run: RunFolder, artifacts: Path) -> Path:
    folder = export(run, artifacts)
    run.drop_checkpoints()  # the bundle has the weights; retraining every night must not fill the disk
    return folder


def _judge(scorer: Scorer, prepared: Prepared) -> Evaluation:
    return evaluate_test(scorer, prepared.split, prepared.dataset.vocabulary.items)


def _prepare(
    interactions: Interactions,
    config: RunConfig,
    attributes: Path | None,
    champion: Runtime | None,
    console: Console,
    *,
    item_column: str,
) -> tuple[Prepared, float]:
    """The data split in time, and the share of it that judges.

    The window is later than what the champion learned from where that leaves enough to judge by; a champion that has
    seen the answers would win against any challenger. A window that too few known users reach is widened.
    """
    learned_until = champion.bundle.manifest.data.trained_until_ms if champion else None
    if not interactions.has_timestamps:
        learned_until = None
    newer = 1.0 if learned_until is None else _newer(interactions, config.data, learned_until)
    problem = DatasetError("there is nothing to judge by")
    found: tuple[Prepared, float] | None = None
    for share in _shares(newer):
        try:
            prepared = prepare(
                interactions, config, split="time", attributes=attributes, item_column=item_column, held_out=share
            )
        except DatasetError as error:
            problem = error
            continue
        found = prepared, share
        if prepared.split.judges >= _FEWEST_JUDGES:
            break
    if found is None:
        raise problem
    prepared, share = found  # of those that too few users judge the widest
    for caution in _cautions(prepared.split, champion, learned_until, newer):
        console.print(f"note: {caution}")
    if attributes is None and champion is not None and champion.bundle.attributes is not None:
        prepared = replace(prepared, attributes=_inherited(champion.bundle, prepared.dataset.vocabulary))
    return prepared, share


def _shares(newer: float) -> list[float]:
    """Windows to try in turn; newer: share of the interactions that the champion has not learned from."""
    unseen = [min(newer, _LARGEST_WINDOW)] if newer >= _SMALLEST_WINDOW else []
    return list(dict.fromkeys([*unseen, *_WIDER_WINDOWS]))


def _cautions(split: Split, champion: Runtime | None, learned_until: int | None, newer: float) -> list[str]:
    """What the verdict of this window does not say by itself."""
    said = []
    if split.judges < _FEWEST_JUDGES:
        said.append(f"only {split.judges:,} users judge, so that who is better is mostly chance")
    if champion is not None and learned_until is None:
        said.append(
            "it is not known until when the champion has learned, so that it may have seen the window it is judged by, "
            "which favours it"
        )
    elif learned_until is not None and split.cuts_ms is not None and split.cuts_ms[1] <= learned_until:
        said.append(
            f"only {newer:.2%} of the interactions are later than what the champion was trained on, so it has seen "
            "part of the window it is judged by, which favours it"
        )
    return said


def _newer(interactions: Interactions, rules: DataConfig, learned_until: int) -> float:
    """Share of the interactions that count which are later than what the champion was fitted to.

    Of those that do not, for want of others of their user or item, most are new, and as many old ones would take their
    place in the window.
    """
    times = build_dataset(interactions, **rules.minima).sequences.timestamps
    return 0.0 if times is None or not times.size else float((times > learned_until).mean())


def _inherited(bundle: Bundle, vocabulary: Vocabulary) -> Attributes:
    """The champion's attributes in the rows of a new vocabulary, so that titles survive a retraining without them."""
    rows = bundle.rows_of(vocabulary.ids).tolist()
    columns = {
        name: [column[row] if row else None for row in rows] for name, column in (bundle.attributes or {}).items()
    }
    missing = rows[1:].count(0)
    return Attributes(columns, missing_items=missing, unknown_items=bundle.manifest.items - len(rows) + 1 + missing)
