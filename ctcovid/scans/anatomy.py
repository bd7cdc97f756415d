"""Whether a scan shows a chest, and which end is the head, from small pictures of its slices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Connects pixels within a slice only.
PLANE = np.zeros((3, 3, 3), bool)
PLANE[1, 1, :] = PLANE[1, :, 1] = True
# Lung is at least this share of the body where it is widest: 0.24 to 0.57 in the real chests measured, 0.05 in the real abdomen.
LEAST_LUNG, LITTLE_LUNG = 0.08, 0.13
# So much of what seems lung lies where most slices have it: 0.45 and more in real chests and pieces of them, 0.27 and less in photographs.
# The upper corners show air there, and anything in photographs.
LEAST_STEADY, LEAST_AIR = 0.3, 0.75
# So much of the upper edge of a chest may be body.
MOST_CUT = 0.3
# Neighbours of unrelated pictures differ as much as any two of them.
UNRELATED = 0.85
# From apex to base lungs move away from the midline, by 0.10 to 0.13 of the width of the chest in the real scans measured.
CERTAIN_CHANGE, CERTAIN_TREND = 0.025, 0.75
LIKELY_CHANGE, LIKELY_TREND = 0.012, 0.5


@dataclass(frozen=True)
class Anatomy:
    """lung_share : of the body, in the tenth of the slices where it is largest
    steady : share of the lung that lies where seven of ten slices have it, of those with half as much lung as the one with most
    air : share of the upper corners that is dark
    head_first : 1 certainly, 0.5 probably, 0 unknown, -0.5 probably and -1 certainly feet first
    """

    lung_share: float
    steady: float
    air: float
    head_first: float

    @property
    def is_chest(self) -> bool:
        """False only if that is certain enough to drop the scan."""
        return self.lung_share >= LEAST_LUNG and self.steady >= LEAST_STEADY and (self.air >= LEAST_AIR or self.lung_share >= LITTLE_LUNG)


def anatomy(thumbnails: np.ndarray, masked: bool) -> Anatomy:
    """Measure a stack of thumbnails in the lung window or a similar one, uint8 (S, 64, 64); `masked` if all but the lungs is black."""
    dark_below = _threshold(thumbnails)
    lungs = thumbnails > 20 if masked else _enclosed(thumbnails < dark_below)
    area = lungs.sum((1, 2))
    body = area + (0 if masked else (thumbnails >= dark_below).sum((1, 2)))
    share = area / np.maximum(body, 1)
    corners = np.concatenate([thumbnails[:, :4, :4], thumbnails[:, :4, -4:]])
    return Anatomy(float(np.quantile(share, 0.9)), _steady(lungs, area), float((corners < dark_below).mean()), _head_first(lungs, area))


def cut_off(thumbnails: np.ndarray, height: int, width: int) -> bool:
    """Whether slices are cut out of a chest, as around the lungs: there is air above a chest, and here the upper edge lies in the body.

    Of the upper edges of the real chests measured 0.00 is body, of slices cut around their lungs 0.72.

    Parameters
    ----------
    thumbnails : uint8 (S, 64, 64), complete slices
    height, width : of the slices before they were padded to squares
    """
    side = thumbnails.shape[1]
    # A row below the padding, of which the edge may hold a share.
    top = 0 if height >= width else -(-side * (width - height) // (2 * width)) + 1
    return float((thumbnails[:, top] >= _threshold(thumbnails)).mean()) > MOST_CUT


def unrelated(apart: np.ndarray) -> bool:
    """Whether slices with these distances, float (S, S), resemble their neighbours no more than any others."""
    count = len(apart)
    if count < 6:
        return False
    nearest = np.where(np.eye(count, dtype=bool), np.inf, apart).min(1)
    return float(nearest.mean()) > UNRELATED * float(apart.sum()) / (count * (count - 1))


def _threshold(thumbnails: np.ndarray) -> float:
    """Otsu's grey level between air and tissue."""
    counts = np.bincount(thumbnails.ravel(), minlength=256).astype(float)
    levels = np.arange(256)
    below, sums = np.cumsum(counts), np.cumsum(counts * levels)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (sums * below[-1] - sums[-1] * below) ** 2 / (below * above)
    return float(np.nanargmax(np.where(np.isfinite(between), between, -1))) + 1


def _enclosed(dark: np.ndarray) -> np.ndarray:
    """The dark regions that do not touch the edge of their slice."""
    # Imported here because finding scans imports this module too, and needs no SciPy.
    from scipy import ndimage

    labels, count = ndimage.label(dark, PLANE)
    edge = np.zeros(count + 1, bool)
    for border in (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1]):
        edge[border.ravel()] = True
    edge[0] = True
    return ~edge[labels]


def _steady(lungs: np.ndarray, area: np.ndarray) -> float:
    if not area.any():
        return 0.0
    most = lungs[2 * area >= area.max()]
    return float((most & (most.mean(0) >= 0.7)).sum() / most.sum())


def _head_first(lungs: np.ndarray, area: np.ndarray) -> float:
    """The apices lie beside the midline, the bases at the chest wall, around liver and heart."""
    used = np.flatnonzero((area >= 0.5 * area.max()) & (area >= 0.01 * lungs[0].size))
    if len(used) < 5:
        return 0.0
    columns = np.flatnonzero(lungs[used].any((0, 1)))
    width, middle = columns[-1] - columns[0] + 1, (columns[0] + columns[-1]) / 2
    aside = (lungs[used].sum(1) * np.abs(np.arange(lungs.shape[2]) - middle)).sum(1) / area[used] / width
    height = (used - used.mean()) / max(used[-1] - used[0], 1)
    change = float((height * aside).sum() / (height**2).sum())
    trend = float(np.corrcoef(height, aside)[0, 1]) if aside.std() > 0 else 0.0
    for certainty, least, alike in ((1.0, CERTAIN_CHANGE, CERTAIN_TREND), (0.5, LIKELY_CHANGE, LIKELY_TREND)):
        if abs(change) >= least and abs(trend) >= alike:
            return float(np.sign(change)) * certainty
    return 0.0
