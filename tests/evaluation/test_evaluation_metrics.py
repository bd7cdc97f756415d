"""The paper's Eqs. (1) to (5) and macro-AUROC, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    brier_score_loss,
    cohen_kappa_score,
    f1_score,
    log_loss,
    precision_score,
    recall_score,
    roc_auc_score,
)
from sklearn.metrics import confusion_matrix as sklearn_confusion

from ctcovid.evaluation.levels import scan_probabilities
from ctcovid.evaluation.metrics import METRICS, PER_CLASS, Sample, binary_counts, confusion_matrix, count_metrics, of_class, undefined
from ctcovid.evaluation.reliability import BINS, reliability

CLASSES = ["NCP", "CP", "Normal"]


def sample(seed: int, volumes: int = 80, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities of a moderately good model; with `ties` volumes share probabilities, and classes the first place."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, volumes)
    labels[:3] = range(3)
    probabilities = generator.dirichlet([1, 1, 1], volumes) + 0.5 * np.eye(3)[labels]
    if ties:
        probabilities = np.array([[2, 1, 1], [1, 1, 2], [1, 2, 1], [2, 2, 0], [0, 2, 2]])[generator.integers(0, 5, volumes)]
    return labels, probabilities / probabilities.sum(1, keepdims=True)


def point_values(labels: np.ndarray, probabilities: np.ndarray, positive: int) -> dict[str, float]:
    return Sample(labels, probabilities, positive).point()


def overall(values: dict[str, float]) -> dict[str, float]:
    return {name: values[name] for name in METRICS}


def macro_auroc(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return Sample(labels, probabilities, 0).values(weights)["macro_auroc"]


def calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """By the definition: the gap of each bin, weighted with its share."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    gaps = 0.0
    for number in range(BINS):
        mine = (confidence > number / BINS) & (confidence <= (number + 1) / BINS)
        if mine.any():
            gaps += mine.mean() * abs(right[mine].mean() - confidence[mine].mean())
    return gaps


