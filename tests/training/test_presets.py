"""Options left to the data follow by rule from its train part, and are said once."""

import numpy as np
import pytest
from pydantic import ValidationError

from models.sasrec import SASRecConfig
from training.config import Config, S3RecRunConfig, TrainingConfig, load_config
from training.dataset import Sequences
from training.presets import describe, settle

EVERYTHING = ["dim", "dropout", "stride", "batch", "loss"]


def histories(*lengths: int) -> Sequences:
    ends = np.cumsum(lengths, dtype=np.int64)
    return Sequences(np.ones(int(ends[-1]), np.int32), ends - np.array(lengths), ends)


def left_to_the_data(names: list[str]) -> Config:
    return Config.model_validate({"model": {}, "from_data": names})


def settled(config: Config, train: Sequences) -> Config:
    after = settle(config, train)
    assert isinstance(after, Config)
    return after


@pytest.mark.parametrize(
    ("lengths", "dim", "dropout", "stride"),
    [
        ([5] * 10, 64, 0.5, None),  # a shop's
        ([5] * 19 + [300], 64, 0.5, 25),  # the longest is cut into windows
        ([40] * 10, 64, 0.2, None),
        ([60] * 10, 64, 0.2, 25),
        ([0] * 50 + [400] * 10, 64, 0.2, 25),  # users without a train interaction say nothing
    ],
)
def test_short_and_long_histories_have_presets_of_their_own(
    lengths: list[int], dim: int, dropout: float, stride: int | None
) -> None:
    before = left_to_the_data(EVERYTHING)
    after = settled(before, histories(*lengths))
    assert (after.model.dim, after.model.dropout, after.training.stride) == (dim, dropout, stride)
    assert after.from_data == []
    windows = f"stride {stride}" if stride else "windows that do not overlap"
    assert describe(before, after) == f"dim {dim}, dropout {dropout}, {windows}, batch 16, loss softmax"


@pytest.mark.parametrize(
    ("users", "each", "batch"),
    [
        (20, 5, 16),
        (4800, 5, 32),
        (9600, 5, 64),
        (19_200, 5, 128),
        (99_999, 5, 128),
        (99_999, 40, 64),  # 39 positions a window
        (9999, 400, 32),  # 50, that 128 of them would be more than a step is worth
    ],
)
def test_a_batch_leaves_an_epoch_its_steps_and_is_no_larger_than_a_step_is_worth(
    users: int, each: int, batch: int
) -> None:
    assert settle(left_to_the_data(EVERYTHING), histories(*[each] * users)).training.batch == batch


def test_users_with_a_single_interaction_are_no_windows() -> None:
    settings = left_to_the_data(EVERYTHING)
    assert settle(settings, histories(*[5] * 4800, *[1] * 40_000)).training.batch == 32
    assert settle(settings, histories(*[40] * 19_200, *[1] * 40_000)).training.batch == 64  # 39 positions a window
    assert settle(settings, histories(1, 1)).training.batch == 16


@pytest.mark.parametrize(("users", "dim"), [(49_999, 64), (50_000, 128)])
def test_much_data_is_learned_by_a_wider_model(users: int, dim: int) -> None:
    assert settle(left_to_the_data(EVERYTHING), histories(*[10] * users)).model.dim == dim


@pytest.mark.parametrize(("items", "loss", "negatives"), [(100_000, "softmax", 1), (100_001, "sampled_softmax", 1024)])
def test_a_catalogue_too_large_for_the_full_softmax_gets_a_sampled_one(items: int, loss: str, negatives: int) -> None:
    train = Sequences(np.array([1, items], np.int32), np.array([0]), np.array([2]))
    training = settled(left_to_the_data(EVERYTHING), train).training
    assert (training.loss, training.negatives) == (loss, negatives)


def test_what_is_given_stays() -> None:
    given = Config(model=SASRecConfig(length=7, dropout=0.3), training=TrainingConfig(stride=2), from_data=[])
    assert settle(given, histories(5, 90)) == given
    stride = settled(Config(model=SASRecConfig(length=10, dropout=0.3), from_data=["stride"]), histories(5, 90))
    assert (stride.model.length, stride.model.dropout, stride.training.stride) == (10, 0.3, 5)


@pytest.mark.parametrize(("each", "length", "stride"), [(99, 50, 25), (100, 200, None), (201, 200, 100)])
def test_the_paper_reads_more_where_there_is_more(each: int, length: int, stride: int | None) -> None:
    before = load_config("sasrec-paper")
    assert isinstance(before, Config)
    assert before.from_data == ["length", "dropout"]
    after = settled(before, histories(each, each))
    assert (after.model.length, after.training.stride) == (length, None)
    assert describe(before, after) == f"length {length}, dropout 0.2"
    # Windows are cut by the length that was found.
    assert settled(left_to_the_data(["length", "stride"]), histories(each, each)).training.stride == stride


@pytest.mark.parametrize(("name", "section"), [("dropout", "model"), ("stride", "training"), ("batch", "training")])
def test_an_option_cannot_be_given_and_left_to_the_data(name: str, section: str) -> None:
    value = {"dropout": 0.5, "loss": "bce"}.get(name, 9)
    with pytest.raises(ValidationError, match=f"from_data has '{name}' and {section}.{name} is given too"):
        Config.model_validate({"model": {}, "from_data": [name]} | {section: {name: value}})


def test_a_settled_configuration_can_be_written_and_read_back() -> None:
    after = settle(left_to_the_data(EVERYTHING), histories(5, 5))
    assert Config.model_validate_json(after.model_dump_json()) == after


@pytest.mark.parametrize(
    ("name", "left"), [("sasrec-best", EVERYTHING), ("s3rec-best", [name for name in EVERYTHING if name != "dim"])]
)
def test_the_best_presets_leave_to_the_data_what_depends_on_it(name: str, left: list[str]) -> None:
    config = load_config(name)
    assert isinstance(config, Config | S3RecRunConfig)
    assert config.from_data == left
