"""A configuration says what it does: unknown keys and wrong types are errors, and no option is without effect."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError

from models.s3rec import S3RecConfig
from models.sasrec import SASRecConfig
from models.zoo import build
from training.batches import Windows
from training.config import (
    CONFIGS,
    BlendConfig,
    Config,
    ConfigError,
    DataConfig,
    FittingConfig,
    PretrainingConfig,
    S3RecRunConfig,
    TrainingConfig,
    load_config,
    parse_config,
)
from training.dataset import build_dataset
from training.fit import fit
from training.interactions import InteractionsError, interactions_from_frame
from training.next_item import NextItem
from training.preparation import prepare
from training.splits import split_leave_one_out


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        (tmp_path / "mine.toml").write_text(text)
        return str(tmp_path / "mine.toml")

    return write


@pytest.mark.parametrize("name", [path.stem for path in sorted(CONFIGS.glob("*.toml"))])
def test_every_configuration_that_comes_along_can_be_read_and_built(name: str) -> None:
    config = load_config(name)
    assert config == load_config(str(CONFIGS / f"{name}.toml"))
    vectors = build(config.model, 5, users=5).encode(torch.tensor([[1, 2]]), torch.tensor([2]))
    assert vectors.shape == (1, config.model.dim)


def test_a_file_says_only_what_differs(write: Callable[[str], str]) -> None:
    config = load_config(write('[model]\nname = "sasrec"\ndim = 32\n[training]\nlearning_rate = 1\n'))
    assert isinstance(config.model, SASRecConfig)
    assert config.model.dim == 32
    assert config.model.blocks == SASRecConfig().blocks
    assert config.training == TrainingConfig(learning_rate=1.0)
    assert config.data == DataConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.model.dim = 64  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[model]\ndimension = 8\n", ["model.dimension", "there is no such option", "8"]),
        ("[model]\n[trainig]\nepochs = 3\n", ["trainig"]),
        ("[model]\n[data]\nmin_users = 3\n", ["data.min_users"]),
        ("seed = 3\n[model]\n", ["seed"]),
        ('[model]\ndim = "64"\n', ["model.dim", "'64'"]),
        ("[model]\ndim = 64.0\n", ["model.dim", "64.0"]),
        ("[model]\n[training]\nepochs = true\n", ["training.epochs", "True"]),
        (
            '[model]\n[training]\nloss = "hinge"\n',
            ["training.loss", "'softmax', 'sampled_softmax', 'bce' or 'gbce'", "'hinge'"],
        ),
        ('[model]\nname = "gru4rec"\n', ["model.name", "gru4rec"]),
        ("[model]\ndim = 0\n", ["model.dim", "greater than or equal to 1"]),
        ("[model]\ndropout = 1.0\n", ["model.dropout", "less than 1"]),
        ("[model]\ndim = 10\nheads = 3\n", ["dim 10", "heads 3"]),
        ("[training]\nbatch = 3\n", ["model", "required"]),
        ('[model]\nname = "s3rec"\n[pretraining]\ncolumns = []\n', ["pretraining.columns", "at least 1 item"]),
        ("[model]\ndim = 0\n[training]\nbatch = 0\n", ["model.dim", "training.batch"]),
        ("model\n", ["not TOML", "line 1"]),
    ],
)
def test_a_mistake_is_named_with_its_file_its_key_and_its_value(
    write: Callable[[str], str], text: str, words: list[str]
) -> None:
    path = write(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    for word in [path, *words]:
        assert word in str(caught.value)


def test_what_contradicts_is_said_in_our_words_alone() -> None:
    with pytest.raises(ConfigError, match=r"model: model\.dim 33 must be a multiple of model\.heads 2"):
        parse_config({"model": {"name": "sasrec", "dim": 33, "heads": 2}})


@pytest.mark.parametrize("name", ["nothing", "missing.toml", "", "sasrec/"])
def test_an_unknown_configuration_is_answered_with_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=r"give one of .*ml-100k, s3rec-best, .*sasrec"):
        load_config(name)


# Every option has an effect

MODEL_OPTIONS: dict[str, Any] = {
    "dim": 8,
    "blocks": 2,
    "heads": 1,
    "inner": 8,
    "length": 4,
    "dropout": 0.5,
    "activation": "relu",
    "filter": 0.5,
    "initial_deviation": 0.1,
}
TRAINING_OPTIONS: dict[str, Any] = {
    "loss": "bce",
    "batch": 16,
    "stride": 2,
    "shuffle_ties": False,
    "epochs": 1,
    "patience": 1,
    "learning_rate": 0.02,
    "warmup_steps": 50,
    "decay": 0.5,
    "weight_decay": 0.5,
    "gradient_clip": 0.01,
    "precision": "bfloat16",
    "average": 0.9,
}


class Silent:
    def step(self, windows: int, loss: float) -> None:
        pass

    def epoch(self, record: dict[str, float], *, best: bool) -> None:
        pass


@pytest.fixture
def outcome(
    tmp_path: Path, walks: Callable[..., pl.DataFrame], tiny_config: Callable[..., Config], one_thread: None
) -> Callable[..., dict[str, torch.Tensor]]:
    """Fit two epochs with these options: the last epoch's and the best weights, as in the checkpoint."""
    from safetensors.torch import load_file

    log = walks(30, 15).with_columns(pl.col("timestamp") // 180_000)  # three steps at a time, so that there are ties
    split = split_leave_one_out(build_dataset(interactions_from_frame(log, source="walks")))

    def outcome(seed: int = 0, **options: Any) -> dict[str, torch.Tensor]:
        config = tiny_config(**{"epochs": 2, "length": 6} | options)
        torch.manual_seed(seed)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        model = build(config.model, 15)
        task = NextItem(model, split.train, split.validation, config.training, seed=seed)
        fit(model, task, config.training, folder=folder, identity="x", watcher=Silent())
        tensors = load_file(folder / "checkpoint.safetensors")
        return {name: tensor for name, tensor in tensors.items() if name.startswith(("model/", "best/"))}

    return outcome


def differ(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return any(name not in two or not torch.equal(tensor, two[name]) for name, tensor in one.items()) or len(
        one
    ) != len(two)


def test_there_is_a_test_for_the_effect_of_every_option() -> None:
    assert {"name", *MODEL_OPTIONS} == set(SASRecConfig.model_fields)
    elsewhere = {"negatives", "calibration", "candidates", "compile", "beginning"}  # test_fit.py, test_beginnings.py
    assert {*elsewhere, *TRAINING_OPTIONS} == set(TrainingConfig.model_fields)
    assert set(DataConfig.model_fields) == {"min_user_interactions", "min_item_interactions", "max_dropped"}
    assert set(BlendConfig.model_fields) == {"neighbours"}  # tests/training/test_blend.py
    assert set(Config.model_fields) == {"data", "model", "training", "blend", "from_data"}  # test_presets.py
    own = {"associated_attributes", "masked_items", "masked_attributes", "segments", "bounded"}
    own |= {"mask_probability", "prefixes"}
    assert set(PretrainingConfig.model_fields) == {  # test_pretrain.py
        *FittingConfig.model_fields,
        *own,
        "shuffle_ties",
        "columns",
    }
    assert set(S3RecRunConfig.model_fields) == {*Config.model_fields, "pretraining"}
    assert set(S3RecConfig.model_fields) == {*SASRecConfig.model_fields, "item_attributes"}  # test_attributed.py


def test_every_option_of_model_and_training_changes_what_is_learned(
    outcome: Callable[..., dict[str, torch.Tensor]],
) -> None:
    usual = outcome()
    assert not differ(usual, outcome(gradient_clip=1e9))  # far above any gradient: the same calculation again
    for name, value in (MODEL_OPTIONS | TRAINING_OPTIONS).items():
        if name != "patience":
            assert differ(usual, outcome(**{name: value})), name
    assert differ(usual, outcome(seed=1))


@pytest.mark.parametrize("loss", ["sampled_softmax", "bce", "gbce"])
def test_negatives_change_what_is_learned_by_the_losses_that_have_some(
    outcome: Callable[..., dict[str, torch.Tensor]], loss: str
) -> None:
    assert differ(outcome(loss=loss), outcome(loss=loss, negatives=4))


def test_calibration_changes_what_gbce_learns(outcome: Callable[..., dict[str, torch.Tensor]]) -> None:
    assert differ(outcome(loss="gbce"), outcome(loss="gbce", calibration=0.1))


@pytest.mark.parametrize("sampled", [{}, {"loss": "sampled_softmax", "negatives": 20}])
def test_candidates_change_what_both_softmax_losses_learn(
    outcome: Callable[..., dict[str, torch.Tensor]], sampled: dict[str, Any]
) -> None:
    assert differ(outcome(**sampled), outcome(**sampled, candidates="unseen"))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"negatives": 4}, "negatives"),
        ({"loss": "bce", "calibration": 0.1}, "calibration"),
        ({"loss": "gbce", "candidates": "unseen"}, "candidates"),
    ],
)
def test_an_option_that_a_loss_would_ignore_is_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"training.{named} does nothing with loss"):
        TrainingConfig(**options)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"masked_items": 0, "segments": 0, "bounded": True}, "bounded"),
        (
            {"masked_items": 0, "masked_attributes": 0, "associated_attributes": 0, "mask_probability": 0.5},
            "mask_probability",
        ),
    ],
)
def test_an_option_that_no_objective_reads_is_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=rf"pretraining\.{named} does nothing with weight 0 of"):
        PretrainingConfig(**options)
    for name in ("masked_items", "segments") if named == "bounded" else ("masked_items", "masked_attributes"):
        PretrainingConfig(**{**options, name: 1.0})


