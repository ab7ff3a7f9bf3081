"""Retraining through its command: who becomes champion, by which data, and what an operator is told."""

import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import redis

from models.bundle import read_bundle
from models.eventlog import LoggedEvent, digest_of, encode, log_key, partition_of
from models.manifest import MANIFEST, read_manifest, sealed
from models.registry import Registry
from tests.conftest import succession, write_tiny
from training.assessment import assess
from training.run import RunFolder

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
    command: Callable[..., tuple[int, str, str]]

    def retrain(self, config: str, *options: str) -> tuple[int, str, str]:
        """Exit status, standard output, and standard error."""
        return self.retrain_without_files(config, "--data", self.folder / "log.csv", *options)

    def retrain_without_files(self, config: str, *options: str | Path) -> tuple[int, str, str]:
        path = self.folder / "mine.toml"
        path.write_text(config)
        return self.command("retrain", "--config", path, "--output", self.folder / "artifacts", *options)

    @property
    def registry(self) -> Registry:
        return Registry(self.folder / "artifacts")


@pytest.fixture
def desk(
    tmp_path: Path,
    command: Callable[..., tuple[int, str, str]],
    walks: Callable[..., pl.DataFrame],
    one_thread: None,
) -> Desk:
    log = walks(250, 40)
    order = pl.int_range(pl.len()).over("user_id")
    starts = pl.col("timestamp").first().over("user_id")
    log.with_columns(timestamp=starts + order * 100_000_000).write_csv(tmp_path / "log.csv")
    return Desk(tmp_path, command)


