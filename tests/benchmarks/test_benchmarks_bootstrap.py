"""What bootstrap.py and coverage_of_intervals.py compare, in small."""

from __future__ import annotations

import numpy as np
import pytest
from bootstrap import loop, study
from coverage_of_intervals import METRICS, coverage

from ctcovid.evaluation.bootstrap import resampled
from ctcovid.evaluation.metrics import Sample


def test_the_loop_over_scikit_learn_gives_the_same_numbers() -> None:
    labels, probabilities = study(80, strength=0.3)
    expected = loop(labels, probabilities, 1, 8, seed=5)
    found = resampled(Sample(labels, probabilities, 1), np.arange(80), 8, seed=5)
    assert set(found) == set(expected[0])
    for number, figures in enumerate(expected):
        assert {name: values[number] for name, values in found.items()} == pytest.approx(figures, rel=1e-6, abs=1e-9)


def test_intervals_of_independent_volumes_hold_the_truth() -> None:
    """The script has 1,000 studies of each kind; in 120, four standard errors are 8 %."""
    found = coverage(120, 400, 200, 1, ("volume",), ("percentile",))
    assert {metric: found["volume", "percentile", metric] for metric in METRICS} == pytest.approx(dict.fromkeys(METRICS, 0.95), abs=0.08)


def test_by_volume_intervals_of_clustered_volumes_are_too_narrow_and_by_patient_they_are_not() -> None:
    found = coverage(60, 400, 200, 10, ("volume", "patient"), ("percentile",))
    for metric in METRICS:
        assert found["volume", "percentile", metric] < 0.85
        assert found["patient", "percentile", metric] > 0.85
        assert found["patient", "percentile", metric] > found["volume", "percentile", metric] + 0.1
