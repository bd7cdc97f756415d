"""Find scans: the CC-CCII layout CLASS/patient/scan/slices, any tree of folders and files that hold scans, or a manifest of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ctcovid.base.errors import InputError, listing
from ctcovid.base.files import printable, require_there
from ctcovid.scans.contents import Contents, folders, look_into, natural_key, walk
from ctcovid.scans.findings import KEPT, WARNING, Finding
from ctcovid.scans.manifest import is_manifest, manifest_scans
from ctcovid.scans.naming import told_apart
from ctcovid.scans.places import Found, found_at, found_in, stem
from ctcovid.scans.privacy import Pseudonyms
from ctcovid.scans.scan import Scan

# Lesion masks beside the class folders of a synthetic data set, no class of their own.
TRUTH = "truth"
LAYOUT = "CLASS/patient/scan/slices, as in NCP/16/1164/0000.png"
KINDS = "PNG, JPEG, TIFF or BMP slices, DICOM, NIfTI, NRRD or MetaImage"
AS_THEY_ARE = Pseudonyms(None)


def find_dataset(root: Path, series: str | None = None, pseudonyms: Pseudonyms = AS_THEY_ARE) -> tuple[list[Scan], list[str]]:
    """All scans of a data set in the CC-CCII layout, by class, patient and scan, and what looked wrong on the way.

    A scan is a folder of slices, a file that holds all of them, or the series of a DICOM study, in whichever folders of a patient these
    lie, that serves best or is `series`. Patients and scans bear the names of their folders or files; where only DICOM names them,
    `pseudonyms` stand for its names.

    Raises InputError where there is no such folder, or nothing in it has the layout.
    """
    _require_folder(root)
    scans: list[Scan] = []
    problems: list[str] = []
    for class_folder in (folder for folder in folders(root) if folder.name != TRUTH):
        before = len(scans)
        earlier = len(problems)
        loose = [] if look_into(class_folder).pictures else found_in([(class_folder, look_into(class_folder))], series)
        for found in loose:
            if found.scan.folder.is_file():
                patient = stem(found.scan.folder)
            else:
                found, patient = _with_patient(found), pseudonyms(found.patient or found.study or str(found.scan.folder.relative_to(root)))
            scans.append(_named(found, root, class_folder.name, patient, pseudonyms))
        for patient_folder in folders(class_folder):
            direct = look_into(patient_folder)
            if direct.pictures:
                problems.append(f"{patient_folder}: slices lie in the patient's folder; move them into a folder of their scan")
            places = [] if direct.pictures else [(patient_folder, direct)]
            scan_folders = folders(patient_folder)
            if not scan_folders and not direct:
                problems.append(f"{patient_folder}: no scan in it; put its folders of slices there or remove it")
            for scan_folder in scan_folders:
                inside = _of_scan(scan_folder)
                if not inside:
                    problems.append(f"{scan_folder}: no slices in it; put {KINDS} there or remove it")
                places += inside
            scans += _of_patient(found_in(places, series), root, patient_folder, pseudonyms)
        if len(scans) == before and not any(folders(folder) or look_into(folder) for folder in folders(class_folder)):
            del problems[earlier:]
            problems.append(f"{class_folder}: not a class folder, nothing in it lies as patient/scan/slices; move it elsewhere")
    if not scans:
        found_there = "It is empty." if not any(root.iterdir()) else _explain_layout(root)
        raise InputError(f"No scans under {root}. {found_there} The layout is {LAYOUT}; give the folder that holds the class folders.")
    return told_apart(scans, lambda scan: (scan.label, scan.patient, scan.id)), problems


def find_scans(paths: Iterable[Path], series: str | None = None) -> list[Scan]:
    """Every scan at or below each of `paths`: folders of slices, files that hold a scan, DICOM studies, or manifests of such.

    A scan's id is its path below the one given, or that one's own name; where several were given, the path as a user would type it; in a
    manifest, what that says. A file's id has no ending, unless another scan would have the same id: no two have. Of each DICOM study,
    the series that serves best is taken, or `series`.

    Raises InputError where there is no such path, or there is no scan at all.
    """
    given = list(paths)
    scans: dict[tuple[Path, str], Scan] = {}
    for path in given:
        if is_manifest(path):
            for scan in manifest_scans(path, series, labelled=False):
                scans.setdefault((scan.folder.resolve(), scan.id), scan)
            continue
        below = _found_below(path, series)
        for found in below:
            scan = _below(found, path, len(below) == 1)
            if len(given) > 1:
                scan = replace(scan, id=(scan.folder.with_name(stem(scan.folder)) if scan.folder.is_file() else scan.folder).as_posix())
                scan = replace(scan, id=scan.id + found.suffix)
            scans.setdefault((found.scan.folder.resolve(), found.suffix), scan)
    return told_apart([replace(scan, id=printable(scan.id)) for scan in scans.values()], lambda scan: scan.id)


def _of_patient(found: list[Found], root: Path, patient_folder: Path, pseudonyms: Pseudonyms) -> list[Scan]:
    """A patient's scans. Each bears the name of its folder; where this holds several, also that of its place there."""
    firsts = [one.scan.folder.relative_to(patient_folder).parts[:1] for one in found]
    scans = []
    for one, first in zip(found, firsts, strict=True):
        scan = _named(one, root, patient_folder.parent.name, patient_folder.name, pseudonyms)
        alone = first and firsts.count(first) == 1 and (patient_folder / first[0]).is_dir()
        scans.append(replace(scan, id=first[0]) if alone else scan)
    return scans


