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
    ("admin", "GET", "/users/ada/history"),
    ("admin", "DELETE", "/users/ada"),
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


@pytest.fixture
def keyless(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str
) -> Callable[..., httpx.Client]:
    """Start a service without keys."""
    make_bundle("v1")
    return lambda **settings: start_service(store_url, **settings)


def refusals(client: httpx.Client, headers: dict[str, str]) -> set[tuple[int, str]]:
    """What every call answers that has these headers, as a web page sends it: as plain text, which needs no leave."""
    answers = [client.request(method, path, headers=headers, content=b"{}") for _, method, path in CALLS]
    return {(answer.status_code, answer.json().get("code", "")) for answer in answers}


@pytest.mark.parametrize("trusted_network", [False, True])
def test_without_keys_a_page_of_another_site_is_refused(
    keyless: Callable[..., httpx.Client], trusted_network: bool
) -> None:
    client = keyless(trusted_network=trusted_network)
    port = client.base_url.port
    for origin in ("https://evil.example", "null", "http://127.0.0.1", f"http://localhost:{port}", ""):
        assert refusals(client, {"Origin": origin}) == {(403, "cross_origin")}
    answer = client.post("/events", headers={"Origin": "https://evil.example"}, json={})
    assert "https://evil.example" in answer.json()["detail"]


@pytest.mark.parametrize("trusted_network", [False, True])
def test_without_keys_the_services_own_pages_and_programs_are_answered(
    keyless: Callable[..., httpx.Client], trusted_network: bool
) -> None:
    client = keyless(trusted_network=trusted_network)
    port = client.base_url.port
    for host in (f"127.0.0.1:{port}", f"LocalHost:{port}", f"[::1]:{port}", "localhost", "127.3.2.1"):
        for headers in ({"Host": host}, {"Host": host, "Origin": f"http://{host}"}):
            assert client.post("/recommend", headers=headers, json={}).status_code == 200


def test_without_keys_a_name_that_was_made_to_mean_this_machine_is_refused(
    keyless: Callable[..., httpx.Client],
) -> None:
    client = keyless()
    for host in ("evil.example", f"evil.example:{client.base_url.port}", "localhost.evil.example", "10.0.0.1", "[::2]"):
        for headers in ({"Host": host}, {"Host": host, "Origin": f"http://{host}"}):
            assert refusals(client, headers) == {(403, "foreign_host")}
    detail = client.get("/models", headers={"Host": "evil.example"}).json()["detail"]
    assert "evil.example" in detail
    assert "RECSERVE_API_KEY_HASHES" in detail


def test_a_trusted_network_may_call_the_service_whatever_it_is(keyless: Callable[..., httpx.Client]) -> None:
    client = keyless(trusted_network=True)
    for headers in ({"Host": "service:8000"}, {"Host": "rec.example", "Origin": "https://rec.example"}):
        assert client.post("/recommend", headers=headers, json={}).status_code == 200


def test_with_a_key_it_does_not_matter_where_a_request_comes_from(client: httpx.Client, keys: dict[str, str]) -> None:
    headers = {"Authorization": f"Bearer {keys['recommend']}", "Origin": "https://shop.example", "Host": "rec.example"}
    assert client.post("/recommend", headers=headers, json={}).status_code == 200


def test_keys_have_256_random_bits() -> None:
    import base64

    made = [new_key() for _ in range(50)]
    assert {len(base64.urlsafe_b64decode(key + "=")) for key, _ in made} == {32}
    assert len({key for key, _ in made}) == 50
