"""An AutoRec run: fit, compare with mean, biases and matrix factorisation, write figures and curves.

Which figures there are depends on the split. Ratings that were held out one by one give RMSE and MAE; a split that
holds out what came last gives ranking figures too, of models that can rank.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from models.autorec import AutoRec
from models.device import cpu_quota
from models.runtime import Runtime
from models.zoo import build
from training.baselines import baselines
from training.config import AutoRecRunConfig, parse_config
from training.evaluate import (
    EvaluationError,
    Judged,
    RatingPredictor,
    evaluate_both,
    evaluate_ratings,
    evaluate_test_ratings,
)
from training.factorisation import BiasOnly, GlobalMean, tuned_factorisation
from training.fit import Fitted, fit
from training.interactions import Interactions
from training.measures import METRIC, RMSE
from training.parallel import ALONE, Processes, own_device
from training.preparation import Prepared, prepare
from training.ratings import biases_of, matrix_of, scale_of
from training.reconstruction import Reconstruction
from training.report import SPLITS, describe_stop, epoch_bar, plot_curves, results_table
from training.run import RUN, RunError, RunFolder
from training.spec import RunSpec, SplitName

_BIAS_SHRINKAGE = 5.0
_USERS_AT_ONCE = 1024
RANKED = ("loo", "time")  # splits with one target a user, the newest


def train_autorec(
    spec: RunSpec,
    config: AutoRecRunConfig,
    prepared: Prepared,
    run: RunFolder,
    *,
    console: Console,
    processes: Processes = ALONE,
) -> RunFolder:
    """Fit an AutoRec in a run folder that has begun, and finish it. Raises FitError if training cannot go on."""
    task, fitted = fitted_autorec(spec, config, prepared, run, console=console, processes=processes)
    if not processes.leader:
        return run
    console.print(describe_stop(fitted, config.training.patience, task.metric))
    run.finish(judge_autorec(task, prepared, spec, config) | course(fitted))
    if task.metric == RMSE:
        plot_rmse(run.epochs(), run.path / "curves.png", best=fitted.best_epoch)
    else:
        plot_curves(run.epochs(), run.path / "curves.png", task.metric)
    print_figures(spec.name, run.metrics(), console, split=spec.split)
    console.print(f"run folder: {run.path}")
    return run


def refit_autorec(
    spec: RunSpec, config: AutoRecRunConfig, whole: Prepared, run: RunFolder, *, epochs: int, console: Console
) -> None:
    """The model of a judged run on everything, for as many epochs as its best took."""
    training = config.training.model_copy(update={"epochs": epochs})
    _, fitted = fitted_autorec(spec, config.model_copy(update={"training": training}), whole, run, console=console)
    console.print(f"fitted again on everything: {fitted.epochs} epochs in {fitted.seconds:.0f} s")


def finished_task(run: RunFolder, prepared: Prepared) -> Reconstruction:
    """The task of a finished run with its best weights, to predict and score with. Raises RunError for other models."""
    spec, model = run.spec(), run.model()
    if not isinstance(model, AutoRec) or not isinstance(spec.config, AutoRecRunConfig):
        raise RunError(f"{run.path} is a run of {spec.config.model.name}, which predicts no ratings")
    return Reconstruction(model, prepared.split, prepared.dataset.vocabulary.items, spec.config, seed=spec.seed)


def judge_autorec(task: Reconstruction, prepared: Prepared, spec: RunSpec, config: AutoRecRunConfig) -> dict[str, Any]:
    """The figures in metrics.json: validation, test and baselines, each with what its split and feedback allow."""
    split, items = prepared.split, prepared.dataset.vocabulary.items
    ranking: dict[str, Judged] = {}
    if spec.split in RANKED:
        ranking = {name: evaluate_both(scorer, split, items) for name, scorer in baselines(split.train, items).items()}
    found = judge_model(task, prepared, ranked=spec.split in RANKED, beside=ranking) | {"left_out": split.left_out}
    beside: dict[str, Any] = {name: judged.report() for name, judged in ranking.items()}
    if task.metric == RMSE:
        scale = scale_of(split.train, config)
        biases = biases_of(matrix_of(split.train, items), _BIAS_SHRINKAGE)
        tuned = tuned_factorisation(split, items, scale, seed=spec.seed)
        found["factorisation"] = tuned.record()
        beside |= {
            "global mean": _predicted(GlobalMean(biases.mean), prepared),
            "bias only": _predicted(BiasOnly(biases, scale), prepared),
            "matrix factorisation": _predicted(tuned.model, prepared),
        }
    return found | {"baselines": beside}


def judge_model(
    task: Reconstruction, prepared: Prepared, *, ranked: bool, beside: Mapping[str, Judged] | None = None
) -> dict[str, Any]:
    """Validation and test figures of the model alone: ratings if it predicts some, ranking if the split allows it.

    beside: the baselines that rank, by name.
    """
    found: dict[str, Any] = {"validation": {}, "test": {}}
    if ranked:
        found = evaluate_both(task.scorer(), prepared.split, prepared.dataset.vocabulary.items).report(beside)
    if task.metric == RMSE:
        for part, figures in _predicted(task.predictor(), prepared).items():
            both = figures["intervals"] | found[part].get("intervals", {})
            found[part] = {**found[part], **figures, "intervals": both}
    return found


def is_autorec(folder: Path) -> bool:
    """Whether a folder is that of an AutoRec run."""
    return (folder / RUN).exists() and isinstance(RunFolder(folder).spec().config, AutoRecRunConfig)


def judged_again(run: RunFolder) -> dict[str, Any]:
    """Figures of a finished AutoRec run on its own data, as it is now, with the baselines as they were recorded.

    Raises RunError if the run is of another model or the data has changed.
    """
    prepared, recorded = run.data(), run.metrics()
    found = judge_model(finished_task(run, prepared), prepared, ranked=run.spec().split in RANKED)
    return recorded | found


def judged_bundle(
    runtime: Runtime, interactions: Interactions, *, split: SplitName, test: Interactions | None = None
) -> dict[str, Any]:
    """Figures of a bundle that predicts ratings, through onnxruntime, on a split of the ratings it was made from.

    The baselines are those its manifest recorded. Raises EvaluationError if it predicts none, or not of just these
    users and items.
    """
    bundle = runtime.bundle
    manifest = bundle.manifest
    config = parse_config(manifest.config, source=manifest.version) if manifest.config else None
    if not isinstance(config, AutoRecRunConfig) or not runtime.reads_values:
        raise EvaluationError(f"{manifest.version} predicts no ratings; split loo or time")
    prepared = prepare(interactions, config, split=split, seed=manifest.seed, test=test)
    if prepared.dataset.vocabulary.ids != tuple(bundle.ids):
        raise EvaluationError(
            f"{manifest.version} was made from other items than these ({', '.join(manifest.data.files)}), so no rating "
            "here was held out from it; name its own data, or split loo or time"
        )
    items, train = prepared.dataset.vocabulary.items, prepared.split.train
    task = Reconstruction(build(config.model, items), prepared.split, items, config, seed=manifest.seed)
    vectors = np.empty((len(train), manifest.dim), np.float32)
    for begin in range(0, len(train), _USERS_AT_ONCE):
        users = range(begin, min(begin + _USERS_AT_ONCE, len(train)))
        vectors[users.start : users.stop] = runtime.encode(
            [train[user].astype(np.int64) for user in users], [train.values_of(user) for user in users]
        )
    predict = task.predictor(vectors=torch.from_numpy(vectors), item_matrix=torch.from_numpy(np.array(bundle.items)))
    return _predicted(predict, prepared) | {"baselines": manifest.metrics["baselines"]}


def _predicted(predict: RatingPredictor, prepared: Prepared) -> dict[str, dict[str, Any]]:
    split, items = prepared.split, prepared.dataset.vocabulary.items
    return {
        "validation": evaluate_ratings(predict, split.validation, split.train, items).report(),
        "test": evaluate_test_ratings(predict, split, items).report(),
    }


def print_figures(name: str, metrics: Mapping[str, Any], console: Console, *, split: SplitName) -> None:
    """Tables of what was judged: ratings, and ranking where there is some."""
    if RMSE in metrics["test"]:
        console.print(ratings_table(name, metrics, title=f"Ratings, {SPLITS[split]}"))
    if METRIC in metrics["test"]:
        ranked = {key: value for key, value in metrics["baselines"].items() if METRIC in value["test"]}
        console.print(results_table(name, {**metrics, "baselines": ranked}, title=f"Test, {SPLITS[split]}"))
    else:
        console.print("no ranking figures: a rating held out by chance is not what came next; use --split loo or time")


def ratings_table(model: str, metrics: Mapping[str, Any], *, title: str) -> Table:
    """RMSE and MAE of the model beside the baselines that predict ratings; the best of each column is bold."""
    rows = {name: figures for name, figures in metrics["baselines"].items() if RMSE in figures["test"]}
    rows[model] = {part: metrics[part] for part in ("validation", "test")}
    test = metrics["test"]
    low, high = test["intervals"][RMSE]
    caption = (
        f"{test['ratings']:,} test ratings, {test['unseen']:,} of a user or item without a train rating; predictions "
        f"clipped to the scale; 95 % interval of the model's test RMSE over users: {low:.4f} to {high:.4f}"
    )
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    table.add_column("model")
    columns = (("validation", RMSE), ("test", RMSE), ("test", "mae"))
    for part, figure in columns:
        table.add_column(f"{part} {figure.upper()}", justify="right")
    best = {column: min(row[column[0]][column[1]] for row in rows.values()) for column in columns}
    for name, row in rows.items():
        cells = [(row[part][figure], row[part][figure] == best[part, figure]) for part, figure in columns]
        table.add_row(name, *(Text(f"{value:.4f}", "bold" if leads else "") for value, leads in cells))
    return table


def plot_rmse(epochs: list[dict[str, float]], path: Path, *, best: int) -> None:
    """RMSE on train, validation and test ratings by epoch, as a PNG; the test is shown and chooses nothing."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - half a second that only a finished run should pay

    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    numbers = [record["epoch"] for record in epochs]
    for name, key in (("train", "train_rmse"), ("validation", RMSE), ("test (chooses nothing)", "test_rmse")):
        axes.plot(numbers, [record[key] for record in epochs], label=name)
    axes.axvline(best, linestyle=":", color="grey", label=f"chosen by validation: epoch {best}")
    axes.set(xlabel="epoch", ylabel="RMSE")
    axes.legend()
    figure.savefig(path, dpi=120)


