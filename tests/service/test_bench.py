"""The bench gives a figure for each kind of request; how large they are is not a matter for a test."""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from service.__main__ import main
from service.bench import BenchError, bench, table


def test_every_kind_of_request_is_measured_and_none_refused(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str
) -> None:
    make_bundle("v1")
    loads = bench(str(start_service(store_url).base_url), 0.2)
    assert [load.name for load in loads] == ["no-op", "history given", "history stored", "one event"]
    assert all(load.refused == 0 and load.per_second > 0 and 0 < load.median_s <= load.p99_s for load in loads)
    assert len(table(loads).splitlines()) == 5


def test_a_service_that_is_not_there_is_a_sentence(unused_port: int) -> None:
    with pytest.raises(BenchError, match=str(unused_port)):
        bench(f"http://127.0.0.1:{unused_port}", 0.1)


def test_without_a_service_it_measures_one_of_its_own_and_leaves_nothing(
    make_bundle: Callable[..., Path], artifacts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_bundle("v1")
    before = sorted(path.name for path in artifacts.iterdir())
    assert main(["bench", "--artifacts", str(artifacts), "--workers", "2", "--seconds", "0.2"]) == 0
    assert "history stored" in capsys.readouterr().out
    assert sorted(path.name for path in artifacts.iterdir()) == before


def test_without_a_bundle_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--artifacts", str(tmp_path), "--seconds", "0.2"]) == 1
    assert "no model is promoted" in capsys.readouterr().err
