"""Keys and scopes, over HTTP."""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from service.auth import new_key

MADE = {scope: new_key() for scope in ("recommend", "events", "items", "admin", "none")}


@pytest.fixture
def keys() -> dict[str, str]:
    """A key for each scope, and one without any."""
    return {scope: key for scope, (key, _) in MADE.items()}


@pytest.fixture
def client(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str
) -> httpx.Client:
    make_bundle("v1")
    hashes = {key_hash: [] if scope == "none" else [scope] for scope, (_, key_hash) in MADE.items()}
    return start_service(store_url, api_key_hashes=hashes)


CALLS = [
    ("recommend", "POST", "/recommend"),
    ("events", "POST", "/events"),
    ("admin", "GET", "/models"),
    ("admin", "POST", "/models/rollback"),
    ("admin", "POST", "/models/v9/promote"),
]


def test_each_route_asks_for_its_scope_and_no_other(client: httpx.Client, keys: dict[str, str]) -> None:
    for needed, method, path in CALLS:
        for scope, key in keys.items():
            response = client.request(method, path, headers={"Authorization": f"Bearer {key}"}, json={})
            if scope == needed:
                assert response.status_code not in (401, 403)
            else:
                assert (response.status_code, response.json()["code"]) == (403, "forbidden")
                assert needed in response.json()["detail"]


def test_without_a_known_key_the_answer_is_a_401_that_repeats_no_secret(
    client: httpx.Client, keys: dict[str, str]
) -> None:
    key = keys["recommend"]
    for header in (None, "", "Bearer", "Bearer wrong", f"Basic {key}", key, f"Bearer {key}x", f"Bearer x{key}"):
        headers = {} if header is None else {"Authorization": header}
        for _, method, path in CALLS:
            response = client.request(method, path, headers=headers, content=b"{")  # refused before it is read
            assert (response.status_code, response.json()["code"]) == (401, "unauthorized")
            assert response.headers["www-authenticate"].startswith("Bearer")
            assert key not in response.text


def test_a_hash_is_not_a_key(client: httpx.Client, keys: dict[str, str]) -> None:
    import hashlib

    key_hash = hashlib.sha256(keys["recommend"].encode()).hexdigest()
    assert client.post("/recommend", headers={"Authorization": f"Bearer {key_hash}"}, json={}).status_code == 401


def test_probes_and_documentation_need_no_key(client: httpx.Client) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"):
        assert client.get(path).status_code == 200


def test_keys_have_256_random_bits() -> None:
    import base64

    made = [new_key() for _ in range(50)]
    assert {len(base64.urlsafe_b64decode(key + "=")) for key, _ in made} == {32}
    assert len({key for key, _ in made}) == 50
