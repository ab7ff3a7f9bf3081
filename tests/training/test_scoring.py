"""How a catalogue is searched is chosen at export by what is measured there."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.bundle import Bundle, read_bundle
from models.draft import Content
from models.manifest import Scoring
from models.runtime import Runtime
from training import scoring
from training.export import certify, export
from training.run import RunFolder
from training.scoring import Asked, better, with_scoring

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def content(published: Path) -> Content:
    bundle = read_bundle(published)
    values: dict[str, Any] = {field.name: getattr(bundle, field.name, None) for field in fields(Content)}
    values["manifest"] = bundle.manifest.model_copy(update={"files": {}, "seal": ""})
    values |= {"encoder": bundle.encoder.read_bytes(), "ranker": bundle.ranker.read_bytes(), "shortlist": None}
    return Content(**values)


def grown(content: Content, items: int = 4000) -> Content:
    """The same with many more items, near those it has."""
    generator = np.random.default_rng(0)
    copies = content.items[1 + np.arange(items) % content.manifest.items]
    matrix = np.concatenate([np.zeros_like(content.items[:1]), copies])
    matrix[content.manifest.items + 1 :] += 0.1 * generator.normal(size=matrix[content.manifest.items + 1 :].shape)
    popularity = np.concatenate([[0], generator.integers(0, 9, items)])
    manifest = content.manifest.model_copy(update={"items": items})
    ids = ["", *map(str, range(items))]
    return replace(
        content, manifest=manifest, items=matrix, ids=ids, popularity=popularity.astype(np.float32), attributes=None
    )


def test_a_small_catalogue_needs_no_scan(content: Content) -> None:
    assert with_scoring(content, "auto") == with_scoring(content, "float32") == content


def test_of_a_large_catalogue_both_are_measured_and_the_manifest_keeps_it(
    content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "SCAN_FROM", 1000)
    found = with_scoring(grown(content), "auto")
    recorded = found.manifest.scoring
    assert found.scan is not None
    assert (found.quantised is not None) == (recorded.kind == "int8")  # whichever was better here
    assert (recorded.kind == "int8") == better(recorded)
    assert recorded.milliseconds_float32.keys() == recorded.milliseconds_int8.keys() == {1, 32}
    assert min(*recorded.milliseconds_float32.values(), *recorded.milliseconds_int8.values()) > 0
    assert recorded.recall_int8 == 1


def test_what_is_asked_for_is_done(content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "SCAN_FROM", 1000)
    plain = with_scoring(grown(content), "float32")
    assert plain.scan is not None
    assert (plain.quantised, plain.manifest.scoring) == (None, Scoring())  # nothing had to be measured
    assert with_scoring(grown(content), "int8").manifest.scoring.kind == "int8"


@pytest.mark.parametrize(
    ("float32", "int8", "recall", "taken"),
    [(50.0, 49.0, 0.99, True), (50.0, 50.0, 1.0, False), (50.0, 60.0, 1.0, False), (50.0, 9.0, 0.98, False)],
)
def test_int8_is_taken_where_it_ranks_a_full_batch_sooner_and_finds_the_same(
    float32: float, int8: float, recall: float, taken: bool
) -> None:
    measured = Scoring(
        milliseconds_float32={1: 9.0, 32: float32}, milliseconds_int8={1: 9.5, 32: int8}, recall_int8=recall
    )
    assert better(measured) == taken


def test_an_export_with_int8_is_certified_and_says_so(finished_run: RunFolder, tmp_path: Path) -> None:
    bundle: Bundle = read_bundle(export(finished_run, tmp_path, version="v8", scoring="int8"))
    assert bundle.manifest.scoring.kind == "int8"
    assert bundle.manifest.parity.top_k_agreed
    Runtime(bundle, device="cpu").replay_golden()


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_a_scan_is_certified_against_torch(
    finished_run: RunFolder, content: Content, monkeypatch: pytest.MonkeyPatch, kind: Asked
) -> None:
    monkeypatch.setattr(scoring, "SCAN_FROM", 1)
    assert certify(with_scoring(content, kind), finished_run.model()).top_k_agreed
