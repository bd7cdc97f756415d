"""Saliency maps laid over slices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from PIL import Image

from ctcovid.reports.figures import figure, literal

# Purple and bright is what matters most, as in the paper's Fig. 7.
COLOURS = colormaps["magma"]
FAINTEST = 0.25
OPACITY = 0.65


def overlay(pixels: np.ndarray, saliency: np.ndarray) -> np.ndarray:
    """Colour over grey, the stronger the saliency the more opaque.

    Parameters
    ----------
    pixels : uint8 (H, W)
    saliency : float (H, W) in 0..1

    Returns
    -------
    uint8 (H, W, 3)
    """
    grey = np.repeat(pixels[..., None] / 255.0, 3, axis=2)
    opacity = OPACITY * np.clip(saliency, 0, 1)[..., None]
    mixed = (1 - opacity) * grey + opacity * COLOURS(FAINTEST + (1 - FAINTEST) * saliency)[..., :3]
    return np.rint(255 * mixed).astype(np.uint8)


def save_overlay(path: Path, pixels: np.ndarray, saliency: np.ndarray) -> None:
    """Write one overlay as PNG, in a folder that becomes a result as a whole: nothing is gained by making each of hundreds so by itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(overlay(pixels, saliency)).save(path, format="PNG")


def montage(path: Path, slices: np.ndarray, saliency: np.ndarray, names: Sequence[str], title: str) -> None:
    """Slices above, the same with their saliency below (as the rows of Li et al. 2021, Fig. 7).

    slices : uint8 (K, H, W); saliency : float (K, H, W) in 0..1; names : K captions
    """
    count = len(slices)
    with figure(path, 2.2 * count + 0.9, 5.0) as drawn:
        drawn.suptitle(literal(title), fontsize=10)
        axes = drawn.subplots(2, count, squeeze=False)
        for column in range(count):
            axes[0, column].imshow(slices[column], cmap="gray", vmin=0, vmax=255)
            axes[0, column].set_title(literal(names[column]), fontsize=8)
            axes[1, column].imshow(overlay(slices[column], saliency[column]))
        for axis in axes.flat:
            axis.set_axis_off()
        scale = ScalarMappable(Normalize(0, 1), ListedColormap(COLOURS(np.linspace(FAINTEST, 1, 256))))
        bar = drawn.colorbar(scale, ax=axes[1, :].tolist(), fraction=0.02, pad=0.01)
        bar.set_label("saliency, from the scan's least to its most", fontsize=8)
