"""Several processes that train together end with the weights of one alone."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from models.s3rec import S3RecConfig, S3RecPretraining
from models.zoo import build
from training.__main__ import main
from training.config import PretrainingConfig, TrainingConfig
from training.dataset import build_dataset
from training.fit import FitError
from training.interactions import interactions_from_frame
from training.next_item import NextItem
from training.parallel import Processes, joined
from training.pretrain import Pretrain
from training.splits import split_leave_one_out

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[2]
ITEMS = 30
MODEL = "dim = 16\nblocks = 1\nheads = 2\ninner = 16\nlength = 8\ndropout = 0.0\n"
FITTING = "batch = 33\nepochs = 3\nlearning_rate = 0.005\ngradient_clip = 0.5\n"  # 33: the parts are not alike
CONFIGS = {
    "softmax": f"[model]\n{MODEL}[training]\n{FITTING}",
    "dropout": f"[model]\n{MODEL}[training]\n{FITTING}".replace("dropout = 0.0", "dropout = 0.2"),
    "bce": f'[model]\n{MODEL}[training]\nloss = "bce"\nnegatives = 3\n{FITTING}',
    "s3rec": (
        f'[model]\nname = "s3rec"\nitem_attributes = true\n{MODEL}[pretraining]\n{FITTING}'
        f'[training]\nloss = "sampled_softmax"\nnegatives = 9\n{FITTING}'
    ),
}


def trained(folder: Path, config: str, *, processes: int, output: str, epochs: int = 3) -> dict[str, torch.Tensor]:
    """The best weights after `python -m training train`, by torchrun where two processes are asked for.

    Alone it runs in this process: tests/test_pipeline.py starts one for it.
    """
    (folder / "one.toml").write_text(CONFIGS[config].replace("epochs = 3", f"epochs = {epochs}"))
    train = ["training", "train", "one.toml", "--data", "walks.csv", "--output", output]
    if config == "s3rec":
        (folder / "colours.csv").write_text("item_id,colour\n" + "".join(f"i{n},c{n // 3}\n" for n in range(ITEMS)))
        train += ["--attributes", "colours.csv"]
    said = _by_torchrun(folder, train, processes) if processes > 1 else _here(folder, train)
    assert said.count("run folder:") == 1  # one of them speaks
    return best(folder / output)


def best(run: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(run / "checkpoint.safetensors")
    return {name: tensor for name, tensor in tensors.items() if name.startswith("best/")}


def _by_torchrun(folder: Path, train: list[str], processes: int) -> str:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    done = subprocess.run(
        [sys.executable, *torchrun, *train],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,  # torchrun starts three processes, each with torch
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _here(folder: Path, train: list[str]) -> str:
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder), contextlib.redirect_stdout(said):
        patch.setattr(sys, "argv", train)
        try:
            status = main()
        except SystemExit as left:  # how the command line ends when all went well
            status = int(left.code or 0)
    assert status == 0
    return said.getvalue()


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory, walks: Callable[..., pl.DataFrame]) -> Path:
    """A folder with the log, and in `together` the run of two with dropout. Nothing may be written into it."""
    folder = tmp_path_factory.mktemp("two")
    walks(80, ITEMS).write_csv(folder / "walks.csv")
    trained(folder, "dropout", processes=2, output="together")
    return folder


@pytest.mark.parametrize("config", ["softmax", "bce", "s3rec"])
def test_two_processes_give_the_result_of_one(tmp_path: Path, of_two: Path, config: str) -> None:
    shutil.copy(of_two / "walks.csv", tmp_path)
    alone = trained(tmp_path, config, processes=1, output="alone")
    together = trained(tmp_path, config, processes=2, output="together")
    for name, tensor in alone.items():
        if not name.endswith("key_value.bias"):  # half of it moves no score, so that it goes where rounding sends it
            torch.testing.assert_close(together[name], tensor, atol=1e-3, rtol=1e-2)
    lines = [(tmp_path / output / "metrics.jsonl").read_text().splitlines() for output in ("alone", "together")]
    assert len(lines[0]) == len(lines[1]) == 3


def test_two_processes_continue_what_two_began_and_one_may_not_be_joined(tmp_path: Path, of_two: Path) -> None:
    shutil.copy(of_two / "walks.csv", tmp_path)
    whole = best(of_two / "together")
    # What a kill after the second epoch leaves: its checkpoint, of a run that is to have three.
    trained(tmp_path, "dropout", processes=2, output="broken", epochs=2)

    path = tmp_path / "broken" / "checkpoint.safetensors"
    with safe_open(path, "pt") as file:
        progress = json.loads(file.metadata()["progress"])
    with safe_open(of_two / "together" / "checkpoint.safetensors", "pt") as file:
        identity = json.loads(file.metadata()["progress"])["identity"]
    progress |= {"identity": identity, "finished": False}
    save_file(load_file(path), path, metadata={"progress": json.dumps(progress)})
    for name in ("run.json", "metrics.json"):
        (tmp_path / "broken" / name).unlink()
    continued = trained(tmp_path, "dropout", processes=2, output="broken")
    assert all(torch.equal(tensor, continued[name]) for name, tensor in whole.items())


def test_more_processes_than_gpus_are_told_how_many_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(FitError, match=r"3 processes here have 2 GPUs.*give --nproc-per-node 2"), joined():
        pass


def test_no_two_processes_draw_the_same_whatever_their_seeds() -> None:
    drawn = set()
    for seed, rank in product(range(3), range(4)):
        torch.manual_seed(seed)  # as the weights are drawn, which all have alike
        Processes(rank=rank, count=4).part_ways(seed)
        drawn.add(tuple(torch.rand(4).tolist()))
    assert len(drawn) == 12


def test_processes_that_do_not_see_the_same_run_folder_are_told_and_do_not_train(tmp_path: Path) -> None:
    """Two machines without a shared disk: the leader's has a checkpoint and the other's has none."""
    script = """
