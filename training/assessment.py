"""An evaluation that a person asks for: a run or a bundle, on its own data or on other files, alone or beside another.

A run scores through torch and a bundle through onnxruntime; on the same data the figures are the same to rounding.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bundle import read_bundle
from models.manifest import MANIFEST, DataWindow
from models.runtime import Runtime
from models.vocabulary import Ids
from training.baselines import baselines
from training.config import AutoRecRunConfig, DataConfig, RunConfig, parse_config, reads_values
from training.dataset import Dataset, Vocabulary, popularity_of
from training.evaluate import (
    ALONE,
    Evaluation,
    EvaluationError,
    Scorer,
    difference,
    differences_from,
    evaluate_test,
    evaluate_test_sampled,
    require_test_negatives,
)
from training.interactions import Columns, Interactions
from training.measures import METRIC, Difference
from training.preparation import prepare, read_for, split_data
from training.run import RUN, RunFolder
from training.scorers import BundleScorer, run_scorer
from training.spec import RATED, SplitName
from training.splits import Split


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A run or a bundle as something to judge: what it was made from, its recorded figures, and its scorer.

    popularity float32 (items + 1,): how often it learned each of `ids`. split: what it was judged by, None for a
    bundle, which does not say. `over` gives the scorer over the items of any data, `alone` that without its blend, None
    where there is none; reads_values: whether it reads what an interaction was worth. `run` is None for a bundle,
    `config` for one that names none.
    """

    name: str
    config: RunConfig | None
    data: DataWindow
    split: SplitName | None
    ids: Ids
    popularity: NDArray[np.float32]
    figures: Mapping[str, Any]
    over: Callable[[Vocabulary], Scorer]
    alone: Callable[[Vocabulary], Scorer] | None
    reads_values: bool
    run: RunFolder | None


@dataclass(frozen=True, slots=True, eq=False)
class Assessment:
    """What was found: the evaluation with its report, the baselines on the same data, and what else was asked for.

    differences: from each of the baselines, by its name, as `differences_from` gives them. alone: the recorded figures
    of the model without its blend, on its own data. notes are sentences about what the figures do not say by
    themselves. against is the name of the other subject.
    """

    name: str
    split: SplitName
    evaluation: Evaluation
    baselines: Mapping[str, Mapping[str, Any]]
    differences: Mapping[str, Mapping[str, float]]
    alone: Mapping[str, Any] | None = None
    sampled: Mapping[str, Any] = field(default_factory=dict)
    against: str | None = None
    difference: Difference | None = None
    notes: tuple[str, ...] = ()


def open_subject(path: Path) -> Subject:
    """The finished run or the bundle in this folder. Raises RunError or BundleError if it is neither or damaged."""
    if (path / MANIFEST).is_file() and not (path / RUN).exists():
        runtime = Runtime(read_bundle(path), device="cpu")
        runtime.replay_golden()
        manifest = runtime.bundle.manifest
        return Subject(
            name=manifest.version,
            config=parse_config(manifest.config) if manifest.config else None,
            data=manifest.data,
            split=None,
            ids=runtime.bundle.ids,
            popularity=runtime.bundle.popularity,
            figures=manifest.metrics,
            over=lambda vocabulary: BundleScorer(runtime, vocabulary),
            alone=None
            if runtime.bundle.neighbours is None
            else lambda vocabulary: BundleScorer(runtime, vocabulary, alone=True),
            reads_values=runtime.reads_values,
            run=None,
        )
    run = RunFolder(path)
    spec = run.spec()
    return Subject(
        name=spec.name,
        config=spec.config,
        data=spec.data,
        split=spec.split,
        ids=run.ids(),
        popularity=run.popularity(),
        figures=run.metrics(),
        over=run_scorer(run),
        alone=None if run.neighbours() is None else run_scorer(run, alone=True),
        reads_values=reads_values(spec.config),
        run=run,
    )


def assess(
    path: Path,
    *,
    data: Sequence[Path] = (),
    columns: Columns | None = None,
    split: SplitName | None = None,
    sampled: int | None = None,
    against: Path | None = None,
) -> Assessment:
    """Judge a run or a bundle on the test part of data, and if asked for among sampled negatives and against another.

    data: interaction files; without them the run's own. split: by default that of the run, and leave-one-out for a
    bundle. Raises EvaluationError if a bundle comes without data, a run's own data is to be split otherwise or a user
    has fewer items to sample from, and whatever reading the subject and the data raises.
    """
    subject = open_subject(path)
    other = open_subject(against) if against is not None else None
    rated = other is not None and other.reads_values
    interactions, dataset, parts, chosen = _data(subject, data, columns or Columns(), split, values=rated)
    items = dataset.vocabulary.items
    if sampled is not None:
        require_test_negatives(parts, items, sampled)
    scorer = subject.over(dataset.vocabulary)
    evaluation = evaluate_test(scorer, parts, items)
    own = _is_own(subject, interactions, dataset, parts, chosen)
    recorded = subject.figures.get("baselines", {}) if own else {}
    beside = {name: figures["test"] for name, figures in recorded.items() if METRIC in figures["test"]}
    # On the data it was made from the baselines stand as they were recorded: they are fitted without chance.
    if beside:
        differences = subject.figures["test"].get("differences", {})
    else:
        ranking = {
            name: evaluate_test(baseline, parts, items) for name, baseline in baselines(parts.train, items).items()
        }
        beside = {name: judged.report() for name, judged in ranking.items()}
        differences = differences_from(evaluation, ranking)
    notes = _drift(subject, evaluation) if own else [_caution(subject, interactions)]
    found = None
    if other is not None:
        found = difference(evaluation, evaluate_test(other.over(dataset.vocabulary), parts, items))
        if not _is_own(other, interactions, dataset, parts, chosen):
            notes.append(_caution(other, interactions))
        if rated and interactions.frame["value"].is_null().all():
            notes.append(
                f"{other.name} reads ratings and is judged here without any; name the files with --data and the "
                "ratings' column with --value-column"
            )
    return Assessment(
        name=subject.name,
        split=chosen,
        evaluation=evaluation,
        baselines=beside,
        differences=differences,
        alone=subject.figures["alone"]["test"] if own and "alone" in subject.figures else None,
        sampled={} if sampled is None else _sampled(subject, dataset.vocabulary, parts, sampled),
        against=None if other is None else str(against),
        difference=found,
        notes=tuple(notes),
    )


