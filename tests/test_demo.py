"""The demo as a person runs it: the story is told, and nothing is left behind."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from service.keyfile import KeyFolder

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data" / "ml-100k"

pytestmark = pytest.mark.skipif(
    not DATA.exists(), reason="MovieLens-100K is not at ../shared/data/ml-100k; the demo would have to download it"
)

QUICK = """
[model]
name = "sasrec"
dim = 16
blocks = 1
inner = 16

[training]
batch = 64
epochs = 2
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def demo(artifacts: Path, *options: object) -> list[str]:
    port = free_port()
    paths = ["--artifacts", artifacts, "--from", DATA, "--port", port]
    return [sys.executable, "demo.py", *map(str, paths), *map(str, options)]


def processes_under(folder: Path) -> list[str]:
    """Command lines of live processes that mention a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line:
            found.append(line)
    return found


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a first demo leaves: a promoted bundle of a quickly trained model."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "quick.toml").write_text(QUICK, encoding="utf-8")
    done = subprocess.run(
        demo(folder / "artifacts", "--exit", "--config", folder / "quick.toml"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "NDCG@10" in done.stdout
    assert "item-kNN" in done.stdout
    assert "GroupLens" in done.stdout
    return folder / "artifacts"


def test_the_story_is_told_with_titles_and_the_list_changes(artifacts: Path) -> None:
    done = subprocess.run(
        demo(artifacts, "--exit", "--skip-train"), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "watched Star Wars (1977)" in done.stdout
    assert "5 films in the history" in done.stdout
    assert "6 films in the history" in done.stdout
    assert "of ten recommendations are new" in done.stdout
    assert "/docs" in done.stdout
    champion = (artifacts / "CURRENT").read_text(encoding="utf-8").split()[0]
    assert re.search(rf"^  curl -X POST http://\S+/models/{champion}/promote$", done.stdout, re.MULTILINE)
    assert processes_under(artifacts) == []


def test_ctrl_c_leaves_no_process_behind(artifacts: Path) -> None:
    process = subprocess.Popen(
        demo(artifacts, "--skip-train"), cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "Serving until" in line:
            break
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(20) == 0
    deadline = time.monotonic() + 5
    while (left := processes_under(artifacts)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


def test_a_service_that_ends_ends_the_demo(artifacts: Path) -> None:
    command = demo(artifacts, "--skip-train")
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if "Serving until" in line:
                break
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGKILL)
        assert process.wait(20) == 1
        assert "error: the service ended; its log" in process.stderr.read()


def test_a_strangers_service_on_the_port_is_left_alone(artifacts: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        command = demo(artifacts, "--exit", "--skip-train")
        command[command.index("--port") + 1] = str(taken.getsockname()[1])
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "is taken by another program; choose another with --port" in done.stderr
    assert "POST /events" not in done.stdout


def mistaken(command: list[str], **environment: str) -> str:
    """The one sentence of a demo that could not go on."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_a_taken_port_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        command = demo(tmp_path / "artifacts", "--exit")
        command[command.index("--port") + 1] = str(taken.getsockname()[1])
        assert "choose another with --port" in mistaken(command)
    assert not (tmp_path / "artifacts").exists()


def test_a_store_that_is_not_there_is_told_in_the_services_words(artifacts: Path) -> None:
    said = mistaken(demo(artifacts, "--exit", "--skip-train", "--redis", "redis://127.0.0.1:1"))
    assert "/events answered 503: the events could not be stored" in said
    assert processes_under(artifacts) == []


def test_keys_in_the_environment_are_told_in_the_services_words(artifacts: Path, tmp_path: Path) -> None:
    KeyFolder(tmp_path / "keys").create("shop", ["recommend"])
    said = mistaken(demo(artifacts, "--exit", "--skip-train"), RECSERVE_KEYS=str(tmp_path / "keys"))
    assert "answered 401: send a key" in said


def test_a_champion_that_is_not_there_is_told_by_name(artifacts: Path, tmp_path: Path) -> None:
    champion = (artifacts / "CURRENT").read_text(encoding="utf-8").split()[0]
    shutil.copytree(artifacts / champion, tmp_path / champion)
    (tmp_path / "CURRENT").write_text("v9\n", encoding="utf-8")
    assert "there is no version 'v9'" in mistaken(demo(tmp_path, "--exit", "--skip-train"))


def test_a_proxy_in_the_environment_is_not_asked_for_this_machine(artifacts: Path) -> None:
    done = subprocess.run(
        demo(artifacts, "--exit", "--skip-train"),
        cwd=ROOT,
        env={**os.environ, "http_proxy": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_a_bundle_the_demo_says_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run(
        demo(tmp_path, "--exit", "--skip-train"), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "run the demo without --skip-train" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_demo_trains_to_the_promised_quality_in_three_minutes(tmp_path: Path) -> None:
    import json

    done = subprocess.run(
        demo(tmp_path / "artifacts", "--exit"), cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = json.loads(next(tmp_path.glob("artifacts/runs/demo-ml-100k-*/metrics.json")).read_text(encoding="utf-8"))
    assert metrics["test"]["ndcg@10"] >= 0.105
