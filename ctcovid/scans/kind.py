"""Tell complete CT from segmented CT, the lung-masked scans that are mixed into CC-CCII (Li et al. 2021, Fig. 1, Tables 1, 2)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ctcovid.base.faults import raise_machine_fault
from ctcovid.scans.read import UNDECODABLE, pillow_silenced

COMPLETE, SEGMENTED = "complete", "segmented"


def is_masked(pixels: np.ndarray) -> bool:
    """Whether everything outside the lungs is black in a slice, uint8 (H, W).

    In the lung window the chest wall is nearly white and fills a fifth or more of a complete slice. In the real scans measured, white
    is above 0.20 and black below 0.22 of a complete slice; in masked ones white is below 0.03 and black above 0.74.
    """
    return bool(np.mean(pixels >= 200) < 0.05 and np.mean(pixels <= 5) > 0.5)


def image_kind(masked_slices: int, slices: int) -> str:
    """ "segmented" if most slices of a scan are masked, else "complete"."""
    return SEGMENTED if 2 * masked_slices > slices else COMPLETE


def in_colour(path: Path) -> bool:
    """Whether a picture is in colour, as photographs are. CT is grey, or has three equal channels."""
    try:
        with pillow_silenced(), Image.open(path) as picture:
            if picture.mode not in ("RGB", "RGBA", "P", "CMYK", "YCbCr", "LAB", "HSV"):
                return False
            channels = np.asarray(picture.convert("RGB").reduce(4) if min(picture.size) >= 8 else picture.convert("RGB"), np.int16)
    except UNDECODABLE as error:
        raise_machine_fault(error, path)
        # Reading the slice reports what is wrong with the file.
        return False
    return float(np.ptp(channels, axis=2).mean()) > 12
