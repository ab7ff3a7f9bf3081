"""The benchmarks measure what they say, at a size that takes no time."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.leftovers import left_behind
from training import operating
from training.bench import bench_dataset, bench_training
from training.bench_catalogue import WIDTH, BlendFigures, bench_catalogue
from training.blend import _WIDTHS
from training.config import ConfigError
from training.run import RunError


@pytest.mark.usefixtures("one_thread")
def test_the_data_benchmark_reports_every_step_and_the_memory() -> None:
    bench = bench_dataset(interactions=20_000, users=500, items=300)

    assert list(bench.seconds) == ["read", "build", "split leave-one-out", "split by time", "first 50 training steps"]
    assert all(seconds >= 0 for seconds in bench.seconds.values())
    assert (bench.interactions, bench.users) == (20_000, 500)
    assert bench.items <= 300
    assert 20 * 2**20 < bench.peak_rss_bytes < 4 * 2**30
    assert str(bench).startswith("20,000 interactions of 500 users")


@pytest.mark.usefixtures("one_thread")
def test_the_training_benchmark_has_a_rate_for_every_way_of_learning() -> None:
    bench = bench_training(users=40, items=60, rounds=1)
    assert list(bench.rates) == [
        "bce",
        "sampled softmax, 256 negatives",
        "full softmax",
        "full softmax, as it trains",
        "S3Rec pre-training",
    ]
    assert all(rate > 0 for rate in bench.rates.values())
    assert 0 < bench.floor_share < 1
    assert str(bench).endswith("of its arithmetic floor")


def test_the_catalogue_benchmark_has_three_ways_of_ranking_every_size(tmp_path: Path) -> None:
    bench = bench_catalogue([700, 1500], threads=1, rounds=1)
    assert [(one.items, one.way) for one in bench.figures] == [
        (size, way) for size in (700, 1500) for way in ("one run", "float32 scan", "int8 scan")
    ]
    for one in bench.figures:
        assert one.milliseconds.keys() == {1, 32}
        assert min(one.milliseconds.values()) > 0
        assert one.recall_at_10 > 0.999  # of two equals float32 may take either
        assert (one.sgemm_share is None) == (one.way == "int8 scan")
        assert one.bandwidth_share is None  # so few items are in a cache
    assert str(bench).endswith("1 threads, 64 columns, random vectors in clusters")
    assert [one.items for one in bench.blends] == [700, 1500]
    for blend in bench.blends:
        for part, ratios in (("encoded and ranked", blend.query), ("ranking by itself", blend.ranking)):
            assert ratios.keys() == {1, 64}
            assert min(ratios.values()) > 0
            rows = [line for line in str(bench).splitlines() if line.startswith(f"{blend.items:>11,} blend of 50 n")]
            assert any(f"{part}: batch 1 {ratios[1]:.2f} (" in row for row in rows)
    bench.write(tmp_path / "catalogue.json")
    written = json.loads((tmp_path / "catalogue.json").read_text())
    assert (len(written["figures"]), len(written["blends"])) == (6, 2)


def test_the_benchmark_of_a_blend_has_the_width_that_blends_are_first_tried_with() -> None:
    assert _WIDTHS[0] == WIDTH


def test_the_row_of_a_blend_says_whether_it_meets_its_goal() -> None:
    row = str(BlendFigures(12_000, {1: 1.15, 64: 1.16}, {1: 1.0, 64: 2.0}))
    assert "batch 1 1.15 (met: at most 1.15), batch 64 1.16 (not met: at most 1.15)" in row


def test_a_catalogue_may_be_of_a_runs_own_items(finished_run: Any) -> None:
    bench = bench_catalogue([50], run=finished_run.path, threads=1, rounds=1)
    assert {one.dim for one in bench.figures} == {finished_run.spec().config.model.dim}
    assert str(finished_run.path) in bench.vectors


def test_the_folder_of_the_figures_is_made_before_they_are_measured(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder; name a file"):
        operating.bench("catalogue", output=tmp_path)
    output = tmp_path / "new" / "catalogue.json"
    with pytest.raises(RunError):  # what it is to measure is not there
        operating.bench("catalogue", run=tmp_path / "no-run", output=output)
    assert output.parent.is_dir()


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_a_benchmark_that_is_stopped_ends_at_once_and_leaves_neither_process_nor_file(
    end: signal.Signals, tmp_path: Path
) -> None:
    signal.signal(end, signal.default_int_handler)  # a shell has what it puts behind itself ignore it
    process = subprocess.Popen(
        [sys.executable, "-m", "training", "bench", "data", "--interactions", "10000000"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    while len(started := [int(pid) for pid in children.read_text().split()]) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)  # one tracks resources, the other measures
    process.send_signal(end)
    said = process.communicate(timeout=60)[1]
    left = left_behind(started)
    assert len(started) == 2
    assert not left
    assert process.returncode == 130
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_for_a_catalogue_is_an_error_that_says_so(tmp_path: Path) -> None:
    """On a file system of its own, which takes the right to make one."""
    program = (
        "import numpy as np, pathlib, sys; from training.bench_catalogue import _grown\n"
        "try: _grown(pathlib.Path(sys.argv[1], 'items'), np.ones((500, 64), 'f'), 9000, np.random.default_rng(1))\n"
        "except OSError as error: print(error.strerror)\n"
    )
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    mount = f"mount -t tmpfs -o size=1m none '{tmp_path}'"
    if shutil.which("unshare") is None or subprocess.run([*alone, "sh", "-c", mount], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    command = [*alone, "sh", "-c", f'{mount} && exec "$@"', "sh", sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "No space left on device\n")
