"""From the DICOM files of a study to one scan: which series, the order of its slices, and findings."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ctcovid.base.errors import counted
from ctcovid.scans.dicom import NOT_DICOM, SECONDARY_CAPTURE, Header, Plane
from ctcovid.scans.findings import INFO, KEPT, SLICE_DROPPED, WARNING, Finding
from ctcovid.scans.geometry import LPS_TO_RAS, MOST_OBLIQUE, OBLIQUE, Geometry, Turn, normalise, pixel_findings
from ctcovid.scans.scan import Scan, Stack
from ctcovid.scans.unreadable import Unread, code_of, file_findings, missing_slices, of_series, reasons, slice_findings, usable_without

SCOUT_WORDS = {"LOCALIZER", "SCOUT", "TOPOGRAM"}
DERIVED_WORDS = {"DERIVED", "MIP", "MINIP", "MPR", "VRT", "PROJECTION IMAGE", "CSA MPR", "REFORMATTED", "AVERAGE", "MAX_IP", "MIN_IP"}
# As shares of the usual distance: nearer slices have the same position, a larger distance is a gap, and by this much it is uneven.
SAME_POSITION, GAP, UNEVEN = 0.05, 1.5, 0.1
# Largest angle in degrees between the rows, or columns, of one series.
ONE_DIRECTION = 5.0
# A series that covers less than this share of the longest one is a detail or a test, however thin.
LEAST_COVER = 0.25


@dataclass(frozen=True)
class Series:
    """Slices of one series that are alike. `unfit` says why it is not axial CT, `derived` that it was computed from another.

    `number` is its SeriesNumber, or its rank among the others, as ``#2``, if it has none: a UID could lead back to the patient.
    """

    uid: str
    number: str
    description: str
    headers: tuple[Header, ...]
    unfit: str
    derived: bool

    @property
    def slices(self) -> int:
        return sum(header.frames for header in self.headers)

    @property
    def name(self) -> str:
        return f"series {self.number}"

    @property
    def spacing(self) -> float:
        """The usual distance of two slices in mm; infinite if there are no two positions."""
        gaps = np.diff(np.sort(_positions(_planes(self.headers))))
        gaps = gaps[gaps > 0.01]
        return float(np.median(gaps)) if len(gaps) else float("inf")

    @property
    def cover(self) -> float:
        """From the first to the last slice in mm."""
        positions = _positions(_planes(self.headers))
        return float(np.ptp(positions)) if len(positions) else 0.0


def study_scan(scan: Scan, headers: Sequence[Header], unread: Sequence[Unread], wanted: str | None) -> Scan:
    """`scan` with the slices of the best series, or of the `wanted` one; without slices if none can be used.

    The best is the axial one with the thinnest spacing, of several such the one with most slices; a series computed from another is
    used only if there is no other. `unread` are files that cannot be read; if too many belong to the series, the study is not used.
    """
    everything = group(headers)
    if not everything and unread and all(one.reason == NOT_DICOM for one in unread):
        count = counted(len(unread), "file")
        return scan.refused("not-dicom", f"{count} named as DICOM, but not DICOM")
    if not everything:
        text = f"no readable DICOM slices: {reasons(unread)}" if unread else "no DICOM slices"
        return scan.refused(code_of(unread, "unreadable"), text)
    if wanted is not None:
        fitting = [series for series in everything if matches(series, wanted)]
        if not fitting:
            return scan.refused("no-such-series", f"no series {wanted} in the study; it has {'; '.join(map(_described, everything))}")
    else:
        fitting = everything
    candidates = [series for series in fitting if not series.unfit]
    if not candidates:
        return scan.refused("no-axial-series", f"no axial CT series; there is {'; '.join(map(_described, fitting))}")
    chosen = best(candidates)
    missing, beside = of_series(chosen.headers, unread)
    positions = _positions(_planes(chosen.headers))
    along = positions if len(positions) == len(chosen.headers) else [header.order[1] for header in chosen.headers]
    places = {header.path: float(place) for header, place in zip(chosen.headers, along, strict=True)}
    if missing and not usable_without(missing, chosen.slices, positions, chosen.spacing, places):
        return scan.refused(code_of(missing, "unreadable-slice"), missing_slices(missing, chosen.slices))
    notes = slice_findings(missing, chosen.slices) + file_findings(beside)
    if others := [series for series in everything if series is not chosen]:
        unused = ", ".join(map(_described, others))
        notes.append(Finding("several-series", INFO, f"used {_described(chosen)}; not used: {unused}", KEPT))
    if chosen.derived:
        notes.append(Finding("derived-series", WARNING, f"{chosen.name} was computed from another series, which is absent", KEPT))
    return ordered(scan, chosen, notes)


def best(candidates: Sequence[Series]) -> Series:
    """The best series, see `study_scan`."""
    original = [series for series in candidates if not series.derived] or list(candidates)
    long = [series for series in original if series.cover >= LEAST_COVER * max(one.cover for one in original)]
    thinnest = min(series.spacing for series in long)
    thin = [series for series in long if series.spacing <= 1.05 * thinnest]
    return max(thin, key=lambda series: (series.slices, -_order(series.number)))


def group(headers: Sequence[Header]) -> list[Series]:
    """Series of slices that are alike: of one UID, size, direction and kind, with one slice per file or several."""
    alike: dict[tuple[object, ...], list[Header]] = defaultdict(list)
    directions: dict[str, list[Plane]] = defaultdict(list)
    for header in headers:
        direction = _number_of(header.planes[0], directions[header.series]) if header.planes else -1
        kind = _unfit(header), _derived(header), header.frames > 1
        alike[(header.series, *kind, header.rows, header.columns, direction)].append(header)
    found = []
    for (_, unfit, derived, *_), members in alike.items():
        first = members[0]
        found.append(Series(first.series, first.number, first.description, tuple(members), str(unfit), bool(derived)))
    found.sort(key=lambda series: (_order(series.number), series.uid, -series.slices))
    return [series if series.number else replace(series, number=f"#{rank}") for rank, series in enumerate(found, start=1)]


def matches(series: Series, wanted: str) -> bool:
    """Whether `wanted` is the UID, number or description of a series."""
    text = wanted.strip().casefold()
    return text in (series.uid.casefold(), series.number.casefold(), series.description.casefold())


def ordered(scan: Scan, series: Series, notes: list[Finding]) -> Scan:
    """`scan` with the slices of `series` from head to feet, with `notes` and further findings."""
    raw = [header for header in series.headers if not header.rescaled]
    if any(not header.signed for header in raw):
        text = "no RescaleIntercept, and unsigned values are not Hounsfield units; export the series with its rescale"
        return scan.refused("not-hounsfield", text)
    if raw:
        notes.append(Finding("no-rescale", WARNING, "no RescaleIntercept; stored values are taken for Hounsfield units", KEPT))
    first = max(series.headers, key=lambda header: header.frames)
    frames = [(header, number) for header in series.headers for number in range(header.frames)]
    if first.frames > 1:
        if len(series.headers) > 1:
            notes.append(
                Finding("several-stacks", WARNING, f"{len(series.headers)} files of many slices; the one with most is used", SLICE_DROPPED)
            )
        frames = [(first, number) for number in range(first.frames)]
    planes = _planes((first,) if first.frames > 1 else series.headers)
    if len(frames) > 1 and np.ptp(_positions(planes) if planes else np.zeros(1)) < 0.01:
        frames.sort(key=lambda one: (one[0].order, one[0].path.name, one[1]))
        said = "give all slices the same position" if planes else "give no positions of slices"
        notes.append(Finding("no-positions", WARNING, f"its files {said}; slices are in the order of their numbers", KEPT))
        return _with_frames(scan, frames, Turn(), None, notes)
    if not planes:
        return _with_frames(scan, frames, Turn(), None, notes)
    positions = _positions(planes)
    # Along the normal, but starting at the head, where z is largest.
    if _normal(planes)[2] > 0:
        positions = -positions
    order = sorted(range(len(frames)), key=lambda one: (positions[one], frames[one][0].order, frames[one][0].instance, one))
    kept = _without_repeats(order, positions, notes)
    _check_distances(positions[kept], notes)
    planes = [planes[one] for one in kept]
    try:
        turn, geometry, angle = normalise(_affine(planes, first.thickness), (len(kept), first.rows, first.columns))
    except ValueError as error:
        return scan.refused("no-geometry", str(error))
    _check_tilt(planes, first.tilt, angle, notes)
    notes += pixel_findings(geometry)
    return _with_frames(scan, [frames[one] for one in kept], replace(turn, axes=(0, *turn.axes[1:])), geometry, notes)


def _with_frames(scan: Scan, frames: list[tuple[Header, int]], turn: Turn, geometry: Geometry | None, notes: list[Finding]) -> Scan:
    first = frames[0][0]
    several = first.frames > 1
    stack = Stack(
        "volume" if several else "dicom",
        (first.frames, first.rows, first.columns),
        turn,
        tuple(number for _, number in frames) if several else (),
        geometry,
    )
    return replace(scan, slices=tuple(header.path for header, _ in frames), stack=stack, findings=tuple(notes))


def _without_repeats(order: list[int], positions: np.ndarray, notes: list[Finding]) -> list[int]:
    """The first of slices at the same position, which is that of the first acquisition."""
    gaps = np.diff(positions[order])
    usual = float(np.median(gaps[gaps > 0.01])) if (gaps > 0.01).any() else 1.0
    kept = [order[0]]
    repeated = []
    for rank, one in enumerate(order[1:], start=1):
        if positions[one] - positions[kept[-1]] < max(SAME_POSITION * usual, 0.01):
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


def _check_tilt(planes: Sequence[Plane], stated: float, angle: float, notes: list[Finding]) -> None:
    sheared = 0.0
    if len(planes) > 1:
        along = np.subtract(planes[-1].position, planes[0].position)
        cosine = abs(float(along @ planes[0].normal)) / max(float(np.linalg.norm(along)), 1e-9)
        sheared = float(np.degrees(np.arccos(min(cosine, 1.0))))
    if max(abs(stated), sheared) > 0.5:
        text = f"the gantry was tilted by {max(abs(stated), sheared):.1f}°; slices are used unchanged"
        notes.append(Finding("gantry-tilt", WARNING, text, KEPT))
    elif angle > OBLIQUE:
        notes.append(Finding("oblique", WARNING, f"slices are {angle:.0f}° off the patient's axes; used unchanged", KEPT))


def _affine(planes: Sequence[Plane], thickness: float) -> np.ndarray:
    """From (column, row, slice) to RAS+ millimetres, with the mean step along slices, which includes a tilt."""
    first = planes[0]
    affine = np.eye(4)
    affine[:3, 0] = np.multiply(first.orientation[:3], first.spacing[1])
    affine[:3, 1] = np.multiply(first.orientation[3:], first.spacing[0])
    if len(planes) > 1:
        affine[:3, 2] = np.subtract(planes[-1].position, first.position) / (len(planes) - 1)
    else:
        affine[:3, 2] = first.normal * (-1 if first.normal[2] > 0 else 1) * (thickness or 1.0)
    affine[:3, 3] = first.position
    return LPS_TO_RAS @ affine


def _planes(headers: Sequence[Header]) -> list[Plane]:
    """The planes of all frames, or none if one is missing."""
    planes = [plane for header in headers for plane in header.planes]
    return planes if len(planes) == sum(header.frames for header in headers) else []


def _positions(planes: Sequence[Plane]) -> np.ndarray:
    """Millimetres along the common normal."""
    return np.array([plane.position for plane in planes]) @ _normal(planes) if planes else np.empty(0)


def _normal(planes: Sequence[Plane]) -> np.ndarray:
    """The common normal, of length 1."""
    mean = np.mean([plane.orientation for plane in planes], axis=0)
    normal = np.cross(mean[:3], mean[3:])
    return normal / np.linalg.norm(normal)


def _unfit(header: Header) -> str:
    """Why a file is not a slice of axial CT; empty if it is one."""
    if not header.rows or not header.columns:
        return "no picture"
    if header.modality not in ("CT", ""):
        return f"modality {header.modality}"
    if SCOUT_WORDS & set(header.image_type):
        return "scout"
    if header.sop_class.startswith(SECONDARY_CAPTURE):
        return "secondary capture"
    if header.samples != 1:
        return "colour"
    return _direction(header.planes[0]) if header.planes else ""


def _direction(plane: Plane) -> str:
    normal = np.abs(plane.normal)
    if normal[2] < np.cos(np.radians(MOST_OBLIQUE)):
        return "oblique" if normal.max() < np.cos(np.radians(MOST_OBLIQUE)) else ("sagittal", "coronal")[int(normal[:2].argmax())]
    return "oblique" if np.abs(plane.orientation[:3]).max() < np.cos(np.radians(MOST_OBLIQUE)) else ""


def _number_of(plane: Plane, known: list[Plane]) -> int:
    """The index of the `known` plane with the same direction; if there is none, `plane` is added."""
    axes = np.reshape(plane.orientation, (2, 3))
    for number, other in enumerate(known):
        if np.einsum("ij,ij->i", axes, np.reshape(other.orientation, (2, 3))).min() >= np.cos(np.radians(ONE_DIRECTION)):
            return number
    known.append(plane)
    return len(known) - 1


def _derived(header: Header) -> bool:
    return bool(DERIVED_WORDS & set(header.image_type))


def _described(series: Series) -> str:
    spacing = series.spacing
    what = series.unfit or ("derived" if series.derived else f"{spacing:.4g} mm" if np.isfinite(spacing) else "no spacing")
    return f"{series.name} ({counted(series.slices, 'slice')}, {what})"


def _order(number: str) -> int:
    return int(number) if number.isdigit() else 1 << 30


def studies(headers: Sequence[Header]) -> list[list[Header]]:
    """Headers by study, in the order of their first file; those without a study are grouped by folder."""
    found: dict[tuple[str, str], list[Header]] = defaultdict(list)
    for header in headers:
        found[(header.patient, header.study) if header.study else ("", str(header.path.parent))].append(header)
    return list(found.values())


def common_folder(headers: Sequence[Header]) -> Path:
    """The deepest folder that holds all files."""
    counts = Counter(parent for folder in {header.path.parent for header in headers} for parent in (folder, *folder.parents))
    everywhere = [folder for folder, count in counts.items() if count == max(counts.values())]
    return max(everywhere, key=lambda folder: len(folder.parts))
