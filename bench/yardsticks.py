"""What the service is measured against: the straightforward stack, and servers that do nothing.

`python -m bench.yardsticks NAME PORT BUNDLE STORE_URL` serves one. Each stands on uvicorn as the service does, with
uvloop and httptools and no access log. The straightforward stack is what one writes first: a model for the body, one
for the answer, one read of the store and one run of the model a request. It has the service's own two graphs, so what
it lacks is batches and the lean path, not a good model; one thread a run, which served more than the default.
"""

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import redis.asyncio
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from models.bundle import read_bundle
from models.runtime import Runtime

LIST_KEY = "straightforward:%s"  # a user's item ids, oldest first

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Ask(BaseModel):
    """Whose recommendations are wanted."""

    user_id: str
    k: int = 10


class Item(BaseModel):
    """One of them."""

    item_id: str
    score: float
    source: str = "model"


class Answer(BaseModel):
    """As the service's."""

    recommendation_id: str
    model_version: str
    history_length: int
    source: str
    scoring: str
    degraded: list[str]
    items: list[Item]


async def raw(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Parses JSON and answers JSON, and nothing else: what HTTP costs."""
    body = b""
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    asked = orjson.loads(body) if body else {}
    content = orjson.dumps({"user_id": asked.get("user_id"), "items": []})
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def framework() -> FastAPI:
    """The framework's own empty answer: a model for the body, a model for the answer, nothing between."""
    app = FastAPI()

    @app.post("/recommend")
    async def recommend(ask: Ask) -> Answer:
        return _answer(ask.user_id, "none", 0, [])

    return app


def straightforward(bundle_folder: Path, store_url: str, *, threads: int = 1) -> FastAPI:
    """One request, one read, one run."""
    app = FastAPI()
    bundle = read_bundle(bundle_folder)
    runtime = Runtime(bundle, device="cpu", threads=threads)
    store = redis.asyncio.Redis.from_url(store_url, decode_responses=True)

    @app.post("/recommend")
    async def recommend(ask: Ask) -> Answer:
        history = await store.lrange(LIST_KEY % ask.user_id, 0, -1)
        sequence = np.array([bundle.index_of[str(item)] for item in history], np.int64)
        vectors = runtime.encode([sequence])
        indices, scores = runtime.rank(vectors, [sequence], ask.k, whole=True)  # one run: a scan is our own idea
        items = [
            Item(item_id=bundle.ids[index], score=score)
            for index, score in zip(indices[0].tolist(), scores[0].tolist(), strict=True)
        ]
        return _answer(ask.user_id, bundle.manifest.version, len(history), items)

    return app


def _answer(user_id: str, version: str, length: int, items: list[Item]) -> Answer:
    return Answer(
        recommendation_id=user_id,
        model_version=version,
        history_length=length,
        source="model",
        scoring="exact",
        degraded=[],
        items=items,
    )


def main(name: str, port: int, bundle: Path, store_url: str) -> None:
    apps: dict[str, Callable[[], Any]] = {
        "raw": lambda: raw,
        "framework": framework,
        "straightforward": lambda: straightforward(bundle, store_url),
    }
    uvicorn.run(
        apps[name](), host="127.0.0.1", port=port, loop="uvloop", http="httptools", lifespan="off", log_level="error"
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
