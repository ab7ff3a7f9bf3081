"""What LibRecommender keeps in Redis of users and items, written as its own serialisation writes it."""

import json
from collections.abc import Sequence
from pathlib import Path

STORE = "BENCH_STORE"  # variable with the URL of the store, for a peer that reads one


def store_users(bundle: Path, store_url: str, histories: Sequence[list[str]]) -> None:
    """Write every user's vector and history, user-0 having the first of `histories`, and the ids of items.

    A vector is what the bundle's encoder gives for the history: it is stored instead of encoded for a request.
    """
    # Imported here, since the peers' own environment has no client for it and reads only STORE.
    import redis  # noqa: PLC0415

    from models.bundle import read_bundle  # noqa: PLC0415
    from models.runtime import Runtime  # noqa: PLC0415

    opened = read_bundle(bundle)
    indices = [opened.indices(history) for history in histories]
    vectors = Runtime(opened, device="cpu", threads=1).encode(indices)
    with redis.Redis.from_url(store_url) as client, client.pipeline(transaction=False) as pipeline:
        numbers = [str(number) for number in range(len(histories))]
        pipeline.hset("user2id", mapping={f"user-{number}": number for number in numbers})
        pipeline.hset("id2item", mapping={str(row - 1): item for row, item in enumerate(opened.ids) if row})
        pipeline.hset(
            "user_consumed",
            mapping={
                number: json.dumps([int(row) - 1 for row in rows])
                for number, rows in zip(numbers, indices, strict=True)
            },
        )
        pipeline.hset(
            "user_embed",
            mapping={number: json.dumps(row.tolist()) for number, row in zip(numbers, vectors, strict=True)},
        )
        pipeline.execute()
