"""What a catalogue keeps of the filters it has evaluated."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.bundle import read_bundle
from service.attributes import ItemState
from service.catalogue import Catalogue
from service.filters import Group, Mask, parse


@pytest.fixture
def catalogue(make_bundle: Callable[..., Path]) -> Catalogue:
    return Catalogue(read_bundle(make_bundle("v1", items=40, attributes={"n": [None, *range(1, 41)]})))


def test_a_filter_is_evaluated_once_until_an_item_changes(catalogue: Catalogue) -> None:
    wanted = parse({"lt": {"n": 4}})
    first = catalogue.selection(wanted)
    assert first is not None
    assert first.rows.tolist() == [1, 2, 3]
    assert catalogue.selection(parse({"lt": {"n": 4.0}})) is first
    catalogue.change({"i2": ItemState(available=False)})
    second = catalogue.selection(wanted)
    assert second is not None
    assert second.rows.tolist() == [1, 3]


def test_what_is_kept_is_bounded_in_number_and_in_memory(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.catalogue._KEPT", 5)
    for bound in range(30):
        catalogue.selection(parse({"eq": {"n": bound}}))
    newest = catalogue.selection(parse({"eq": {"n": 29}}))
    assert len(catalogue._kept) == 5
    monkeypatch.setattr("service.catalogue._KEPT_BYTES", 1)
    catalogue.selection(parse({"eq": {"n": 30}}))
    assert len(catalogue._kept) == 1
    assert catalogue.selection(parse({"eq": {"n": 29}})) is not newest
    assert catalogue._bytes == sum(kept.nbytes for kept in catalogue._kept.values())


def test_a_filter_with_many_values_is_not_kept(catalogue: Catalogue) -> None:
    many = parse({"in": {"n": list(range(1, 66))}})
    assert catalogue.selection(many) is not catalogue.selection(many)
    assert not catalogue._kept


def test_nothing_is_selected_where_nothing_is_left_out(catalogue: Catalogue) -> None:
    assert catalogue.selection(None) is None
    catalogue.change({"i2": ItemState(available=False), "unheard of": ItemState(available=False)})
    found = catalogue.selection(None)
    assert found is not None
    assert found.left_out is not None
    assert found.left_out.tolist() == [2]
    chosen = catalogue.selection(None, np.array([2, 3, 3]))
    assert chosen is not None
    assert chosen.rows.tolist() == [3]


def test_words_that_no_item_has_any_more_are_forgotten(catalogue: Catalogue) -> None:
    def found(word: str) -> list[int]:
        chosen = catalogue.selection(parse({"eq": {"word": word}}))
        assert chosen is not None
        return chosen.rows.tolist()

    catalogue.change({"i1": ItemState(attributes={"word": "stays"}), "i2": ItemState(attributes={"word": "first"})})
    assert found("first") == [2]  # from now on there is a column
    for number in range(3000):
        catalogue.change({"i2": ItemState(attributes={"word": f"word {number}"})})
    assert (found("stays"), found("word 2999"), found("word 2998"), found("first")) == ([1], [2], [], [])
    assert len(catalogue.attributes._columns["word"]._code_of) < 1100


@pytest.mark.parametrize("unavailable", [1, 39])
def test_a_large_catalogue_is_not_copied_while_half_of_it_is_there(
    make_bundle: Callable[..., Path], unavailable: int
) -> None:
    bundle = read_bundle(make_bundle("large", items=80))
    large = Catalogue(bundle, scanned=True)
    large.change({f"i{number}": ItemState(available=False) for number in range(1, unavailable + 1)})
    found = large.selection(None)
    assert found is not None
    assert found.subset.matrix is None
    large.change({f"i{number}": ItemState(available=False) for number in range(1, 60)})
    few = large.selection(None)
    assert few is not None
    assert few.subset.matrix is not None


class Pause:
    """A filter that nothing matches, and that takes until it is let go."""

    size = 1

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()

    def mask(self, items: Any) -> Mask:
        self.begun.set()
        self.go.wait(10)
        return np.zeros(items.rows, np.bool_)


@pytest.mark.parametrize("candidates", [None, np.array([2, 3])])
def test_while_a_filter_is_evaluated_nobody_waits_and_a_change_falls_before_it_or_after(
    catalogue: Catalogue, candidates: np.ndarray | None
) -> None:
    """i2 has one of the two values throughout, though the first is looked for before the change and the other after."""
    pause = Pause()
    wanted = Group(False, (parse({"eq": {"n": 3}}), pause, parse({"eq": {"n": 2}})))  # type: ignore[arg-type]
    with ThreadPoolExecutor() as threads:
        found = threads.submit(catalogue.selection, wanted, candidates)
        assert pause.begun.wait(10)
        assert threads.submit(catalogue.selection, None).result(5) is None
        threads.submit(catalogue.change, {"i2": ItemState({"n": 3})}).result(5)
        threads.submit(catalogue.change, {"i9": ItemState(available=False)}).result(5)
        here = threads.submit(catalogue.selection, None).result(5)
        pause.go.set()
        chosen = found.result(10)
    assert here is not None
    assert here.rows.tolist() == [*range(1, 9), *range(10, 41)]
    assert chosen is not None
    assert chosen.rows.tolist() == [2, 3]
