"""All scans in a folder and the folders below it, or in a file."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ctcovid.base.errors import InputError
from ctcovid.base.faults import MachineFaultError, is_absent, is_folder, machine_fault, second_look
from ctcovid.base.files import require_there
from ctcovid.scans.absent import EMPTY, MACHINE_FAULT, MISSING, why_absent
from ctcovid.scans.contents import DICOM, PICTURES, TIFF, Contents, contents_of, natural_key, walk
from ctcovid.scans.decode import ending, volume_scan
from ctcovid.scans.dicom import NOT_DICOM, Header, is_dicom
from ctcovid.scans.findings import KEPT, WARNING, Finding
from ctcovid.scans.read import page_count, pages_scan
from ctcovid.scans.scan import Scan
from ctcovid.scans.series import common_folder, studies, study_scan
from ctcovid.scans.unreadable import Unread, near, read_headers


@dataclass(frozen=True)
class Found:
    """A scan without name and label. `study` and `patient` are DICOM's; `number` tells studies in one folder apart, 0 if there is one."""

    scan: Scan
    study: str = ""
    patient: str = ""
    number: int = 0

    @property
    def suffix(self) -> str:
        return f"#{self.number}" if self.number else ""


def found_at(path: Path, series: str | None = None) -> list[Found]:
    """Every scan at or below a folder, or in a file, in the natural order of their paths.

    Raises InputError if the path is absent, cannot be read, or is a file of another kind.
    """
    try:
        require_there(path)
    except MachineFaultError as error:
        return [Found(refused_for(_unnamed(path), path, error))]
    except InputError as error:
        # A link to what is absent is a scan that cannot be read.
        if path.is_symlink():
            return [Found(refused_for(_unnamed(path), path, error))]
        raise
    if path.is_file():
        return _in_file(path, series)
    if not is_folder(path):
        raise InputError(f"{path} is neither a folder nor a file. Check the path.")
    return found_in(((folder, contents_of(folder)) for folder in walk(path)), series)


def found_in(sources: Iterable[tuple[Path, Contents]], series: str | None) -> list[Found]:
    """Every scan in these folders. DICOM slices of one study are one scan, even if they lie in several folders."""
    found: list[Found] = []
    dicom: list[Path] = []
    for folder, contents in sources:
        if contents.unlisted or contents.unknown:
            found.append(Found(_not_there(folder, contents)))
        if contents.pictures:
            found.append(Found(_without_series(_unnamed(folder, contents.pictures), series)))
        found += [Found(_without_series(_volume(path), series)) for path in contents.volumes]
        dicom += contents.dicom
    return sorted(found + in_studies(dicom, series), key=lambda one: (natural_key(one.scan.folder.as_posix()), one.number))


def in_studies(files: Sequence[Path], series: str | None) -> list[Found]:
    """A scan of each study; studies without a picture, such as a report, count only if there is no other."""
    headers, unread = read_headers(files)
    every = studies(headers)
    pictured = [study for study in every if any(header.rows for header in study)]
    names = {study[0].study for study in pictured}
    damaged = [_around(study, unread) if len(pictured) == 1 else near(study, unread, names) for study in pictured or every]
    found = [_study(study, beside, series) for study, beside in zip(pictured or every, damaged, strict=True)]
    # Studies without a readable file.
    taken = {one.path for files in damaged for one in files}
    left = [one for one in unread if one.path not in taken]
    for folder in dict.fromkeys(one.path.parent for one in left):
        here = [one for one in left if one.path.parent == folder]
        faults = [one for one in here if one.code == MACHINE_FAULT]
        scan = _unnamed(folder)
        found.append(Found(scan.refused(MACHINE_FAULT, faults[0].reason) if faults else study_scan(scan, (), here, series)))
    folders = [one.scan.folder for one in found]
    order = {study: number for number, study in enumerate(sorted({one.study for one in found}), start=1)}
    return [replace(one, number=order[one.study]) if folders.count(one.scan.folder) > 1 else one for one in found]


def is_scan_file(path: Path) -> bool:
    """Whether a file holds a scan, by its name or its magic bytes."""
    suffix = path.suffix.lower()
    return bool(ending(path.name)) or suffix in DICOM or (suffix in TIFF and page_count(path) > 1) or is_dicom(path)


