"""The console: how it is answered, what a browser may do with it, and that it asks only for what there is."""

import base64
import hashlib
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

from service.keyfile import KeyFolder

PAGE = Path("service/console/index.html")
OUTSIDE = re.compile(r"//(?!www\.w3\.org/2000/svg)[\w.-]+\.\w+/")  # the name of SVG is an address nobody asks for


class Parts(HTMLParser):
    """What a browser finds in a page: tags with their attributes, and the text of each script and style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline: dict[str, list[str]] = {"script": [], "style": []}
        self.unlabelled: list[dict[str, str | None]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag in ("input", "textarea") and "label" not in self._open:
            self.unlabelled.append(dict(attributes))
        if tag not in ("input", "link", "meta"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"a {tag} ends that is not open"

    def handle_data(self, text: str) -> None:
        if self._open and self._open[-1] in self.inline:
            self.inline[self._open[-1]].append(text)


@pytest.fixture(scope="module")
def parts() -> Parts:
    return Parts(PAGE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def script(parts: Parts) -> str:
    (text,) = parts.inline["script"]
    return text


def policy_of(answer: httpx.Response) -> dict[str, str]:
    named = (directive.partition(" ") for directive in answer.headers["content-security-policy"].split("; "))
    return {name: value for name, _, value in named}


def test_the_page_is_answered_as_it_is_and_as_nothing_else(client: httpx.Client) -> None:
    answer = client.get("/")
    assert (answer.status_code, answer.content) == (200, PAGE.read_bytes())
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-cache"
    assert len(answer.headers.get_list("x-request-id")) == 1
    assert client.get("/").headers.get_list("x-request-id") != answer.headers.get_list("x-request-id")


def test_its_head_is_that_of_the_page_and_other_methods_are_problems(client: httpx.Client) -> None:
    answer = client.head("/")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(PAGE.stat().st_size)
    refused = client.post("/", json={})
    assert (refused.status_code, refused.json()["code"]) == (405, "method_not_allowed")


def test_a_browser_may_run_its_own_script_and_call_this_service_alone(client: httpx.Client, parts: Parts) -> None:
    policy = policy_of(client.get("/"))
    for kind, texts in parts.inline.items():
        (text,) = texts
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy.pop(f"{kind}-src") == f"'sha256-{digest}'"
    for what in ("default-src", "base-uri", "form-action", "frame-ancestors", "trusted-types"):
        assert policy.pop(what) == "'none'"
    assert policy == {"connect-src": "'self'", "img-src": "data:", "require-trusted-types-for": "'script'"}


def test_the_page_needs_nothing_from_elsewhere_and_nothing_that_its_policy_forbids(parts: Parts) -> None:
    assert not OUTSIDE.findall(PAGE.read_text(encoding="utf-8"))
    for tag, attributes in parts.tags:
        assert not {name for name in attributes if name.startswith("on") or name in ("style", "src", "action")}, tag
        address = attributes.get("href") or "docs"
        assert address in ("docs", "metrics") or address.startswith("data:image/svg+xml,")


def test_ids_enter_the_page_as_text_and_the_key_stays_in_its_tab(script: str) -> None:
    markup = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|eval\(|new Function|srcdoc"
    kept = r"localStorage|document\.cookie|indexedDB|history\.pushState|location"
    assert not re.findall(f"{markup}|{kept}", script)
    assert script.count("sessionStorage.setItem(") == 1


def test_every_field_has_a_label(parts: Parts) -> None:
    assert parts.unlabelled == []


def test_what_the_script_looks_for_is_on_the_page_once(parts: Parts, script: str) -> None:
    ids = [attributes["id"] for _, attributes in parts.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert set(re.findall(r'(?:\$|attempt|onSubmit)\("([\w-]+)"', script)) == set(ids)


def test_every_call_of_the_page_is_one_that_is_described(client: httpx.Client, script: str) -> None:
    assert script.count("fetch(") == 1  # in `call`
    called = set(re.findall(r"""\bcall\("([A-Z]+)", ["`]([^"`]+)["`]""", script))
    assert len(re.findall(r"\bcall\(", script)) == len(called) + 1  # its definition
    described = client.get("/openapi.json").json()["paths"]
    patterns = {
        (method.upper(), re.sub(r"\{\w+\}", "*", path)) for path, methods in described.items() for method in methods
    }
    asked = {(method, "/" + re.sub(r"\$\{[^}]+\}", "*", path.partition("?")[0])) for method, path in called}
    assert len(asked) == 11
    assert asked <= patterns


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not there to read the script")
def test_the_script_is_javascript(script: str, tmp_path: Path) -> None:
    module = tmp_path / "console.mjs"
    module.write_text(script, encoding="utf-8")
    done = subprocess.run(["node", "--check", module], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr


def test_a_service_with_keys_gives_the_page_to_who_has_none_and_answers_its_calls_with_one(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str, artifacts: Path
) -> None:
    make_bundle("v1")
    _, key = KeyFolder(artifacts / "keys").create("operator", ["recommend", "admin"])
    client = start_service(store_url)
    assert client.get("/").content == PAGE.read_bytes()
    assert client.get("/models").status_code == 401
    headers = {"Authorization": f"Bearer {key}", "Origin": str(client.base_url).rstrip("/")}
    assert client.get("/models", headers=headers).status_code == 200


def test_without_a_key_its_calls_are_those_of_a_page_of_the_service(client: httpx.Client) -> None:
    own = str(client.base_url).rstrip("/")
    assert client.post("/recommend", headers={"Origin": own}, json={"k": 1, "explain": True}).status_code == 200
