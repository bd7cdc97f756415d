"""What the judgement of a scan needs of each slice, small enough to be handed from process to process."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from isal import isal_zlib
from PIL import Image

from ctcovid.scans.kind import looks_masked
from ctcovid.scans.read import square

SIDE = 64


@dataclass(frozen=True)
class SliceSummary:
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

    @property
    def crc32(self) -> int:
        """The checksum of the pixels alone, which is a part of the digest."""
        return self.digest & 0xFFFFFFFF


def look(pixels: np.ndarray, holes: bool = False) -> SliceSummary:
    """The look of a slice, uint8 (H, W)."""
    height, width = pixels.shape
    side = max(height, width)
    whole = Image.fromarray(square(pixels, side))
    # Whole squares of pixels are averaged in half the time that a filter takes.
    thumbnail = np.asarray(whole.reduce(side // SIDE) if side % SIDE == 0 else whole.resize((SIDE, SIDE), Image.Resampling.BOX))
    first = pixels.flat[0]
    constant = bool(thumbnail.min() == thumbnail.max() and (pixels == first).all())
    # In thousands of scans some slices that differ would have one CRC-32.
    rough = hashlib.blake2b(thumbnail.tobytes(), digest_size=8).digest()
    digest = int.from_bytes(rough, "big") << 32 | isal_zlib.crc32(np.ascontiguousarray(pixels))
    return SliceSummary(thumbnail, digest, height, width, constant, looks_masked(thumbnail), holes)
