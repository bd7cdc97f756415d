"""One model's figures, with intervals by volume, scan or patient."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ctcovid.evaluation.bootstrap import Drawing, estimates, resampled, summarised, units_of
from ctcovid.evaluation.intervals import Estimate
from ctcovid.evaluation.metrics import METRICS, PER_CLASS, Sample, confusion_matrix, of_class, undefined
from ctcovid.evaluation.predictions import Predictions
from ctcovid.evaluation.subgroups import SMALL, Grouping

# What is told of a subgroup.
OF_GROUPS = ("accuracy", "recall", "specificity", "macro_auroc")


@dataclass(frozen=True)
class Score:
    """One model's figures.

    Attributes
    ----------
    rows, patients : how many were scored
    estimates : by name of the metric, as in metrics.py
    beside : the same by what was drawn, "volume" and "patient"
    drawn : float (R,) by name of the metric: the bootstrap samples behind `estimates`
    undefined : reasons by metric
    """

    name: str
    classes: list[str]
    rows: int
    patients: int
    estimates: dict[str, Estimate]
    beside: dict[str, dict[str, Estimate]]
    drawn: dict[str, np.ndarray]
    confusion: np.ndarray
    undefined: dict[str, str]

    def document(self) -> dict[str, Any]:
        per_class = {
            label: {metric: asdict(self.estimates[of_class(metric, number)]) for metric in PER_CLASS}
            for number, label in enumerate(self.classes)
        }
        return {
            "name": self.name,
            "rows": self.rows,
            "patients": self.patients,
            **{metric: asdict(self.estimates[metric]) for metric in METRICS},
            "per_class": per_class,
            "resampled_by": {unit: {metric: asdict(found[metric]) for metric in METRICS} for unit, found in self.beside.items()},
            "confusion": self.confusion.tolist(),
            "undefined": self.undefined,
        }


@dataclass(frozen=True)
class GroupScore:
    """The figures of one subgroup; `small` says that it has fewer patients than anything can be said about."""

    grouping: str
    group: str
    rows: int
    patients: int
    small: bool
    estimates: dict[str, Estimate]

    def document(self) -> dict[str, Any]:
        return asdict(self)


def units(predictions: Predictions, resample: str) -> np.ndarray:
    """What is drawn, int (N,): each row, or the number of its scan or patient."""
    if resample == "volume":
        return np.arange(len(predictions.labels))
    if resample == "scan":
        return units_of(list(zip(predictions.patients, predictions.scans, strict=True)))
    return units_of(predictions.patients)


def score(predictions: Predictions, positive: int, drawing: Drawing, apart: int = 0) -> Score:
    """All figures of a model.

    apart : a number other than 0 draws other samples than the same seed gives elsewhere, for a model on other volumes
    """
    sample = Sample(predictions.labels, predictions.probabilities, positive)
    seed = (drawing.seed, apart) if apart else drawing.seed
    found: dict[str, dict[str, Estimate]] = {}
    drawn: dict[str, np.ndarray] = {}
    for unit in dict.fromkeys(("volume", "patient", drawing.resample)):
        of = units(predictions, unit)
        samples = resampled(sample, of, drawing.resamples, seed)
        found[unit] = summarised(sample, of, samples, drawing.ci)
        if unit == drawing.resample:
            drawn = samples
    return Score(
        predictions.name,
        predictions.classes,
        len(predictions.labels),
        len(set(predictions.patients)),
        found[drawing.resample],
        found,
        drawn,
        confusion_matrix(predictions.labels, predictions.predicted, len(predictions.classes)),
        undefined(predictions.labels, predictions.predicted, predictions.classes, positive),
    )


def score_groups(predictions: Predictions, groupings: list[Grouping], positive: int, drawing: Drawing) -> list[GroupScore]:
    """The figures of each group of each grouping that divides the rows at all."""
    found = []
    for grouping in groupings:
        members = grouping.members()
        for name, mine in members.items() if len(members) > 1 else ():
            group = predictions.rows(np.flatnonzero(mine))
            figures = estimates(group.labels, group.probabilities, positive, drawing, units(group, drawing.resample))
            patients = len(set(group.patients))
            chosen = {metric: figures[metric] for metric in OF_GROUPS}
            found.append(GroupScore(grouping.name, name, len(group.labels), patients, patients < SMALL, chosen))
    return found
