"""A model against the reference, by the paper's test and by those that know both saw the same test set."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ctcovid.base.errors import InputError, agreeing, counted
from ctcovid.evaluation.bootstrap import Drawing
from ctcovid.evaluation.intervals import Estimate, estimate
from ctcovid.evaluation.paired import DeLong, McNemar, bootstrap_p_value, delong, holm, mcnemar
from ctcovid.evaluation.predictions import Predictions, aligned
from ctcovid.evaluation.scoring import Score
from ctcovid.evaluation.significance import fisher_p_values

# The metrics whose difference is bootstrapped.
DIFFERENCES = ("accuracy", "precision", "recall", "f1", "macro_auroc")


@dataclass(frozen=True)
class Comparison:
    """One model against the reference.

    Attributes
    ----------
    paired : whether both were scored on the same rows; `why` says it in words
    fisher : p-values by metric (Li et al. 2021), with Holm's adjustment over all models in `fisher_holm`
    mcnemar : None where the rows differ
    delong : of the AUROC of the positive class
    differences, p_values : the model minus the reference, by bootstrap, by metric
    holm : adjusted p-values of "mcnemar", "delong" and the bootstrap by metric
    """

    name: str
    paired: bool
    why: str
    fisher: dict[str, float]
    mcnemar: McNemar | None
    delong: DeLong
    differences: dict[str, Estimate]
    p_values: dict[str, float | None]
    fisher_holm: dict[str, float | None]
    holm: dict[str, float | None]

    def document(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Pairing:
    """How a model's rows relate to the reference's: its `predictions`, in the reference's order where the rows are the same ones."""

    predictions: Predictions
    paired: bool
    why: str


def pair(predictions: Predictions, reference: Predictions, same_population: bool, level: str) -> Pairing:
    """Put a model's rows into the order of the reference's, where they are the same.

    same_population : both are known to come from one part of one file, so that patients can be missing only for want of slices

    Raises InputError where the patients differ, or what is true of them.
    """
    mine, theirs = set(predictions.patients), set(reference.patients)
    if mine != theirs and not (same_population and mine & theirs):
        same = len(mine & theirs)
        raise InputError(
            f"{predictions.name} was scored on {counted(len(mine), 'patient')}, {reference.name} on {len(theirs):,}, of whom {same:,} "
            f"{agreeing(same, 'is', 'are')} the same. Models can be compared on the same patients only; evaluate them one by one."
        )
    arranged = aligned(predictions, reference)
    if arranged is not None:
        return Pairing(arranged, True, f"the same {len(arranged.labels):,} {level}s: paired tests")
    labels = _labels(reference)
    differing = sum(key in labels and labels[key].isdisjoint(found) for key, found in _labels(predictions).items())
    if differing:
        raise InputError(
            f"{predictions.name} and {reference.name} have different labels for {counted(differing, level)}. One of them has "
            "a wrong label: correct it, or evaluate the models one by one."
        )
    reason = f"different {level}s, as those of another depth are"
    if mine != theirs:
        reason += f", and {counted(len(mine ^ theirs), 'patient')} without any in one of the two"
    return Pairing(predictions, False, f"{reason}: unpaired tests, McNemar's left out")


def compare(reference: tuple[Predictions, Score], others: list[tuple[Pairing, Score]], positive: int, drawing: Drawing) -> list[Comparison]:
    """Each model against the reference, with Holm's correction over all of them for each kind of test."""
    found = [_compare(reference, pairing, score, positive, drawing) for pairing, score in others]
    fisher = _holm_over([dict(one.fisher) for one in found])
    tests = [{"mcnemar": one.mcnemar.p_value if one.mcnemar else None, "delong": one.delong.p_value, **one.p_values} for one in found]
    adjusted: list[dict[str, float | None]] = [{} for _ in found]
    # Each kind of test is a family of its own: nobody reads them as one.
    for family in (("mcnemar",), ("delong",), DIFFERENCES):
        for mine, part in zip(adjusted, _holm_over([{name: one[name] for name in family} for one in tests]), strict=True):
            mine.update(part)
    return [replace(one, fisher_holm=first, holm=second) for one, first, second in zip(found, fisher, adjusted, strict=True)]


def _compare(reference: tuple[Predictions, Score], pairing: Pairing, score: Score, positive: int, drawing: Drawing) -> Comparison:
    truth, base = reference
    other = pairing.predictions
    differences = {name: score.drawn[name] - base.drawn[name] for name in DIFFERENCES}
    values = {name: _difference(score.estimates[name].value, base.estimates[name].value) for name in DIFFERENCES}
    # BCa would need the jackknife of both models at once; percentiles of a difference, which is not bounded on one side, need it less.
    ci = "normal" if drawing.ci == "normal" else "percentile"
    return Comparison(
        score.name,
        pairing.paired,
        pairing.why,
        fisher_p_values(base.confusion, score.confusion, positive),
        mcnemar(truth.predicted == truth.labels, other.predicted == other.labels) if pairing.paired else None,
        delong(_positives(truth, positive), _positives(other, positive), pairing.paired),
        {name: estimate(values[name], differences[name], ci, (-1.0, 1.0)) for name in DIFFERENCES},
        {name: None if np.isnan(values[name]) else bootstrap_p_value(differences[name]) for name in DIFFERENCES},
        {},
        {},
    )


def _labels(predictions: Predictions) -> dict[tuple[str, str, int], set[int]]:
    """The labels that each volume, scan or patient has."""
    found: dict[tuple[str, str, int], set[int]] = {}
    for patient, scan, volume, label in predictions.keys:
        found.setdefault((patient, scan, volume), set()).add(label)
    return found


def _positives(predictions: Predictions, positive: int) -> tuple[np.ndarray, np.ndarray]:
    return predictions.labels == positive, predictions.probabilities[:, positive]


def _difference(mine: float | None, theirs: float | None) -> float:
    return float("nan") if mine is None or theirs is None else mine - theirs


def _holm_over(tests: list[dict[str, float | None]]) -> list[dict[str, float | None]]:
    """The p-values of a table, by row and name, adjusted as one family."""
    flat = iter(holm([p_value for row in tests for p_value in row.values()]))
    return [{name: next(flat) for name in row} for row in tests]