import sys
from multiprocessing import Process
from pathlib import Path

import torch
from torch import distributed

from training.config import FittingConfig
from training.fit import FitError, fit
from training.parallel import ALONE, Processes

base = Path(sys.argv[1])

class Task:
    metric = "figure"
    batches = staticmethod(lambda epoch: iter([torch.ones(4, 1)]))
    part = staticmethod(lambda batch, number, of: batch[number::of])
    sizes = staticmethod(lambda batch: (len(batch), len(batch)))
    validate = staticmethod(lambda: {"figure": 0.5})

    def __init__(self, model):
        self.loss = lambda batch: model(batch).mean()

class Watcher:
    def step(self, windows, loss): ...

    def epoch(self, record, *, best):
        raise KeyboardInterrupt  # killed after its first epoch

def fitted(folder, processes):
    folder.mkdir(exist_ok=True)
    model = torch.nn.Linear(1, 1)
    fit(model, Task(model), FittingConfig(), folder=folder, identity="one", watcher=Watcher(), processes=processes)

def one_of_two(rank):
    distributed.init_process_group("gloo", init_method=f"file://{base / 'meeting'}", rank=rank, world_size=2)
    try:
        fitted(base / str(rank), Processes(rank, 2, 2))
    except FitError as error:
        (base / f"said{rank}").write_text(str(error))

try:
    fitted(base / "0", ALONE)
except KeyboardInterrupt:
    pass
both = [Process(target=one_of_two, args=(rank,)) for rank in (0, 1)]
for one in both:
    one.start()
for one in both:
    one.join()
"""
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=120,
        check=True,
    )
    for rank in (0, 1):
        said = (tmp_path / f"said{rank}").read_text()
        assert said.startswith(f"{tmp_path / str(rank)} is not the same run for all processes")
        assert "(process 0: epoch 1, process 1: epoch 0)" in said
        assert "the same run folder; put it on a shared disk, or copy it" in said
    assert len((tmp_path / "0" / "metrics.jsonl").read_text().splitlines()) == 1
    assert not list((tmp_path / "1").iterdir())


def test_a_group_takes_its_threads_with_it() -> None:
    """A thread of gloo's that outlives the group can abort the interpreter while it is leaving."""
    script = """
from pathlib import Path
import torch
from training.parallel import joined

with joined():
    weight = torch.nn.Parameter(torch.ones(2))
    weight.sum().backward()
    torch.optim.AdamW([weight]).step()
print([name for name in (path.read_text() for path in Path("/proc/self/task").glob("*/comm")) if "gloo" in name])
"""
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | alone | {"MASTER_PORT": "0", "TORCHELASTIC_RUN_ID": "one", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


@pytest.fixture
def split(walks: Callable[..., pl.DataFrame]) -> Any:
    return split_leave_one_out(build_dataset(interactions_from_frame(walks(25, ITEMS), source="walks")))


@pytest.mark.parametrize("loss", ["softmax", "sampled_softmax", "bce", "gbce", "pre-training"])
@pytest.mark.parametrize("count", [2, 3, 40])
def test_the_parts_of_a_batch_are_all_of_it(
    split: Any, loss: str, count: int, parts_are_the_whole: Callable[[Any, int], None]
) -> None:
    """Their losses weighted by their targets are the loss of the whole, with fewer rows than parts too."""
    torch.manual_seed(0)
    encoder = build(S3RecConfig(dim=16, blocks=1, heads=2, inner=16, length=8, dropout=0.0), ITEMS)
    task: Any
    if loss == "pre-training":
        options = PretrainingConfig(batch=13)
        task = Pretrain(S3RecPretraining(encoder, 0), None, split.train, split.validation, options, seed=0)
    else:
        negatives = {} if loss == "softmax" else {"negatives": 3}
        training = TrainingConfig.model_validate({"batch": 13, "loss": loss, **negatives})
        task = NextItem(encoder, split.train, split.validation, training, seed=0)
    parts_are_the_whole(task, count)
