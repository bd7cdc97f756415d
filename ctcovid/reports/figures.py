"""Figures of the paper, drawn with matplotlib off any screen, which is imported only once something is drawn."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctcovid.base.files import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAIN_COLOUR, VALID_COLOUR = "#1f4e79", "#c55a11"


@contextlib.contextmanager
def figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of that many inches, saved as PNG when the block ends."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width, height), layout="constrained")
    yield drawn
    with atomic(path) as temporary:
        drawn.savefig(temporary, format="png", dpi=150)


def literal(text: str) -> str:
    """Text for matplotlib, which would read what stands between dollar signs as a formula.

    A character that its font lacks is shown by its code point, as ``[U+80BA]``, for names must stay distinct.
    """
    from matplotlib.font_manager import FontProperties, findfont

    known = _characters(findfont(FontProperties()))
    shown = "".join(one if one == "\n" or ord(one) in known else f"[U+{ord(one):04X}]" for one in text)
    return shown.replace("$", r"\$")


@functools.cache
def _characters(font: str) -> frozenset[int]:
    """Code points that a font file has a picture of."""
    from matplotlib.font_manager import get_font

    return frozenset(get_font(font).get_charmap())


def curve(path: Path, what: str, epochs: Sequence[int], train: Sequence[float], valid: Sequence[float | None]) -> None:
    """Loss or accuracy over the epochs, for training and, where there is one, validation (Li et al. 2021, Figs. 8 and 9)."""
    with figure(path, 6, 4) as drawn:
        draw_curve(drawn, what, epochs, train, valid)


def draw_curve(drawn: Figure, what: str, epochs: Sequence[int], train: Sequence[float], valid: Sequence[float | None]) -> None:
    """The same into a figure."""
    from matplotlib.ticker import MaxNLocator

    axes = drawn.subplots()
    axes.plot(epochs, train, color=TRAIN_COLOUR, marker="o", markersize=3, label="training")
    if any(value is not None for value in valid):
        numbers = [np.nan if value is None else value for value in valid]
        axes.plot(epochs, numbers, color=VALID_COLOUR, marker="s", markersize=3, label="validation")
    axes.set(xlabel="epoch", ylabel=what)
    axes.set_ylim(bottom=0)
    if what == "accuracy":
        axes.set_ylim(0, 1.02)
    axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def confusion(path: Path, counts: np.ndarray, classes: Sequence[str], title: str) -> None:
    """The confusion matrix, normalised by row, with counts (Li et al. 2021, Fig. 6).

    counts : int (classes, classes), true class by predicted class. A row without volumes stays blank.
    """
    with figure(path, *confusion_size(classes)) as drawn:
        draw_confusion(drawn, counts, classes, title)


def confusion_size(classes: Sequence[str]) -> tuple[float, float]:
    """Width and height of a confusion matrix in inches."""
    side = 2.2 + 0.9 * len(classes)
    return side + 0.6, side


def row_shares(counts: np.ndarray) -> np.ndarray:
    """A confusion matrix normalised by row, not-a-number in a row without volumes."""
    totals = counts.sum(1, keepdims=True)
    return np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)


def draw_confusion(drawn: Figure, counts: np.ndarray, classes: Sequence[str], title: str) -> None:
    """The same into a figure."""
    shares = row_shares(counts)
    axes = drawn.subplots()
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for true, predicted in np.ndindex(*counts.shape):
        share = shares[true, predicted]
        text = "no volumes" if np.isnan(share) else f"{share:.4f}\n({counts[true, predicted]:,})"
        axes.text(predicted, true, text, ha="center", va="center", fontsize=9, color="white" if share > 0.5 else "black")
    _class_axes(axes, classes)
    axes.grid(False)
    axes.set_title(literal(title), fontsize=10)
    drawn.colorbar(shown, ax=axes, fraction=0.046, label="share of the true class")


def _class_axes(axes: Any, classes: Sequence[str]) -> None:
    places = range(len(classes))
    names = [literal(name) for name in classes]
    axes.set_xticks(places, names)
    axes.set_yticks(places, names)
    axes.set(xlabel="predicted class", ylabel="true class")
