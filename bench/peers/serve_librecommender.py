"""LibRecommender's serving of embeddings: `python -m bench.peers.serve_librecommender PORT WORKERS`.

Its own Sanic application and FAISS index (80 lists, 10 of them searched, as it makes them), over the store that the
benchmark has: it knows users by name and has a vector of each, so that it encodes no history.
"""

import os
import sys
import tempfile
from pathlib import Path

import faiss
import redis.asyncio
from libserving.sanic_serving import embed_deploy
from sanic import Request, Sanic, response
from sanic.worker.loader import AppLoader

from bench.peers.ranking import BUNDLE
from bench.peers.users import STORE
from models.bundle import read_bundle

_LISTS, _SEARCHED = 80, 10
_INDEX = "BENCH_FAISS_INDEX"  # variable with the file of the index, for processes that are started from the first


def application() -> Sanic:
    """The application, with the benchmark's index and store instead of one in its package and of port 6379."""
    app = embed_deploy.app
    embed_deploy.find_index_path = lambda: os.environ[_INDEX]
    faiss.omp_set_num_threads(1)
    app.before_server_start(_connect)  # after its own listener
    app.add_route(_ready, "/ready")
    return app


async def _connect(app: Sanic) -> None:
    app.ctx.redis = redis.asyncio.from_url(os.environ[STORE], decode_responses=True)


async def _ready(request: Request) -> response.HTTPResponse:
    return response.empty(200)


def _write_index(path: Path) -> None:
    items = read_bundle(Path(os.environ[BUNDLE])).items[1:]
    dim = items.shape[1]
    quantiser = faiss.IndexFlatIP(dim)
    index = faiss.IndexIVFFlat(quantiser, dim, _LISTS, faiss.METRIC_INNER_PRODUCT)
    index.train(items)
    index.add(items)
    index.nprobe = _SEARCHED
    faiss.write_index(index, str(path))


def main(port: int, workers: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ[_INDEX] = str(Path(folder) / "items.faiss")
        _write_index(Path(os.environ[_INDEX]))
        loader = AppLoader(factory=application)
        app = loader.load()
        alone = workers == 1
        app.prepare(host="127.0.0.1", port=port, workers=workers, single_process=alone, access_log=False, motd=False)
        if alone:
            Sanic.serve_single(primary=app)
        else:
            Sanic.serve(primary=app, app_loader=loader)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
