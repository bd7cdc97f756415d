"""The paper's metrics and those that reviewers ask for, of one sample of volumes or of many weighted ones at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ctcovid.evaluation.ranking import Ranking
from ctcovid.evaluation.reliability import BINS, confidence_bins

# The lowest and highest value that each can have.
LIMITS = {
    "accuracy": (0.0, 1.0),
    "precision": (0.0, 1.0),
    "recall": (0.0, 1.0),
    "f1": (0.0, 1.0),
    "specificity": (0.0, 1.0),
    "npv": (0.0, 1.0),
    "macro_auroc": (0.0, 1.0),
    "binary_accuracy": (0.0, 1.0),
    "kappa": (-1.0, 1.0),
    "brier": (0.0, 2.0),
    "log_loss": (0.0, np.inf),
    "ece": (0.0, 1.0),
}
METRICS = tuple(LIMITS)
PER_CLASS = ("precision", "recall", "f1", "specificity", "npv", "auroc", "average_precision")
# Probabilities below this count as this in the log loss, as in scikit-learn.
LEAST = float(np.finfo(float).eps)


def of_class(metric: str, number: int) -> str:
    """The name of a metric of one class against the rest, as in ``auroc:1``."""
    return f"{metric}:{number}"


def limits(name: str) -> tuple[float, float]:
    """The lowest and highest value that a metric, overall or of a class, can have."""
    return LIMITS.get(name, (0.0, 1.0))


class Sample:
    """Labelled probabilities, prepared such that all metrics of many weighted samples of them come at once.

    Parameters
    ----------
    labels : int (N,)
    probabilities : float (N, classes)
    positive : index of the class that precision, recall, F1, specificity and NPV are about
    """

    def __init__(self, labels: np.ndarray, probabilities: np.ndarray, positive: int) -> None:
        self.count, self.classes = probabilities.shape
        self.positive = positive
        predicted = probabilities.argmax(1)
        truth = np.eye(self.classes)[labels]
        cells = np.eye(self.classes**2)[labels * self.classes + predicted]
        brier = ((probabilities - truth) ** 2).sum(1)
        log_loss = -np.log(np.clip(probabilities[np.arange(self.count), labels], LEAST, 1))
        confidence = probabilities.max(1)
        gaps = np.eye(BINS)[confidence_bins(confidence)] * ((predicted == labels) - confidence)[:, None]
        # Each is summed over the volumes of a sample, so one matrix product gives them for all samples.
        self.summands = np.column_stack([cells, brier, log_loss, gaps])
        self.rankings = [Ranking(labels == number, probabilities[:, number]) for number in range(self.classes)]

    def values(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Every metric, overall and by class, in each of R samples; not-a-number where a sample does not define it.

        weights : float (R, N), how often each volume stands in each sample. In float32 whole numbers stay exact.
        """
        sums = weights.astype(float) @ self.summands
        total = weights.sum(1, dtype=float)
        squared = self.classes**2
        confusions = sums[:, :squared].reshape(-1, self.classes, self.classes)
        found = count_metrics(confusions, self.positive)
        found["brier"] = _ratio(sums[:, squared], total)
        found["log_loss"] = _ratio(sums[:, squared + 1], total)
        found["ece"] = _ratio(np.abs(sums[:, squared + 2 :]).sum(1), total)
        for number, ranking in enumerate(self.rankings):
            mine = count_metrics(confusions, number)
            found |= {of_class(name, number): mine[name] for name in PER_CLASS if name in mine}
            areas = ranking.areas(weights)
            found[of_class("auroc", number)], found[of_class("average_precision", number)] = areas
        found["macro_auroc"] = np.mean([found[of_class("auroc", number)] for number in range(self.classes)], axis=0)
        return found

    def shares(self) -> dict[str, np.ndarray]:
        """Of each metric that is a share of volumes, overall and by class, which volumes it is a share of, bool (N,)."""
        cells = self.summands[:, : self.classes**2].reshape(self.count, self.classes, self.classes).astype(bool)
        truth, predicted = cells.max(2), cells.max(1)
        everything = np.ones(self.count, bool)
        found = {"accuracy": everything, "binary_accuracy": everything}
        for number in range(self.classes):
            mine, said = truth[:, number], predicted[:, number]
            of = {"precision": said, "recall": mine, "f1": mine | said, "specificity": ~mine, "npv": ~said}
            found |= {of_class(name, number): rows for name, rows in of.items()}
            found |= of if number == self.positive else {}
        return found

    def point(self) -> dict[str, float]:
        """Every metric of the sample itself."""
        return {name: float(value[0]) for name, value in self.values(np.ones((1, self.count))).items()}


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


def rates(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray) -> dict[str, np.ndarray]:
    """Precision, recall, F1 (Li et al. 2021, Eqs. 2 to 4), specificity and negative predictive value, from counts of any one shape."""
    return {
        "precision": _ratio(tp, tp + fp),
        "recall": _ratio(tp, tp + fn),
        # Eq. (4), written so that it is zero, and not undefined, where every positive is missed.
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
        "specificity": _ratio(tn, tn + fp),
        "npv": _ratio(tn, tn + fn),
    }


def count_metrics(confusion: np.ndarray, positive: int) -> dict[str, np.ndarray]:
    """Metrics that follow from confusion matrices (..., classes, classes); not-a-number where a denominator is zero.

    "accuracy" is three-way, Li et al. 2021, Eq. (5), and "kappa" is Cohen's; "binary_accuracy" (Eq. 1) and the rates are about the
    positive class against all others.
    """
    tp, fp, fn, tn = binary_counts(confusion, positive)
    total = confusion.sum((-2, -1))
    agreed = np.trace(confusion, axis1=-2, axis2=-1)
    by_chance = _ratio((confusion.sum(-1) * confusion.sum(-2)).sum(-1), total)
    return {
        "accuracy": _ratio(agreed, total),
        "binary_accuracy": _ratio(tp + tn, total),
        **rates(tp, fp, fn, tn),
        "kappa": _ratio(agreed - by_chance, total - by_chance),
    }


def undefined(labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str], positive: int) -> dict[str, str]:
    """Overall metrics that the sample does not define, with the reason in words."""
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
    if (labels == positive).all():
        reasons["specificity"] = f"every volume is {name}"
    if (predicted == positive).all():
        reasons["npv"] = f"every volume is predicted as {name}"
    if (labels == labels[0]).all() and (predicted == labels[0]).all():
        reasons["kappa"] = f"every volume is {classes[labels[0]]}, and predicted so"
    return reasons


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    part, whole = np.asarray(part, float), np.asarray(whole, float)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
