"""How a run looks to a person: a bar while it works, a table and curves when it is done.

Bars are for terminals; in a log file or a pipe there is nothing until the table.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from training.fit import Fitted
from training.next_item import METRIC
from training.run import Prepared

_SHOWN = ("hr@10", "ndcg@10", "mrr", "coverage@10")


class EpochBar:
    """A fit.Watcher that draws one bar an epoch, with the loss, the speed and the best validation figure so far."""

    def __init__(self, progress: Progress, windows: int, metric: str) -> None:
        self._progress, self._metric = progress, metric
        self._task = progress.add_task("epoch 1", total=windows, loss=float("nan"), best="")

    def step(self, windows: int, loss: float) -> None:
        """One step further."""
        self._progress.update(self._task, advance=windows, loss=loss)

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
        TextColumn("loss {task.fields[loss]:.3f}"),
        TextColumn("{task.fields[best]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        yield EpochBar(progress, windows, metric)


def describe_data(prepared: Prepared) -> str:
    """What is trained on, and all that was left out of it and why."""
    numbers, core = prepared.dataset.statistics(), prepared.dataset.core
    lines = [
        f"{numbers.users:,} users, {numbers.items:,} items, {numbers.interactions:,} interactions, "
        f"median history {numbers.median_length:.0f}"
    ]
    if core.interactions_removed:
        lines.append(
            f"too few interactions: {core.users_removed:,} users and {core.items_removed:,} items removed, "
            f"{core.interactions_removed:,} interactions with them"
        )
    lines += [f"not evaluated: {users:,} users, {why}" for why, users in prepared.split.left_out.items() if users]
    if not prepared.interactions.has_timestamps:
        lines.append("no timestamps: the order of the rows is taken as the order of events")
    if prepared.attributes is not None:
        known = numbers.items - prepared.attributes.missing_items
        lines.append(
            f"attributes of {known:,} of {numbers.items:,} items; "
            f"{prepared.attributes.unknown_items:,} in the file are not in the data"
        )
    return "\n".join(lines)


def describe_stop(fitted: Fitted, patience: int, metric: str) -> str:
    """Why training ended, in words."""
    speed = f"{fitted.epochs} epochs in {fitted.seconds:.0f} s, {fitted.sequences / fitted.seconds:,.0f} sequences/s"
    if fitted.stopped_early:
        return f"stopped early: validation {metric} had not improved for {patience} epochs; {speed}"
    return f"trained all {speed}; the best validation {metric} was in epoch {fitted.best_epoch}"


def results_table(model: str, metrics: Mapping[str, Any], *, title: str) -> Table:
    """Test figures of the model beside the baselines on the same split; the best of each column is bold."""
    rows = {name: figures["test"] for name, figures in metrics["baselines"].items()} | {model: metrics["test"]}
    table = Table(title=title, caption=_caption(metrics["test"]), title_justify="left", caption_justify="left")
    table.add_column("model")
    for name in _SHOWN:
        table.add_column(name.replace("hr", "HR").replace("ndcg", "NDCG").replace("mrr", "MRR"), justify="right")
    best = {name: max(figures[name] for figures in rows.values()) for name in _SHOWN}
    for row, figures in rows.items():
        cells = [
            f"[bold]{figures[name]:.4f}[/]" if figures[name] == best[name] else f"{figures[name]:.4f}"
            for name in _SHOWN
        ]
        table.add_row(row, *cells, style="cyan" if row == model else None)
    return table


def _caption(test: Mapping[str, Any]) -> str:
    low, high = test["intervals"][METRIC]
    return (
        f"all items ranked, history excluded, {test['users']:,} users; 95 % interval of the model's "
        f"{METRIC}: {low:.4f} to {high:.4f}"
    )


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
