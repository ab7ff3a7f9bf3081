"""How fast recserve trains beside RecTools and RecBole: the same sequences, shapes and losses, taking turns.

The peers need versions of NumPy and others that are not ours. So each runs in a process of peers_worker.py, under the
interpreter of an environment of their own, and is told what to train in lines of JSON and an .npz file.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table

from models.device import cpu_quota
from models.sasrec import SASRec, SASRecConfig
from models.sequence import PADDING
from models.zoo import build
from training.batches import Batch, NegativeSampler
from training.bench import Trained, beauty_like, synthetic, train_epochs
from training.config import TrainingConfig
from training.dataset import Sequences
from training.next_item import NextItem
from training.peer_process import PeerProcess, PeersError
from training.splits import Holdout, nobody

WORKER = Path(__file__).with_name("peers_worker.py")
PEERS = {"rectools": "RecTools", "recbole": "RecBole"}
BATCH = 256  # sequences a step
# The paper's feed-forward layer, as wide as `dim`, and its activation: RecTools has no others.
SHAPE = SASRecConfig(inner=SASRecConfig().dim, activation="relu")

# S3Rec's published pre-training code on two such cores, an epoch of Beauty, as it stood on 2026-11-24. It is quoted,
# not run: an epoch takes half an hour.
S3REC_PREFIXES = 153_776
S3REC_PUBLISHED_S = 1620.0
S3REC_GOAL_S = 80.0

_LEGEND = (
    "ratio: recserve's targets/s to the peer's. epoch: every target once. RecBole makes each prefix a sample, and a "
    f"step has as many as the others' have targets in {BATCH} sequences."
)


@dataclass(frozen=True, slots=True)
class Data:
    """Sequences, how many items there are, and the longest history the models read."""

    title: str
    train: Sequences
    items: int
    length: int

    @property
    def targets(self) -> int:
        """Interactions but each user's first."""
        return self.train.interactions - len(self.train)


@dataclass(frozen=True, slots=True)
class Subject:
    """Who trains, on which data, with which loss; negatives for each target, unless they are shared by a batch."""

    program: str
    data: str
    loss: str
    negatives: int = 1
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Comparison:
    """One of our ways of learning beside the peers that have it.

    goals: how many times as fast as a peer it should be; None where the two do not do the same.
    """

    title: str
    ours: Subject
    goals: Mapping[str, float | None]

    def peer(self, name: str) -> Subject:
        """What the peer does for it: as ours, with negatives for each target, since no peer shares them."""
        return replace(self.ours, program=name, shared=False)


# RecBole's SASRec has no BCE and no sampled softmax; its BPR is another loss.
COMPARISONS = (
    Comparison("BCE, 1 negative", Subject("recserve", "beauty", "bce"), {"rectools": 7.0}),
    Comparison(
        "sampled softmax, 256 a target",
        Subject("recserve", "beauty", "sampled_softmax", 256),
        {"rectools": 10.0},
    ),
    Comparison(
        "sampled softmax, recserve's 256 a batch, as it trains",
        Subject("recserve", "beauty", "sampled_softmax", 256, shared=True),
        {"rectools": None},
    ),
    Comparison("full softmax", Subject("recserve", "beauty", "softmax"), {"rectools": 25.0, "recbole": None}),
    Comparison("BCE, 1 negative", Subject("recserve", "long", "bce"), {"rectools": 2.0}),
)


