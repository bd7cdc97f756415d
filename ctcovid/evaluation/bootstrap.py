"""Bootstrap: samples of volumes, scans or patients drawn with replacement (Li et al. 2021, Sec. 2.7: of volumes), as weights."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ctcovid.evaluation.intervals import Estimate, estimate, with_width
from ctcovid.evaluation.metrics import Sample, limits

# Samples whose weights are held at once; so few stay in the processor's cache.
AT_ONCE = 64
# So many counts, a byte each, are kept for the next model, curve or baseline on the same units: 1,000 samples of the paper's test part.
# More are drawn again each time, so that many resamples take no memory.
KEPT = 7 << 20

# F1 = 2 J / (1 + J), where J is the share of true positives in all that are positive or predicted so.
F1 = (lambda f1: f1 / (2 - f1), lambda share: 2 * share / (1 + share))


@dataclass(frozen=True)
class Drawing:
    """How intervals are made: what is drawn ("volume", "scan" or "patient"), how often, from which seed, and the kind of interval."""

    resample: str = "volume"
    resamples: int = 1000
    seed: int = 0
    ci: str = "percentile"


PAPER = Drawing()


def units_of(identifiers: Sequence[object]) -> np.ndarray:
    """Which unit (scan, patient) each volume belongs to, int (N,), from equal identifiers, numbered in their sorted order.

    Two models on the same patients number them in the same way, and so draw the same ones.
    """
    places = {identifier: place for place, identifier in enumerate(sorted(set(identifiers), key=repr))}
    return np.array([places[identifier] for identifier in identifiers], dtype=np.int64)


def draws(units: int, resamples: int, seed: int | Sequence[int]) -> Iterator[np.ndarray]:
    """How often each unit is drawn, float32 (≤ AT_ONCE, units) at a time: each sample draws as many units as there are."""
    key = seed if isinstance(seed, int) else tuple(seed)
    counts = _kept if units * resamples <= KEPT else _drawn
    return (block.astype(np.float32) for block in counts(units, resamples, key, AT_ONCE))


@functools.lru_cache(maxsize=4)
def _kept(units: int, resamples: int, seed: int | tuple[int, ...], at_once: int) -> tuple[np.ndarray, ...]:
    """The same counts in memory, in the smallest type that holds them."""
    return tuple(block.astype(np.min_scalar_type(int(block.max()))) for block in _drawn(units, resamples, seed, at_once))


def _drawn(units: int, resamples: int, seed: int | tuple[int, ...], at_once: int) -> Iterator[np.ndarray]:
    """Counts, int64 (≤ at_once, units) at a time."""
    generator = np.random.default_rng(seed)
    for first in range(0, resamples, at_once):
        count = min(at_once, resamples - first)
        drawn = generator.integers(0, units, (count, units)) + units * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * units).reshape(count, units)


def resampled(sample: Sample, units: np.ndarray, resamples: int, seed: int | Sequence[int]) -> dict[str, np.ndarray]:
    """Every metric in each of `resamples` samples, float (resamples,).

    units : int (N,), the unit of each volume; ``arange(N)`` resamples volumes, the patients' numbers whole patients
    """
    number = int(units.max()) + 1
    alone = number == len(units) and bool((units == np.arange(number)).all())
    blocks = [sample.values(drawn if alone else np.take(drawn, units, axis=1)) for drawn in draws(number, resamples, seed)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def left_out(sample: Sample, units: np.ndarray) -> dict[str, np.ndarray]:
    """Every metric with each unit left out in turn, float (units,): the jackknife."""
    number = int(units.max()) + 1
    blocks = []
    for first in range(0, number, AT_ONCE):
        mine = np.arange(first, min(first + AT_ONCE, number))
        blocks.append(sample.values((units != mine[:, None]).astype(float)))
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def estimates(
    labels: np.ndarray, probabilities: np.ndarray, positive: int, drawing: Drawing = PAPER, units: np.ndarray | None = None
) -> dict[str, Estimate]:
    """Every metric with its bootstrap mean and 95 % interval.

    Parameters
    ----------
    labels : int (N,)
    probabilities : float (N, classes)
    positive : index of the class that precision, recall and F1 are about
    units : int (N,), what is drawn, see `resampled`; by default volumes

    Resamples in which a metric is not defined do not count for it.
    """
    sample = Sample(labels, probabilities, positive)
    units = np.arange(len(labels)) if units is None else units
    return summarised(sample, units, resampled(sample, units, drawing.resamples, drawing.seed), drawing.ci)


def summarised(sample: Sample, units: np.ndarray, drawn: dict[str, np.ndarray], ci: str) -> dict[str, Estimate]:
    """Means and intervals of what `resampled` gave; exact intervals of shares for which it gave the same in all samples."""
    jackknife = left_out(sample, units) if ci == "bca" else {}
    found = {name: estimate(value, drawn[name], ci, limits(name), jackknife.get(name)) for name, value in sample.point().items()}
    of = {name: len(np.unique(units[rows])) for name, rows in sample.shares().items()}
    return {name: with_width(one, of.get(name), F1 if name.partition(":")[0] == "f1" else None) for name, one in found.items()}
