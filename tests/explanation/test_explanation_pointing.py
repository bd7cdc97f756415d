"""The pointing games are counted as their papers say."""

from __future__ import annotations

import numpy as np
import pytest

from ctcovid.explanation.pointing import pointing


def test_hits_energy_and_chance_of_known_maps() -> None:
    lesions = np.zeros((4, 4, 4), bool)
    lesions[0, :2], lesions[1, 0, 0], lesions[3, 3, 3] = True, True, True
    saliency = np.zeros((4, 4, 4))
    saliency[0, 0, 0], saliency[0, 3, 3] = 3, 1
    saliency[1, 0, 0], saliency[1, 2, 2] = 1, 3
    saliency[2] = 5
    found = pointing(saliency, lesions)
    assert found is not None
    # The third slice has no lesion, the fourth no saliency.
    assert found.slices == 3
    assert found.hits == pytest.approx(1 / 3)
    assert found.energy == pytest.approx((3 / 4 + 1 / 4 + 0) / 3)
    assert found.chance == pytest.approx((8 + 1 + 1) / 48)


def test_a_map_that_knows_nothing_has_the_energy_of_chance() -> None:
    lesions = np.random.default_rng(0).random((5, 8, 8)) > 0.8
    found = pointing(np.ones((5, 8, 8)), lesions)
    assert found is not None
    assert found.energy == pytest.approx(found.chance)


def test_without_a_lesion_there_is_nothing_to_point_to() -> None:
    assert pointing(np.ones((2, 4, 4)), np.zeros((2, 4, 4), bool)) is None
