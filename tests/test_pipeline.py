"""From a log to a champion through the commands that a person types, each in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]

CONFIG = """
[model]
dim = 16
blocks = 1
heads = 2
inner = 16
length = 8

[training]
batch = 16
epochs = 12
learning_rate = 0.01
"""


def run(folder: Path, *words: str) -> str:
    """Standard output of `python -m ...` in that folder, which must succeed and write nothing else."""
    one = min(os.sched_getaffinity(0))  # models this small are slower on more threads
    result = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "150"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        preexec_fn=lambda: os.sched_setaffinity(0, {one}),
    )
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    return result.stdout


def test_a_log_becomes_a_champion_that_knows_what_comes_next(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = ["user_id,item_id,timestamp"]
    for user in range(150):  # everybody walks round a circle of forty films, a step an hour
        begin, hour = generator.integers(40), 450_000 + generator.integers(1000)
        rows += [f"u{user},film-{(begin + step) % 40},{(hour + step) * 3600}" for step in range(12)]
    (tmp_path / "log.csv").write_text("\n".join(rows) + "\n")
    titles = ["item_id,title", *(f'film-{item},"Film No. {item}, the {item}th"' for item in range(40))]
    (tmp_path / "titles.csv").write_text("\n".join(titles) + "\n")
    (tmp_path / "walks.toml").write_text(CONFIG)

    words = ["walks.toml", "--data", "log.csv", "--attributes", "titles.csv", "--output", "runs/first"]
    out = run(tmp_path, "training", "train", *words)
    assert "1,800 of 1,800 rows kept" in out
    metrics = json.loads((tmp_path / "runs" / "first" / "metrics.json").read_text())
    assert metrics["test"]["hr@10"] > 0.8
    assert metrics["test"]["ndcg@10"] > 2 * metrics["baselines"]["popularity"]["test"]["ndcg@10"]
    assert metrics["seconds"] > 0
    assert metrics["sequences_per_second"] > 0

    out = run(tmp_path, "training", "export", "runs/first", "--version", "first", "--promote")
    assert "champion is first" in out

    out = run(tmp_path, "models", "list")
    assert "* first " in out
    assert f"{metrics['test']['ndcg@10']:.4f}" in out
    assert "equal to its golden answers" in run(tmp_path, "models", "verify", "first")

    from models.bundle import read_bundle
    from models.runtime import Runtime

    bundle = read_bundle(tmp_path / "artifacts" / "first")
    runtime = Runtime(bundle, device="cpu")
    histories = [bundle.indices([f"film-{item % 40}" for item in range(begin, begin + 5)]) for begin in range(40)]
    indices, _ = runtime.rank(runtime.encode(histories), histories, 3)
    hits = [f"film-{(begin + 5) % 40}" in {bundle.ids[index] for index in indices[begin]} for begin in range(40)]
    assert sum(hits) > 30
    assert bundle.attributes is not None
    assert bundle.attributes["title"][bundle.index_of["film-3"]] == "Film No. 3, the 3th"
