"""Figures of an evaluation, each with the data that it shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ctcovid.evaluation.curves import GRID, Curve
from ctcovid.evaluation.intervals import Estimate
from ctcovid.evaluation.reliability import ReliabilityBin
from ctcovid.reports.figures import confusion_size, draw_confusion, draw_curve, literal, row_shares
from ctcovid.reports.tables import Cell, csv_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours whose greys differ, and beside them lines and marks that do.
LINES = (("#000000", "-", "o"), ("#b2182b", "--", "s"), ("#4393c3", "-.", "^"), ("#999999", ":", "D"), ("#7b3294", (0, (5, 1)), "v"))


@dataclass(frozen=True)
class Plot:
    """A figure of `size` inches that `draw` fills, and the data that it shows; `model` is whose it is, "" where it is about several."""

    name: str
    model: str
    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    draw: Callable[[Figure], None]
    size: tuple[float, float] = (4.5, 4.0)

    def csv(self) -> str:
        """The data as CSV."""
        return csv_text(self.columns, self.rows)


def confusion_plot(name: str, counts: np.ndarray, classes: Sequence[str]) -> Plot:
    """The confusion matrix, normalised by row (Li et al. 2021, Fig. 6)."""
    shares = row_shares(counts)
    rows: list[list[Cell]] = [
        [classes[true], classes[predicted], int(counts[true, predicted]), _number(float(shares[true, predicted]))]
        for true, predicted in np.ndindex(*counts.shape)
    ]
    return Plot(
        f"confusion-{name}",
        name,
        f"Confusion matrix of {name}",
        "Share of each true class by predicted class, with counts (as Fig. 6 of the paper).",
        ("true", "predicted", "count", "share of the true class"),
        rows,
        lambda drawn: draw_confusion(drawn, counts, classes, name),
        confusion_size(classes),
    )


def history_plots(name: str, epochs: dict[str, list[float]]) -> list[Plot]:
    """Loss and accuracy over the epochs of training (Li et al. 2021, Figs. 8 and 9), from the columns of metrics.csv."""
    found = []
    for what in ("loss", "accuracy"):
        number, train, valid = ([int(one) for one in epochs["epoch"]], epochs[f"train_{what}"], epochs[f"valid_{what}"])
        shown = [None if np.isnan(value) else value for value in valid]
        found.append(
            Plot(
                f"training-{what}-{name}",
                name,
                f"Training of {name}: {what}",
                f"{what.capitalize()} of training and validation (as Fig. {8 if what == 'loss' else 9} of the paper).",
                ("epoch", "training", "validation"),
                [[*row] for row in zip(number, train, map(_number, valid), strict=True)],
                _curve_drawer(what, number, train, shown),
                (6.0, 4.0),
            )
        )
    return found


def _curve_drawer(what: str, epochs: list[int], train: list[float], valid: list[float | None]) -> Callable[[Figure], None]:
    return lambda drawn: draw_curve(drawn, what, epochs, train, valid)


def roc_plot(name: str, curves: dict[str, Curve], areas: dict[str, float]) -> Plot:
    """ROC curves of each class against the rest."""
    labels = {label: _labelled(label, "AUROC", areas[label]) for label in curves}

    def draw(drawn: Figure) -> None:
        axes = _banded(drawn, curves, labels)
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=":")
        axes.set(xlabel="1 − specificity", ylabel="sensitivity", title=literal(name))
        axes.legend(loc="lower right")

    return _curve_plot("roc", name, f"ROC curves of {name}", ("1 - specificity", "sensitivity"), curves, draw)


def pr_plot(name: str, curves: dict[str, Curve], areas: dict[str, float]) -> Plot:
    """Precision-recall curves of each class against the rest."""
    labels = {label: _labelled(label, "AP", areas[label]) for label in curves}

    def draw(drawn: Figure) -> None:
        axes = _banded(drawn, curves, labels)
        axes.set(xlabel="recall", ylabel="precision", title=literal(name))
        axes.legend(loc="lower left")

    return _curve_plot("pr", name, f"Precision–recall curves of {name}", ("recall", "precision"), curves, draw)


def _curve_plot(kind: str, name: str, title: str, axes: tuple[str, str], curves: dict[str, Curve], draw: Callable[[Figure], None]) -> Plot:
    rows: list[list[Cell]] = [
        [label, *map(_number, row)] for label, curve in curves.items() for row in zip(GRID, curve.value, curve.low, curve.high, strict=True)
    ]
    caption = "Each class against the rest; the bands hold 95 % of the bootstrap samples at each place."
    return Plot(f"{kind}-{name}", name, title, caption, ("class", *axes, "low", "high"), rows, draw)


def _banded(drawn: Figure, curves: dict[str, Curve], labels: dict[str, str]) -> Any:
    axes = drawn.subplots()
    for number, (label, curve) in enumerate(curves.items()):
        colour, line, _ = LINES[number % len(LINES)]
        axes.fill_between(GRID, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(GRID, curve.value, color=colour, linestyle=line, label=literal(labels[label]))
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    return axes


def reliability_plot(name: str, bins: Sequence[ReliabilityBin], error: float) -> Plot:
    """How often the predicted class is right, by how sure the model was."""
    filled = [one for one in bins if one.confidence is not None and one.accuracy is not None]

    def draw(drawn: Figure) -> None:
        upper, lower = drawn.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=":")
        colour, line, mark = LINES[0]
        upper.plot(
            [one.confidence or 0 for one in filled], [one.accuracy or 0 for one in filled], color=colour, linestyle=line, marker=mark
        )
        said = "" if np.isnan(error) else f", calibration error {error:.4f}"
        upper.set(ylabel="share that is right", ylim=(-0.02, 1.02), title=literal(name) + said)
        width = bins[0].high - bins[0].low
        lower.bar([one.low for one in bins], [one.count for one in bins], width, align="edge", color="0.75", edgecolor="0.4")
        lower.set(xlabel="highest probability", ylabel="count", xlim=(-0.02, 1.02))

    rows: list[list[Cell]] = [[one.low, one.high, one.count, _number(one.confidence), _number(one.accuracy)] for one in bins]
    caption = "A well calibrated model lies on the dotted line: of the rows predicted with 90 % it gets 90 % right."
    columns = ("above", "up to", "count", "mean confidence", "share right")
    return Plot(f"reliability-{name}", name, f"Reliability of {name}", caption, columns, rows, draw)


def effect_plot(
    kind: str, places: Sequence[str], figures: Sequence[dict[str, Estimate]], metrics: dict[str, str], joined: bool, ci: str
) -> Plot:
    """The paper's metrics over depth or batch size (Li et al. 2021, Figs. 4 and 5).

    places : what stands below each run; `figures` are its estimates. `joined` draws lines between the runs.
    ci : kind of interval; with "normal" the bootstrap mean is drawn, else the value of the sample
    """

    what = "mean" if ci == "normal" else "value"

    def draw(drawn: Figure) -> None:
        axes = drawn.subplots()
        for number, (metric, label) in enumerate(metrics.items()):
            colour, line, mark = LINES[number % len(LINES)]
            found = [estimates[metric] for estimates in figures]
            value, low, high = np.array([(one.shown(ci), one.low, one.high) for one in found], dtype=float).T
            # Side by side, so that no interval hides another.
            beside = np.arange(len(places)) + 0.08 * (number - (len(metrics) - 1) / 2)
            axes.errorbar(
                beside,
                value,
                # A value may lie outside the percentiles of a biased metric; bars have no negative length.
                (np.maximum(value - low, 0), np.maximum(high - value, 0)),
                color=colour,
                linestyle=line if joined else "none",
                marker=mark,
                markersize=4,
                capsize=3,
                label=label,
            )
        axes.set_xticks(range(len(places)), [literal(place) for place in places])
        axes.set(xlim=(-0.5, len(places) - 0.5), xlabel=kind, ylabel=f"{what} and 95 % interval")
        axes.legend()

    rows: list[list[Cell]] = [
        [place, label, *map(_number, (estimates[metric].shown(ci), estimates[metric].low, estimates[metric].high))]
        for place, estimates in zip(places, figures, strict=True)
        for metric, label in metrics.items()
    ]
    figure = "Fig. 5" if "batch" in kind else "Fig. 4"
    name = "effect-of-batch" if "batch" in kind else "effect-of-depth"
    caption = f"Metrics by {kind} (as {figure} of the paper)."
    return Plot(name, "", f"Effect of {kind}", caption, (kind, "metric", what, "low", "high"), rows, draw, (6.0, 4.0))


def _labelled(label: str, what: str, area: float) -> str:
    return label if np.isnan(area) else f"{label}, {what} {area:.4f}"


def _number(value: float | None) -> Cell:
    return "" if value is None or np.isnan(value) else float(value)
