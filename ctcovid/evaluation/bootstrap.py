"""Bootstrap means and confidence intervals: nonparametric, unstratified, by volume (Li et al. 2021, Sec. 2.7)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctcovid.evaluation.metrics import METRICS, confusion_matrix, count_metrics, macro_auroc

INTERVALS = ("percentile", "normal")
# Weights of this many resamples times volumes are held at once, to bound memory.
AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Estimate:
    """A metric of the sample (`value`), and its bootstrap `mean` with the bounds of the 95 % interval; None where undefined."""

    value: float | None
    mean: float | None
    low: float | None
    high: float | None


def point_values(labels: np.ndarray, probabilities: np.ndarray, positive: int) -> dict[str, float]:
    """Every metric of the sample itself; not-a-number where it is not defined."""
    confusion = confusion_matrix(labels, probabilities.argmax(1), probabilities.shape[1])
    values = {name: float(value) for name, value in count_metrics(confusion, positive).items()}
    once = np.ones((1, len(labels)), dtype=np.int64)
    values["macro_auroc"] = float(macro_auroc(labels, probabilities, once)[0])
    return values


def resampled_values(labels: np.ndarray, probabilities: np.ndarray, positive: int, resamples: int, seed: int) -> dict[str, np.ndarray]:
    """Every metric in each of `resamples` samples of N volumes drawn with replacement, float (resamples,)."""
    volumes, classes = probabilities.shape
    cells = labels * classes + probabilities.argmax(1)
    generator = np.random.default_rng(seed)
    found: dict[str, list[np.ndarray]] = {name: [] for name in METRICS}
    for first in range(0, resamples, max(1, AT_ONCE // volumes)):
        count = min(max(1, AT_ONCE // volumes), resamples - first)
        weights = np.stack([np.bincount(generator.integers(0, volumes, volumes), minlength=volumes) for _ in range(count)])
        confusions = np.stack([weights[:, cells == cell].sum(1) for cell in range(classes * classes)], axis=1)
        values = count_metrics(confusions.reshape(count, classes, classes), positive)
        values["macro_auroc"] = macro_auroc(labels, probabilities, weights)
        for name in METRICS:
            found[name].append(values[name])
    return {name: np.concatenate(values) for name, values in found.items()}


def estimates(
    labels: np.ndarray, probabilities: np.ndarray, positive: int, resamples: int = 1000, seed: int = 0, interval: str = "percentile"
) -> dict[str, Estimate]:
    """Every metric with its bootstrap mean and 95 % interval.

    Parameters
    ----------
    labels : int (N,)
    probabilities : float (N, classes)
    positive : index of the class that precision, recall and F1 are about
    interval : "percentile" for the 2.5 and 97.5 percentiles; "normal" for mean ± 1.96 standard deviations clipped to [0, 1], which
        is what the paper's tables show

    Resamples in which a metric is not defined do not count for it.
    """
    values = point_values(labels, probabilities, positive)
    drawn = resampled_values(labels, probabilities, positive, resamples, seed)
    return {name: _estimate(values[name], drawn[name], interval) for name in METRICS}


def _estimate(value: float, drawn: np.ndarray, interval: str) -> Estimate:
    defined = drawn[np.isfinite(drawn)]
    if np.isnan(value):
        return Estimate(None, None, None, None)
    if not len(defined):
        return Estimate(value, None, None, None)
    mean = float(defined.mean())
    if interval == "normal":
        reach = 1.96 * float(defined.std(ddof=1)) if len(defined) > 1 else 0.0
        return Estimate(value, mean, max(0.0, mean - reach), min(1.0, mean + reach))
    low, high = np.percentile(defined, [2.5, 97.5])
    return Estimate(value, mean, float(low), float(high))
