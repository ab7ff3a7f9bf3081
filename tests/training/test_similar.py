"""Nearest neighbours on vectors whose angles are plain to see."""

import numpy as np
import pytest

from training.similar import similar_items, well_known

MATRIX = np.array([[9, 9], [1, 0], [2, 0.1], [0, 5], [-1, 0], [0, 0]], np.float32)


def test_the_nearest_by_angle_come_first_whatever_their_lengths() -> None:
    (found,) = similar_items(MATRIX, [1], count=3)
    assert found.item == 1
    assert found.neighbours == (2, 3, 5)  # padding would be the second; the item itself the first
    assert found.cosines == pytest.approx((1 / np.hypot(1, 0.05), 0, 0))


def test_a_small_catalogue_has_only_its_own_items() -> None:
    (found,) = similar_items(MATRIX[:3], [2], count=5)
    assert found.neighbours == (1,)


def test_well_known_items_are_those_with_most_interactions() -> None:
    assert well_known(np.array([99, 3, 7, 7, 1], np.float32), count=3) == [2, 3, 1]
