"""95 % intervals from bootstrap samples: percentiles, the paper's normal ones, and BCa; exact ones where all samples are alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

TAIL = 0.025
# Sums of the same values in another order differ by less.
ALIKE = 1e-9
# From a metric to a share of units, and back.
Share = tuple[Callable[[float], float], Callable[[float], float]]


@dataclass(frozen=True)
class Estimate:
    """A metric of the sample (`value`), and its bootstrap `mean` with the bounds of the 95 % interval; None where undefined.

    exact : the interval is Clopper and Pearson's, because the bootstrap has no width
    """

    value: float | None
    mean: float | None
    low: float | None
    high: float | None
    exact: bool = False

    def shown(self, ci: str) -> float | None:
        """What to show before the interval: the mean with the paper's normal interval, which lies about it, else the value of the sample.

        The mean of a biased metric, such as the calibration error, may lie outside a BCa interval.
        """
        return self.mean if ci == "normal" and self.mean is not None else self.value


def estimate(value: float, drawn: np.ndarray, ci: str, limits: tuple[float, float], jackknife: np.ndarray | None = None) -> Estimate:
    """Mean and interval of a metric.

    Parameters
    ----------
    value : of the sample itself; not-a-number where it is not defined
    drawn : float (R,), in the bootstrap samples; those that are not-a-number do not count
    ci : "percentile" for the 2.5 and 97.5 percentiles; "normal" for mean ± 1.96 standard deviations clipped to `limits`, which is what
        the paper's tables show; "bca" for percentiles corrected for bias and acceleration (Efron 1987, Eqs. 2.3 and 6.6)
    jackknife : float (units,), for "bca": the metric with each unit left out in turn
    """
    if np.isnan(value):
        return Estimate(None, None, None, None)
    defined = drawn[np.isfinite(drawn)]
    if not len(defined):
        return Estimate(value, None, None, None)
    mean = float(defined.mean())
    if ci == "normal":
        reach = 1.96 * float(defined.std(ddof=1)) if len(defined) > 1 else 0.0
        return Estimate(value, mean, max(limits[0], mean - reach), min(limits[1], mean + reach))
    tails = np.array([TAIL, 1 - TAIL])
    if ci == "bca":
        tails = _bca_tails(value, defined, jackknife if jackknife is not None else np.empty(0))
    low, high = np.percentile(defined, 100 * tails)
    return Estimate(value, mean, float(low), float(high))


def with_width(found: Estimate, units: int | None, share: Share | None) -> Estimate:
    """The same, but with an exact interval, or none, if no resample differs from another.

    Such a bootstrap interval, as (1.0000, 1.0000) of 12 volumes that are all right, would claim certainty.

    Parameters
    ----------
    units : how many volumes, scans or patients the metric is a share of; None if it is not a share
    share : from the metric to the share that it follows from, and back; None for the metric itself
    """
    if found.value is None or found.low is None or found.high is None or found.high - found.low > ALIKE:
        return found
    if not units:
        return replace(found, low=None, high=None)
    there, back = share or (_same, _same)
    low, high = clopper_pearson(there(found.value), units)
    return replace(found, low=back(low), high=back(high), exact=True)


def clopper_pearson(share: float, count: int) -> tuple[float, float]:
    """The exact 95 % interval of a binomial proportion (Clopper and Pearson 1934), as quantiles of beta distributions.

    `share` of `count` need not be a whole number, as where it is of volumes and `count` of patients (Korn and Graubard 1998).
    """
    right = share * count
    if right == 0:
        return 0.0, 1 - TAIL ** (1 / count)
    if right == count:
        return TAIL ** (1 / count), 1.0
    from scipy.special import betaincinv

    return float(betaincinv(right, count - right + 1, TAIL)), float(betaincinv(right + 1, count - right, 1 - TAIL))


def _same(value: float) -> float:
    return value


def _bca_tails(value: float, drawn: np.ndarray, jackknife: np.ndarray) -> np.ndarray:
    """The percentiles to take in place of 2.5 and 97.5; these where the samples do not vary, or all lie on one side."""
    from scipy.special import ndtr, ndtri

    usual = np.array([TAIL, 1 - TAIL])
    below = float(((drawn < value).mean() + (drawn <= value).mean()) / 2)
    if not 0 < below < 1:
        return usual
    jackknife = jackknife[np.isfinite(jackknife)]
    away = jackknife.mean() - jackknife if len(jackknife) else np.zeros(1)
    spread = float((away**2).sum() ** 1.5)
    acceleration = float((away**3).sum()) / (6 * spread) if spread > 0 else 0.0
    bias = ndtri(below)
    reach = bias + ndtri(usual)
    return np.asarray(ndtr(bias + reach / (1 - acceleration * reach)))
