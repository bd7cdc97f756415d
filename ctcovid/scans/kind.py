"""Tell complete CT from segmented CT, the lung-masked scans that are mixed into CC-CCII (Li et al. 2021, Fig. 1, Tables 1, 2)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ctcovid.scans.read import UNDECODABLE

COMPLETE, SEGMENTED = "complete", "segmented"


def looks_masked(pixels: np.ndarray) -> bool:
    """Whether everything outside the lungs is black in a slice, uint8 (H, W).

    In the lung window the chest wall is nearly white and fills a fifth of a complete slice or more. On the real scans that this was
    measured on, the shares of white and of black are above 0.20 and below 0.22 in complete slices, below 0.03 and above 0.74 in
    masked ones.
    """
    return bool(np.mean(pixels >= 200) < 0.05 and np.mean(pixels <= 5) > 0.5)


def image_kind(masked_slices: int, slices: int) -> str:
    """ "segmented" where most slices of a scan look masked, else "complete"."""
    return SEGMENTED if 2 * masked_slices > slices else COMPLETE


def in_colour(path: Path) -> bool:
    """Whether a picture is in colour, as a photograph is. CT comes grey, or with three channels that are equal."""
    try:
        with Image.open(path) as picture:
            if picture.mode not in ("RGB", "RGBA", "P", "CMYK", "YCbCr", "LAB", "HSV"):
                return False
            channels = np.asarray(picture.convert("RGB").reduce(4) if min(picture.size) >= 8 else picture.convert("RGB"), np.int16)
    except UNDECODABLE:
        # What is wrong with the file is found where it is read.
        return False
    return float(np.ptp(channels, axis=2).mean()) > 12