@pytest.fixture(scope="module")
def first_artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the artifacts of the first test that needs a champion are kept, for those after it."""
    return tmp_path_factory.mktemp("first") / "artifacts"


@pytest.fixture
def champion(desk: Desk, first_artifacts: Path) -> str:
    """The version at the desk that a retraining on its log, with GOOD, has promoted."""
    here = desk.folder / "artifacts"
    if first_artifacts.exists():
        shutil.copytree(first_artifacts, here, symlinks=True)
    else:
        assert desk.retrain(GOOD)[0] == 0
        shutil.copytree(here, first_artifacts, symlinks=True)
    version = desk.registry.current()
    assert version is not None
    return version


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
    values: dict[str, Any] = {"item_id": "i1", "type": "view", "timestamp_ms": 1_600_000_000_000} | changes
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
    user, item, moment = pl.read_csv(desk.folder / "log.csv")["user_id", "item_id", "timestamp"].row(7)
    add(client, user, "sent", item_id=item, timestamp_ms=moment)  # as the files have it
    status, out, error = desk.retrain(GOOD, "--events-from", url)
    assert (status, error) == (0, "")
    assert "event log: 10 events" in out
    assert "not impression 1" in " ".join(out.split())
    assert "1 in the files and in the event log" in " ".join(out.split())
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


def test_logged_events_are_enough_to_learn_from(desk: Desk, store: tuple[str, redis.Redis]) -> None:
    url, client = store
    log = pl.read_csv(desk.folder / "log.csv")
    status, _, error = desk.retrain_without_files(GOOD, "--events-from", url)
    assert (status, error) == (
        1,
        "error: nothing that has been logged so far can be learned from; give --data too\n",
    )
    for number, (user, item, moment) in enumerate(log["user_id", "item_id", "timestamp"].rows()):
        add(client, user, f"e{number}", item_id=item, timestamp_ms=moment)
    status, _, error = desk.retrain_without_files(GOOD, "--events-from", url)
    assert (status, error) == (0, "")
    champion = desk.registry.current()
    assert champion is not None
    manifest = read_bundle(desk.registry.folder(champion)).manifest
    assert set(manifest.data.files) == {"events"}
    assert manifest.data.interactions == len(log)


def test_a_retraining_on_nothing_is_refused(desk: Desk) -> None:
    status, _, error = desk.retrain_without_files(GOOD)
    assert (status, error) == (
        1,
        "error: nothing to learn from: name interactions by --data, or logged events by --events-from\n",
    )


def test_a_worse_challenger_is_kept_and_the_champion_stays(desk: Desk, champion: str) -> None:
    status, out, error = desk.retrain(USELESS)
    assert status == 3
    assert desk.registry.current() == champion
    (challenger,) = set(desk.registry.versions()) - {champion}
    assert error.startswith("not promoted: ndcg@10 0.")
    assert f"champion stays {champion}, challenger kept as {challenger}" in error
    assert "same" in error
    # The champion was fitted again on everything, this window too, which the operator is told.
    assert "it has seen part of the window it is judged by" in " ".join(out.split())


def test_a_champion_that_comes_while_a_challenger_is_trained_stays(desk: Desk) -> None:
    artifacts = desk.folder / "artifacts"
    write_tiny(artifacts, "other", succession(12, 1), created="2026-01-01T00:00:00Z")

    def promote() -> None:
        while not list(artifacts.glob("runs/*")):
            time.sleep(0.01)
        desk.registry.promote("other")

    promoting = threading.Thread(target=promote)
    promoting.start()
    status, _, error = desk.retrain(GOOD)
    promoting.join()
    assert (status, desk.registry.current()) == (1, "other")
    (challenger,) = set(desk.registry.versions()) - {"other"}
    assert f"with which {challenger} was not compared" in error


def test_a_champion_of_ratings_is_judged_with_them_by_a_challenger_that_reads_none(desk: Desk) -> None:
    log = desk.folder / "log.csv"
    pl.read_csv(log).with_columns(value=pl.int_range(pl.len()) * 7 % 5 + 1).write_csv(log)
    assert desk.retrain('[model]\nname = "autorec"\nhidden = [8]\n[training]\nbatch = 16\nepochs = 3\n')[0] == 0
    champion = desk.registry.current()
    assert champion is not None
    judged = assess(desk.registry.folder(champion), data=[log], split="time").evaluation.metrics()["ndcg@10"]
    status, out, error = desk.retrain(USELESS)
    assert status in (0, 3), error
    assert f"champion {judged:.4f} on the same" in " ".join((out + error).split())


def test_events_that_came_after_the_champion_judge_and_are_learned(
    desk: Desk, champion: str, store: tuple[str, redis.Redis]
) -> None:
    """Known users go on where they were, a new item among what they take, and newcomers arrive."""
    url, client = store
    log = pl.read_csv(desk.folder / "log.csv")
    late = int(log["timestamp"].max()) + 1  # type: ignore[arg-type]
    for number, (user, item) in enumerate(
        log.group_by("user_id", maintain_order=True).last()["user_id", "item_id"].rows()
    ):
        follows = f"i{(int(item[1:]) + 1) % 40}"
        add(client, user, f"{number}a", item_id=follows, timestamp_ms=late + number)
        add(client, user, f"{number}b", item_id="new-item", timestamp_ms=late + 1_000_000 + number, type="purchase")
    for number in range(30):
        add(client, f"newcomer{number}", "e", item_id="i1", timestamp_ms=late + number)
    status, out, error = desk.retrain(GOOD, "--events-from", url)
    said = " ".join(out.split())
    assert (status, error) == (0, "")
    assert "note:" not in said  # what judged was later than all that the champion knew
    assert "not evaluated: 30 users, no history before" in said
    promoted = desk.registry.current()
    assert promoted not in (champion, None)
    bundle = read_bundle(desk.registry.folder(str(promoted)))
    data = bundle.manifest.data
    assert data.trained_until_ms == data.last_ms  # judged on less, then fitted on everything
    assert bundle.popularity[bundle.index_of["new-item"]] == 250
    assert bundle.popularity.sum() == len(log) + 530
    assert not list((desk.folder / "artifacts" / "runs").rglob("checkpoint*"))


def test_what_is_left_out_for_want_of_others_does_not_move_the_window_into_what_the_champion_knows(
    desk: Desk, champion: str
) -> None:
    """Of what is new two thirds are of items that are met once, and do not count."""
    until = read_bundle(desk.registry.folder(champion)).manifest.data.trained_until_ms
    assert until is not None
    log = pl.read_csv(desk.folder / "log.csv")
    ends = log.group_by("user_id", maintain_order=True).last()["user_id", "item_id"].rows()
    rows = [
        (user, item, until + 1 + 3 * number + turn)
        for number, (user, last) in enumerate(ends)
        for turn, item in enumerate([f"i{(int(last[1:]) + 1) % 40}", f"odd-{number}a", f"odd-{number}b"])
    ]
    later = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    pl.concat([log["user_id", "item_id", "timestamp"], later.cast({"timestamp": log["timestamp"].dtype})]).write_csv(
        desk.folder / "log.csv"
    )
    status, out, error = desk.retrain(f"{GOOD}\n[data]\nmin_item_interactions = 5\n")
    assert (status, error) == (0, "")
    assert "note:" not in out
    runs = [RunFolder(path.parent) for path in (desk.folder / "artifacts" / "runs").glob("*/run.json")]
    (run,) = [run for run in runs if run.spec().config.data.min_item_interactions == 5]
    cuts = run.data().split.cuts_ms
    assert cuts is not None
    assert cuts[1] > until


@pytest.mark.usefixtures("champion")
def test_a_log_of_newcomers_alone_is_learned_from_all_the_same(desk: Desk, store: tuple[str, redis.Redis]) -> None:
    url, client = store
    late = int(pl.read_csv(desk.folder / "log.csv")["timestamp"].max()) + 1  # type: ignore[arg-type]
    for number in range(300):
        add(client, f"newcomer{number}", "e", item_id="i1", timestamp_ms=late + number)
    status, out, error = desk.retrain(GOOD, "--events-from", url)
    assert status in (0, 3), error  # a wider window judges
    assert "note:" in out


@pytest.mark.parametrize("good", [True, False])
def test_what_training_cannot_use_of_the_log_is_counted_and_stops_nothing(
    desk: Desk, store: tuple[str, redis.Redis], *, good: bool
) -> None:
    url, client = store
    for number in range(200):
        add(client, "blank", f"e{number}", item_id=" ", timestamp_ms=5 + number)
    if good:  # milliseconds, although they look like seconds
        add(client, "old", "e", item_id="i1", timestamp_ms=17, value=1e300)
    status, out, error = desk.retrain(USELESS, "--events-from", url)
    assert (status, error) == (0, "")
    assert "200 item id empty" in " ".join(out.split())
    champion = desk.registry.current()
    assert champion is not None
    first = pl.read_csv(desk.folder / "log.csv")["timestamp"].min()
    assert desk.registry.manifest(champion).data.first_ms == (17 if good else first)


def test_titles_survive_a_retraining_without_attributes(desk: Desk) -> None:
    titles = desk.folder / "titles.csv"
    titles.write_text("item_id,title\ni1,First\ngone,Never seen\n")
    assert desk.retrain(GOOD, "--attributes", str(titles))[0] == 0
    first = desk.registry.current()
    assert desk.retrain(GOOD, "--seed", "1")[0] in (0, 3)
    (second,) = set(desk.registry.versions()) - {first}
    bundle = read_bundle(desk.registry.folder(second))
    assert bundle.attributes is not None
    assert bundle.attributes["title"][bundle.index_of["i1"]] == "First"
    assert sum(title is not None for title in bundle.attributes["title"]) == 1


SHARED = GOOD.replace("dim = 16", 'name = "s3rec"\nitem_attributes = true\ndim = 16') + "[pretraining]\nepochs = 1\n"


def test_titles_teach_nothing_and_stop_no_model_that_learns_from_attributes(desk: Desk) -> None:
    titles = desk.folder / "titles.csv"
    titles.write_text("item_id,title\ni1,First\ni2,Second\n")
    assert desk.retrain(USELESS, "--attributes", str(titles))[0] == 0
    status, out, error = desk.retrain(SHARED)
    assert (status, error) == (0, "")
    assert "no item attributes were given" in " ".join(out.split())


@pytest.mark.parametrize("by_variable", [False, True])
def test_an_unreachable_store_is_one_sentence_and_changes_nothing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, by_variable: bool
) -> None:
    if by_variable:
        monkeypatch.setenv("RETRAIN_EVENTS_FROM", f"redis://:secret@127.0.0.1:1 {tmp_path}")
        status, out, error = desk.retrain(GOOD)
    else:
        status, out, error = desk.retrain(GOOD, "--events-from", "redis://:secret@127.0.0.1:1")
    assert "secret" not in error
    assert str(tmp_path) not in error  # the folder behind the space is another source
    assert (status, out) == (1, "")
    assert error.startswith("error: cannot use the event log")
    assert error.count("\n") == 1
    assert not (desk.folder / "artifacts").exists()


def test_a_log_without_times_cannot_be_judged_by_time(desk: Desk) -> None:
    log = desk.folder / "log.csv"
    pl.read_csv(log).drop("timestamp").write_csv(log)
    status, _, error = desk.retrain(GOOD)
    assert status == 1
    assert "needs timestamps" in error
    assert "name their column with --timestamp-column, or take --split loo, which train and evaluate have" in error


def test_the_past_of_an_erased_user_that_was_sent_anew_is_not_learned(
    desk: Desk, store: tuple[str, redis.Redis]
) -> None:
    url, client = store
    log = pl.read_csv(desk.folder / "log.csv")
    user, item, moment = log["user_id", "item_id", "timestamp"].row(0)
    erased: dict[Any, Any] = {"schema": "1", "erased": digest_of(user), "upto": "1790000000000-0"}
    client.xadd(log_key(partition_of(user)), erased, id="1790000000000-0")
    add(client, user, "sent", item_id=item, timestamp_ms=moment)
    add(client, user, "since", item_id="since", timestamp_ms=1_790_000_000_002)
    status, out, error = desk.retrain(USELESS, "--events-from", url)
    assert (status, error) == (0, "")
    said = " ".join(out.split())
    assert f"{log.filter(pl.col('user_id') == user).height} user was erased" in said
    assert "1 in the files and in the event log" in said
    champion = desk.registry.current()
    assert champion is not None
    assert "since" in read_bundle(desk.registry.folder(champion)).index_of


def test_a_log_without_times_cannot_be_put_beside_logged_events(desk: Desk, store: tuple[str, redis.Redis]) -> None:
    url, client = store
    add(client, "live", "e")
    log = desk.folder / "log.csv"
    pl.read_csv(log).rename({"timestamp": "ts"}).write_csv(log)
    status, _, error = desk.retrain(GOOD, "--events-from", url)
    assert status == 1
    assert error == f"error: {log}: no times, which logged events have; name their --timestamp-column\n"


def test_a_verdict_of_chance_is_called_one(desk: Desk, champion: str) -> None:
    """Forty users who end in turn, and a champion of whom nobody knows what it has seen."""
    log = pl.read_csv(desk.folder / "log.csv")
    log.filter(pl.col("user_id").is_in(log["user_id"].unique().sort()[:40].to_list())).write_csv(
        desk.folder / "log.csv"
    )
    folder = desk.registry.folder(champion)
    manifest = read_manifest(folder)
    untimed = manifest.data.model_copy(update={"trained_until_ms": None})
    (folder / MANIFEST).chmod(0o644)
    (folder / MANIFEST).write_bytes(sealed(manifest.model_copy(update={"data": untimed})))
    status, out, error = desk.retrain(GOOD)
    assert status in (0, 3), error
    said = " ".join(out.split())
    assert re.search(r"note: only \d+ users judge", said)
    assert "it is not known until when the champion has learned" in said


def test_a_window_that_few_judge_is_better_than_a_wider_one_that_nobody_does(desk: Desk) -> None:
    """Thirty users whose past was imported with one time: a window of three tenths would leave nothing before it."""
    imported = [(f"u{user}", f"i{(user + step) % 9}", 1_700_000_000) for user in range(30) for step in range(5)]
    since = [
        (f"u{user}", f"i{(user * 3 + step) % 9}", 1_700_001_000 + user * 40 + step)
        for user in range(30)
        for step in range(4)
    ]
    rows = pl.DataFrame(imported + since, schema=["user_id", "item_id", "timestamp"], orient="row")
    rows.write_csv(desk.folder / "log.csv")
    status, out, error = desk.retrain(USELESS)
    assert (status, error) == (0, "")
    assert re.search(r"note: only \d+ users judge", " ".join(out.split()))


def test_the_gate_compares_the_same_users_and_lets_a_draw_pass() -> None:
    from training.evaluate import Evaluation
    from training.gate import compare

    def judged(ranks: list[int]) -> Evaluation:
        return Evaluation(np.array(ranks), {}, 1.0)

    assert compare(judged([1, 3]), judged([3, 1])).promote
    better = compare(judged([1, 1, 20]), judged([1, 3, 20]))
    assert better.promote
    assert "ndcg@10 0.6667, champion 0.5000 on the same 3 users (difference +0.1667" in better.reason
    assert not compare(judged([1, 3]), judged([1, 1])).promote


def test_a_champion_is_scored_by_ids_whatever_rows_its_items_have(published: Path) -> None:
    from models.runtime import Runtime
    from training.dataset import Sequences, Vocabulary
    from training.scorers import BundleScorer

    bundle = read_bundle(published)
    runtime = Runtime(bundle, device="cpu")
    vocabulary = Vocabulary(("", "unknown", "i9", "i3", "other", "i5"))
    histories = Sequences(np.array([3, 1, 2, 4], np.int32), np.array([0, 3]), np.array([3, 4]))
    scores = BundleScorer(runtime, vocabulary)(histories)
    known = runtime.encode([bundle.indices(["i3", "i9"])])
    expected = np.vstack([known @ bundle.items.T, bundle.popularity])  # nothing known of the second: what is popular
    for column, name in enumerate(vocabulary.ids):
        if name in ("i9", "i3", "i5"):
            np.testing.assert_allclose(scores[:, column], expected[:, bundle.index_of[name]], rtol=1e-5)
        else:
            assert (scores[:, column] == -np.inf).all()  # neither padding nor what it has never seen
