"""From volumes to scans and patients."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np

from ctcovid.evaluation.predictions import Predictions


def scan_probabilities(volumes: np.ndarray) -> np.ndarray:
    """Probabilities of a scan, float (classes,): the mean of its volumes' softmax, float (N, classes) with N ≥ 1."""
    return volumes.mean(axis=0)


def joined(predictions: Predictions, level: str, rule: str) -> Predictions:
    """One row per volume, scan or patient, in the order in which they first appear.

    A patient who stands in two class folders is a row in each: there is no one truth to score.

    Parameters
    ----------
    level : "volume" changes nothing
    rule : how the probabilities of volumes become those of the whole, see `join`
    """
    if level == "volume":
        return predictions
    rows: dict[tuple[str, str, int], list[int]] = {}
    for row, key in enumerate(row_keys(predictions, level)):
        rows.setdefault(key, []).append(row)
    return replace(
        predictions,
        patients=[patient for patient, _, _ in rows],
        scans=[scan for _, scan, _ in rows],
        volumes=np.zeros(len(rows), dtype=int),
        labels=np.array([label for _, _, label in rows], dtype=np.int64),
        probabilities=np.stack([join(predictions.probabilities[mine], rule) for mine in rows.values()]),
    )


def row_keys(predictions: Predictions, level: str) -> list[tuple[str, str, int]]:
    """Patient, scan and label of the row that each volume is joined to, length N; the scan is "" for patients."""
    scans = predictions.scans if level == "scan" else [""] * len(predictions.scans)
    return list(zip(predictions.patients, scans, predictions.labels.tolist(), strict=True))


def join(probabilities: np.ndarray, rule: str) -> np.ndarray:
    """Probabilities of a scan or patient, float (classes,) summing to 1, from those of its volumes, float (N, classes) with N ≥ 1.

    rule : "mean"; "max", the highest of each class, scaled to sum 1; "noisy-or", the chance 1 − ∏(1 − p) that any volume shows the class
        if volumes were independent, scaled to sum 1, with the order of the classes taken from −∑ log(1 − p), and from the mean at a tie,
        since many volumes bring several classes to 1; "vote", the share of volumes that each class wins, where the mean counts half
        a vote, so that it settles ties and nothing else
    """
    mean = scan_probabilities(probabilities)
    if rule == "mean":
        # Means of equal values over more or fewer volumes differ in the last place, and would rank what is a tie.
        return np.round(mean, 12)
    if rule == "vote":
        votes = np.bincount(probabilities.argmax(1), minlength=probabilities.shape[1])
        found = votes + mean / 2
    elif rule == "max":
        found = probabilities.max(0)
    else:
        return _noisy_or(probabilities, mean)
    return np.asarray(found / found.sum())


def _noisy_or(probabilities: np.ndarray, mean: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        evidence = -np.log1p(-np.minimum(probabilities, 1)).sum(0)
    found = -np.expm1(-evidence)
    found /= found.sum()
    # Where rounding made classes equal that are not, each gets the next number above the one before.
    ranks = sorted(zip(evidence.tolist(), mean.tolist(), range(len(found)), strict=True))
    for (*before, lower), (*after, higher) in pairwise(ranks):
        if before != after:
            found[higher] = max(found[higher], np.nextafter(found[lower], np.inf))
        else:
            found[higher] = found[lower]
    return np.asarray(found)
