"""Figures to pictures, in vector and pixels, drawn while the caller goes on computing."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctcovid.base.blas import find_blas
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
# Seconds after which Python lets another thread go on. By default 0.005: each array operation of the caller would wait so long.
SWITCH = 0.0005


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
        # Once is enough: places do not depend on the format. `savefig` would lay out and draw everything twice for each.
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
    """Draws figures one after another in a thread of its own.

    Inside the ``with`` block `draw` returns at once, and `pictures` waits. When the block ends in an error, what is not begun is dropped.
    """

    def __init__(self, formats: Sequence[str] = FORMATS) -> None:
        self.formats = formats
        # Not later: the thread below imports compiled modules.
        find_blas()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="artist")
        self._begun: list[Future[Picture]] = []

    def __enter__(self) -> Artist:
        self._usual = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH)
        self._pool.submit(_prepare)
        return self

    def draw(self, plots: Iterable[Plot]) -> None:
        """Have the figures drawn."""
        self._begun += [self._pool.submit(drawn, plot, self.formats) for plot in plots]

    def pictures(self) -> list[Picture]:
        """All figures, in the order in which they were given. Raises what drawing one raised."""
        return [future.result() for future in self._begun]

    def __exit__(self, *failure: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        sys.setswitchinterval(self._usual)


def _prepare() -> None:
    """Import what the first figure will need."""
    import matplotlib.backends.backend_agg
    import matplotlib.backends.backend_svg  # noqa: F401
