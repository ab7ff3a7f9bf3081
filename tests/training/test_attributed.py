"""A run whose items share their attributes' vectors is a run like any other: it resumes, is judged, and is exported."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from rich.console import Console
from torch import nn

from models.bundle import read_bundle
from models.cold import Placing
from models.runtime import Runtime
from models.s3rec import S3RecConfig
from training.assessment import assess
from training.config import PretrainingConfig, S3RecRunConfig, TrainingConfig
from training.export import export
from training.interactions import Columns, read_interactions
from training.next_item import NextItem, SampledBatch
from training.preparation import Prepared, prepare, spec_of
from training.run import RunFolder
from training.spec import RunSpec
from training.train import train

ITEMS = 24
Given = tuple[RunSpec, Prepared]


@pytest.fixture
def given(tmp_path: Path, walks: Callable[..., pl.DataFrame]) -> Callable[..., Given]:
    """A run on walks over 24 items in eight colours, ready to train."""
    log, colours = tmp_path / "walks.csv", tmp_path / "colours.csv"
    walks(60, ITEMS).write_csv(log)
    pl.DataFrame(
        {"item_id": [f"i{n}" for n in range(ITEMS)], "colour": [f"c{n // 3}" for n in range(ITEMS)]}
    ).write_csv(colours)

    def make(*, known: bool = True, epochs: int = 3, shared: bool = True) -> Given:
        config = S3RecRunConfig(
            model=S3RecConfig(dim=16, length=8, inner=32, item_attributes=shared),
            pretraining=PretrainingConfig(epochs=1, batch=64),
            training=TrainingConfig(epochs=epochs, batch=16),
        )
        attributes = colours if known else None
        prepared = prepare(read_interactions([log]), config, split="loo", attributes=attributes)
        origin: dict[str, Any] = {"name": "coloured", "files": [log], "columns": Columns(), "attributes": attributes}
        return spec_of(config, prepared, **origin, split="loo", seed=1), prepared

    return make


def trained(given: Given, folder: Path) -> tuple[RunFolder, str]:
    """The finished run, and what it said."""
    said = io.StringIO()
    return train(*given, folder, Console(file=said, width=200)), said.getvalue()


def items_of(run: RunFolder) -> torch.Tensor:
    model = run.model()
    assert type(model.item_embedding) is nn.Embedding
    return model.item_matrix().detach()


@pytest.mark.usefixtures("one_thread")
def test_what_is_kept_is_what_was_judged_and_is_exported(given: Callable[..., Given], tmp_path: Path) -> None:
    run, said = trained(given(), tmp_path / "run")
    assert "learning from 8 attributes of 24 items" in said
    again = assess(run.path).evaluation.report()
    assert again["ndcg@10"] == pytest.approx(run.metrics()["test"]["ndcg@10"], abs=1e-6)
    bundle = read_bundle(export(run, tmp_path / "artifacts", version="v1"))
    np.testing.assert_array_equal(bundle.items, items_of(run).numpy())
    Runtime(bundle, device="cpu", bound=True, float16=True).replay_golden()
    assert bundle.learned is not None
    assert bundle.learned.names == [("colour", f"c{number}") for number in range(8)]
    placed = Placing(bundle.items, {}, bundle.popularity, norm=None, learned=bundle.learned).vector({"colour": "c5"})
    np.testing.assert_array_equal(placed, bundle.learned.vectors[5])
    alike = bundle.items @ np.array(placed) / np.maximum(np.linalg.norm(bundle.items, axis=1), 1e-9)
    own = [bundle.index_of[f"i{number}"] for number in (15, 16, 17)]
    assert alike[own].mean() > np.delete(alike, own).mean()


@pytest.mark.usefixtures("one_thread")
def test_a_run_in_two_parts_ends_as_one_in_one(given: Callable[..., Given], tmp_path: Path) -> None:
    whole, _ = trained(given(), tmp_path / "whole")
    ordinary = NextItem.batches

    def until_the_second_epoch(task: NextItem, epoch: int) -> Iterator[SampledBatch]:
        yield from ordinary(task, epoch)
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NextItem, "batches", until_the_second_epoch)
        with pytest.raises(KeyboardInterrupt):
            trained(given(), tmp_path / "parts")
    parts, _ = trained(given(), tmp_path / "parts")
    assert torch.equal(items_of(whole), items_of(parts))


@pytest.mark.usefixtures("one_thread")
def test_sharing_makes_items_of_a_colour_alike(given: Callable[..., Given], tmp_path: Path) -> None:
    def likeness(shared: bool) -> float:
        run, _ = trained(given(shared=shared), tmp_path / str(shared))
        items = nn.functional.normalize(items_of(run)[1:], dim=1)
        colour = torch.tensor([int(name[1:]) // 3 for name in run.ids()[1:]])
        same = (colour == colour[:, None]) & ~torch.eye(len(colour), dtype=torch.bool)
        return float((items @ items.T)[same].mean())

    assert likeness(shared=True) > likeness(shared=False) + 0.2


@pytest.mark.usefixtures("one_thread")
def test_without_attributes_the_same_configuration_learns_without(given: Callable[..., Given], tmp_path: Path) -> None:
    run, said = trained(given(known=False), tmp_path / "run")
    assert "no item attributes were given" in said
    assert items_of(run).shape == (ITEMS + 1, 16)
