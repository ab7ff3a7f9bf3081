"""Training beside other libraries: what is asked of them, how it is put in a table, and what happens without one."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from training.dataset import Sequences
from training.peer_process import PeersError
from training.peers import COMPARISONS, Data, PeersBench, bench_peers

ROOT = Path(__file__).parents[2]


def text_of(bench: PeersBench) -> str:
    console = Console(width=100, record=True, quiet=False, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    console.print(bench)
    return console.export_text()


@pytest.fixture
def worker(tmp_path: Path) -> Path:
    """A worker that needs no peers, and has both."""
    shutil.copy(Path(__file__).with_name("fake_peer.py"), tmp_path / "worker.py")
    (tmp_path / "recbole").write_text("is there")
    return tmp_path / "worker.py"


@pytest.fixture
def figures() -> PeersBench:
    """Three sequences with six targets, trained at round speeds; without RecBole."""
    train = Sequences(np.arange(1, 10, dtype=np.int32), np.array([0, 3, 6]), np.array([3, 6, 9]))
    rates = {comparison.ours: 700.0 for comparison in COMPARISONS}
    rates |= {comparison.peer("rectools"): 70.0 for comparison in COMPARISONS}
    data = {name: Data(f"{name} data", train, 9, 50) for name in ("beauty", "long")}
    return PeersBench(data, rates, {"rectools": "0.19"}, 153_776 / 81, {"recbole": "it is not installed"})


def test_the_table_says_how_many_times_as_fast_and_whether_that_is_the_goal(figures: PeersBench) -> None:
    lines = [line.split() for line in text_of(figures).splitlines() if line.split()]
    at = [number for number, line in enumerate(lines) if line == ["BCE,", "1", "negative"]]
    assert len(at) == 2
    # 700 targets a second, of two a sequence; six take 0.0086 s.
    assert lines[at[0] + 1] == ["recserve", "700", "350", "0.0"]
    assert lines[at[0] + 2] == ["RecTools", "0.19", "70", "35", "0.1", "10.0x", "7x:", "met"]
    assert lines[at[1] + 2][-2:] == ["2x:", "met"]
    full = lines.index(["full", "softmax"])
    assert lines[full + 2][-4:] == ["10.0x", "25x:", "not", "met"]


def test_what_is_not_alike_has_a_ratio_and_no_goal(figures: PeersBench) -> None:
    (line,) = [line for line in text_of(figures).splitlines() if line.rstrip().endswith("-") and "RecTools" in line]
    assert "10.0x" in line


def test_a_peer_that_is_missing_is_named_with_the_reason(figures: PeersBench) -> None:
    text = text_of(figures)
    assert "RecBole is not measured: it is not installed" in text
    assert "RecBole 1" not in text


def test_pre_training_is_compared_with_what_was_published(figures: PeersBench) -> None:
    text = " ".join(text_of(figures).split())
    assert "153,776 prefixes: 81 s, and 1,620 s of the published code" in text
    assert "20.0x; goal at most 80 s: not met" in text


@pytest.mark.usefixtures("one_thread")
def test_each_program_is_measured_in_every_round_and_takes_its_turn(worker: Path) -> None:
    said: list[str] = []
    bench = bench_peers(Path(sys.executable), 4000.0, rounds=2, seconds=0.1, scale=0.01, worker=worker, say=said.append)
    assert bench.versions == {"rectools": "1.2", "recbole": "1.2"}
    assert not bench.missing
    assert len(said) == 2 * len(bench.rates)
    assert [line.removeprefix("round 1") for line in said[: len(bench.rates)]] == [
        line.removeprefix("round 2") for line in said[len(bench.rates) :]
    ]
    for comparison in COMPARISONS:
        assert bench.rates[comparison.ours] > 0
        for peer in comparison.goals:
            assert bench.rates[comparison.peer(peer)] == (100 if comparison.ours.loss == "bce" else 10)
    assert bench.rates[COMPARISONS[1].ours] != bench.rates[COMPARISONS[2].ours]  # measured, both of them


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("fate", "reason"),
    [
        ("absent", "it is not installed"),
        ("refuses", "no such loss"),
        ("dies", "its process ended with status 1: out of memory"),
    ],
)
def test_a_peer_that_cannot_be_measured_leaves_the_other(worker: Path, fate: str, reason: str) -> None:
    worker.with_name("recbole").write_text(fate)
    bench = bench_peers(Path(sys.executable), 4000.0, rounds=1, seconds=0.1, scale=0.01, worker=worker)
    assert bench.missing == {"recbole": reason}
    text = text_of(bench)
    assert f"RecBole is not measured: {reason}" in text
    assert "RecTools 1.2" in text


def test_an_interpreter_that_is_not_there_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(PeersError, match="bench training --peers makes one"):
        bench_peers(tmp_path / "python", 4000.0)


@pytest.mark.slow
def test_the_real_peers_are_measured() -> None:
    python = Path(os.environ.get("BENCH_PEERS", ROOT / ".venv-peers/bin/python"))
    if not python.is_file():
        pytest.skip(f"there is no {python} with RecTools and RecBole; ./run bench training --peers makes one")
    bench = bench_peers(python, 4000.0, rounds=1, seconds=0.1, scale=0.02)
    assert bench.versions
    for comparison in COMPARISONS:
        for peer in set(comparison.goals) & set(bench.versions):
            assert bench.rates[comparison.peer(peer)] > 0
    assert set(bench.missing.values()) <= {"it is not installed"}
