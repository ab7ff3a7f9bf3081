"""Items that stand near each other in histories begin near each other, by hand and on walks around a circle."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from models.sasrec import SASRec, SASRecConfig
from tests.training.test_baselines import sequences
from training.baselines import ItemKNN
from training.beginnings import item_vectors
from training.dataset import build_dataset
from training.evaluate import evaluate
from training.interactions import read_interactions
from training.next_item import ModelScorer
from training.report import terminal
from training.run import RunFolder
from training.splits import split_leave_one_out
from training.train import train


def test_two_items_that_are_near_each_other_begin_at_one_place_and_one_that_is_near_none_at_zero() -> None:
    # The matrix has one pair of equal numbers: its largest eigenvalue has the vector (1, 1, 0).
    vectors = item_vectors(sequences([[1, 2], [3]]), 3, 2)
    assert vectors.shape == (4, 2)
    assert vectors[1] == pytest.approx(vectors[2], abs=1e-6)
    assert np.abs(vectors[1]).max() > 0
    assert np.abs(vectors[[0, 3]]).max() < 1e-6
    assert vectors[1:3].std() == pytest.approx(0.05, rel=1e-5)


def test_their_products_are_the_nearest_there_are_to_the_counts_of_neighbours() -> None:
    generator = np.random.default_rng(3)
    train = sequences([generator.integers(1, 31, 9).tolist() for _ in range(40)])
    counts = ItemKNN(train, 30, backward=lambda gap: 1 / gap).matrix.toarray()
    assert counts == pytest.approx(counts.T)
    values, vectors = np.linalg.eigh(counts)
    best = (vectors[:, -8:] * values[-8:]) @ vectors[:, -8:].T
    found = item_vectors(train, 30, 8)
    products = found @ found.T
    assert products * (best[1, 1] / products[1, 1]) == pytest.approx(best, abs=1e-4)


def test_many_groups_that_share_nothing_come_out_the_same_every_time() -> None:
    train = sequences([[2 * pair + 1, 2 * pair + 2] for pair in range(600)])  # of one eigenvalue all of them
    vectors = item_vectors(train, 1200, 16)
    assert np.isfinite(vectors).all()
    assert vectors.tolist() == item_vectors(train, 1200, 16).tolist()
    apart = np.linalg.norm(vectors[1::2] - vectors[2::2], axis=1) / np.linalg.norm(vectors[1::2], axis=1)
    assert np.median(apart) < 0.1


def test_few_items_with_neighbours_begin_no_further_away_than_many() -> None:
    vectors = item_vectors(sequences([[1, 2], *([item] for item in range(3, 901))]), 900, 64)
    assert np.linalg.norm(vectors[1]) == pytest.approx(0.05 * 8, rel=0.1)
    assert not vectors[3:].any()


def test_where_no_items_are_near_each_other_nothing_is_added() -> None:
    assert item_vectors(sequences([[1], [2], [3]]), 3, 4).tolist() == np.zeros((4, 4)).tolist()


def test_a_model_that_begins_so_ranks_before_it_has_learned(walks: Callable[..., pl.DataFrame], tmp_path: Path) -> None:
    walks(300, 30).write_csv(tmp_path / "log.csv")
    dataset = build_dataset(read_interactions([tmp_path / "log.csv"]))
    split = split_leave_one_out(dataset)
    items = dataset.vocabulary.items

    def ndcg(*, begun: bool) -> float:
        torch.manual_seed(0)
        model = SASRec(SASRecConfig(dim=16, blocks=1, inner=16, length=8), items)
        if begun:
            with torch.no_grad():
                model.item_embedding.weight += torch.from_numpy(item_vectors(split.train, items, 16))
        return float(evaluate(ModelScorer(model), split.validation, items).metrics()["ndcg@10"])

    assert ndcg(begun=True) > ndcg(begun=False) + 0.2


def test_a_run_begins_as_its_configuration_says(
    finished_run: RunFolder, tiny_config: Callable[..., Any], tmp_path: Path
) -> None:
    spec = finished_run.spec()
    config = tiny_config(epochs=1, beginning="neighbours")
    begun = train(spec.model_copy(update={"config": config}), finished_run.data(), tmp_path / "begun", terminal())
    config = tiny_config(epochs=1)
    random = train(spec.model_copy(update={"config": config}), finished_run.data(), tmp_path / "random", terminal())
    first, second = (run.metrics()["validation"]["ndcg@10"] for run in (begun, random))
    assert first > second
