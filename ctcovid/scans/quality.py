"""Judge a scan by its slices: what is wrong with it, and which slices remain, in which order."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ctcovid.base.errors import counted
from ctcovid.scans import anatomy, order, repeats
from ctcovid.scans.findings import ERROR, INFO, KEPT, REPAIRED, SCAN_DROPPED, SLICE_DROPPED, WARNING, Finding
from ctcovid.scans.kind import SEGMENTED, image_kind
from ctcovid.scans.slice_summary import SIDE, SliceSummary

# A scan may lose this share of its slices, one at least, and so many neighbours, and still be the scan that it was.
MOST_LOST, MOST_NEIGHBOURS_LOST = 0.1, 2
# Fewer slices than this show too little of a chest to be judged by it.
FEWEST_FOR_ANATOMY = 6


@dataclass(frozen=True)
class Unusable:
    """A slice that could not be read: a code such as ``truncated``, and the sentence for the user."""

    code: str
    message: str


@dataclass(frozen=True)
class Verdict:
    """findings : in the order in which they were made
    kept : places of the slices that remain, head to feet; none where the scan is dropped
    kind : "complete" or "segmented"
    """

    findings: tuple[Finding, ...]
    kept: tuple[int, ...]
    kind: str


def judge(names: Sequence[str], slices: Sequence[SliceSummary | Unusable], ordered: bool = False) -> Verdict:
    """Find what is wrong with a scan, and repair what can be repaired for certain.

    Parameters
    ----------
    names : of the slices, as they lie in their folder
    slices : the look of each, or why it cannot be read
    ordered : the order comes from the positions in DICOM or the like, and is not to be doubted
    """
    findings = [*_gaps(names)]
    bad = {place: item for place, item in enumerate(slices) if isinstance(item, Unusable)}
    looks = {place: item for place, item in enumerate(slices) if isinstance(item, SliceSummary)}
    findings += _unusable(bad, len(slices))
    findings += _sizes(looks, len(slices))
    findings += _constant(looks)
    findings += _holes(looks)
    if any(finding.action == SCAN_DROPPED for finding in findings):
        return Verdict(tuple(findings), (), image_kind(sum(item.masked for item in looks.values()), max(len(looks), 1)))
    lost = {place for finding in findings if finding.action == SLICE_DROPPED for place in finding.slices}
    kept = [place for place in looks if place not in lost]
    masked = image_kind(sum(looks[place].masked for place in kept), len(kept)) == SEGMENTED
    found, kept = _repeated(looks, kept, masked)
    findings += found
    found, kept = _judged_by_sight(looks, kept, masked, ordered)
    findings += found
    if masked:
        findings.append(Finding("segmented", INFO, "Everything outside the lungs is black.", KEPT))
    dropped = any(finding.action == SCAN_DROPPED for finding in findings)
    return Verdict(tuple(findings), () if dropped else tuple(kept), image_kind(int(masked), 1))


def bearable(lost: int, in_a_row: int, count: int) -> bool:
    """Whether a scan of `count` slices can do without `lost` of them, of which so many follow each other."""
    return lost <= max(1, MOST_LOST * count) and lost < count and in_a_row <= MOST_NEIGHBOURS_LOST


def dropped_instead(verdict: Verdict) -> Verdict:
    """The verdict of someone who wants no repairs: a scan that needs one is left out."""
    needy = {REPAIRED, SLICE_DROPPED}
    if not any(finding.action in needy for finding in verdict.findings):
        return verdict
    findings = (replace(finding, action=SCAN_DROPPED) if finding.action in needy else finding for finding in verdict.findings)
    return replace(verdict, findings=tuple(findings), kept=())


def _gaps(names: Sequence[str]) -> list[Finding]:
    """Numbers that the names leave out."""
    numbers = [int(found[-1]) if (found := re.findall(r"\d+", name.rsplit(".", 1)[0])) else None for name in names]
    if None in numbers or len(set(numbers)) < max(len(numbers), 2):
        return []
    steps = np.diff(np.array(numbers, dtype=float))
    # A scan of which every second slice was kept has no gaps, it has thicker steps.
    usual = float(np.median(steps))
    after = np.flatnonzero(steps > usual) if usual > 0 else np.array([], int)
    if not len(after):
        return []
    missing = int(sum(steps[after] / usual - 1))
    message = f"{counted(missing, 'number')} left out in the names of the slices, after {_names(names, after)}."
    return [Finding("numbering-gap", WARNING, message, KEPT, _places(after))]


def _unusable(bad: dict[int, Unusable], count: int) -> list[Finding]:
    findings = []
    action = SLICE_DROPPED if _bearable(list(bad), count) else SCAN_DROPPED
    for code in dict.fromkeys(item.code for item in bad.values()):
        places = [place for place, item in bad.items() if item.code == code]
        # Of a file that holds all slices one thing is said of all of them.
        one_file = len({item.message for item in bad.values()}) == 1
        more = f" So are {len(places) - 1} more of its slices." if len(places) > 1 and not one_file else ""
        severity = WARNING if action == SLICE_DROPPED else ERROR
        findings.append(Finding(code, severity, bad[places[0]].message + more, action, tuple(places)))
    return findings


def _sizes(looks: dict[int, SliceSummary], count: int) -> list[Finding]:
    """Slices of another size than most of the scan's."""
    sizes = Counter((item.height, item.width) for item in looks.values())
    if not sizes:
        return []
    (height, width), _ = sizes.most_common(1)[0]
    other = [place for place, item in looks.items() if (item.height, item.width) != (height, width)]
    if other:
        action = SLICE_DROPPED if _bearable(other, count) else SCAN_DROPPED
        one = looks[other[0]]
        message = f"{counted(len(other), 'slice')} of another size, such as {one.height}×{one.width}, among {height}×{width}."
        return [Finding("mixed-sizes", WARNING if action == SLICE_DROPPED else ERROR, message, action, tuple(other))]
    if height != width:
        message = f"Slices of {height}×{width} are padded with black to squares."
        return [Finding("not-square", INFO, message, KEPT)]
    return []


