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

    gc.callbacks.append(seen)
    try:
        start_service(store_url)
        assert all(full.acquire(timeout=10) for _ in range(2))  # at the start, and then
    finally:
        gc.callbacks.remove(seen)
