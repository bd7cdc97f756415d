"""The scale of stored numbers: grey of some bits, Hounsfield units, or one that cannot be told and is refused, never guessed.

Formats declare little of it, and some declare it wrongly. So the distribution of a whole scan decides: never the largest value of one
slice, which a clip of metal changes. A chest in Hounsfield units shows air and lung from −1000 to −700 and soft tissue around 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from ctcovid.scans.padding import MOST_OF_CORNERS, Padding, at_corners, corner_values, four_corners, padding_of

NOT_HOUNSFIELD = "are not Hounsfield units"
# Pixels that belong to no patient have this value in Hounsfield units. It is black in any window.
PADDING = -32768
# Values of 16 bits.
WIDE = 1 << 16
# Bins of Hounsfield units, which `hounsfield_counts` returns, from LOWEST on; all below in the first, all above in the last. What follows
# them counts pixels that are below and reach a corner, which are padding or another scale's air.
BIN, LOWEST, BINS = 50, -1200, 36
# A windowed picture is white in bone: so large a share of a scan lies in the last hundredth of its range, in a bone window too; and in
# those that show more of it as white, more than metal does in values that are not windowed.
LEAST_WHITE, SURELY_WHITE, NEARLY_WHITE = 2e-5, 5e-3, 0.99
# Of a picture that is stretched from its lowest to its highest value, only a few pixels are white, and the scale is lost.
FEWEST_WHITE = 20
# Between black and white lie lung, or fat and muscle: of numbers with a sign that is not told, the middle is empty.
LEAST_BETWEEN = 0.01
# Shares of a scan that are air or lung, and soft tissue, if values differ from Hounsfield units by an offset only.
LEAST_OF_EACH = 0.06
# A larger share that has the lowest or the highest value was cut off there, or is padding.
MOST_AT_AN_END = 0.01
# As shares of the values that are neither padding nor cut off: a scan in Hounsfield units has more air and tissue, and less below air.
# With padding below air it must show both clearly: less 1000, air seems to be padding, the body air, and dense bone tissue.
LEAST_AIR, LEAST_TISSUE, MOST_BELOW = 0.002, 0.002, 0.2
# Lungs that were cut out need not show tissue, but most of what they show is lung, and less than half as low as air, or a body less 1000.
LEAST_LUNG, MOSTLY_LUNG, MOST_DEEP = 0.5, 0.9, 0.5
# Of pictures, the round field of view is within this share of a side.
ROUND = 0.96
# What is most often added to Hounsfield units, and how well a picture's distribution tells what was added.
USUAL, UNSURE = 1024, 60
# A value in a corner that so much of a slice has is no measurement.
LEAST_FILLED = 0.1
# Lighter than LIGHT, in Hounsfield units, is more than this share of a usual slice.
LIGHT, USUAL_LIGHT = -250, 0.05


@dataclass(frozen=True)
class Scale:
    """What the stored numbers of pictures mean.

    Attributes
    ----------
    bits : of grey values, of which the highest is white; 16 for Hounsfield units
    offset : to subtract for Hounsfield units; None for grey
    signed : whether the numbers are two's complement of 16 bits
    problem : why the scale cannot be told; empty if it can
    padding : of Hounsfield units, what the corners of the scan show and no file declares
    """

    bits: int = 8
    offset: int | None = None
    signed: bool = False
    problem: str = ""
    padding: Padding | None = None

    @property
    def name(self) -> str:
        """For the record of a scan."""
        if self.offset is None:
            return f"grey, {self.bits} bits"
        return "Hounsfield units" + (f" + {self.offset}" if self.offset else ", two's complement" if self.signed else "")

    def hounsfield(self, values: np.ndarray) -> np.ndarray:
        """Stored numbers as Hounsfield units, int32; only for a scale with an offset."""
        stored = values.astype(np.int32)
        return np.where(stored >= WIDE // 2, stored - WIDE, stored) if self.signed else stored - (self.offset or 0)

    def grey(self, values: np.ndarray) -> np.ndarray:
        """Stored grey values as uint8, rounded to the nearest."""
        return np.clip(np.rint(values * (255 / ((1 << self.bits) - 1))), 0, 255).astype(np.uint8)


GREY = Scale()
HOUNSFIELD = Scale(16, 0)
# Offsets that a known data set or writer uses and that nothing else could be: DeepLesion's, and int16 stored as it is.
KNOWN = (Scale(16, 32768), Scale(16, 0, signed=True))


@dataclass(frozen=True)
class Values:
    """The values of a picture of more than 8 bits per value.

    Attributes
    ----------
    counts : int (65536,), how often each occurs
    within : the same within a round field of view
    corners : the values in the corners
    """

    counts: np.ndarray
    within: np.ndarray
    corners: np.ndarray


def values_of(picture: np.ndarray) -> Values:
    """Of a picture, int (H, W)."""
    rows, columns = (np.square((2 * np.arange(side) + 1 - side) / (ROUND * side)) for side in picture.shape)
    within = picture[rows[:, None] + columns <= 1]
    return Values(np.bincount(picture.ravel(), minlength=WIDE), np.bincount(within, minlength=WIDE), corner_values(picture))


def scan_scale(pictures: Iterable[Values | None]) -> Scale:
    """The scale of a scan of such pictures, of which only sums are in memory; None stands for one of 8 bits."""
    counts, within = np.zeros((2, WIDE), np.int64)
    corners = []
    for one in pictures:
        if one is not None:
            counts += one.counts
            within += one.within
            corners.append(one.corners)
    if corners:
        each = four_corners(corners)
        usual = int(np.median(np.concatenate(each)))
        if min((one == usual).mean() for one in each) >= MOST_OF_CORNERS:
            # Padding says nothing about the scale.
            counts[usual] = within[usual] = 0
    scale = picture_scale(counts, within)
    return scale if scale.offset is None else replace(scale, padding=padding_of([scale.hounsfield(one) for one in corners]))


def picture_scale(counts: np.ndarray, within: np.ndarray | None = None) -> Scale:
    """The scale of pictures of more than 8 bits per value.

    Parameters
    ----------
    counts : int (65536,), how often each value occurs in the whole scan, without padding
    within : the same within a round field of view, outside of which padding may have several values
    """
    used = np.flatnonzero(counts)
    highest = int(used[-1]) if len(used) else 0
    if highest < 256:
        return GREY
    for known in KNOWN:
        for some in (counts,) if within is None else (counts, within):
            some = np.roll(some, WIDE // 2) if known.signed else some
            if _is_chest(some, np.array([WIDE // 2])).all() or _is_lungs(some, WIDE // 2):
                return known
    bits = highest.bit_length()
    white, total = int(counts[int(NEARLY_WHITE * ((1 << bits) - 1)) :].sum()), int(counts.sum())
    # Values of 12 bits may be stored in the upper bits of 16.
    step = int(np.gcd.reduce(used))
    offset = _offset(counts[::step]) if white < SURELY_WHITE * total else None
    middle = counts[(1 << bits) // 10 : 9 * (1 << bits) // 10].sum()
    if offset is None and white >= max(LEAST_WHITE * total, FEWEST_WHITE) and middle >= LEAST_BETWEEN * total:
        return Scale(bits)
    what = f"16-bit values from {used[0]:,} to {highest:,} {NOT_HOUNSFIELD}"
    if offset is None:
        return Scale(problem=f"{what}, nor grey of a whole range. Export the scan as DICOM or NIfTI, or in a lung window with 8-bit grey.")
    often = f" (often these values less {USUAL})" if abs(offset - USUAL) <= UNSURE else ""
    return Scale(
        problem=f"{what}, but seem to be such plus about {round(offset, -2):,}, and no file says how much. Export the scan as DICOM or "
        f"NIfTI in Hounsfield units{often}, or in a lung window with 8-bit grey."
    )


def _offset(counts: np.ndarray) -> int | None:
    """What may have been added to Hounsfield units to give these values; None if nothing can have been."""
    offsets = np.arange(900, len(counts) - 500, 20)
    found = offsets[_is_chest(counts, offsets)] if len(offsets) else offsets
    return int(np.median(found)) if len(found) else None


def _is_chest(counts: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """For each offset, whether the values less it are Hounsfield units of a chest: air and lung, soft tissue, little between and beyond."""
    # What is cut off or padded piles up at the ends, in windowed pictures too. It says nothing about the scale.
    counts = counts.copy()
    total_shown = counts.sum()
    for end in np.flatnonzero(counts)[[0, -1]] if total_shown else ():
        counts[end] = 0 if counts[end] > MOST_AT_AN_END * total_shown else counts[end]
    counts[[0, -1]] = 0
    sums = np.concatenate([[0], np.cumsum(counts)])
    total = max(int(sums[-1]), 1)

    def share(lowest: int, highest: int) -> np.ndarray:
        first, end = (sums[np.clip(offsets + edge, 0, len(sums) - 1)] for edge in (lowest, highest))
        return np.asarray((end - first) / total)

    air, tissue = share(-1100, -700), share(-200, 200)
    beyond = np.maximum(share(-WIDE, -1100), share(600, WIDE))
    return (np.minimum(air, tissue) >= LEAST_OF_EACH) & (share(-600, -250) < air) & (beyond < LEAST_OF_EACH)


def _is_lungs(counts: np.ndarray, offset: int) -> bool:
    """Whether the values less this offset are Hounsfield units of lungs that were cut out: nearly all are lung, and few as low as air."""
    total = max(int(counts.sum()), 1)
    lung, deep = (int(counts[offset + low : offset + high].sum()) for low, high in ((-1100, -400), (-1100, -950)))
    return lung >= MOSTLY_LUNG * total and deep <= MOST_DEEP * lung


def hounsfield_counts(values: np.ndarray) -> np.ndarray:
    """How many values of a slice lie in each bin of Hounsfield units, int64 (BINS + 1,), without padding and what is cut off.

    Parameters
    ----------
    values : Hounsfield units, (H, W); NaN and PADDING do not count
    """
    # A quarter of the pixels tells as much as all of them.
    some = values[::2, ::2] if min(values.shape) >= 128 else values
    counted = np.isfinite(some) & (some > PADDING)
    below = some < LOWEST
    outside = 0
    if below.mean() > MOST_AT_AN_END:
        below = at_corners(below) & counted
        outside = int(below.sum())
        counted &= ~below
    # Around lungs that were cut out, one value may fill the slice.
    first = some == some[0, 0]
    counted &= ~first if first.mean() > LEAST_FILLED else True
    some = some[counted]
    if some.size:
        lowest = some == some.min()
        some = some[~lowest] if lowest.mean() > MOST_AT_AN_END else some
    bins = np.clip(np.floor_divide(some - np.float32(LOWEST), BIN) + 1, 0, BINS - 1).astype(np.int64)
    return np.append(np.bincount(bins, minlength=BINS), outside)


def hounsfield_problem(counts: np.ndarray, lungs_alone: bool = False) -> str:
    """Why a scan with these counts, from `hounsfield_counts`, is not in Hounsfield units; empty if it may be.

    `lungs_alone` if its slices show nothing but lungs.
    """
    outside, counts = int(counts[-1]), counts[:-1]
    total = max(int(counts.sum()), 1)

    def share(lowest: int, highest: int) -> float:
        first, last = ((edge - LOWEST) // BIN + 1 for edge in (lowest, highest))
        return float(counts[first:last].sum() / total)

    air, tissue, below = share(-1100, -600), share(-200, 300), float(counts[0] / total) + share(-1200, -1150)
    padded = outside > MOST_AT_AN_END * (total + outside)
    least_air, least_tissue = (LEAST_OF_EACH, LEAST_OF_EACH) if padded else (LEAST_AIR, LEAST_TISSUE)
    if lungs_alone and air >= LEAST_LUNG and share(-1100, -950) <= MOST_DEEP * air:
        least_tissue = 0
    if not counts.any() or (air >= least_air and tissue >= least_tissue and below <= MOST_BELOW):
        return ""
    lacks = "soft tissue, around 0" if tissue < least_tissue else "air and lung, from −1000 to −600" if air < least_air else "a chest"
    # Plus 1024, air lies around 0, lungs from there to 500, and tissue above.
    added = min(share(0, 450), float(counts[-1] / total)) >= LEAST_OF_EACH and air + share(-600, -200) < LEAST_AIR
    often = f" (often these values less {USUAL})" if added else ""
    return f"its values {NOT_HOUNSFIELD}: they do not show {lacks}. Export the scan in Hounsfield units{often}, or as 8-bit grey."


def other_scales(counts: np.ndarray) -> np.ndarray:
    """Which slices with these counts, (S, BINS + 1), have another scale than most: bool (S,).

    Plus about 1000, a slice has nothing below tissue, not even the air around the body; less 1000, most of it lies below air.
    """
    counts = counts[:, :BINS]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    light, below = shares[:, : (LIGHT - LOWEST) // BIN + 1].sum(1), shares[:, 0]
    without_air = (light < LEAST_AIR) & (np.median(light) > USUAL_LIGHT)
    found: np.ndarray = (counts.sum(1) > 0) & (without_air | ((below > 0.5) & (np.median(below) < MOST_BELOW)))
    return found
