"""The paper's metrics, for one sample of volumes or for many weighted ones at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

METRICS = ("accuracy", "precision", "recall", "f1", "macro_auroc", "binary_accuracy")


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Volumes by true class (rows) and predicted class (columns), int (classes, classes)."""
    cells = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return cells.reshape(classes, classes)


def binary_counts(confusion: np.ndarray, positive: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """TP, FP, FN and TN of the positive class against all others, from confusion matrices (..., classes, classes)."""
    total = confusion.sum((-2, -1))
    tp = confusion[..., positive, positive]
    fp = confusion[..., positive].sum(-1) - tp
    fn = confusion[..., positive, :].sum(-1) - tp
    return tp, fp, fn, total - tp - fp - fn


def count_metrics(confusion: np.ndarray, positive: int) -> dict[str, np.ndarray]:
    """Metrics that follow from confusion matrices (..., classes, classes); not-a-number where a denominator is zero.

    "accuracy" is three-way, Li et al. 2021, Eq. (5); "binary_accuracy", "precision", "recall" and "f1" are about the positive
    class against all others, Eqs. (1) to (4).
    """
    tp, fp, fn, tn = binary_counts(confusion, positive)
    total = confusion.sum((-2, -1))
    return {
        "accuracy": _ratio(np.trace(confusion, axis1=-2, axis2=-1), total),
        "binary_accuracy": _ratio(tp + tn, total),
        "precision": _ratio(tp, tp + fp),
        "recall": _ratio(tp, tp + fn),
        # Eq. (4), written so that it is zero, and not undefined, where every positive is missed.
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
    }


def macro_auroc(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over the classes of the area under the ROC curve of that class against the rest (Li et al. 2021, Sec. 2.7).

    Parameters
    ----------
    labels : int (N,)
    probabilities : float (N, classes)
    weights : int (R, N), how often each volume stands in each of R samples; ones for the sample itself

    Returns
    -------
    float (R,), not-a-number where a sample lacks a class
    """
    areas = [_auroc(labels == number, probabilities[:, number], weights) for number in range(probabilities.shape[1])]
    return np.mean(areas, axis=0)


def _auroc(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve as the probability that a positive scores above a negative, ties counting half, float (R,)."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    sorted_weights = weights[:, order]
    positives = np.add.reduceat(sorted_weights * positive[order], starts, axis=1, dtype=np.int64)
    negatives = np.add.reduceat(sorted_weights * ~positive[order], starts, axis=1, dtype=np.int64)
    below = np.cumsum(negatives, axis=1) - negatives
    won = (positives * (below + negatives / 2)).sum(1)
    return _ratio(won, positives.sum(1) * negatives.sum(1))


def undefined(labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str], positive: int) -> dict[str, str]:
    """Metrics that the sample does not define, with the reason in words."""
    name = classes[positive]
    reasons = {}
    absent = [label for number, label in enumerate(classes) if not (labels == number).any()]
    if absent:
        reasons["macro_auroc"] = f"no volume is {' and none is '.join(absent)}, and every class needs a positive"
    elif len(classes) < 2:
        reasons["macro_auroc"] = "there is only one class"
    if not (labels == positive).any():
        reasons["recall"] = f"no volume is {name}"
    if not (predicted == positive).any():
        reasons["precision"] = f"no volume is predicted as {name}"
        if "recall" in reasons:
            reasons["f1"] = f"no volume is {name}, and none is predicted so"
    return reasons


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    part, whole = np.asarray(part, float), np.asarray(whole, float)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
