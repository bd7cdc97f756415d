"""Check a scan by its slices: what is wrong with it, and which slices remain, in which order."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ctcovid.base.errors import counted
from ctcovid.scans import anatomy, repeats, similarity
from ctcovid.scans.findings import ERROR, INFO, KEPT, REPAIRED, SCAN_DROPPED, SLICE_DROPPED, WARNING, Finding
from ctcovid.scans.kind import SEGMENTED, image_kind, on_black
from ctcovid.scans.scale import hounsfield_problem, other_scales
from ctcovid.scans.slice_summary import SIDE, SliceSummary

# A scan is still usable without this share of its slices, at least one, and without so many neighbours.
MOST_LOST, MOST_NEIGHBOURS_LOST = 0.1, 2
# Grey levels of small pictures of slices: a chest in a window shows bright tissue or bone beside dark air or lung.
LEAST_BRIGHT, LEAST_SPAN = 110, 80
# Slices that are longer than this multiple of their width leave too little of their small picture.
MOST_OBLONG = 8
# Lungs alone, on black: 101 and more in each real slice measured.
LEAST_BRIGHT_LUNG = 60
# Fewer slices show too little of a chest to check its anatomy.
FEWEST_FOR_ANATOMY = 6


@dataclass(frozen=True)
class Unusable:
    """A slice that could not be read: a code such as ``truncated``, and the sentence for the user."""

    code: str
    message: str


@dataclass(frozen=True)
class Verdict:
    """What was found in a scan, and what remains of it.

    Attributes
    ----------
    findings : in the order of the checks
    kept : positions of the slices that remain, head to feet; empty if the scan is dropped
    kind : "complete" or "segmented"
    """

    findings: tuple[Finding, ...]
    kept: tuple[int, ...]
    kind: str


def check(names: Sequence[str], slices: Sequence[SliceSummary | Unusable], ordered: bool = False) -> Verdict:
    """Find what is wrong with a scan, and repair what can be repaired with certainty.

    Parameters
    ----------
    names : of the slices, in the order of their folder
    slices : the summary of each, or why it cannot be read
    ordered : whether the order comes from positions, as in DICOM, and is trusted
    """
    findings = _gaps(names)
    bad = {position: item for position, item in enumerate(slices) if isinstance(item, Unusable)}
    summaries = {position: item for position, item in enumerate(slices) if isinstance(item, SliceSummary)}
    findings += _unusable(bad, len(slices))
    findings += _sizes(summaries, len(slices))
    findings += _constant(summaries)
    findings += _nan_values(summaries)
    lost = {position for finding in findings if finding.action == SLICE_DROPPED for position in finding.slices}
    kind = image_kind(sum(item.masked for position, item in summaries.items() if position not in lost), len(summaries.keys() - lost))
    if kind == SEGMENTED:
        summaries = {position: replace(item, thumbnail=on_black(item.thumbnail)) for position, item in summaries.items()}
    scale = _scale(summaries, kind == SEGMENTED)
    if any(finding.action == SCAN_DROPPED for finding in scale):
        # Of another scale, a window shows a single grey, and bright corners are its air.
        findings = [finding for finding in findings if finding.code != "constant"]
    else:
        findings += _padding(summaries)
    findings += scale
    lost = {position for finding in findings if finding.action == SLICE_DROPPED for position in finding.slices}
    kept = [position for position in summaries if position not in lost]
    if kept and not any(finding.action == SCAN_DROPPED for finding in findings):
        found, kept = _compared(summaries, kept, kind == SEGMENTED, ordered)
        findings += found
    dropped = any(finding.action == SCAN_DROPPED for finding in findings)
    return Verdict(tuple(findings), () if dropped else tuple(kept), kind)


def _compared(summaries: dict[int, SliceSummary], kept: list[int], masked: bool, ordered: bool) -> tuple[list[Finding], list[int]]:
    """What comparing the slices shows, and the slices that remain, in order."""
    stack = np.stack([summaries[position].thumbnail for position in kept])
    apart = similarity.distances(stack, masked)
    # Slices of another scan of the patient may look like repeats.
    if _shows_anatomy(summaries, kept) and (alternating := _alternating(apart, ordered)):
        return [alternating], kept
    findings, left = _repeated([summaries[position].digest for position in kept], apart, similarity.distances(stack) if masked else apart)
    findings = [replace(finding, slices=tuple(kept[index] for index in finding.slices)) for finding in findings]
    found, kept = _anatomy(summaries, [kept[index] for index in left], apart[np.ix_(left, left)], masked, ordered)
    findings += found
    if masked:
        findings.append(Finding("segmented", INFO, "Everything outside the lungs is black, or one dark grey.", KEPT))
    return findings, kept


def can_lose(lost: int, in_a_row: int, count: int) -> bool:
    """Whether a scan of `count` slices is usable without `lost` of them, of which up to `in_a_row` follow each other."""
    return lost <= max(1, MOST_LOST * count) and lost < count and in_a_row <= MOST_NEIGHBOURS_LOST


def without_repairs(verdict: Verdict) -> Verdict:
    """The verdict if no repairs are wanted: a scan that needs one is dropped."""
    repairs = {REPAIRED, SLICE_DROPPED}
    if not any(finding.action in repairs for finding in verdict.findings):
        return verdict
    findings = (replace(finding, action=SCAN_DROPPED) if finding.action in repairs else finding for finding in verdict.findings)
    return replace(verdict, findings=tuple(findings), kept=())


def _gaps(names: Sequence[str]) -> list[Finding]:
    """Numbers that are missing in the names."""
    numbers = [int(found[-1]) if (found := re.findall(r"\d+", name.rsplit(".", 1)[0])) else None for name in names]
    if None in numbers or len(set(numbers)) < max(len(numbers), 2):
        return []
    steps = np.diff(np.array(numbers, dtype=float))
    # A scan of which every second slice was kept has thicker steps, not gaps.
    usual = float(np.median(steps))
    after = np.flatnonzero(steps > usual) if usual > 0 else np.array([], int)
    if not len(after):
        return []
    missing = int(sum(steps[after] / usual - 1))
    message = f"The names of the slices skip {counted(missing, 'number')}, after {_names(names, after)}."
    return [Finding("numbering-gap", WARNING, message, KEPT, _positions(after))]


def _unusable(bad: dict[int, Unusable], count: int) -> list[Finding]:
    findings = []
    action = SLICE_DROPPED if _can_lose(list(bad), count) else SCAN_DROPPED
    for code in dict.fromkeys(item.code for item in bad.values()):
        positions = [position for position, item in bad.items() if item.code == code]
        # One message is enough for a file that holds all slices.
        one_file = len({item.message for item in bad.values()}) == 1
        more = (
            f" So {'is' if len(positions) == 2 else 'are'} {counted(len(positions) - 1, 'more slice')}."
            if len(positions) > 1 and not one_file
            else ""
        )
        severity = WARNING if action == SLICE_DROPPED else ERROR
        findings.append(Finding(code, severity, bad[positions[0]].message + more, action, tuple(positions)))
    return findings


def _sizes(summaries: dict[int, SliceSummary], count: int) -> list[Finding]:
    """Slices that differ in size from most of the scan's."""
    sizes = Counter((item.height, item.width) for item in summaries.values())
    if not sizes:
        return []
    (height, width), _ = sizes.most_common(1)[0]
    other = [position for position, item in summaries.items() if (item.height, item.width) != (height, width)]
    if other:
        action = SLICE_DROPPED if _can_lose(other, count) else SCAN_DROPPED
        one = summaries[other[0]]
        message = f"{counted(len(other), 'slice')} of another size, such as {one.height}×{one.width}; the others have {height}×{width}."
        return [Finding("mixed-sizes", WARNING if action == SLICE_DROPPED else ERROR, message, action, tuple(other))]
    if height != width:
        message = f"Slices of {height}×{width} are padded with black to squares."
        return [Finding("not-square", INFO, message, KEPT)]
    return []


