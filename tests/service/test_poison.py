"""Each poisonous request is refused as it should be, in the agreed form, and harms nobody."""

import asyncio
import json
from collections import Counter

import httpx
import pytest

from reliability.poison import Poison, corpus
from reliability.wire import ask

CORPUS = list(corpus())


@pytest.mark.parametrize("poison", CORPUS, ids=lambda poison: poison.name)
def test_it_is_refused_as_it_should_be(client: httpx.Client, poison: Poison) -> None:
    answer = asyncio.run(ask(client.base_url.host, client.base_url.port or 80, poison.sent()))
    assert answer is not None
    problem = json.loads(answer.body)
    assert (answer.status, problem["code"]) == (poison.status, poison.code), problem
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(problem) == {"type", "title", "status", "detail", "code", "errors", "request_id"}
    assert (problem["status"], problem["request_id"]) == (answer.status, answer.headers["x-request-id"])
    assert poison.code != "malformed_json" or "line 1" in problem["detail"]
    assert len(answer.body) < 10_000
    assert "Traceback" not in answer.body.decode()
    assert client.post("/recommend", json={"history": ["i1"]}).status_code == 200


def test_the_corpus_is_large_and_names_each_once() -> None:
    assert len(CORPUS) >= 80
    assert [name for name, count in Counter(poison.name for poison in CORPUS).items() if count > 1] == []
