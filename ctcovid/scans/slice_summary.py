"""What the checks of a scan need of each slice, small enough to be passed between processes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from isal import isal_zlib
from PIL import Image

from ctcovid.scans.decoded import Decoded
from ctcovid.scans.kind import is_masked
from ctcovid.scans.read import square

SIDE = 64


@dataclass(frozen=True)
class SliceSummary:
    """Summary of one decoded slice.

    Attributes
    ----------
    thumbnail : uint8 (64, 64), means over the slice padded to a square
    digest : equal for equal pixels
    height, width : of the slice
    constant : all pixels are equal
    masked : black outside the lungs
    has_nan : some of its values were NaN or Inf, and are black
    padded : its corners show padding that no file declares
    hounsfield : counts of its values, see `scale.hounsfield_counts`; None if it was stored in grey
    """

    thumbnail: np.ndarray
    digest: int
    height: int
    width: int
    constant: bool
    masked: bool
    has_nan: bool = False
    padded: bool = False
    hounsfield: np.ndarray | None = None

    @property
    def crc32(self) -> int:
        """The checksum of the pixels alone, which the digest includes."""
        return self.digest & 0xFFFFFFFF


def summarise(pixels: np.ndarray, decoded: Decoded | None = None) -> SliceSummary:
    """Summary of a slice, uint8 (H, W), with what else is known of it."""
    height, width = pixels.shape
    side = max(height, width)
    whole = Image.fromarray(square(pixels, side))
    # Averaging whole squares of pixels takes half the time of a filter.
    thumbnail = np.asarray(whole.reduce(side // SIDE) if side % SIDE == 0 else whole.resize((SIDE, SIDE), Image.Resampling.BOX))
    first = pixels.flat[0]
    constant = bool(thumbnail.min() == thumbnail.max() and (pixels == first).all())
    # CRC-32 alone is too short: among thousands of scans some different slices share one.
    rough = hashlib.blake2b(thumbnail.tobytes(), digest_size=8).digest()
    digest = int.from_bytes(rough, "big") << 32 | isal_zlib.crc32(np.ascontiguousarray(pixels))
    known = (decoded.has_nan, decoded.padded, decoded.hounsfield) if decoded else ()
    return SliceSummary(thumbnail, digest, height, width, constant, is_masked(thumbnail), *known)
