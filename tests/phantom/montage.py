"""Draw ten synthetic slices beside ten real ones, so that a person can see what still gives the phantom away.

    python tests/phantom/montage.py FOLDER OUTPUT.png [--seed 0]

FOLDER holds real scans as CLASS/patient/scan/slices. Each block has two rows of five, over all levels of the chest; with --lungs all
slices are from the middle of the lungs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ctcovid.phantom.chest import ScanKey, chest
from ctcovid.scans.classes import CLASS_ORDER
from ctcovid.scans.discover import find_dataset
from ctcovid.scans.read import read_picture, square

SIDE, TITLE = 384, 28


def block(title: str, pictures: list[np.ndarray]) -> np.ndarray:
    """Two rows of five pictures under a title, uint8."""
    small = [np.asarray(Image.fromarray(square(one, 512)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)) for one in pictures]
    head = Image.new("L", (5 * SIDE, TITLE), 255)
    ImageDraw.Draw(head).text((8, 6), title, fill=0)
    return np.vstack([np.asarray(head), np.hstack(small[:5]), np.hstack(small[5:])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lungs", action="store_true")
    options = parser.parse_args()
    levels = np.linspace(0.35, 0.65, 10) if options.lungs else np.linspace(0.08, 0.82, 10)
    scans, _ = find_dataset(options.folder)
    real, made = [], []
    for number, level in enumerate(levels):
        slices = scans[number % len(scans)].slices
        real.append(read_picture(slices[int(level * len(slices))]).pixels)
        # As thin as most real ones here; one slice of many is drawn.
        volume, _ = chest(CLASS_ORDER[number % 3], 40, 512, ScanKey(options.seed, number, number))
        made.append(volume[int(level * 40)])
    Image.fromarray(np.vstack([block("synthetic", made), block("real", real)])).save(options.output)


if __name__ == "__main__":
    main()
