"""ROC and precision-recall curves with pointwise bootstrap bands."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctcovid.evaluation.bootstrap import draws

# Places along the horizontal axis: enough for a picture, few enough for a table.
GRID = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Curve:
    """A curve over GRID: `value`, and the 2.5 and 97.5 percentiles `low` and `high` of the bootstrap, float (101,) each."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def roc_and_pr(positive: np.ndarray, scores: np.ndarray, units: np.ndarray, resamples: int, seed: int) -> tuple[Curve | None, Curve | None]:
    """Sensitivity over 1 − specificity, and precision over recall, of one class against the rest; None where not defined.

    positive : bool (N,)
    scores : float (N,)
    units : int (N,), what is drawn, as in bootstrap.py
    """
    if not positive.any() or positive.all():
        return None, None
    order = np.argsort(-scores, kind="stable")
    truth, arranged = positive[order], scores[order]
    ends = np.append(np.flatnonzero(np.diff(arranged) != 0), len(arranged) - 1)
    points = [_curves(np.ones(len(truth), np.int32), truth, ends)]
    for drawn in draws(int(units.max()) + 1, resamples, seed):
        points += [_curves(weights, truth, ends) for weights in np.take(drawn.astype(np.int32), units[order], axis=1)]
    rocs, precisions = (np.array(each) for each in zip(*points, strict=True))
    return _banded(rocs), _banded(precisions)


def _curves(weights: np.ndarray, truth: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both curves of one sample over GRID, from how often each volume stands in it, int32 (N,); not-a-number where it lacks a class."""
    above, hits = np.cumsum(weights, dtype=np.int32), np.cumsum(weights * truth, dtype=np.int32)
    if len(ends) < len(truth):
        above, hits = above[ends], hits[ends]
    misses = above - hits
    if not hits[-1] or not misses[-1]:
        return np.full(len(GRID), np.nan), np.full(len(GRID), np.nan)
    recall, false = hits / hits[-1], misses / misses[-1]
    roc = np.interp(GRID, np.append(0, false), np.append(0, recall))
    clean = np.searchsorted(false, 0, side="right")
    roc[0] = recall[clean - 1] if clean else 0
    # At each recall the precision of the first threshold that reaches it: the steps that average precision sums.
    first = np.minimum(np.searchsorted(recall, np.maximum(GRID - 1e-9, 1e-12)), len(ends) - 1)
    return roc, hits[first] / (hits[first] + misses[first])


def _banded(points: np.ndarray) -> Curve:
    defined = points[1:][np.isfinite(points[1:]).all(1)]
    low, high = np.percentile(defined, [2.5, 97.5], axis=0) if len(defined) else np.full((2, len(GRID)), np.nan)
    return Curve(points[0], low, high)
