"""One training run from data to figures: prepare, fit, evaluate beside the baselines, write the folder."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from models.attributed import attribute, fold
from models.device import cpu_quota
from models.s3rec import S3RecConfig, S3RecPretraining
from models.sasrec import SASRec
from models.zoo import build
from training.attributes import ItemAttributes, learnable
from training.baselines import baselines
from training.beginnings import item_vectors
from training.blend import Blend, choose_blend, partner, strongest
from training.config import AutoRecRunConfig, Config, S3RecRunConfig
from training.dataset import popularity_of
from training.evaluate import Scorer, affordable, evaluate_both
from training.fit import Fitted, fit
from training.measures import METRIC
from training.next_item import ModelScorer, NextItem
from training.parallel import ALONE, Processes, own_device
from training.preparation import Prepared
from training.pretrain import Pretrain
from training.rating_run import course, refit_autorec, train_autorec
from training.report import (
    SPLITS,
    describe_data,
    describe_stop,
    epoch_bar,
    judging_bar,
    plot_curves,
    results_table,
    similar_table,
)
from training.run import RunFolder
from training.scorers import Blended
from training.similar import Similar, similar_items, well_known
from training.spec import RunSpec
from training.splits import unsplit


def train(spec: RunSpec, prepared: Prepared, folder: Path, console: Console, processes: Processes = ALONE) -> RunFolder:
    """Fit, evaluate and record one run in `folder`.

    An interrupted one is continued, a finished one keeps its weights and is judged again. With several processes each
    calls this; all fit, and the leader does the rest.
    Raises RunError if the folder holds another run or is being trained in, FitError if training cannot go on.
    """
    run = RunFolder(folder)
    if not processes.leader:
        return _train(spec, prepared, run, console, processes)
    with run.held():
        run.begin(spec, prepared)
        return _train(spec, prepared, run, console, processes)


def _train(spec: RunSpec, prepared: Prepared, run: RunFolder, console: Console, processes: Processes) -> RunFolder:
    console.print(describe_data(prepared))
    if isinstance(spec.config, AutoRecRunConfig):
        return train_autorec(spec, spec.config, prepared, run, console=console, processes=processes)
    model, fitted, before = _fitted(spec, spec.config, prepared, run, console=console, processes=processes)
    if not processes.leader:
        return run
    items, training = model.items, spec.config.training
    console.print(describe_stop(fitted, training.patience, METRIC))
    beside = baselines(prepared.split.train, items)
    blend = None
    if spec.config.blend.neighbours:
        blend = choose_blend(ModelScorer(model), prepared.split.train, prepared.split.validation, items)
        console.print(str(blend))
        run.keep_neighbours(blend.neighbours)
    scorers = len(beside) + (1 if blend is None or blend.neighbours is None else 2)
    with judging_bar(console, scorers * (len(prepared.split.validation) + prepared.split.judges)) as watched:
        moving = {name: watched(baseline) for name, baseline in beside.items()}
        metrics = judge(watched(ModelScorer(model)), blend, moving, prepared) | course(fitted)
    if before is not None:  # the rate stays that of fitting alone
        metrics |= {"seconds": fitted.seconds + before.seconds, "pretraining": _pretraining_course(before)}
    run.finish(metrics)
    plot_curves(run.epochs(), run.path / "curves.png", METRIC)
    if before is not None:
        plot_curves(run.pretraining.epochs(), run.path / "pretraining.png", METRIC)
    console.print(results_table(spec.name, metrics, title=f"Test, {SPLITS[spec.split]}"))
    console.print(similar_table(_look(model, prepared), _names(prepared)))
    console.print(f"run folder: {run.path}")
    return run


def refit(judged: RunFolder, prepared: Prepared, console: Console) -> RunFolder:
    """The model of a judged run once more, now on everything: what judged it is the newest there is to learn.

    It takes the epochs that the judged one took to its best, and carries that one's figures. Raises as `train`.
    """
    spec, run = judged.spec(), RunFolder(judged.path / "refit")
    whole = replace(prepared, split=unsplit(prepared.dataset))
    spec = spec.model_copy(update={"data": spec.data.model_copy(update={"trained_until_ms": spec.data.last_ms})})
    with run.held():
        run.begin(spec, whole)
        return _refit(spec, judged.metrics(), whole, run, console)


def _refit(spec: RunSpec, metrics: dict[str, Any], whole: Prepared, run: RunFolder, console: Console) -> RunFolder:
    if isinstance(spec.config, AutoRecRunConfig):
        refit_autorec(spec, spec.config, whole, run, epochs=metrics["best_epoch"], console=console)
        run.finish(metrics)
        return run
    model, fitted, _ = _fitted(spec, _as_long(spec.config, metrics), whole, run, console=console)
    console.print(f"fitted again on everything: {fitted.epochs} epochs in {fitted.seconds:.0f} s")
    blend = metrics.get("blend")
    if blend and blend["weight"]:  # as much of it as was judged, now of everything too
        knn = partner(whole.split.train, model.items, blend.get("backward"))
        run.keep_neighbours(strongest(knn.matrix * blend["weight"], blend["width"]))
    run.finish(metrics)
    return run


def judge(model: Scorer, blend: Blend | None, beside: Mapping[str, Scorer], prepared: Prepared) -> dict[str, object]:
    """The figures in metrics.json: of what is served, and of the model alone where that is a blend, and the baselines.

    beside: the baselines by name.
    """
    split, items = prepared.split, prepared.dataset.vocabulary.items
    judged = {name: evaluate_both(baseline, split, items) for name, baseline in beside.items()}

    def both(scorer: Scorer) -> dict[str, dict[str, object]]:
        return evaluate_both(scorer, split, items).report(judged)

    served = model if blend is None or blend.neighbours is None else Blended(model, blend.neighbours)
    return {
        **both(served),
        **({} if served is model else {"alone": both(model)}),
        **({} if blend is None else {"blend": blend.record()}),
        "baselines": {name: baseline.report() for name, baseline in judged.items()},
        "left_out": split.left_out,
    }


def _fitted(
    spec: RunSpec,
    config: Config | S3RecRunConfig,
    prepared: Prepared,
    run: RunFolder,
    *,
    console: Console,
    processes: Processes = ALONE,
) -> tuple[SASRec, Fitted, Fitted | None]:
    """A model fitted as `config` says, how that went, and how pre-training did if there was any."""
    torch.set_num_threads(max(1, cpu_quota() // processes.on_this_machine))
    torch.manual_seed(spec.seed)  # weights and dropout; the data's order and the negatives draw from their own
    train, items = prepared.split.train, prepared.dataset.vocabulary.items
    validation = affordable(prepared.split.validation, items)
    if len(validation) < len(prepared.split.validation):
        console.print(
            f"every epoch is validated by {len(validation):,} of {len(prepared.split.validation):,} users, the same in "
            "each, since the catalogue is large; the figures at the end are of all"
        )
    model = build(config.model, items).to(own_device())
    if config.training.beginning == "neighbours":
        _begin(model, item_vectors(train, model.items, config.model.dim) if processes.leader else None, processes)
    known = (
        _known(config, prepared, console, chosen=spec.attributes is not None)
        if isinstance(config, S3RecRunConfig)
        else None
    )
    if known is not None and isinstance(config.model, S3RecConfig) and config.model.item_attributes:
        attribute(model, known.starts, known.flat, known.count)
    if config.training.compile:
        for block in model.blocks:
            block.compile(dynamic=True)  # the rest are lookups; batches come in many shapes
    task = NextItem(model, train, validation, config.training, seed=spec.seed)  # or it says now what the data lacks
    before = None
    if isinstance(config, S3RecRunConfig):
        pretraining = S3RecPretraining(model, known.count if known else 0).to(own_device())
        processes.part_ways(spec.seed)
        objectives = Pretrain(pretraining, known, train, validation, config.pretraining, seed=spec.seed)
        if processes.leader:
            run.pretraining.path.mkdir(exist_ok=True)
        with epoch_bar(console, objectives.prefixes.count(), METRIC) as bar:
            before = fit(
                pretraining,
                objectives,
                config.pretraining,
                folder=run.pretraining.path,
                identity=spec.identity,
                watcher=bar,
                processes=processes,
            )
        console.print(f"pre-training {describe_stop(before, config.pretraining.patience, METRIC)}")
    else:
        processes.part_ways(spec.seed)
    with epoch_bar(console, task.windows.count(0), METRIC) as bar:
        fitted = fit(
            model,
            task,
            config.training,
            folder=run.path,
            identity=spec.identity,
            watcher=bar,
            processes=processes,
        )
    fold(model)
    return model, fitted, before


def _begin(model: SASRec, vectors: NDArray[np.float32] | None, processes: Processes) -> None:
    """Add the leader's vectors to those that the model's items have, in every process."""
    weight = model.item_embedding.weight
    with torch.no_grad():
        weight += torch.from_numpy(processes.from_leader(vectors)).to(weight.device)


def _look(model: SASRec, prepared: Prepared) -> list[Similar]:
    """What the model takes for most like the ten best-known items."""
    popularity = popularity_of(prepared.split.train, model.items)
    return similar_items(model.item_matrix().detach().cpu().numpy(), well_known(popularity))


def _names(prepared: Prepared) -> list[str]:
    """A title for every item, or its id where there is none."""
    titles, ids = prepared.attributes, prepared.dataset.vocabulary.ids
    return [(titles.title(row) if titles else None) or item for row, item in enumerate(ids)]


def _known(config: S3RecRunConfig, prepared: Prepared, console: Console, *, chosen: bool) -> ItemAttributes | None:
    """The attributes that the model learns from, or None where there are none; chosen: as for `learnable`."""
    if not config.uses_attributes:
        return None
    attributes = learnable(prepared.attributes, config.pretraining.columns, chosen=chosen)
    if attributes is None:
        console.print("note: no item attributes were given (--attributes FILE): the model learns without them")
        return None
    console.print(f"learning from {attributes.count:,} attributes of {int(attributes.known.sum()):,} items")
    return attributes


def _as_long(config: Config | S3RecRunConfig, metrics: Mapping[str, Any]) -> Config | S3RecRunConfig:
    """The same for as many epochs as were best: there is no validation part left to tell."""
    changes: dict[str, object] = {
        "training": config.training.model_copy(update={"epochs": metrics["best_epoch"]}),
    }
    if isinstance(config, S3RecRunConfig):
        epochs = metrics["pretraining"]["best_epoch"]
        changes["pretraining"] = config.pretraining.model_copy(update={"epochs": epochs})
    return config.model_copy(update=changes)


def _pretraining_course(before: Fitted) -> dict[str, object]:
    return {
        "epochs": before.epochs,
        "best_epoch": before.best_epoch,
        "seconds": before.seconds,
        "sequences_per_second": before.sequences / before.seconds,
    }