def stem(path: Path) -> str:
    """A file's name without its ending, ``.nii.gz`` included."""
    kind = ending(path.name) or path.suffix
    return path.name[: len(path.name) - len(kind)] if kind else path.name


def _in_file(path: Path, series: str | None) -> list[Found]:
    if not is_scan_file(path):
        if path.suffix.lower() in PICTURES:
            raise InputError(
                f"{path} is one picture, and a scan is a folder of them. Give that folder: slices of different scans need one each."
            )
        hint = " Of a pair of .hdr and .img, give the .hdr file." if ".img" in path.name.lower() else ""
        raise InputError(
            f"{path} is a file. Give the folder that holds the scans, or a file of DICOM, NIfTI, NRRD, MetaImage or TIFF pages.{hint}"
        )
    if ending(path.name) or path.suffix.lower() in TIFF:
        return [Found(_without_series(_volume(path), series))]
    return [replace(one, scan=replace(one.scan, folder=path)) for one in in_studies([path], series)]


def _study(headers: Sequence[Header], unread: Sequence[Unread], series: str | None) -> Found:
    scan = _unnamed(common_folder(headers))
    if faults := [one for one in unread if one.code == MACHINE_FAULT]:
        # Not even which study and series such a file belongs to is known.
        return Found(scan.refused(MACHINE_FAULT, faults[0].reason), headers[0].study, headers[0].patient)
    scan = study_scan(scan, headers, unread, series)
    used = set(scan.slices)
    if used:
        scan = replace(scan, folder=common_folder([header for header in headers if header.path in used]))
    return Found(scan, headers[0].study, headers[0].patient)


def _around(study: Sequence[Header], unread: Sequence[Unread]) -> list[Unread]:
    """Unreadable files of the only study: all except those outside its folder that are not DICOM at all."""
    folder = common_folder(study)
    return [one for one in unread if one.reason != NOT_DICOM or folder in one.path.parents]


def _volume(path: Path) -> Scan:
    """The scan in a file. A library does not say whether the file or the machine was at fault, so it is asked twice."""
    scan = _try_volume(path)
    if scan.slices or scan.findings[0].code != "unreadable":
        return scan
    if again := second_look(path):
        return refused_for(scan, path, again)
    if why := why_absent(path):
        return scan.refused(MISSING, why)
    return scan.refused(EMPTY, "the file is empty") if not path.stat().st_size else _try_volume(path)


def _try_volume(path: Path) -> Scan:
    scan = _unnamed(path)
    try:
        return volume_scan(scan, path) if ending(path.name) else pages_scan(scan, path)
    except (InputError, OSError, MemoryError) as error:
        if machine_fault(error) or is_absent(error):
            return refused_for(scan, path, error)
        return scan.refused("unreadable", str(error).removeprefix(f"{path}: "))


def refused_for(scan: Scan, path: Path, error: BaseException) -> Scan:
    """`scan` without slices, because `path` cannot be read: the machine failed, or there is nothing to read."""
    if fault := machine_fault(error):
        return scan.refused(MACHINE_FAULT, fault.told(path).rstrip("."))
    return scan.refused(MISSING, why_absent(path, error) or str(error))


def _not_there(folder: Path, contents: Contents) -> Scan:
    """What stands for a folder that cannot be listed, or for files in it that are not there and whose names tell nothing."""
    if contents.unlisted:
        return refused_for(_unnamed(folder), folder, contents.unlisted)
    path = contents.unknown[0]
    scan = _unnamed(path if len(contents.unknown) == 1 else folder)
    return refused_for(scan, path, second_look(path) or FileNotFoundError(errno.ENOENT, "not there", str(path)))


def _without_series(scan: Scan, series: str | None) -> Scan:
    """A scan that has no series to choose from, with a warning if one is asked for."""
    if series is None or not scan.slices:
        return scan
    note = Finding("series-ignored", WARNING, f"it is not DICOM, so --series {series} does not apply", KEPT)
    return replace(scan, findings=(*scan.findings, note))


def _unnamed(folder: Path, slices: tuple[Path, ...] = ()) -> Scan:
    return Scan("", "", "", folder, slices, "")
