"""Temperature scaling: fitted on validation scans, applied to probabilities (Guo et al. 2017, On calibration of modern neural networks)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ctcovid.models.card import LEAST_TEMPERATURE as LEAST
from ctcovid.models.card import MOST_TEMPERATURE as MOST


def calibrated(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Softmax probabilities, float (N, classes), as if the logits had been divided by `temperature` (Guo et al. 2017, Eq. 9).

    Logits follow from their softmax except for a constant, which softmax does not see. The order of the classes stays.
    """
    if temperature == 1:
        return probabilities
    with np.errstate(divide="ignore"):
        logits = np.log(probabilities) / temperature
    shares = np.exp(logits - logits.max(1, keepdims=True))
    found: np.ndarray = shares / shares.sum(1, keepdims=True)
    return found


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray, scans: Sequence[int]) -> float:
    """The temperature with the lowest log loss of validation scans (Guo et al. 2017, Sec. 4.2).

    A scan's probability is the mean over its volumes, as `predict` reports it. The mean is less confident than single volumes: a
    temperature fitted to these would make it underconfident.

    The targets are those of Platt (1999, Probabilistic outputs for support vector machines, Sec. 2.2): (n + 1) / (n + classes) for the
    true class, which has n scans, and equal shares of the rest for the others. Without them, a model that makes no mistake on few scans
    would be made more and more confident.

    Parameters
    ----------
    probabilities : float (N, classes), softmax of volumes
    labels : int (N,)
    scans : (N,), which scan each volume is of
    """
    # Takes half a second to import, and only training needs it.
    from scipy.optimize import minimize_scalar

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
    """`fitted` if it lowers the patients' log loss by more than the standard error of the difference, otherwise 1, which changes nothing.

    A temperature that helps no more than chance is as likely to harm other patients. Scans of one patient are alike, so patients are
    counted; a single patient shows nothing.

    Parameters
    ----------
    probabilities, labels, scans : as in :func:`fit_temperature`
    patients : (N,), which patient each volume is of
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
    # A softmax that has underflowed to zero still has a finite logarithm.
    found: np.ndarray = np.log(np.maximum(probabilities, np.finfo(float).tiny))
    return found
