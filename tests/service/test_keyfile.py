"""Keys at rest: what is kept, who can read it, and that a change is whole or none, whoever is killed meanwhile."""

import base64
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from service.__main__ import main
from service.keyfile import SCOPES, KeyFileError, KeyFolder, Limit
from tests.service.processes import ROOT, refused


@pytest.fixture
def folder(tmp_path: Path) -> KeyFolder:
    return KeyFolder(tmp_path / "keys")


def command(folder: KeyFolder, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "service", "keys", *arguments, "--keys", str(folder.folder)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)


def test_a_key_is_256_random_bits_and_known_by_its_id(folder: KeyFolder) -> None:
    made = [folder.create("shop", ["recommend"]) for _ in range(20)]
    assert len({key for _, key in made}) == 20
    ring = folder.read()
    for known, key in made:
        prefix, key_id, secret = key.split("_", 2)
        assert (prefix, key_id) == ("rsk", known.id)
        assert len(base64.urlsafe_b64decode(secret + "=")) == 32
        assert ring.find(key.encode()) == known


def test_what_differs_from_a_key_by_anything_is_none(folder: KeyFolder) -> None:
    _, key = folder.create("shop", ["recommend"])
    _, other = folder.create("other", ["admin"])
    ring = folder.read()
    changed = "A" if key[-2] != "A" else "B"
    swapped = other[:17] + key[17:]  # the id of one with the secret of the other
    for guess in (key[:-1], key + "A", key[:-2] + changed + key[-1], swapped, key.upper(), f" {key}", "", "rsk__"):
        assert ring.find(guess.encode()) is None
    assert ring.find(b"\xff" * 70_000) is None


def test_the_files_hold_no_key_and_are_their_owners_alone(folder: KeyFolder) -> None:
    _, key = folder.create("shop", ["recommend"])
    assert stat.S_IMODE(folder.folder.stat().st_mode) == 0o700
    for path in folder.folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert key[17:].encode() not in path.read_bytes()


def test_the_same_key_is_kept_differently_under_another_secret(tmp_path: Path, folder: KeyFolder) -> None:
    _, key = folder.create("shop", ["recommend"])
    other = KeyFolder(tmp_path / "other")
    other.create("shop", ["recommend"])
    (other.folder / "keys.json").write_bytes((folder.folder / "keys.json").read_bytes())  # without its secret
    assert other.read().find(key.encode()) is None


def test_a_key_whose_facts_were_changed_beside_the_command_is_none(folder: KeyFolder) -> None:
    _, key = folder.create("shop", ["recommend"], Limit(requests=5, seconds=60))
    path = folder.folder / "keys.json"
    whole = path.read_text()
    assert folder.read().find(key.encode())
    for fact, other in (('"recommend"', '"admin"'), ('"requests": 5', '"requests": 500'), (key[4:16], "0" * 12)):
        assert fact in whole
        path.write_text(whole.replace(fact, other))
        assert len(folder.read().keys) == 1
        assert folder.read().find(key.encode()) is None
        assert folder.read().find(key.replace(key[4:16], "0" * 12).encode()) is None
    path.write_text(whole)
    assert folder.read().find(key.encode())


def test_what_is_kept_is_what_was_asked_for_until_it_is_revoked(folder: KeyFolder) -> None:
    assert folder.stamp() is None
    assert folder.read().keys == {}
    limit = Limit(requests=30, seconds=60)
    first, _ = folder.create("shop", ["recommend", "events"], limit)
    second, _ = folder.create("back office", list(SCOPES))
    stamps = {folder.stamp()}
    kept = folder.read().keys
    assert kept == {first.id: first, second.id: second}
    assert (kept[first.id].scopes, kept[first.id].limit) == (frozenset({"recommend", "events"}), limit)
    assert folder.revoke(first.id) == first
    assert folder.read().keys == {second.id: second}
    stamps.add(folder.stamp())
    assert len(stamps) == 2
    with pytest.raises(KeyFileError, match=f"no key with the id '{first.id}'.*{second.id}"):
        folder.revoke(first.id)
    with pytest.raises(KeyFileError, match="printable"):
        folder.create("a\nb", ["admin"])


def test_a_folder_that_cannot_be_trusted_or_read_is_refused_in_a_sentence(folder: KeyFolder) -> None:
    with pytest.raises(KeyFileError, match="there are no keys in"):
        folder.revoke("0" * 12)
    folder.create("shop", ["recommend"])
    secret, keys = folder.folder / "secret", folder.folder / "keys.json"
    before = secret.read_text(), keys.read_text()
    secret.chmod(0o644)
    with pytest.raises(KeyFileError, match=r"open to others .mode 644.; run 'chmod 600"):
        folder.read()
    secret.chmod(0o440)  # as a container's mounted secret has it
    folder.read()
    secret.chmod(0o600)
    secret.write_text("short")
    with pytest.raises(KeyFileError, match="not 32 bytes"):
        folder.read()
    secret.unlink()
    with pytest.raises(KeyFileError, match="is missing"):
        folder.read()
    with pytest.raises(KeyFileError, match="is missing"):  # a new secret would end every key that there is
        folder.create("another", ["recommend"])
    secret.write_text(before[0])
    secret.chmod(0o600)
    for text in (
        before[1][:-9],
        before[1].replace('"format": 1', '"format": 2'),
        before[1].replace("recommend", "root"),
        before[1].replace('"name"', '"nick"'),
    ):
        keys.write_text(text)
        with pytest.raises(KeyFileError, match=r"keys\.json is not a file of keys"):
            folder.read()


