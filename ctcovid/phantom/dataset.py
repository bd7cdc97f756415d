"""A small synthetic data set in the CC-CCII layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from ctcovid.phantom.chest import chest
from ctcovid.scans.discover import CLASS_ORDER


def write_dataset(root: Path, patients: int, size: int, seed: int, advance: Callable[[int], None]) -> int:
    """Write `patients` patients of each class, one scan each, as CLASS/patient/scan/0000.png, and call `advance` after each.

    Returns the number of scans. The same arguments write the same pixels.
    """
    for number in range(patients * len(CLASS_ORDER)):
        label = CLASS_ORDER[number % len(CLASS_ORDER)]
        generator = np.random.default_rng([seed, number])
        folder = root / label / str(number) / str(1000 + number)
        folder.mkdir(parents=True)
        for position, pixels in enumerate(chest(label, int(generator.integers(16, 25)), size, generator)):
            Image.fromarray(pixels).save(folder / f"{position:04d}.png")
        advance(1)
    return patients * len(CLASS_ORDER)