@dataclass(frozen=True, slots=True)
class PeersBench:
    """Targets trained a second, the median of several rounds, by subject; versions of peers, and why one is missing.

    prefixes_per_s: of our S3Rec pre-training, to compare with what was published.
    """

    data: Mapping[str, Data]
    rates: Mapping[Subject, float]
    versions: Mapping[str, str]
    prefixes_per_s: float
    missing: Mapping[str, str] = field(default_factory=dict)

    def ratio(self, comparison: Comparison, peer: str) -> float:
        """How many times as fast as the peer we are."""
        return self.rates[comparison.ours] / self.rates[comparison.peer(peer)]

    def __rich__(self) -> RenderableType:
        notes = [f"{PEERS[name]} is not measured: {why}" for name, why in self.missing.items()]
        tables = [part for name in self.data for part in (self._title(name), self._table(name))]
        return Group(*tables, _LEGEND, *notes, self._s3rec())

    def _title(self, name: str) -> str:
        data = self.data[name]
        return (
            f"{data.title}: {len(data.train):,} sequences, {data.targets:,} targets, {data.items:,} items; length "
            f"{data.length}, dim {SHAPE.dim}, inner {SHAPE.inner}, {SHAPE.blocks} blocks, {SHAPE.heads} heads"
        )

    def _table(self, name: str) -> Table:
        table = Table(box=SIMPLE)
        table.add_column("", min_width=17)  # of a peer with its version
        for heading in ("targets/s", "sequences/s", "epoch, s", "ratio"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("goal", no_wrap=True)
        for comparison in COMPARISONS:
            if comparison.ours.data != name or comparison.ours not in self.rates:
                continue
            table.add_section()
            table.add_row(comparison.title, style="bold")
            table.add_row("  recserve", *self._speeds(comparison.ours))
            for peer, goal in comparison.goals.items():
                if comparison.peer(peer) in self.rates:
                    ratio = self.ratio(comparison, peer)
                    speeds = self._speeds(comparison.peer(peer))
                    program = f"  {PEERS[peer]} {self.versions[peer]}"
                    table.add_row(program, *speeds, f"{ratio:.1f}x", _verdict(ratio, goal))
        return table

    def _speeds(self, subject: Subject) -> tuple[str, str, str]:
        data, rate = self.data[subject.data], self.rates[subject]
        return f"{rate:,.0f}", f"{rate * len(data.train) / data.targets:,.0f}", f"{data.targets / rate:,.1f}"

    def _s3rec(self) -> str:
        seconds = S3REC_PREFIXES / self.prefixes_per_s
        return (
            f"S3Rec pre-training, an epoch of Beauty's {S3REC_PREFIXES:,} prefixes: {seconds:,.0f} s, and "
            f"{S3REC_PUBLISHED_S:,.0f} s of the published code, quoted on 2026-11-24 and not run here: "
            f"{S3REC_PUBLISHED_S / seconds:.1f}x; goal at most {S3REC_GOAL_S:.0f} s: {_met(seconds <= S3REC_GOAL_S)}"
        )


def _verdict(ratio: float, goal: float | None) -> str:
    return "-" if goal is None else f"{goal:.0f}x: {_met(ratio >= goal)}"


def _met(reached: bool) -> str:
    return "met" if reached else "not met"


def bench_peers(
    python: Path,
    prefixes_per_s: float,
    *,
    rounds: int = 3,
    seconds: float = 4.0,
    scale: float = 1.0,
    seed: int = 0,
    worker: Path = WORKER,
    say: Callable[[str], None] = lambda _: None,
) -> PeersBench:
    """Everything in COMPARISONS, round by round, with the peers that the interpreter `python` has.

    Each trains for so many seconds a round, and we to the end of an epoch. scale shrinks the data; `say` is told what
    is going on. Raises PeersError if there is no such interpreter.
    """
    find_python(python)
    torch.set_num_threads(cpu_quota())
    data = _data(scale, np.random.default_rng(seed))
    measured: dict[Subject, list[float]] = {subject: [] for subject in _subjects()}
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        files = {name: _save(sequences, folder / f"{name}.npz") for name, sequences in data.items()}
        processes: dict[str, PeerProcess] = {}
        for name in PEERS:
            process = PeerProcess([str(python.absolute()), "-P", str(worker), name], folder)
            with _noted(missing, name):
                processes[name] = stack.enter_context(process)
        for number in range(rounds):
            for subject, rates in measured.items():
                program, sequences = subject.program, data[subject.data]
                if program in missing:
                    continue
                say(f"round {number + 1} of {rounds}: {program}, {subject.loss}, {sequences.title}")
                if program in PEERS:
                    with _noted(missing, program):
                        job = _job(subject, sequences, files[subject.data], seconds)
                        rates.append(processes[program].targets_per_s(job))
                else:
                    rates.append(_train(subject, sequences, seconds).targets_per_s)
        versions = {name: process.version for name, process in processes.items()}
    medians = {
        subject: float(np.median(rates)) for subject, rates in measured.items() if subject.program not in missing
    }
    return PeersBench(data, medians, versions, prefixes_per_s, missing)


@contextmanager
def _noted(missing: dict[str, str], name: str) -> Iterator[None]:
    """Write down why a peer failed, and go on without it."""
    try:
        yield
    except PeersError as error:
        missing[name] = str(error)


def find_python(path: Path) -> None:
    """Raise PeersError if there is no interpreter at path."""
    if not path.is_file():
        raise PeersError(f"there is no {path}, which is to have the peers; ./run bench training --peers makes one")


def _data(scale: float, generator: np.random.Generator) -> dict[str, Data]:
    """Like Amazon Beauty, and like MovieLens-1M, whose users have 165 items on average and half of them under 96."""
    users, few, items, movies = (max(2, round(count * scale)) for count in (4096, 768, 12_101, 3416))
    walks = synthetic(generator.lognormal(np.log(96), 1.04, few).clip(20, 2000), movies, generator)
    return {
        "beauty": Data("like Amazon Beauty", beauty_like(users, items, generator), items, 50),
        "long": Data("long histories, like MovieLens-1M", walks, movies, 200),
    }


def _save(data: Data, path: Path) -> Path:
    np.savez(path, users=data.train.owners, items=data.train.items)
    return path


def _subjects() -> list[Subject]:
    """Each once: ours, then the peers', comparison by comparison."""
    found: dict[Subject, None] = {}
    for comparison in COMPARISONS:
        found[comparison.ours] = None
        found.update(dict.fromkeys(comparison.peer(name) for name in comparison.goals))
    return list(found)


def _job(subject: Subject, data: Data, file: Path, seconds: float) -> dict[str, object]:
    return {
        "data": str(file),
        "loss": subject.loss,
        "negatives": subject.negatives,
        "length": data.length,
        "batch": BATCH,
        "step_targets": max(1, round(BATCH * data.targets / len(data.train))),
        "seconds": seconds,
        "threads": cpu_quota(),
        **SHAPE.model_dump(include={"dim", "blocks", "heads", "dropout"}),
    }


def _train(subject: Subject, data: Data, seconds: float) -> Trained:
    model = build(SHAPE.model_copy(update={"length": data.length}), data.items)
    options = {
        "loss": subject.loss,
        "negatives": subject.negatives,
        "batch": BATCH,
        "precision": "float32",  # as theirs
    }
    config = TrainingConfig.model_validate(options)
    own = subject.loss == "sampled_softmax" and not subject.shared
    kind = _OwnNegatives if own else NextItem
    return train_epochs(model, kind(model, data.train, nobody(data.train), config, seed=0), seconds=seconds)


class _OwnNegatives(NextItem):
    """Sampled softmax with negatives drawn evenly for each target, as RecTools draws them.

    Training never does: those of a batch teach as well, for less.
    """

    def __init__(
        self, model: SASRec, train: Sequences, validation: Holdout, config: TrainingConfig, *, seed: int
    ) -> None:
        super().__init__(model, train, validation, config, seed=seed)
        self._sampler = NegativeSampler(validation.histories, model.items)  # by nobody's interactions: evenly

    def _negatives(self, batch: Batch, generator: np.random.Generator) -> NDArray[np.int64]:
        targets = int((batch.targets != PADDING).sum())
        return generator.integers(1, self._sampler.rows, (targets, self._config.negatives))
