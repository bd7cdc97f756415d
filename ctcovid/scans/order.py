"""The slices of one stack from head to feet, by position, with what their distances and directions show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ctcovid.base.errors import counted
from ctcovid.scans.contents import natural_key
from ctcovid.scans.findings import KEPT, SLICE_DROPPED, WARNING, Finding
from ctcovid.scans.frames import Plane
from ctcovid.scans.geometry import LPS_TO_RAS, MOST_OBLIQUE, Geometry, Turn, normalise, pixel_findings, shear_findings
from ctcovid.scans.scan import Scan, Stack
from ctcovid.scans.stacks import GAP, UNEVEN, Slice, along, one_place, planes_of


def ordered(scan: Scan, slices: Sequence[Slice], notes: list[Finding]) -> Scan:
    """`scan` with the slices of one stack from head to feet, with `notes` and further findings."""
    raw = [one for one in slices if not one.frame.rescaled]
    if any(not one.header.signed for one in raw):
        text = "no RescaleIntercept, and unsigned values are not Hounsfield units; export the series with its rescale"
        return scan.refused("not-hounsfield", text)
    if raw:
        notes.append(Finding("no-rescale", WARNING, "no RescaleIntercept; stored values are taken for Hounsfield units", KEPT))
    places, measured = along(slices)
    planes = planes_of(slices)
    order = sorted(range(len(slices)), key=lambda one: (places[one], *slices[one].header.order, slices[one].header.instance, one))
    if not measured:
        order.sort(key=lambda one: (*slices[one].header.order, natural_key(slices[one].header.path.name), slices[one].number))
    if len(slices) > 1 and (not measured or not planes or np.ptp([plane.position for plane in planes], axis=0).max() < 0.01):
        said = "give all slices the same position" if planes else "give no positions of slices"
        by = "SliceLocation" if measured else "their numbers"
        notes.append(Finding("no-positions", WARNING, f"its files {said}; slices are in the order of {by}", KEPT))
        return _with_slices(scan, [slices[one] for one in order], Turn(), None, notes)
    if not planes:
        return _with_slices(scan, list(slices), Turn(), None, notes)
    kept = _without_repeats(order, places, notes)
    _check_distances(places[kept], notes)
    slices, planes = [slices[one] for one in kept], [planes[one] for one in kept]
    first = slices[0]
    try:
        turn, geometry, angle = normalise(_affine(planes, first.frame.thickness), (len(kept), first.header.rows, first.header.columns))
    except ValueError as error:
        return scan.refused("no-geometry", str(error))
    if angle > MOST_OBLIQUE:
        return scan.refused("no-geometry", f"its slices are sheared by {angle:.0f}°; resample them to a straight stack")
    turn = replace(turn, axes=(0, *turn.axes[1:]))
    notes += shear_findings(geometry, angle, first.header.tilt)
    if not all(plane.spacing for plane in planes):
        notes.append(
            Finding("no-pixel-spacing", WARNING, "its files give no PixelSpacing; slices are in the order of their positions", KEPT)
        )
        return _with_slices(scan, slices, turn, None, notes)
    return _with_slices(scan, slices, turn, geometry, notes + pixel_findings(geometry))


def _with_slices(scan: Scan, slices: Sequence[Slice], turn: Turn, geometry: Geometry | None, notes: list[Finding]) -> Scan:
    first = slices[0].header
    several = any(one.header.frames > 1 for one in slices)
    frames = tuple(one.number for one in slices) if several else ()
    stack = Stack("dicom", (first.frames, first.rows, first.columns), turn, frames, geometry)
    return replace(scan, slices=tuple(one.header.path for one in slices), stack=stack, findings=tuple(notes))


def _without_repeats(order: list[int], positions: np.ndarray, notes: list[Finding]) -> list[int]:
    """The first of slices at the same position, which is that of the first acquisition."""
    least = one_place(positions)
    kept = [order[0]]
    repeated = []
    for rank, one in enumerate(order[1:], start=1):
        if positions[one] - positions[kept[-1]] < least:
            repeated.append(rank)
        else:
            kept.append(one)
    if repeated:
        text = f"{counted(len(repeated), 'slice')} at the position of another; the first of each is kept"
        notes.append(Finding("duplicate-position", WARNING, text, SLICE_DROPPED, tuple(repeated)))
    return kept


def _check_distances(positions: np.ndarray, notes: list[Finding]) -> None:
    gaps = np.diff(positions)
    if len(gaps) < 2:
        return
    usual = float(np.median(gaps))
    wide = np.flatnonzero(gaps > GAP * usual)
    if len(wide):
        missing = int(sum(max(round(gap / usual) - 1, 1) for gap in gaps[wide]))
        count = f"a gap of {gaps.max():.4g} mm" if len(wide) == 1 else f"{len(wide):,} gaps of up to {gaps.max():.4g} mm"
        text = f"about {counted(missing, 'slice')} {'is' if missing == 1 else 'are'} missing: {count}, where {usual:.4g} mm is usual"
        notes.append(Finding("gap", WARNING, text, KEPT, tuple(int(index) for index in wide)))
    uneven = np.flatnonzero((np.abs(gaps - usual) > UNEVEN * usual) & (gaps <= GAP * usual))
    if len(uneven):
        text = f"slices are {gaps.min():.4g} to {gaps.max():.4g} mm apart"
        notes.append(Finding("uneven-spacing", WARNING, text, KEPT, tuple(int(index) for index in uneven)))


def _affine(planes: Sequence[Plane], thickness: float) -> np.ndarray:
    """From (column, row, slice) to RAS+ millimetres, with the mean step along slices, which includes a tilt."""
    first = planes[0]
    rows, columns = first.spacing or (1.0, 1.0)
    affine = np.eye(4)
    affine[:3, 0] = np.multiply(first.orientation[:3], columns)
    affine[:3, 1] = np.multiply(first.orientation[3:], rows)
    if len(planes) > 1:
        affine[:3, 2] = np.subtract(planes[-1].position, first.position) / (len(planes) - 1)
    else:
        affine[:3, 2] = first.normal * (-1 if first.normal[2] > 0 else 1) * (thickness or 1.0)
    affine[:3, 3] = first.position
    return LPS_TO_RAS @ affine
