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
from training.scoring import ScoringError, chosen, with_scoring

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def content(published: Path) -> Content:
    bundle = read_bundle(published)
    values: dict[str, Any] = {field.name: getattr(bundle, field.name, None) for field in fields(Content)}
    values["manifest"] = bundle.manifest.model_copy(update={"files": {}, "seal": ""})
    values |= {"encoder": bundle.encoder.read_bytes(), "ranker": bundle.ranker.read_bytes()}
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
    assert with_scoring(content, "auto") == with_scoring(content, "exact") == content


def test_a_large_catalogue_is_scanned_exactly(content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "SCAN_FROM", 1000)
    found = with_scoring(grown(content), "auto")
    assert found.scan is not None
    assert found.quantised is None
    assert found.manifest.scoring.kind == "exact"
    assert found.manifest.scoring.recall_at_10 is None  # nothing had to be measured


def test_beyond_the_limit_both_are_measured_and_the_manifest_keeps_it(
    content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "SCAN_FROM", 1000)
    monkeypatch.setattr(scoring, "EXACT_UP_TO", 1000)
    found = with_scoring(grown(content), "auto")
    recorded = found.manifest.scoring
    assert found.scan is not None
    assert (found.quantised is not None) == (recorded.kind == "approximate")  # whichever was quicker here
    assert recorded.recall_at_10 is not None
    assert recorded.recall_at_10 >= 0.99
    assert recorded.milliseconds_exact.keys() == recorded.milliseconds_int8.keys() == {1, 32}
    assert min(*recorded.milliseconds_exact.values(), *recorded.milliseconds_int8.values()) > 0


@pytest.mark.parametrize(
    ("recall", "exact_ms", "int8_ms", "kind"),
    [
        (0.99, 50.0, 49.0, "approximate"),
        (0.9899, 50.0, 10.0, "exact"),
        (1.0, 50.0, 50.0, "exact"),
    ],
)
def test_int8_is_taken_where_it_finds_enough_and_is_quicker(
    recall: float, exact_ms: float, int8_ms: float, kind: str
) -> None:
    measured = Scoring(
        recall_at_10=recall, milliseconds_exact={1: 9.0, 32: exact_ms}, milliseconds_int8={1: 9.0, 32: int8_ms}
    )
    assert chosen("auto", measured) == kind
    if recall >= 0.99:
        assert chosen("int8", measured) == "approximate"  # it was asked for
    else:
        with pytest.raises(ScoringError, match=r"finds 0\.9899 .* --scoring exact"):
            chosen("int8", measured)


def test_an_export_with_int8_is_certified_and_says_so(finished_run: RunFolder, tmp_path: Path) -> None:
    bundle: Bundle = read_bundle(export(finished_run, tmp_path, version="v8", scoring="int8"))
    assert bundle.manifest.scoring.kind == "approximate"
    assert bundle.manifest.scoring.recall_at_10 == 1.0
    assert bundle.manifest.parity.top_k_agreed
    runtime = Runtime(bundle, device="cpu")
    runtime.replay_golden()
    assert runtime.scoring == "approximate"


def test_an_exact_scan_is_certified_against_torch(
    finished_run: RunFolder, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "SCAN_FROM", 1)
    assert certify(with_scoring(content, "auto"), finished_run.model()).top_k_agreed
