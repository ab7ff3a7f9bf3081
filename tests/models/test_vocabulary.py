"""Ids of a large catalogue are found in their files as they are in a dictionary, and arrays that are none are told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import vocabulary
from models.bundle import read_bundle
from models.manifest import MAPPED_VOCABULARY, VOCABULARY, BundleError
from models.vocabulary import laid_out, opened
from tests.models.test_bundle import refused, reseal, writable

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(st.sets(_TEXT, min_size=1, max_size=60), st.lists(st.one_of(_TEXT, st.just(""), st.just("\ud800")), max_size=20))
def test_ids_and_rows_are_those_of_a_list_and_a_dictionary(known: set[str], others: list[str]) -> None:
    listed = ["", *sorted(known)]
    expected = {item: row for row, item in enumerate(listed) if row}
    ids, index = opened(*laid_out(listed))
    assert (list(ids), len(ids)) == (listed, len(listed))
    assert [ids[row] for row in range(-len(listed), len(listed))] == listed * 2
    with pytest.raises(IndexError):
        ids[len(listed)]
    assert dict(index) == expected
    asked = [*listed, *others]
    assert index.rows(asked).tolist() == [expected.get(one, 0) for one in asked]
    assert [index.get(one) for one in asked] == [expected.get(one) for one in asked]
    assert [one in index for one in asked] == [one in expected for one in asked]
    with pytest.raises(KeyError):
        index[""]


def test_ids_of_one_digest_are_told_apart_by_their_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "digests_of", lambda ids: np.array([len(one) for one in ids], np.uint64))
    _, index = opened(*laid_out(["", "jam", "tea", "beans"]))
    assert index.rows(["jam", "tea", "fig", "beans", "lemon"]).tolist() == [1, 2, 0, 3, 0]
    with pytest.raises(ValueError, match="three ids have the same digest"):
        opened(*laid_out(["", "jam", "tea", "pie"]))
    with pytest.raises(ValueError, match="1 ids occur twice"):
        opened(*laid_out(["", "jam", "jam", "beans"]))


@pytest.fixture
def large(make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle whose ids are mapped, as are those of a catalogue that is large."""
    monkeypatch.setattr("models.draft.MAPPED_FROM", 1)
    return make_bundle("large", promote=True)


def test_only_a_large_catalogue_has_its_ids_mapped(
    make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = read_bundle(make_bundle("small", promote=False))
    monkeypatch.setattr("models.draft.MAPPED_FROM", 1)
    folder = make_bundle("large", promote=False)
    mapped = read_bundle(folder)
    assert {path.name for path in folder.iterdir()} >= set(MAPPED_VOCABULARY)
    assert not (folder / VOCABULARY).exists()
    assert list(mapped.ids) == list(listed.ids)
    asked = [*listed.ids, "none"]
    assert mapped.rows_of(asked).tolist() == listed.rows_of(asked).tolist()
    assert mapped.indices(asked).tolist() == listed.indices(asked).tolist()
    assert mapped.indices([]).tolist() == []


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("ids.npy", lambda text: text[:-1], "must be empty"),
        ("ids.npy", lambda text: np.where(np.arange(len(text)) == 3, 0xFF, text).astype(np.uint8), "no text"),
        ("ids.npy", lambda text: text.astype(np.int64), "int64"),
        ("id_ends.npy", lambda ends: ends + 1, "must be empty"),
        ("id_ends.npy", lambda ends: np.r_[ends[:3], ends[2], ends[4:]], "must be empty"),
        ("id_ends.npy", lambda ends: np.r_[ends[:3], 1 << 60, ends[4:]], "must be empty"),
        ("id_ends.npy", lambda ends: np.r_[0, 2**63 - 1, -(2**63), -1, ends[4:]], "must be empty"),
        ("id_ends.npy", lambda ends: ends[1:], "12 ends"),
        ("id_digests.npy", lambda digests: digests[::-1], "not sorted"),
        ("id_digests.npy", lambda digests: np.sort(digests + np.uint64(1)), "by its digest"),
        ("id_rows.npy", lambda rows: rows[::-1], "by its digest"),
        ("id_rows.npy", lambda rows: np.full_like(rows, 1), "each once"),
        ("id_rows.npy", lambda rows: rows - 1, "each once"),
        ("id_rows.npy", lambda rows: rows[:-1], "manifest says 12"),
    ],
)
def test_arrays_that_are_no_vocabulary_are_found_whatever_the_digests_say(
    large: Path, name: str, change: Callable[[Any], Any], words: str
) -> None:
    changed = change(np.load(large / name))
    np.save(writable(large) / name, changed)
    reseal(large)
    refused(large, words)


def test_an_id_that_begins_within_a_character_is_found() -> None:
    text, ends, digests, rows = laid_out(["", "é", "a"])
    with pytest.raises(ValueError, match="within a character"):
        opened(text, ends - np.array([0, 1, 0]), digests, rows)


@pytest.mark.parametrize("gone", [[MAPPED_VOCABULARY[2]], MAPPED_VOCABULARY])
def test_part_of_a_vocabulary_is_none(large: Path, gone: list[str]) -> None:
    writable(large)
    for name in gone:
        (large / name).unlink()
    reseal(large)
    with pytest.raises(BundleError, match=r"vocabulary\.json"):
        read_bundle(large)
