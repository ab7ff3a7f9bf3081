"""How a run looks to a person: a bar while it works, a table and curves when it is done.

Bars are for terminals; in a log file or a pipe there is nothing until the table.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from training.assessment import Assessment
from training.dataset import Sequences
from training.evaluate import Scorer
from training.fields import EARLY_MS
from training.fit import Fitted
from training.measures import METRIC, Difference
from training.preparation import Prepared
from training.similar import Similar

SPLITS = {
    "loo": "leave-one-out",
    "time": "split by time",
    "random": "random ratings held out",
    "file": "the ratings of the test files",
}

_SHOWN = ("hr@10", METRIC, "mrr", "coverage@10", "novelty@10")
_MORE_IS_BETTER = _SHOWN[:-1]  # novelty describes; chance has the most of it
_MANY_TIES = 0.1  # share of the test targets: above, ties and not the order of events may decide the figures


def terminal(*, quiet: bool = False) -> Console:
    """Standard output. Titles, ids and paths are anybody's, so nothing in them is markup, which could not be parsed.

    In a file or a pipe lines are longer than the 80 columns that would be taken for it.
    """
    console = Console(quiet=quiet, markup=False, emoji=False, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 200
    return console


class EpochBar:
    """A fit.Watcher that draws one bar an epoch, with the loss, the speed and the best validation figure so far."""

    def __init__(self, progress: Progress, windows: int, metric: str) -> None:
        self._progress, self._metric = progress, metric
        self._task = progress.add_task("epoch 1", total=windows, loss="", rate="", best="")

    def step(self, windows: int, loss: float) -> None:
        """One step further."""
        self._progress.update(self._task, advance=windows, loss=f"loss {loss:.3f}")
        rate = self._progress.tasks[self._task].speed or 0.0
        self._progress.update(self._task, rate=f"{rate:,.0f} sequences/s")

    def epoch(self, record: dict[str, float], *, best: bool) -> None:
        """Start the next bar; a better epoch is remembered beside it."""
        if best and self._metric in record:
            self._progress.update(
                self._task, best=f"best {self._metric} {record[self._metric]:.4f} in epoch {record['epoch']}"
            )
        self._progress.reset(self._task, description=f"epoch {record['epoch'] + 1}")


@contextmanager
def epoch_bar(console: Console, windows: int, metric: str) -> Iterator[EpochBar]:
    """A progress bar for training; it shows nothing where there is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[loss]}"),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[best]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        yield EpochBar(progress, windows, metric)


