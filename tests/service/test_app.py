"""What the application does beside answering."""

import gc
import threading
from collections.abc import Callable

import httpx
import pytest


def test_from_time_to_time_everything_is_collected_so_that_free_lists_keep_no_memory(
    start_service: Callable[..., httpx.Client], store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.app._COLLECT_S", 0.01)
    full = threading.Semaphore(0)

    def seen(phase: str, info: dict[str, int]) -> None:
        if phase == "stop" and info["generation"] == 2:
            full.release()

    start_service(store_url)
    gc.callbacks.append(seen)
    try:
        assert full.acquire(timeout=10)
    finally:
        gc.callbacks.remove(seen)
