"""MLServer with its adaptive batching: `python -m bench.peers.serve_mlserver PORT WORKERS`.

Its batches are tensors of one shape, so histories are indices padded to 50, and indices come back: ids are translated
by nobody, which the others do.
"""

import asyncio
import sys

import numpy as np
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse, MetadataTensor

from bench.peers.ranking import BATCH, WAIT_S, Ranking
from bench.servers import free_port


class Recommend(MLModel):  # type: ignore[misc]
    """Indices (batch, 50), right-padded with 0, in; indices and scores (batch, 10) out."""

    async def load(self) -> bool:
        self._ranking = Ranking()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        padded = NumpyCodec.decode_input(payload.inputs[0])
        histories = [row[:length] for row, length in zip(padded, np.count_nonzero(padded, axis=1), strict=True)]
        indices, scores = self._ranking.of_indices(histories)
        outputs = [NumpyCodec.encode_output("indices", indices), NumpyCodec.encode_output("scores", scores)]
        return InferenceResponse(model_name=self.name, outputs=outputs)


async def main(port: int, workers: int) -> None:
    settings = Settings(
        host="127.0.0.1",
        http_port=port,
        grpc_port=free_port(),  # it cannot do without
        metrics_endpoint=None,
        parallel_workers=workers if workers > 1 else 0,  # 0: in the process that answers, which is faster than one
        debug=False,
        use_structured_logging=False,
    )
    model = ModelSettings(
        name="recommend",
        implementation="bench.peers.serve_mlserver.Recommend",  # by name, since its workers import it
        max_batch_size=BATCH,
        max_batch_time=WAIT_S,
        inputs=[MetadataTensor(name="history", datatype="INT64", shape=[-1, 50])],
    )
    await MLServer(settings).start([model])


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
