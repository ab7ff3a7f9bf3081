"""The slot by itself: what it takes, refuses and keeps of the versions in the artifacts folder."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.registry import Registry, RegistryError
from service.engine import Engine
from service.slot import Refused, Slot


@pytest.mark.anyio
async def test_nothing_is_written_before_the_predecessor_has_passed_and_a_champion_that_comes_meanwhile_stays(
    artifacts: Path, make_bundle: Callable[..., Path]
) -> None:
    for version in ("v1", "v2"):
        make_bundle(version)
    make_bundle("v3", promote=False)
    registry = Registry(artifacts)
    seen: list[str | None] = []

    def prepare(engine: Engine) -> None:
        if engine.version == "v1":
            seen.append(registry.current())
            registry.promote("v3")

    async with Slot(artifacts, device="cpu", cpus=1, poll_s=60, prepare=prepare) as slot:
        with pytest.raises(RegistryError, match="v3 has become the champion"):
            await slot.rollback()
        assert slot.engine is not None
        assert slot.engine.version == "v2"
    assert seen == ["v2"]
    assert registry.last_two() == ("v3", "v2")


@pytest.mark.anyio
async def test_of_two_rollbacks_at_once_one_is_refused(artifacts: Path, make_bundle: Callable[..., Path]) -> None:
    for version in ("v1", "v2", "v3"):
        make_bundle(version)
    async with Slot(artifacts, device="cpu", cpus=1, poll_s=60) as slot:
        ended = await asyncio.gather(slot.rollback(), slot.rollback(), return_exceptions=True)
    assert [isinstance(end, RegistryError) for end in ended].count(True) == 1
    assert Registry(artifacts).current() == "v2"


@pytest.mark.anyio
@pytest.mark.parametrize("error", [OSError("too many open files"), MemoryError(), RuntimeError("a bug")])
async def test_a_rollback_that_fails_leaves_the_champion_whatever_it_failed_with(
    artifacts: Path, make_bundle: Callable[..., Path], error: Exception
) -> None:
    make_bundle("v1")
    make_bundle("v2")

    def prepare(engine: Engine) -> None:
        if engine.version == "v1":
            raise error

    async with Slot(artifacts, device="cpu", cpus=1, poll_s=60, prepare=prepare) as slot:
        with pytest.raises(type(error)):
            await slot.rollback()
        assert slot.engine is not None
        assert slot.engine.version == "v2"
    assert Registry(artifacts).last_two() == ("v2", "v1")


@pytest.mark.anyio
@pytest.mark.parametrize("at_start", [False, True])
async def test_a_version_that_fails_to_load_is_refused_whatever_it_fails_with_and_loaded_again_later(
    artifacts: Path, make_bundle: Callable[..., Path], caplog: pytest.LogCaptureFixture, at_start: bool
) -> None:
    make_bundle("v1")
    make_bundle("v2", promote=at_start)
    loads: list[str] = []
    refused: list[Refused] = []

    def prepare(engine: Engine) -> None:
        loads.append(engine.version)
        if engine.version == "v2":
            raise MemoryError

    async with Slot(artifacts, device="cpu", cpus=1, poll_s=60, prepare=prepare, on_refuse=refused.append) as slot:
        Registry(artifacts).promote("v2")
        for _ in range(3):
            await slot.refresh()
        assert slot.refused == Refused("v2", "MemoryError()")
    assert loads == (["v2"] if at_start else ["v1", "v2"])
    assert len(refused) == 1
    assert [record.exc_info is not None for record in caplog.records if record.levelname == "ERROR"] == [True]


@pytest.mark.anyio
async def test_a_current_that_cannot_be_opened_is_told_once_and_the_old_one_serves_until_it_can(
    artifacts: Path, make_bundle: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    make_bundle("v1")
    make_bundle("v2", promote=False)
    current = artifacts / "CURRENT"
    async with Slot(artifacts, device="cpu", cpus=1, poll_s=60) as slot:
        current.unlink()
        current.mkdir()
        for _ in range(3):
            await slot.refresh()
        assert slot.engine is not None
        assert slot.refused is not None
        assert (slot.engine.version, slot.refused.version) == ("v1", "CURRENT")
        assert str(current) in slot.refused.reason
        assert [record.levelname for record in caplog.records].count("ERROR") == 1
        current.rmdir()
        current.write_text("v2\n")
        await slot.refresh()
        assert slot.engine.version == "v2"
        assert slot.refused is None


@pytest.mark.anyio
@pytest.mark.parametrize("empty", [False, True])
async def test_a_current_that_is_gone_while_a_version_serves_is_told_once_and_heals_when_it_is_back(
    artifacts: Path, make_bundle: Callable[..., Path], caplog: pytest.LogCaptureFixture, empty: bool
) -> None:
    make_bundle("v1")
    current = artifacts / "CURRENT"
    refused: list[Refused] = []
    async with Slot(artifacts, device="cpu", cpus=1, poll_s=60, on_refuse=refused.append) as slot:
        for again in range(2):
            if empty:
                current.write_text("")
            else:
                current.unlink()
            for _ in range(3):
                await slot.refresh()
            assert slot.engine is not None
            assert slot.refused == refused[-1]
            assert (slot.engine.version, slot.refused.version) == ("v1", "CURRENT")
            assert f"{current} is missing or empty; promote v1 again" in slot.refused.reason
            if again:
                await slot.promote("v1")
            else:
                current.write_text("v1\n")
                await slot.refresh()
            assert slot.refused is None
    assert len(refused) == [record.levelname for record in caplog.records].count("ERROR") == 2
    assert current.read_text() == "v1\n"


@pytest.mark.anyio
async def test_without_a_version_that_serves_there_is_nothing_to_refuse(artifacts: Path) -> None:
    async with Slot(artifacts, device="cpu", cpus=1, poll_s=60) as slot:
        await slot.refresh()
        assert slot.refused is None


@pytest.mark.anyio
async def test_a_current_that_cannot_be_opened_at_the_start_is_told_and_mended_without_a_restart(
    artifacts: Path, make_bundle: Callable[..., Path]
) -> None:
    make_bundle("v1", promote=False)
    current = artifacts / "CURRENT"
    current.mkdir()
    async with Slot(artifacts, device="cpu", cpus=1, poll_s=60) as slot:
        assert slot.refused is not None
        assert (slot.engine, slot.refused.version) == (None, "CURRENT")
        current.rmdir()
        current.write_text("v1\n")
        await slot.refresh()
        assert slot.engine is not None
        assert slot.refused is None


@pytest.mark.anyio
async def test_a_catalogue_that_is_scanned_is_ranked_by_all_threads_though_a_batch_is_brief(
    artifacts: Path, make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.engine._BRIEF_S", 60.0)
    matrix = np.random.default_rng(0).normal(size=(2000, 8)).astype(np.float32)
    make_bundle("v1", table=matrix[:, :8], matrix=matrix, scan="int8")
    async with Slot(artifacts, device="cpu", cpus=3, poll_s=60) as slot:
        assert slot.engine is not None
        assert slot.engine._runtime.threads == 3
        make_bundle("v2")
        await slot.refresh()
        assert slot.engine.version == "v2"
        assert slot.engine._runtime.threads == 1
