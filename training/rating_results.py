"""Rating runs on the results page: RMSE and MAE beside the baselines, the splits of several seeds put together."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from training.measures import RMSE, spread
from training.run import METRICS, RunFolder
from training.spec import RunSpec

HEADINGS = ("model", "test RMSE", "test MAE", "validation RMSE", "seeds", "time of fitting", "command")

Runs = Sequence[tuple[RunFolder, RunSpec]]


def rating_rows(
    configurations: Sequence[tuple[str, Runs]],
    *,
    fitting_time: Callable[[Sequence[Mapping[str, Any]]], str],
    command: Callable[[Sequence[RunSpec], Sequence[Mapping[str, Any]]], str],
) -> list[tuple[str, ...]]:
    """Lines under HEADINGS, the lowest test RMSE first, unfinished runs last.

    configurations: the runs of each by its name. A random split is another for every seed, so that baselines have a
    deviation too: those of the configuration with the most seeds are shown.
    """
    found: list[tuple[float, tuple[str, ...]]] = []
    unfinished: list[tuple[str, ...]] = []
    most: list[dict[str, Any]] = []
    for name, runs in configurations:
        done = [(run.metrics(), spec) for run, spec in runs if (run.path / METRICS).exists()]
        if done:
            recorded, specs = [metrics for metrics, _ in done], [spec for _, spec in done]
            seeds = ", ".join(str(spec.seed) for spec in specs)
            found.append(_row(name, recorded, seeds, fitting_time(recorded), command(specs, recorded)))
            if len(recorded) > len(most):
                most = recorded
        for run, spec in runs:
            if not (run.path / METRICS).exists():
                state = f"not finished: {len(run.epochs())} epochs"
                unfinished.append((name, state, "-", "-", str(spec.seed), "-", command([spec], [])))
    for name in most[0]["baselines"] if most else ():
        found.append(_row(name, [metrics["baselines"][name] for metrics in most], "-", "-", "-"))
    return [cells for _, cells in sorted(found, key=lambda row: row[0])] + unfinished


def _row(name: str, recorded: Sequence[Mapping[str, Any]], *rest: str) -> tuple[float, tuple[str, ...]]:
    figures = [
        spread([metrics[part][metric] for metrics in recorded])
        for part, metric in (("test", RMSE), ("test", "mae"), ("validation", RMSE))
    ]
    return figures[0].mean, (name, *map(str, figures), *rest)
