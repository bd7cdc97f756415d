"""Is one model better than another on the same test set? McNemar, DeLong, and Holm's correction over a table of tests.

scipy is imported by the tests that use it, because scipy.stats takes a second, and a single model is compared with none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class McNemar:
    """Volumes that the reference alone got right, those that the other model alone did, and the two-sided p-value."""

    reference_only: int
    other_only: int
    p_value: float


def mcnemar(reference: np.ndarray, other: np.ndarray) -> McNemar:
    """McNemar's exact test on the volumes that one model classifies correctly and the other does not (McNemar 1947; binomial).

    Takes volumes for independent of each other, but not the models.

    reference, other : bool (N,), whether each volume was classified correctly, the same volumes in the same order
    """
    from scipy.stats import binomtest

    first, second = int((reference & ~other).sum()), int((other & ~reference).sum())
    p_value = float(binomtest(first, first + second).pvalue) if first + second else 1.0
    return McNemar(first, second, p_value)


@dataclass(frozen=True)
class DeLong:
    """The other model's AUROC minus the reference's, its standard error, and the two-sided p-value; None where not defined."""

    difference: float | None
    error: float | None
    p_value: float | None


def delong(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray], paired: bool) -> DeLong:
    """DeLong's test of the difference between two AUROCs (DeLong, DeLong and Clarke-Pearson 1988).

    Takes volumes for independent of each other; `paired` says that both models scored the same volumes in the same order, else the
    two sets of volumes are taken for independent too.

    first, second : the reference's and the other's bool (N,) positives and float (N,) scores
    """
    from scipy.special import ndtr

    parts = [_placements(*one) for one in (first, second)]
    if any(min(len(placement) for placement in part) < 2 for part in parts):
        return DeLong(None, None, None)
    areas = [float(part[0].mean()) for part in parts]
    difference = areas[1] - areas[0]
    if paired:
        variance = sum(np.var(b - a, ddof=1) / len(a) for a, b in zip(*parts, strict=True))
    else:
        variance = sum(np.var(placement, ddof=1) / len(placement) for part in parts for placement in part)
    error = float(np.sqrt(variance))
    if error < 1e-12:
        return DeLong(difference, error, 1.0 if abs(difference) < 1e-12 else 0.0)
    return DeLong(difference, error, float(2 * ndtr(-abs(difference) / error)))


def _placements(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The share of negatives below each positive, and of positives above each negative, ties counting half (Sun and Xu 2014)."""
    from scipy.stats import rankdata

    of_positives, of_negatives = scores[positive], scores[~positive]
    ranks = rankdata(np.concatenate([of_positives, of_negatives]))
    count = len(of_positives)
    if not count or not len(of_negatives):
        return np.empty(0), np.empty(0)
    above = (ranks[:count] - rankdata(of_positives)) / len(of_negatives)
    below = 1 - (ranks[count:] - rankdata(of_negatives)) / count
    return above, below


def bootstrap_p_value(differences: np.ndarray) -> float | None:
    """Two-sided p-value of a difference from its bootstrap samples, float (R,): twice the smaller tail beyond zero."""
    defined = differences[np.isfinite(differences)]
    if not len(defined):
        return None
    tail = min((defined <= 0).sum(), (defined >= 0).sum())
    return float(min(1.0, 2 * (tail + 1) / (len(defined) + 1)))


def holm(p_values: list[float | None]) -> list[float | None]:
    """Holm's step-down adjustment of the p-values of one family of tests (Holm 1979); those that are None stay so and do not count."""
    order = sorted((number for number, p in enumerate(p_values) if p is not None), key=lambda number: p_values[number] or 0.0)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for place, number in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - place) * (p_values[number] or 0.0)))
        adjusted[number] = highest
    return adjusted
