"""What the application does beside answering."""

import gc
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest


def test_what_a_promotion_brings_is_as_little_collected_as_what_was_there_at_the_start(
    start_service: Callable[..., httpx.Client],
    make_bundle: Callable[..., Path],
    store_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frozen: list[None] = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(None))
    make_bundle("v1")
    make_bundle("v2", promote=False)
    client = start_service(store_url)
    before = len(frozen)
    for path in ("/models/v2/promote", "/models/rollback"):
        client.post(path)
    assert len(frozen) == before + 2


def test_from_time_to_time_everything_is_collected_so_that_free_lists_keep_no_memory(
    start_service: Callable[..., httpx.Client], store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long each takes where others have the processor."""
    monkeypatch.setattr("service.app._COLLECT_S", 0.01)
    monkeypatch.setattr("service.app._RARELY", 30)
    full = threading.Semaphore(0)

    def seen(phase: str, info: dict[str, int]) -> None:
        if phase == "stop" and info["generation"] == 2:
            time.sleep(0.5)
            full.release()

    gc.callbacks.append(seen)
    try:
        start_service(store_url)
        assert all(full.acquire(timeout=10) for _ in range(3))  # at the start, and then
    finally:
        gc.callbacks.remove(seen)