def test_attribute_columns_that_nothing_learns_from_are_refused() -> None:
    none = {"masked_attributes": 0.0, "associated_attributes": 0.0, "columns": ["brand"]}
    with pytest.raises(ConfigError, match=r"pretraining\.columns does nothing"):
        parse_config({"model": {"name": "s3rec"}, "pretraining": none})
    parse_config({"model": {"name": "s3rec", "item_attributes": True}, "pretraining": none})
    parse_config({"model": {"name": "s3rec"}, "pretraining": none | {"masked_attributes": 1.0}})


@pytest.mark.parametrize("name", ["sasrec", "s3rec"])
def test_windows_that_leave_items_out_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"training\.stride 6 is above model\.length 5"):
        parse_config({"model": {"name": name, "length": 5}, "training": {"stride": 6}})
    parse_config({"model": {"name": name, "length": 5}, "training": {"stride": 5}})


@pytest.mark.parametrize("value", ["inf", "nan"])
@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "gradient_clip"])
def test_a_number_that_is_not_finite_is_refused(write: Callable[[str], str], name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"training\.{name}: Input should be a finite number"):
        load_config(write(f"[model]\n[training]\n{name} = {value}\n"))


def test_patience_ends_training_when_nothing_gets_better(outcome: Callable[..., dict[str, torch.Tensor]]) -> None:
    still = {"learning_rate": 1e-12, "epochs": 9}  # no epoch after the first ranks otherwise
    assert not differ(outcome(**still, patience=1), outcome(**still | {"epochs": 2}))
    assert differ(outcome(**still, patience=1), outcome(**still, patience=3))


