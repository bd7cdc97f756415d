"""Tests that know both models saw the same volumes: statsmodels, and the definitions written out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm
from statsmodels.stats.contingency_tables import mcnemar as mcnemar_of_statsmodels
from statsmodels.stats.multitest import multipletests

from ctcovid.base.errors import InputError
from ctcovid.evaluation.bootstrap import Drawing
from ctcovid.evaluation.comparing import compare, pair
from ctcovid.evaluation.paired import DeLong, bootstrap_p_value, delong, holm, mcnemar
from ctcovid.evaluation.predictions import Predictions
from ctcovid.evaluation.scoring import score

CLASSES = ["NCP", "CP", "Normal"]


def predictions(name: str, strength: float, seed: int, volumes: int = 120, each: int = 4) -> Predictions:
    labels = np.random.default_rng(9).integers(0, 3, volumes // each).repeat(each)
    probabilities = np.random.default_rng(seed).dirichlet([1, 1, 1], volumes) + strength * np.eye(3)[labels]
    probabilities /= probabilities.sum(1, keepdims=True)
    patients = [str(row // each) for row in range(volumes)]
    return Predictions(name, CLASSES, patients, ["s"] * volumes, np.arange(volumes) % each, labels, probabilities)


def delong_by_definition(positive: np.ndarray, first: np.ndarray, second: np.ndarray, paired: bool) -> tuple[float, float]:
    """DeLong et al. 1988, Eqs. 3 to 6, with the kernel of every positive against every negative."""
    parts = []
    for scores in (first, second):
        kernel = (scores[positive][:, None] > scores[~positive]) + 0.5 * (scores[positive][:, None] == scores[~positive])
        parts.append((kernel.mean(), kernel.mean(1), kernel.mean(0)))
    of_positives, of_negatives = (np.cov(parts[0][place], parts[1][place]) for place in (1, 2))
    covariance = of_positives / positive.sum() + of_negatives / (~positive).sum()
    variance = covariance[0, 0] + covariance[1, 1] - (2 * covariance[0, 1] if paired else 0)
    return parts[1][0] - parts[0][0], float(np.sqrt(variance))


@pytest.mark.parametrize("seed", range(6))
def test_mcnemar_is_that_of_statsmodels(seed: int) -> None:
    first, second = np.random.default_rng(seed).random((2, 80)) < [[0.9], [0.8]]
    table = [[(first & second).sum(), (first & ~second).sum()], [(~first & second).sum(), (~first & ~second).sum()]]
    found = mcnemar(first, second)
    assert (found.reference_only, found.other_only) == (table[0][1], table[1][0])
    assert found.p_value == pytest.approx(mcnemar_of_statsmodels(table, exact=True).pvalue, rel=1e-12)


def test_mcnemar_of_models_that_are_right_together_is_one() -> None:
    right = np.array([True, False, True])
    assert mcnemar(right, right).p_value == 1


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_delong_is_its_definition(seed: int, ties: bool, paired: bool) -> None:
    generator = np.random.default_rng(seed)
    positive = generator.random(90) < 0.4
    first, second = generator.random((2, 90)) + 0.5 * positive
    if ties:
        first, second = np.round(first, 1), np.round(second, 1)
    difference, error = delong_by_definition(positive, first, second, paired)
    found = delong((positive, first), (positive, second), paired)
    assert (found.difference, found.error) == pytest.approx((difference, error), rel=1e-9)
    assert found.p_value == pytest.approx(2 * norm.sf(abs(difference) / error), rel=1e-9)


def test_delong_of_a_model_with_itself_is_no_difference() -> None:
    positive, scores = np.arange(10) < 4, np.linspace(0, 1, 10)
    assert delong((positive, scores), (positive, scores), True) == DeLong(0.0, 0.0, 1.0)


@pytest.mark.parametrize("positives", [0, 1, 10])
def test_delong_is_not_defined_for_fewer_than_two_of_either_kind(positives: int) -> None:
    positive, scores = np.arange(10) < positives, np.linspace(0, 1, 10)
    assert delong((positive, scores), (positive, scores), True) == DeLong(None, None, None)


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_that_of_statsmodels(seed: int) -> None:
    p_values = (np.random.default_rng(seed).random(9) ** 3).tolist()
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist(), rel=1e-12)


def test_holm_passes_over_tests_that_were_not_made() -> None:
    assert holm([0.01, None, 0.04]) == [0.02, None, 0.04]
    assert holm([]) == []


def test_the_bootstrap_p_value_is_twice_the_smaller_tail() -> None:
    differences = np.concatenate([np.full(10, -1.0), np.full(989, 1.0)])
    assert bootstrap_p_value(differences) == pytest.approx(2 * 11 / 1000)
    assert bootstrap_p_value(np.zeros(50)) == 1
    assert bootstrap_p_value(np.full(5, np.nan)) is None


@pytest.mark.parametrize("resample", ["volume", "patient"])
def test_differences_are_between_the_same_samples(resample: str) -> None:
    """Two models that are wrong on the same volumes differ by nothing, in each sample; independent draws would spread."""
    drawing = Drawing(resample, 200)
    reference = predictions("first", 0.4, 1)
    shuffled = replace(reference.rows(np.random.default_rng(0).permutation(120)), name="second")
    twin = pair(shuffled, reference, False, "volume")
    scores = [score(one, 0, drawing) for one in (reference, twin.predictions)]
    (found,) = compare((reference, scores[0]), [(twin, scores[1])], 0, drawing)
    assert found.paired and found.differences["accuracy"].low == found.differences["accuracy"].high == 0
    assert found.mcnemar is not None and found.mcnemar.p_value == 1


def test_rows_in_another_order_are_put_into_the_references() -> None:
    reference, other = predictions("first", 0.4, 1), predictions("second", 0.4, 2)
    order = np.random.default_rng(3).permutation(120)
    found = pair(other.rows(order), reference, False, "volume")
    assert found.paired and found.predictions.keys == reference.keys
    assert np.array_equal(found.predictions.probabilities, other.probabilities)


def test_other_volumes_are_not_paired_and_other_labels_are_refused() -> None:
    reference, other = predictions("first", 0.4, 1), predictions("second", 0.4, 2)
    fewer = pair(other.rows(np.arange(1, 120)), reference, False, "volume")
    assert not fewer.paired and "different volumes" in fewer.why
    other.labels[:] = (other.labels + 1) % 3
    with pytest.raises(InputError, match="second and first have different labels for 120 volumes"):
        pair(other, reference, False, "volume")


def test_other_patients_are_refused_unless_they_only_lack_slices() -> None:
    reference, other = predictions("first", 0.4, 1), predictions("second", 0.4, 2)
    without_the_first = other.rows(np.arange(4, 120))
    with pytest.raises(InputError, match="same patients"):
        pair(without_the_first, reference, False, "volume")
    found = pair(without_the_first, reference, True, "volume")
    assert not found.paired and "1 patient without any" in found.why


def test_the_corrections_are_those_over_all_models_of_the_table() -> None:
    drawing = Drawing("volume", 100)
    reference = predictions("first", 1.0, 1)
    pairings = [
        pair(predictions(name, strength, seed), reference, False, "volume") for name, strength, seed in (("b", 0.4, 2), ("c", 0.7, 3))
    ]
    base = score(reference, 0, drawing)
    found = compare((reference, base), [(one, score(one.predictions, 0, drawing)) for one in pairings], 0, drawing)
    flat = [p for one in found for p in one.fisher.values()]
    assert [p for one in found for p in one.fisher_holm.values()] == pytest.approx(multipletests(flat, method="holm")[1].tolist())
    exact = [one.mcnemar.p_value for one in found if one.mcnemar]
    assert [one.holm["mcnemar"] for one in found] == pytest.approx(multipletests(exact, method="holm")[1].tolist())