def _constant(summaries: dict[int, SliceSummary]) -> list[Finding]:
    positions = [position for position, item in summaries.items() if item.constant]
    if not positions:
        return []
    # Dropping empty slices at the ends of a masked scan costs nothing, and those within it show no anatomy.
    action = SCAN_DROPPED if 2 * len(positions) > len(summaries) else SLICE_DROPPED
    message = f"{counted(len(positions), 'slice')} of a single grey level."
    return [Finding("constant", ERROR if action == SCAN_DROPPED else WARNING, message, action, tuple(positions))]


def _nan_values(summaries: dict[int, SliceSummary]) -> list[Finding]:
    positions = tuple(position for position, item in summaries.items() if item.has_nan)
    if not positions:
        return []
    message = f"{counted(len(positions), 'slice')} with NaN or Inf, which become black."
    return [Finding("not-a-number", WARNING, message, KEPT, positions)]


def _padding(summaries: dict[int, SliceSummary]) -> list[Finding]:
    positions = tuple(position for position, item in summaries.items() if item.padded)
    if not positions:
        return []
    message = f"{counted(len(positions), 'slice')} with bright corners of one value throughout the scan, taken for padding and made black."
    return [Finding("padding", WARNING, message, REPAIRED, positions)]


def _scale(summaries: dict[int, SliceSummary], masked: bool) -> list[Finding]:
    """Refuse what is neither in Hounsfield units nor in the grey of a window, by the values of the whole scan."""
    counts = [item.hounsfield for item in summaries.values() if item.hounsfield is not None]
    if counts:
        problem = hounsfield_problem(np.sum(counts, axis=0), masked)
        if not problem:
            return _other_scales(summaries)
    else:
        problem = _narrow([item.thumbnail for item in summaries.values()], masked)
    return [Finding("not-hounsfield", ERROR, f"{problem[:1].upper()}{problem[1:]}", SCAN_DROPPED)] if problem else []


