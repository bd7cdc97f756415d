"""What was measured of the cells: row by row beside the paper's values, and over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ctcovid.evaluation.intervals import Estimate
from ctcovid.evaluation.significance import fisher_p_values, stars
from ctcovid.experiments.cells import WITHOUT_STARS, Row, rows
from ctcovid.experiments.done import evaluation
from ctcovid.experiments.published import METRICS, Published, published
from ctcovid.experiments.study import Study


@dataclass(frozen=True)
class Result:
    """What ctcovid evaluate measured of a trained cell.

    `estimates` are by metric, those of METRICS and macro_auroc; `confusion` is int (classes, classes), `positive` the index of the class
    that F1-score, precision and recall are about.
    """

    volumes: int
    estimates: dict[str, Estimate]
    confusion: np.ndarray
    classes: list[str]
    positive: int


@dataclass(frozen=True)
class RowResult:
    """A row of a table: the paper's values and, by repetition, what was measured; None where that is not done.

    `reference` are the results of the row that Fisher's test compares with: the first of the table that is done.
    """

    row: Row
    paper: dict[str, Published]
    results: tuple[Result | None, ...]
    reference: RowResult | None

    @property
    def first(self) -> Result | None:
        """What was measured with the first seed."""
        return self.results[0]

    def p_value(self, metric: str, repeat: int = 0) -> float | None:
        """Fisher's test against the reference, of trainings with the same seed; None without a test."""
        mine, theirs = self.results[repeat], self.reference.results[repeat] if self.reference else None
        if mine is None or theirs is None:
            return None
        return fisher_p_values(theirs.confusion, mine.confusion, mine.positive)[metric]

    def stars(self, metric: str, repeat: int = 0) -> str:
        return stars(self.p_value(metric, repeat))

    def means(self, metric: str) -> list[float]:
        """The metric with each seed that is done, as the tables show it."""
        found = [result.estimates[metric].mean for result in self.results if result is not None]
        return [mean for mean in found if mean is not None]

    def difference(self, metric: str) -> float | None:
        """Our value minus the paper's."""
        mean = self.first.estimates[metric].mean if self.first else None
        return None if mean is None else mean - self.paper[metric].mean

    def overlaps(self, metric: str) -> bool | None:
        """Whether our interval and the paper's have a value in common."""
        ours = self.first.estimates[metric] if self.first else None
        if ours is None or ours.low is None or ours.high is None:
            return None
        return ours.low <= self.paper[metric].high and self.paper[metric].low <= ours.high


@dataclass(frozen=True)
class Star:
    """A difference that the paper marks with stars, and what is left of it over seeds.

    Attributes
    ----------
    paper : the row's value minus that of the first row
    ours : the same of our means over seeds; `lowest` and `highest` with any seed of one and any of the other
    marks : our own stars with each seed
    """

    row: Row
    metric: str
    stars: str
    paper: float
    ours: float
    lowest: float
    highest: float
    marks: tuple[str, ...]

    @property
    def survives(self) -> bool:
        """Whether every training of the row lies on the paper's side of every training of the first row."""
        return self.lowest > 0 if self.paper > 0 else self.highest < 0


def table_results(study: Study, table: int) -> list[RowResult]:
    """The rows of one of the paper's tables."""
    found = [
        RowResult(row, published()[row.name], tuple(_result(study, row, repeat) for repeat in range(study.scale.seeds)), None)
        for row in rows(study.scale.thickest)
        if row.table == table
    ]
    if table == WITHOUT_STARS:
        return found
    reference = next((one for one in found if one.first is not None), None)
    return [one if one is reference else replace(one, reference=reference) for one in found]


def stars_over_seeds(results: Sequence[RowResult]) -> list[Star]:
    """What is left over seeds of the stars that the paper has in a table, where that can be said: of cells with two seeds or more."""
    first = results[0]
    found = []
    for one in results[1:]:
        for metric in METRICS:
            mine, theirs = one.means(metric), first.means(metric)
            if one.paper[metric].stars and one.reference is first and min(len(mine), len(theirs)) > 1:
                paper = one.paper[metric].mean - first.paper[metric].mean
                ours, lowest, highest = float(np.mean(mine) - np.mean(theirs)), min(mine) - max(theirs), max(mine) - min(theirs)
                marks = tuple(one.stars(metric, repeat) for repeat, result in enumerate(one.results) if result is not None)
                found.append(Star(one.row, metric, one.paper[metric].stars, paper, ours, lowest, highest, marks))
    return found


def _result(study: Study, row: Row, repeat: int) -> Result | None:
    document = evaluation(study, replace(row.cell, repeat=repeat))
    if document is None:
        return None
    (model,) = document["models"]
    estimates = {metric: _estimate(model[metric]) for metric in (*METRICS, "macro_auroc")}
    classes = document["classes"]
    return Result(model["n_volumes"], estimates, np.array(model["confusion"]), classes, classes.index(document["positive"]))


def _estimate(found: dict[str, Any]) -> Estimate:
    return Estimate(*(found[part] for part in ("value", "mean", "low", "high")))