def test_dropout_changes_training_and_leaves_evaluation_alone() -> None:
    torch.manual_seed(0)
    model = build(SASRecConfig(dim=8, heads=1, blocks=1, dropout=0.5, length=4), 9)
    sequence = torch.tensor([[1, 2, 3]])
    assert not torch.equal(model(sequence), model(sequence))
    model.eval()
    assert torch.equal(model(sequence), model(sequence))


def test_a_length_cuts_windows() -> None:
    sequences = build_dataset(
        interactions_from_frame(pl.DataFrame({"user_id": ["u"] * 9, "item_id": [*"abcdefghi"]}), source="x")
    ).sequences
    for length in (3, 8):
        widths = {batch.inputs.shape[1] for batch in Windows(sequences, length=length, batch=9, seed=0).epoch(0)}
        assert widths == {length}


def test_the_minima_of_the_data_remove_users_and_items(tiny_config: Callable[..., Config]) -> None:
    rows = [("a", "x"), ("a", "y"), ("a", "z"), ("b", "x"), ("b", "y"), ("b", "z"), ("b", "w"), ("c", "x")]
    log = interactions_from_frame(pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row"), source="x")

    def sizes(**options: int) -> tuple[int, int]:
        config = tiny_config().model_copy(update={"data": DataConfig(**options)})
        dataset = prepare(log, config, split="loo").dataset
        return len(dataset.users), dataset.vocabulary.items

    assert sizes() == (3, 4)
    assert sizes(min_user_interactions=2) == (2, 4)
    assert sizes(min_item_interactions=2) == (3, 3)


def test_the_share_of_unusable_rows_is_the_configurations(
    write: Callable[[str], str], tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    rows = "".join(f"u{row},i{row % 3}\n" for row in range(9))
    (tmp_path / "log.csv").write_text("user_id,item_id\n" + rows + ",i1\n")
    train = "train", write("[model]\n[data]\nmax_dropped = 0.05\n"), "--data", tmp_path / "log.csv"
    status, _, error = command(*train)
    assert status == 1
    assert "0.05" in error
    write("[model]\n[data]\nmax_dropped = 0.1\n")  # as many as there are; what is left is too little to split
    status, _, error = command(*train)
    assert status == 1
    assert "no user has 3 interactions" in error
    assert issubclass(InteractionsError, ValueError)


def test_initial_weights_have_the_deviation_that_is_asked_for() -> None:
    torch.manual_seed(0)
    for deviation in (0.02, 0.2):
        weights = build(SASRecConfig(initial_deviation=deviation), 500).item_matrix()[1:].detach().numpy()
        assert np.abs(weights).max() <= 2 * deviation
        assert weights.std() == pytest.approx(0.88 * deviation, rel=0.03)  # a normal cut at two deviations has .88
