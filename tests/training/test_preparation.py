"""A log is read by what the model learns from."""

from pathlib import Path

import pytest

from models.autorec import AutoRecConfig
from models.sasrec import SASRecConfig
from training.config import AutoRecRunConfig, Config, RunConfig
from training.interactions import Columns, InteractionsError
from training.preparation import read_for

SEQUENCES = Config(model=SASRecConfig())
PAIRS = AutoRecRunConfig(model=AutoRecConfig(feedback="implicit"))
RATINGS = AutoRecRunConfig(model=AutoRecConfig())


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,value\nu,a,purchase\nu,b,4\n")
    return path


@pytest.mark.parametrize("config", [SEQUENCES, PAIRS])
def test_values_that_a_model_does_not_learn_from_may_be_anything(log: Path, config: RunConfig) -> None:
    assert read_for(config, [log], Columns()).frame["value"].to_list() == [None, None]
    # Nor does another model that reads them, and is judged on the same log, cost this one a row.
    assert read_for(config, [log], Columns(), values=True).frame["value"].to_list() == [None, None]
    log.write_text("user_id,item_id,value\nu,a,3\nu,b,4\n")
    assert read_for(config, [log], Columns(), values=True).frame["value"].to_list() == [3, 4]


@pytest.mark.parametrize(
    ("config", "columns"),
    [(RATINGS, Columns()), (None, Columns()), (SEQUENCES, Columns(value="value")), (PAIRS, Columns(value="value"))],
)
def test_values_that_are_learned_from_or_named_are_checked(
    log: Path, config: RunConfig | None, columns: Columns
) -> None:
    with pytest.raises(InteractionsError, match=r"1  value is not a finite number, first in row 1 of .*: 'purchase'"):
        read_for(config, [log], columns)
