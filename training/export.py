"""A finished run becomes a bundle: weights -> ONNX -> proven equal to torch -> published.

Nothing is published unless onnxruntime's scores agree with torch's over a grid of batch sizes and history lengths,
through the very code that will serve them.
"""

import logging
import re
import tempfile
import warnings
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.autorec import AutoRec
from models.bundle import Golden, read_bundle
from models.draft import Content, write_bundle
from models.manifest import VERSION_NAME, BundleError, Manifest, Parity
from models.neighbours import Neighbours
from models.runtime import EXCLUDED_SCORE, Runtime, same_items, tolerance_of
from models.sasrec import SASRec
from models.sequence import Indices, Values, pad, pad_values, truncate
from models.zoo import Model
from training.dataset import Sequences
from training.ranker import OPSET, build_ranker, build_shortlist
from training.reconstruction import history_rows
from training.run import RunFolder
from training.scoring import Asked, with_scoring

_PARITY_BATCHES = (1, 2, 3, 7, 64)
_PARITY_CASES = 57  # random histories beside those at the edges
_GOLDEN_CASES = 16
_K = 10


class ExportError(RuntimeError):
    """The exported graphs do not compute what torch computes; nothing was published."""


class _Encoder(nn.Module):
    """What is exported: the last position alone."""

    def __init__(self, model: SASRec) -> None:
        super().__init__()
        self.model = model

    def forward(self, sequences: Tensor, lengths: Tensor) -> Tensor:
        return self.model.encode(sequences, lengths)


class _RowEncoder(nn.Module):
    """What is exported of an AutoRec: its own matrix is an input, and values are one where it reads ratings."""

    def __init__(self, model: AutoRec) -> None:
        super().__init__()
        self.model = model

    def forward(self, sequences: Tensor, lengths: Tensor, inputs: Tensor, values: Tensor | None = None) -> Tensor:
        return self.model.encode(sequences, lengths, values, inputs)


def export(run: RunFolder, artifacts: Path, *, version: str | None = None, scoring: Asked = "auto") -> Path:
    """Publish a finished run as `artifacts/<version>` and return that folder.

    The version defaults to the time and the configuration's name; scoring is what of a large catalogue is searched.
    Raises RunError if the run is not finished, ExportError if the graphs differ from torch or the version is no name,
    BundleError if the version exists.
    """
    spec, metrics, neighbours, (model, learned) = run.spec(), run.metrics(), run.neighbours(), run.fitted()
    if isinstance(model, AutoRec) and model.config.side == "item":
        raise ExportError(
            f"{run.path} is an item-based AutoRec: it knows only the users it was trained on, so it cannot serve. "
            f"Score those in a batch with `python -m training recommend {run.path} --output FILE`, or train "
            "autorec-user"
        )
    now = datetime.now(UTC)
    version = version or f"{now:%Y%m%d-%H%M%S}-{re.sub('[^A-Za-z0-9._-]', '-', spec.name)}"
    if not re.fullmatch(VERSION_NAME, version):
        raise ExportError(
            f"version {version!r} cannot name a folder: give letters, digits, dots, hyphens and underscores, at most "
            "100, the first a letter or digit"
        )
    manifest = Manifest(
        version=version,
        created=now.isoformat(timespec="seconds"),
        model=spec.config.model.name,
        items=model.items,
        dim=model.config.dim,
        length=model.config.length,
        config=spec.config.model_dump(mode="json"),
        seed=spec.seed,
        data=spec.data,
        metrics={
            part: metrics[part] for part in ("validation", "test", "baselines", "alone", "blend") if part in metrics
        },
        parity=Parity(cases=0, largest_difference=0.0, top_k_agreed=False),
    )
    content = Content(
        manifest=manifest,
        encoder=encoder_graph(model),
        ranker=build_ranker(neighbours=neighbours.width if neighbours else 0),
        items=model.item_matrix().detach().numpy(),
        ids=run.ids(),
        popularity=run.popularity(),
        attributes=run.attributes(),
        golden=golden(model, neighbours),
        neighbours=neighbours,
        inputs=model.inputs().detach().numpy() if isinstance(model, AutoRec) else None,
        shortlist=build_shortlist(),
        learned=learned,
    )
    content = with_scoring(content, scoring)
    certified = content.manifest.model_copy(update={"parity": certify(content, model)})
    return write_bundle(artifacts, replace(content, manifest=certified))