def test_whichever_file_is_left_says_that_there_was_a_key(folder: KeyFolder) -> None:
    _, key = folder.create("shop", ["recommend"])
    secret, keys = folder.folder / "secret", folder.folder / "keys.json"
    whole = keys.read_bytes()
    stamps = {folder.stamp()}
    keys.unlink()
    stamps.add(folder.stamp())
    assert folder.read().keys == {}
    keys.write_bytes(whole)
    assert folder.read().find(key.encode())
    kept = secret.rename(folder.folder / "kept")
    stamps.add(folder.stamp())
    assert None not in stamps
    assert len(stamps) == 3
    keys.unlink()
    assert folder.stamp() is None
    kept.rename(secret)
    folder.create("another", ["recommend"])


def test_a_key_that_is_not_made_changes_nothing(folder: KeyFolder) -> None:
    with pytest.raises(KeyFileError, match="printable"):
        folder.create("a\nb", ["admin"])
    assert folder.stamp() is None


def test_commands_that_run_at_once_all_count(folder: KeyFolder) -> None:
    script = (
        "import sys; from pathlib import Path; from service.keyfile import KeyFolder\n"
        "folder = KeyFolder(Path(sys.argv[1]))\n"
        "for n in range(10):\n"
        "    made, key = folder.create('kept', ['events']); print(key, flush=True)\n"
        "    folder.revoke(folder.create('gone', ['events'])[0].id)\n"
    )
    start = [sys.executable, "-c", script, str(folder.folder)]
    running = [subprocess.Popen(start, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    printed = "".join(process.communicate(timeout=60)[0] for process in running).split()
    ring = folder.read()
    assert len(printed) == len(ring.keys) == 40
    assert all(ring.find(key.encode()) for key in printed)


def test_a_command_that_is_killed_leaves_a_whole_file_and_no_lock(folder: KeyFolder) -> None:
    script = (
        "import sys; from pathlib import Path; from service.keyfile import KeyFolder\n"
        "while True:\n"
        "    made, key = KeyFolder(Path(sys.argv[1])).create('x', ['events']); print(key, flush=True)\n"
    )
    printed: list[str] = []
    for round_ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(folder.folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        printed.append(process.stdout.readline().strip())
        reader = threading.Thread(target=lambda out=process.stdout: printed.extend(out.read().split()))
        reader.start()
        time.sleep(0.003 * round_)
        process.send_signal(signal.SIGKILL)
        process.wait()
        reader.join()
    ring = folder.read()
    whole = [key for key in printed if len(key) == 60]  # the last one's pipe may have been cut
    assert len(whole) >= 8
    assert all(ring.find(key.encode()) for key in whole)


def test_the_commands_teach_and_print_a_key_once(folder: KeyFolder) -> None:
    made = command(folder, "create", "shop", "--scope", "recommend", "--scope", "events", "--limit", "30/min")
    key = made.stdout.strip()
    assert folder.read().find(key.encode())
    assert "cannot be shown again" in made.stderr
    assert "from now on nobody is answered without a key" in made.stderr
    assert key not in made.stderr
    listed = command(folder, "list").stdout
    assert key[4:16] in listed
    assert "30/min" in listed
    assert "events,recommend" in listed
    assert key[17:] not in listed
    assert "none is left" in command(folder, "revoke", key[4:16]).stderr
    assert folder.read().keys == {}
    shown = subprocess.run(
        [sys.executable, "-m", "service", "keys", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert all(f"  {scope} " in shown for scope in SCOPES)


@pytest.mark.parametrize("limit", ["0/s", "5", "5/day", "-1/s", "1.5/s", "5 / s", "9999999/s"])
def test_a_limit_that_is_none_is_told(folder: KeyFolder, limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["keys", "create", "x", "--scope", "events", f"--limit={limit}", "--keys", str(folder.folder)])
    assert "give one like 100/s" in capsys.readouterr().err
    assert folder.stamp() is None


def test_a_mistake_of_a_command_is_a_sentence(folder: KeyFolder) -> None:
    assert "no keys in" in refused("keys", "revoke", "0" * 12, "--keys", str(folder.folder))
    folder.folder.parent.mkdir(exist_ok=True)
    folder.folder.write_text("a file")
    assert str(folder.folder) in refused("keys", "create", "x", "--scope", "events", "--keys", str(folder.folder))


def test_the_secret_is_never_in_a_representation(folder: KeyFolder) -> None:
    folder.create("shop", ["recommend"])
    ring = folder.read()
    kept = json.loads((folder.folder / "keys.json").read_text())["keys"][0]["hmac"]
    assert kept not in repr(ring)
    assert repr(ring.secret) not in repr(ring)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_makes_belongs_to_the_owner_of_the_folder(folder: KeyFolder) -> None:
    folder.folder.mkdir(mode=0o700)
    os.chown(folder.folder, 12345, 12345)
    folder.create("shop", ["recommend"])
    assert {path.stat().st_uid for path in folder.folder.iterdir()} == {12345}