def _with_patient(found: Found) -> Found:
    """A study with a warning where it names no patient."""
    if found.patient:
        return found
    text = "its files name no patient; the study is taken for one, which may part scans of a patient between train and test"
    note = Finding("no-patient", WARNING, text, KEPT)
    return replace(found, scan=replace(found.scan, findings=(*found.scan.findings, note)))


def _named(found: Found, root: Path, label: str, patient: str, pseudonyms: Pseudonyms) -> Scan:
    """A scan with the names that its place in the layout gives it."""
    place = found.scan.folder
    source = place.relative_to(root)
    # A number would be another's as soon as there is one study more.
    suffix = f"-{pseudonyms(found.study)}" if found.number else ""
    if place.is_file():
        name = "/".join((*source.parts[2:-1], stem(place)))
    elif len(source.parts) > 2:
        name = "/".join(source.parts[2:]) + suffix
    else:
        name = pseudonyms(found.study or source.as_posix())
    return replace(found.scan, id=name, patient=patient, label=label, source=source.as_posix() + suffix)


def _below(found: Found, path: Path, alone: bool) -> Scan:
    """A scan that is named after its place below `path`; where it is `alone` there and more than pictures, after `path` itself."""
    place = found.scan.folder
    if place == path or (alone and found.scan.stack is not None):
        source, name = place.relative_to(path).as_posix(), stem(path.resolve()) if path.is_file() else path.resolve().name
    else:
        source = place.relative_to(path).as_posix()
        name = place.relative_to(path).with_name(stem(place)).as_posix() if place.is_file() else source
    return replace(found.scan, id=name + found.suffix, source=source + found.suffix)


def _found_below(path: Path, series: str | None) -> list[Found]:
    found = found_at(path, series)
    if not found:
        raise InputError(f"No slices under {path}. Give a folder with {KINDS}, a tree of such folders, or such a file.")
    return sorted(found, key=lambda one: (natural_key(one.scan.folder.relative_to(path).as_posix()), one.number))


def _of_scan(folder: Path) -> list[tuple[Path, Contents]]:
    """What a scan's folder holds: pictures directly, all else also in folders below."""
    direct = look_into(folder)
    if direct.pictures:
        return [(folder, direct)]
    below = ((place, look_into(place)) for place in walk(folder))
    return [(place, inside) for place, inside in below if inside.volumes or inside.dicom]


def _require_folder(path: Path) -> None:
    require_there(path)
    if not path.is_dir():
        raise InputError(f"{path} is a file. Give the folder that holds the scans, or a manifest of them, whose name ends in .csv.")


def _explain_layout(root: Path) -> str:
    if look_into(root):
        return "It holds slices itself, as the folder of a single scan does."
    for depth, meaning in (("*", "scans"), ("*/*", "patients")):
        if any(look_into(folder) for folder in root.glob(depth) if folder.is_dir()):
            return f"Its folders are {meaning}, so the class folders are missing above it."
    return f"Class folders are missing; there is\n{listing([item.name for item in sorted(root.iterdir())], 5)}\n"
