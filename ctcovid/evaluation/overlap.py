"""Whether an id means the same patient in two files, by the content of their slices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ctcovid.base.console import Console
from ctcovid.models.training_slices import slice_hash

if TYPE_CHECKING:
    from ctcovid.volumes.layout import ScanRow
    from ctcovid.volumes.reader import VolumesFile

# Slices that are read at a time.
AT_ONCE = 32


def share_images(tested: VolumesFile, trained: VolumesFile, patients: set[str], console: Console) -> bool:
    """Whether a slice of one of the patients stands under the same id in both files: then both number the patients of one archive.

    Slices of one even grey are the same everywhere, and show nothing.

    Raises InputError where a slice cannot be read.
    """
    mine, theirs = ([row for row in file.rows if row.patient in patients] for file in (tested, trained))
    known: dict[str, set[bytes]] = {}
    with console.progress(len(mine) + len(theirs), "Comparing patients of the same id") as advance:
        for row in theirs:
            known.setdefault(row.patient, set()).update(_hashes(trained, row))
            advance(1)
        for row in mine:
            if not known.get(row.patient, set()).isdisjoint(_hashes(tested, row)):
                return True
            advance(1)
    return False


def _hashes(file: VolumesFile, row: ScanRow) -> Iterator[bytes]:
    end = row.first_slice + row.slice_count
    for first in range(row.first_slice, end, AT_ONCE):
        slices = file.read(first, min(AT_ONCE, end - first))
        yield from (slice_hash(one) for one in slices if one.min() != one.max())
