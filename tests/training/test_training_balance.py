"""Rare classes count as much as common ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctcovid.training.balance import balanced_draw, class_weights
from ctcovid.training.recipe import Recipe

LABELS = np.array([0] * 20 + [1] * 7 + [2] * 3)


def test_weights_are_inverse_to_the_counts_and_one_in_the_mean() -> None:
    weights = class_weights(LABELS, 3)
    assert weights.tolist() == [30 / (3 * 20), 30 / (3 * 7), 30 / (3 * 3)]
    assert weights[LABELS].mean() == pytest.approx(1)


def test_a_class_without_volumes_does_not_move_the_weights_of_the_others() -> None:
    assert class_weights(LABELS, 4) == pytest.approx([*class_weights(LABELS, 3), 0])


@given(st.lists(st.integers(0, 3), min_size=1, max_size=80), st.integers(0, 5))
def test_a_balanced_draw_has_equal_classes_and_repeats_no_volume_too_early(labels: list[int], seed: int) -> None:
    given_labels = np.array(labels)
    drawn = balanced_draw(given_labels, np.random.default_rng(seed))
    assert len(drawn) == len(labels)
    present = np.unique(given_labels)
    sizes = np.bincount(given_labels[drawn], minlength=4)[present]
    assert sizes.max() - sizes.min() <= 1
    for label in present:
        times = np.bincount(drawn, minlength=len(labels))[given_labels == label]
        assert times.max() - times.min() <= 1


def test_over_the_epochs_a_balanced_draw_sees_every_volume() -> None:
    seen = {index for epoch in range(20) for batch in Recipe(batch=8, class_balance="sampler").order(30, epoch, LABELS) for index in batch}
    assert seen == set(range(30))


def test_the_sampler_depends_on_seed_and_epoch_alone() -> None:
    recipe = Recipe(batch=8, class_balance="sampler", seed=1)
    assert recipe.order(30, 3, LABELS) == recipe.order(30, 3, LABELS)
    assert recipe.order(30, 3, LABELS) != recipe.order(30, 4, LABELS)
    assert recipe.order(30, 3, LABELS) != Recipe(batch=8, class_balance="sampler", seed=2).order(30, 3, LABELS)
