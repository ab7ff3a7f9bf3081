"""Batch retraining: files and the live event log in, a better champion or the same one out.

Split by time, since that is what serving is: learn from before a moment, be judged by what came after it.
"""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Console

from models.bundle import read_bundle
from models.eventlog import SEQUENCE_TYPES, connect, log_size, read_events
from models.registry import Registry
from models.runtime import Runtime
from training.config import Config
from training.evaluate import Evaluation, evaluate_test
from training.export import export
from training.gate import BundleScorer, compare
from training.interactions import Columns, Interactions, interactions_from_frame, read_interactions
from training.next_item import ModelScorer
from training.run import CHECKPOINT, Prepared, RunSpec, data_window, prepare
from training.train import train

_LARGEST_WINDOW = 0.1  # of the interactions: the newest tenth judges, the tenth before it validates
_SMALLEST_WINDOW = 0.01  # less than this after the champion's training would be judged by chance


class NotPromoted(Exception):  # noqa: N818 - an outcome, not an error
    """The challenger was worse; the champion stays. The message has the figures."""


def retrain(
    data: list[Path],
    config: Config,
    *,
    name: str,
    columns: Columns,
    artifacts: Path,
    console: Console,
    events_from: str | None = None,
    event_types: Collection[str] = SEQUENCE_TYPES,
    attributes: Path | None = None,
    seed: int = 0,
) -> str:
    """Train a challenger, publish it, promote it unless the champion ranks the held-out window better.

    Returns the new champion's version. Raises NotPromoted if the champion stays, and whatever reading, training and
    export raise.
    """
    interactions = read_interactions(data, columns=columns, max_dropped=config.data.max_dropped)
    if events_from is not None:
        events = logged_interactions(events_from, event_types, console)
        interactions = interactions if events is None else interactions.extended(events)
    console.print(str(interactions.report))
    registry = Registry(artifacts)
    current = registry.current()
    champion = Runtime(read_bundle(registry.folder(current)), device="cpu") if current else None
    window = _window(interactions, champion, console)
    prepared = prepare(interactions, config, split="time", attributes=attributes, held_out=window)
    spec = RunSpec(
        name=name,
        config=config,
        split="time",
        held_out=window,
        seed=seed,
        files=[path.resolve() for path in data],
        columns=columns,
        attributes=attributes.resolve() if attributes else None,
        data=data_window(data, prepared),
    )
    run = train(spec, prepared, artifacts / "runs" / f"{name}-{spec.identity[:12]}", console)
    challenger = _judge(ModelScorer(run.model()), prepared)
    folder = export(run, artifacts)
    (run.path / CHECKPOINT).unlink()  # the bundle has the weights; retraining every night must not fill the disk
    if champion is not None:
        verdict = compare(challenger, _judge(BundleScorer(champion, prepared.dataset.vocabulary), prepared))
        if not verdict.promote:
            raise NotPromoted(f"{verdict.reason}; champion stays {current}, challenger kept as {folder.name}")
        console.print(verdict.reason)
    registry.promote(folder.name)
    console.print(f"champion is {folder.name} (before: {current or 'none'})")
    return folder.name


def logged_interactions(url: str, event_types: Collection[str], console: Console) -> Interactions | None:
    """The event log of a store as interactions, each event once; None if it holds none of these types.

    Raises EventLogError if the store cannot be read.
    """
    client = connect(url)
    try:
        size = log_size(client)
        events = {(event.user_id, event.event_id): event for event in read_events(client)}
    finally:
        client.close()
    rows = [event for event in events.values() if event.type in event_types]
    trimmed = f", {size.trimmed:,} older ones trimmed" if size.trimmed else ""
    console.print(f"event log: {len(events):,} events, {len(rows):,} of them {' or '.join(event_types)}{trimmed}")
    if not rows:
        return None
    rows.sort(key=lambda event: (event.timestamp_ms, event.event_id))  # the order the service keeps them in
    frame = pl.DataFrame(
        {
            "user_id": [event.user_id for event in rows],
            "item_id": [event.item_id for event in rows],
            "timestamp": [event.timestamp_ms for event in rows],
            "value": [event.value for event in rows],
        },
        schema_overrides={"timestamp": pl.Int64, "value": pl.Float32},
    )
    return interactions_from_frame(frame, source=f"event log of {url.rpartition('@')[2]}")


def _judge(scorer: "ModelScorer | BundleScorer", prepared: Prepared) -> Evaluation:
    return evaluate_test(scorer, prepared.split, prepared.dataset.vocabulary.items)


def _window(interactions: Interactions, champion: Runtime | None, console: Console) -> float:
    """Share of the newest interactions to judge by: later than what the champion learned from, where there are enough.

    A champion that has seen the answers would win against any challenger.
    """
    learned_until = champion.bundle.manifest.data.trained_until_ms if champion else None
    if learned_until is None or not interactions.has_timestamps:
        return _LARGEST_WINDOW
    unseen = float((interactions.frame["timestamp"].to_numpy() > learned_until).mean())
    if unseen >= _SMALLEST_WINDOW:
        return float(np.minimum(unseen, _LARGEST_WINDOW))
    console.print(
        f"note: only {unseen:.2%} of the interactions are later than what the champion was trained on, so it has seen "
        "part of the window it is judged by, which favours it"
    )
    return _LARGEST_WINDOW
