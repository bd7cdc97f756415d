"""The report in a real browser, headless Chromium: no error on its console, no network, pictures there, readable on a telephone."""

from __future__ import annotations

import base64
import csv
import io
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ctcovid.base.console import Console
from ctcovid.commands.evaluate import Options, run
from ctcovid.evaluation.predictions import Predictions

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian's package chromium): the report was not opened")
# A page that shows the report in a frame and writes what it measured into its own title; the report itself has no script.
PROBE = """<!DOCTYPE html><meta charset="utf-8"><title>waiting</title>
<iframe id="report" src="report.html" style="width:400px;height:9000px;border:0"></iframe>
<script>
document.getElementById("report").onload = function () {
  const page = this.contentDocument, images = [...page.images];
  document.title = JSON.stringify({
    wide: page.documentElement.scrollWidth,
    images: images.length,
    shown: images.filter(image => image.complete && image.naturalWidth > 100 && image.width <= 400).length,
    requests: page.defaultView.performance.getEntriesByType("resource").filter(one => !one.name.startsWith("data:")).length,
    font: parseFloat(page.defaultView.getComputedStyle(page.querySelector("p")).fontSize),
  });
};
</script>"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of two models whose names mean something to HTML."""
    folder = tmp_path_factory.mktemp("report")
    labels = np.repeat([0, 1, 2], 20)
    paths = []
    for number, name in enumerate(("first", "A&B <b>")):
        probabilities = np.random.default_rng(number).dirichlet([1, 1, 1], 60) + np.eye(3)[labels]
        probabilities /= probabilities.sum(1, keepdims=True)
        patients = [str(row // 2) for row in range(60)]
        predictions = Predictions(name, ["NCP", "CP", "Normal"], patients, ["s"] * 60, np.arange(60) % 2, labels, probabilities)
        paths.append(folder / f"{name}.csv")
        paths[-1].write_text(predictions.csv())
    run(Options(models=tuple(map(str, paths)), bootstrap=50, output=folder / "out"), Console(quiet=True, results=False))
    return folder / "out" / "report.html"


def chromium(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Chromium without a network: every host but this file's is nowhere."""
    assert CHROMIUM is not None
    line = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND"]
    line += ["--enable-logging=stderr", "--v=0", f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=10000", *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=300, check=True)


@browser
def test_the_browser_shows_every_picture_at_400_pixels_and_asks_for_nothing_and_complains_of_nothing(report: Path, tmp_path: Path) -> None:
    shutil.copy(report, tmp_path / "report.html")
    (tmp_path / "probe.html").write_text(PROBE)
    done = chromium(tmp_path, "--allow-file-access-from-files", "--dump-dom", (tmp_path / "probe.html").as_uri())
    title = re.search(r"<title>({.*?})</title>", done.stdout)
    assert title, done.stdout[:300]
    found = dict(re.findall(r'"(\w+)":([\d.]+)', title[1]))
    assert found["images"] == found["shown"] == "8"
    assert (float(found["wide"]), found["requests"]) == (400, "0")
    assert float(found["font"]) >= 14
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []


@browser
def test_a_wide_screen_is_used_and_the_edge_of_a_table_that_scrolls_is_shaded(report: Path, tmp_path: Path) -> None:
    shutil.copy(report, tmp_path / "report.html")
    dark = {}
    for width in (700, 1600):
        picture = tmp_path / f"{width}.png"
        chromium(tmp_path, "--hide-scrollbars", f"--window-size={width},1400", f"--screenshot={picture}", report.as_uri())
        with Image.open(picture) as image:
            pixels = np.asarray(image.convert("L")).astype(int)
        # The last pixels of the page, which nothing but a shadow reaches where a table goes on.
        edge = pixels[:, width - 20 : width - 16]
        dark[width] = int(((edge < 225).all(1)).sum())
        if width == 1600:
            assert (pixels[:, 60:200] < 100).any()
    assert dark[700] > 50


@browser
def test_the_console_is_listened_to(tmp_path: Path) -> None:
    """A page with a fault makes the check above fail."""
    (tmp_path / "bad.html").write_text("<script>nothing.there()</script>")
    assert "CONSOLE" in chromium(tmp_path, "--dump-dom", (tmp_path / "bad.html").as_uri()).stderr


@browser
def test_the_page_is_drawn(report: Path, tmp_path: Path) -> None:
    picture = tmp_path / "shot.png"
    chromium(tmp_path, "--hide-scrollbars", "--window-size=400,3000", f"--screenshot={picture}", report.as_uri())
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("L"))
    # Dark text and lines on white, from top to bottom.
    dark = (pixels < 100).reshape(10, -1).mean(1)
    assert (dark > 0.002).all() and (pixels > 240).mean() > 0.5


def test_each_figures_data_can_be_saved_as_csv(report: Path) -> None:
    text = report.read_text()
    assert text.count("<figure>") == 8
    links = dict(re.findall(r'download="([^"]+)" href="data:text/csv;charset=utf-8;base64,([^"]+)"', text))
    assert {"roc-first.csv", "pr-first.csv", "confusion-first.csv", "reliability-first.csv"} <= set(links)
    assert len(re.findall("<figcaption>.*?Data as CSV.*?</figcaption>", text)) == 8
    saved = base64.b64decode(links["roc-first.csv"]).decode()
    assert saved == (report.parent / "figures" / "roc-first.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(saved)))
    assert len(rows) == 3 * 101 and float(rows[-1]["sensitivity"]) == 1


def test_nothing_in_the_report_comes_from_elsewhere(report: Path) -> None:
    text = report.read_text()
    assert "<script" not in text
    assert re.findall(r'(?:src|href)="(?!data:)[^"]*"', text) == []
    assert "A&amp;B &lt;b&gt;" in text and "A&B <b>" not in text
