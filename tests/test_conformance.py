"""What every served model must do, whichever it is: add a model with one line in MODELS."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl
import pytest
import torch

from models.autorec import AutoRecConfig
from models.s3rec import S3RecConfig
from models.sasrec import SASRecConfig
from models.zoo import ModelConfig, build

MODELS: dict[str, Any] = {
    "sasrec": SASRecConfig(dim=16, blocks=2, heads=2, inner=16, length=8, dropout=0.1),
    "s3rec": S3RecConfig(dim=16, blocks=1, heads=2, inner=16, length=8, dropout=0.1),
    "autorec": AutoRecConfig(hidden=(12,), length=8, dropout=0.1),
    "autorec-implicit": AutoRecConfig(feedback="implicit", hidden=(12,), length=8),
    "autorec-deep": AutoRecConfig(hidden=(12, 6), encoder="relu", centre="mean", presence=1.0, length=8),
    "sasrec-filter": SASRecConfig(dim=16, blocks=2, heads=2, inner=16, length=8, dropout=0.1, filter=0.4),
    "sasrec-relu": SASRecConfig(dim=15, blocks=1, heads=3, inner=8, length=8, dropout=0.3, activation="relu"),
}
ITEMS = 25


@pytest.fixture(params=MODELS, scope="module")
def config(request: pytest.FixtureRequest) -> Any:
    return MODELS[request.param]


SEQUENTIAL = {name: config for name, config in MODELS.items() if not name.startswith("autorec")}


@pytest.fixture(params=SEQUENTIAL)
def sequential(request: pytest.FixtureRequest) -> Any:
    """A model that has a vector at every position; an AutoRec has one for a whole history."""
    return SEQUENTIAL[request.param]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def fresh(config: Any, *, seed: int = 0) -> Any:
    """A model in evaluation mode whose weights are far enough from zero for mistakes to show."""
    torch.manual_seed(seed)
    if isinstance(config, AutoRecConfig):
        model = build(config, ITEMS).eval()
        generator = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            model.decoder.bias.normal_(generator=generator)
        if config.feedback == "explicit":
            offsets = torch.randn(ITEMS, generator=generator)
            model.calibrate(mean=3.2, low=1, high=5, offsets=offsets)
        return model
    return build(config.model_copy(update={"initial_deviation": 0.3}), ITEMS).eval()


def encode(model: Any, sequences: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Vectors of histories; a model that reads ratings gets some that follow from item and place, a fifth missing."""
    if not isinstance(model.config, AutoRecConfig) or model.config.feedback == "implicit":
        return model.encode(sequences, lengths)
    values = (1 + (sequences + torch.arange(sequences.shape[1])) % 5).float()
    return model.encode(sequences, lengths, torch.where(values == 3, torch.nan, values))


def some_sequences(count: int, width: int) -> torch.Tensor:
    return torch.randint(1, ITEMS + 1, (count, width), generator=torch.Generator().manual_seed(1))


