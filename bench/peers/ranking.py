"""What each peer runs for a batch: our own runtime with its buckets, so that only the serving around it differs."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bundle import read_bundle
from models.runtime import Runtime

BUNDLE = "BENCH_BUNDLE"  # variable with the bundle's folder, since peers start their own processes
BATCH = 64
WAIT_S = 0.002  # for a batch to fill, where a peer has such a wait: longer ones served less
K = 10


class Ranking:
    """Histories to the ten best items that are not in them."""

    def __init__(self) -> None:
        self.bundle = read_bundle(Path(os.environ[BUNDLE]))
        self._runtime = Runtime(self.bundle, device="cpu", threads=1)

    def of_ids(self, histories: Sequence[list[str]]) -> list[list[dict[str, Any]]]:
        """Items with scores for histories of item ids."""
        indices, scores = self.of_indices([self.bundle.indices(list(history)) for history in histories])
        ids = self.bundle.ids
        return [
            [{"item_id": ids[item], "score": score} for item, score in zip(found, beside, strict=True)]
            for found, beside in zip(indices.tolist(), scores.tolist(), strict=True)
        ]

    def of_indices(self, histories: Sequence[NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Indices and scores, both (batch, 10), for histories of indices."""
        return self._runtime.rank(self._runtime.encode(histories), histories, K)
