"""From the DICOM files of a study to one scan: which series, and which stack of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ctcovid.base.errors import counted
from ctcovid.scans.codes import unit_in_words
from ctcovid.scans.dicom import NOT_DICOM, SECONDARY_CAPTURE, Header
from ctcovid.scans.findings import INFO, KEPT, SLICE_DROPPED, WARNING, Finding
from ctcovid.scans.frames import Plane
from ctcovid.scans.geometry import MOST_OBLIQUE
from ctcovid.scans.joined_series import direction_number, joined, missing_parts, with_joined_studies
from ctcovid.scans.order import ordered
from ctcovid.scans.quality import can_lose
from ctcovid.scans.scan import Scan
from ctcovid.scans.stacks import FEWEST, Chosen, Slice, along, choose, usual
from ctcovid.scans.unreadable import Unread, code_of, file_findings, missing_slices, of_series, places_of, reasons, slice_findings

SCOUT_WORDS = {"LOCALIZER", "SCOUT", "TOPOGRAM"}
REFORMAT_WORDS = {"MIP", "MINIP", "MPR", "VRT", "PROJECTION IMAGE", "CSA MPR", "REFORMATTED", "AVERAGE", "MAX_IP", "MIN_IP"}
# A series that covers less than this share of the longest one is a detail or a test, however thin.
LEAST_COVER = 0.25
NO_PICTURE = "no picture"


@dataclass(frozen=True)
class Series:
    """Slices of one series that are alike. `unfit` says why it is not axial CT, `unit` what its values are if not Hounsfield units.

    `number` is its SeriesNumber, or its rank among the others, as ``#2``, if it has none: a UID could lead back to the patient.
    `lone` is whether each of its files has a series of its own. `chosen` is set once the stack to use has been chosen.
    """

    number: str
    description: str
    slices: tuple[Slice, ...]
    unfit: str
    unit: str
    lone: bool = False
    chosen: Chosen | None = None

    @property
    def used(self) -> tuple[Slice, ...]:
        return self.chosen.slices if self.chosen else self.slices

    @property
    def headers(self) -> tuple[Header, ...]:
        """Each file of the slices that are used, once."""
        return tuple({id(one.header): one.header for one in self.used}.values())

    @property
    def uids(self) -> set[str]:
        return {one.header.series for one in self.slices}

    @property
    def derived(self) -> bool:
        """Whether it was computed from another series."""
        return all(one.derived or REFORMAT_WORDS & set(one.frame.image_type) for one in self.used)

    @property
    def name(self) -> str:
        return f"series {self.number}"

    @property
    def places(self) -> np.ndarray:
        """Of the slices that are used, in mm; empty if unknown."""
        places, measured = along(self.used)
        return places if measured else np.empty(0)

    @property
    def spacing(self) -> float:
        """The usual distance of two slices in mm; infinite if there are no two positions."""
        return usual(self.places)

    @property
    def cover(self) -> float:
        """From the first to the last slice in mm."""
        return float(np.ptp(self.places)) if len(self.places) else 0.0


def study_scan(scan: Scan, headers: Sequence[Header], unread: Sequence[Unread], wanted: str | None) -> Scan:
    """`scan` with the slices of the best series, or of the `wanted` one; without slices if none can be used.

    The best is the axial one in Hounsfield units with the thinnest spacing, of several such the one with most slices; a series computed
    from another is used only if there is no other. `unread` are files that cannot be read; if too many belong to the series, the study is
    not used.
    """
    everything = group(headers)
    if not everything and unread and all(one.reason == NOT_DICOM for one in unread):
        count = counted(len(unread), "file")
        return scan.refused("not-dicom", f"{count} named as DICOM, but not DICOM")
    if not everything:
        text = f"no readable DICOM slices: {reasons(unread)}" if unread else "no DICOM slices"
        return scan.refused(code_of(unread, "unreadable"), text)
    fitting = everything if wanted is None else [series for series in everything if matches(series, wanted)]
    if not fitting:
        return scan.refused("no-such-series", f"no series {wanted} in the study; it has {'; '.join(map(_described, everything))}")
    candidates = [replace(series, chosen=choose(series.slices)) for series in fitting if not series.unfit and not series.unit]
    if not candidates:
        return _none_fits(scan, fitting)
    chosen = best(candidates)
    missing, beside = of_series(chosen.headers, unread, chosen.chosen.marks if chosen.chosen else (), chosen.lone)
    files = [one.header.path for one in chosen.used]
    places = places_of(missing, files, along(chosen.used)[0], chosen.spacing) if missing else ()
    if not can_lose((), places, len(files)):
        return scan.refused(code_of(missing, "unreadable-slice"), missing_slices(missing, len(files)))
    if problem := _problem(chosen, candidates, headers):
        return scan.refused(code_of(missing, "inconsistent-stack"), problem + (f"; {reasons(missing)}" if missing else ""))
    others = [series for series in everything if series.slices != chosen.slices]
    notes = slice_findings(missing, len(chosen.used)) + file_findings(beside) + _choices(chosen, others)
    return replace(ordered(scan, chosen.used, notes), unread=places)


def _none_fits(scan: Scan, fitting: Sequence[Series]) -> Scan:
    """The refusal of a study without axial CT in Hounsfield units."""
    other = [series for series in fitting if series.unit and not series.unfit]
    if not other:
        return scan.refused("no-axial-series", f"no axial CT series; there is {'; '.join(map(_described, fitting))}")
    units = " and ".join(dict.fromkeys(f"{series.name} is in {unit_in_words(series.unit)}" for series in other))
    return scan.refused("not-hounsfield", f"{units}, not in Hounsfield units; give the CT that it was computed from")


def _problem(series: Series, candidates: Sequence[Series], headers: Sequence[Header]) -> str:
    """Why the chosen series is not one scan; empty if it is."""
    assert series.chosen is not None
    if series.chosen.problem:
        return f"{series.name}: {series.chosen.problem}"
    if missing := missing_parts([header for header in headers if header.series in series.uids]):
        return f"{series.name}: {missing}"
    passed_over = [one for one in candidates if one.chosen and one.chosen.problem and len(one.slices) > 2 * len(series.used)]
    if passed_over:
        return f"{passed_over[0].name}, the longest: {passed_over[0].chosen.problem if passed_over[0].chosen else ''}"
    alone = sum(len(one.slices) == 1 for one in candidates)
    if len(series.slices) == 1 and alone >= FEWEST:
        return f"each of its {alone:,} files has a series UID of its own, and their positions do not continue each other"
    return ""


def _choices(chosen: Series, others: Sequence[Series]) -> list[Finding]:
    """Findings about what is used, and what is not."""
    assert chosen.chosen is not None
    notes = []
    if chosen.lone or len({header.study for header in chosen.headers}) > 1:
        what = "study" if len({header.study for header in chosen.headers}) > 1 else "series"
        text = f"each of its {len(chosen.headers):,} files has a {what} UID of its own; joined, as their positions continue each other"
        notes.append(Finding("joined-series", WARNING, text, KEPT))
    beside = [series for series in others if series.uids & chosen.uids and series.unfit != NO_PICTURE]
    if chosen.chosen.said or beside:
        text = f"{chosen.name} is not one stack: {chosen.chosen.said or 'used ' + _counted(chosen)}"
        text += f"; not used: {', '.join(map(_counted, beside))}" if beside else ""
        notes.append(Finding("several-acquisitions", WARNING, text, SLICE_DROPPED))
    if chosen.chosen.copies:
        text = f"{counted(chosen.chosen.copies, 'slice')} there twice; one copy of each is kept"
        notes.append(Finding("duplicate-position", WARNING, text, SLICE_DROPPED))
    if unused := [series for series in others if not series.uids & chosen.uids]:
        text = f"used {_described(chosen)}; not used: {', '.join(map(_described, unused))}"
        notes.append(Finding("several-series", INFO, text, KEPT))
    if chosen.derived:
        notes.append(Finding("derived-series", WARNING, f"{chosen.name} was computed from another series, which is absent", KEPT))
    elif computed := sum(one.derived for one in chosen.used):
        text = f"{computed:,} of its {counted(len(chosen.used), 'slice')} {'is' if computed == 1 else 'are'} marked as computed from others"
        notes.append(Finding("derived-series", WARNING, text, KEPT))
    return notes


def best(candidates: Sequence[Series]) -> Series:
    """The best series, see `study_scan`."""
    sound = [series for series in candidates if not (series.chosen and series.chosen.problem)] or list(candidates)
    original = [series for series in sound if not series.derived] or sound
    long = [series for series in original if series.cover >= LEAST_COVER * max(one.cover for one in original)]
    own = [series for series in long if not series.lone] or long
    thinnest = min(series.spacing for series in own)
    thin = [series for series in own if series.spacing <= 1.05 * thinnest]
    return max(thin, key=lambda series: (len(series.used), -_order(series.number)))


def group(headers: Sequence[Header]) -> list[Series]:
    """Series of slices that are alike: of one UID, size, direction and kind. Lone slices that continue each other are one series."""
    alike: dict[tuple[object, ...], list[Slice]] = defaultdict(list)
    directions: dict[str, list[Plane]] = defaultdict(list)
    slices = [Slice(header, number) for header in headers for number in range(header.frames if header.rows else 1)]
    for one in slices:
        header, plane = one.header, one.frame.plane
        direction = direction_number(plane, directions[header.series]) if plane else -1
        kind = _unfit(one), one.frame.unit, bool(REFORMAT_WORDS & set(one.frame.image_type)), header.enhanced
        alike[(header.series, *kind, header.rows, header.columns, direction)].append(one)
    found = [_series(members, str(unfit), str(unit)) for (_, unfit, unit, *_), members in alike.items()]
    counts = Counter(one.header.series for one in slices)
    lone = [one for one in found if counts[one.slices[0].header.series] == 1 and not one.unfit and not one.unit]
    for stack in joined([one.slices[0] for one in lone]):
        taken = set(map(id, stack))
        found = [series for series in found if id(series.slices[0]) not in taken]
        found.append(replace(_series(stack, "", ""), lone=True))
    found.sort(key=lambda series: (_order(series.number), min(series.uids), -len(series.slices)))
    return [series if series.number else replace(series, number=f"#{rank}") for rank, series in enumerate(found, start=1)]


def _series(slices: Sequence[Slice], unfit: str, unit: str) -> Series:
    first = slices[0].header
    return Series(first.number, first.description, tuple(slices), unfit, unit)


def matches(series: Series, wanted: str) -> bool:
    """Whether `wanted` is the UID, number or description of a series."""
    text = wanted.strip().casefold()
    return text in (series.number.casefold(), series.description.casefold(), *(uid.casefold() for uid in series.uids))


def _unfit(one: Slice) -> str:
    """Why a picture is not a slice of axial CT; empty if it is one."""
    header, plane = one.header, one.frame.plane
    if not header.rows or not header.columns:
        return NO_PICTURE
    if header.modality not in ("CT", ""):
        return f"modality {header.modality}"
    if SCOUT_WORDS & set(one.frame.image_type):
        return "scout"
    if header.sop_class.startswith(SECONDARY_CAPTURE):
        return "secondary capture"
    if header.samples != 1 or not header.monochrome:
        return "colour"
    return _direction(plane) if plane else ""


def _direction(plane: Plane) -> str:
    normal = np.abs(plane.normal)
    if normal[2] < np.cos(np.radians(MOST_OBLIQUE)):
        return "oblique" if normal.max() < np.cos(np.radians(MOST_OBLIQUE)) else ("sagittal", "coronal")[int(normal[:2].argmax())]
    return "oblique" if np.abs(plane.orientation[:3]).max() < np.cos(np.radians(MOST_OBLIQUE)) else ""


def _described(series: Series) -> str:
    return f"{series.name} ({_counted(series)})"


def _counted(series: Series) -> str:
    spacing = series.spacing
    usable = "derived" if series.derived else f"{spacing:.4g} mm" if np.isfinite(spacing) else "no spacing"
    what = series.unfit or (f"in {unit_in_words(series.unit)}" if series.unit else usable)
    return f"{counted(len(series.used), 'slice')}, {what}"


def _order(number: str) -> int:
    return int(number) if number.isdigit() else 1 << 30


def studies(headers: Sequence[Header]) -> list[list[Header]]:
    """Headers by study, in the order of their first file; those without a study are grouped by folder.

    Studies of one slice that continue each other are one study.
    """
    found: dict[tuple[str, str], list[Header]] = defaultdict(list)
    for header in headers:
        found[(header.patient, header.study) if header.study else ("", str(header.path.parent))].append(header)
    return with_joined_studies(list(found.values()))


def common_folder(headers: Sequence[Header]) -> Path:
    """The deepest folder that holds all files."""
    counts = Counter(parent for folder in {header.path.parent for header in headers} for parent in (folder, *folder.parents))
    everywhere = [folder for folder, count in counts.items() if count == max(counts.values())]
    return max(everywhere, key=lambda folder: len(folder.parts))