def padded(sequences: list[torch.Tensor], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [torch.nn.functional.pad(sequence, (0, width - len(sequence))) for sequence in sequences]
    return torch.stack(rows), torch.tensor([len(sequence) for sequence in sequences])


def close(one: torch.Tensor, two: torch.Tensor) -> None:
    torch.testing.assert_close(one, two, atol=2e-5, rtol=1e-4)


def some_neighbours() -> Any:
    """Four neighbours for every item, strong enough to change every ranking."""
    from models.neighbours import Neighbours

    generator = np.random.default_rng(2)
    items = generator.permuted(np.tile(np.arange(1, ITEMS + 1), (ITEMS + 1, 1)), axis=1)[:, :4].astype(np.int32)
    affinities = generator.random((ITEMS + 1, 4), np.float32)
    items[0], affinities[0] = 0, 0
    return Neighbours(items, affinities)


def test_every_model_of_the_zoo_is_here() -> None:
    known = get_args(ModelConfig) or (ModelConfig,)
    assert {type(config) for config in MODELS.values()} == set(known)


@torch.no_grad()
def test_an_empty_history_gives_finite_numbers_whatever_stands_beside_it(config: Any) -> None:
    model = fresh(config)
    alone = encode(model, torch.zeros(1, 1, dtype=torch.int64), torch.tensor([0]))
    sequences, lengths = padded([torch.tensor([], dtype=torch.int64), some_sequences(1, 8)[0]], 8)
    beside = encode(model, sequences, lengths)
    assert alone.isfinite().all()
    close(alone[0], beside[0])
    assert (alone @ model.item_matrix().T).std() > 0


@torch.no_grad()
def test_padding_changes_nothing(config: Any) -> None:
    model = fresh(config)
    short = some_sequences(4, 3)
    long, lengths = padded(list(short), config.length)
    close(encode(model, short, lengths), encode(model, long, lengths))


@torch.no_grad()
def test_padding_changes_no_position(sequential: Any) -> None:
    model = fresh(sequential)
    short = some_sequences(4, 3)
    long, _ = padded(list(short), sequential.length)
    close(model(short), model(long)[:, :3])


@torch.no_grad()
def test_every_item_of_a_history_speaks(config: Any) -> None:
    model, lengths = fresh(config), torch.tensor([8])
    one = torch.tensor([[3, 14, 15, 9, 2, 6, 5, 8]])
    for position in range(8):
        two = one.clone()
        two[:, position] = 20
        assert (encode(model, one, lengths) - encode(model, two, lengths)).abs().max() > 1e-4


@torch.no_grad()
def test_no_position_sees_a_later_one(sequential: Any) -> None:
    model = fresh(sequential)
    one = some_sequences(6, 8)
    for position in range(1, 8):
        two = one.clone()
        two[:, position:] = (two[:, position:] % ITEMS) + 1
        close(model(one)[:, :position], model(two)[:, :position])
        assert (model(one)[:, position:] - model(two)[:, position:]).abs().amax() > 1e-3


@torch.no_grad()
def test_every_position_sees_the_earlier_ones_and_their_order(sequential: Any) -> None:
    model = fresh(sequential)
    one = some_sequences(1, 8)
    for position in range(7):
        two = one.clone()
        two[:, position] = (two[:, position] % ITEMS) + 1
        assert (model(one)[:, -1] - model(two)[:, -1]).abs().max() > 1e-4
    swapped = one[:, [1, 0, *range(2, 8)]]
    assert (model(one)[:, -1] - model(swapped)[:, -1]).abs().max() > 1e-4


@torch.no_grad()
def test_a_batch_is_its_rows_one_by_one(config: Any) -> None:
    model = fresh(config)
    histories = [row[:length] for row, length in zip(some_sequences(9, 8), [0, 1, 2, 3, 4, 5, 6, 7, 8], strict=True)]
    sequences, lengths = padded(histories, 8)
    together = encode(model, sequences, lengths)
    for row, history in enumerate(histories):
        alone = history[None] if len(history) else torch.zeros(1, 1, dtype=torch.int64)
        close(together[row], encode(model, alone, torch.tensor([len(history)]))[0])


@torch.no_grad()
def test_the_last_position_alone_is_the_last_of_all_positions(sequential: Any) -> None:
    model = fresh(sequential)
    sequences = some_sequences(5, 8)
    everywhere = model(sequences)
    for length in range(1, 9):
        close(model.encode(sequences, torch.full((5,), length)), everywhere[:, length - 1])


def test_the_same_seed_gives_the_same_model(config: Any) -> None:
    sequences, lengths = some_sequences(3, 5), torch.tensor([5, 3, 1])
    with torch.no_grad():
        one, two, other = (encode(fresh(config, seed=seed), sequences, lengths) for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.allclose(one, other)


def test_padding_has_no_vector_of_its_own_and_learns_none(config: Any) -> None:
    model = fresh(config).train()
    assert model.item_matrix().shape == (ITEMS + 1, config.dim)
    assert model.item_matrix()[0].abs().max() == 0
    sequences, lengths = padded([torch.tensor([1, 2]), torch.tensor([3])], 4)
    encode(model, sequences, lengths)[:, 0].sum().backward()
    own = isinstance(config, AutoRecConfig)  # reads items by another matrix than it scores them by
    gradient = model.input_embedding.weight.grad if own else model.item_matrix().grad
    assert gradient is not None
    assert gradient[0].abs().max() == 0
    assert gradient[1].abs().max() > 0


@pytest.fixture(scope="module")
def encoder(config: Any) -> bytes:
    """The graph of `fresh(config)`, made once: to export one takes seconds."""
    from training.export import encoder_graph

    return encoder_graph(fresh(config))


@pytest.mark.parametrize("blend", [False, True])
def test_onnx_computes_what_torch_computes(config: Any, encoder: bytes, blend: bool, tmp_path: Path) -> None:
    """With neighbours in the scores too, which the golden inputs then hold as well; and by way of float16."""
    from models.bundle import read_bundle
    from models.draft import Content, write_bundle
    from models.manifest import DataWindow, Manifest, Parity
    from models.runtime import Runtime
    from training.export import certify, golden
    from training.ranker import build_ranker, build_shortlist

    model = fresh(config)
    neighbours = some_neighbours() if blend else None
    content = Content(
        manifest=Manifest(
            version="conformance",
            created="2026-01-01T00:00:00Z",
            model=config.name,
            items=ITEMS,
            dim=config.dim,
            length=config.length,
            config={},
            seed=0,
            data=DataWindow(files={}, users=1, items=ITEMS, interactions=1),
            metrics={},
            parity=Parity(cases=0, largest_difference=0, top_k_agreed=False),
        ),
        encoder=encoder,
        ranker=build_ranker(neighbours=4 if blend else 0),
        items=model.item_matrix().detach().numpy(),
        ids=["", *(f"i{item}" for item in range(ITEMS))],
        popularity=np.ones(ITEMS + 1, np.float32),
        attributes=None,
        golden=golden(model, neighbours),
        neighbours=neighbours,
        inputs=model.inputs().detach().numpy() if isinstance(config, AutoRecConfig) else None,
        shortlist=build_shortlist(),
    )
    assert (content.golden.scores.tolist() == golden(model).scores.tolist()) is not blend
    parity = certify(content, model)  # raises if they differ
    assert parity.top_k_agreed
    assert parity.largest_difference < 1e-4
    bundle = read_bundle(write_bundle(tmp_path, content))
    Runtime(bundle, device="cpu", bound=True, float16=True).replay_golden()  # raises too


# What a model learns. After i comes i + 7: walks go round a circle of items too long for anyone to close.

CIRCLE = 101


def learned(config: Any, folder: Path, *, shuffled: bool) -> float:
    """Validation HR@10 after a short training on 200 walks over 101 items."""
    from training.config import TrainingConfig
    from training.dataset import build_dataset
    from training.evaluate import evaluate, evaluate_test
    from training.fit import fit
    from training.interactions import interactions_from_frame
    from training.next_item import ModelScorer, NextItem
    from training.splits import split_leave_one_out

    class Silent:
        def step(self, windows: int, loss: float) -> None: ...

        def epoch(self, record: dict[str, float], *, best: bool) -> None: ...

    generator = np.random.default_rng(0)
    walks = (generator.integers(CIRCLE, size=(200, 1)) + 7 * np.arange(12)) % CIRCLE
    if shuffled:  # the same items as often, in histories that say nothing about what comes next
        walks = generator.permuted(np.tile(np.arange(CIRCLE), (200, 1)), axis=1)[:, :12]
    frame = pl.DataFrame({"user_id": np.repeat(np.arange(200), 12), "item_id": walks.ravel()})
    split = split_leave_one_out(build_dataset(interactions_from_frame(frame, source="walks")))
    torch.manual_seed(0)
    model = build(config, CIRCLE)
    training = TrainingConfig(batch=32, epochs=15, patience=15, learning_rate=0.01)
    task = NextItem(model, split.train, split.validation, training, seed=0)
    fit(model, task, training, folder=folder, identity="x", watcher=Silent())
    assert evaluate(ModelScorer(model), split.validation, CIRCLE).metrics()["users"] == 200
    return evaluate_test(ModelScorer(model), split, CIRCLE).metrics()["hr@10"]  # which chose no epoch


def test_walks_with_a_rule_are_learned(sequential: Any, tmp_path: Path) -> None:
    assert learned(sequential, tmp_path, shuffled=False) > 0.9  # chance is 10 of 90


def test_shuffled_histories_teach_nothing(sequential: Any, tmp_path: Path) -> None:
    """Chance is 10 of the 90 items a user has not had, .11; four standard deviations of 200 users are .09."""
    assert learned(sequential, tmp_path, shuffled=True) < 0.2
