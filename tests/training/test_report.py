"""Before a training, what its data lacks is said where it can still be mended; then, how far judging has come."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from rich.console import Console

from models.sasrec import SASRecConfig
from training.config import Config
from training.interactions import Columns, interactions_from_frame, read_interactions
from training.preparation import prepare, spec_of
from training.report import describe_data
from training.spec import SplitName
from training.train import train


def told(tied: int, *, twice: int = 0, times: str = "timestamp", split: SplitName = "loo", age: int = 0) -> str:
    """Of ten users with four events each, of which so many have all of theirs at one time, and some rows again.

    age: seconds that are added to all times.
    """
    rows = [(f"u{user}", f"i{item}", age + (2 if user < tied else item + 1)) for user in range(10) for item in range(4)]
    rows += rows[-twice:] if twice else []
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    log = interactions_from_frame(frame, source="events", columns=Columns(timestamp=times))
    return describe_data(prepare(log, Config(model=SASRecConfig()), split=split, held_out=0.25))


def test_targets_that_tie_with_the_event_before_are_told_where_they_are_many() -> None:
    said = (
        'same time as the event before: 2 of 10 test targets, so that what came last is a guess; --timestamp-column ""'
    )
    assert said in told(2)
    assert "the event before" not in told(1)


@pytest.mark.parametrize("how", [{"times": ""}, {"split": "time"}])
def test_no_target_ties_without_times_or_behind_a_cut_in_time(how: dict[str, Any]) -> None:
    assert "the event before" not in told(10 if "times" in how else 2, **how)


def test_times_that_are_days_or_numbers_of_rows_are_told() -> None:
    assert "note: all times lie before March 1973" in told(0)
    assert "1973" not in told(0, times="")
    assert "1973" not in told(0, age=1_700_000_000)


def test_rows_that_are_there_twice_are_told() -> None:
    assert "note: 3 interactions have the user, item and time of another" in told(0, twice=3)
    assert "of another" not in told(0)
    assert "of another" not in told(0, twice=3, times="")


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("terminal", [True, False])
def test_who_watches_a_terminal_sees_how_far_judging_has_come(
    tmp_path: Path, walks: Callable[..., pl.DataFrame], tiny_config: Callable[..., Config], terminal: bool
) -> None:
    """Of 30 users validation and test are ranked by the model and by three baselines."""
    log, config, out = tmp_path / "log.csv", tiny_config(epochs=1), io.StringIO()
    walks(30, 20).write_csv(log)
    prepared = prepare(read_interactions([log]), config, split="loo")
    spec = spec_of(config, prepared, name="tiny", files=[log], columns=Columns(), split="loo", seed=0)
    train(spec, prepared, tmp_path / "run", Console(file=out, force_terminal=terminal, color_system=None, width=200))
    assert bool(re.search(r"judging .* 240/240\b", out.getvalue())) is terminal
    assert ("judging" in out.getvalue()) is terminal
