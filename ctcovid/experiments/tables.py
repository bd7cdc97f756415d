"""Tables 4 to 7: in the paper's form, beside the paper's values, and the paper's stars over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctcovid.experiments.cells import SAME_NUMBER, TABLES, Row
from ctcovid.experiments.published import MACRO_AUROC, METRICS
from ctcovid.experiments.results import Result, RowResult, Star
from ctcovid.experiments.study import Study
from ctcovid.models.architectures import ARCHITECTURES
from ctcovid.reports.tables import Cell, Table, csv_text
from ctcovid.volumes.reader import VolumesFile

MISSING = "missing"
PARTS = ("value", "mean", "low", "high", "p")
PUBLISHED_PARTS = ("paper", "paper_low", "paper_high", "paper_stars", "difference", "overlap", "seed_min", "seed_max", "seed_sd")


def labels(row: Row, study: Study) -> dict[str, str]:
    """What the paper calls the row: headings and cells of its first columns."""
    cell = row.cell
    if row.table == 4:
        return {"Depth and batch size": f"{cell.depth} {cell.batch} ({_images(row)})", "Slices": _slices(study.data(cell.images))}
    if row.table == 7:
        layers = cell.arch.removeprefix("r2plus1d").removeprefix("r3d")
        return {"Model": f"ResNet-{layers}(2+1)D" if ARCHITECTURES[cell.arch].family.startswith("(2+1)D") else f"ResNet-{layers}"}
    return {"Depth": str(cell.depth), "Batch size": str(cell.batch)}


def _slices(path: Path) -> str:
    return f"{sum(row.slice_count for row in VolumesFile(path).rows):,}" if path.is_file() else MISSING


def _called(row: Row, study: Study) -> str:
    """The row in a few words."""
    if row.table == 4:
        return _images(row)
    return labels(row, study)["Model"] if row.table == 7 else f"depth {row.cell.depth}, batch {row.cell.batch}"


def _images(row: Row) -> str:
    return "complete, same number" if row.cell.images == SAME_NUMBER else row.cell.images


def paper_table(number: int, results: Sequence[RowResult], study: Study) -> Table:
    """One of the paper's tables, of what was measured."""
    named = [labels(one.row, study) for one in results]
    cells = [
        [*name.values(), f"{one.first.volumes:,}" if one.first else MISSING, *(_measured(one, metric) for metric in METRICS)]
        for name, one in zip(named, results, strict=True)
    ]
    notes = ["Means and mean ± 1.96 standard deviations of the bootstrap over volumes of the test part."]
    done = next((one.first for one in results if one.first), None)
    if done:
        notes.append(f"Accuracy is over all classes; F1-score, precision and recall are {done.classes[done.positive]} against the rest.")
    if reference := next((one.reference for one in results if one.reference), None):
        notes.append(f"Two-sided Fisher's exact test against {_called(reference.row, study)}: * p < 0.05, ** p < 0.01, *** p < 0.001.")
    if missing := sum(one.first is None for one in results):
        notes.append(f"{missing} of {len(results)} rows missing: not asked for, or not finished.")
    if number == 7:
        notes += _macro_auroc(results[0].first)
    title = f"Table {number}. {TABLES[number]}"
    headings = [f"{name} (95% CI)" for name in METRICS.values()]
    return Table((*named[0], "Test volumes", *headings), cells, title, text_columns=len(named[0]), notes=notes)


def _measured(one: RowResult, metric: str) -> str:
    """As the paper writes it: mean, stars, and the interval in brackets."""
    if one.first is None:
        return MISSING
    found = one.first.estimates[metric]
    if found.mean is None:
        return "not defined" if found.value is None else f"{found.value:.4f}"
    return f"{found.mean:.4f}{one.stars(metric)} ({found.low:.4f}, {found.high:.4f})"


