"""LitServe with its batching: `python -m bench.peers.serve_litserve PORT WORKERS`."""

import sys
from typing import Any

import litserve

from bench.peers.ranking import BATCH, WAIT_S, Ranking


class Recommend(litserve.LitAPI):  # type: ignore[misc]
    """Item ids in, items out."""

    def setup(self, device: str) -> None:
        self._ranking = Ranking()

    def decode_request(self, request: dict[str, Any]) -> list[str]:
        return request["history"]  # type: ignore[no-any-return]

    def batch(self, inputs: list[list[str]]) -> list[list[str]]:
        return inputs

    def predict(self, histories: list[list[str]]) -> list[list[dict[str, Any]]]:
        return self._ranking.of_ids(histories)

    def unbatch(self, output: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
        return output

    def encode_response(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        return {"items": items}


def main(port: int, workers: int) -> None:
    api = Recommend(max_batch_size=BATCH, batch_timeout=WAIT_S, api_path="/recommend")
    server = litserve.LitServer(api, accelerator="cpu", devices=1, workers_per_device=workers, fast_queue=True)
    server.run(host="127.0.0.1", port=port, num_api_servers=workers, generate_client_file=False, log_level="error")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