def fitted_autorec(
    spec: RunSpec,
    config: AutoRecRunConfig,
    prepared: Prepared,
    run: RunFolder,
    *,
    console: Console,
    processes: Processes = ALONE,
) -> tuple[Reconstruction, Fitted]:
    """A model fitted as `config` says in a run folder that has begun, in its task, and how that went."""
    torch.set_num_threads(max(1, cpu_quota() // processes.on_this_machine))
    torch.manual_seed(spec.seed)  # weights and dropout; rows and zeros draw from their own
    items = prepared.dataset.vocabulary.items
    model = build(config.model, items, users=len(prepared.dataset.users)).to(own_device())
    processes.part_ways(spec.seed)
    task = Reconstruction(model, prepared.split, items, config, seed=spec.seed)
    with epoch_bar(console, task.rows, task.metric) as bar:
        fitted = fit(
            model,
            task,
            config.training,
            folder=run.path,
            identity=spec.identity,
            watcher=bar,
            processes=processes,
        )
    return task, fitted


def course(fitted: Fitted) -> dict[str, object]:
    """How the fitting went, for metrics.json; the sequences of an AutoRec are rows."""
    return {
        "epochs": fitted.epochs,
        "best_epoch": fitted.best_epoch,
        "stopped_early": fitted.stopped_early,
        "seconds": fitted.seconds,
        "device": "GPU" if own_device().type == "cuda" else f"{torch.get_num_threads()} CPU threads",
        "sequences_per_second": fitted.sequences / fitted.seconds,
    }