def _sampled(subject: Subject, vocabulary: Vocabulary, parts: Split, negatives: int) -> dict[str, Any]:
    """Figures among sampled negatives by their name; of a blend those of the model alone too, among the same ones."""
    found = evaluate_test_sampled(subject.over(vocabulary), parts, vocabulary.items, negatives=negatives).report()
    if subject.alone is None:
        return found
    alone = evaluate_test_sampled(subject.alone(vocabulary), parts, vocabulary.items, negatives=negatives).report()
    return found | {name + ALONE: figures for name, figures in alone.items()}


def _data(
    subject: Subject, files: Sequence[Path], columns: Columns, split: SplitName | None, *, values: bool
) -> tuple[Interactions, Dataset, Split, SplitName]:
    spec = subject.run.spec() if subject.run else None
    chosen: SplitName = split or (spec.split if spec and not (files and spec.split in RATED) else "loo")
    if chosen in RATED:
        raise EvaluationError(
            f"the split {chosen} holds out single ratings of whatever time, which is not what came next: it gives no "
            "ranking figures; give --data FILE with --split loo or time"
        )
    if not files:
        if subject.run is None or spec is None:
            raise EvaluationError(
                f"{subject.name} is a bundle, which does not hold its data; name the files with --data"
            )
        if chosen != spec.split:
            raise EvaluationError(
                f"{subject.run.path} was trained on the split {spec.split}, so its own data cannot be judged by "
                f"{chosen}: part of that test was learned from; leave --split out or give other --data"
            )
        prepared = subject.run.data(values=values)
        return prepared.interactions, prepared.dataset, prepared.split, chosen
    rules = subject.config.data if subject.config else DataConfig()
    held_out = spec.held_out if spec else 0.1
    interactions = read_for(subject.config, files, columns, values=values)
    if isinstance(subject.config, AutoRecRunConfig):  # only what counts for it, as it was trained
        prepared = prepare(interactions, subject.config, split=chosen, held_out=held_out)
        return prepared.interactions, prepared.dataset, prepared.split, chosen
    dataset, parts = split_data(interactions, rules, split=chosen, held_out=held_out)
    return interactions, dataset, parts, chosen


def _is_own(subject: Subject, interactions: Interactions, dataset: Dataset, parts: Split, split: SplitName) -> bool:
    """Whether the subject was made from the train part of just this data.

    Files, sizes and the newest event learned may be the same although another part of the files was learned, or all of
    them; how often each item was learned is then not.
    """
    times, vocabulary = parts.train.timestamps, dataset.vocabulary
    if (
        set(interactions.sha256) != set(subject.data.files.values())
        or subject.split not in (None, split)
        or (len(dataset.users), vocabulary.items) != (subject.data.users, subject.data.items)
        or (None if times is None else int(times.max())) != subject.data.trained_until_ms
    ):
        return False
    learned = dict(zip(subject.ids, subject.popularity.tolist(), strict=True))
    found = popularity_of(parts.train, vocabulary.items).tolist()
    return learned == dict(zip(vocabulary.ids, found, strict=True))


def _drift(subject: Subject, evaluation: Evaluation) -> list[str]:
    """A word if the figures are not the recorded ones; rounding on another machine moves a rank here and there."""
    found, recorded = evaluation.metrics()[METRIC], subject.figures.get("test", {}).get(METRIC)
    if recorded is None or abs(found - recorded) < 5e-5:
        return []
    return [f"recorded when {subject.name} was trained: {METRIC} {recorded:.6f}, now {found:.6f}"]


def _caution(subject: Subject, interactions: Interactions) -> str:
    if set(interactions.sha256) == set(subject.data.files.values()):
        return (
            f"{subject.name} was trained on another split or selection of this very data: part of this test may have "
            "been learned from, and the figures may flatter it"
        )
    return (
        f"{subject.name} was trained on other files ({', '.join(subject.data.files)}): items it does not know count as "
        "missed, and if it has seen these events before, the figures flatter it"
    )
