"""The temperature with which a model is as sure as it is right (Guo et al. 2017, On calibration of modern neural networks, Sec. 4.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize_scalar

from ctcovid.inference.temperature import calibrated

# Beyond these a model knows nothing, or there is too little to fit on.
LEAST, MOST = 0.05, 20.0


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray, scans: Sequence[int]) -> float:
    """The temperature that gives validation scans the least log loss, as the mean over their volumes, which `predict` reports.

    The mean is less sure than its volumes: a temperature that is right for these would make it too unsure.

    The targets are Platt's (1999, Probabilistic outputs for support vector machines, Sec. 2.2): (n + 1) / (n + classes) for the true class,
    which has n scans, and equal shares of the rest for the others. Where a model makes no mistake on few scans, they keep it from being
    made ever surer.

    Parameters
    ----------
    probabilities : float (N, classes), softmax of volumes
    labels : int (N,)
    scans : (N,), which scan each is of
    """
    classes, truth = probabilities.shape[1], of_scans(labels, scans).astype(int)
    count = np.bincount(truth, minlength=classes)[truth]
    targets = np.repeat(1 / (count + classes)[:, None], classes, axis=1)
    targets[np.arange(len(truth)), truth] = (count + 1) / (count + classes)

    def loss(exponent: float) -> float:
        means = of_scans(calibrated(probabilities, float(np.exp(exponent))), scans)
        return float(-(targets * _logarithms(means)).sum(1).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(LEAST), np.log(MOST)), method="bounded").x))


def trusted_temperature(
    probabilities: np.ndarray, labels: np.ndarray, scans: Sequence[int], patients: Sequence[str], fitted: float
) -> float:
    """`fitted` where it lowers the log loss of the patients by more than the standard error of that, otherwise 1, which changes nothing.

    A temperature that helps some patients no more than chance might is as likely to harm others. Scans of a patient are alike, so it is
    patients who are counted; from a single one nothing is known.

    Parameters
    ----------
    probabilities, labels, scans : as in :func:`fit_temperature`
    patients : (N,), whose each is
    """
    lower = scan_losses(probabilities, labels, scans) - scan_losses(calibrated(probabilities, fitted), labels, scans)
    _, first = np.unique(np.array(scans), return_index=True)
    names, whose = np.unique(np.array(patients)[first], return_inverse=True)
    each = np.bincount(whose, lower) / np.bincount(whose)
    return fitted if len(names) > 1 and each.mean() > each.std(ddof=1) / len(names) ** 0.5 else 1.0


def scan_losses(probabilities: np.ndarray, labels: np.ndarray, scans: Sequence[int]) -> np.ndarray:
    """Negative logarithm of the true class's mean probability for each scan, in the order of their names, float (S,)."""
    truth = of_scans(labels, scans).astype(int)
    found: np.ndarray = -_logarithms(of_scans(probabilities, scans))[np.arange(len(truth)), truth]
    return found


def of_scans(values: np.ndarray, scans: Sequence[int]) -> np.ndarray:
    """Means over the volumes of each scan, of (N, ...), in the order of the scans' names."""
    _, which, count = np.unique(np.array(scans), return_inverse=True, return_counts=True)
    total = np.zeros((len(count), *values.shape[1:]))
    np.add.at(total, which, values)
    means: np.ndarray = (total.T / count).T
    return means


def _logarithms(probabilities: np.ndarray) -> np.ndarray:
    # A softmax that has run down to zero has a finite logarithm all the same.
    found: np.ndarray = np.log(np.maximum(probabilities, np.finfo(float).tiny))
    return found
