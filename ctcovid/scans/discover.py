"""Find scans: the CC-CCII layout CLASS/patient/scan/slices, any tree of folders and files that hold scans, or a manifest of them."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

from ctcovid.base.errors import InputError, counted, listing
from ctcovid.base.faults import is_folder, second_look
from ctcovid.base.files import printable, require_there, resolved
from ctcovid.scans.absent import why_absent
from ctcovid.scans.contents import Contents, contents_of, folders, listed, natural_key, walk
from ctcovid.scans.findings import KEPT, WARNING, Finding
from ctcovid.scans.found import Found, found_at, found_in, refused_for, stem
from ctcovid.scans.manifest import is_manifest, manifest_scans
from ctcovid.scans.naming import with_unique_names
from ctcovid.scans.privacy import Pseudonyms
from ctcovid.scans.scan import Scan

# Folder of lesion masks beside the class folders of a synthetic data set; not a class.
TRUTH = "truth"
LAYOUT = "CLASS/patient/scan/slices, as in NCP/16/1164/0000.png"
LAYOUT_BELOW = "a folder patient/scan, as in 16/1164/0000.png"
# Names of parts, which stand above the class folders in some data sets.
PARTS = {"train": "train", "training": "train", "valid": "valid", "validation": "valid", "val": "valid", "test": "test", "testing": "test"}
BY_LIST = "list the scans in a CSV, with a line like {example} under the headings path,label,patient,split, and give that file"
KINDS = "PNG, JPEG, TIFF or BMP slices, DICOM, NIfTI, NRRD or MetaImage"
AS_THEY_ARE = Pseudonyms(None)


def find_dataset(root: Path, series: str | None = None, pseudonyms: Pseudonyms = AS_THEY_ARE) -> tuple[list[Scan], list[str]]:
    """All scans of a data set in the CC-CCII layout, by class, patient and scan, and a sentence for each problem on the way.

    A scan is a folder of slices, a file that holds all of them, or one series of a DICOM study: `series`, or the one that fits best.
    The files of a study may lie in several folders of a patient. Patients and scans have the names of their folders or files; where
    only DICOM names them, `pseudonyms` replace its names.

    Raises InputError if there is no such folder, nothing in it has the layout, or its folders are parts and not classes.
    """
    _require_folder(root)
    _require_classes(root)
    scans: list[Scan] = []
    problems: list[str] = []
    problems += _absent(listed(root))
    for class_folder in (folder for folder in folders(root) if folder.name != TRUTH):
        before = len(scans)
        earlier = len(problems)
        direct = listed(class_folder)
        scans += [_patient_not_there(path, root) for path in direct.unknown]
        loose = [] if direct.pictures else found_in([(class_folder, replace(direct, unknown=()))], series)
        for found in loose:
            if not is_folder(found.scan.folder):
                patient = stem(found.scan.folder)
            else:
                found, patient = _with_patient(found), pseudonyms(found.patient or found.study or str(found.scan.folder.relative_to(root)))
            scans.append(_named(found, root, class_folder.name, patient, pseudonyms))
        for patient_folder in folders(class_folder):
            try:
                direct, scan_folders = listed(patient_folder), folders(patient_folder)
            except InputError as error:
                scans.append(_patient_not_there(patient_folder, root, error))
                continue
            if direct.pictures:
                problems.append(f"{patient_folder}: slices are directly in the patient's folder; move them into a folder per scan")
            absent = _absent(direct)
            problems += absent
            sources = [] if direct.pictures else [(patient_folder, replace(direct, unknown=()))]
            if not scan_folders and not direct and not absent:
                problems.append(f"{patient_folder}: no scans; add folders of slices or remove it")
            for scan_folder in scan_folders:
                inside = _of_scan(scan_folder)
                if not inside:
                    problems.append(f"{scan_folder}: no slices; add {KINDS}, or remove it")
                sources += inside
            scans += _of_patient(_certain(found_in(sources, series), sources), root, patient_folder, pseudonyms)
        if len(scans) == before and not any(contents_of(folder) or folders(folder) for folder in folders(class_folder)):
            del problems[earlier:]
            problems.append(
                _loose_pictures(class_folder)
                or f"{class_folder}: not a class folder, as nothing in it has the layout patient/scan/slices; move it elsewhere"
            )
    if not scans:
        found_there = "It is empty." if not _visible(root) else _explain_layout(root)
        raise InputError(f"No scans under {root}. {found_there} The layout is {LAYOUT}; give the folder that holds the class folders.")
    problems += [said for folder in folders(root) if (said := _loose_pictures(folder)) and said not in problems]
    return with_unique_names(scans, lambda scan: (scan.label, scan.patient, scan.id)), problems


def find_scans(paths: Iterable[Path], series: str | None = None) -> list[Scan]:
    """Every scan at or below each of `paths`: folders of slices, files that hold a scan, DICOM studies, or manifests of such.

    A scan's id is its path below the one given, or that one's own name. If several paths were given, it is the path as a user would type
    it; in a manifest, the id given there. Ids are unique, and a file's id has no ending unless that is needed to tell it apart. Of each
    DICOM study one series is used: `series`, or the one that fits best.

    Raises InputError if there is no such path, or no scan at all.
    """
    given = list(paths)
    scans: dict[tuple[Path, str], Scan] = {}
    for path in given:
        if is_manifest(path):
            for scan in manifest_scans(path, series, labelled=False):
                scans.setdefault((_place(scan.folder), scan.id), scan)
            continue
        below = _found_below(path, series)
        for found in below:
            scan = _below(found, path, len(below) == 1)
            if len(given) > 1:
                scan = replace(
                    scan, id=(scan.folder.with_name(stem(scan.folder)) if not is_folder(scan.folder) else scan.folder).as_posix()
                )
                scan = replace(scan, id=scan.id + found.suffix)
            scans.setdefault((_place(found.scan.folder), found.suffix), scan)
    return with_unique_names([replace(scan, id=printable(scan.id)) for scan in scans.values()], lambda scan: scan.id)


def _place(path: Path) -> Path:
    """What tells the places of scans apart. Files that link to one file, as equal ones do under git-annex, are several scans."""
    return resolved(path) if is_folder(path) else resolved(path.parent) / path.name


def with_patients(scans: Iterable[Scan], classes: Collection[str]) -> list[Scan]:
    """Scans with the patients that their paths name, as in `find_dataset`, where these are CLASS/patient/scan.

    A patient that a list gives stays. None is named where no folder above a scan, or more than one, has the name of one of `classes`.
    """
    return [scan if scan.patient else replace(scan, patient=_patient_in(scan, classes)) for scan in scans]


def _patient_in(scan: Scan, classes: Collection[str]) -> str:
    # Not resolved: links may lead into an archive with names of its own.
    parts = Path(os.path.abspath(scan.folder)).parts  # noqa: PTH100
    places = [place for place, name in enumerate(parts[:-1]) if name in classes]
    if len(places) != 1:
        return ""
    below = parts[places[0] + 1 :]
    if len(below) == 1:
        # A folder of pictures directly in a class folder may be a patient or a scan.
        name = "" if scan.stack is None else stem(scan.folder) if scan.folder.is_file() else below[0]
        return printable(name)
    return printable(below[0])


def _of_patient(found: list[Found], root: Path, patient_folder: Path, pseudonyms: Pseudonyms) -> list[Scan]:
    """A patient's scans. Each has the name of its folder; if that holds several, the rest of its path follows."""
    firsts = [one.scan.folder.relative_to(patient_folder).parts[:1] for one in found]
    scans = []
    for one, first in zip(found, firsts, strict=True):
        scan = _named(one, root, patient_folder.parent.name, patient_folder.name, pseudonyms)
        alone = first and firsts.count(first) == 1 and (patient_folder / first[0]).is_dir()
        scans.append(replace(scan, id=printable(first[0])) if alone else scan)
    return scans


