"""Whether a scan shows a chest, and which end is the head, from small pictures of its slices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctcovid.scans.kind import BLACK
from ctcovid.scans.padding import at_corners

# Connects pixels within a slice only.
PLANE = np.zeros((3, 3, 3), bool)
PLANE[1, 1, :] = PLANE[1, :, 1] = True
# Lung is at least this share of the body where it is widest: 0.24 to 0.57 in the real chests measured, 0.05 in the real abdomen.
LEAST_LUNG, LITTLE_LUNG = 0.08, 0.13
# So much of what seems lung lies where most slices have it: 0.45 and more in real chests and pieces of them, 0.27 and less in photographs.
# The upper corners show air there, and anything in photographs.
LEAST_STEADY, LEAST_AIR = 0.3, 0.75
# So much of the upper edge of a chest may be body: 0.00 in the real chests measured, 0.4 and more if they are cut around their lungs.
MOST_CUT = 0.15
# By so much of the contrast to the body lung is lighter than air. Where it is cut at the left, right or lower edge, it is so much of a
# slice, in a quarter of them.
LIGHTER, LEAST_BESIDE = 0.12, 0.03
# The couch lies below so much of the height, on average.
COUCH = 0.72
# Body at an edge of the middle slices, and at the ends of a stack relative to its largest slice: in coronal and sagittal stacks of the
# real scans at least 0.24 and 0.33 of the upper and lower edge, and at most 0.30 at one end; in axial ones 0.00 and 0.26, and 0.43.
REACHED, LITTLE_BODY, NO_BODY = 0.2, 0.33, 0.1
# With so much lung, what lies between the lungs tells: `middle` is at most 0.9 in axial stacks and parts of them, 1.1 and more in sagittal
# ones; `dip` is 0.3 and less, and 0.5 and more in sagittal ones turned by 90°.
CLEARLY_LUNG, IN_THE_MIDDLE, UNDIVIDED = 0.2, 1.1, 0.45
# In lung windows body is brighter than BRIGHT, lung than DARKEST: 197 and 33 in those from -400/1200 to -500/2000, while mediastinal, bone
# and wide windows make the body 134 and less. Air around a body is uniform, within EVEN, and darker than DARK.
BRIGHT, DARKEST, EVEN, DARK = 165, 25, 16, 100
# Quartiles of body, and of what is dark, differ by at most so much of their contrast: 0.19 and 0.24 in chests cut around their lungs,
# 0.31 and more in photographs.
EVEN_BODY, EVEN_AIR = 0.26, 0.3
# Neighbours of unrelated pictures differ as much as any two of them.
UNRELATED = 0.85
# From apex to base lungs move away from the midline, by 0.10 to 0.13 of the width of the chest in the real scans measured.
CERTAIN_CHANGE, CERTAIN_TREND = 0.025, 0.75
LIKELY_CHANGE, LIKELY_TREND = 0.012, 0.5
# Areas of lung in the first and the last slice, as shares of the largest, if only half of a chest is there.
HALF = 0.3, 0.99


@dataclass(frozen=True)
class Anatomy:
    """lung_share : of the body, in the tenth of the slices where it is largest
    steady : share of the lung that lies where seven of ten slices have it, of those with half as much lung as the one with most
    air : share of the upper corners that is dark
    head_first : 1 certainly, 0.5 probably, 0 unknown, -0.5 probably and -1 certainly feet first
    middle : lung in the middle of the body between left and right, relative to the mean: little in axial slices
    dip : lung between the left and the right one, relative to the lesser: little in axial slices, 1 if there are not two
    ends : the largest share of the upper, or the lower, edge that is lung
    cut : slices are cut out of a chest, as around the lungs: there is air above a chest, and here body, or lung, lies at the edge
    even : air, or lung, and body have one grey each, as in CT; in photographs they have many
    lung_window : lungs, and what surrounds them, have the greys of a lung window; in others too little is known of what is lung
    """

    lung_share: float
    steady: float
    air: float
    head_first: float
    middle: float
    dip: float
    ends: float
    cut: bool
    even: bool
    lung_window: bool

    @property
    def is_chest(self) -> bool:
        """False only if that is certain enough to drop the scan."""
        if self.lung_share < LEAST_LUNG:
            return False
        # Lungs that are cut move along the edge, and the corners show what is beside them. With air in the corners, the body is only large.
        if self.cut and (self.air < LEAST_AIR or (self.even and self.lung_share >= LITTLE_LUNG)):
            return self.even
        return self.steady >= LEAST_STEADY and (self.air >= LEAST_AIR or self.lung_share >= LITTLE_LUNG)


def anatomy(thumbnails: np.ndarray, masked: bool) -> Anatomy:
    """Measure a stack of thumbnails without padding, uint8 (S, H, W); `masked` if all but the lungs is black."""
    dark_below = _threshold(thumbnails)
    if masked:
        lungs, cut = thumbnails > 20, False
        body = lungs.sum((1, 2))
    else:
        lungs, cut = _lungs(thumbnails, dark_below)
        body = lungs.sum((1, 2)) + (thumbnails >= dark_below).sum((1, 2))
    area = lungs.sum((1, 2))
    share = float(np.quantile(area / np.maximum(body, 1), 0.9))
    corners = _corners(thumbnails)
    even = _even(thumbnails, dark_below)
    return Anatomy(
        share,
        _steady(lungs, area),
        float((corners < dark_below).mean()),
        _head_first(lungs, area),
        *_between(lungs, lungs if masked else lungs | (thumbnails >= dark_below)),
        max(float(lungs[:, 0].mean()), float(lungs[:, -1].mean())),
        cut,
        even,
        masked or _in_lung_window(thumbnails, lungs, dark_below, even and cut),
    )


def without_padding(thumbnails: np.ndarray, height: int, width: int) -> np.ndarray:
    """Thumbnails, uint8 (S, side, side), of slices of this size without the black that made them squares."""
    side = thumbnails.shape[1]
    # The outermost row or column may hold a share of the padding.
    rows, columns = (-(-side * max(more - less, 0) // (2 * more)) for less, more in ((height, width), (width, height)))
    # Of the narrowest slices at least this much remains.
    rows, columns = min(rows, side // 2 - 1), min(columns, side // 2 - 1)
    return thumbnails[:, rows : side - rows, columns : side - columns]


def is_axial(thumbnails: np.ndarray, seen: Anatomy) -> bool:
    """Whether slices may be axial, from thumbnails without padding, uint8 (S, H, W). False only if they certainly are not.

    Of a coronal or sagittal stack the body reaches the upper and the lower edge, and the first or the last slice shows little of it.
    Axial slices have air above the body; if they are cut out of it, the first and the last one show as much body as the others.
    In parts of such stacks, too, sagittal slices have lung in the middle, and coronal ones none at the upper and the lower edge.
    """
    body = thumbnails >= _threshold(thumbnails)
    count = len(body)
    middle = body[count // 4 : count - count // 4]
    above, below = float(middle[:, 0].mean()), float(middle[:, -1].mean())
    left, right = float(middle[:, :, 0].mean()), float(middle[:, :, -1].mean())
    area = body.mean((1, 2))
    if not area.any():
        return True
    few = max(1, count // 20)
    ends = sorted((float(area[:few].mean() / area.max()), float(area[-few:].mean() / area.max())))
    # In front of the body a sagittal stack has air, a coronal one has first or last slices of air.
    upright = min(above, below) >= 0.6 * REACHED and (ends[0] <= NO_BODY or (ends[0] <= LITTLE_BODY and min(left, right) < 0.05))
    lung = seen.lung_share >= CLEARLY_LUNG
    coronal = lung and min(above, below) >= REACHED and max(left, right) <= NO_BODY / 2 and seen.ends <= NO_BODY / 2
    # Of a large body, slices at both ends of a sagittal stack are full, but have lung in the middle.
    wide = min(above, below) >= 2 * REACHED and min(left, right) < 0.01 and max(left, right) < 2 * REACHED
    sagittal = wide and (not lung or seen.middle >= IN_THE_MIDDLE)
    # Axial slices that reach so far to the left and the right have two lungs.
    one_lung = seen.dip >= UNDIVIDED or (seen.middle >= IN_THE_MIDDLE and not seen.cut)
    turned = lung and one_lung and min(left, right) >= 1.5 * REACHED and min(above, below) <= NO_BODY
    # Turned by 90°. A large body reaches left and right edge in axial slices, too, but it does not end within the stack.
    lying = min(left, right) >= REACHED and ends[1] <= 1.5 * LITTLE_BODY and (ends[0] <= NO_BODY or min(above, below) < 0.05)
    return not (upright or lying or coronal or sagittal or turned)


def is_negative(thumbnails: np.ndarray) -> bool:
    """Whether slices certainly show a chest as a negative, from thumbnails without padding, uint8 (S, H, W): bright air around a dark body.

    If padding in the corners is bright, what remains without it shows a chest as it is.
    """
    other = anatomy(255 - thumbnails, False)
    if other.cut or other.air < LEAST_AIR or not other.is_chest or other.lung_share < LITTLE_LUNG:
        return False
    corners = _corners(thumbnails)
    level = np.median(corners)
    plain = thumbnails.copy()
    for one in plain:
        one[at_corners(np.abs(one.astype(int) - level) <= EVEN)] = 0
    without = anatomy(plain, False)
    return without.cut or not without.is_chest


def unrelated(apart: np.ndarray) -> bool:
    """Whether slices with these distances, float (S, S), resemble their neighbours no more than any others."""
    count = len(apart)
    if count < 6:
        return False
    nearest = np.where(np.eye(count, dtype=bool), np.inf, apart).min(1)
    return float(nearest.mean()) > UNRELATED * float(apart.sum()) / (count * (count - 1))


def _threshold(thumbnails: np.ndarray) -> float:
    """Otsu's grey level between air and tissue, within any black frame: air is not black in lung windows, and would seem tissue."""
    shown = (thumbnails > BLACK).mean(0) > 0.01
    rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    if len(rows):
        thumbnails = thumbnails[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    counts = np.bincount(thumbnails.ravel(), minlength=256).astype(float)
    levels = np.arange(256)
    below, sums = np.cumsum(counts), np.cumsum(counts * levels)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (sums * below[-1] - sums[-1] * below) ** 2 / (below * above)
    return float(np.nanargmax(np.where(np.isfinite(between), between, -1))) + 1


def _lungs(thumbnails: np.ndarray, dark_below: float) -> tuple[np.ndarray, bool]:
    """Where lung is, bool (S, H, W), and whether slices are cut out of a chest, so that lung may lie at their edge.

    Elsewhere dark regions at the edge are the air around the body.
    """
    # Imported here because finding scans imports this module too, and needs no SciPy.
    from scipy import ndimage

    dark = thumbnails < dark_below
    labels, count = ndimage.label(dark, PLANE)
    enclosed = ~_touching(labels, count, [labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1]])[labels]
    cut = float((~dark[:, 0]).mean()) > MOST_CUT
    if not cut:
        # Lung that is cut at another edge is lighter than the air above the body, and not as low, or as wide, as a couch.
        above, left, right = (_touching(labels, count, [edge]) for edge in (labels[:, 0], labels[:, :, 0], labels[:, :, -1]))
        air, body = np.median(thumbnails[above[labels] & dark]), np.median(thumbnails[~dark])
        light = _means(thumbnails, labels, count) >= air + LIGHTER * (body - air)
        rows = np.broadcast_to(np.arange(dark.shape[1])[:, None], dark.shape)
        high = _means(rows, labels, count) <= COUCH * dark.shape[1]
        beside = ~enclosed & (~above & ~(left & right) & light & high)[labels]
        if float(np.quantile(beside.mean((1, 2)), 0.75)) >= LEAST_BESIDE:
            return enclosed | beside, True
    if not cut and _most(enclosed) >= LEAST_LUNG / 2:
        return enclosed, False
    inside = ~_touching(labels, count, [labels[:, row, column] for row in (0, -1) for column in (0, -1)])[labels]
    if _most(inside) >= LITTLE_LUNG:
        return inside, True
    # Cut out of the middle of the lungs, slices have lung in their corners.
    return (dark, True) if cut else (enclosed, False)


