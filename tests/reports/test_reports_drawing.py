"""Figures in vector and pixels, the same each time, with their data, drawn while something else goes on."""

from __future__ import annotations

import csv
import threading
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from test_reports_plots import plots

from ctcovid.reports.drawing import FORMATS, PIXELS, STYLE, Artist, drawn
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


def test_figures_are_the_same_drawn_beside_other_work_and_come_in_the_order_given() -> None:
    given = plots()
    with Artist() as artist:
        artist.draw(given[:3])
        artist.draw(given[3:])
        sum(np.random.default_rng(0).normal(size=2000).std() for _ in range(2000))
        pictures = artist.pictures()
    assert [picture.plot for picture in pictures] == given
    assert [picture.files for picture in pictures] == [drawn(plot).files for plot in given]


def test_there_is_no_other_thread_until_drawing_begins() -> None:
    """Readers of volumes are forked before, and would inherit its locks."""
    before = threading.active_count()
    with Artist() as artist:
        assert threading.active_count() == before
        artist.draw(plots()[:1])
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_what_drawing_raises_reaches_the_caller() -> None:
    def fail(figure: Figure) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), Artist() as artist:
        artist.draw([replace(plots()[0], draw=fail)])
        artist.pictures()


def test_where_the_work_fails_figures_that_are_not_begun_are_not_drawn() -> None:
    begun, go_on, calls = threading.Event(), threading.Event(), []

    def wait(figure: Figure) -> None:
        figure.subplots()
        calls.append(1)
        begun.set()
        go_on.wait(60)

    with pytest.raises(KeyboardInterrupt), Artist() as artist:
        artist.draw([replace(plots()[0], draw=wait)] * 3)
        assert begun.wait(60)
        threading.Timer(0.2, go_on.set).start()
        raise KeyboardInterrupt
    assert len(calls) == 1
