"""Figures to pictures, in vector and pixels, drawn while the caller goes on computing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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


class Artist:
    """Draws figures one after another in a thread of its own, from the first `draw` on to the end of a ``with`` block.

    `draw` returns at once, and `pictures` waits. When the block ends in an error, figures that are not started are dropped.

    Do not draw before all volumes are read: processes that read them are forked, and must not be while another thread is at work. Nor
    before threadpoolctl has looked for libraries: it holds the lock of the loader and waits for Python, which the thread holds while
    an import of it waits for the loader.
    """

    def __init__(self, formats: Sequence[str] = FORMATS) -> None:
        self.formats = formats
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="artist")
        self._given: list[Future[Picture]] = []

    def __enter__(self) -> Artist:
        return self

    def draw(self, plots: Iterable[Plot]) -> None:
        """Have the figures drawn."""
        self._given += [self._pool.submit(drawn, plot, self.formats) for plot in plots]

    def pictures(self) -> list[Picture]:
        """All figures, in the order in which they were given. Raises what drawing one raised."""
        return [future.result() for future in self._given]

    def __exit__(self, *failure: object) -> None:
        self._pool.shutdown(cancel_futures=True)
