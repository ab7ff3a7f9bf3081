"""Settings: what is accepted, which source wins, and that every mistake is named."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from service.__main__ import main
from service.auth import check_start, valid_keys
from service.keyfile import KeyFolder, Keyring
from service.settings import BadSettings, Settings, load

STORE = {"redis": "redis://127.0.0.1:1"}


def test_the_command_line_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSERVE_PORT", "9000")
    monkeypatch.setenv("RECSERVE_DEVICE", "cpu")
    settings = load({**STORE, "port": "9001", "device": None})
    assert (settings.port, settings.device) == (9001, "cpu")


def test_a_store_named_on_the_command_line_replaces_the_one_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RECSERVE_REDIS", "redis://elsewhere")
    assert load({"embedded": True}).redis is None
    monkeypatch.delenv("RECSERVE_REDIS")
    monkeypatch.setenv("RECSERVE_EMBEDDED", "true")
    assert load(dict(STORE)).embedded is False


def test_variables_that_do_not_exist_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSERVE_PROT", "9000")
    with pytest.raises(BadSettings, match=r"RECSERVE_PROT is not a setting.*RECSERVE_PORT"):
        load(STORE)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "--embedded"),
        ({"redis": "redis://x", "embedded": True}, "exclude"),
        ({"redis": "redis://x", "data": Path("x")}, "data"),
        ({**STORE, "port": "eighty"}, "port"),
        ({**STORE, "port": "65536"}, "port"),
        ({**STORE, "port": "-1"}, "port"),
        ({**STORE, "host": ""}, "host"),
        ({**STORE, "device": "tpu"}, "device"),
        ({**STORE, "device": "cpu", "float16": True}, "float16"),
        ({**STORE, "threads": "0"}, "threads"),
        ({**STORE, "workers": "0"}, "workers"),
        ({**STORE, "durability": "always"}, "durability"),
        ({**STORE, "replicas": 0}, "replicas"),
        ({"embedded": True, "durability": "replicated"}, "replicas"),
        ({**STORE, "max_batch": 0}, "max_batch"),
        ({**STORE, "max_waiting": 0}, "max_waiting"),
        ({**STORE, "log_max_events": 0}, "log_max_events"),
        ({**STORE, "log_level": "loud"}, "log_level"),
        ({**STORE, "colour": "red"}, "colour"),
        ({**STORE, "allowed_hosts": ["rec.example"]}, "allowed_hosts"),
        ({**STORE, "receive_s": 0}, "receive_s"),
        ({**STORE, "sequence_types": [""]}, "sequence_types"),
        ({**STORE, "sequence_types": ["view", ""]}, "sequence_types"),
        ({**STORE, "log_min_days": 0.1, "log_max_events": 17_599}, "log_max_events is 17599.*give 17600"),
    ],
)
def test_wrong_settings_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(BadSettings, match=named):
        load(options)


def test_a_log_that_keeps_young_events_has_room_for_a_request_and_another_may_be_as_small_as_one_event() -> None:
    assert load({**STORE, "log_min_days": 0.1, "log_max_events": 17_600}).log_max_events == 17_600
    assert load({**STORE, "log_max_events": 1}).log_max_events == 1


@pytest.mark.parametrize("name", ["artifacts", "keys", "data"])
def test_a_folder_that_is_a_file_or_below_one_is_named_by_its_setting(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for path in (file, file / "below" / "it"):
        with pytest.raises(BadSettings, match=rf"^setting {name} is .*{path}.*: {file} is a file; name a folder$"):
            load({"embedded": True, name: path})
    monkeypatch.setenv(f"RECSERVE_{name.upper()}", str(file))
    assert main(["serve", "--embedded"]) == 2
    assert f"error: setting {name} is '{file}': " in capsys.readouterr().err
    if name != "data":
        assert main(["keys", "list"]) == 2
        assert f"error: setting {name} is '{file}': " in capsys.readouterr().err
    assert load({"embedded": True, name: tmp_path / "made" / "later"}).embedded


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "example.org"])
def test_other_machines_are_served_with_a_key_or_when_trusted_and_else_not(tmp_path: Path, host: str) -> None:
    def asked(**more: Any) -> Settings:
        return load({**STORE, "host": host, "keys": tmp_path / "keys", **more})

    refusal = r"no key in .*keys; make one with 'python -m service keys create.*RECSERVE_TRUSTED_NETWORK"
    with pytest.raises(BadSettings, match=refusal):
        check_start(asked())
    check_start(asked(trusted_network=True))
    assert valid_keys(asked(trusted_network=True)) is None
    assert valid_keys(asked()) == Keyring()
    folder = KeyFolder(tmp_path / "keys")
    made, _ = folder.create("shop", ["events"])
    check_start(asked())
    assert valid_keys(asked()) == folder.read()
    folder.revoke(made.id)
    with pytest.raises(BadSettings, match=refusal):
        check_start(asked())


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_this_machine_alone_is_served_without_keys(tmp_path: Path, host: str) -> None:
    settings = load({**STORE, "host": host, "artifacts": tmp_path})
    check_start(settings)
    assert valid_keys(settings) is None


def test_keys_that_cannot_be_read_keep_a_service_from_starting_wherever_it_listens(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text("{}")
    with pytest.raises(BadSettings, match=r"keys\.json is not a file of keys"):
        check_start(load({**STORE, "keys": tmp_path}))


def test_a_wrong_setting_is_shown_with_its_value_unless_it_may_hold_a_password() -> None:
    with pytest.raises(BadSettings, match=r"^setting port is '65536': "):
        load({**STORE, "port": "65536"})
    with pytest.raises(BadSettings) as refused:
        load({"redis": ["redis://:secret@x"]})
    assert "setting redis: " in str(refused.value)
    assert "secret" not in str(refused.value)


def test_settings_do_not_change_and_show_no_secrets() -> None:
    settings = load({"redis": "redis://:password@host"})
    assert "password" not in repr(settings)
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1  # type: ignore[misc]


def rows_of_the_page() -> dict[str, tuple[bool, str]]:
    """Of the table in docs/settings.md, by name: whether it is marked as an option, and the default."""
    page = (Path(__file__).parents[2] / "docs" / "settings.md").read_text(encoding="utf-8")
    found = {}
    for line in page.splitlines():
        if line.startswith("| `"):
            name, default, does, when = (cell.strip() for cell in line.strip("|").split(" | "))
            assert does, line
            assert when, line
            found[name.split("`")[1]] = (name.endswith("\\*"), default)
    return found


def written(default: Any) -> str:
    """A default as the page has it."""
    if default is None:
        return "none"
    return f"`{default if isinstance(default, str | Path) else json.dumps(default)}`"


def test_the_page_of_settings_has_every_one_with_its_default_and_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    said = capsys.readouterr().out
    assert "every other setting is a variable alone; docs/settings.md has them all" in said
    options = {name.replace("-", "_") for name in re.findall(r"--([a-z][a-z-]*)", said)}
    expected = {
        name: (name in options, written(field.get_default(call_default_factory=True)))
        for name, field in Settings.model_fields.items()
    }
    assert rows_of_the_page() == expected
