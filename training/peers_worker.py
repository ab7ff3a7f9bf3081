"""Trains a peer library's SASRec for a moment and says how fast: `python -P training/peers_worker.py rectools|recbole`.

Run by the interpreter that has the peer, hence no import of recserve. One JSON object a line: first {"version": ...};
then, for each job on standard input, {"targets": n, "seconds": s}, or {"error": sentence}, which either may be.
"""

import functools
import importlib.metadata
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class Job:
    """What to train: shapes and dropout of the model, its loss, sequences a step, and for how many seconds.

    data: path of an .npz file with users and items int64 (interactions,), in the order of time; step_targets: what a
    step of so many sequences trains on average.
    """

    data: str
    loss: str
    negatives: int
    length: int
    dim: int
    blocks: int
    heads: int
    dropout: float
    batch: int
    step_targets: int
    seconds: float
    threads: int


class Clock:
    """Time and targets from the end of the first step, which warms up, to that of the step in which time ran out."""

    def __init__(self, seconds: float) -> None:
        self._limit_s = seconds
        self._began: float | None = None
        self.targets, self.seconds = 0, 0.0

    def step(self, targets: int) -> bool:
        """Count a step that has ended, and say whether time is over."""
        now = time.perf_counter()
        if self._began is None:
            self._began = now
            return False
        self.targets += targets
        self.seconds = now - self._began
        return self.seconds >= self._limit_s


@functools.cache
def _interactions(data: str) -> Any:
    """DataFrame of user_id, item_id, and as time the row number."""
    import pandas as pd  # noqa: PLC0415 - of the peers' environment, as all of the imports within functions

    with np.load(data, allow_pickle=False) as arrays:
        users, items = arrays["users"], arrays["items"]
    return pd.DataFrame({"user_id": users, "item_id": items, "time": np.arange(len(users))})


def train_rectools(job: Job) -> Clock:
    """RecTools' own loop, PyTorch Lightning's, with its own data loading."""
    from pytorch_lightning import Trainer  # noqa: PLC0415
    from pytorch_lightning.callbacks import LambdaCallback  # noqa: PLC0415
    from rectools.dataset import Dataset  # noqa: PLC0415
    from rectools.models import SASRecModel  # noqa: PLC0415

    clock = Clock(job.seconds)

    def step_ended(trainer: Any, _module: Any, _outputs: Any, batch: dict[str, torch.Tensor], _number: int) -> None:
        if clock.step(int((batch["y"] != 0).sum())):
            trainer.should_stop = True

    def trainer() -> Any:
        return Trainer(
            max_epochs=-1,  # the clock ends it
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[LambdaCallback(on_train_batch_end=step_ended)],
        )

    frame = _interactions(job.data)
    dated = frame[["user_id", "item_id"]].assign(weight=1.0, datetime=frame["time"].astype("datetime64[s]"))
    model = SASRecModel(
        n_blocks=job.blocks,
        n_heads=job.heads,
        n_factors=job.dim,
        dropout_rate=job.dropout,
        session_max_len=job.length,
        loss={"bce": "BCE"}.get(job.loss, job.loss),
        n_negatives=job.negatives,
        batch_size=job.batch,
        get_trainer_func=trainer,
    )
    model.fit(Dataset.construct(dated))
    return clock


def train_recbole(job: Job) -> Clock:
    """RecBole's data loader, in which each prefix of a sequence is a sample, and a plain loop.

    A step has as many prefixes as the others' steps have targets.
    """
    from recbole.model.sequential_recommender.sasrec import SASRec  # noqa: PLC0415

    if job.loss != "softmax":
        raise ValueError(f"RecBole's SASRec has no loss {job.loss}")
    config, loader = _recbole_data(job)
    model = SASRec(config, loader.dataset)
    optimiser = torch.optim.Adam(model.parameters())
    clock = Clock(job.seconds)
    while True:
        for prefixes in loader:
            optimiser.zero_grad()
            model.calculate_loss(prefixes).backward()
            optimiser.step()
            if clock.step(len(prefixes)):
                return clock


@functools.cache
def _recbole_data(job: Job) -> tuple[Any, Any]:
    from recbole.config import Config  # noqa: PLC0415
    from recbole.data import create_dataset  # noqa: PLC0415
    from recbole.data.dataloader import TrainDataLoader  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        columns = {"user_id": "user_id:token", "item_id": "item_id:token", "time": "time:float"}
        (Path(folder) / "bench").mkdir()
        _interactions(job.data).rename(columns=columns).to_csv(
            Path(folder) / "bench" / "bench.inter", sep="\t", index=False
        )
        options = {
            "data_path": folder,
            "load_col": {"inter": list(columns)},
            "TIME_FIELD": "time",
            "MAX_ITEM_LIST_LENGTH": job.length,
            "train_neg_sample_args": None,
            "loss_type": "CE",
            "train_batch_size": job.step_targets,
            "hidden_size": job.dim,
            "inner_size": job.dim,
            "n_layers": job.blocks,
            "n_heads": job.heads,
            "hidden_dropout_prob": job.dropout,
            "attn_dropout_prob": job.dropout,
            "hidden_act": "relu",
            "use_gpu": False,
            "eval_args": {"split": {"RS": [1, 0, 0]}, "order": "TO", "group_by": "none", "mode": "full"},
            "state": "ERROR",
        }
        config = Config(model="SASRec", dataset="bench", config_dict=options)
        train = create_dataset(config).build()[0]
    return config, TrainDataLoader(config, train, None, shuffle=True)


PEERS: dict[str, Callable[[Job], Clock]] = {"rectools": train_rectools, "recbole": train_recbole}


def main(peer: str) -> None:
    """Answer jobs until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the libraries print is no answer
    sys.argv = sys.argv[:1]  # RecBole reads options there
    try:
        print(json.dumps({"version": importlib.metadata.version(peer)}), file=answers)
    except importlib.metadata.PackageNotFoundError:
        print(json.dumps({"error": "it is not installed"}), file=answers)
        return
    for line in sys.stdin:
        job = Job(**json.loads(line))
        torch.set_num_threads(job.threads)
        try:
            clock = PEERS[peer](job)
        except Exception as error:  # noqa: BLE001 - whatever a library raises is the answer
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers)
        else:
            print(json.dumps({"targets": clock.targets, "seconds": clock.seconds}), file=answers)


if __name__ == "__main__":
    main(sys.argv[1])
