"""What the figures of one model show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctcovid.evaluation.bootstrap import Drawing
from ctcovid.evaluation.curves import Curve, roc_and_pr
from ctcovid.evaluation.metrics import Sample, confusion_matrix
from ctcovid.evaluation.predictions import Predictions
from ctcovid.evaluation.reliability import ReliabilityBin, reliability
from ctcovid.evaluation.scoring import units


@dataclass(frozen=True)
class Shapes:
    """The confusion matrix, the reliability bins, and ROC and precision-recall curves by class, where they are defined.

    `values` are the metrics of the sample itself, by name as in metrics.py; not-a-number where one is not defined.
    """

    name: str
    classes: list[str]
    confusion: np.ndarray
    bins: list[ReliabilityBin]
    roc: dict[str, Curve]
    pr: dict[str, Curve]
    values: dict[str, float]


def shapes(rows: Predictions, positive: int, drawing: Drawing) -> Shapes:
    """The shapes of a model's predictions by volume, scan or patient; `drawing` makes the bands of the curves."""
    roc, pr = {}, {}
    unit = units(rows, drawing.resample)
    for number, name in enumerate(rows.classes):
        curves = roc_and_pr(rows.labels == number, rows.probabilities[:, number], unit, drawing.resamples, drawing.seed)
        if curves[0] is not None and curves[1] is not None:
            roc[name], pr[name] = curves[0], curves[1]
    return Shapes(
        rows.name,
        rows.classes,
        confusion_matrix(rows.labels, rows.predicted, len(rows.classes)),
        reliability(rows.labels, rows.probabilities),
        roc,
        pr,
        Sample(rows.labels, rows.probabilities, positive).point(),
    )