def _certain(found: list[Found], sources: list[tuple[Path, Contents]]) -> list[Found]:
    """The scans of a patient; if a folder cannot be listed, without those that may have files in it: DICOM, of any folder."""
    failed = next((refused_for(found[0].scan, folder, inside.unlisted) for folder, inside in sources if inside.unlisted), None)
    if failed is None:
        return found
    return [replace(one, scan=one.scan.refused(failed.findings[0].code, failed.findings[0].message)) if one.study else one for one in found]


def _patient_not_there(path: Path, root: Path, error: InputError | None = None) -> Scan:
    """What stands for the scans of a patient whose folder is a link to nothing, or cannot be listed for `error`."""
    scan = Scan(path.name, path.name, path.parent.name, path, (), path.relative_to(root).as_posix())
    return refused_for(scan, path, error or second_look(path) or FileNotFoundError(errno.ENOENT, "not there", str(path)))


def _absent(contents: Contents) -> list[str]:
    """A sentence for each link to an absent file or folder, whose name does not say what it is."""
    return [f"{path}: {why_absent(path) or 'cannot be read; run the same command again'}" for path in contents.unknown]


def _with_patient(found: Found) -> Found:
    """A study, with a warning if it names no patient."""
    if found.patient:
        return found
    text = "its files name no patient; the study counts as a patient, whose other scans may be in another part of the split"
    note = Finding("no-patient", WARNING, text, KEPT)
    return replace(found, scan=replace(found.scan, findings=(*found.scan.findings, note)))