def encoder_graph(model: Model) -> bytes:
    """The encoder as ONNX, serialised.

    Inputs: sequences int64 (batch, length), right-padded with 0, and lengths int64 (batch,), both dimensions dynamic;
    items float32 (rows, dim), the item matrix. Instead of items an AutoRec takes inputs float32 (rows, hidden + 1), the
    matrix it reads items by, and for ratings values float32 (batch, length), NaN where an event has none.
    Output: vectors float32 (batch, dim).
    """
    # No upper bound of length: the runtime truncates, and a bound of 1 or 2 is below what the exporter can trace.
    batch, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=1)
    example: tuple[Tensor, ...] = (torch.ones(2, 3, dtype=torch.int64), torch.tensor([3, 2]))
    names = ["sequences", "lengths"]
    shapes: dict[str, Any] = {"sequences": {0: batch, 1: length}, "lengths": {0: batch}}
    encoder: nn.Module
    if isinstance(model, AutoRec):
        encoder = _RowEncoder(model)
        example, names = (*example, model.inputs().detach()), [*names, "inputs"]
        shapes["inputs"] = {0: torch.export.Dim("rows", min=2)}
        if model.config.feedback == "explicit":
            example, names = (*example, torch.full((2, 3), 3.0)), [*names, "values"]
            shapes["values"] = {0: batch, 1: length}
    else:
        encoder = _Encoder(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's notes to its own developers
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            encoder.eval(),
            example,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=names,
            output_names=["vectors"],
            dynamic_shapes=shapes,
        )
    if program is None:
        raise ExportError("torch's exporter returned no program")
    graph = program.model_proto
    if not isinstance(model, AutoRec):
        _share_items(graph.graph, rows=model.items + 1, dim=model.config.dim)
    onnx.checker.check_model(graph)
    return bytes(graph.SerializeToString())


def _share_items(graph: onnx.GraphProto, *, rows: int, dim: int) -> None:
    """Make the item embedding an input of the graph instead of a constant in it.

    It is the bundle's item matrix once more: as an input it is mapped memory that all processes share, and the file
    stays small whatever the catalogue (a constant would meet protobuf's limit of 2 GiB at eight million items).
    """
    constants = [tensor for tensor in graph.initializer if list(tensor.dims) == [rows, dim] and "item" in tensor.name]
    if len(constants) != 1:
        raise ExportError(f"expected one item embedding in the graph, found {[tensor.name for tensor in constants]}")
    graph.initializer.remove(constants[0])
    for node in graph.node:
        node.input[:] = ["items" if name == constants[0].name else name for name in node.input]
    graph.input.append(onnx.helper.make_tensor_value_info("items", onnx.TensorProto.FLOAT, ["rows", dim]))


def golden(model: Model, neighbours: Neighbours | None = None) -> Golden:
    """Random histories, an empty and an over-long one among them, with torch's answers and what neighbours add."""
    generator = np.random.default_rng(0)
    longest = model.config.length
    lengths = [0, 1, longest, longest + 5, *generator.integers(1, longest + 1, _GOLDEN_CASES - 4)]
    histories = _random_histories(generator, model.items, lengths)
    values = _random_values(generator, model, histories)
    vectors, indices, scores = _torch_answers(model, histories, values, neighbours)
    sequences, padded_lengths = pad(histories)
    beside = None if values is None else pad_values(values, sequences.shape[1])
    return Golden(sequences, padded_lengths, sequences, vectors, indices, scores, beside)


