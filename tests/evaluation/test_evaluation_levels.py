"""Volumes joined to scans and patients, by each rule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ctcovid.base.choices import JOINS
from ctcovid.base.errors import InputError
from ctcovid.evaluation.comparing import pair
from ctcovid.evaluation.levels import join, joined, scan_probabilities
from ctcovid.evaluation.predictions import Predictions
from ctcovid.evaluation.subgroups import SEVERAL, Grouping, at_level

VOLUMES = np.array([[0.6, 0.4, 0.0], [0.1, 0.7, 0.2], [0.5, 0.3, 0.2]])


def predictions() -> Predictions:
    """Patient a with two scans, b with one, and c who stands in two class folders."""
    patients, scans = list("aaabbcc"), ["1", "1", "2", "1", "1", "1", "2"]
    probabilities = np.random.default_rng(0).dirichlet([1, 1, 1], 7)
    return Predictions("m", ["NCP", "CP", "Normal"], patients, scans, np.arange(7), np.array([0, 0, 0, 1, 1, 1, 2]), probabilities)


def test_the_rules_are_their_definitions() -> None:
    assert join(VOLUMES, "mean") == pytest.approx(scan_probabilities(VOLUMES))
    highest = np.array([0.6, 0.7, 0.2])
    assert join(VOLUMES, "max") == pytest.approx(highest / highest.sum())
    any_of_them = np.array([1 - 0.4 * 0.9 * 0.5, 1 - 0.6 * 0.3 * 0.7, 1 - 1 * 0.8 * 0.8])
    assert join(VOLUMES, "noisy-or") == pytest.approx(any_of_them / any_of_them.sum())
    assert join(VOLUMES, "vote") == pytest.approx((np.array([2, 1, 0]) + VOLUMES.mean(0) / 2) / 3.5)


@pytest.mark.parametrize("rule", JOINS)
def test_probabilities_of_the_whole_sum_to_one_and_one_certain_volume_stays_what_it_is(rule: str) -> None:
    assert join(VOLUMES, rule).sum() == pytest.approx(1)
    assert join(np.array([[0.0, 1.0, 0.0]]), rule) == pytest.approx([0, 1, 0])
    assert join(VOLUMES[:1], rule).argmax() == 0


def test_noisy_or_decides_for_the_class_with_more_evidence_where_both_come_to_one() -> None:
    """100 volumes: 1 − 0.5^100 and 1 − 0.4^100 are both 1 in floating point."""
    many = np.tile([0.4, 0.5, 0.1], (100, 1))
    found = join(many, "noisy-or")
    assert found.argmax() == 1 and found.sum() == pytest.approx(1)
    assert found == pytest.approx([1 / 3, 1 / 3, 1 / 3], abs=1e-4)
    certain = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.2, 0.6, 0.2]])
    assert join(certain, "noisy-or").argmax() == 1


def test_a_constant_model_ties_whatever_the_number_of_volumes() -> None:
    """In floating point the mean of three times a number is not always that of seven times it."""
    shares = np.array([0.1, 0.7, 0.2]) / 1.1 + 1 / 33
    means = {tuple(join(np.tile(shares / shares.sum(), (count, 1)), "mean")) for count in range(1, 200)}
    assert len(means) == 1


def test_a_patient_in_two_classes_is_paired_with_himself() -> None:
    volumes = predictions()
    shuffled = volumes.rows(np.array([6, 5, 4, 3, 2, 1, 0]))
    for level in ("scan", "patient"):
        pairing = pair(joined(shuffled, level, "mean"), joined(volumes, level, "mean"), False, level)
        assert pairing.paired and pairing.predictions.labels.tolist() == joined(volumes, level, "mean").labels.tolist()


def test_other_labels_are_told_from_missing_rows() -> None:
    patients = joined(predictions(), "patient", "mean")
    otherwise = replace(patients, labels=np.array([1, 1, 1, 2]))
    with pytest.raises(InputError, match="different labels for 1 patient"):
        pair(otherwise, patients, False, "patient")
    missing = patients.rows(np.array([0, 1, 2]))
    assert "different patients" in pair(missing, patients, True, "patient").why


def test_a_tied_vote_goes_to_the_class_that_is_likelier_on_the_mean() -> None:
    tied = np.array([[0.51, 0.49, 0.0], [0.0, 1.0, 0.0]])
    assert join(tied, "vote").argmax() == 1
    assert join(np.vstack([tied, [[0.4, 0.3, 0.3]]]), "vote").argmax() == 0


def test_scans_and_patients_are_rows_with_their_volumes_joined() -> None:
    volumes = predictions()
    scans = joined(volumes, "scan", "mean")
    assert list(zip(scans.patients, scans.scans, scans.labels.tolist(), strict=True)) == [
        ("a", "1", 0), ("a", "2", 0), ("b", "1", 1), ("c", "1", 1), ("c", "2", 2)
    ]  # fmt: skip
    assert scans.probabilities[0] == pytest.approx(volumes.probabilities[:2].mean(0))
    patients = joined(volumes, "patient", "max")
    assert list(zip(patients.patients, patients.labels.tolist(), strict=True)) == [("a", 0), ("b", 1), ("c", 1), ("c", 2)]
    assert patients.probabilities[1] == pytest.approx(join(volumes.probabilities[3:5], "max"))
    assert joined(volumes, "volume", "max") is volumes


def test_what_joins_volumes_of_several_groups_is_in_none_of_them() -> None:
    kinds = Grouping("kind", ["x", "x", "y", "x", "x", "y", "y"])
    assert at_level(kinds, predictions(), "volume") is kinds
    assert at_level(kinds, predictions(), "scan").groups == ["x", "y", "x", "y", "y"]
    assert at_level(kinds, predictions(), "patient").groups == [SEVERAL, "x", "y", "y"]
