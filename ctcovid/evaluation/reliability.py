"""Do volumes called with 90 % confidence turn out right in 90 % of the cases?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Bins of equal width; Guo et al. 2017, Sec. 2, have 15, and more than their test sets have volumes to fill.
BINS = 10


@dataclass(frozen=True)
class ReliabilityBin:
    """Volumes whose highest probability lies in (`low`, `high`]: their `count`, mean `confidence` and `accuracy` (None without any)."""

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


def confidence_bins(confidence: np.ndarray) -> np.ndarray:
    """The bin that each confidence, float (N,) in (0, 1], falls into, int (N,); a bin holds its upper bound."""
    return np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)


def reliability(labels: np.ndarray, probabilities: np.ndarray) -> list[ReliabilityBin]:
    """The points of a reliability diagram of the predicted class (Guo et al. 2017, On calibration of modern neural networks, Sec. 2).

    The mean of the gaps between confidence and accuracy, each weighted with its count, is the expected calibration error.

    Parameters
    ----------
    labels : int (N,)
    probabilities : float (N, classes)
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    bins = confidence_bins(confidence)
    found = []
    for number in range(BINS):
        mine = bins == number
        count = int(mine.sum())
        means = (float(confidence[mine].mean()), float(right[mine].mean())) if count else (None, None)
        found.append(ReliabilityBin(number / BINS, (number + 1) / BINS, count, *means))
    return found
