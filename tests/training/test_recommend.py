"""Batch inference gives every user what the bundle would serve, one user at a time the oracle."""

import io
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from models.bundle import Bundle, read_bundle
from models.neighbours import Neighbours
from models.runtime import Runtime
from training import recommend as module
from training.interactions import Interactions, interactions_from_frame
from training.recommend import RecommendError, Written, recommend

ITEMS = 12


def log(histories: dict[str, list[str]]) -> Interactions:
    rows = [(user, item) for user, history in histories.items() for item in history]
    return interactions_from_frame(pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row"), source="log")


@pytest.fixture(params=[False, True], ids=["alone", "blended"])
def bundle(request: pytest.FixtureRequest, make_bundle: Callable[..., Path]) -> Bundle:
    """Scores are small integers, so that there are ties; item i12 was never seen by whoever is popular."""
    table = np.random.default_rng(4).integers(0, 4, (ITEMS + 1, ITEMS)).astype(float)
    items, affinities = np.zeros((ITEMS + 1, 2), np.int32), np.zeros((ITEMS + 1, 2), np.float32)
    for row in range(1, ITEMS + 1):
        items[row], affinities[row] = [row % ITEMS + 1, (row + 4) % ITEMS + 1], [2, 1]
    neighbours = Neighbours(items, affinities) if request.param else None
    return read_bundle(make_bundle("v1", table=table, neighbours=neighbours))


def written(bundle: Bundle, interactions: Interactions, output: Path, k: int = 3) -> tuple[pl.DataFrame, Written]:
    runtime = Runtime(bundle, device="cpu", threads=1)
    told = recommend(runtime, interactions, output, k=k, console=Console(file=io.StringIO()))
    return pl.read_parquet(output) if output.suffix == ".parquet" else pl.read_csv(output), told


def served(bundle: Bundle, history: list[str], k: int) -> list[tuple[str, float, str]]:
    """What the engine answers to one query."""
    from service.engine import Engine, Query

    engine = Engine(Runtime(bundle, device="cpu", threads=1))
    sequence = bundle.indices(history)
    source = "model" if len(sequence) else "popular"
    query = Query(sequence, sequence, k)
    ranking = engine.rank([query])[0] if len(sequence) else engine.popular(query)
    return [(bundle.ids[index], score, source) for index, score in zip(ranking.indices, ranking.scores, strict=True)]


def test_every_user_gets_what_would_be_served(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_USERS_AT_ONCE", 7)
    monkeypatch.setattr(module, "_ROWS_A_PART", 20)
    generator = np.random.default_rng(0)
    histories = {
        f"u{user}": [f"i{item}" for item in generator.integers(1, 16, generator.integers(1, 12))] for user in range(60)
    }
    histories |= {"stranger": ["i99", "i98"], "other": ["i77"], "sated": [f"i{item}" for item in range(1, 13)]}
    for k in (3, ITEMS + 5):
        frame, told = written(bundle, log(histories), tmp_path / "top.parquet", k)
        assert frame.columns == ["user_id", "rank", "item_id", "score", "source"]
        found: dict[str, list[tuple[str, float, str]]] = {user: [] for user in histories}
        for user, rank, item, score, source in frame.iter_rows():
            found[user].append((item, score, source))
            assert rank == len(found[user])
        for user, history in histories.items():
            expected = served(bundle, history, k)
            assert [row[0::2] for row in found[user]] == [row[0::2] for row in expected], user
            assert [row[1] for row in found[user]] == pytest.approx([row[1] for row in expected], abs=1e-5)
        assert found["sated"] == []  # nothing is left
        assert {source for _, _, source in found["stranger"]} == {"popular"}
        strangers = sum(not any(int(item[1:]) <= ITEMS for item in history) for history in histories.values())
        assert (told.by_model, told.by_popularity) == (len(histories) - strangers, strangers)
        assert told.rows == frame.height
        order = list(dict.fromkeys(frame["user_id"]))
        assert order == [user for user in histories if found[user]]  # as they first appear in the log


def test_csv_holds_what_parquet_does(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_USERS_AT_ONCE", 4)
    histories = {f"u{user}": [f"i{user % 12 + 1}"] for user in range(20)} | {'odd, "one"': ["i3"]}
    for rows in (10, 10**6):  # in several parts and in one
        monkeypatch.setattr(module, "_ROWS_A_PART", rows)
        parquet, _ = written(bundle, log(histories), tmp_path / "top.parquet")
        csv, _ = written(bundle, log(histories), tmp_path / "top.csv")
        assert csv.rows() == parquet.rows()
        assert csv.height == 63
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["top.csv", "top.parquet"]


def test_an_interrupted_run_leaves_the_old_file_and_nothing_else(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out" / "top.csv"
    written(bundle, log({"u": ["i1"]}), output)
    before = output.read_bytes()
    monkeypatch.setattr(module, "_USERS_AT_ONCE", 1)
    ranked, calls = Runtime.rank, iter([False, False, True])

    def dies(self: Runtime, *arguments: Any) -> Any:
        if next(calls):
            raise KeyboardInterrupt
        return ranked(self, *arguments)

    monkeypatch.setattr(Runtime, "rank", dies)
    with pytest.raises(KeyboardInterrupt):
        written(bundle, log({f"u{user}": ["i2"] for user in range(5)}), output)
    assert output.read_bytes() == before
    assert list(output.parent.iterdir()) == [output]


def test_what_cannot_be_made_is_said(bundle: Bundle, tmp_path: Path, make_bundle: Callable[..., Path]) -> None:
    with pytest.raises(RecommendError, match=r"must end in \.parquet or \.csv"):
        written(bundle, log({"u": ["i1"]}), tmp_path / "top.json")
    with pytest.raises(RecommendError, match="k is 0"):
        written(bundle, log({"u": ["i1"]}), tmp_path / "top.csv", 0)
    table = np.ones((7, 6))
    table[5] = np.nan
    broken = read_bundle(make_bundle("v2", table=table))
    with pytest.raises(RecommendError, match="not finite"):
        written(broken, log({"u": ["i5"]}), tmp_path / "top.csv")
    assert not list(tmp_path.glob("*.csv"))


def test_the_command_says_how_fast_it_was(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.__main__ import main

    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "log.csv").write_text("who,what\nann,i1\nbob,i99\n")
    words = ["recommend", "v1", "--data", str(tmp_path / "log.csv"), "--user-column", "who", "--item-column", "what"]
    output = tmp_path / "top.csv"
    monkeypatch.setattr(
        "sys.argv", ["training", *words, "--k", "2", "--output", str(output), "--artifacts", str(bundle.folder.parent)]
    )
    with pytest.raises(SystemExit, match="0"):
        main()
    out = capsys.readouterr().out
    assert "4 rows for 2 users (1 of them by popularity)" in out
    assert "users/s" in out
    assert "\r" not in out  # no bar outside a terminal
    assert pl.read_csv(output)["source"].to_list() == ["model", "model", "popular", "popular"]


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_disk_without_room_is_named_and_nothing_is_left(
    make_bundle: Callable[..., Path], tmp_path: Path, suffix: str
) -> None:
    bundle = read_bundle(make_bundle("v1"))
    (tmp_path / "out").mkdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, limits[1]))  # bytes of any file of this process
    try:
        with pytest.raises(RecommendError, match=r"cannot be written .*; free space there"):
            written(bundle, log({"u": ["i1"], "v": ["i2"]}), tmp_path / "out" / f"top{suffix}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "out").iterdir()) == []
