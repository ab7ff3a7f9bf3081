"""Keys and scopes, over HTTP."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from service.keyfile import SCOPES, KeyFolder


@pytest.fixture
def folder(artifacts: Path) -> KeyFolder:
    """Where the service has its keys."""
    return KeyFolder(artifacts / "keys")


@pytest.fixture
def keys(folder: KeyFolder) -> dict[str, str]:
    """A key for each scope, and one without any."""
    made = {scope: folder.create(scope, [scope])[1] for scope in SCOPES}
    return made | {"none": folder.create("none", [])[1]}


@pytest.fixture
def client(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str, keys: dict[str, str]
) -> httpx.Client:
    make_bundle("v1")
    return start_service(store_url)


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def as_holder(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


CALLS = [
    ("recommend", "POST", "/recommend"),
    ("events", "POST", "/events"),
    ("recommend", "POST", "/recommend/batch"),
    ("items", "PUT", "/items"),
    ("recommend", "GET", "/items/i1/similar"),
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
                assert f'scope="{needed}"' in response.headers["www-authenticate"]


PUBLIC = {"/healthz", "/readyz", "/metrics"}


def test_no_route_but_the_probes_is_open_to_who_has_no_key_or_no_scope(
    client: httpx.Client, keys: dict[str, str]
) -> None:
    described = client.get("/openapi.json").json()["paths"]
    walked = [(method, path) for path, methods in described.items() for method in methods if path not in PUBLIC]
    assert len(walked) >= len({path for _, _, path in CALLS})
    for method, path in walked:
        filled = re.sub(r"\{\w+\}", "x", path)
        bare = client.request(method, filled)
        assert (bare.status_code, bare.json()["code"]) == (401, "unauthorized"), (method, path)
        assert bare.headers["www-authenticate"].startswith("Bearer ")
        useless = client.request(method, filled, headers=as_holder(keys["none"]))
        assert (useless.status_code, useless.json()["code"]) == (403, "forbidden"), (method, path)


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


def test_what_is_kept_of_a_key_is_not_a_key(client: httpx.Client, keys: dict[str, str], folder: KeyFolder) -> None:
    found = {key.name: key for key in folder.read().keys.values()}["recommend"]
    for guess in (found.hmac, found.id, f"rsk_{found.id}_{found.hmac[:43]}"):
        assert client.post("/recommend", headers=as_holder(guess), json={}).status_code == 401


def test_a_key_works_and_ends_while_the_service_runs(
    client: httpx.Client, keys: dict[str, str], folder: KeyFolder
) -> None:
    def status(key: str) -> int:
        return client.post("/recommend", headers=as_holder(key), json={}).status_code

    made, key = folder.create("late", ["recommend"])
    eventually(lambda: status(key) == 200)
    folder.revoke(made.id)
    eventually(lambda: status(key) == 401)
    assert status(keys["recommend"]) == 200


def test_the_first_key_closes_an_open_service_and_the_last_does_not_open_it(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str, folder: KeyFolder
) -> None:
    make_bundle("v1")
    client = start_service(store_url)
    assert client.post("/recommend", json={}).status_code == 200
    made, key = folder.create("first", ["recommend"])
    eventually(lambda: client.post("/recommend", json={}).status_code == 401)
    assert client.post("/recommend", headers=as_holder(key), json={}).status_code == 200
    folder.revoke(made.id)
    eventually(lambda: client.post("/recommend", headers=as_holder(key), json={}).status_code == 401)
    assert client.post("/recommend", json={}).status_code == 401


def test_a_look_that_fails_closes_an_open_service_and_the_next_opens_it_unless_there_was_a_key(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str, folder: KeyFolder
) -> None:
    """A link to itself is what neither can be read nor is away."""
    make_bundle("v1")
    client = start_service(store_url)
    open_to_all = lambda: client.post("/recommend", json={}).status_code == 200  # noqa: E731
    assert open_to_all()
    folder.folder.symlink_to(folder.folder.name)
    eventually(lambda: not open_to_all())
    folder.folder.unlink()
    eventually(open_to_all)
    folder.create("first", ["recommend"])
    eventually(lambda: not open_to_all())
    folder.folder.rename(folder.folder.with_name("gone"))
    time.sleep(0.6)  # it has been looked at twice
    folder.folder.symlink_to(folder.folder.name)
    time.sleep(0.6)
    folder.folder.unlink()
    time.sleep(0.6)
    assert not open_to_all()


def test_a_damaged_file_of_keys_changes_nothing_and_one_that_is_gone_ends_all(
    client: httpx.Client, keys: dict[str, str], folder: KeyFolder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    def status(scope: str) -> int:
        return client.post("/recommend", headers=as_holder(keys[scope]), json={}).status_code

    path = folder.folder / "keys.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    time.sleep(0.6)  # it has been looked at twice
    assert status("recommend") == 200
    assert "the keys can be read again" not in caplog.messages
    path.write_bytes(whole)
    eventually(lambda: "the keys can be read again" in caplog.messages)
    path.unlink()
    eventually(lambda: status("recommend") == 401)
    assert client.post("/recommend", json={}).status_code == 401
    path.write_bytes(whole)
    eventually(lambda: status("recommend") == 200)
    assert caplog.messages.count("the keys can be read again") == 1


def test_a_service_that_starts_without_its_file_of_keys_but_with_the_secret_answers_nobody(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str, folder: KeyFolder
) -> None:
    """As a worker does that is replaced after the file was deleted."""
    make_bundle("v1")
    _, key = folder.create("only", ["recommend"])
    path = folder.folder / "keys.json"
    whole = path.read_bytes()
    path.unlink()
    client = start_service(store_url)
    assert client.post("/recommend", json={}).status_code == 401
    assert client.get("/models").status_code == 401
    path.write_bytes(whole)
    eventually(lambda: client.post("/recommend", headers=as_holder(key), json={}).status_code == 200)


def test_probes_documentation_and_the_console_need_no_key(client: httpx.Client) -> None:
    for path in ("/", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"):
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
    assert "python -m service keys create" in detail


def test_a_trusted_network_may_call_the_service_whatever_it_is(keyless: Callable[..., httpx.Client]) -> None:
    client = keyless(trusted_network=True)
    for headers in ({"Host": "service:8000"}, {"Host": "rec.example", "Origin": "https://rec.example"}):
        assert client.post("/recommend", headers=headers, json={}).status_code == 200


def test_a_trusted_network_may_be_bound_to_names(keyless: Callable[..., httpx.Client]) -> None:
    client = keyless(trusted_network=True, allowed_hosts=["Service", "rec.example"])
    for host in ("service:8000", "REC.example", "localhost", "127.0.0.1:8000", "[::1]"):
        assert client.post("/recommend", headers={"Host": host, "Origin": f"http://{host}"}, json={}).status_code == 200
    for host in ("evil.example", "service.evil.example", "10.0.0.1:8000"):
        for headers in ({"Host": host}, {"Host": host, "Origin": f"http://{host}"}):
            assert refusals(client, headers) == {(403, "foreign_host")}


def test_with_a_key_it_does_not_matter_where_a_request_comes_from(client: httpx.Client, keys: dict[str, str]) -> None:
    headers = {"Authorization": f"Bearer {keys['recommend']}", "Origin": "https://shop.example", "Host": "rec.example"}
    assert client.post("/recommend", headers=headers, json={}).status_code == 200