@contextmanager
def judging_bar(console: Console, users: int) -> Iterator[Callable[[Scorer], Scorer]]:
    """A progress bar for judging so many users, and what makes a scorer move it; nothing where there is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("judging", total=users)

        def watched(scorer: Scorer) -> Scorer:
            def score(histories: Sequences) -> NDArray[np.float32]:
                scores = scorer(histories)
                progress.advance(task, len(histories))
                return scores

            return score

        yield watched


def describe_data(prepared: Prepared) -> str:
    """What is trained on, and all that was left out of it and why."""
    dataset, core, items = prepared.dataset, prepared.dataset.core, prepared.dataset.vocabulary.items
    lines = [
        f"{len(dataset.users):,} users, {items:,} items, {dataset.sequences.interactions:,} interactions, "
        f"median history {np.median(dataset.sequences.lengths):.0f}"
    ]
    if core.interactions_removed:
        lines.append(
            f"too few interactions: {core.users_removed:,} users and {core.items_removed:,} items removed, "
            f"{core.interactions_removed:,} interactions with them"
        )
    lines += prepared.notes
    split = prepared.split
    lines += [f"not evaluated: {users:,} users, {why}" for why, users in split.left_out.items() if users]
    validation, test = split.validation.repeats, split.test_repeats
    if validation or test:
        lines.append(
            f"in the user's history already, which counts as missed: {validation:,} of {len(split.validation):,} "
            f"validation targets, {test:,} of {split.judges:,} test targets"
        )
    if split.test_ties > _MANY_TIES * split.judges:
        lines.append(
            f"at the same time as the event before: {split.test_ties:,} of {split.judges:,} test targets, so that what "
            'came last is a guess; --timestamp-column "" takes the order of the rows'
        )
    if duplicates := dataset.sequences.duplicates:
        lines.append(
            f"note: {duplicates:,} interactions have the user, item and time of another; each counts, so if a row was "
            "written twice, take one out"
        )
    if not prepared.interactions.has_timestamps:
        lines.append(
            "no timestamps: the order of the rows is taken as the order of events; --timestamp-column names a column"
        )
    elif int(prepared.interactions.frame["timestamp"].max() or 0) < EARLY_MS:  # type: ignore[arg-type]
        lines.append(
            "note: all times lie before March 1973; if they are days or numbers of rows, their order is right and "
            "nothing else: convert them to seconds"
        )
    if prepared.attributes is not None:
        known = items - prepared.attributes.missing_items
        lines.append(
            f"attributes of {known:,} of {items:,} items; "
            f"{prepared.attributes.unknown_items:,} in the file are not in the data"
        )
    return "\n".join(lines)


def describe_stop(fitted: Fitted, patience: int, metric: str) -> str:
    """Why training ended, in words."""
    speed = f"{fitted.epochs} epochs in {fitted.seconds:.0f} s, {fitted.sequences / fitted.seconds:,.0f} sequences/s"
    if fitted.best == 0 and metric == METRIC:
        return (
            f"no epoch had a validation target among the first ten, so validation chose nothing: the weights are those "
            f"of the last; {speed}"
        )
    if fitted.stopped_early:
        return f"stopped early: validation {metric} had not improved for {patience} epochs; {speed}"
    return f"trained all {speed}; the best validation {metric} was in epoch {fitted.best_epoch}"


def results_table(model: str, metrics: Mapping[str, Any], *, title: str) -> Table:
    """Test figures of the model beside the baselines on the same split; the best of each column is bold.

    metrics: `test`, `baselines` by name each with a `test`, and where `test` is of a blend `alone` with one. Below it
    stands how far the model is from the best baseline, if `test` has the differences.
    """
    rows = {name: figures["test"] for name, figures in metrics["baselines"].items()}
    if "alone" in metrics:
        rows[model] = metrics["alone"]["test"]
        model += " + item-kNN"
    rows[model] = metrics["test"]
    table = Table(title=title, caption=_caption(metrics["test"]), title_justify="left", caption_justify="left")
    table.add_column("model")
    for name in _SHOWN:
        table.add_column(heading(name), justify="right")
    best = {name: max(figures[name] for figures in rows.values()) for name in _MORE_IS_BETTER}
    for row, figures in rows.items():
        cells = []
        for name in _SHOWN:
            figure = figures.get(name)
            shown = "-" if figure is None else f"{figure:.4f}"
            cells.append(Text(shown, "bold" if figure == best.get(name, -1) else ""))
        table.add_row(row, *cells, style="cyan" if row == model else None)
    return table


def similar_table(found: Sequence[Similar], names: Sequence[str]) -> Table:
    """Well-known items with what the model takes for most like them; names has one for every row of the matrix."""
    table = Table(title="What the model takes for alike", title_justify="left")
    table.add_column("item")
    table.add_column("nearest, with the cosine")
    for similar in found:
        near = zip(similar.neighbours, similar.cosines, strict=True)
        table.add_row(names[similar.item], "; ".join(f"{names[row]} {cosine:.2f}" for row, cosine in near))
    return table


def slices_table(report: Mapping[str, Any]) -> Table:
    """All users of an evaluation and each part of them that is not all, with 95 % intervals."""
    table = Table(title="By parts of the users, with 95 % intervals over users", title_justify="left")
    for name in ("part", "users", "HR@10", "NDCG@10", "MRR"):
        table.add_column(name, justify="left" if name == "part" else "right")
    parts = {name: part for name, part in report["slices"].items() if part["users"] != report["users"]}
    for name, figures in {"all": report, **parts}.items():
        table.add_row(name, f"{figures['users']:,}", *with_interval(figures), f"{figures['mrr']:.4f}")
    return table


def sampled_table(name: str, sampled: Mapping[str, Any]) -> Table:
    """Figures among sampled negatives, under a title that says so."""
    table = Table(
        title=Text.assemble(
            ("Sampled negatives, not all items", "bold red"), ": only to compare with papers that sample"
        ),
        title_justify="left",
    )
    for column in ("model", "protocol", "HR@10", "NDCG@10", "MRR"):
        table.add_column(column, justify="left" if column in ("model", "protocol") else "right")
    for protocol, figures in sampled.items():
        table.add_row(name, protocol, *with_interval(figures), f"{figures['mrr']:.4f}")
    return table


def print_assessment(found: Assessment, console: Console) -> None:
    """Everything that was found, as tables and sentences."""
    report = found.evaluation.report() | {"differences": found.differences}
    metrics = {"test": report, "baselines": {name: {"test": figures} for name, figures in found.baselines.items()}}
    if found.alone is not None:
        metrics["alone"] = {"test": found.alone}
    console.print(results_table(found.name, metrics, title=f"Test, {SPLITS[found.split]}"))
    console.print(slices_table(report))
    if found.sampled:
        console.print(sampled_table(found.name, found.sampled))
    if found.difference is not None:
        console.print(f"{METRIC} of {found.name} minus that of {found.against}: {found.difference}")
    for note in found.notes:
        console.print(f"note: {note}")


def nearest_baseline(differences: Mapping[str, Mapping[str, float]]) -> tuple[str, Mapping[str, float]]:
    """The baseline that is best on the users of these paired differences, and the difference from it."""
    return min(differences.items(), key=lambda pair: pair[1]["mean"])


def heading(name: str) -> str:
    """A metric as it is written in a table."""
    return name.replace("hr", "HR").replace("ndcg", "NDCG").replace("mrr", "MRR")


def with_interval(figures: Mapping[str, Any]) -> list[Text]:
    """HR@10 and NDCG@10, each with its interval, narrow enough for a terminal of 80 columns."""
    cells = []
    for name in ("hr@10", METRIC):
        low, high = (f"{bound:.4f}".removeprefix("0") for bound in figures["intervals"][name])
        cells.append(Text.assemble(f"{figures[name]:.4f} ", (f"{low}-{high}", "dim")))
    return cells


def _caption(test: Mapping[str, Any]) -> str:
    low, high = test["intervals"][METRIC]
    caption = (
        f"all items ranked, history excluded, {test['users']:,} users; HR is recall: one target a user; 95 % interval "
        f"of the model's {METRIC}: {low:.4f} to {high:.4f}"
    )
    if not test.get("differences"):
        return caption
    baseline, found = nearest_baseline(test["differences"])
    return f"{caption}\n{METRIC} minus that of {baseline}, the best baseline, user by user: {Difference(**found)}"


def plot_curves(epochs: list[dict[str, float]], path: Path, metric: str) -> None:
    """Loss and a validation metric, higher is better, by epoch, as a PNG."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - half a second that only a finished run should pay

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    loss, quality = figure.subplots(1, 2)
    numbers = [record["epoch"] for record in epochs]
    loss.plot(numbers, [record["loss"] for record in epochs])
    loss.set(title="training loss", xlabel="epoch", ylabel="nats a target")
    figures = [record[metric] for record in epochs]
    quality.plot(numbers, figures)
    best = max(range(len(figures)), key=figures.__getitem__)
    quality.plot(numbers[best], figures[best], "o", label=f"best: {figures[best]:.4f} in epoch {numbers[best]}")
    quality.set(title=f"validation {metric}", xlabel="epoch", ylim=(0, None))
    quality.legend(loc="lower right")
    figure.savefig(path, dpi=120)
