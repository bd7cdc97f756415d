"""Open volumes.h5 and find its depth-n volumes."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ctcovid.base.choices import PARTS
from ctcovid.base.errors import InputError
from ctcovid.base.faults import raise_machine_fault, second_look
from ctcovid.scans.window import LUNG, Window
from ctcovid.volumes.layout import FORMAT, FORMAT_VERSION, LEFT_OUT, ScanRow, fingerprint, read_rows
from ctcovid.volumes.split import patients_in_two_parts


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
        self._handle: h5py.File | None = None
        self._process = -1
        _require_volumes(path)
        self._identity = _identity(path)
        try:
            with h5py.File(path, "r", locking=False) as file:
                _require_complete(path, file)
                self.depth, self.size = int(file.attrs["depth"]), int(file.attrs["size"])
                self.classes = [str(name) for name in file.attrs["classes"]]
                self.positive = str(file.attrs["positive"])
                self.settings: dict[str, Any] = json.loads(str(file.attrs.get("settings", "{}")))
                self.window = _window(self.settings)
                self.rows = read_rows(file)
                # Files of early versions lack this table.
                self.left_out = read_rows(file, LEFT_OUT) if LEFT_OUT in file else []
        except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise_machine_fault(error, path)
            raise InputError(f"{path} is damaged ({error}). Restore it, or make it again with ctcovid prepare --overwrite.") from error
        strange = [row.source for row in self.rows if row.label not in self.classes or row.split not in PARTS or row.slice_count < 1]
        if strange:
            raise InputError(
                f"{path} is damaged: the rows of {', '.join(strange[:3])}. Make the file again with ctcovid prepare --overwrite."
            )
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
            if self._handle is None or self._process != os.getpid():
                self._require_same()
                self._handle, self._process = h5py.File(self.path, "r", locking=False), os.getpid()
            return self._handle["slices"][first_slice : first_slice + depth]
        except OSError as error:
            raise_machine_fault(error, self.path)
            scan = next(row.source for row in reversed(self.rows) if row.first_slice <= first_slice)
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
        return {**self.__dict__, "_handle": None, "_process": -1}


def _identity(path: Path) -> tuple[int, ...]:
    """Differs if a file was replaced or changed."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _window(settings: dict[str, Any]) -> Window:
    """The window that mapped Hounsfield units to grey; files of early versions have the default."""
    level, width = settings.get("window", (LUNG.level, LUNG.width))
    return Window(float(level), float(width))


def _require_volumes(path: Path) -> None:
    if not path.exists():
        partial = path.with_name(path.name + ".partial").exists()
        remedy = "Run the same ctcovid prepare command again to finish it" if partial else "Make it with ctcovid prepare ./CC-CCII"
        raise InputError(f"No such volumes file: {path}. {remedy}, or name another with --data.")
    if path.is_dir():
        raise InputError(f"{path} is a folder. Give the HDF5 file that ctcovid prepare made from it.")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path} cannot be read. Fix its permissions.")
    if not h5py.is_hdf5(path):
        if (error := second_look(path)) is not None:
            raise_machine_fault(error, path)
        raise InputError(f"{path} is not an HDF5 file. Give the file that ctcovid prepare makes, volumes.h5 by default.")


def _require_complete(path: Path, file: h5py.File) -> None:
    if file.attrs.get("format") != FORMAT:
        raise InputError(f"{path} is an HDF5 file, but not a volumes file. Make one with ctcovid prepare.")
    if (version := file.attrs["format_version"]) > FORMAT_VERSION:
        raise InputError(
            f"{path} has format {version}, made by a newer ctcovid; this one reads {FORMAT_VERSION}. Update it: pip install -U ctcovid"
        )
    if not file.attrs.get("complete", False):
        raise InputError(f"{path} is unfinished. Run the same ctcovid prepare command again to finish it.")