def _other_scales(summaries: dict[int, SliceSummary]) -> list[Finding]:
    """Slices that have another scale than most, as where the rescale of some is missing."""
    # The counts of a volume file are those of all its slices.
    if any(item.hounsfield is None for item in summaries.values()):
        return []
    odd = other_scales(np.array([item.hounsfield for item in summaries.values()]))
    strange = tuple(position for position, other in zip(summaries, odd, strict=True) if other)
    if not strange:
        return []
    action = SLICE_DROPPED if _can_lose(list(strange), len(summaries)) else SCAN_DROPPED
    message = f"{counted(len(strange), 'slice')} whose values are not Hounsfield units, unlike those of the others."
    return [Finding("not-hounsfield", WARNING if action == SLICE_DROPPED else ERROR, message, action, strange)]


def _narrow(thumbnails: list[np.ndarray], masked: bool) -> str:
    """Why grey levels are not those of a window, in which a chest shows all from dark to bright; empty if they may be."""
    if not thumbnails:
        return ""
    lowest, highest = (int(end) for end in (np.min(thumbnails), np.max(thumbnails)))
    bright, span = (LEAST_BRIGHT_LUNG, LEAST_BRIGHT_LUNG) if masked else (LEAST_BRIGHT, LEAST_SPAN)
    if highest == lowest or (highest >= bright and highest - lowest >= span):
        return ""
    return f"its grey levels from {lowest} to {highest} are not those of a window. Export the scan in a lung window, from black to white."


def _alternating(apart: np.ndarray, ordered: bool) -> Finding | None:
    if similarity.jumps(apart) >= similarity.MOSTLY if ordered else similarity.alternates(apart):
        message = "Slices of different scans alternate: each resembles a later one more than its neighbour."
        return Finding("inconsistent-stack", ERROR, message, SCAN_DROPPED)
    return None


def _shows_anatomy(summaries: dict[int, SliceSummary], kept: list[int]) -> bool:
    """Whether there are enough slices, and large enough ones, to check that they show a chest."""
    return len(kept) >= FEWEST_FOR_ANATOMY and min(summaries[kept[0]].height, summaries[kept[0]].width) >= SIDE


def _repeated(digests: Sequence[int], apart: np.ndarray, plain: np.ndarray) -> tuple[list[Finding], list[int]]:
    """Repeated slices, and the indices of the slices without them.

    Parameters
    ----------
    digests : of the pixels of each slice
    apart, plain : float (S, S), distances of the slices, and these without regard to masks
    """
    findings = []
    left = list(range(len(apart)))
    for exact in (True, False):
        if len(left) < 2:
            break
        groups = repeats.exact_repeats([digests[index] for index in left]) if exact else repeats.near_repeats(plain[np.ix_(left, left)])
        if not groups:
            continue
        drop = repeats.chosen(groups, apart[np.ix_(left, left)])
        whole = repeats.is_whole_stack(drop, len(left))
        positions = tuple(left[index] for index in drop)
        how = "bit for bit" if exact else "except for their compression"
        what = (
            "The whole stack is stored twice"
            if whole
            else f"{counted(len(positions), 'slice')} {'is' if len(positions) == 1 else 'are'} stored more than once"
        )
        code = ("repeated-stack" if whole else "repeated-slices") if exact else ("near-repeated-stack" if whole else "near-repeated-slices")
        findings.append(Finding(code, WARNING, f"{what}, equal {how}.", SLICE_DROPPED, positions))
        left = [index for index in left if index not in set(positions)]
    return findings, left


