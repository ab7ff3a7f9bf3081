"""A bundle made for the benchmark, and an encoder as it is without thought: padded, at all positions.

The weights are random but shaped like trained ones: items lie in groups and their norms differ, so that scores do. It
is exported and certified by training's own code, once, and kept under `artifacts/bench/`.
"""

import warnings
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bench.probes import PADDED
from models.bundle import verify
from models.draft import Content, write_bundle
from models.manifest import BundleError, DataWindow, Manifest, Parity
from models.registry import Registry
from models.sasrec import SASRec, SASRecConfig
from training.export import certify, encoder_graph, golden
from training.ranker import OPSET, build_ranker
from training.scoring import Asked, with_scoring

_SEED = 7
_GROUPS = 64


def bench_bundle(folder: Path, items: int, scoring: Asked = "auto") -> Path:
    """Artifacts whose promoted bundle has so many items: dim 64, length 50, 2 blocks. Made if it is not there.

    Its catalogue is searched as `export --scoring` would have it. Beside the bundle lies PADDED, its encoder on
    sequences int64 (batch, 50) at all positions.
    """
    artifacts = folder / (f"items-{items}" if scoring == "auto" else f"items-{items}-{scoring}")
    version = f"bench-{items}"
    try:
        verify(artifacts / version)
    except (BundleError, OSError):
        pass
    else:
        if (artifacts / PADDED).exists() and Registry(artifacts).current() == version:
            return artifacts
    model = _model(items)
    if not (artifacts / version).exists():
        write_bundle(artifacts, with_scoring(_content(model, version), scoring))
    (artifacts / PADDED).write_bytes(_padded(model))
    Registry(artifacts).promote(version)
    return artifacts


def _model(items: int) -> SASRec:
    torch.manual_seed(_SEED)
    model = SASRec(SASRecConfig(), items).eval()
    generator = torch.Generator().manual_seed(_SEED)
    dim = model.config.dim
    centres = torch.randn(_GROUPS, dim, generator=generator)
    with torch.no_grad():
        weight = model.item_embedding.weight
        group = torch.randint(_GROUPS, (items,), generator=generator)
        rows = centres[group] + torch.randn(items, dim, generator=generator)
        rows *= torch.exp(0.3 * torch.randn(items, 1, generator=generator))
        weight[1:] = rows * (0.1 / dim**0.5)
    return model


def _content(model: SASRec, version: str) -> Content:
    items, generator = model.items, np.random.default_rng(_SEED)
    popularity = np.sort(generator.zipf(1.5, items).clip(max=100_000))[::-1].astype(np.float32)
    manifest = Manifest(
        version=version,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model="sasrec",
        items=items,
        dim=model.config.dim,
        length=model.config.length,
        config={},
        seed=_SEED,
        data=DataWindow(files={}, users=0, items=items, interactions=0),
        metrics={},
        parity=Parity(cases=0, largest_difference=0.0, top_k_agreed=False),
    )
    content = Content(
        manifest=manifest,
        encoder=encoder_graph(model),
        ranker=build_ranker(),
        items=model.item_matrix().detach().numpy(),
        ids=["", *(f"item-{row}" for row in range(1, items + 1))],
        popularity=np.concatenate([[0], popularity]).astype(np.float32),
        attributes=None,
        golden=golden(model),
    )
    parity = certify(content, model)
    certified = manifest.model_copy(update={"parity": parity})
    return replace(content, manifest=certified)


class _Everywhere(nn.Module):
    """The model's vectors at all positions; the caller takes the last."""

    def __init__(self, model: SASRec) -> None:
        super().__init__()
        self.model = model

    def forward(self, sequences: Tensor) -> Tensor:
        return self.model(sequences)  # type: ignore[no-any-return]


def _padded(model: SASRec) -> bytes:
    example = torch.ones(2, model.config.length, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's notes to its own developers
        program = torch.onnx.export(
            _Everywhere(model).eval(),
            (example,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=["sequences"],
            output_names=["vectors"],
            dynamic_shapes={"sequences": {0: torch.export.Dim("batch", min=1)}},
        )
    if program is None:
        raise RuntimeError("torch's exporter returned no program")
    return bytes(program.model_proto.SerializeToString())
