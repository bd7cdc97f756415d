"""Figures to pictures, in vector and pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctcovid.base.files import atomic, write_text
from ctcovid.reports.plots import Plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    # The same figure gives the same bytes.
    "svg.hashsalt": "ctcovid",
}
FORMATS = ("svg", "png")
# Dots per inch of a PNG, and of what is drawn as pixels within an SVG or PDF.
PIXELS, WITHIN = 150, 100


@dataclass(frozen=True)
class Picture:
    """A plot as it was drawn: bytes by format, "svg", "png" or "pdf"."""

    plot: Plot
    files: dict[str, bytes]

    def save(self, folder: Path) -> None:
        """Write the figure in every format, and its data, under its name."""
        for kind, content in self.files.items():
            with atomic(folder / f"{self.plot.name}.{kind}") as temporary:
                temporary.write_bytes(content)
        write_text(folder / f"{self.plot.name}.csv", self.plot.csv())


def drawn(plot: Plot, formats: Sequence[str] = FORMATS) -> Picture:
    """Draw a plot."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=plot.size, dpi=72, layout="constrained")
        plot.draw(figure)
        # One layout serves all formats. `savefig` gives the same bytes, but draws everything twice for each format.
        FigureCanvasSVG(figure)
        layout = figure.get_layout_engine()
        assert layout is not None
        layout.execute(figure)
        figure.set_layout_engine("none")
        return Picture(plot, {kind: _printed(figure, kind) for kind in formats})


def _printed(figure: Figure, kind: str) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    content = BytesIO()
    figure.set_dpi(PIXELS if kind == "png" else WITHIN)
    if kind == "png":
        FigureCanvasAgg(figure).print_png(content)
    elif kind == "svg":
        FigureCanvasSVG(figure).print_svg(content, metadata={"Date": None})
    else:
        from matplotlib.backends.backend_pdf import FigureCanvasPdf

        FigureCanvasPdf(figure).print_pdf(content, metadata={"CreationDate": None})
    return content.getvalue()
