"""Thresholds, and curves, against scikit-learn."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve, precision_score, recall_score, roc_curve

from ctcovid.evaluation.bootstrap import Drawing
from ctcovid.evaluation.curves import GRID, roc_and_pr
from ctcovid.evaluation.operating import at_threshold, threshold_for


def scored(seed: int, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    positive = generator.random(120) < 0.4
    scores = generator.random(120) + 0.6 * positive
    return positive, np.round(scores, 1) if ties else scores


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("sensitivity", [0.5, 0.9, 0.99, 1.0])
def test_the_threshold_is_the_highest_with_the_wanted_sensitivity(sensitivity: float, ties: bool) -> None:
    positive, scores = scored(1, ties)
    found = threshold_for(positive, scores, sensitivity)
    _, recalls, thresholds = precision_recall_curve(positive, scores)
    assert found == max(threshold for recall, threshold in zip(recalls, thresholds, strict=False) if recall >= sensitivity)
    assert recall_score(positive, scores >= found) >= sensitivity


def test_a_share_that_is_a_whole_number_of_positives_takes_no_more() -> None:
    assert threshold_for(np.ones(100, dtype=bool), np.arange(100.0), 0.07) == 93


def test_without_a_positive_there_is_no_threshold() -> None:
    assert threshold_for(np.zeros(5, dtype=bool), np.arange(5.0), 0.9) is None


@pytest.mark.parametrize("ci", ["percentile", "normal", "bca"])
def test_rates_at_a_threshold_are_those_of_scikit_learn(ci: str) -> None:
    positive, scores = scored(2)
    called = scores >= 0.7
    found = at_threshold(positive, scores, 0.7, np.arange(120), Drawing(resamples=200, ci=ci))
    expected = {
        "recall": recall_score(positive, called),
        "specificity": recall_score(~positive, ~called),
        "precision": precision_score(positive, called),
        "npv": precision_score(~positive, ~called),
    }
    assert {name: one.value for name, one in found.items()} == pytest.approx(expected)
    assert all(one.low < one.value < one.high for one in found.values())


def test_many_resamples_take_no_memory_of_their_own() -> None:
    """All samples of 2,000 units at once would be 32 MB."""
    positive, scores = np.arange(2000) % 2 == 0, np.arange(2000) / 2000
    tracemalloc.start()
    at_threshold(positive, scores, 0.5, np.arange(2000), Drawing(resamples=4000))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 12e6


def test_rates_of_a_single_volume_are_given_where_they_are_defined() -> None:
    found = at_threshold(np.array([True]), np.array([0.9]), 0.5, np.zeros(1, dtype=int), Drawing(resamples=20, ci="bca"))
    assert found["recall"].value == found["recall"].low == 1
    assert found["specificity"].value is None


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_curves_pass_through_the_points_of_scikit_learn(seed: int, ties: bool) -> None:
    positive, scores = scored(seed, ties)
    roc, pr = roc_and_pr(positive, scores, np.arange(120), 50, 0)
    assert roc is not None and pr is not None
    false, recall, _ = roc_curve(positive, scores, drop_intermediate=False)
    inner = GRID[1:]
    assert roc.value[1:] == pytest.approx(np.interp(inner, false, recall))
    assert roc.value[0] == recall[false == 0].max()
    precision, reached, _ = precision_recall_curve(positive, scores)
    # Of the thresholds that reach a recall the highest, which comes last in scikit-learn's order.
    expected = [precision[np.flatnonzero(reached >= wanted - 1e-9)[-1]] for wanted in inner]
    assert pr.value[1:] == pytest.approx(expected)
    for curve in (roc, pr):
        assert (curve.low <= curve.high).all()
        assert ((curve.low <= curve.value + 1e-9) & (curve.value <= curve.high + 1e-9)).mean() > 0.9


@pytest.mark.parametrize("positive", [np.zeros(4, dtype=bool), np.ones(4, dtype=bool)])
def test_without_both_kinds_there_are_no_curves(positive: np.ndarray) -> None:
    assert roc_and_pr(positive, np.arange(4.0), np.arange(4), 10, 0) == (None, None)


def test_a_curve_without_a_resample_that_defines_it_has_no_band() -> None:
    """One positive of 40, and a single resample that misses it."""
    positive = np.arange(40) == 0
    curves = [roc_and_pr(positive, np.arange(40.0), np.arange(40), 1, seed)[0] for seed in range(8)]
    assert any(curve is not None and np.isnan(curve.low).all() for curve in curves)