@pytest.mark.parametrize("positive", [0, 1, 2])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_metrics_of_a_sample_are_those_of_scikit_learn(seed: int, ties: bool, positive: int) -> None:
    labels, probabilities = sample(seed, ties=ties)
    predicted = probabilities.argmax(1)
    truth, found = labels == positive, predicted == positive
    expected = {
        "accuracy": accuracy_score(labels, predicted),
        "binary_accuracy": accuracy_score(truth, found),
        "precision": precision_score(truth, found),
        "recall": recall_score(truth, found),
        "f1": f1_score(truth, found),
        "macro_auroc": roc_auc_score(labels, probabilities, multi_class="ovr", average="macro"),
        "specificity": recall_score(~truth, ~found),
        "npv": precision_score(~truth, ~found),
        "kappa": cohen_kappa_score(labels, predicted),
        "brier": sum(brier_score_loss(labels == number, probabilities[:, number]) for number in range(3)),
        "log_loss": log_loss(labels, probabilities, labels=[0, 1, 2]),
        "ece": calibration_error(labels, probabilities),
    }
    assert set(expected) == set(METRICS)
    values = point_values(labels, probabilities, positive)
    assert overall(values) == pytest.approx(expected, rel=1e-12)
    for number in range(3):
        truth, found = labels == number, predicted == number
        by_class = {
            "precision": precision_score(truth, found),
            "recall": recall_score(truth, found),
            "f1": f1_score(truth, found),
            "specificity": recall_score(~truth, ~found),
            "npv": precision_score(~truth, ~found),
            "auroc": roc_auc_score(truth, probabilities[:, number]),
            "average_precision": average_precision_score(truth, probabilities[:, number]),
        }
        assert {name: values[of_class(name, number)] for name in PER_CLASS} == pytest.approx(by_class, rel=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_macro_auroc_of_a_weighted_sample_is_that_of_the_sample_written_out(ties: bool) -> None:
    labels, probabilities = sample(11, ties=ties)
    weights = np.random.default_rng(0).integers(0, 4, (6, len(labels)))
    found = macro_auroc(labels, probabilities, weights.astype(np.float32))
    precisions = Sample(labels, probabilities, 0).values(weights.astype(np.float32))["average_precision:1"]
    for value, precision, times in zip(found, precisions, weights, strict=True):
        rows = np.repeat(np.arange(len(labels)), times)
        assert precision == pytest.approx(average_precision_score(labels[rows] == 1, probabilities[rows, 1]), rel=1e-6)
        assert value == pytest.approx(roc_auc_score(labels[rows], probabilities[rows], multi_class="ovr", average="macro"), rel=1e-12)


def test_the_macro_auroc_of_guessing_is_a_half_and_of_knowing_one() -> None:
    labels = np.repeat([0, 1, 2], 4)
    once = np.ones((1, 12))
    assert macro_auroc(labels, np.full((12, 3), 1 / 3), once)[0] == 0.5
    assert macro_auroc(labels, np.eye(3)[labels], once)[0] == 1
    assert macro_auroc(labels, (1 - np.eye(3)[labels]) / 2, once)[0] == 0


def test_the_confusion_matrix_has_the_truth_in_rows() -> None:
    labels, probabilities = sample(3)
    predicted = probabilities.argmax(1)
    assert np.array_equal(confusion_matrix(labels, predicted, 3), sklearn_confusion(labels, predicted))
    assert confusion_matrix(np.array([0]), np.array([2]), 3).tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_metrics_of_the_papers_best_model_follow_from_its_counts() -> None:
    """Li et al. 2021, abstract and Table 7: 6,709 volumes, 2,309 of them COVID-19; 2,308 found, 15 others taken for it."""
    confusion = np.array([[2308, 1, 0], [15, 2100, 15], [0, 20, 2250]])
    assert confusion.sum() == 6709
    assert [int(count) for count in binary_counts(confusion, 0)] == [2308, 15, 1, 4385]
    found = {name: round(float(value), 4) for name, value in count_metrics(confusion, 0).items()}
    expected = {"accuracy": 0.9924, "binary_accuracy": 0.9976, "precision": 0.9935, "recall": 0.9996, "f1": 0.9965}
    assert {name: found[name] for name in expected} == expected


def test_many_confusion_matrices_at_once_give_the_metrics_of_each() -> None:
    confusions = np.random.default_rng(0).integers(0, 20, (7, 3, 3))
    together = count_metrics(confusions, 1)
    for number, confusion in enumerate(confusions):
        alone = count_metrics(confusion, 1)
        assert {name: value[number] for name, value in together.items()} == pytest.approx(
            {name: float(value) for name, value in alone.items()}, rel=1e-15
        )


def test_f1_is_zero_and_not_undefined_where_every_positive_is_missed() -> None:
    found = count_metrics(np.array([[0, 4, 0], [0, 5, 0], [0, 0, 6]]), 0)
    assert (found["f1"], found["recall"]) == (0, 0)
    assert np.isnan(found["precision"])


@pytest.mark.parametrize(
    ("labels", "predicted", "missing"),
    [
        ([0, 1, 2], [0, 1, 2], set()),
        ([0, 0, 0], [0, 0, 1], {"macro_auroc", "specificity"}),
        ([1, 1, 1], [1, 2, 1], {"macro_auroc", "precision", "recall", "f1"}),
        ([1, 2, 2], [0, 2, 2], {"macro_auroc", "recall"}),
        ([0, 1, 2], [1, 1, 2], {"precision"}),
        ([0, 1, 1], [0, 1, 1], {"macro_auroc"}),
        ([0], [0], {"macro_auroc", "specificity", "npv", "kappa"}),
        ([0, 1, 2], [1, 2, 0], set()),
    ],
    ids=[
        "all there",
        "only the positive class",
        "no positive at all",
        "positive absent but predicted",
        "positive missed",
        "no Normal",
        "one volume",
        "all wrong",
    ],
)
def test_metrics_that_a_sample_does_not_define_are_named_and_the_others_given(
    labels: list[int], predicted: list[int], missing: set[str]
) -> None:
    truth, probabilities = np.array(labels), np.eye(3)[predicted]
    reasons = undefined(truth, probabilities.argmax(1), CLASSES, 0)
    assert set(reasons) == missing
    values = overall(point_values(truth, probabilities, 0))
    assert {name for name, value in values.items() if np.isnan(value)} == missing


def test_reasons_name_the_classes_that_are_absent() -> None:
    reasons = undefined(np.array([1, 1]), np.array([1, 1]), CLASSES, 0)
    assert "NCP" in reasons["macro_auroc"]
    assert "Normal" in reasons["macro_auroc"]
    assert all("NCP" in reasons[name] for name in ("precision", "recall", "f1"))


@pytest.mark.parametrize("seed", range(40))
def test_a_reason_is_given_exactly_where_a_metric_is_not_a_number(seed: int) -> None:
    generator = np.random.default_rng(seed)
    labels, predicted = generator.integers(0, 3, (2, generator.integers(1, 5)))
    values = overall(point_values(labels, np.eye(3)[predicted], 1))
    assert set(undefined(labels, predicted, CLASSES, 1)) == {name for name, value in values.items() if np.isnan(value)}


def test_a_scan_is_the_mean_of_its_volumes() -> None:
    volumes = np.array([[0.9, 0.1, 0.0], [0.2, 0.2, 0.6], [0.1, 0.3, 0.6]])
    np.testing.assert_allclose(scan_probabilities(volumes), [0.4, 0.2, 0.4], rtol=1e-15)
    assert np.array_equal(scan_probabilities(volumes[:1]), volumes[0])


def test_the_reliability_diagram_is_that_of_scikit_learn() -> None:
    """Of whether the predicted class was right, by its probability."""
    labels, probabilities = sample(5, 400)
    right, confidence = probabilities.argmax(1) == labels, probabilities.max(1)
    shares, means = calibration_curve(right, confidence, n_bins=BINS)
    filled = [one for one in reliability(labels, probabilities) if one.count]
    assert [one.accuracy for one in filled] == pytest.approx(shares.tolist())
    assert [one.confidence for one in filled] == pytest.approx(means.tolist())
    assert sum(one.count for one in filled) == 400


def test_a_confidence_on_a_bound_belongs_to_the_bin_below() -> None:
    bins = reliability(np.array([0, 0]), np.array([[0.5, 0.5], [1.0, 0.0]]))
    assert [one.count for one in bins] == [0, 0, 0, 0, 1, 0, 0, 0, 0, 1]
