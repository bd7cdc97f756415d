"""Figs. 4 to 9 of the paper, of what was measured."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ctcovid.experiments.cells import BEST, COMPLETE
from ctcovid.experiments.done import is_trained
from ctcovid.experiments.published import METRICS
from ctcovid.experiments.results import RowResult
from ctcovid.experiments.saliency import explained, scans_to_explain
from ctcovid.experiments.study import Study
from ctcovid.reports.figures import confusion, figure, literal


@dataclass(frozen=True)
class Axis:
    """The horizontal axis of Fig. 4 or 5: what it shows, a tick for each row, and matplotlib's format of the points."""

    what: str
    ticks: list[str]
    form: str


def draw_figures(study: Study, tables: dict[int, list[RowResult]]) -> dict[int, bool]:
    """Draw Figs. 4 to 9 into the study's folder, and remove earlier ones; whether there was anything to draw, by number."""
    paths = {number: study.out / f"figure-{number}.png" for number in range(4, 10)}
    depths, batches = tables[5], tables[6]
    fourth = Axis("depth (batch size 8)", [str(one.row.cell.depth) for one in depths], "o-")
    fifth = Axis("depth, batch size", [f"{one.row.cell.depth}, {one.row.cell.batch}" for one in batches], "o")
    trained = is_trained(study, BEST)
    drawn = {
        4: metrics_figure(paths[4], depths, fourth),
        5: metrics_figure(paths[5], batches, fifth),
        6: _confusion_figure(paths[6], tables[7][0]),
        7: trained and study.data(COMPLETE).is_file() and saliency_montage(paths[7], _overlays(study)),
        8: trained and _copied(study.runs / BEST.run / "loss.png", paths[8]),
        9: trained and _copied(study.runs / BEST.run / "accuracy.png", paths[9]),
    }
    for number, there in drawn.items():
        if not there:
            paths[number].unlink(missing_ok=True)
    return drawn


def metrics_figure(path: Path, results: Sequence[RowResult], axis: Axis) -> bool:
    """Fig. 4 or 5: the four metrics with their intervals, and the paper's values as crosses; whether there was anything to draw."""
    if not any(one.first for one in results):
        return False
    with figure(path, 6, 4) as drawn:
        axes = drawn.subplots()
        for number, (metric, name) in enumerate(METRICS.items()):
            found = [one.first.estimates[metric] if one.first else None for one in results]
            mean, low, high = (
                np.array([score and getattr(score, part) for score in found], dtype=float) for part in ("mean", "low", "high")
            )
            # Side by side, so that no interval hides another.
            beside = np.arange(len(results)) + 0.08 * (number - 1.5)
            bars = axes.errorbar(beside, mean, (mean - low, high - mean), fmt=axis.form, markersize=4, capsize=3, label=name)
            colour = bars.lines[0].get_color()
            axes.plot(beside, [one.paper[metric].mean for one in results], "x", color=colour, markersize=5, alpha=0.6)
        axes.plot([], [], "x", color="grey", label="the paper's")
        axes.set_xticks(range(len(results)), axis.ticks)
        axes.set_xlim(-0.5, len(results) - 0.5)
        axes.set(xlabel=axis.what, ylabel="mean and 95 % interval")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    return True


def saliency_montage(path: Path, overlays: dict[str, list[Path]]) -> bool:
    """Fig. 7: a column of overlays for each class; whether there was anything to draw."""
    if not overlays:
        return False
    height = max(len(column) for column in overlays.values())
    with figure(path, 2.4 * len(overlays), 2.4 * height) as drawn:
        grid = drawn.subplots(height, len(overlays), squeeze=False)
        for axes in grid.flat:
            axes.axis("off")
        for place, (label, column) in enumerate(overlays.items()):
            grid[0, place].set_title(literal(label))
            for axes, overlay in zip(grid[:, place], column, strict=False):
                axes.imshow(np.asarray(Image.open(overlay)))
    return True


def _overlays(study: Study) -> dict[str, list[Path]]:
    """The middle slice of each explained scan, by class, in the order of the classes."""
    found: dict[str, list[Path]] = {}
    manifests = explained(study)
    for source, label in scans_to_explain(study).items():
        if source in manifests:
            found.setdefault(label, []).append(middle_slice(manifests[source]["folder"], manifests[source]["slices"]))
    return found


def middle_slice(folder: Path, slices: Sequence[str]) -> Path:
    """The overlay of a scan's middle slice, in the order of the scan, which that of file names need not be."""
    return folder / "overlays" / f"{Path(slices[len(slices) // 2]).stem}.png"


def _confusion_figure(path: Path, best: RowResult) -> bool:
    if best.first is None:
        return False
    confusion(path, best.first.confusion, best.first.classes, best.row.cell.run)
    return True


def _copied(source: Path, path: Path) -> bool:
    """Copy a figure that training has drawn; whether there is one."""
    if source.is_file():
        shutil.copyfile(source, path)
    return source.is_file()
