"""BentoML with its adaptive batching: `bentoml serve bench.peers.serve_bentoml:Recommend`."""

import os
from typing import Any

import bentoml

from bench.peers.ranking import BATCH, Ranking


@bentoml.service(
    workers=int(os.environ.get("BENCH_WORKERS", "1")),
    traffic={"timeout": 60},
    logging={"access": {"enabled": False}},  # no other server here writes a line a request
    metrics={"enabled": False},
)
class Recommend:
    """Item ids in, items out; a call brings one history and is batched with others."""

    def __init__(self) -> None:
        self._ranking = Ranking()

    @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=1000, route="/recommend")  # type: ignore[untyped-decorator]
    def recommend(self, histories: list[list[str]]) -> list[list[dict[str, Any]]]:
        return self._ranking.of_ids(histories)
