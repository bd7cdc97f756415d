"""Figures in vector and pixels, the same each time, with their data."""

from __future__ import annotations

import csv
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from test_reports_plots import plots

from ctcovid.reports.drawing import FORMATS, PIXELS, STYLE, drawn
from ctcovid.reports.plots import Plot


@pytest.mark.parametrize("plot", plots(), ids=lambda plot: plot.name)
def test_a_figure_is_written_as_svg_and_png_with_its_data_and_as_pdf_on_request(plot: Plot, tmp_path: Path) -> None:
    for name, formats in (("usual", FORMATS), ("asked", (*FORMATS, "pdf"))):
        (tmp_path / name).mkdir()
        drawn(plot, formats).save(tmp_path / name)
        written = {path.suffix: path for path in (tmp_path / name).iterdir()}
        assert set(written) == {".svg", ".png", ".csv"} | ({".pdf"} if name == "asked" else set())
        assert written[".svg"].read_text().count("<svg") == 1
        with Image.open(written[".png"]) as image:
            assert np.asarray(image.convert("L")).std() > 5
        rows = list(csv.reader(written[".csv"].open()))
        assert len(rows) > 1 and {len(row) for row in rows} == {len(plot.columns)}
    assert written[".pdf"].read_bytes().startswith(b"%PDF")


def test_the_same_figure_gives_the_same_bytes() -> None:
    for first, second in zip(plots(), plots(), strict=True):
        assert drawn(first).files == drawn(second).files


@pytest.mark.parametrize("plot", plots(), ids=lambda plot: plot.name)
def test_a_picture_is_what_savefig_gives(plot: Plot) -> None:
    options = {"svg": {"metadata": {"Date": None}}, "png": {"dpi": PIXELS}, "pdf": {"metadata": {"CreationDate": None}}}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=plot.size, layout="constrained")
        plot.draw(figure)
        for kind, content in drawn(plot, tuple(options)).files.items():
            expected = BytesIO()
            figure.savefig(expected, format=kind, **options[kind])
            figure.set_layout_engine("none")
            assert content == expected.getvalue(), kind
