"""Find scans on disk: the CC-CCII layout CLASS/patient/scan/slices, or any tree of folders that hold slices."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ctcovid.base.errors import InputError, did_you_mean, listing

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})
# The archive's own names, in the paper's order of tables and figures.
CLASS_ORDER = ("NCP", "CP", "Normal")
# Lesion masks beside the class folders of a synthetic data set, no class of their own.
TRUTH = "truth"
LAYOUT = "CLASS/patient/scan/slices, as in NCP/16/1164/0000.png"


@dataclass(frozen=True)
class Scan:
    """One CT scan as a folder of slices.

    `slices` lie in the natural order of their names, which in CC-CCII is head to feet. `label` and `patient` are empty for a
    scan found by `find_scans`.
    """

    id: str
    patient: str
    label: str
    folder: Path
    slices: tuple[Path, ...]
    source: str


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sort key that puts ``slice 2`` before ``slice 10``, and does not care about capitals."""
    parts = re.split(r"(\d+)", name.casefold())
    return [int(part) if position % 2 else part for position, part in enumerate(parts)], name


def find_dataset(root: Path) -> tuple[list[Scan], list[str]]:
    """All scans of a data set in the CC-CCII layout, by class, patient and scan, and what looked wrong on the way.

    Raises InputError where there is no such folder, or nothing in it has the layout.
    """
    _require_folder(root)
    scans: list[Scan] = []
    problems: list[str] = []
    for class_folder in (folder for folder in _folders(root) if folder.name != TRUTH):
        before = len(scans)
        earlier = len(problems)
        for patient_folder in _folders(class_folder):
            if _slices(patient_folder):
                problems.append(f"{patient_folder}: slices lie in the patient's folder; move them into a folder of their scan")
            scan_folders = _folders(patient_folder)
            if not scan_folders and not _slices(patient_folder):
                problems.append(f"{patient_folder}: no scan in it; put its folders of slices there or remove it")
            for scan_folder in scan_folders:
                source = scan_folder.relative_to(root).as_posix()
                if slices := _slices(scan_folder):
                    scans.append(Scan(scan_folder.name, patient_folder.name, class_folder.name, scan_folder, slices, source))
                else:
                    problems.append(f"{scan_folder}: no slices in it; put PNG, JPEG, TIFF or BMP files there or remove it")
        if len(scans) == before and not any(_folders(folder) or _slices(folder) for folder in _folders(class_folder)):
            del problems[earlier:]
            problems.append(f"{class_folder}: not a class folder, nothing in it lies as patient/scan/slices; move it elsewhere")
    if not scans:
        found = "It is empty." if not any(root.iterdir()) else _explain_layout(root)
        raise InputError(f"No scans under {root}. {found} The layout is {LAYOUT}; give the folder that holds the class folders.")
    return scans, problems


def find_scans(paths: Iterable[Path]) -> list[Scan]:
    """Every folder with slices at or below each of `paths`.

    A scan's id is its path below the one given, or that one's own name; where several were given, the path as a user would type it.

    Raises InputError where there is no such folder, or one holds no slices at all.
    """
    given = list(paths)
    scans: dict[Path, Scan] = {}
    for path in given:
        for scan in _scans_below(path):
            scans.setdefault(scan.folder.resolve(), replace(scan, id=scan.folder.as_posix()) if len(given) > 1 else scan)
    return list(scans.values())


def _scans_below(path: Path) -> list[Scan]:
    _require_folder(path)
    scans = []
    for folder, names, _ in os.walk(path, followlinks=True, onerror=_unreadable):
        names[:] = [name for name in names if _visible(name)]
        if slices := _slices(Path(folder)):
            source = Path(folder).relative_to(path).as_posix()
            name = path.resolve().name if source == "." else source
            scans.append(Scan(name, "", "", Path(folder), slices, source))
    if not scans:
        raise InputError(f"No slices under {path}. Give a folder with PNG, JPEG, TIFF or BMP slices, or a tree of such folders.")
    return sorted(scans, key=lambda scan: natural_key(scan.source))


def class_order(names: Iterable[str]) -> list[str]:
    """Class names: NCP, CP and Normal first where they are present, others after them by name."""
    present = set(names)
    known = [name for name in CLASS_ORDER if name in present]
    return known + sorted(present - set(known), key=natural_key)


def positive_class(classes: list[str], wanted: str | None) -> str:
    """The class that precision and recall are about: `wanted`, or the first.

    Raises InputError where there is no such class.
    """
    if wanted is None:
        return classes[0]
    if wanted not in classes:
        raise InputError(f"--positive {wanted}: no such class; the data have {', '.join(classes)}.{did_you_mean(wanted, classes)}")
    return wanted


def _require_folder(path: Path) -> None:
    if not path.exists():
        raise InputError(f"No such folder: {path}. Check the path.")
    if not path.is_dir():
        raise InputError(f"{path} is a file. Give the folder that holds the scans.")


def _explain_layout(root: Path) -> str:
    if _slices(root):
        return "It holds slices itself, as the folder of a single scan does."
    for depth, meaning in (("*", "scans"), ("*/*", "patients")):
        if any(_slices(folder) for folder in root.glob(depth) if folder.is_dir()):
            return f"Its folders are {meaning}, so the class folders are missing above it."
    return f"Class folders are missing; there is\n{listing([item.name for item in sorted(root.iterdir())], 5)}\n"


def _folders(path: Path) -> list[Path]:
    try:
        return sorted((item for item in path.iterdir() if item.is_dir() and _visible(item.name)), key=lambda item: natural_key(item.name))
    except PermissionError as error:
        _unreadable(error)
        raise


def _slices(folder: Path) -> tuple[Path, ...]:
    try:
        files = [entry.name for entry in os.scandir(folder) if _visible(entry.name) and _is_file(entry)]
    except PermissionError as error:
        _unreadable(error)
        raise
    names = [name for name in files if os.path.splitext(name)[1].lower() in EXTENSIONS]  # noqa: PTH122
    return tuple(folder / name for name in sorted(names, key=natural_key))


def _unreadable(error: OSError) -> None:
    raise InputError(f"{error.filename} cannot be read: {error.strerror}. Mend its permissions.") from error


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        # A link that leads to itself.
        return False


def _visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"
