"""Every pair of encoder and decoder activation on the same data: which one, by validation, and the test beside it.

Each pair is a run folder of its own, so that an interrupted comparison continues and any of them can be exported.
"""

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from models.autorec import Activation
from training.config import AutoRecRunConfig, ConfigError
from training.measures import METRIC, RMSE
from training.preparation import Prepared
from training.rating_run import RANKED, course, fitted_autorec, judge_model
from training.run import RunFolder
from training.spec import RunSpec

Found = dict[tuple[str, str], dict[str, Any]]


def compare_activations(spec: RunSpec, prepared: Prepared, folder: Path, console: Console) -> Found:
    """Fit a model for every pair (encoder, decoder), each in a folder of `folder`, and write `folder/activations.md`.

    Gives the figures of metrics.json by pair. Raises ConfigError if the configuration is of another model, RunError if
    a training is at work in the folder or in one of the pairs'.
    """
    if not isinstance(spec.config, AutoRecRunConfig):
        raise ConfigError(f"{spec.config.model.name} has no encoder and decoder activation to compare; give an AutoRec")
    found: Found = {}
    with RunFolder(folder).held():
        for encoder, decoder in product(get_args(Activation), repeat=2):
            model = spec.config.model.model_copy(update={"encoder": encoder, "decoder": decoder})
            config = spec.config.model_copy(update={"model": model})
            one = spec.model_copy(update={"config": config, "name": f"{spec.name}-{encoder}-{decoder}"})
            run = RunFolder(folder / f"{one.name}-{spec.seed}")  # by which the results page tells records apart
            found[encoder, decoder] = _fitted_pair(one, config, prepared, run, console)
        (folder / "activations.md").write_text(_markdown(found), encoding="utf-8")
    return found


def _fitted_pair(
    spec: RunSpec, config: AutoRecRunConfig, prepared: Prepared, run: RunFolder, console: Console
) -> dict[str, Any]:
    """The figures of one pair, of which the run is finished then."""
    with run.held():
        run.begin(spec, prepared)
        task, fitted = fitted_autorec(spec, config, prepared, run, console=console)
        figures = judge_model(task, prepared, ranked=spec.split in RANKED)
        figures |= {"baselines": {}, "left_out": prepared.split.left_out, **course(fitted)}
        run.finish(figures)
    console.print(f"{config.model.encoder}, {config.model.decoder}: {fitted.epochs} epochs in {fitted.seconds:.0f} s")
    return figures


def compared_name(spec: RunSpec) -> str | None:
    """The configuration that a run of `compare_activations` was derived from; None if it is no such run."""
    if not isinstance(spec.config, AutoRecRunConfig):
        return None
    name = spec.name.removesuffix(f"-{spec.config.model.encoder}-{spec.config.model.decoder}")
    return name if name != spec.name else None


def activations_table(found: Found) -> Table:
    """The pairs in order of validation, the chosen one first and bold."""
    head, *rows = _cells(found)
    table = Table(title="Activations; the first is chosen, by validation alone", title_justify="left")
    for number, name in enumerate(head):
        table.add_column(name, justify="left" if number < 2 else "right")
    for number, row in enumerate(rows):
        table.add_row(*row, style="" if number else "bold")
    return table


def _markdown(found: Found) -> str:
    head, *rows = _cells(found)
    lines = [head, ["---"] * len(head), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"In order of validation, which alone chooses; the test figures are shown for all.\n\n{table}\n"


def _cells(found: Found) -> list[list[str]]:
    """A heading and a line for each pair."""
    explicit = all(RMSE in figures["test"] for figures in found.values())
    metric, names = (RMSE, (RMSE, "mae")) if explicit else (METRIC, (METRIC, "hr@10"))

    def order(figures: Mapping[str, Any]) -> float:
        return float(figures["validation"][metric]) * (1 if explicit else -1)

    head = ["encoder", "decoder", f"validation {metric}", *(f"test {name}" for name in names), "epochs", "seconds"]
    rows = [
        [
            *pair,
            f"{figures['validation'][metric]:.4f}",
            *(f"{figures['test'][name]:.4f}" for name in names),
            f"{figures['epochs']}",
            f"{figures['seconds']:.0f}",
        ]
        for pair, figures in sorted(found.items(), key=lambda one: order(one[1]))
    ]
    return [head, *rows]
