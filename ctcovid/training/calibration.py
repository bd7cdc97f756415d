"""The temperature with which a model is as sure as it is right (Guo et al. 2017, On calibration of modern neural networks, Sec. 4.2)."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar

from ctcovid.models.calibration import calibrated

# Beyond these a model knows nothing, or there is too little to fit on.
LEAST, MOST = 0.05, 20.0


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that gives validation volumes the least log loss.

    The targets are Platt's (1999, Probabilistic outputs for support vector machines, Sec. 2.2): (n + 1) / (n + classes) for the true class,
    which has n volumes, and equal shares of the rest for the others. Where a model makes no mistake on few volumes, they keep it from being
    made ever surer.

    Parameters
    ----------
    probabilities : float (N, classes), softmax
    labels : int (N,)
    """
    classes = probabilities.shape[1]
    count = np.bincount(labels, minlength=classes)[labels]
    targets = np.repeat(1 / (count + classes)[:, None], classes, axis=1)
    targets[np.arange(len(labels)), labels] = (count + 1) / (count + classes)

    def loss(exponent: float) -> float:
        return float(-(targets * _logarithms(calibrated(probabilities, float(np.exp(exponent))))).sum(1).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(LEAST), np.log(MOST)), method="bounded").x))


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative logarithm of the true class's probability."""
    return float(-_logarithms(probabilities)[np.arange(len(labels)), labels].mean())


def _logarithms(probabilities: np.ndarray) -> np.ndarray:
    # A softmax that has run down to zero has a finite logarithm all the same.
    found: np.ndarray = np.log(np.maximum(probabilities, np.finfo(float).tiny))
    return found