def _macro_auroc(result: Result | None) -> list[str]:
    """A note on the best model's macro-AUROC, which stands in no table of the paper."""
    found = result.estimates["macro_auroc"] if result else None
    ours = MISSING if found is None or found.mean is None else f"{found.mean:.4f} ({found.low:.4f}, {found.high:.4f})"
    theirs = ", ".join(f"{value} ({where})" for value, where in MACRO_AUROC.items())
    return [f"macro-AUROC of the first row: {ours}. The paper: {theirs}."]


def beside_table(number: int, results: Sequence[RowResult], study: Study) -> Table:
    """The paper's values beside ours, one line for each; with several seeds, the range over them too."""
    spread = study.scale.seeds > 1
    headings = ["Row", "Metric", "Paper (95% CI)", "Here (95% CI)", "Difference", "Intervals overlap"]
    lines: list[list[Cell]] = []
    for one in results:
        for metric, name in METRICS.items():
            difference, overlaps = one.difference(metric), one.overlaps(metric)
            line: list[Cell] = [_called(one.row, study), name, one.paper[metric].text, _measured(one, metric)]
            line += ["-" if difference is None else f"{difference:+.4f}", {True: "yes", False: "no", None: "-"}[overlaps]]
            lines.append([*line, _range(one.means(metric), study)] if spread else line)
    notes = ["Difference: the value here minus the paper's."]
    if spread:
        headings.append("Lowest to highest seed")
        notes.append(f"{study.scale.seeds} trainings of each cell, with seeds from {study.seed} on; the interval is that of the first.")
    return Table(headings, lines, f"Table {number} of the paper, and here", text_columns=2, notes=notes)


def _range(means: Sequence[float], study: Study) -> str:
    if len(means) < 2:
        return MISSING
    text = f"{min(means):.4f} to {max(means):.4f}"
    return text if len(means) == study.scale.seeds else f"{text} (of {len(means)})"


def stars_table(number: int, found: Sequence[Star], study: Study) -> Table:
    """Which of the paper's stars survive other seeds."""
    headings = ("Row", "Metric", "Paper", "Here", "Lowest", "Highest", "Stars by seed", "Survives")
    lines: list[list[Cell]] = [
        [
            _called(star.row, study),
            METRICS[star.metric],
            f"{star.paper:+.4f}{star.stars}",
            *(f"{value:+.4f}" for value in (star.ours, star.lowest, star.highest)),
            ", ".join(mark or "none" for mark in star.marks),
            "yes" if star.survives else "no",
        ]
        for star in found
    ]
    notes = [
        "Differences to the first row: the paper's, that of our means over seeds, and the lowest and highest between any two trainings.",
        "A star survives if every training of the row lies on the paper's side of every training of the first row.",
        f"{sum(star.survives for star in found)} of {len(found)} survive.",
    ]
    return Table(headings, lines, f"The paper's stars in Table {number}, over {study.scale.seeds} seeds", text_columns=2, notes=notes)


def full_numbers(results: Sequence[RowResult]) -> str:
    """Everything of a table as CSV, without rounding: a line for each row, with empty fields where it is missing."""
    heading = ["row", "name", "images", "arch", "depth", "batch", "status", "test_volumes"]
    heading += [f"{metric}_{part}" for metric in METRICS for part in (*PARTS, *PUBLISHED_PARTS)]
    lines = []
    for one in results:
        cell, result = one.row.cell, one.first
        line: list[Any] = [one.row.name, cell.run, cell.images, cell.arch, cell.depth, cell.batch]
        line += ["finished", result.volumes] if result else [MISSING, ""]
        for metric in METRICS:
            found, paper = result and result.estimates[metric], one.paper[metric]
            line += [found and getattr(found, part) for part in PARTS[:-1]]
            line += [one.p_value(metric), paper.mean, paper.low, paper.high, paper.stars, one.difference(metric), one.overlaps(metric)]
            line += _spread(one.means(metric))
        lines.append(["" if field is None else field for field in line])
    return csv_text(heading, lines)


def _spread(means: Sequence[float]) -> list[float | None]:
    """Smallest, largest and standard deviation over seeds; none of a single seed."""
    return [min(means), max(means), float(np.std(means, ddof=1))] if len(means) > 1 else [None] * 3
