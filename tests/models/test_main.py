"""`python -m models` as an operator meets it: what it prints, where, and its exit status."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from models.__main__ import main
from models.registry import Registry

MakeBundle = Callable[..., Path]


@pytest.fixture
def command(artifacts: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run it with these words: exit status, standard output, standard error."""

    def run(*words: str) -> tuple[int, str, str]:
        status = main(["--artifacts", str(artifacts), *words])
        return status, *capsys.readouterr()

    return run


def test_the_story_of_three_versions(
    artifacts: Path, make_bundle: MakeBundle, command: Callable[..., tuple[int, str, str]]
) -> None:
    assert command("list") == (
        0,
        f"no versions in {artifacts}; make one with: python -m training export RUN\n",
        "",
    )
    for version in ("v1", "v2"):
        make_bundle(version, promote=False)
    assert command("verify", "v1") == (0, "v1: complete, unchanged, and equal to its golden answers\n", "")
    assert command("promote", "v1") == (0, "champion is v1 (before: none)\n", "")
    assert command("promote", "v2") == (0, "champion is v2 (before: v1)\n", "")
    make_bundle("v3", promote=False)
    status, out, error = command("list")
    header, *lines = out.splitlines()
    assert (status, error) == (0, "")
    assert header.split() == ["version", "model", "items", "test", "created"]
    assert [line.split()[:5] for line in lines] == [
        ["v1", "last_item", "12", "ndcg@10=0.5000", "2026-01-01T00:00:00Z"],
        ["*", "v2", "last_item", "12", "ndcg@10=0.5000"],
        ["v3", "last_item", "12", "ndcg@10=0.5000", "2026-01-01T00:00:02Z"],
    ]
    assert command("rollback") == (0, "champion is v1\n", "")
    status, out, error = command("rollback")
    assert (status, out) == (1, "")
    assert error == f"error: there is no earlier champion in {artifacts} to roll back to\n"
    assert Registry(artifacts).current() == "v1"


def test_the_list_shows_the_error_of_ratings_where_a_model_was_judged_by_that(
    make_bundle: MakeBundle, command: Callable[..., tuple[int, str, str]]
) -> None:
    make_bundle("v1", test={"rmse": 0.8571, "mae": 0.7})
    assert command("list")[1].splitlines()[1].split()[4] == "rmse=0.8571"


def test_a_damaged_version_is_shown_in_the_list_and_refused_by_the_rest(
    artifacts: Path, make_bundle: MakeBundle, command: Callable[..., tuple[int, str, str]]
) -> None:
    make_bundle("v1")
    make_bundle("v2", promote=False)
    (artifacts / "v2" / "items.npy").unlink()
    for word in ("verify", "promote"):
        status, out, error = command(word, "v2")
        assert (status, out) == (1, "")
        assert error == f"error: {artifacts / 'v2'}: items.npy missing\n"
    (artifacts / "v2" / "manifest.json").chmod(0o644)
    (artifacts / "v2" / "manifest.json").write_text("{")
    status, out, _ = command("list")
    assert status == 0
    assert "v2                               damaged:" in out
    assert Registry(artifacts).current() == "v1"


def test_the_list_goes_on_where_something_in_the_folder_is_odd(
    artifacts: Path, make_bundle: MakeBundle, command: Callable[..., tuple[int, str, str]]
) -> None:
    make_bundle("v1")
    shutil.copytree(artifacts / "v1", artifacts / "v1 copy")
    (artifacts / "v2" / "manifest.json").mkdir(parents=True)
    status, out, error = command("list")
    assert (status, error) == (0, "")
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [["*", "v1"], ["v2", "damaged:"]]


