"""Tell complete CT from segmented CT, the lung-masked scans that are mixed into CC-CCII (Li et al. 2021, Fig. 1, Tables 1, 2)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image

from ctcovid.base.faults import raise_machine_fault
from ctcovid.scans.read import UNDECODABLE, pillow_silenced

COMPLETE, SEGMENTED = "complete", "segmented"
# Compression leaves up to so much of black. Lungs have a median between these greys; so much of the middle between them is not black,
# and so much of the upper and lower edge.
BLACK, LUNG, MOST_BETWEEN, MOST_AT_EDGES = 8, (30, 200), 0.47, 0.1
# Lungs may be cut out of air instead of black: a grey level up to DARK, within EVEN, that is so much of a slice.
DARK, EVEN, LEAST_EVEN = 100, 2, 0.4

# The mean difference between the channels of a picture without colour. A tint differs by at most STRONGEST_TINT, and all but MOST_OFF of
# the pixels differ from it by at most OFF_TINT, for compression.
MOST_COLOUR, STRONGEST_TINT, OFF_TINT, MOST_OFF = 12, 160, 20, 0.01


def is_masked(pixels: np.ndarray) -> bool:
    """Whether everything outside the lungs is black, or one dark grey, in a slice, uint8 (H, W). False if that cannot be told.

    In the lung window the chest wall is nearly white and fills a fifth or more of a complete slice; in the real masked ones white is
    below 0.03 and black above 0.72. In other windows, and zoomed out, complete slices may be as dark. What tells them apart in any
    window is the middle between left and right: spine and mediastinum fill 0.53 and more of it, in masked slices it is black but for
    at most 0.41.
    """
    pixels = on_black(pixels)
    shown = pixels > BLACK
    if np.mean(pixels >= 200) >= 0.05 or not 0 < np.mean(shown) < 0.5:
        return False
    # Coronal and sagittal slices reach the upper and lower edge.
    if np.mean(shown[[0, -1]]) > MOST_AT_EDGES or not LUNG[0] <= np.median(pixels[shown]) <= LUNG[1]:
        return False
    rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    middle, half = (columns[0] + columns[-1]) / 2, 0.08 * (columns[-1] - columns[0] + 1)
    strip = shown[rows[0] : rows[-1] + 1, math.ceil(middle - half) : math.floor(middle + half) + 1]
    return strip.size > 0 and float(strip.mean()) < MOST_BETWEEN


def on_black(pixels: np.ndarray) -> np.ndarray:
    """A slice, uint8 (H, W), with its even dark background, as the air of Hounsfield units, in black."""
    level = int(np.bincount(pixels.ravel(), minlength=DARK + 1)[BLACK + 1 : DARK + 1].argmax()) + BLACK + 1
    near = np.abs(pixels.astype(np.int16) - level) <= EVEN
    return np.where(near, np.uint8(0), pixels) if near.mean() >= LEAST_EVEN else pixels


def image_kind(masked_slices: int, slices: int) -> str:
    """ "segmented" if most slices of a scan are masked, else "complete"."""
    return SEGMENTED if 2 * masked_slices > slices else COMPLETE


def in_colour(path: Path) -> bool:
    """Whether a picture is in colour, as photographs and overlays are. CT is grey, or has one tint, such as sepia."""
    try:
        with pillow_silenced(), Image.open(path) as picture:
            if picture.mode not in ("RGB", "RGBA", "P", "CMYK", "YCbCr", "LAB", "HSV"):
                return False
            channels = np.asarray(picture.convert("RGB").reduce(4) if min(picture.size) >= 8 else picture.convert("RGB"), np.float32)
    except UNDECODABLE as error:
        raise_machine_fault(error, path)
        # Reading the slice reports what is wrong with the file.
        return False
    between = np.ptp(channels, axis=2)
    if float(between.mean()) > MOST_COLOUR:
        return not _tinted(channels.reshape(-1, 3))
    return float((between > 2 * OFF_TINT).mean()) > 2 * MOST_OFF


def _tinted(pixels: np.ndarray) -> bool:
    """Whether all pixels, float (N, 3), have one hue, that of a tint, which depends on their luminance only."""
    luminance = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    colours = pixels - luminance[:, None]
    of_bin = (luminance / 8).astype(int)
    usual = np.zeros((33, 3))
    for each in np.unique(of_bin):
        usual[each] = np.median(colours[of_bin == each], axis=0)
    off = np.abs(colours - usual[of_bin]).max(1) > OFF_TINT
    # Colour maps go through several hues, or through full colours.
    strength = np.ptp(usual, axis=1)
    hue = usual[of_bin].mean(0)
    alike = usual @ hue >= 0.7 * np.linalg.norm(usual, axis=1) * np.linalg.norm(hue)
    return bool(off.mean() < MOST_OFF and strength.max() <= STRONGEST_TINT and alike[strength > OFF_TINT].all())
