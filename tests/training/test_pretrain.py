"""S3Rec's pre-training: what is hidden and from whom, that each objective teaches something, and that runs resume."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from models.s3rec import S3RecConfig, S3RecPretraining
from models.zoo import build
from training.attributes import Attributes, ItemAttributes, number_attributes
from training.config import PretrainingConfig, S3RecRunConfig
from training.dataset import Sequences, build_dataset
from training.fit import FitError, fit
from training.interactions import interactions_from_frame
from training.preparation import Prepared
from training.pretrain import MaskedItemScorer, Prefixes, Pretrain
from training.splits import Split, split_leave_one_out
from training.train import _known

pytestmark = pytest.mark.usefixtures("one_thread")

ITEMS = 30
NOTHING: dict[str, Any] = {"associated_attributes": 0.0, "masked_items": 0.0, "masked_attributes": 0.0, "segments": 0.0}
OBJECTIVES = list(NOTHING)


class Silent:
    def step(self, windows: int, loss: float) -> None: ...

    def epoch(self, record: dict[str, float], *, best: bool) -> None: ...


@pytest.fixture
def split(walks: Callable[..., pl.DataFrame]) -> Split:
    return split_of(walks(60, ITEMS))


def split_of(log: pl.DataFrame) -> Split:
    """Items numbered as they are called, so that attributes can be worked out."""
    order = pl.DataFrame({"user_id": "first", "item_id": [f"i{item}" for item in range(ITEMS)], "timestamp": 0})
    return split_leave_one_out(
        build_dataset(interactions_from_frame(pl.concat([order.cast(log.schema), log]), source="walks"))
    )


def thirds(columns: list[str] | None = None) -> ItemAttributes:
    """Items 1 to 10 have attribute 0, 11 to 20 have 1, the rest 2; odd ones have another."""
    known: dict[str, list[object]] = {
        "third": [None, *((item - 1) // 10 for item in range(1, ITEMS + 1))],
        "odd": [None, *("yes" if item % 2 else None for item in range(1, ITEMS + 1))],
    }
    return number_attributes(Attributes(known, missing_items=0, unknown_items=0), columns)


def untrained(attributes: ItemAttributes | None = None) -> S3RecPretraining:
    torch.manual_seed(0)
    encoder = build(S3RecConfig(dim=16, blocks=1, heads=2, inner=16, length=8, dropout=0.1), ITEMS)
    return S3RecPretraining(encoder, attributes.count if attributes else 0)


def task(model: S3RecPretraining, split: Split, attributes: ItemAttributes | None = None, **options: Any) -> Pretrain:
    config = PretrainingConfig(**{"batch": 16} | options)
    return Pretrain(model, attributes, split.train, split.validation, config, seed=0)


def prefixes(sequences: Sequences, *, length: int = 50, seed: int = 0, **options: Any) -> Prefixes:
    return Prefixes(sequences, ITEMS, PretrainingConfig(**{"batch": 4} | options), length=length, seed=seed)


def users_with(lengths: list[int]) -> Sequences:
    ends = np.cumsum(lengths, dtype=np.int64)
    items = np.arange(int(ends[-1])).astype(np.int32) % ITEMS + 1
    return Sequences(items, ends - np.array(lengths, np.int64), ends)


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(any), st.integers(1, 9), st.none() | st.integers(1, 4)
)
def test_every_prefix_of_every_user_is_read_once_an_epoch_or_as_many_as_are_asked_for(
    lengths: list[int], length: int, most: int | None
) -> None:
    sequences = users_with(lengths)
    source = prefixes(sequences, length=length, prefixes=most)
    batches = list(source.epoch(1))
    found = [
        row[:count].tolist() for batch in batches for row, count in zip(batch.sequences, batch.lengths, strict=True)
    ]
    possible = [
        sequences[user][max(0, end - length) : end].tolist()
        for user, count in enumerate(lengths)
        for end in range(1, count + 1)
    ]
    assert len(found) == source.count() == sum(min(count, most or count) for count in lengths)
    if most is None:
        assert sorted(found) == sorted(possible)
    assert all(prefix in possible for prefix in found)


def test_the_newest_item_is_always_hidden_and_of_the_others_the_share_asked_for() -> None:
    sequences = users_with([20] * 200)
    hidden = seen = 0
    for batch in prefixes(sequences, mask_probability=0.3, batch=64).epoch(1):
        rows = np.arange(len(batch.lengths))
        assert batch.masked[rows, batch.lengths - 1].all()
        assert not batch.masked[batch.sequences == 0].any()  # padding is nothing to find
        assert len(batch.negatives) == batch.masked.sum()
        hidden += int(batch.masked.sum()) - len(rows)
        seen += int(batch.lengths.sum()) - len(rows)
    assert hidden / seen == pytest.approx(0.3, abs=0.01)


def test_a_negative_is_never_an_item_of_the_user() -> None:
    sequences = users_with([7, 11, 5])
    for batch in prefixes(sequences).epoch(1):
        owners = np.nonzero(batch.masked)[0]
        for row, negative in zip(owners, batch.negatives, strict=True):
            mine = next(user for user in range(3) if batch.sequences[row, 0] in sequences[user])
            assert negative not in sequences[mine]
            assert 1 <= negative <= ITEMS


def test_a_segment_is_a_piece_of_its_sequence_and_the_other_is_as_long() -> None:
    for batch in prefixes(users_with([1, 9, 14, 6])).epoch(3):
        segments = batch.segments
        assert segments.rows.tolist() == np.flatnonzero(batch.lengths >= 2).tolist()
        for number, row in enumerate(segments.rows):
            begin, size = segments.begins[number], segments.lengths[number]
            assert 1 <= size <= batch.lengths[row] // 2
            assert segments.items[number, :size].tolist() == batch.sequences[row, begin : begin + size].tolist()
            assert np.flatnonzero(segments.cut[number]).tolist() == list(range(begin, begin + size))
            assert begin + size <= batch.lengths[row]
            assert (segments.others[number] > 0).sum() == size


def test_an_epoch_is_a_function_of_seed_and_number_alone() -> None:
    def drawn(seed: int, epoch: int) -> list[list[int]]:
        return [batch.sequences.ravel().tolist() for batch in prefixes(users_with([9, 8]), seed=seed).epoch(epoch)]

    assert drawn(0, 1) == drawn(0, 1)
    assert drawn(0, 1) != drawn(0, 2)
    assert drawn(0, 1) != drawn(1, 1)


def test_what_lies_between_the_sequences_is_neither_read_nor_sought_nor_cut_from() -> None:
    """Everybody's last two items are one that nobody had before; sequences without them share the arrays they are in.

    So it is no item of any prefix nor of any segment, whose others come from anywhere in the array.
    """
    whole = users_with([9, 12, 7, 10])
    held_out = np.concatenate([whole.ends - 2, whole.ends - 1])
    items = np.where(whole.items == ITEMS, 1, whole.items).astype(np.int32)
    items[held_out] = ITEMS
    for epoch in range(1, 6):
        for batch in prefixes(Sequences(items, whole.starts, whole.ends - 2), length=8).epoch(epoch):
            assert ITEMS not in batch.sequences
            assert ITEMS not in batch.segments.items
            assert ITEMS not in batch.segments.others


def test_what_is_hidden_changes_nothing_and_what_is_seen_on_either_side_does() -> None:
    model = untrained().eval()
    sequence, lengths = torch.tensor([[3, 4, 5, 6]]), torch.tensor([4])
    masked = torch.tensor([[False, True, False, False]])
    with torch.no_grad():
        usual = model.everywhere(sequence, lengths, masked)
        torch.testing.assert_close(usual, model.everywhere(torch.tensor([[3, 9, 5, 6]]), lengths, masked))
        for place in (0, 2, 3):
            other = sequence.clone()
            other[0, place] = 9
            assert (model.everywhere(other, lengths, masked)[0, 1] - usual[0, 1]).abs().max() > 1e-4
        padded = torch.nn.functional.pad(sequence, (0, 3))
        wide = model.everywhere(padded, lengths, torch.nn.functional.pad(masked, (0, 3)))
        torch.testing.assert_close(wide[:, :4], usual)
        torch.testing.assert_close(model.last(padded, lengths, torch.nn.functional.pad(masked, (0, 3))), usual[:, -1])


def test_a_segment_keeps_its_places() -> None:
    model = untrained().eval()
    sequence, lengths = torch.tensor([[3, 4]]), torch.tensor([2])
    with torch.no_grad():
        begin = model.last(sequence, lengths, begins=torch.tensor([0]))
        torch.testing.assert_close(begin, model.last(sequence, lengths))
        assert (model.last(sequence, lengths, begins=torch.tensor([5])) - begin).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("objective", "bounded"),
    [*((objective, False) for objective in OBJECTIVES), ("masked_items", True), ("segments", True)],
)
def test_each_objective_teaches_something_by_itself(
    tmp_path: Path, walks: Callable[..., pl.DataFrame], objective: str, bounded: bool
) -> None:
    """After training by it alone, it is lower on other walks of the same kind than before training."""
    split, others, attributes = split_of(walks(150, ITEMS)), split_of(walks(60, ITEMS, seed=9)), thirds()
    model = untrained(attributes)
    options = NOTHING | {objective: 1.0, "bounded": bounded}

    def left() -> float:
        model.eval()
        judge = task(model, others, attributes, **options)
        with torch.no_grad():
            return float(np.mean([judge.loss(batch).item() for batch in judge.batches(1)]))

    before = left()
    learner = task(model, split, attributes, **options)
    config = PretrainingConfig(**options, epochs=8, patience=8, learning_rate=0.01)
    fit(model, learner, config, folder=tmp_path, identity="x", watcher=Silent())
    assert left() < (0.9 if bounded else 0.75) * before  # between sigmoids there is a loss of 0.45 times this at least


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_weight_counts_in_proportion(split: Split, objective: str) -> None:
    attributes = thirds()
    model = untrained(attributes).eval()

    def loss(**weights: float) -> float:
        chosen = task(model, split, attributes, **weights)
        return chosen.loss(next(chosen.batches(1))).item()

    once, twice = loss(**NOTHING | {objective: 1.0}), loss(**NOTHING | {objective: 2.0})
    assert once > 0
    assert twice == pytest.approx(2 * once, rel=1e-5)


def test_the_loss_of_knowing_nothing_is_a_coin_flip_for_every_question() -> None:
    """One prefix of one item: it is hidden, a negative stands against it, and two attributes are asked for."""
    attributes = thirds(["third"])
    model = untrained(attributes).eval()
    for weights in (model.encoder.item_embedding.weight, model.attribute_embedding.weight):
        torch.nn.init.zeros_(weights)
    split = Split(train=users_with([1]), validation=split_nobody(), _test=split_nobody(), left_out={})
    learner = task(model, split, attributes, associated_attributes=1.0, masked_attributes=10.0, segments=1.0)
    batch = next(learner.batches(1))
    # One masked item, three attributes at ten times the weight, no seen item and no segment in a prefix of one.
    assert learner.loss(batch).item() == pytest.approx((1 + 10 * 3) * np.log(2))


def split_nobody() -> Any:
    from training.splits import Holdout

    nobody = np.empty(0, np.int64)
    return Holdout(nobody, users_with([1]).take(nobody), nobody.astype(np.int32), nobody.astype(np.bool_))


def test_items_of_which_nothing_is_known_are_not_taught_to_have_nothing(split: Split) -> None:
    attributes = thirds(["odd"])  # says nothing of even items
    model = untrained(attributes).eval()
    learner = task(model, split, attributes, **NOTHING | {"masked_attributes": 1.0, "associated_attributes": 1.0})
    batch = next(learner.batches(1))
    flips = ((batch.sequences % 2 == 1) & (batch.sequences > 0)).sum()
    torch.nn.init.zeros_(model.attribute_embedding.weight)
    assert learner.loss(batch).item() == pytest.approx(flips * np.log(2) / len(batch.lengths), rel=1e-5)


def test_the_columns_that_are_asked_for_teach_and_a_run_without_attributes_says_so() -> None:
    known: dict[str, list[object]] = {"a": [None, "x", "x"], "b": [None, "y", "y"]}
    said = io.StringIO()

    def taught(config: PretrainingConfig, attributes: Attributes | None) -> ItemAttributes | None:
        prepared = Prepared(None, None, None, attributes)  # type: ignore[arg-type]  # nothing else is looked at
        run = S3RecRunConfig(model=S3RecConfig(), pretraining=config)
        return _known(run, prepared, Console(file=said, width=200), chosen=True)

    attributes = Attributes(known, missing_items=0, unknown_items=0)
    every, one = (taught(PretrainingConfig(columns=columns), attributes) for columns in (None, ["b"]))
    assert every is not None
    assert one is not None
    assert (every.count, one.names) == (2, (("b", "y"),))
    assert taught(PretrainingConfig(), None) is None
    assert "no item attributes were given" in said.getvalue()
    assert taught(PretrainingConfig(associated_attributes=0, masked_attributes=0), attributes) is None


def test_validation_ranks_what_stands_hidden_behind_the_history(split: Split, tmp_path: Path) -> None:
    model = untrained()
    learner = task(model, split, epochs=25, patience=25, learning_rate=0.01)
    chance = learner.validate()["ndcg@10"]
    config = PretrainingConfig(epochs=25, patience=25, learning_rate=0.01)
    fitted = fit(model, learner, config, folder=tmp_path, identity="x", watcher=Silent())
    assert fitted.best > max(0.5, 2 * chance)
    longer = Sequences(np.arange(1, 21, dtype=np.int32), np.array([0]), np.array([20]))
    newest = Sequences(longer.items, np.array([13]), np.array([20]))
    scorer = MaskedItemScorer(model)
    np.testing.assert_allclose(scorer(longer), scorer(newest), rtol=1e-5)  # one place of the length is the mask's


@pytest.mark.parametrize("dies_at", [1, 40, 75])
def test_an_interrupted_pre_training_continues_to_the_same_weights_bit_for_bit(
    tmp_path: Path, split: Split, dies_at: int
) -> None:
    attributes = thirds()
    config = PretrainingConfig(batch=16, epochs=3, learning_rate=0.01)

    class Dies(Silent):
        steps = 0

        def step(self, windows: int, loss: float) -> None:
            Dies.steps += 1
            if Dies.steps == dies_at:
                raise KeyboardInterrupt

    def pretrained(folder: Path, watcher: Any) -> dict[str, torch.Tensor]:
        folder.mkdir(exist_ok=True)
        model = untrained(attributes)
        learner = Pretrain(model, attributes, split.train, split.validation, config, seed=0)
        fit(model, learner, config, folder=folder, identity="x", watcher=watcher)
        return model.state_dict()

    whole = pretrained(tmp_path / "whole", Silent())
    with pytest.raises(KeyboardInterrupt):
        pretrained(tmp_path / "broken", Dies())
    torch.rand(5)
    continued = pretrained(tmp_path / "broken", Silent())
    assert all(torch.equal(tensor, continued[name]) for name, tensor in whole.items())


def test_data_without_a_train_interaction_is_refused(split: Split) -> None:
    nobody = users_with([1]).take(np.empty(0, np.int64))
    with pytest.raises(FitError, match="no train interaction"):
        Pretrain(untrained(), None, nobody, split.validation, PretrainingConfig(), seed=0)


def test_every_objective_off_is_refused() -> None:
    with pytest.raises(ValueError, match="every objective has weight 0"):
        PretrainingConfig(**NOTHING)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mask_probability", 0.5),
        ("bounded", True),
        ("prefixes", 2),
        ("batch", 8),
        ("shuffle_ties", False),
        *((objective, 3.0) for objective in OBJECTIVES),
    ],
)
def test_every_option_of_pre_training_changes_what_is_learned(
    tmp_path: Path, walks: Callable[..., pl.DataFrame], name: str, value: Any
) -> None:
    log = walks(30, ITEMS).with_columns(pl.col("timestamp") // 180_000)  # three steps at a time
    split, attributes = split_of(log), thirds()

    def learned(folder: str, **options: Any) -> torch.Tensor:
        (tmp_path / folder).mkdir()
        model, config = untrained(attributes), PretrainingConfig(**{"batch": 16, "epochs": 1} | options)
        learner = Pretrain(model, attributes, split.train, split.validation, config, seed=0)
        fit(model, learner, config, folder=tmp_path / folder, identity="x", watcher=Silent())
        return model.encoder.item_matrix().detach().clone()

    usual = learned("usual")
    assert torch.equal(usual, learned("again"))
    assert not torch.equal(usual, learned("other", **{name: value}))
