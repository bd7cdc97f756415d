"""volumes.h5, format 1: names in the file, its attributes and rows, and its fingerprint."""

from __future__ import annotations

import hashlib
from dataclasses import astuple, dataclass
from typing import Any

import h5py

from ctcovid.base.choices import PARTS

FORMAT = "ctcovid-volumes"
FORMAT_VERSION = 1
# The table of scans that were left out, with the columns of /scans.
LEFT_OUT = "left_out"
# The setting with the parts of patients whose scans could not be read so far.
AWAITED = "awaited"


@dataclass(frozen=True)
class FileInfo:
    """Attributes of a volumes file.

    Attributes
    ----------
    depth, size : slices per volume, pixels per side
    classes, positive : class names in order, and the one that precision and recall refer to
    settings : what the content depends on, by name
    """

    depth: int
    size: int
    classes: list[str]
    positive: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class ScanRow:
    """One row of ``/scans``: the range of a scan's slices in ``/slices``, and what is known of the scan.

    `checks` is JSON text; `crc32` covers the scan's pixels and this row, so that a resumed run can verify what is in the file.
    """

    id: str
    patient: str
    label: str
    split: str
    first_slice: int
    slice_count: int
    image_kind: str
    source: str
    checks: str
    crc32: int

    def volume_count(self, depth: int) -> int:
        """Non-overlapping depth-n volumes of the scan; the tail that does not fill one is dropped."""
        return self.slice_count // depth


# Text columns are variable-length UTF-8, the others int64.
TEXT_COLUMNS = ("id", "patient", "label", "split", "image_kind", "source", "checks")
NUMBER_COLUMNS = ("first_slice", "slice_count", "crc32")


def awaited_parts(settings: dict[str, Any]) -> dict[str, str]:
    """Part by patient, of patients whose scans could not be read so far."""
    found = settings.get(AWAITED)
    return {patient: part for patient, part in found.items() if part in PARTS} if isinstance(found, dict) else {}


def fingerprint(size: int, classes: list[str], rows: list[ScanRow]) -> str:
    """Identifies the data in trained models: a hash over every scan's identity, label, split and pixels."""
    digest = hashlib.sha256(repr((size, classes)).encode())
    for row in rows:
        digest.update(repr(astuple(row)).encode())
    return f"sha256:{digest.hexdigest()}"


def read_rows(file: h5py.File, group: str = "scans") -> list[ScanRow]:
    """The rows of ``/scans``, or of another such table; in a file that is being written, the rows that all columns have.

    Raises KeyError or OSError if the table is damaged.
    """
    table = {name: file[group][name] for name in (*TEXT_COLUMNS, *NUMBER_COLUMNS)}
    count = min(len(dataset) for dataset in table.values())
    content: dict[str, Any] = {name: [str(text) for text in table[name].asstr()[:count]] for name in TEXT_COLUMNS}
    content |= {name: [int(number) for number in table[name][:count]] for name in NUMBER_COLUMNS}
    return [ScanRow(**{name: values[index] for name, values in content.items()}) for index in range(count)]


def columns(rows: list[ScanRow]) -> dict[str, list[object]]:
    """The rows as columns by name."""
    return {name: [getattr(row, name) for row in rows] for name in (*TEXT_COLUMNS, *NUMBER_COLUMNS)}