def _anatomy(
    summaries: dict[int, SliceSummary], kept: list[int], apart: np.ndarray, masked: bool, ordered: bool
) -> tuple[list[Finding], list[int]]:
    """Check view, order, direction and anatomy; returns findings and the kept slices in order."""
    if max(shape := (summaries[kept[0]].height, summaries[kept[0]].width)) > MOST_OBLONG * min(shape):
        return [], kept
    padded = np.stack([summaries[position].thumbnail for position in kept])
    stack = anatomy.without_padding(padded, summaries[kept[0]].height, summaries[kept[0]].width)
    seen = anatomy.anatomy(stack, masked)
    findings = [] if seen.lung_window else [_window()]
    if not _shows_anatomy(summaries, kept):
        return findings, kept
    grey = all(item.hounsfield is None for item in summaries.values())
    if refusal := _refusal(stack, apart, seen, masked, ordered, grey):
        return [refusal], kept
    # Parts of slices differ less.
    found, kept, moved = _ordered(apart, kept, ordered, seen.lung_window and not seen.cut)
    findings += found
    if any(finding.action == REPAIRED for finding in found):
        seen = anatomy.anatomy(stack[moved], masked)
    if seen.cut and seen.lung_window:
        message = "Its slices are cut out of a chest, or not axial: body or lung reaches their edge."
        findings.append(Finding("cut-off", WARNING, message, KEPT))
    # What is lung cannot be told from the greys of another window.
    if not seen.lung_window:
        return findings, kept
    found, kept = _direction(seen, kept, ordered)
    return findings + found, kept


def _refusal(stack: np.ndarray, apart: np.ndarray, seen: anatomy.Anatomy, masked: bool, ordered: bool, grey: bool) -> Finding | None:
    """Why a stack is not one of axial slices of a chest, if that is certain. Positions tell better than pictures whether it is axial."""
    if anatomy.unrelated(apart):
        return Finding("not-a-chest", ERROR, "Not a CT scan of a chest: its slices are unrelated pictures.", SCAN_DROPPED)
    if grey and not masked and anatomy.is_negative(stack):
        message = "Its grey is that of a negative: air is bright, and the body dark. Export the scan with air in black."
        return Finding("not-hounsfield", ERROR, message, SCAN_DROPPED)
    # Photographs may show something at all edges, too, but have many greys, no black around, and no order.
    is_ct = seen.even or masked or not seen.lung_window or similarity.jumps(apart) < similarity.MOSTLY / 2
    if is_ct and not ordered and not anatomy.is_axial(stack, seen):
        message = "Not axial slices: their upper and lower edges cut through the body, as those of coronal and sagittal slices do."
        return Finding("not-axial", ERROR, message, SCAN_DROPPED)
    if seen.lung_window and not seen.is_chest:
        return Finding("not-a-chest", ERROR, "Not a CT scan of a chest: it shows no lungs.", SCAN_DROPPED)
    return None


def _window() -> Finding:
    message = "Its greys are not those of a lung window; lungs, order and direction are not checked."
    return Finding("unknown-window", WARNING, message, KEPT)


def _ordered(apart: np.ndarray, kept: list[int], ordered: bool, repairable: bool) -> tuple[list[Finding], list[int], np.ndarray]:
    """Findings about the order, the kept slices in order, and their indices as they were."""
    findings = []
    stored = np.arange(len(kept))
    better, certain = (stored, True) if ordered else similarity.reordered(apart)
    if not repairable:
        better, certain = stored, certain and bool((better == stored).all())
    moved = np.flatnonzero(better != stored)
    if len(moved):
        findings.append(Finding("shuffled", WARNING, "Slices were out of order.", REPAIRED, tuple(kept[index] for index in moved)))
    elif not certain:
        findings.append(Finding("order-doubtful", WARNING, "Slices seem to be out of order, but no other order is certain.", KEPT))
    if certain and similarity.jumps(apart[np.ix_(better, better)], 2):
        message = "Some neighbours differ more than slices farther apart: slices of another scan may lie between them."
        findings.append(Finding("inconsistent-stack", WARNING, message, KEPT))
    return findings, [kept[index] for index in better], better


def _direction(seen: anatomy.Anatomy, kept: list[int], ordered: bool) -> tuple[list[Finding], list[int]]:
    if seen.lung_share < anatomy.LITTLE_LUNG:
        return [Finding("little-lung", WARNING, "It shows little lung; it may not be a chest.", KEPT)], kept
    if ordered or seen.head_first >= 0:
        return [], kept
    # Lungs that are cut have another shape.
    if seen.head_first <= -1 and not seen.cut:
        return [Finding("feet-first", WARNING, "Stored feet first.", REPAIRED)], kept[::-1]
    return [Finding("feet-first-doubtful", WARNING, "Perhaps stored feet first, but not certainly.", KEPT)], kept


def _can_lose(positions: list[int], count: int) -> bool:
    """Whether a scan of `count` slices is usable without these."""
    if not positions:
        return True
    runs = np.split(np.array(sorted(positions)), np.flatnonzero(np.diff(sorted(positions)) > 1) + 1)
    return can_lose(len(positions), max(len(run) for run in runs), count)


def _names(names: Sequence[str], positions: np.ndarray) -> str:
    return ", ".join(names[position] for position in positions[:3]) + (", …" if len(positions) > 3 else "")


def _positions(positions: np.ndarray) -> tuple[int, ...]:
    return tuple(int(position) for position in positions)