def certify(content: Content, model: Model) -> Parity:
    """Compare onnxruntime with torch over the grid, from a bundle in a temporary folder.

    Raises ExportError with the worst difference if any score is further away than `tolerance_of` allows, or a top-k
    differs by more than an exchange of equal scores.
    """
    generator = np.random.default_rng(1)
    longest = model.config.length
    edges = [0, 1, 2, longest // 2, longest - 1, longest, longest + 7]
    histories = _random_histories(generator, model.items, [*edges, *generator.integers(0, longest + 8, _PARITY_CASES)])
    values = _random_values(generator, model, histories)
    vectors, indices, scores = _torch_answers(model, histories, values, content.neighbours)
    bonus = None if content.neighbours is None else content.neighbours.bonus(histories)
    allowed = tolerance_of(scores)
    cases, worst, agreed = 0, 0.0, True
    with tempfile.TemporaryDirectory() as folder:
        runtime = Runtime(read_bundle(write_bundle(Path(folder), content)), device="cpu")
        try:
            runtime.replay_golden()
        except BundleError as error:
            raise ExportError(
                f"the graphs do not give torch's golden answers; nothing was published: {error}"
            ) from error
        for batch in _PARITY_BATCHES:
            for rows in np.array_split(np.arange(len(histories)), -(-len(histories) // batch)):
                chosen = [histories[row] for row in rows]
                found = runtime.encode(chosen, None if values is None else [values[row] for row in rows])
                found_indices, found_scores = runtime.rank(found, chosen, _K, chosen)
                difference = np.max([np.abs(found - vectors[rows]).max(), np.abs(found_scores - scores[rows]).max()])
                worst = max(worst, float(difference)) if np.isfinite(difference) else float("inf")
                agreed &= same_items(
                    content.items,
                    vectors[rows],
                    found_indices,
                    indices[rows],
                    scores[rows],
                    bonus=None if bonus is None else bonus[rows],
                    allowed=allowed,
                )
                cases += len(rows)
    if not (worst <= allowed and agreed):
        raise ExportError(
            f"onnxruntime and torch differ by {worst:.2g} (at most {allowed:.2g} is allowed) over {cases} histories, "
            f"top-{_K} {'agree' if agreed else 'differ'}; nothing was published"
        )
    return Parity(cases=cases, largest_difference=worst, top_k_agreed=agreed)


def _random_histories(generator: np.random.Generator, items: int, lengths: list[int]) -> list[NDArray[np.int64]]:
    return [generator.integers(1, items + 1, length) for length in lengths]


def _random_values(
    generator: np.random.Generator, model: Model, histories: list[NDArray[np.int64]]
) -> list[Values] | None:
    """Ratings on and beyond both ends of the scale, a tenth of them missing; None for a model that reads none."""
    if not isinstance(model, AutoRec) or model.config.feedback == "implicit":
        return None
    low, high = model.low.item() - 1, model.high.item() + 1
    values = [generator.uniform(low, high, len(history)).astype(np.float32) for history in histories]
    return [np.where(generator.random(len(row)) < 0.1, np.float32(np.nan), row) for row in values]


@torch.no_grad()
def _torch_answers(
    model: Model,
    histories: list[NDArray[np.int64]],
    values: list[Values] | None,
    neighbours: Neighbours | None,
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    """Vectors, and the top-k without the history: the obvious way, one history at a time, unpadded, all positions.

    Of an AutoRec dense rows of the matrix, as it is trained.
    """
    if isinstance(model, AutoRec):
        model.eval()
        ends = np.cumsum([len(history) for history in histories])
        flat = np.concatenate(histories).astype(np.int32)
        starts = ends - [len(history) for history in histories]
        beside = None if values is None else np.concatenate(values)
        vectors = model.read(*history_rows(model, Sequences(flat, starts, ends, None, beside)))
    else:
        newest: list[Indices] = [truncate(history, model.config.length) for history in histories]
        inputs = [torch.from_numpy(history if len(history) else np.zeros(1, np.int64)) for history in newest]
        vectors = torch.stack([model(sequence[None])[0, -1] for sequence in inputs])
    k = min(_K, model.items)
    indices, best = np.empty((len(histories), k), np.int64), np.empty((len(histories), k), np.float32)
    for row, history in enumerate(histories):  # of a large catalogue, all scores at once are gigabytes
        scores = model.item_matrix() @ vectors[row]
        if neighbours is not None:
            scores += torch.from_numpy(neighbours.bonus([history])[0])
        scores[0] = EXCLUDED_SCORE
        scores[torch.from_numpy(history)] = EXCLUDED_SCORE
        ranked = torch.sort(scores, descending=True, stable=True)
        indices[row], best[row] = ranked.indices[:k].numpy(), ranked.values[:k].numpy()
    return vectors.numpy(), indices, best