def _named(found: Found, root: Path, label: str, patient: str, pseudonyms: Pseudonyms) -> Scan:
    """A scan with the names that its folder gives it in the layout."""
    folder = found.scan.folder
    source = folder.relative_to(root)
    # Numbers of studies would shift as soon as a study is added.
    suffix = f"-{pseudonyms(found.study)}" if found.number else ""
    if not is_folder(folder):
        name = "/".join((*source.parts[2:-1], stem(folder)))
    elif len(source.parts) > 2:
        name = "/".join(source.parts[2:]) + suffix
    else:
        name = pseudonyms(found.study or source.as_posix())
    # As they are written into files, which have to be valid UTF-8.
    name, patient, label, path = map(printable, (name, patient, label, source.as_posix() + suffix))
    return replace(found.scan, id=name, patient=patient, label=label, source=path)


def _below(found: Found, path: Path, alone: bool) -> Scan:
    """A scan named after its path below `path`, or after `path` itself if it is `alone` there and not a folder of pictures."""
    folder = found.scan.folder
    if folder == path or (alone and found.scan.stack is not None):
        source, name = folder.relative_to(path).as_posix(), path.resolve().name if is_folder(path) else stem(path)
    else:
        source = folder.relative_to(path).as_posix()
        name = folder.relative_to(path).with_name(stem(folder)).as_posix() if not is_folder(folder) else source
    return replace(found.scan, id=name + found.suffix, source=source + found.suffix)


def _found_below(path: Path, series: str | None) -> list[Found]:
    found = found_at(path, series)
    if not found:
        raise InputError(f"No slices under {path}. Give a folder with {KINDS}, a tree of such folders, or such a file.")
    return sorted(found, key=lambda one: (natural_key(one.scan.folder.relative_to(path).as_posix()), one.number))


def _of_scan(folder: Path) -> list[tuple[Path, Contents]]:
    """What a scan's folder holds: pictures directly in it, all other files also in folders below."""
    direct = contents_of(folder)
    if direct.pictures or direct.unlisted:
        return [(folder, direct)]
    below = ((inner, contents_of(inner)) for inner in walk(folder))
    return [(inner, inside) for inner, inside in below if replace(inside, pictures=())]


def _require_folder(path: Path) -> None:
    require_there(path)
    if not path.is_dir():
        raise InputError(f"{path} is a file. Give the folder that holds the scans, or a manifest of them, whose name ends in .csv.")


def _require_classes(root: Path) -> None:
    """Raises InputError if class folders lie in folders of parts, whose names would become those of classes."""
    parts = [folder for folder in folders(root) if folder.name.lower() in PARTS and any(map(contents_of, walk(folder)))]
    if parts:
        example = f"{parts[0].name}/NCP/16/1164,NCP,16,{PARTS[parts[0].name.lower()]}"
        names = ", ".join(folder.name for folder in parts)
        raise InputError(
            f"{root}: {names}: names of parts, not of classes. To keep these parts, {BY_LIST.format(example=example)}. "
            f"To split again, give a folder that holds the class folders. The layout is {LAYOUT}."
        )


def _loose_pictures(class_folder: Path) -> str:
    """A sentence if pictures lie directly in a class folder, where nothing tells which scans and patients they are of."""
    count = len(contents_of(class_folder).pictures)
    if not count:
        return ""
    return f"{class_folder}: {counted(count, 'picture')} directly in the class folder; move the slices of each scan into {LAYOUT_BELOW}"


def _visible(root: Path) -> list[str]:
    """Names in a folder, without those of hidden files, such as the lock of an output that is to be in it."""
    return sorted(item.name for item in root.iterdir() if not item.name.startswith("."))


def _explain_layout(root: Path) -> str:
    if not contents_of(root) and (loose := [said for folder in folders(root) if (said := _loose_pictures(folder))]):
        return f"Its folders are scans of one patient, or else slices lie outside of scans:\n{listing(loose, 5)}\n"
    if contents_of(root):
        return "It holds slices directly, as the folder of a single scan does."
    for depth, meaning in (("*", "scans"), ("*/*", "patients")):
        if any(contents_of(folder) for folder in root.glob(depth) if folder.is_dir()):
            return f"Its folders are {meaning}; the class folders must be above them."
    return f"Class folders are missing; there is\n{listing(_visible(root), 5)}\n"
