"""A simple chest CT phantom in the lung window: body, lungs, vessels, and lesions of each class.

It is for showing that the way works, not for learning radiology. Where the classes differ follows the paper's Sec. 3.4: COVID-19 has
ground glass under the pleura, common pneumonia blocks of consolidation, normal lungs neither.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

# Grey values of the lung window (level -600, width 1500).
AIR, LUNG, GROUND_GLASS, CONSOLIDATION, TISSUE = 10.0, 75.0, 140.0, 205.0, 235.0


def chest(label: str, slices: int, size: int, generator: np.random.Generator) -> np.ndarray:
    """A scan of a phantom, head to feet, uint8 (slices, size, size).

    Parameters
    ----------
    label : "NCP", "CP" or "Normal"
    """
    z, y, x = np.meshgrid(np.linspace(-1, 1, slices), np.linspace(-1, 1, size), np.linspace(-1, 1, size), indexing="ij")
    x = (x - generator.uniform(-0.05, 0.05)) / generator.uniform(0.9, 1.05)
    y = (y - generator.uniform(-0.05, 0.05)) / generator.uniform(0.9, 1.05)
    volume = np.where((x / 0.92) ** 2 + (y / 0.68) ** 2 < 1, TISSUE, AIR)
    for side in (-1, 1):
        # 1 at the pleura, 0 at the middle of the lung.
        radius = ((x - side * 0.42) / 0.33) ** 2 + (y / 0.5) ** 2 + (0.55 * z) ** 2
        lung = radius < 1
        volume[lung] = LUNG
        _vessels(volume, lung, generator)
        _lesions(volume, lung, radius, label, generator)
    noise = gaussian_filter(generator.normal(0, 1, volume.shape), (0, 0.7, 0.7))
    volume += noise * generator.uniform(8, 14) / noise.std()
    return np.clip(np.rint(gaussian_filter(volume, (0.3, 0.5, 0.5))), 0, 255).astype(np.uint8)


def _vessels(volume: np.ndarray, lung: np.ndarray, generator: np.random.Generator) -> None:
    texture = gaussian_filter(generator.normal(0, 1, volume.shape), (2.0, 1.0, 1.0))
    volume[lung & (texture > 2.2 * texture.std())] = 190


def _lesions(volume: np.ndarray, lung: np.ndarray, radius: np.ndarray, label: str, generator: np.random.Generator) -> None:
    if label == "Normal":
        return
    texture = gaussian_filter(generator.normal(0, 1, volume.shape), (2.5, *2 * (volume.shape[1] / 22,)))
    texture /= texture[lung].std()
    if label == "NCP":
        volume[lung & (texture > 0.3) & (radius > 0.55)] = GROUND_GLASS
    else:
        volume[lung & (texture > 0.6) & (radius < 0.6)] = CONSOLIDATION
