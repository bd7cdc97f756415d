"""volumes.h5, format 1: the one description that the writer keeps to, files are held against, and the manual's tables are made from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from ctcovid.base.choices import PARTS, Images, OnProblem
from ctcovid.base.declared import ClassNames, Declared, Depth, Side, WindowPair, fault

FORMAT = "ctcovid-volumes"
FORMAT_VERSION = 1
# The table of scans that were left out, with the columns of /scans.
LEFT_OUT = "left_out"
# Of a partial file: what identifies the files of each scan.
LISTING = "listing"
# The setting with the parts of patients whose scans could not be read so far.
AWAITED = "awaited"
# Characters of a text of /scans, such as a path, and of the findings of a scan.
LONGEST_TEXT, LONGEST_CHECKS = 1 << 13, 1 << 20
LONGEST_SETTINGS = 16 << 20
# What the scans of a file are, in its attribute image_kind.
KINDS = ("complete", "segmented", "mixed")
# Rows of /slices and so of everything else.
MOST_ROWS = 1 << 40


class FormatError(ValueError):
    """What is wrong with a volumes file, in words without its path."""


class Settings(Declared):
    """What the content depends on, as far as it is used again."""

    split: str = Field("", max_length=255)
    seed: int = Field(0, ge=0)
    images: Images = "complete"
    on_problem: OnProblem = "repair"
    balance: bool = False
    keep_ids: bool = False
    window: WindowPair | None = None
    lesions: str | None = None
    pseudonyms: str | None = None
    awaited: dict[str, str] = Field({}, description="parts of patients whose scans could not be read so far")


class Found(Declared):
    """A finding about a scan, as in quality.csv."""

    code: str = Field(max_length=255)
    severity: str = Field(max_length=255)
    message: str
    action: str = Field("kept", max_length=255)
    slices: list[Annotated[int, Field(ge=0)]] = Field([])

    model_config = ConfigDict(extra="forbid")


class Checks(Declared):
    """What is known of a scan's files, and what is unusual about it."""

    height: int | None = None
    width: int | None = None
    bits: int | None = None
    scaling: str | None = None
    slice_spacing: float | None = Field(None, ge=0)
    findings: list[Found] = Field([])


@dataclass(frozen=True)
class FileInfo:
    """Attributes of a volumes file.

    Attributes
    ----------
    depth, size : slices per volume, pixels per side
    classes, positive : class names in order, and the one that precision and recall refer to
    settings : what the content depends on, by name
    """

    depth: Depth
    size: Side
    classes: ClassNames
    positive: Annotated[str, Field(description="the class that precision and recall refer to")]
    settings: Annotated[dict[str, Any], Field(description="what the content depends on, as JSON")]


@dataclass(frozen=True)
class ScanRow:
    """One row of ``/scans``: the range of a scan's slices in ``/slices``, and what is known of the scan.

    `checks` is JSON text; `crc32` covers the scan's pixels and this row, so that a resumed run can verify what is in the file.
    """

    id: Annotated[str, Field(max_length=LONGEST_TEXT, description="scan")]
    patient: Annotated[str, Field(max_length=LONGEST_TEXT, description="patient")]
    label: Annotated[str, Field(max_length=255, description="class")]
    split: Annotated[str, Field(max_length=5, description="train, valid or test")]
    first_slice: Annotated[int, Field(ge=0, le=MOST_ROWS, description="first row of `/slices`")]
    slice_count: Annotated[int, Field(ge=0, le=MOST_ROWS, description="rows of `/slices`")]
    image_kind: Annotated[str, Field(max_length=255, description="complete or segmented")]
    source: Annotated[str, Field(max_length=LONGEST_TEXT, description="path below the data set")]
    checks: Annotated[str, Field(max_length=LONGEST_CHECKS, description="JSON: size, bits, scaling, spacing, findings")]
    crc32: Annotated[int, Field(ge=0, lt=1 << 32, description="checksum of the pixels and of the row")]

    def volume_count(self, depth: int) -> int:
        """Non-overlapping depth-n volumes of the scan; the tail that does not fill one is dropped."""
        return self.slice_count // depth


# Text columns are variable-length UTF-8, the others int64.
TEXT_COLUMNS = tuple(field.name for field in fields(ScanRow) if "str" in str(field.type))
NUMBER_COLUMNS = tuple(field.name for field in fields(ScanRow) if field.name not in TEXT_COLUMNS)


def awaited_parts(settings: dict[str, Any]) -> dict[str, str]:
    """Part by patient, of patients whose scans could not be read so far."""
    return {patient: part for patient, part in settings.get(AWAITED, {}).items() if part in PARTS}


def fingerprint(size: int, classes: list[str], rows: list[ScanRow]) -> str:
    """Identifies the data in trained models: a hash over every scan's identity, label, split and pixels."""
    digest = hashlib.sha256(repr((size, classes)).encode())
    for row in rows:
        digest.update(repr(tuple(vars(row).values())).encode())
    return f"sha256:{digest.hexdigest()}"


def columns(rows: list[ScanRow]) -> dict[str, list[object]]:
    """The rows as columns by name."""
    return {name: [getattr(row, name) for row in rows] for name in (*TEXT_COLUMNS, *NUMBER_COLUMNS)}


def require_info(info: FileInfo) -> None:
    """Raises FormatError if an attribute is not as declared."""
    try:
        _INFO.validate_python(asdict(info))
    except ValidationError as error:
        raise FormatError(fault(error)) from error
    if info.positive not in info.classes:
        raise FormatError("positive: not one of the classes")


def read_settings(text: str) -> dict[str, Any]:
    """The settings in the attribute of a complete file.

    Raises FormatError if they are not as declared.
    """
    if len(text) > LONGEST_SETTINGS:
        raise FormatError(f"the attribute settings has more than {LONGEST_SETTINGS >> 20} MB")
    try:
        Settings.model_validate_json(text)
    except ValidationError as error:
        raise FormatError(f"settings: {fault(error)}") from error
    found: dict[str, Any] = json.loads(text)
    return found


def require_rows(rows: list[ScanRow], name: str) -> None:
    """Raises FormatError, with the row and the column, if one of the rows of the table `name` is not as declared."""
    for number, row in enumerate(rows):
        try:
            _ROW.validate_python(vars(row))
            Checks.model_validate_json(row.checks or "{}")
        except ValidationError as error:
            where = "checks " if error.title == Checks.__name__ else ""
            raise FormatError(f"/{name}, row {number}: {where}{fault(error)}") from error


_INFO, _ROW = TypeAdapter(FileInfo), TypeAdapter(ScanRow)
