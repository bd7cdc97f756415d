"""What a volumes file says of its slices, once it has been held against the description of format 1."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
from h5py import h5d

from ctcovid.base.choices import PARTS
from ctcovid.volumes import structure
from ctcovid.volumes.layout import (
    KINDS,
    LEFT_OUT,
    LISTING,
    NUMBER_COLUMNS,
    TEXT_COLUMNS,
    FileInfo,
    FormatError,
    ScanRow,
    read_settings,
    require_info,
    require_rows,
)


@dataclass(frozen=True)
class Content:
    """Attributes of a file, a row per scan, and a row without slices per scan that was left out."""

    info: FileInfo
    rows: list[ScanRow]
    left_out: list[ScanRow]


def read_content(path: Path, file: h5py.File) -> Content:
    """What a complete file says. No slice is read.

    Raises FormatError with what is wrong, or OSError, RuntimeError, KeyError and the like if HDF5 itself finds the file damaged.
    """
    top, size = structure.root(file), path.stat().st_size
    whole = {name: structure.attribute(file, name, "whole") for name in ("depth", "size")}
    # Numbers before texts: a size that no slice has would make everything else wrong.
    require_info(FileInfo(**whole, classes=["-"], positive="-", settings={}))
    for name, kinds in (("image_kind", KINDS), ("created_by", None)):
        if (said := structure.attribute(file, name, "text")) and kinds and said not in kinds:
            raise FormatError(f"the attribute {name} is not one of {', '.join(kinds)}")
    slices = structure.member(top, "slices", "/slices", h5d.DatasetID)
    count = structure.require_slices(slices, whole["size"])
    structure.require_little_beside(structure.chunks_of(slices, whole["size"], size, complete=True), size)
    classes, positive = structure.attribute(file, "classes", "text", rank=1), structure.attribute(file, "positive", "text")
    info = FileInfo(**whole, classes=classes, positive=positive, settings=read_settings(structure.attribute(file, "settings", "text")))
    require_info(info)
    with path.open("rb") as source:
        rows = _table(structure.group_of(top, "scans"), "scans", source)
        # Files of early versions lack this table.
        left_out = _table(structure.group_of(top, LEFT_OUT), LEFT_OUT, source) if LEFT_OUT.encode() in top else []
    if any(row.slice_count for row in left_out):
        raise FormatError(f"/{LEFT_OUT} has scans with slices")
    _require_agreement(info, rows, count)
    volumes = sum(row.volume_count(info.depth) for row in rows)
    view = structure.member(top, "volumes", "/volumes", h5d.DatasetID)
    structure.require_view(view, (volumes, info.depth, info.size, info.size), len(rows))
    return Content(info, rows, left_out)


def read_partial(path: Path, settings: str, side: int) -> list[tuple[ScanRow, str]]:
    """The rows of a file that is being written, each with its entry of the listing; as many as all columns have.

    No rows if the file has other settings. Raises as `read_content`.
    """
    with h5py.File(path, "r", locking=False) as file, path.open("rb") as source:
        if structure.attribute(file, "settings", "text") != settings:
            return []
        top, size = structure.root(file), path.stat().st_size
        slices = structure.member(top, "slices", "/slices", h5d.DatasetID)
        structure.require_slices(slices, side)
        structure.require_little_beside(structure.chunks_of(slices, side, size, complete=False), size)
        rows = _table(structure.group_of(top, "scans"), "scans", source, complete=False)
        return list(zip(rows, structure.texts(top, LISTING, f"/{LISTING}", None, source), strict=False))


def _table(group: Any, name: str, source: Any, complete: bool = True) -> list[ScanRow]:
    """The rows of a table; of an incomplete one those that all columns have."""
    numbers = {column: structure.numbers(group, column, f"/{name}/{column}", None) for column in NUMBER_COLUMNS}
    count = min(map(len, numbers.values()))
    found: dict[str, list[Any]] = {column: values.tolist() for column, values in numbers.items()}
    for column in TEXT_COLUMNS:
        found[column] = structure.texts(group, column, f"/{name}/{column}", count if complete else None, source)
    if complete and (uneven := [column for column, values in found.items() if len(values) != count]):
        raise FormatError(f"/{name}/{uneven[0]} has {len(found[uneven[0]]):,} rows, not {count:,}")
    count = min(map(len, found.values()))
    rows = [ScanRow(**{column: values[number] for column, values in found.items()}) for number in range(count)]
    require_rows(rows, name)
    return rows


def _require_agreement(info: FileInfo, rows: list[ScanRow], slices: int) -> None:
    """Raises FormatError unless the scans have classes and parts of the file, and share out its slices among them."""
    for row in rows:
        if row.label not in info.classes or row.split not in PARTS or row.slice_count < 1:
            raise FormatError(f"the row of {row.source}: its class, part or number of slices")
    end = 0
    for row in sorted(rows, key=lambda row: row.first_slice):
        if row.first_slice != end:
            raise FormatError(f"the row of {row.source}: it begins at slice {row.first_slice:,}, and the scan before it ends at {end:,}")
        end += row.slice_count
    if end != slices:
        raise FormatError(f"its scans have {end:,} slices together, and /slices has {slices:,}")
    if len({row.source for row in rows}) < len(rows):
        raise FormatError("two scans have the same source")
