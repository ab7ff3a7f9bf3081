"""The whole benchmark, small: real servers over sockets. How large its figures are is not a matter for a test."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.machine import with_children
from bench.peers.measure import PEERS
from bench.servers import ROOT, ServerError, running
from tests.leftovers import left_behind


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for all quick runs, whose bundle is made once."""
    return tmp_path_factory.mktemp("bench")


def test_every_figure_is_measured_or_says_why_not(
    where: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(where)
    assert main(["serving", "--quick"]) == 0
    said = capsys.readouterr().out
    output = where / "artifacts" / "bench" / "quick"  # what was measured in earnest stays where it is
    found = json.loads((output / "serving.json").read_text())
    for row in found:
        assert row["value"] is not None and row["value"] > 0 if not row["note"] else row["value"] is None, row
        assert row["name"] in said
    by_name = {row["name"]: row for row in found}
    assert by_name["300 items: service, one worker"]["unit"] == "requests/s"
    assert by_name["300 items: saturation / straightforward stack, one worker each"]["goal"] == 4.5
    assert by_name["1,000,000 items: start to ready"]["note"] == "give --large"
    assert "stolen CPU time" in said
    assert (output / "serving.png").is_file()


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopped_it_says_so_and_leaves_no_server(where: Path, end: signal.Signals) -> None:
    signal.signal(end, signal.default_int_handler)  # a shell has what it puts behind itself ignore it
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", "serving", "--quick"],
        cwd=where,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert any("round 1" in line for line in process.stderr)  # by when everything has been started
    started = with_children([process.pid])[1:]
    process.send_signal(end)
    said = process.communicate(timeout=120)[1]
    left = left_behind(started)
    assert len(started) > 10
    assert not left
    assert process.returncode == 130
    assert said.splitlines()[-1] == "stopped; nothing was written"
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (["--rounds=2"], "--rounds: '2' is no number from 3 to 1000"),
        (["--rounds=some"], "--rounds: 'some'"),
        (["--items=0"], "--items: '0'"),
        (["--items=12.5"], "--items: '12.5'"),
        (["--seconds=-1"], "--seconds: '-1'"),
        (["--seconds=nan"], "--seconds: 'nan'"),
        (["--quick", "--items=500", "--seconds=2"], "takes no --items, --seconds"),
        (["--quick", "--rounds=3"], "takes no --rounds"),
    ],
)
def test_what_makes_no_sense_is_refused_by_option_and_value(
    wrong: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serving", *wrong])
    assert ended.value.code == 2
    assert named in capsys.readouterr().err


def test_a_server_that_does_not_start_says_why() -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such thing')"]
    with pytest.raises(ServerError, match=r"ended with status 1: no such thing"), running(command, 1, "/"):
        pass


def test_what_does_not_run_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "items-300").mkdir()
    (tmp_path / "items-300/bench-300").write_text("not a folder")
    assert main(["serving", "--quick", "--output", str(tmp_path)]) == 1
    assert "error: " in capsys.readouterr().err
    assert main(["serving", "--quick", "--output", str(tmp_path / "items-300/bench-300")]) == 1
    assert "error: " in capsys.readouterr().err


@pytest.mark.slow
def test_the_peers_are_measured_beside_it(tmp_path: Path) -> None:
    python = Path(os.environ.get("BENCH_PEERS") or ".venv-peers-serving/bin/python")
    if not python.is_file():
        pytest.skip(f"there is no {python} with the peers; ./run bench serving --peers makes one")
    assert main(["serving", "--quick", "--peers", "--output", str(tmp_path)]) == 0
    by_name = {row["name"]: row for row in json.loads((tmp_path / "serving.json").read_text())}
    for peer in PEERS:
        row = by_name[f"300 items, histories in the body: peer {peer}, one worker"]
        assert row["value"] is not None, row["note"]


def test_peers_that_are_not_there_are_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BENCH_PEERS", str(tmp_path / "python"))
    assert main(["serving", "--peers", "--output", str(tmp_path)]) == 1
