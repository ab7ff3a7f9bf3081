"""How histories become model input, against a loop that does it item by item."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.sequence import PADDING, pad, pad_flat, truncate

histories = st.lists(st.lists(st.integers(1, 9), max_size=7), max_size=6)


def test_truncating_keeps_the_newest_in_their_order() -> None:
    history = np.array([3, 1, 4, 1, 5])
    assert truncate(history, 3).tolist() == [4, 1, 5]
    assert truncate(history, 5).tolist() == truncate(history, 6).tolist() == [3, 1, 4, 1, 5]
    assert truncate(history, 0).tolist() == []
    assert truncate(np.array([], np.int64), 4).tolist() == []


@given(histories)
def test_padding_stands_on_the_right_and_nothing_is_lost(sequences: list[list[int]]) -> None:
    padded, lengths = pad([np.array(sequence, np.int64) for sequence in sequences])
    width = max([1, *map(len, sequences)])
    expected = [sequence + [PADDING] * (width - len(sequence)) for sequence in sequences]
    assert padded.tolist() == expected
    assert padded.shape == (len(sequences), width)
    assert lengths.tolist() == [len(sequence) for sequence in sequences]
    assert padded.dtype == lengths.dtype == np.int64


def test_an_empty_history_is_one_column_of_padding() -> None:
    padded, lengths = pad([np.array([], np.int32)])
    assert (padded.tolist(), lengths.tolist()) == ([[0]], [0])


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.data())
def test_pieces_of_a_flat_array_may_overlap_and_come_in_any_order(flat: list[int], data: st.DataObject) -> None:
    pieces = data.draw(
        st.lists(st.tuples(st.integers(0, len(flat)), st.integers(0, 5)).filter(lambda p: sum(p) <= len(flat)))
    )
    starts, lengths = (np.array([piece[part] for piece in pieces], np.int64) for part in (0, 1))
    padded = pad_flat(np.array(flat, np.int32), starts, lengths)
    width = max([1, *(length for _, length in pieces)])
    assert padded.tolist() == [flat[at : at + n] + [PADDING] * (width - n) for at, n in pieces]


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_the_input_is_left_as_it_was(kind: type[np.integer]) -> None:
    flat = np.arange(1, 6, dtype=kind)
    padded = pad_flat(flat, np.array([1]), np.array([2]))
    padded[:] = 9
    assert flat.tolist() == [1, 2, 3, 4, 5]
