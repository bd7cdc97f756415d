"""Padding that no file declares, outside of a scanner's round field of view: the corners of a whole scan show it, not those of a slice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

# So large a part of a slice's side, at each corner, lies outside of the scanner's circle if nothing is cut off.
CORNER = 64
# In Hounsfield units. Around a patient there is air; what is brighter may be padding. Above TISSUE, it may be noisy: no tissue fills all
# corners there.
BRIGHT, TISSUE = -900, 200
# So many of the pixels in each corner of a scan have one value, within ROUNDED, or NOISY, Hounsfield units or RELATIVE
# of it.
MOST_OF_CORNERS, ROUNDED, NOISY, RELATIVE = 0.75, 1.0, 30.0, 1e-3
# If padding was interpolated, most pixels beside it are brighter than AIR: between them and the air lie up to BLUR of them, in lines that
# are thinner.
AIR, BESIDE, BLUR = -900, 0.6, 5
# Of a slice, the smallest part that is padding by itself.
LEAST_AT_EDGE = 2000


@dataclass(frozen=True)
class Padding:
    """Values within `tolerance` of `value`, in Hounsfield units, belong to no patient in larger regions at an edge."""

    value: float
    tolerance: float

    def near(self, values: np.ndarray) -> np.ndarray:
        """Where values, of any shape, are those of padding, wherever they lie."""
        found: np.ndarray = np.abs(values.astype(np.float32) - np.float32(self.value)) <= self.tolerance
        return found

    def where(self, values: np.ndarray) -> np.ndarray | None:
        """Where a slice, (H, W), is padding, bool; None if nowhere."""
        return region(self.near(values), values > AIR)


def region(near: np.ndarray, bright: np.ndarray) -> np.ndarray | None:
    """Where a slice is padding, bool (H, W), from where it has values of padding, and where it is brighter than air; None if nowhere."""
    from scipy import ndimage

    found = at_edge(near, max(near.size // LEAST_AT_EDGE, 2))
    if not found.any():
        return None
    bright = bright & ~found
    beside = ndimage.binary_dilation(found) & ~found
    if beside.any() and bright[beside].mean() >= BESIDE:
        thick = ndimage.binary_opening(bright, np.ones((BLUR, BLUR), bool))
        found |= bright & ~thick & ndimage.binary_dilation(found, iterations=BLUR)
    return found


def padding_of(corners: Sequence[np.ndarray]) -> Padding | None:
    """The padding of a scan whose slices have these values in their corners, in Hounsfield units; None if it has none that is bright."""
    each = [one[np.isfinite(one)] for one in four_corners(corners)] if len(corners) else []
    if not each or not min(one.size for one in each):
        return None
    value = float(np.median(np.concatenate(each)))
    if value <= BRIGHT:
        return None
    for tolerance in (0.0, max(ROUNDED, RELATIVE * value), *([NOISY] if value > TISSUE else [])):
        if min((np.abs(one - value) <= tolerance).mean() for one in each) >= MOST_OF_CORNERS:
            return Padding(value, tolerance)
    return None


def four_corners(corners: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The values of each corner, float64, throughout a scan whose slices have these `corner_values`."""
    of_slices = [one[None] if one.ndim == 2 else one for one in corners]
    halves = (lambda side: slice(None, -(-side // 2))), (lambda side: slice(side // 2, None))
    return [
        np.concatenate([one[:, top(one.shape[1]), left(one.shape[2])].ravel() for one in of_slices]).astype(np.float64)
        for top in halves
        for left in halves
    ]


def corner_places(side: int) -> np.ndarray:
    """The indices along a side of a slice that are in its corners."""
    length = min(-(-side // CORNER) + 1, side)
    return np.unique(np.concatenate([np.arange(length), np.arange(side - length, side)]))


def corner_values(values: np.ndarray) -> np.ndarray:
    """The four corners of a slice, (H, W), as one small picture."""
    return values[np.ix_(*map(corner_places, values.shape))]


def at_corners(where: np.ndarray) -> np.ndarray:
    """The regions of a mask, bool (H, W), that reach a corner."""
    return _reaching(where, corner_values)


def at_edge(where: np.ndarray, least: int = 1) -> np.ndarray:
    """The regions of a mask, bool (H, W), that touch the edge and have at least so many pixels."""
    return _reaching(where, lambda labels: np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]), least)


def _reaching(where: np.ndarray, seeds: Callable[[np.ndarray], np.ndarray], least: int = 1) -> np.ndarray:
    from scipy import ndimage

    labels, count = ndimage.label(where)
    reaching = np.zeros(count + 1, bool)
    reaching[seeds(labels).ravel()] = True
    reaching[0] = False
    if least > 1:
        reaching &= np.bincount(labels.ravel(), minlength=count + 1) >= least
    return reaching[labels]
