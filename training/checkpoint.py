"""A training run on disk, in one safetensors file: weights, best weights, optimiser, generator state and progress.

One file that is synced and replaced by rename is a checkpoint or none, after a loss of power too; no pickle, so that a
stranger's file cannot run code.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from models.durable import sync


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and the reason."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands after an epoch. `identity` is a digest of configuration, data, split and seed."""

    identity: str
    epoch: int
    best_epoch: int
    best: float
    seconds: float
    sequences: int
    finished: bool


def generators(gathered: Callable[[Tensor], list[Tensor]] = lambda state: [state]) -> dict[str, Tensor]:
    """The states of torch's generators by name; `gathered` gives those of every process that trains together."""
    states = {f"cpu{rank}": state for rank, state in enumerate(gathered(torch.get_rng_state()))}
    if torch.cuda.is_available():
        states |= {f"cuda{rank}": state for rank, state in enumerate(gathered(torch.cuda.get_rng_state()))}
    return states


def save(
    path: Path,
    progress: Progress,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    *,
    best: dict[str, Tensor],
    average: dict[str, Tensor],
    states: dict[str, Tensor],
) -> None:
    """Write a checkpoint from which a run continues as if it had not stopped; states come from `generators`.

    Raises CheckpointError if it cannot be written; the one before it is left as it is.
    """
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"best/{name}": tensor for name, tensor in best.items()}
    tensors |= {f"average/{name}": tensor for name, tensor in average.items()}
    for number, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{number}/{name}": tensor for name, tensor in state.items()}
    tensors |= {f"generator/{name}": state for name, state in states.items()}
    draft = path.with_suffix(".draft")
    try:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            draft,
            metadata={"progress": json.dumps(asdict(progress))},
        )
        sync(draft)
    except (SafetensorError, OSError) as error:  # the first is its word for a full disk
        draft.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path}: cannot be written ({error}); free space there, and the same command goes on from the epoch before"
        ) from error
    draft.replace(path)
    sync(path.parent)


def read_progress(path: Path) -> Progress:
    """Where the run stands. Raises CheckpointError if the file is no checkpoint."""
    try:
        with safe_open(path, framework="pt") as file:
            return Progress(**json.loads(file.metadata()["progress"]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, error) from error


def restore(
    path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, *, rank: int = 0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Put everything back where `save` took it from, in the process of this rank; returns best weights and averages.

    Raises CheckpointError if the run was trained by fewer processes, for then some would have no random numbers.
    """
    parts = _tensors(path)
    _load(path, model, parts["model"])
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in parts["optimiser"].items():
        number, _, field = name.partition("/")
        moments.setdefault(int(number), {})[field] = tensor
    optimiser.load_state_dict(optimiser.state_dict() | {"state": moments})
    states = parts["generator"]
    if f"cpu{rank}" not in states:
        raise CheckpointError(f"{path}: was written by fewer processes; continue with as many as began")
    torch.set_rng_state(states[f"cpu{rank}"])
    if f"cuda{rank}" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[f"cuda{rank}"])
    device = next(model.parameters()).device
    best, average = ({name: kept.to(device) for name, kept in parts[part].items()} for part in ("best", "average"))
    return best, average


def load_best(path: Path, model: nn.Module) -> None:
    """Set a model to the run's best weights. Raises CheckpointError if they do not fit it."""
    _load(path, model, _tensors(path)["best"])


def _tensors(path: Path) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in ("model", "best", "average", "optimiser", "generator")}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - a safetensors file is no mapping
                part, _, rest = name.partition("/")
                parts[part][rest] = file.get_tensor(name)
    except (SafetensorError, OSError, KeyError) as error:
        raise _unreadable(path, error) from error
    return parts


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    if isinstance(error, FileNotFoundError):
        return CheckpointError(f"{path}: is not there: of a retraining the bundle has the weights, else train anew")
    return CheckpointError(
        f"{path}: is damaged or not a checkpoint of a training run ({error}); delete it, and the same train command "
        "begins anew, or give another --output"
    )


def _load(path: Path, model: nn.Module, weights: dict[str, Tensor]) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its weights do not fit this model: {error}") from error
