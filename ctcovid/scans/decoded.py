"""A decoded slice: grey pixels, and what the checks of its scan need to know of its values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctcovid.scans.scale import PADDING, hounsfield_counts
from ctcovid.scans.window import Window

# So large a part of a slice's side, at each corner, lies outside of the scanner's circle if nothing is cut off.
CORNER = 64
# In Hounsfield units. Around a patient there is air, and below it only padding; a constant above is padding.
BRIGHT_CORNER = -500


@dataclass(frozen=True)
class Decoded:
    """Attributes
    ----------
    pixels : uint8 (H, W)
    hounsfield : counts of its values, see `scale.hounsfield_counts`; None if it was stored in grey
    padded : whether its corners show a constant that no file declares as padding
    has_nan : whether some of its values are NaN or Inf, and are black
    """

    pixels: np.ndarray
    hounsfield: np.ndarray | None = None
    padded: bool = False
    has_nan: bool = False


def from_hounsfield(values: np.ndarray, window: Window) -> Decoded:
    """A slice of Hounsfield units, (H, W), in which declared padding is PADDING, in grey; padding that its corners show becomes black."""
    has_nan = values.dtype.kind == "f" and not np.isfinite(values).all()
    undeclared = undeclared_padding(values)
    if undeclared is not None:
        values = np.where(undeclared, np.float64(PADDING), values)
    return Decoded(window.grey(values), hounsfield_counts(values), undeclared is not None, has_nan)


def undeclared_padding(values: np.ndarray) -> np.ndarray | None:
    """Where a slice of Hounsfield units is padding by its four corners, bool (H, W): all have one value, which is too bright for air."""
    return at_edge(values == values[0, 0]) if values[0, 0] > BRIGHT_CORNER and corners_agree(values) else None


def corners_agree(values: np.ndarray) -> bool:
    """Whether all four corners of a slice, (H, W), show one and the same value."""
    rows, columns = (-(-side // CORNER) + 1 for side in values.shape)
    corners = (values[top, left] for top in (slice(rows), slice(-rows, None)) for left in (slice(columns), slice(-columns, None)))
    return all(bool((corner == values[0, 0]).all()) for corner in corners)


def at_edge(where: np.ndarray) -> np.ndarray:
    """The regions of a mask, bool (H, W), that touch the edge."""
    from scipy import ndimage

    labels, count = ndimage.label(where)
    touching = np.zeros(count + 1, bool)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        touching[edge] = True
    touching[0] = False
    return touching[labels]
