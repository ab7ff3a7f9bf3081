"""Retraining through its command: who becomes champion, by which data, and what an operator is told."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import redis

from models.bundle import Content, read_bundle, write_bundle
from models.eventlog import LoggedEvent, encode, log_key, partition_of
from models.registry import Registry
from training.__main__ import main

GOOD = """
[model]
dim = 16
blocks = 1
heads = 2
inner = 16
length = 8
dropout = 0.1

[training]
batch = 16
epochs = 10
learning_rate = 0.01
"""
USELESS = GOOD.replace("epochs = 10", "epochs = 1").replace("learning_rate = 0.01", "learning_rate = 1e-9")


@dataclass
class Desk:
    """A folder to retrain in. The log is walks whose times overlap, so that any moment cuts some."""

    folder: Path
    capsys: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch

    def retrain(self, config: str, *options: str) -> tuple[int, str, str]:
        """Exit status, standard output, and standard error."""
        path = self.folder / "mine.toml"
        path.write_text(config)
        words = ["retrain", "--config", str(path), "--data", str(self.folder / "log.csv"), *options]
        self.monkeypatch.setattr("sys.argv", ["training", *words, "--output", str(self.folder / "artifacts")])
        try:
            status = main()
        except SystemExit as left:  # how the command line ends when all went well
            status = int(left.code or 0)
        return status, *self.capsys.readouterr()

    @property
    def registry(self) -> Registry:
        return Registry(self.folder / "artifacts")


@pytest.fixture
def desk(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    walks: Callable[..., pl.DataFrame],
    one_thread: None,
) -> Desk:
    log = walks(250, 40)
    order = pl.int_range(pl.len()).over("user_id")
    starts = pl.col("timestamp").first().over("user_id")
    log.with_columns(timestamp=starts + order * 100_000_000).write_csv(tmp_path / "log.csv")
    return Desk(tmp_path, capsys, monkeypatch)


@pytest.fixture
def store() -> Iterator[tuple[str, redis.Redis]]:
    from service.embedded import EmbeddedStore

    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedStore(Path(folder)) as running,
        redis.Redis.from_url(running.url) as client,
    ):
        yield running.url, client


def add(client: redis.Redis, user: str, event: str, **changes: Any) -> None:
    values = {"item_id": "i1", "type": "view", "timestamp_ms": 1_600_000_000_000} | changes
    logged = LoggedEvent(user_id=user, event_id=event, **values)
    flat = encode(logged)
    client.xadd(log_key(partition_of(user)), dict(zip(flat[::2], flat[1::2], strict=True)))


def test_the_first_model_is_promoted_and_has_learned_from_the_live_events_too(
    desk: Desk, store: tuple[str, redis.Redis]
) -> None:
    url, client = store
    for step in range(8):
        add(client, "live", f"e{step}", item_id=f"new{step}", timestamp_ms=1_600_000_000_000 + step)
    add(client, "live", "e3", item_id="new3", timestamp_ms=1_600_000_000_003)  # delivered twice
    add(client, "live", "shown", item_id="never-liked", type="impression")
    status, out, error = desk.retrain(GOOD, "--events-from", url)
    assert (status, error) == (0, "")
    assert "event log: 9 events" in out
    champion = desk.registry.current()
    assert champion is not None
    assert f"champion is {champion} (before: none)" in out.replace("\n", " ")
    assert champion.endswith("-mine")
    bundle = read_bundle(desk.registry.folder(champion))
    rows = (desk.folder / "log.csv").read_text().count("\n") - 1
    assert set(bundle.manifest.data.files) == {"log.csv", "events"}
    assert (bundle.manifest.data.users, bundle.manifest.data.interactions) == (251, rows + 8)
    assert bundle.index_of.keys() >= {f"new{step}" for step in range(8)}
    assert "never-liked" not in bundle.index_of
    assert bundle.popularity[bundle.index_of["new3"]] == 1
    test = bundle.manifest.metrics["test"]
    assert isinstance(test, dict)
    assert isinstance(test["hr@10"], float)
    assert test["hr@10"] > 0.5  # of walks that follow a rule
    assert not list((desk.folder / "artifacts" / "runs").glob("*/checkpoint*"))  # nightly runs must not fill the disk


def test_a_worse_challenger_is_kept_and_the_champion_stays(desk: Desk) -> None:
    assert desk.retrain(GOOD)[0] == 0
    champion = desk.registry.current()
    assert champion is not None
    status, out, error = desk.retrain(USELESS)
    assert status == 3
    assert desk.registry.current() == champion
    (challenger,) = set(desk.registry.versions()) - {champion}
    assert error.startswith("not promoted: ndcg@10 0.")
    assert f"champion stays {champion}, challenger kept as {challenger}" in error
    assert "same" in error
    assert "note:" not in out  # the window is later than all that the champion learned from

    # A champion that has seen everything is judged by what it knows, which the operator is told.
    bundle = read_bundle(desk.registry.folder(champion))
    assert bundle.manifest.data.last_ms is not None
    window = bundle.manifest.data.model_copy(update={"trained_until_ms": bundle.manifest.data.last_ms})
    values = {field.name: getattr(bundle, field.name) for field in fields(Content)}
    values |= {"encoder": bundle.encoder.read_bytes(), "ranker": bundle.ranker.read_bytes()}
    values["manifest"] = bundle.manifest.model_copy(update={"version": "knows-it-all", "data": window, "seal": ""})
    write_bundle(desk.registry.artifacts, Content(**values))
    desk.registry.promote("knows-it-all")
    status, out, _ = desk.retrain(USELESS.replace("1e-9", "2e-9"), "--seed", "1")
    assert (status, desk.registry.current()) == (3, "knows-it-all")
    assert "it has seen part of the window it is judged by" in " ".join(out.split())


def test_an_unreachable_store_is_one_sentence_and_changes_nothing(desk: Desk) -> None:
    status, out, error = desk.retrain(GOOD, "--events-from", "redis://127.0.0.1:1")
    assert (status, out) == (1, "")
    assert error.startswith("error: cannot read the event log")
    assert error.count("\n") == 1
    assert not (desk.folder / "artifacts").exists()


def test_a_log_without_times_cannot_be_judged_by_time(desk: Desk) -> None:
    log = desk.folder / "log.csv"
    pl.read_csv(log).drop("timestamp").write_csv(log)
    status, _, error = desk.retrain(GOOD)
    assert status == 1
    assert "needs timestamps" in error


def test_the_gate_compares_the_same_users_and_lets_a_draw_pass() -> None:
    from training.evaluate import Evaluation
    from training.gate import compare

    def judged(ranks: list[int]) -> Evaluation:
        return Evaluation(np.array(ranks), np.ones(len(ranks), np.bool_), 1.0)

    assert compare(judged([1, 3]), judged([3, 1])).promote
    better = compare(judged([1, 1, 20]), judged([1, 3, 20]))
    assert better.promote
    assert "ndcg@10 0.6667, champion 0.5000 on the same 3 users (difference +0.1667" in better.reason
    assert not compare(judged([1, 3]), judged([1, 1])).promote


def test_a_champion_is_scored_by_ids_whatever_rows_its_items_have(published: Path) -> None:
    from models.runtime import Runtime
    from training.dataset import Sequences, Vocabulary
    from training.gate import BundleScorer

    bundle = read_bundle(published)
    runtime = Runtime(bundle, device="cpu")
    vocabulary = Vocabulary(("", "unknown", "i9", "i3", "other", "i5"))
    histories = Sequences(np.array([3, 1, 2, 4], np.int32), np.array([0, 3]), np.array([3, 4]))
    scores = BundleScorer(runtime, vocabulary)(histories)
    known = runtime.encode([bundle.indices(["i3", "i9"]), bundle.indices([])])
    expected = known @ bundle.items.T
    for column, name in enumerate(vocabulary.ids):
        if name in ("i9", "i3", "i5"):
            np.testing.assert_allclose(scores[:, column], expected[:, bundle.index_of[name]], rtol=1e-5)
        else:
            assert (scores[:, column] == -np.inf).all()  # neither padding nor what it has never seen
