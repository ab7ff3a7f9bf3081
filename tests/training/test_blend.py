"""How much item-kNN joins a model: chosen on validation, exported as chosen, the same by torch and onnxruntime."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from models.bundle import read_bundle
from models.runtime import Runtime
from training.assessment import assess
from training.baselines import ItemKNN
from training.blend import choose_blend, partner, strongest
from training.config import BlendConfig
from training.dataset import Sequences, build_dataset
from training.evaluate import evaluate
from training.export import export
from training.interactions import Columns, interactions_from_frame, read_interactions
from training.preparation import prepare, spec_of
from training.run import RunFolder
from training.scorers import Blended
from training.splits import Split, split_leave_one_out

pytestmark = pytest.mark.usefixtures("one_thread")
ITEMS = 40


@pytest.fixture
def split(walks: Callable[..., pl.DataFrame]) -> Split:
    return split_leave_one_out(build_dataset(interactions_from_frame(walks(80, ITEMS), source="walks")))


def nothing(histories: Sequences) -> np.ndarray:
    """A model that knows nothing: the same score for everything."""
    return np.zeros((len(histories), ITEMS + 1), np.float32)


@given(st.integers(0, 10**6), st.integers(1, 9))
@settings(max_examples=40)
def test_the_strongest_neighbours_of_each_row_are_kept(seed: int, width: int) -> None:
    dense = np.random.default_rng(seed).integers(0, 4, (8, 8)).astype(float)  # few values, many ties
    found = strongest(sparse.csr_array(dense), width)
    assert found.items.shape[1] <= width
    for row in range(8):
        order = sorted(
            (column for column in range(8) if dense[row, column]), key=lambda column: (-dense[row, column], column)
        )
        kept = [
            (int(item), float(gain)) for item, gain in zip(found.items[row], found.affinities[row], strict=True) if gain
        ]
        assert kept == [(column, dense[row, column]) for column in order[:width]]
        assert not found.items[row, len(kept) :].any()


def test_with_every_neighbour_kept_the_newest_item_scores_as_in_item_knn(split: Split) -> None:
    knn = ItemKNN(split.train, ITEMS)
    whole = strongest(knn.matrix, ITEMS)
    items = np.arange(1, ITEMS + 1, dtype=np.int32)
    alone = Sequences(items, np.arange(ITEMS), np.arange(1, ITEMS + 1))
    np.testing.assert_allclose(whole.bonus([items[row : row + 1] for row in range(ITEMS)]), knn(alone), atol=1e-6)
    two = strongest(knn.matrix * 3.0, 2)
    assert two.items.shape == (ITEMS + 1, 2)
    assert two.affinities.max() == pytest.approx(3 * knn.matrix.max())


def test_a_model_that_knows_nothing_takes_as_much_as_it_can_get(split: Split) -> None:
    blend = choose_blend(nothing, split.train, split.validation, ITEMS)
    knn = partner(split.train, ITEMS, blend.backward)
    assert blend.weight > 0
    assert blend.neighbours is not None
    assert blend.weight == min(weight for weight, figure in blend.tried.items() if figure == max(blend.tried.values()))
    alone = evaluate(nothing, split.validation, ITEMS).metrics()["ndcg@10"]
    blended = evaluate(Blended(nothing, blend.neighbours), split.validation, ITEMS).metrics()["ndcg@10"]
    assert blend.tried[0.0] == pytest.approx(alone)
    assert blended == pytest.approx(blend.tried[blend.weight], rel=0.01)
    assert blended == pytest.approx(evaluate(knn, split.validation, ITEMS).metrics()["ndcg@10"])
    assert "raises validation ndcg@10" in str(blend)


def test_a_model_that_knows_everything_stays_alone(split: Split) -> None:
    """It gives validation's targets a hundred times what item-kNN could add."""
    answers = iter([split.validation.targets])

    def knows(histories: Sequences) -> np.ndarray:
        scores = nothing(histories)
        scores[np.arange(len(scores)), next(answers)] = 1e6
        return scores

    blend = choose_blend(knows, split.train, split.validation, ITEMS)
    assert (blend.weight, blend.neighbours) == (0, None)
    assert "the model stays alone" in str(blend)
    assert blend.record()["width"] == 0


