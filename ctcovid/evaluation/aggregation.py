"""From volumes to their scan."""

from __future__ import annotations

import numpy as np


def scan_probabilities(volumes: np.ndarray) -> np.ndarray:
    """Probabilities of a scan, float (classes,): the mean of its volumes' softmax, float (N, classes) with N ≥ 1."""
    return volumes.mean(axis=0)
