"""An operating point: the threshold that gives a wanted sensitivity on the validation part, and its figures on another part."""

from __future__ import annotations

import numpy as np

from ctcovid.evaluation.bootstrap import Drawing, draws
from ctcovid.evaluation.intervals import Estimate, estimate
from ctcovid.evaluation.metrics import rates

RATES = ("recall", "specificity", "precision", "npv")


def threshold_for(positive: np.ndarray, scores: np.ndarray, sensitivity: float) -> float | None:
    """The highest threshold at which at least that share of the positives scores as high or higher; None without a positive.

    positive : bool (N,)
    scores : float (N,), the probability of the positive class
    """
    found = np.sort(scores[positive])[::-1]
    if not len(found):
        return None
    # Products such as 0.07 × 100 lie a hair above the whole number that is meant.
    needed = max(1, int(np.ceil(sensitivity * len(found) - 1e-9)))
    return float(found[needed - 1])


def at_threshold(positive: np.ndarray, scores: np.ndarray, threshold: float, units: np.ndarray, drawing: Drawing) -> dict[str, Estimate]:
    """Sensitivity ("recall"), specificity, precision and NPV where scores from `threshold` on count as positive, with intervals.

    The threshold is taken as given: its own uncertainty, from a validation part of finite size, is not in the intervals.

    units : int (N,), what is drawn, as in bootstrap.py
    """
    called = scores >= threshold
    cells = np.column_stack([positive & called, ~positive & called, positive & ~called, ~positive & ~called]).astype(float)
    number = int(units.max()) + 1
    by_unit = np.zeros((number, 4))
    np.add.at(by_unit, units, cells)
    drawn = rates(*np.concatenate([block @ by_unit for block in draws(number, drawing.resamples, drawing.seed)]).T)
    point = rates(*cells.sum(0)[:, None])
    jackknife = rates(*(cells.sum(0) - by_unit).T) if drawing.ci == "bca" else {}
    return {name: estimate(float(point[name][0]), drawn[name], drawing.ci, (0.0, 1.0), jackknife.get(name)) for name in RATES}
