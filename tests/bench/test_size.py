"""Sizes from measured costs: by hand where they can be, by a real store, and as the page prints them."""

import asyncio
import json
import re
import tempfile
from pathlib import Path

import pytest
import redis

from bench.curves import CATALOGUE, SCAN_FROM, SERVING, Curve, CurvesError, Measured, Ranking, measured
from bench.size import main
from bench.sizing import EVENT_BYTES, LOGGED_BYTES, PROCESS_BYTES, SHARED_BYTES, USER_BYTES, Load, size
from models.vocabulary import MAPPED_FROM
from service.embedded import EmbeddedStore
from service.sequences import Event, SequenceStore, StoreSettings
from training import scoring

ROOT = Path(__file__).parents[2]
FLAT = Curve([(10, 0.001), (10**9, 0.001)])
STEEP = Curve([(1_000, 0.0001)])  # grows with the items
BY = Measured(
    {"float32": Ranking(STEEP, STEEP), "int8": Ranking(FLAT, STEEP)},
    dim=64,
    request_s=0.0011,
    request_items=1_000,
    event_s=0.002,
)


def test_a_curve_is_a_line_in_logarithms_and_goes_on_beyond_its_ends() -> None:
    curve = Curve([(100, 1.0), (10_000, 100.0), (1_000_000, 1_000.0)])
    assert [curve.at(items) for items in (100, 1_000, 10_000)] == pytest.approx([1, 10, 100])
    assert curve.at(100_000) == pytest.approx(100 * 10**0.5)
    assert curve.at(10) == pytest.approx(0.1)
    assert curve.at(100_000_000) == pytest.approx(10_000)
    assert curve.covers(100)
    assert not curve.covers(99)


def test_cores_are_what_requests_and_events_cost_over_the_share_that_is_planned_for() -> None:
    found = size(Load(10_000, 7, 500, events_per_s=100, share=0.5, machine_cores=4), BY)
    # Ranking 1 ms and the rest 1.1 - 0.1 ms: a core a second for 500 requests, a fifth of one for the events, doubled.
    assert (found.ranking_s, found.rest_s) == pytest.approx((0.001, 0.001))
    assert found.requests_per_core == pytest.approx(500)
    assert found.cores == pytest.approx(2.4)
    assert (found.replicas, found.workers) == (1, 3)
    found = size(Load(10_000, 7, 5_000, share=0.5, machine_cores=8), BY)
    assert found.cores == pytest.approx(20)
    assert (found.replicas, found.workers) == (3, 7)


def test_memory_is_shared_by_the_workers_of_a_machine_and_three_versions_are_there_while_one_loads() -> None:
    found = size(Load(1_000, 0, 1_500, columns=32, batch=10, share=1, machine_cores=8), BY)
    assert found.workers == 2
    assert (found.matrix_bytes, found.int8_bytes) == (128_000, 0)
    of_version = 235 * 1_000 + 4 * 1_000 * 10
    assert found.worker_bytes == PROCESS_BYTES + of_version
    assert found.replica_bytes == SHARED_BYTES + 128_000 + 2 * found.worker_bytes
    assert found.loading_bytes == found.replica_bytes + 2 * 128_000 + 2 * 2 * of_version


