"""Training in several processes, started by torchrun: each computes a part of every batch, and gradients are summed.

Every process draws the same batches and steps its own copy of the weights, so that nothing but gradients travels and
the result is that of one process, to rounding and to the dropout each draws for its part.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

# Before there is a group: this module's functions keep the group of the moment it is imported as a default, an
# optimiser's first step imports it, and a group kept past its end has threads that can abort a process that leaves.
import torch.distributed.nn
from torch import distributed, nn

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Processes:
    """Which one of how many this is; `leader` is the one that validates, writes and speaks."""

    rank: int = 0
    count: int = 1
    on_this_machine: int = 1

    @property
    def leader(self) -> bool:
        return self.rank == 0

    @property
    def several(self) -> bool:
        return self.count > 1

    def part_ways(self, seed: int) -> None:
        """From here on draw dropout of one's own: call it when all weights have been drawn, which must be the same."""
        if not self.leader:  # mixed into 32 bits, for of a seed torch's generator on CPU takes no more than the low 32
            torch.manual_seed(int(np.random.SeedSequence([seed, self.rank]).generate_state(1)[0]))

    def sum_gradients(self, model: nn.Module, device: torch.device) -> None:
        """Make every process's gradients the sum of all; a parameter that no part of the batch touched keeps none."""
        if not self.several:
            return
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        touched = torch.tensor([float(parameter.grad is not None) for parameter in parameters], device=device)
        pieces = [
            (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).reshape(-1)
            for parameter in parameters
        ]
        together = torch.cat([touched, *pieces])  # one message instead of one for each parameter
        distributed.all_reduce(together)
        sums = torch.split(together[len(parameters) :], [parameter.numel() for parameter in parameters])
        for parameter, by_anyone, total in zip(parameters, together[: len(parameters)].tolist(), sums, strict=True):
            parameter.grad = total.view_as(parameter) if by_anyone else None

    def sum(self, value: float, device: torch.device) -> float:
        """The sum of every process's value."""
        if not self.several:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=device)
        distributed.all_reduce(total)
        return float(total.item())

    def from_leader(self, value: T | None) -> T:
        """What the leader has, in every process; the others may give None."""
        if self.several:
            box = [value]
            distributed.broadcast_object_list(box, src=0)
            value = box[0]
        return value  # type: ignore[return-value]

    def gathered(self, value: T) -> list[T]:
        """What every process has, in order of rank."""
        if not self.several:
            return [value]
        found = [value] * self.count
        distributed.all_gather_object(found, value)
        return found

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.several:
            distributed.barrier()


ALONE = Processes()


def own_device() -> torch.device:
    """Where this process fits: on its GPU, if it has one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that torchrun started together, connected while the block runs; ALONE without torchrun.

    They speak NCCL where every one has a GPU of its own, and gloo on CPU. Raises FitError for fewer GPUs than that.
    """
    if not distributed.is_torchelastic_launched():
        yield ALONE
        return
    here, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()  # torchrun's
    if 0 < gpus < here:
        from training.fit import FitError  # noqa: PLC0415 - which knows this module

        raise FitError(f"{here} processes here have {gpus} GPUs, and each needs its own; give --nproc-per-node {gpus}")
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        yield Processes(distributed.get_rank(), distributed.get_world_size(), here)
    finally:
        distributed.destroy_process_group()