def test_the_list_of_a_folder_whose_champion_cannot_be_read_is_shown_and_says_so(
    artifacts: Path, make_bundle: MakeBundle, command: Callable[..., tuple[int, str, str]]
) -> None:
    make_bundle("v1")
    current = artifacts / "CURRENT"
    current.write_bytes(b"\xff")
    for is_folder, reason in ((False, "is not a list of versions"), (True, "Is a directory")):
        if is_folder:
            current.unlink()
            current.mkdir()
        status, out, error = command("list")
        assert status == 1
        assert [line.split()[0] for line in out.splitlines()[1:]] == ["v1"]
        assert error.startswith("error: ")
        assert reason in error
        assert str(current) in error


def test_a_version_whose_answers_have_changed_is_not_promoted(
    artifacts: Path, make_bundle: MakeBundle, command: Callable[..., tuple[int, str, str]]
) -> None:
    """Whole, with right digests, and wrong: only running it shows that."""
    from dataclasses import fields

    from models.bundle import read_bundle
    from models.draft import Content, write_bundle

    good = read_bundle(make_bundle("v1"))
    golden = {field.name: getattr(good.golden, field.name) for field in fields(good.golden)}
    golden["vectors"] = golden["vectors"] + 1
    write_bundle(
        artifacts,
        Content(
            good.manifest.model_copy(update={"version": "v2"}),
            good.encoder.read_bytes(),
            good.ranker.read_bytes(),
            good.items,
            good.ids,
            good.popularity,
            None,
            type(good.golden)(**golden),
        ),
    )
    status, out, error = command("promote", "v2")
    assert (status, out) == (1, "")
    assert "golden inputs come out 1 away" in error
    assert Registry(artifacts).current() == "v1"


@pytest.mark.parametrize("name", ["v9", "../v1", "..", ""])
def test_an_unknown_version_is_answered_with_the_known_ones(
    make_bundle: MakeBundle, command: Callable[..., tuple[int, str, str]], name: str
) -> None:
    make_bundle("v1")
    status, out, error = command("verify", name)
    assert (status, out) == (1, "")
    assert error.startswith(f"error: there is no version {name!r}")
    assert error.endswith("(versions here: v1)\n")


def test_the_folder_of_bundles_may_be_named_before_the_command_and_after_it(
    artifacts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["--artifacts", str(artifacts), "list"], ["list", "--artifacts", str(artifacts)]):
        assert main(words) == 0
        assert f"no versions in {artifacts}" in capsys.readouterr().out


def test_the_folder_of_bundles_is_the_services_unless_it_is_named(
    artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECSERVE_ARTIFACTS", str(artifacts))
    for words in (["list"], ["--artifacts", str(artifacts), "list"], ["list", "--artifacts", str(artifacts)]):
        assert main(words) == 0
        assert f"no versions in {artifacts};" in capsys.readouterr().out
    assert main(["--artifacts", "other", "list"]) == 0
    assert "no versions in other;" in capsys.readouterr().out
    monkeypatch.setenv("RECSERVE_ARTIFACTS", "")
    assert main(["list"]) == 0
    assert "no versions in artifacts;" in capsys.readouterr().out


def test_help_has_examples_and_a_wrong_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    for words, status in ((["--help"], 0), ([], 2), (["demote", "v1"], 2), (["promote"], 2)):
        with pytest.raises(SystemExit) as left:
            main(words)
        assert left.value.code == status
    help_text = capsys.readouterr().out
    assert "python -m models promote 2" in help_text
    assert "python -m models rollback" in help_text


def test_the_module_runs_as_a_command_and_rolls_back_without_torch_or_onnxruntime(
    artifacts: Path, make_bundle: MakeBundle
) -> None:
    make_bundle("v1")
    make_bundle("v2")
    code = (
        "import runpy, sys\n"
        "for name in ('torch', 'onnx', 'onnxruntime', 'fastapi', 'redis'): sys.modules[name] = None\n"
        "runpy.run_module('models', run_name='__main__')"
    )
    command = [sys.executable, "-c", code, "--artifacts", str(artifacts)]
    root = Path(__file__).parents[2]
    result = subprocess.run([*command, "rollback"], cwd=root, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "champion is v1\n", "")
