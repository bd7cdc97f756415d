"""What lies in a folder: pictures, DICOM, or files that hold a whole scan each."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ctcovid.base.errors import InputError
from ctcovid.scans.decode import ending
from ctcovid.scans.dicom import begins_as_dicom, is_dicom
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
    """What lies directly in a folder: pictures, or volumes and DICOM. Each of `volumes` holds a whole scan."""

    pictures: tuple[Path, ...] = ()
    volumes: tuple[Path, ...] = ()
    dicom: tuple[Path, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.pictures or self.volumes or self.dicom)


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sort key that puts ``slice 2`` before ``slice 10``, and ignores case."""
    words = re.split(r"(\d+)", name.casefold())
    return [int(word) if index % 2 else word for index, word in enumerate(words)], name


def contents_of(folder: Path) -> Contents:
    """What lies directly in a folder. Volumes and DICOM may lie together; pictures beside them are previews, or the scan.

    Raises InputError if the folder cannot be read.
    """
    pictures: list[Path] = []
    volumes: list[Path] = []
    dicom: list[Path] = []
    for name in _files(folder):
        suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122
        if suffix in PICTURES:
            pictures.append(folder / name)
        elif ending(name):
            if suffix != ".hdr" or is_header(folder / name):
                volumes.append(folder / name)
        # Names of DICOM files often have no ending, or are UIDs.
        elif suffix in DICOM or (name.upper() != INDEX and is_dicom(folder / name)):
            dicom.append(folder / name)
    # Pictures are not previews of files that are DICOM by name alone, such as a report.
    sound = not pictures or any(begins_as_dicom(path) for path in dicom)
    fewest = max(PICTURES_OF_A_SCAN * len(volumes), max(len(dicom) + 1, PICTURES_OF_A_SCAN) if dicom and sound else 0)
    if len(pictures) < fewest:
        return Contents(volumes=tuple(volumes), dicom=tuple(dicom))
    # Only the first picture is opened: opening every slice of a scan would be slow.
    if pictures and pictures[0].suffix.lower() in TIFF and page_count(pictures[0]) > 1:
        return Contents(volumes=tuple(path for path in pictures if path.suffix.lower() in TIFF))
    return Contents(pictures=tuple(pictures))


def folders(path: Path) -> list[Path]:
    """The visible folders in a folder.

    Raises InputError if it cannot be read.
    """
    try:
        return sorted((item for item in path.iterdir() if item.is_dir() and visible(item.name)), key=lambda item: natural_key(item.name))
    except PermissionError as error:
        raise no_permission(error) from error


def walk(path: Path) -> Iterator[Path]:
    """A folder and all folders below it, each once, even if links form a circle."""
    seen: set[tuple[int, int]] = set()
    waiting = [path]
    while waiting:
        folder = waiting.pop()
        state = folder.stat()
        if (state.st_dev, state.st_ino) not in seen:
            seen.add((state.st_dev, state.st_ino))
            yield folder
            waiting += reversed(folders(folder))


def visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def no_permission(error: OSError) -> InputError:
    return InputError(f"{error.filename} cannot be read: {error.strerror}. Fix its permissions.")


def _files(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted((entry.name for entry in entries if visible(entry.name) and _is_file(entry)), key=natural_key)
    except PermissionError as error:
        raise no_permission(error) from error


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        # A link that leads to itself.
        return False
