"""A decoded slice: grey pixels, and what the checks of its scan need to know of its values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctcovid.scans.padding import Padding
from ctcovid.scans.scale import PADDING, hounsfield_counts
from ctcovid.scans.window import Window


@dataclass(frozen=True)
class Decoded:
    """Attributes
    ----------
    pixels : uint8 (H, W)
    hounsfield : counts of its values, see `scale.hounsfield_counts`; None if it was stored in grey
    padded : whether padding that no file declares was made black
    has_nan : whether some of its values are NaN or Inf, and are black
    """

    pixels: np.ndarray
    hounsfield: np.ndarray | None = None
    padded: bool = False
    has_nan: bool = False


def from_hounsfield(values: np.ndarray, window: Window, padding: Padding | None = None) -> Decoded:
    """A slice of Hounsfield units, (H, W), in which declared padding is PADDING, in grey; the scan's undeclared `padding` is black."""
    has_nan = values.dtype.kind == "f" and not np.isfinite(values).all()
    undeclared = padding.where(values) if padding else None
    if undeclared is not None:
        values = np.where(undeclared, np.float64(PADDING), values)
    return Decoded(window.grey(values), hounsfield_counts(values), undeclared is not None, has_nan)
