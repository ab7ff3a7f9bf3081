"""What a catalogue keeps of the filters it has evaluated."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.bundle import read_bundle
from service.catalogue import Catalogue, ItemState
from service.filters import parse


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