def _means(values: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """The mean value of each region, float (count + 1,)."""
    sums, sizes = (np.bincount(labels.ravel(), weights, count + 1) for weights in (values.ravel(), None))
    means: np.ndarray = sums / np.maximum(sizes, 1)
    return means


def _most(regions: np.ndarray) -> float:
    """Their share of the slices, in the tenth of these where it is largest."""
    return float(np.quantile(regions.mean((1, 2)), 0.9))


def _touching(labels: np.ndarray, count: int, borders: list[np.ndarray]) -> np.ndarray:
    """For each label, bool (count + 1,), whether a border has it; true of 0, which is no region."""
    found = np.zeros(count + 1, bool)
    for border in borders:
        found[border.ravel()] = True
    found[0] = True
    return found


def _corners(thumbnails: np.ndarray) -> np.ndarray:
    return np.concatenate([thumbnails[:, :4, :4], thumbnails[:, :4, -4:]])


def _even(thumbnails: np.ndarray, dark_below: float) -> bool:
    """Whether the greys of what is dark, and of what is not, spread little, compared with the contrast between them."""
    dark, bright = (np.quantile(part, (0.25, 0.5, 0.75)) for part in _parts(thumbnails, dark_below))
    contrast = bright[1] - dark[1]
    return bool(bright[2] - bright[0] <= EVEN_BODY * contrast and dark[2] - dark[0] <= EVEN_AIR * contrast)


def _parts(thumbnails: np.ndarray, dark_below: float) -> tuple[np.ndarray, np.ndarray]:
    """Pixels below and above the threshold, at least one each."""
    dark = thumbnails < dark_below
    below, above = thumbnails[dark], thumbnails[~dark]
    return (below if below.size else above), (above if above.size else below)


def _in_lung_window(thumbnails: np.ndarray, lungs: np.ndarray, dark_below: float, of_ct: bool) -> bool:
    """False if body or lungs are darker than in any lung window, as in others and in negatives. Not asked of what may be no CT.

    `of_ct` if the greys are as even as in CT; else the air around a body tells it.
    """
    corners = _corners(thumbnails)
    low, air, high = np.quantile(corners, (0.25, 0.5, 0.75))
    in_air = high - low <= EVEN and air <= DARK and (corners < dark_below).mean() >= LEAST_AIR
    if not in_air and not of_ct:
        return True
    if np.median(_parts(thumbnails, dark_below)[1]) < BRIGHT:
        return False
    # Gas in the abdomen may be black.
    return lungs.mean() < 0.03 or float(np.median(thumbnails[lungs])) >= DARKEST


def _between(lungs: np.ndarray, body: np.ndarray) -> tuple[float, float]:
    """`Anatomy.middle` and `Anatomy.dip`."""
    across = np.flatnonzero(body.mean((0, 1)) > REACHED)
    if len(across) < 8:
        return 0.0, 0.0
    lung = np.convolve(lungs.mean((0, 1))[across[0] : across[-1] + 1], np.ones(3) / 3, "same")
    eighth, centre = len(lung) // 8, len(lung) // 2
    lesser = np.minimum(np.maximum.accumulate(lung), np.maximum.accumulate(lung[::-1])[::-1])
    dip = (lung / np.maximum(lesser, 1e-9))[eighth:-eighth].min()
    return float(lung[centre - eighth // 2 : centre + eighth // 2 + 1].mean() / max(lung.mean(), 1e-9)), float(dip)


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
    few = max(1, len(area) // 20)
    ends = sorted((area[:few].mean() / area.max(), area[-few:].mean() / area.max()))
    if ends[0] < HALF[0] and ends[1] > HALF[1]:
        # Half of a chest: towards the diaphragm, too, lungs become smaller.
        trend *= LIKELY_TREND / CERTAIN_TREND
    for certainty, least, alike in ((1.0, CERTAIN_CHANGE, CERTAIN_TREND), (0.5, LIKELY_CHANGE, LIKELY_TREND)):
        if abs(change) >= least and abs(trend) >= alike:
            return float(np.sign(change)) * certainty
    return 0.0
