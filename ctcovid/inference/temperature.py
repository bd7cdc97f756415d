"""Probabilities that are as sure as they are right: temperature scaling (Guo et al. 2017, On calibration of modern neural networks)."""

from __future__ import annotations

import numpy as np


def calibrated(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Softmax probabilities, float (N, classes), as they were had the logits been divided by `temperature` (Guo et al. 2017, Eq. 9).

    Logits are known from their softmax but for a constant, which softmax does not see. The order of the classes stays.
    """
    if temperature == 1:
        return probabilities
    with np.errstate(divide="ignore"):
        logits = np.log(probabilities) / temperature
    shares = np.exp(logits - logits.max(1, keepdims=True))
    found: np.ndarray = shares / shares.sum(1, keepdims=True)
    return found
