"""A simple chest CT phantom in the lung window: body, lungs, vessels, and lesions of each class. A network learns it in a minute.

It is what `ctcovid demo` trains with, to show that the way works; the anatomical phantom of chest.py is the one to look at. Where the
classes differ follows Li et al. 2021, Sec. 3.4: COVID-19 has ground glass under the pleura, common pneumonia blocks of consolidation,
normal lungs neither.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from ctcovid.scans.discover import CLASS_ORDER

# Grey values of the lung window (level -600, width 1500).
AIR, LUNG, GROUND_GLASS, CONSOLIDATION, TISSUE = 10.0, 75.0, 140.0, 205.0, 235.0


def write_simple_dataset(root: Path, truth: Path, patients: int, size: int, seed: int, advance: Callable[[int], None]) -> int:
    """Write `patients` patients of each class, one scan each, as CLASS/patient/scan/0000.png, and call `advance(1)` after each.

    The lesions lie below `truth` in the same layout, white on black. Returns the number of scans. The same arguments write the same
    pixels.
    """
    for number in range(patients * len(CLASS_ORDER)):
        label = CLASS_ORDER[number % len(CLASS_ORDER)]
        generator = np.random.default_rng([seed, number])
        pixels, lesions = simple_chest(label, int(generator.integers(16, 25)), size, generator)
        for folder, stack in ((root, pixels), (truth, np.where(lesions, 255, 0).astype(np.uint8))):
            scan = folder / label / str(number) / str(1000 + number)
            scan.mkdir(parents=True)
            for position, picture in enumerate(stack):
                Image.fromarray(picture).save(scan / f"{position:04d}.png")
        advance(1)
    return patients * len(CLASS_ORDER)


def simple_chest(label: str, slices: int, size: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A scan of the phantom, head to feet: uint8 (slices, size, size), and bool of that shape where lesions are.

    Parameters
    ----------
    label : "NCP", "CP" or "Normal"
    """
    z, y, x = np.meshgrid(np.linspace(-1, 1, slices), np.linspace(-1, 1, size), np.linspace(-1, 1, size), indexing="ij")
    x = (x - generator.uniform(-0.05, 0.05)) / generator.uniform(0.9, 1.05)
    y = (y - generator.uniform(-0.05, 0.05)) / generator.uniform(0.9, 1.05)
    volume = np.where((x / 0.92) ** 2 + (y / 0.68) ** 2 < 1, TISSUE, AIR)
    lesions = np.zeros(volume.shape, bool)
    for side in (-1, 1):
        # 1 at the pleura, 0 at the middle of the lung.
        radius = ((x - side * 0.42) / 0.33) ** 2 + (y / 0.5) ** 2 + (0.55 * z) ** 2
        lung = radius < 1
        volume[lung] = LUNG
        texture = gaussian_filter(generator.normal(0, 1, volume.shape), (2.0, 1.0, 1.0))
        volume[lung & (texture > 2.2 * texture.std())] = 190
        found = _lesions(lung, radius, label, generator)
        volume[found] = GROUND_GLASS if label == "NCP" else CONSOLIDATION
        lesions |= found
    noise = gaussian_filter(generator.normal(0, 1, volume.shape), (0, 0.7, 0.7))
    volume += noise * generator.uniform(8, 14) / noise.std()
    return np.clip(np.rint(gaussian_filter(volume, (0.3, 0.5, 0.5))), 0, 255).astype(np.uint8), lesions


def _lesions(lung: np.ndarray, radius: np.ndarray, label: str, generator: np.random.Generator) -> np.ndarray:
    if label == "Normal":
        return np.zeros(lung.shape, bool)
    texture = gaussian_filter(generator.normal(0, 1, lung.shape), (2.5, *2 * (lung.shape[1] / 22,)))
    texture /= texture[lung].std()
    found: np.ndarray = lung & ((texture > 0.3) & (radius > 0.55) if label == "NCP" else (texture > 0.6) & (radius < 0.6))
    return found
