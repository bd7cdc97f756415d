"""volumes.h5, format 1: the names in the file, and what counts as the same file."""

from __future__ import annotations

import hashlib
from dataclasses import astuple, dataclass
from typing import Any

import h5py

FORMAT = "ctcovid-volumes"
FORMAT_VERSION = 1
# The table of scans that were left out, like that of scans.
LEFT_OUT = "left_out"


@dataclass(frozen=True)
class ScanRow:
    """One row of ``/scans``: where a scan's slices are in ``/slices`` and what is known of it.

    `checks` is JSON text; `crc32` covers the scan's pixels and this row, and lets a resumed run trust what is in the file.
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


def fingerprint(size: int, classes: list[str], rows: list[ScanRow]) -> str:
    """What a trained model remembers its data by: a hash over every scan's identity, label, split and pixels."""
    digest = hashlib.sha256(repr((size, classes)).encode())
    for row in rows:
        digest.update(repr(astuple(row)).encode())
    return f"sha256:{digest.hexdigest()}"


def read_rows(file: h5py.File, group: str = "scans") -> list[ScanRow]:
    """The rows of ``/scans``, or of another such table; of a file that is being written, those that all columns have.

    Raises KeyError or OSError where the table is damaged.
    """
    table = {name: file[group][name] for name in (*TEXT_COLUMNS, *NUMBER_COLUMNS)}
    count = min(len(dataset) for dataset in table.values())
    content: dict[str, Any] = {name: [str(text) for text in table[name].asstr()[:count]] for name in TEXT_COLUMNS}
    content |= {name: [int(number) for number in table[name][:count]] for name in NUMBER_COLUMNS}
    return [ScanRow(**{name: values[index] for name, values in content.items()}) for index in range(count)]


def columns(rows: list[ScanRow]) -> dict[str, list[object]]:
    """The rows as columns by name."""
    return {name: [getattr(row, name) for row in rows] for name in (*TEXT_COLUMNS, *NUMBER_COLUMNS)}
