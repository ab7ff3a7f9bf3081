"""From a log to ratings: which interactions count, how they are split, and what is counted on the way."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from models.autorec import AutoRecConfig
from training.config import AutoRecRunConfig, Config, ConfigError, DataConfig, ReconstructionConfig, load_config
from training.dataset import DatasetError
from training.evaluate import evaluate_ratings, evaluate_test_ratings
from training.interactions import Columns, Interactions, InteractionsError, interactions_from_frame, read_interactions
from training.measures import rmse_interval
from training.preparation import default_split, prepare
from training.ratings import biases_of, matrix_of
from training.splits import open_test


def log(*rows: tuple[str, str, float | None], times: bool = False) -> Interactions:
    frame = pl.DataFrame(rows, schema={"user_id": pl.String, "item_id": pl.String, "value": pl.Float64}, orient="row")
    if times:
        frame = frame.with_columns(timestamp=pl.int_range(pl.len()) + 1_600_000_000_000)
    return interactions_from_frame(frame, source="log")


def config(*, max_dropped: float = 0.01, feedback: str = "explicit", **training: Any) -> AutoRecRunConfig:
    return AutoRecRunConfig(
        data=DataConfig(max_dropped=max_dropped),
        model=AutoRecConfig(feedback=feedback),  # type: ignore[arg-type]
        training=ReconstructionConfig(**training),
    )


def grid(users: int = 10, items: int = 10) -> list[tuple[str, str, float | None]]:
    return [(f"u{user}", f"i{item}", 1.0 + (user + item) % 5) for user in range(users) for item in range(items)]


def test_the_newest_of_several_ratings_counts_and_the_others_are_counted() -> None:
    prepared = prepare(log(*grid(), ("u0", "i0", 5.0), times=True), config(), split="random")
    assert prepared.dataset.sequences.interactions == 100
    assert prepared.notes == ("1 older interactions of a user with the same item left out",)
    u0 = prepared.dataset.users.index("u0")
    items = prepared.dataset.sequences[u0]
    i0 = prepared.dataset.vocabulary.index_of("i0")
    assert prepared.dataset.sequences.values_of(u0)[items == i0].tolist() == [5.0]


def test_interactions_without_a_rating_are_counted_and_many_are_an_error() -> None:
    bad = [("v", f"i{item}", None) for item in range(5)]
    prepared = prepare(log(*grid(), *bad), config(max_dropped=0.1), split="random")
    assert prepared.notes == ("5 interactions without a rating left out",)
    with pytest.raises(DatasetError, match=r"5 of 105 interactions cannot be used.*--value-column"):
        prepare(log(*grid(), *bad), config(), split="random")


def test_ratings_outside_a_configured_scale_are_counted_and_many_are_an_error() -> None:
    prepared = prepare(log(*grid(), ("v", "i1", 9.0)), config(max_dropped=0.1, scale=(1, 5)), split="random")
    assert prepared.notes == ("1 interactions with a rating outside 1 to 5 left out",)
    with pytest.raises(DatasetError, match="20 interactions with a rating outside 1 to 4"):
        prepare(log(*grid()), config(scale=(1, 4)), split="random")


def test_ratings_that_are_all_the_same_are_an_error() -> None:
    with pytest.raises(DatasetError, match="all train ratings are 3"):
        prepare(log(*((user, item, 3.0) for user, item, _ in grid())), config(), split="random")


def test_implicit_feedback_needs_no_ratings() -> None:
    rows = [(user, item, None) for user, item, _ in grid()]
    prepared = prepare(log(*rows), config(feedback="implicit"), split="loo")
    matrix = matrix_of(prepared.split.train, 10, explicit=False)
    assert set(matrix.data) == {1.0}
    assert default_split(config(feedback="implicit")) == "loo"
    assert default_split(config()) == "random"


def test_a_random_split_takes_the_shares_asked_for_and_depends_on_the_seed_alone() -> None:
    def parts(seed: int) -> tuple[int, list[int], float]:
        prepared = prepare(log(*grid(40, 50)), config(validation_share=0.25), split="random", seed=seed)
        split = prepared.split
        test = evaluate_test_ratings(lambda holdout: np.zeros(len(holdout), np.float32), split, 50)
        assert split.train.interactions + len(split.validation) + len(test.errors) == 2000
        for user in range(40):
            held = split.validation.targets[split.validation.users == user]
            assert not set(held) & set(split.train[user])
        history = split.validation.histories
        for row in range(5):
            assert history[row].tolist() == split.train[int(split.validation.users[row])].tolist()
        return len(test.errors), split.validation.targets.tolist(), float(test.errors.sum())

    assert parts(0) == parts(0)
    assert parts(0)[1] != parts(1)[1]
    assert parts(0)[0] == 200
    assert len(parts(0)[1]) == 450


def test_a_split_by_file_holds_out_exactly_the_ratings_of_the_file() -> None:
    held = [("u0", "i0", 2.0), ("u1", "new", 5.0), ("stranger", "i3", 1.0)]
    train = [row for row in grid() if row[:2] != ("u0", "i0")]
    prepared = prepare(log(*train), config(), split="file", test=log(*held))
    found = evaluate_test_ratings(lambda holdout: np.zeros(len(holdout), np.float32), prepared.split, 11)
    assert sorted((-found.errors).tolist()) == [1.0, 2.0, 5.0]
    assert found.unseen == 2
    assert prepared.split.train.interactions + len(prepared.split.validation) == len(train)


def test_a_pair_in_both_files_a_missing_file_and_one_too_many_are_errors() -> None:
    with pytest.raises(DatasetError, match="1 pairs of user and item are in the train files and in the test files"):
        prepare(log(*grid()), config(), split="file", test=log(("u0", "i0", 2.0)))
    with pytest.raises(DatasetError, match="--test FILE"):
        prepare(log(*grid()), config(), split="file")
    with pytest.raises(DatasetError, match="no other split takes them"):
        prepare(log(*grid()), config(), split="random", test=log(("u0", "new", 2.0)))


def test_a_model_that_predicts_no_ratings_refuses_a_split_of_ratings() -> None:
    from models.sasrec import SASRecConfig

    with pytest.raises(DatasetError, match="sasrec predicts none; split loo or time"):
        prepare(log(*grid()), Config(model=SASRecConfig()), split="random")


@pytest.mark.parametrize(("split", "test"), [("random", None), ("file", log(("v", "i1", 2.0)))])
def test_implicit_feedback_refuses_a_split_of_ratings(split: Any, test: Interactions | None) -> None:
    with pytest.raises(DatasetError, match=rf"{split} holds out single ratings.*'implicit' predicts none.*loo or time"):
        prepare(log(*grid()), config(feedback="implicit"), split=split, test=test)


@pytest.mark.parametrize("split", ["loo", "time"])
def test_a_validation_share_is_refused_by_the_splits_that_do_not_use_it(split: Any) -> None:
    with pytest.raises(DatasetError, match=rf"validation_share 0\.2 does nothing with the split {split}"):
        prepare(log(*grid(), times=True), config(validation_share=0.2), split=split)


def repeating() -> Interactions:
    """Thirty users who come back to items; the first is back at its first one at the very end."""
    generator = np.random.default_rng(0)
    steps = [(f"u{user}", f"i{item}") for user in range(30) for item in generator.integers(12, size=8)]
    order = generator.permutation(len(steps))
    rows = [(*steps[step], float(1 + step % 5)) for step in order]
    return log(("u0", "back", 1.0), *rows, ("u0", "back", 5.0), times=True)


@pytest.mark.parametrize("feedback", ["implicit", "explicit"])
@pytest.mark.parametrize("split", ["loo", "time"])
def test_what_is_held_out_and_what_is_learned_is_the_same_for_every_model(split: Any, feedback: str) -> None:
    from models.sasrec import SASRecConfig

    def parts(by: Any) -> list[Any]:
        split_up = prepare(repeating(), by, split=split).split
        found: list[Any] = [split_up.train.items.tolist()]
        for part in (split_up.validation, open_test(split_up)):
            found += [part.users.tolist(), part.targets.tolist(), part.histories.compact().items.tolist()]
        return found

    assert parts(config(feedback=feedback)) == parts(Config(model=SASRecConfig()))


def test_of_repeats_in_the_train_part_the_newest_counts_and_the_others_are_counted() -> None:
    prepared = prepare(repeating(), config(), split="loo")
    train, items = prepared.split.train, prepared.dataset.vocabulary.items
    newest = {
        (user, item): value
        for user in range(len(train))
        for item, value in zip(train[user].tolist(), train.values_of(user).tolist(), strict=True)
    }
    matrix = matrix_of(train, items).tocoo()
    cells = zip(matrix.row.tolist(), (matrix.col + 1).tolist(), strict=True)
    assert dict(zip(cells, matrix.data.tolist(), strict=True)) == newest
    assert prepared.notes == (
        f"{train.interactions - len(newest)} older train interactions of a user with the same item left out",
    )
    back = prepared.dataset.vocabulary.index_of("back")
    assert newest[prepared.dataset.users.index("u0"), back] == 1.0  # that it is rated 5 later is the test's to know


def test_rmse_and_mae_are_over_all_ratings() -> None:
    prepared = prepare(log(*grid()), config(), split="random")
    holdout = prepared.split.validation
    assert holdout.values is not None
    offsets = np.where(np.arange(len(holdout)) % 2 == 0, 1.0, -2.0)
    found = evaluate_ratings(
        lambda given: (given.values + offsets).astype(np.float32), holdout, prepared.split.train, 10
    )
    assert found.metrics()["rmse"] == pytest.approx(np.sqrt((offsets**2).mean()))
    assert found.metrics()["mae"] == pytest.approx(np.abs(offsets).mean())
    low, high = found.report()["intervals"]["rmse"]  # type: ignore[index]
    assert low < found.metrics()["rmse"] < high
    assert (low, high) == rmse_interval(found.errors, holdout.users)


def test_biases_are_those_of_least_squares() -> None:
    exact = 3 + np.array([0.5, -0.5, 0.0])[:, None] + np.array([1.0, -1.0, 0.5, -0.5])
    rows = [(f"u{u}", f"i{i}", float(exact[u, i])) for u in range(3) for i in range(4)]
    prepared = prepare(log(*rows, *[("w", f"i{i}", 3.0) for i in range(4)]), config(feedback="implicit"), split="loo")
    matrix = matrix_of(prepared.dataset.sequences, 4)
    found = biases_of(matrix, 0.0)
    cells = matrix.tocoo()
    errors = cells.data - found(cells.row, cells.col)
    assert np.abs(np.bincount(cells.row, errors)).max() < 1e-3  # at the optimum no row and no column has any left
    assert np.abs(np.bincount(cells.col, errors)).max() < 1e-3
    shrunk = biases_of(matrix, 1e9)
    assert np.abs(shrunk.rows).max() < 1e-6


@pytest.mark.parametrize("name", ["u1.base", "u1.test", "u.data"])
def test_the_files_of_movielens_100k_need_no_header(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("1\t7\t5\t874965758\n2\t7\t3\t876893171\n")
    found = read_interactions([tmp_path / name])
    assert found.frame.select("user_id", "item_id", "value").rows() == [("1", "7", 5.0), ("2", "7", 3.0)]
    assert found.has_timestamps
    (tmp_path / name).write_text("1\t7\t5\n")
    with pytest.raises(InteractionsError, match="has 3 columns"):
        read_interactions([tmp_path / name])


def test_an_empty_name_of_the_timestamp_reads_none(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\na,x,\na,y,5\n")
    assert read_interactions([tmp_path / "log.csv"], max_dropped=0.5).frame.height == 1
    found = read_interactions([tmp_path / "log.csv"], columns=Columns(timestamp=""))
    assert (found.frame.height, found.has_timestamps) == (2, False)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[training]\nloss = 'bce'\n", "training.loss"),
        ("[training]\nscale = [5, 1]\n", "must be a lower and a higher rating"),
        ("[training]\nnegatives = 3\n", "training.negatives does nothing with feedback 'explicit'"),
        ("[blend]\nneighbours = true\n", "blend"),
        ("[pretraining]\n", "pretraining"),
        ("from_data = ['length']\n", "from_data"),
    ],
)
def test_what_an_autorec_does_not_read_is_refused(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        text + '[model]\nname = "autorec"\n' if text.startswith("from") else '[model]\nname = "autorec"\n' + text
    )
    with pytest.raises(ConfigError, match=named):
        load_config(str(path))
