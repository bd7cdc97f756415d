"""Open volumes.h5 and find its depth-n volumes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ctcovid.base.errors import InputError
from ctcovid.base.faults import raise_machine_fault, second_look
from ctcovid.base.guard import GuardError, guarded
from ctcovid.scans.window import LUNG, Window
from ctcovid.volumes.absent import require_volumes
from ctcovid.volumes.content import Content, read_content
from ctcovid.volumes.layout import FORMAT, FORMAT_VERSION, FormatError, ScanRow, fingerprint
from ctcovid.volumes.slices import Slices
from ctcovid.volumes.split import patients_in_two_parts
from ctcovid.volumes.structure import attribute

# Of a file that is not HDF5, to tell whether the machine failed.
LOOKED_AT = 1 << 20


@dataclass(frozen=True)
class Volume:
    """One depth-n volume: its scan, its number within the scan, and its first slice in the file."""

    scan: ScanRow
    number: int
    first_slice: int


class VolumesFile:
    """A complete volumes.h5, checked when it is opened.

    Attributes
    ----------
    path, depth, size, classes, positive, window : as in the file
    settings : what the content depends on, by name
    rows : one ScanRow per scan
    left_out : a ScanRow, without slices, per scan that was left out because of a problem or its kind
    fingerprint : identifies the data in trained models

    Raises InputError, with the remedy, if the file is absent, foreign, unfinished, newer, damaged, or has a patient in two parts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._slices: Slices | None = None
        self._process = -1
        _require_readable(path)
        self._identity = _identity(path)
        try:
            content = _checked(path, self._identity)
        except (FormatError, GuardError) as error:
            raise InputError(f"{path} is damaged: {error}. Restore it, or make it again with ctcovid prepare --overwrite.") from error
        except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise_machine_fault(error, path)
            raise InputError(f"{path} is damaged ({error}). Restore it, or make it again with ctcovid prepare --overwrite.") from error
        info = content.info
        self.depth, self.size = info.depth, info.size
        self.classes, self.positive, self.settings = info.classes, info.positive, info.settings
        self.window, self.rows, self.left_out = _window(self.settings), content.rows, content.left_out
        self.fingerprint = fingerprint(self.size, self.classes, self.rows)
        if shared := patients_in_two_parts(self.rows):
            raise InputError(f"{path}: patients in two parts: {', '.join(shared[:10])}. Make the file again with ctcovid prepare.")

    def volumes(self, part: str, depth: int) -> list[Volume]:
        """The non-overlapping depth-n volumes of a part, scan by scan, head to feet; tails are dropped."""
        return [
            Volume(row, number, row.first_slice + number * depth)
            for row in self.rows
            if row.split == part
            for number in range(row.volume_count(depth))
        ]

    def read(self, first_slice: int, depth: int) -> np.ndarray:
        """`depth` slices as uint8 (depth, H, W). Each process opens the file itself.

        Raises InputError if a checksum does not match, or the file was removed or replaced by another.
        """
        try:
            if self._slices is None or self._process != os.getpid():
                self._require_same()
                self._slices, self._process = Slices(h5py.File(self.path, "r", locking=False), self.size), os.getpid()
            return self._slices.read(first_slice, depth)
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            raise_machine_fault(error, self.path)
            scan = next((row.source for row in reversed(self.rows) if row.first_slice <= first_slice), "none")
            raise InputError(
                f"{self.path} is damaged: slices {first_slice} to {first_slice + depth - 1} (scan {scan}) cannot be read ({error}). "
                "Restore the file, or make it again with ctcovid prepare --overwrite."
            ) from error

    def _require_same(self) -> None:
        """Raises InputError if the file was replaced since it was checked, and its content is not the same."""
        now = _identity(self.path)
        if now != self._identity:
            if VolumesFile(self.path).fingerprint != self.fingerprint:
                raise InputError(f"{self.path} was replaced by another file while it was read. Restore it, or run the same command again.")
            self._identity = now

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_slices": None, "_process": -1}


@lru_cache(maxsize=2)
def _checked(path: Path, identity: tuple[int, ...]) -> Content:
    """The content of a file, checked once in this process for as long as it is the same file: options and commands each open it."""
    return guarded(path, partial(_content, path))


def _content(path: Path) -> Content:
    with h5py.File(path, "r", locking=False) as file:
        _require_complete(path, file)
        return read_content(path, file)


def _identity(path: Path) -> tuple[int, ...]:
    """Differs if a file was replaced or changed."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _window(settings: dict[str, Any]) -> Window:
    """The window that mapped Hounsfield units to grey; files of early versions have the default."""
    level, width = settings.get("window") or (LUNG.level, LUNG.width)
    return Window(float(level), float(width))


def _require_readable(path: Path) -> None:
    require_volumes(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder. Give the HDF5 file that ctcovid prepare made from it.")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path} cannot be read. Fix its permissions.")
    if not path.is_file():
        raise InputError(f"{path} is a pipe or a device. Give the HDF5 file that ctcovid prepare made.")
    if not h5py.is_hdf5(path):
        if (error := second_look(path, most=LOOKED_AT)) is not None:
            raise_machine_fault(error, path)
        raise InputError(f"{path} is not an HDF5 file. Give the file that ctcovid prepare makes, volumes.h5 by default.")


def _require_complete(path: Path, file: h5py.File) -> None:
    if "format" not in file.attrs or attribute(file, "format", "text") != FORMAT:
        raise InputError(f"{path} is an HDF5 file, but not a volumes file. Make one with ctcovid prepare.")
    if (version := attribute(file, "format_version", "whole")) > FORMAT_VERSION:
        raise InputError(
            f"{path} has format {version}, made by a newer ctcovid; this one reads {FORMAT_VERSION}. Update it: pip install -U ctcovid"
        )
    if version != FORMAT_VERSION:
        raise FormatError(f"the attribute format_version is {version}")
    if not attribute(file, "complete", "flag"):
        raise InputError(f"{path} is unfinished. Run the same ctcovid prepare command again to finish it.")
