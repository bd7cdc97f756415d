"""All figures of an evaluation: scores, comparisons, subgroups, operating points, checks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ctcovid.base.allocation import keep_freed_memory
from ctcovid.evaluation.bootstrap import Drawing
from ctcovid.evaluation.checks import Checks
from ctcovid.evaluation.comparing import Comparison, compare, pair
from ctcovid.evaluation.intervals import Estimate
from ctcovid.evaluation.levels import joined
from ctcovid.evaluation.operating import at_threshold, threshold_for
from ctcovid.evaluation.predictions import Predictions
from ctcovid.evaluation.scoring import GroupScore, Score, score, score_groups, units
from ctcovid.evaluation.shapes import Shapes, shapes
from ctcovid.evaluation.subgroups import Grouping, at_level

# Bytes of the largest block of samples whose memory is kept for the next; as for networks on a CPU, whose setting is the same process's.
LARGEST_KEPT = 1 << 30


@dataclass(frozen=True)
class Asked:
    """How to evaluate: the index of the positive class, the level and how volumes are joined to it, and how intervals are made."""

    positive: int
    level: str
    join: str
    drawing: Drawing
    sensitivity: float | None = None


@dataclass(frozen=True)
class Subject:
    """A model's predictions by volume, and what is known of it beside them.

    Attributes
    ----------
    card : what model.json says; None for predictions of another system
    valid : predictions on the validation part, for an operating point
    population : what part of what file was scored; None where it is not known
    groupings : subgroups of the volumes
    """

    predictions: Predictions
    card: dict[str, Any] | None
    valid: Predictions | None
    population: tuple[str, str] | None
    groupings: list[Grouping]


@dataclass(frozen=True)
class Scored:
    """Everything measured of one model.

    `point` is the threshold and the figures at it.
    """

    score: Score
    volumes: int
    card: dict[str, Any] | None
    groups: list[GroupScore]
    point: tuple[float, dict[str, Estimate]] | None
    shapes: Shapes

    def document(self) -> dict[str, Any]:
        point = {"threshold": self.point[0], **{name: asdict(found) for name, found in self.point[1].items()}} if self.point else None
        return {
            **self.score.document(),
            "n_volumes": self.volumes,
            "operating_point": point,
            "reliability": [asdict(one) for one in self.shapes.bins],
            "subgroups": [group.document() for group in self.groups],
        }


@dataclass(frozen=True)
class Study:
    """All models, the first being the reference; the comparisons with it; trivial models; what was found out about the test sets."""

    asked: Asked
    models: list[Scored]
    comparisons: list[Comparison]
    baselines: list[Score]
    checks: list[Checks]

    @property
    def scores(self) -> list[Score]:
        return [model.score for model in self.models]

    def document(self) -> dict[str, Any]:
        models = [model.document() for model in self.models]
        models[0]["p_values"] = None
        for found, comparison in zip(models[1:], self.comparisons, strict=True):
            found |= {"p_values": comparison.fisher, "comparison": comparison.document()}
        checks = {check.name: check.document() for check in self.checks}
        return {"models": models, "baselines": [baseline.document() for baseline in self.baselines], "checks": checks}


def study(subjects: list[Subject], trivial: list[Predictions], checks: list[Checks], asked: Asked) -> Study:
    """Score all models at the level that is asked for, and compare each with the first.

    trivial : what trivial models predict, by volume

    Raises InputError where two models cannot be compared.
    """
    from threadpoolctl import threadpool_limits

    keep_freed_memory(LARGEST_KEPT)
    # The matrix products are small: several threads would mostly wait for each other, and round differently from one.
    with threadpool_limits(limits=1, user_api="blas"):
        return _study(subjects, trivial, checks, asked)


def _study(subjects: list[Subject], trivial: list[Predictions], checks: list[Checks], asked: Asked) -> Study:
    rows = [joined(subject.predictions, asked.level, asked.join) for subject in subjects]
    pairings = [
        pair(other, rows[0], subject.population is not None and subject.population == subjects[0].population, asked.level)
        for other, subject in zip(rows[1:], subjects[1:], strict=True)
    ]
    rows[1:] = [pairing.predictions for pairing in pairings]
    # A seed of its own, unless the same units are drawn: then the samples of both models are the same, and differences are paired.
    units_of_first = _drawn_units(rows[0], asked.drawing.resample)
    apart = [0 if _drawn_units(one, asked.drawing.resample) == units_of_first else number for number, one in enumerate(rows)]
    models = [_scored(*known, asked) for known in zip(subjects, rows, apart, strict=True)]
    others = [(pairing, model.score) for pairing, model in zip(pairings, models[1:], strict=True)]
    comparisons = compare((rows[0], models[0].score), others, asked.positive, asked.drawing)
    # Joined by the mean: other rules would give those that know nothing different answers for many volumes than for few.
    baselines = [score(joined(one, asked.level, "mean"), asked.positive, asked.drawing) for one in trivial]
    return Study(asked, models, comparisons, baselines, checks)


def _drawn_units(predictions: Predictions, resample: str) -> list[Any]:
    if resample == "volume":
        return predictions.keys
    return sorted(set(predictions.patients if resample == "patient" else zip(predictions.patients, predictions.scans, strict=True)))


def _scored(subject: Subject, rows: Predictions, apart: int, asked: Asked) -> Scored:
    drawing = asked.drawing
    # The groups of the rows as they come from the volumes, which `pair` may have put into another order.
    ungrouped = joined(subject.predictions, asked.level, asked.join)
    groupings = [at_level(grouping, subject.predictions, asked.level) for grouping in subject.groupings]
    return Scored(
        score(rows, asked.positive, drawing, apart),
        len(subject.predictions.labels),
        subject.card,
        score_groups(ungrouped, groupings, asked.positive, drawing),
        _point(subject.valid, rows, units(rows, drawing.resample), asked),
        shapes(rows, asked.positive, drawing),
    )


def _point(valid: Predictions | None, rows: Predictions, unit: np.ndarray, asked: Asked) -> tuple[float, dict[str, Estimate]] | None:
    """The threshold that gives the sensitivity on the validation part, and the figures at it."""
    if valid is None or asked.sensitivity is None:
        return None
    chosen_on = joined(valid, asked.level, asked.join)
    threshold = threshold_for(chosen_on.labels == asked.positive, chosen_on.probabilities[:, asked.positive], asked.sensitivity)
    if threshold is None:
        return None
    positive, scores = rows.labels == asked.positive, rows.probabilities[:, asked.positive]
    drawing = asked.drawing
    return threshold, at_threshold(positive, scores, threshold, unit, drawing)