def test_a_blend_that_its_cut_neighbours_spoil_is_not_taken(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.blend._WIDTHS", (1,))
    monkeypatch.setattr("training.blend.strongest", lambda matrix, width: strongest(-matrix, width))  # the worst ones
    blend = choose_blend(nothing, split.train, split.validation, ITEMS)
    assert max(blend.tried.values()) > blend.tried[0.0]
    assert (blend.weight, blend.neighbours, blend.served) == (0, None, blend.tried[0.0])


def test_the_weight_of_a_large_catalogue_is_chosen_by_some_of_the_users(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def counted(histories: Sequences) -> np.ndarray:
        asked.append(len(histories))
        return nothing(histories)

    monkeypatch.setattr("training.evaluate._CELLS", 20 * (ITEMS + 1))
    blend = choose_blend(counted, split.train, split.validation, ITEMS)
    assert blend.weight > 0
    assert max(asked) <= 20


def test_data_without_neighbours_has_no_blend() -> None:
    frame = pl.DataFrame({"user_id": [*"aaabbb"], "item_id": [*"uvwxyz"]})
    split = split_leave_one_out(build_dataset(interactions_from_frame(frame, source="x")))
    blend = choose_blend(lambda histories: np.zeros((len(histories), 7), np.float32), split.train, split.validation, 6)
    assert (blend.weight, blend.neighbours) == (0, None)
    assert max(blend.tried.values()) == blend.tried[0.0]


@pytest.mark.parametrize("back", [False, True])
def test_what_stood_before_counts_only_where_users_come_back_to_it(back: bool) -> None:
    """Half of the users pass from one item of a pair to the other before their validation, and the others at it."""
    rows = []
    for pair in range(10):
        first, second = f"first-{pair}", f"second-{pair}"
        rows += [(f"a{pair}", item) for item in (first, second, "x", "y")]
        rows += [(f"b{pair}", item) for item in ((second, first) if back else (first, second))] + [(f"b{pair}", "y")]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row")
    dataset = build_dataset(interactions_from_frame(frame, source="x"))
    split, items = split_leave_one_out(dataset), dataset.vocabulary.items
    blend = choose_blend(
        lambda histories: np.zeros((len(histories), items + 1), np.float32), split.train, split.validation, items
    )
    assert blend.backward == (0.5 if back else 0.0)
    assert blend.weight > 0
    assert blend.served > blend.tried[0.0]


@pytest.fixture(scope="module")
def blended_run(
    tmp_path_factory: pytest.TempPathFactory, walks: Callable[..., pl.DataFrame], tiny_config: Callable[..., Any]
) -> RunFolder:
    """A run whose model has hardly learned, so that neighbours help, on walks of which a third is noise."""
    from rich.console import Console

    from training.train import train

    folder = tmp_path_factory.mktemp("blended")
    log = folder / "walks.csv"
    noise = walks(60, ITEMS, seed=1, shuffled=True).with_columns(pl.concat_str(pl.lit("n"), "user_id").alias("user_id"))
    pl.concat([walks(120, ITEMS), noise]).write_csv(log)
    config = tiny_config(epochs=1).model_copy(update={"blend": BlendConfig(neighbours=True)})
    prepared = prepare(read_interactions([log]), config, split="loo")
    spec = spec_of(config, prepared, name="walks", files=[log], columns=Columns(), split="loo", seed=3)
    out = io.StringIO()
    run = train(spec, prepared, folder / "run", Console(file=out, width=160))
    (folder / "printed").write_text(out.getvalue())
    return run


def test_a_run_records_both_the_model_alone_and_what_it_serves(blended_run: RunFolder) -> None:
    metrics, neighbours = blended_run.metrics(), blended_run.neighbours()
    assert neighbours is not None
    assert metrics["blend"]["weight"] > 0
    assert metrics["blend"]["width"] == neighbours.items.shape[1]
    assert metrics["validation"]["ndcg@10"] > metrics["alone"]["validation"]["ndcg@10"]
    tried = {entry["weight"]: entry["validation ndcg@10"] for entry in metrics["blend"]["tried"]}
    assert tried[0.0] == pytest.approx(metrics["alone"]["validation"]["ndcg@10"])
    assert max(tried, key=lambda weight: tried[weight]) == metrics["blend"]["weight"]
    printed = (blended_run.path.parent / "printed").read_text()
    assert f"{metrics['alone']['test']['ndcg@10']:.4f}" in printed
    assert f"{metrics['test']['ndcg@10']:.4f}" in printed
    assert "walks + item-kNN" in printed


def test_the_bundle_of_a_blend_ranks_as_the_run_does(blended_run: RunFolder, tmp_path: Path) -> None:
    folder = export(blended_run, tmp_path, version="v1")
    bundle = read_bundle(folder)
    assert bundle.neighbours is not None
    assert bundle.manifest.metrics["blend"] == blended_run.metrics()["blend"]
    assert bundle.manifest.parity.top_k_agreed
    run, served = assess(blended_run.path), assess(folder, data=blended_run.spec().files)
    assert (run.evaluation.ranks != served.evaluation.ranks).mean() < 0.02
    assert run.evaluation.metrics()["ndcg@10"] == pytest.approx(blended_run.metrics()["test"]["ndcg@10"])
    assert run.alone == blended_run.metrics()["alone"]["test"]

    # And through the very path that serves: the first ten of every user are those of the scores.
    prepared = blended_run.data()
    histories = prepared.split.validation.histories
    sequences = [histories[user] for user in range(len(histories))]
    runtime = Runtime(bundle, device="cpu")
    vectors = runtime.encode(sequences)
    indices, scores = runtime.rank(vectors, sequences, 10, sequences)
    half = Runtime(bundle, device="cpu", bound=True, float16=True)
    np.testing.assert_array_equal(half.rank(half.encode(sequences), sequences, 10, sequences)[0], indices)
    truth = vectors @ bundle.items.T + bundle.neighbours.bonus(sequences)
    np.testing.assert_allclose(np.take_along_axis(truth, indices, axis=1), scores, atol=1e-4)


@pytest.mark.parametrize("former", [False, True])
def test_a_last_fit_on_everything_keeps_the_weight_and_learns_the_newest_neighbours(
    blended_run: RunFolder, former: bool
) -> None:
    from rich.console import Console

    from training.train import refit

    if former:  # judged before the item-kNN of a blend was chosen
        metrics = blended_run.metrics()
        del metrics["blend"]["backward"]
        blended_run.finish(metrics)
        shutil.rmtree(blended_run.path / "refit", ignore_errors=True)
    prepared, judged = blended_run.data(), blended_run.metrics()["blend"]
    whole = refit(blended_run, prepared, Console(file=io.StringIO()))
    found, before = whole.neighbours(), blended_run.neighbours()
    assert found is not None
    assert before is not None
    items = prepared.dataset.vocabulary.items
    knn = partner(prepared.dataset.sequences, items, judged.get("backward"))
    expected = strongest(knn.matrix * judged["weight"], judged["width"])
    np.testing.assert_allclose(found.affinities, expected.affinities)
    assert found.affinities.sum() != pytest.approx(before.affinities.sum(), rel=0.01)


def test_without_the_option_there_is_no_blend(finished_run: RunFolder, published: Path) -> None:
    assert finished_run.neighbours() is None
    assert not {"alone", "blend"} & set(finished_run.metrics())
    assert read_bundle(published).neighbours is None
    assert not list(published.glob("neighbours*"))
