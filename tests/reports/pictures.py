"""Make the picture of README and manual from a trained run and a scan, with headless Chromium.

    ctcovid demo --data-only synthetic --patients 14 --size 128 --slices 18-22 --difficulty 0
    ctcovid prepare synthetic --size 128
    ctcovid train --epochs 9 --batch 8 --learning-rate 3e-4 --schedule cosine --augment
    python tests/reports/pictures.py runs/r3d18-d4-b8 synthetic/NCP/153/154

Writes viewer.png, what `ctcovid explain` shows of the scan. Use synthetic scans: the picture is published with the repository. To save
time, the one that is there now is of ten epochs at 64 pixels and two more at 128, by --pretrained.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from browser import Browser, find_browser
from PIL import Image

FOLDER = Path(__file__).resolve().parents[2] / "ctcovid" / "manual" / "pictures"
WIDTH, HEIGHT = 1280, 800
# Enough for a page that is dark and grey, at a third of the bytes.
COLOURS = 256


def main() -> None:
    asked = arguments()
    if find_browser() is None:
        sys.exit("No Chromium or Chrome is installed here.")
    asked.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        viewer = explained(asked, Path(temporary) / "explanations")
        browser = Browser(Path(temporary) / "profile")
        try:
            take(browser, viewer, "document.body && document.body.dataset.drawn", asked.output / "viewer.png")
        finally:
            browser.close()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("run", type=Path, help="folder of a trained run")
    parser.add_argument("scan", type=Path, help="scan to explain")
    parser.add_argument("--method", default="gradcam", help="as in ctcovid explain")
    parser.add_argument("--layer", default="layer3", help="as in ctcovid explain")
    parser.add_argument("--target", help="as in ctcovid explain")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the pictures")
    return parser.parse_args()


def explained(asked: argparse.Namespace, folder: Path) -> Path:
    """The viewer of the scan."""
    line = [sys.executable, "-m", "ctcovid", "explain", asked.scan, "--model", asked.run, "--output", folder]
    line += ["--method", asked.method, "--layer", asked.layer, *(["--target", asked.target] if asked.target else [])]
    subprocess.run(list(map(str, line)), check=True)
    return next(folder.rglob("viewer.html"))


def take(browser: Browser, page: Path, ready: str, picture: Path) -> None:
    """A picture of the first screen of a page, in few colours."""
    browser.size(WIDTH, HEIGHT)
    browser.ask("Page.navigate", url=page.resolve().as_uri())
    browser.wait_for(ready)
    browser.screenshot(picture)
    with Image.open(picture) as full:
        few = full.convert("RGB").quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(picture, optimize=True)
    print(f"{picture}: {picture.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