def test_scores_are_bounded_and_of_a_scan_only_maxima() -> None:
    one_run = size(Load(SCAN_FROM - 1, 0, 1, batch=1_000), BY).worker_bytes - PROCESS_BYTES
    assert one_run == 16 * (SCAN_FROM - 1) + 2**28
    scan = size(Load(512_000, 0, 1, batch=64, scoring="int8"), BY).worker_bytes - PROCESS_BYTES
    assert scan == 16 * 512_000 + 4 * 64 * (512_000 // 16 + 512_000 // 512) + 4 * 512_000


def test_ids_of_a_large_catalogue_are_shared_by_the_workers_of_a_machine() -> None:
    found = size(Load(MAPPED_FROM, 0, 15_000, columns=32, batch=10, share=1), BY)
    assert found.workers > 1
    beside = SHARED_BYTES + found.workers * found.worker_bytes
    assert found.replica_bytes == beside + MAPPED_FROM * (4 * 32 + 30)


def test_a_large_catalogue_takes_int8_where_it_is_quicker_and_a_copy_in_bytes() -> None:
    assert size(Load(SCAN_FROM - 1, 0, 1), BY).way == "float32"
    large = size(Load(SCAN_FROM, 0, 1), BY)
    assert (large.way, large.int8_bytes) == ("int8", (SCAN_FROM) * 64)
    assert size(Load(SCAN_FROM, 0, 1, scoring="float32"), BY).way == "float32"
    assert scoring.SCAN_FROM == SCAN_FROM


@pytest.mark.parametrize("history", [5, 50])
def test_histories_take_the_bytes_of_a_real_store(history: int) -> None:
    users = 200
    with tempfile.TemporaryDirectory() as folder, EmbeddedStore(Path(folder)) as store:
        asyncio.run(fill(store.url, users, history))
        client = redis.Redis.from_url(store.url)
        taken = sum(int(client.memory_usage(key, samples=0) or 0) for key in client.scan_iter("*:[hd]:*"))
        client.close()
    found = size(Load(10, users, 1, history=history, logged=2_000), BY)
    assert 0.7 * found.histories_bytes <= taken <= found.histories_bytes
    assert found.histories_bytes == users * (USER_BYTES + EVENT_BYTES * history)
    assert found.log_bytes == 2_000 * LOGGED_BYTES


async def fill(store_url: str, users: int, history: int) -> None:
    async with SequenceStore.connect(store_url, StoreSettings()) as sequences:
        for user in range(users):
            await sequences.append(
                [
                    Event(f"user{user:04d}", f"item{at:04d}", f"e{user:04d}{at}", "click", 1_700_000_000_000 + at)
                    for at in range(history)
                ]
            )


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Measurements of a machine: a request in 2 ms, of which ranking takes 1 ms; on two threads."""
    figures = [
        {"items": items, "dim": 64, "way": way, "milliseconds": {"1": items / 1_000, "32": 16 * items / 12_000}}
        for way in ("one run", "float32 scan", "int8 scan")
        for items in (12_000, 1_200_000)
    ]
    (tmp_path / CATALOGUE).write_text(json.dumps({"threads": 2, "vectors": "", "figures": figures}))
    rows = [
        {"name": "1,200,000 items: service, one worker", "value": 9.0},
        {"name": "12,000 items: service, one worker", "value": 500.0},
        {"name": "12,000 items: events, one a request", "value": 100.0},
    ]
    (tmp_path / SERVING).write_text(json.dumps(rows))
    return tmp_path


def test_what_this_machine_has_measured_takes_the_place_of_the_record(own: Path) -> None:
    by = measured(own)
    assert by.beside_ranking_s == pytest.approx(0.001)
    assert by.rankings["float32"].together.at(120_000) == pytest.approx(0.010)
    assert by.rankings["float32"].alone.at(12_000) == pytest.approx(0.024)  # of a core: there were two threads
    assert by.event_s == pytest.approx(0.01)
    assert all(str(own) in source and "of this machine" in source for source in by.sources)


def test_files_that_cannot_be_used_are_named(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--items", "1e5", "--users", "10", "--rps", "5", "--measured", str(own)]
    assert main(asked) == 0
    capsys.readouterr()
    (own / SERVING).write_text(json.dumps([{"name": "300 items: service, one worker", "value": 9.0}]))
    assert main(asked) == 1
    assert "serving.json is of a trial on 300 items" in capsys.readouterr().err
    alone = {"items": 9, "dim": 64, "way": "one run", "milliseconds": {"1": 1, "32": 2}}
    for content in ("{", "[]", '{"figures": [{}], "threads": 1}', json.dumps({"figures": [alone], "threads": 1})):
        (own / CATALOGUE).write_text(content)
        assert main(asked) == 1
        assert "catalogue.json" in capsys.readouterr().err


def test_measurements_that_contradict_each_other_are_refused(own: Path) -> None:
    rows = json.loads((own / SERVING).read_text())
    rows[1]["value"] = 5_000.0  # requests in a fifth of the time of their ranking
    (own / SERVING).write_text(json.dumps(rows))
    with pytest.raises(CurvesError, match="different machines"):
        size(Load(12_000, 0, 1), measured(own))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (["--items", "0"], "--items: '0'"),
        (["--items", "12.5"], "--items: '12.5' is no whole number"),
        (["--users", "-1"], "--users: '-1'"),
        (["--users", "many"], "--users: 'many'"),
        (["--rps", "nan"], "--rps: 'nan'"),
        (["--rps", "0"], "--rps: '0'"),
        (["--events", "-3"], "--events: '-3'"),
        (["--load", "1.5"], "--load: '1.5'"),
        (["--cores", "inf"], "--cores: 'inf'"),
        (["--history", "1001"], "--history: '1001'"),
    ],
)
def test_what_makes_no_sense_is_refused_by_option_and_value(
    wrong: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--items", "10", "--users", "10", "--rps", "1", *wrong])
    assert ended.value.code == 2
    assert named in capsys.readouterr().err


def test_the_page_shows_what_the_command_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "capacity.md").read_text(encoding="utf-8")
    command, shown = (
        re.findall(r"^\./run bench size (.*)$", page, re.MULTILINE)[0],
        page.split("```\n5,")[1].partition("```")[0],
    )
    monkeypatch.chdir(tmp_path)  # where nothing has been measured
    assert main(command.split()) == 0
    printed = capsys.readouterr().out
    assert printed == f"5,{shown}"


def test_the_record_is_what_the_page_records() -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    by = measured(Path("nowhere"))
    assert f"| {1 / by.request_s:,.0f} / " in page
    assert f"| {1 / by.event_s:,.0f} requests/s |" in page
    for way, name in (("float32", "float32 scan|one run"), ("int8", "int8 scan")):
        for part, column in ((by.rankings[way].alone, 0), (by.rankings[way].together, 1)):  # type: ignore[index]
            for items, seconds in part.points:
                rows = re.findall(rf"^\| {items:,} \| (?:{name})[^|]* \| ([^|]+) \| ([^|]+) \|", page, re.MULTILINE)
                recorded = [float(row[column].replace(",", "")) for row in rows]
                assert any(abs(seconds * (32 if column else 1) * 1e3 - ms) < 1e-6 * ms for ms in recorded), (way, items)


def test_the_pages_about_machines_count_with_the_record() -> None:
    capacity, gpu = (" ".join((ROOT / "docs" / name).read_text().split()) for name in ("capacity.md", "gpu.md"))
    by = measured(Path("nowhere"))
    assert f"the {1 / by.event_s:,.0f} a second that one worker stored" in capacity
    assert f"that is {by.beside_ranking_s * 1e3:.3f} ms of a core a request" in gpu
    small, million = by.rankings["float32"].together.at(12_000), by.rankings["int8"].together.at(1_000_000)
    assert f"in {small * 1e6:.0f} microseconds a query (12,000 items)" in gpu
    assert f"at a million, where a core takes {million * 1e3:.2f} ms" in gpu


def test_the_readme_shows_figures_of_the_page() -> None:
    """Of its short table; "50 times" and "22 times" are the page's 50.5 and 22.5 without their fraction."""
    readme, page = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/performance.md"))
    table = readme.partition("| what | figure |\n")[2].partition("\n\n")[0]
    figures = [figure for line in table.splitlines()[1:] for figure in re.findall(r"\d[\d,.]*\d", line.split("|")[2])]
    assert len(figures) == 8
    for figure in figures:
        assert re.search(rf"(?<![\d,.]){re.escape(figure)}(?![\d,])", page), figure
