"""The whole benchmark, small: real servers over sockets. How large its figures are is not a matter for a test."""

import json
import os
import sys
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.peers.measure import PEERS
from bench.servers import ServerError, running


def test_every_figure_is_measured_or_says_why_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serving", "--quick", "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "serving.json").read_text())
    for row in found:
        assert row["value"] is not None and row["value"] > 0 if not row["note"] else row["value"] is None, row
        assert row["name"] in said
    by_name = {row["name"]: row for row in found}
    assert by_name["300 items: service, one worker"]["unit"] == "requests/s"
    assert by_name["300 items: saturation / straightforward stack, one worker each"]["goal"] == 4.5
    assert by_name["1,000,000 items: start to ready"]["note"] == "give --large"
    assert "stolen CPU time" in said
    assert (tmp_path / "serving.png").is_file()


@pytest.mark.parametrize("rounds", ["2", "0", "-3", "some"])
def test_fewer_rounds_than_make_a_median_are_refused(rounds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serving", f"--rounds={rounds}"])
    assert f"{rounds!r} is no number of rounds" in capsys.readouterr().err


def test_a_server_that_does_not_start_says_why() -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such thing')"]
    with pytest.raises(ServerError, match=r"ended with status 1: no such thing"), running(command, 1, "/"):
        pass


def test_what_does_not_run_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "items-300").mkdir()
    (tmp_path / "items-300/bench-300").write_text("not a folder")
    assert main(["serving", "--quick", "--output", str(tmp_path)]) == 1
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