def _constant(looks: dict[int, SliceSummary]) -> list[Finding]:
    places = [place for place, item in looks.items() if item.constant]
    if not places:
        return []
    # Empty slices at the ends of a masked scan cost nothing, and those within it are no anatomy either way.
    action = SCAN_DROPPED if 2 * len(places) > len(looks) else SLICE_DROPPED
    message = f"{counted(len(places), 'slice')} of a single grey level."
    return [Finding("constant", ERROR if action == SCAN_DROPPED else WARNING, message, action, tuple(places))]


def _holes(looks: dict[int, SliceSummary]) -> list[Finding]:
    places = tuple(place for place, item in looks.items() if item.holes)
    if not places:
        return []
    message = f"In {counted(len(places), 'slice')} there are values that are no numbers; they are black."
    return [Finding("not-a-number", WARNING, message, KEPT, places)]


def _repeated(looks: dict[int, SliceSummary], kept: list[int], masked: bool) -> tuple[list[Finding], list[int]]:
    """Repeated slices, and the slices without them."""
    findings = []
    for exact in (True, False):
        if len(kept) < 2:
            break
        stack = np.stack([looks[place].thumbnail for place in kept])
        if exact:
            groups = repeats.exact_repeats([looks[place].digest for place in kept])
        else:
            groups = repeats.near_repeats(order.distances(stack))
        if not groups:
            continue
        drop = repeats.chosen(groups, order.distances(stack, masked))
        whole = repeats.is_whole_stack(drop, len(kept))
        places = tuple(kept[place] for place in drop)
        how = "to the bit" if exact else "but for their compression"
        what = (
            "The whole stack lies there twice"
            if whole
            else f"{counted(len(places), 'slice')} {'lies' if len(places) == 1 else 'lie'} there more than once"
        )
        code = ("repeated-stack" if whole else "repeated-slices") if exact else ("near-repeated-stack" if whole else "near-repeated-slices")
        findings.append(Finding(code, WARNING, f"{what}, equal {how}.", SLICE_DROPPED, places))
        kept = [place for place in kept if place not in set(places)]
    return findings, kept


def _judged_by_sight(looks: dict[int, SliceSummary], kept: list[int], masked: bool, ordered: bool) -> tuple[list[Finding], list[int]]:
    """Order, direction and part of the body."""
    if len(kept) < FEWEST_FOR_ANATOMY or min(looks[kept[0]].height, looks[kept[0]].width) < SIDE:
        return [], kept
    findings = []
    stack = np.stack([looks[place].thumbnail for place in kept])
    apart = order.distances(stack, masked)
    seen = anatomy.anatomy(stack, masked)
    if anatomy.unrelated(apart) or not seen.is_chest:
        why = "its slices have nothing to do with each other" if anatomy.unrelated(apart) else "there are no lungs in it"
        return [Finding("not-a-chest", ERROR, f"Not a CT scan of a chest: {why}.", SCAN_DROPPED)], kept
    if not ordered:
        better, certain = order.reordered(apart)
        moved = np.flatnonzero(better != np.arange(len(kept)))
        if len(moved):
            findings.append(
                Finding("shuffled", WARNING, "Slices did not follow each other.", REPAIRED, tuple(kept[place] for place in moved))
            )
            kept, stack = [kept[place] for place in better], stack[better]
            seen = anatomy.anatomy(stack, masked)
        elif not certain:
            findings.append(
                Finding("order-doubtful", WARNING, "Slices seem not to follow each other, and no order is certainly better.", KEPT)
            )
    if seen.lung_share < anatomy.LITTLE_LUNG:
        findings.append(Finding("little-lung", WARNING, "There is little lung in it; is it a chest?", KEPT))
    elif not ordered and seen.head_first <= -1:
        findings.append(Finding("feet-first", WARNING, "Stored feet first.", REPAIRED))
        kept = kept[::-1]
    elif not ordered and seen.head_first < 0:
        findings.append(Finding("feet-first-doubtful", WARNING, "Perhaps stored feet first, which is not certain.", KEPT))
    return findings, kept


def _bearable(places: list[int], count: int) -> bool:
    """Whether a scan of so many slices can do without these."""
    if not places:
        return True
    runs = np.split(np.array(sorted(places)), np.flatnonzero(np.diff(sorted(places)) > 1) + 1)
    return bearable(len(places), max(len(run) for run in runs), count)


def _names(names: Sequence[str], places: np.ndarray) -> str:
    return ", ".join(names[place] for place in places[:3]) + (", …" if len(places) > 3 else "")


def _places(places: np.ndarray) -> tuple[int, ...]:
    return tuple(int(place) for place in places)
