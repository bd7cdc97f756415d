"""What the judgement of a scan needs of each slice, small enough to be handed from process to process."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ctcovid.scans.kind import looks_masked
from ctcovid.scans.read import square

SIDE = 64


@dataclass(frozen=True)
class Look:
    """One decoded slice in short.

    thumbnail : uint8 (64, 64), means over the slice, which was padded to a square
    digest : equal for equal pixels
    height, width : of the slice
    constant : all pixels are alike
    masked : black outside the lungs
    holes : some of its values were no numbers, and are black
    """

    thumbnail: np.ndarray
    digest: int
    height: int
    width: int
    constant: bool
    masked: bool
    holes: bool = False


def look(pixels: np.ndarray, holes: bool = False) -> Look:
    """The look of a slice, uint8 (H, W)."""
    height, width = pixels.shape
    thumbnail = np.asarray(Image.fromarray(square(pixels, max(height, width))).resize((SIDE, SIDE), Image.Resampling.BOX))
    first = pixels.flat[0]
    constant = bool(thumbnail.min() == thumbnail.max() and (pixels == first).all())
    # In thousands of scans some slices that differ would have one CRC-32.
    digest = int.from_bytes(hashlib.blake2b(pixels.tobytes(), digest_size=8).digest(), "big")
    return Look(thumbnail, digest, height, width, constant, looks_masked(thumbnail), holes)
