"""What lies in a folder: pictures, DICOM, or files that hold a whole scan each."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ctcovid.base.errors import InputError
from ctcovid.base.faults import MachineFaultError, raise_machine_fault
from ctcovid.scans.absent import STAND_INS
from ctcovid.scans.decode import ending
from ctcovid.scans.dicom import is_dicom
from ctcovid.scans.nifti import is_header
from ctcovid.scans.read import page_count

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})
DICOM = frozenset({".dcm", ".dicom", ".dic", ".ima"})
# The table of contents of a DICOM medium.
INDEX = "DICOMDIR"
TIFF = frozenset({".tif", ".tiff"})
# At least so many pictures are a scan, and the file beside them may be its mask. Fewer are previews of that file.
PICTURES_OF_A_SCAN = 8


@dataclass(frozen=True)
class Contents:
    """What lies directly in a folder: pictures, or volumes and DICOM. Each of `volumes` holds a whole scan.

    Files that cannot be opened, such as links to absent files, count by their names. `unknown` are those whose names say nothing: they may
    be scans, or folders of scans. `unlisted` is what prevented the folder, or one in it, from being listed.
    """

    pictures: tuple[Path, ...] = ()
    volumes: tuple[Path, ...] = ()
    dicom: tuple[Path, ...] = ()
    unknown: tuple[Path, ...] = ()
    unlisted: OSError | None = None

    def __bool__(self) -> bool:
        return bool(self.pictures or self.volumes or self.dicom or self.unknown or self.unlisted)


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sort key that puts ``slice 2`` before ``slice 10``, and ignores case."""
    words = re.split(r"(\d+)", name.casefold())
    return [int(word) if index % 2 else word for index, word in enumerate(words)], name


def contents_of(folder: Path) -> Contents:
    """What lies directly in a folder. Volumes and DICOM may lie together; pictures beside them are previews, or the scan."""
    pictures: list[Path] = []
    volumes: list[Path] = []
    dicom: list[Path] = []
    unknown: list[Path] = []
    try:
        names = _files(folder)
    except OSError as error:
        return Contents(unlisted=error)
    for name in names:
        suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122
        if suffix in PICTURES:
            pictures.append(folder / name)
        elif ending(name):
            if suffix != ".hdr" or is_header(folder / name):
                volumes.append(folder / name)
        # Names of DICOM files often have no ending, or are UIDs.
        elif suffix in DICOM or (name.upper() != INDEX and is_dicom(folder / name)):
            dicom.append(folder / name)
        elif name.upper() != INDEX and not suffix.strip(".0123456789") and not _opens(folder / name):
            unknown.append(folder / name)
    if dicom and not pictures:
        # Files without an ending beside DICOM are slices of it.
        dicom, unknown = sorted(dicom + unknown, key=lambda path: natural_key(path.name)), []
    # Pictures are not previews of files that are DICOM by name alone, such as a report.
    sound = not pictures or any(is_dicom(path) for path in dicom)
    fewest = max(PICTURES_OF_A_SCAN * len(volumes), max(len(dicom) + 1, PICTURES_OF_A_SCAN) if dicom and sound else 0)
    if len(pictures) < fewest:
        return Contents(volumes=tuple(volumes), dicom=tuple(dicom), unknown=tuple(unknown))
    # Only the first picture is opened: opening every slice of a scan would be slow.
    if pictures and pictures[0].suffix.lower() in TIFF and page_count(pictures[0]) > 1:
        return Contents(volumes=tuple(path for path in pictures if path.suffix.lower() in TIFF))
    return Contents(pictures=tuple(pictures), unknown=tuple(unknown))


def listed(folder: Path) -> Contents:
    """`contents_of` a folder without which there is nothing to do.

    Raises InputError if it cannot be listed.
    """
    contents = contents_of(folder)
    if contents.unlisted:
        raise_machine_fault(contents.unlisted, folder)
        raise no_permission(contents.unlisted) from contents.unlisted
    return contents


def folders(path: Path) -> list[Path]:
    """The visible folders in a folder.

    Raises InputError if it cannot be listed.
    """
    try:
        with os.scandir(path) as entries:
            names = [entry.name for entry in entries if visible(entry.name) and _kind(entry) == "folder"]
    except OSError as error:
        raise_machine_fault(error, path)
        raise no_permission(error) from error
    return [path / name for name in sorted(names, key=natural_key)]


def walk(path: Path) -> Iterator[Path]:
    """A folder and all folders below it, each once, even if links form a circle. What may not be listed is one of them.

    Raises MachineFaultError if the machine fails to list one: what is below it would be missing without a word.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [path]
    while waiting:
        folder = waiting.pop()
        try:
            state = folder.stat()
            known = (state.st_dev, state.st_ino) in seen
            seen.add((state.st_dev, state.st_ino))
            below = [] if known else folders(folder)
        except MachineFaultError:
            raise
        except (OSError, InputError) as error:
            raise_machine_fault(error, folder)
            known, below = False, []
        if not known:
            yield folder
            waiting += reversed(below)


def visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def no_permission(error: OSError) -> InputError:
    return InputError(f"{error.filename} cannot be read: {error.strerror}. Fix its permissions.")


def _files(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted((entry.name for entry in entries if visible(entry.name) and _kind(entry) == "file"), key=natural_key)


def _kind(entry: os.DirEntry[str]) -> str:
    """ "folder", "file", or "" of a device or pipe. What cannot be looked at, as a link to an absent file, is taken for a file."""
    try:
        if entry.is_dir():
            return "folder"
        return "file" if entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists()) else ""
    except OSError as error:
        raise_machine_fault(error, entry.path)
        return "file"


def _opens(path: Path) -> bool:
    """Whether a file can be opened, and is none of the small texts by which git-annex and Git LFS stand in for a file."""
    try:
        with path.open("rb") as file:
            return not file.read(len(max(STAND_INS, key=len))).startswith(STAND_INS)
    except OSError:
        return False
