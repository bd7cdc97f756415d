"""DICOM pixels in Hounsfield units: padding is black, tables are looked up, and what is not Hounsfield units is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.sequence import Sequence as Items
from whole import read_scan

from ctcovid.base.errors import InputError
from ctcovid.scans.discover import find_scans
from ctcovid.scans.pixels import dicom_frames
from ctcovid.scans.window import LUNG

Write = Callable[..., list[Path]]


@pytest.fixture(scope="module")
def hounsfield(sample_data: Path) -> np.ndarray:
    """Every sixth slice of a real series, at an eighth of the pixels, int16 (10, 64, 64)."""
    (scan,) = find_scans([sample_data / "dicom" / "jpeg-lossless-series"])
    assert scan.stack is not None
    return np.stack([next(dicom_frames(path, scan.stack.shape))[::8, ::8] for path in scan.slices[::6]])


def outside(side: int) -> np.ndarray:
    """What lies outside of the scanner's circle."""
    y, x = np.mgrid[:side, :side]
    found: np.ndarray = (x - side / 2) ** 2 + (y - side / 2) ** 2 > (side / 2 - 1) ** 2
    return found


def change(paths: Sequence[Path], edit: Callable[[pydicom.Dataset], None]) -> None:
    for path in paths:
        dataset = pydicom.dcmread(path)
        edit(dataset)
        dataset.save_as(path)


def stored(dataset: pydicom.Dataset) -> np.ndarray:
    kind = "<i2" if dataset.PixelRepresentation else "<u2"
    return np.frombuffer(dataset.PixelData, kind).reshape(dataset.Rows, dataset.Columns).copy()


# Bits stored, whether signed, the value outside of the circle, and how the file declares it.
PADDINGS: dict[str, tuple[int, bool, int, dict[str, Any]]] = {
    "63536 in 16 bits": (16, False, 63536, {"PixelPaddingValue": 63536}),
    "4095 in 12 bits": (12, False, 4095, {"PixelPaddingValue": 4095}),
    "a range": (16, False, 60000, {"PixelPaddingValue": 63536, "PixelPaddingRangeLimit": 50000}),
    "a range, signed": (16, True, 30000, {"PixelPaddingValue": 32767, "PixelPaddingRangeLimit": 20000}),
    "-2000, signed": (16, True, -2000, {"PixelPaddingValue": -2000}),
    "bits that are not stored": (12, False, 63536 & 4095, {"PixelPaddingValue": 63536}),
    "undeclared": (16, False, 63536, {}),
    "undeclared, in 12 bits": (12, False, 4095, {}),
    "declared otherwise than it is": (12, False, 4095, {"PixelPaddingValue": 4090}),
    "water, undeclared": (12, False, 1024, {}),
}


@pytest.mark.parametrize("kind", PADDINGS)
def test_padding_is_black_and_the_patient_unchanged(kind: str, hounsfield: np.ndarray, write_series: Write, tmp_path: Path) -> None:
    bits, signed, value, declared = PADDINGS[kind]
    circle = outside(64)

    def pad(dataset: pydicom.Dataset) -> None:
        values = stored(dataset).astype(np.int32) + int(dataset.RescaleIntercept)
        dataset.RescaleIntercept = -1024
        dataset.PixelRepresentation = int(signed)
        dataset.BitsStored, dataset.HighBit = bits, bits - 1
        values = np.clip(values + 1024, 0, 4094)
        values[circle] = value
        dataset.PixelData = values.astype("<i2" if signed else "<u2").tobytes()
        for name, said in declared.items():
            dataset[name] = pydicom.DataElement(name, "SS" if signed else "US", said)

    change(write_series(tmp_path, hounsfield), pad)
    found = read_scan(find_scans([tmp_path])[0], 64)
    expected = LUNG.grey(np.clip(hounsfield, -1024, None))
    assert (found[:, circle] == 0).all()
    # Where water touches the circle, it cannot be told from padding that is water.
    assert (found != expected)[:, ~circle].mean() <= (1e-3 if value == 1024 else 0)


def test_declared_padding_that_is_water_is_black_around_the_body_alone(hounsfield: np.ndarray, write_series: Write, tmp_path: Path) -> None:
    values = np.where(outside(64), 0, hounsfield)
    values[:, 30:34, 30:34] = 0

    def declare(dataset: pydicom.Dataset) -> None:
        dataset["PixelPaddingValue"] = pydicom.DataElement("PixelPaddingValue", "SS", -int(dataset.RescaleIntercept))

    change(write_series(tmp_path, values), declare)
    found = read_scan(find_scans([tmp_path])[0], 64)
    assert (found[:, outside(64)] == 0).all()
    assert (found[:, 30:34, 30:34] == LUNG.grey(np.array(0))).all()


@pytest.mark.parametrize("kind", ["HU", "US", ""])
def test_table_of_values_is_looked_up_if_it_gives_hounsfield_units(
    kind: str, hounsfield: np.ndarray, write_series: Write, tmp_path: Path
) -> None:
    def with_table(dataset: pydicom.Dataset) -> None:
        values = stored(dataset).astype(np.int32) + int(dataset.RescaleIntercept)
        dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit = 0, 16, 15
        dataset.PixelData = np.clip((values + 1024) // 2, 0, 2047).astype("<u2").tobytes()
        del dataset.RescaleIntercept, dataset.RescaleSlope
        table = pydicom.Dataset()
        table.LUTDescriptor = [2048, 0, 16]
        table["LUTDescriptor"].VR = "US"
        # A table has no sign: it gives values from 0, and says nothing of what lies below.
        table.LUTData = (np.arange(2048) * 2).astype("<u2").tolist()
        table["LUTData"].VR = "US"
        if kind:
            table.ModalityLUTType = kind
        dataset.ModalityLUTSequence = Items([table])

    (tmp_path / "scan").mkdir()
    paths = write_series(tmp_path / "scan", hounsfield)
    change(paths, with_table)
    if kind == "HU":
        found = next(dicom_frames(paths[0], (1, 64, 64)))
        dataset = pydicom.dcmread(paths[0])
        assert np.array_equal(found, stored(dataset) * 2.0)
    else:
        with pytest.raises(InputError, match=r"gives values of a unit that is not known, which are not Hounsfield"):
            next(dicom_frames(paths[0], (1, 64, 64)))


def test_kinds_of_pixels_that_are_not_read_are_not_called_damaged(hounsfield: np.ndarray, write_series: Write, tmp_path: Path) -> None:
    def floats(dataset: pydicom.Dataset) -> None:
        dataset.FloatPixelData = stored(dataset).astype("<f4").tobytes()
        dataset.BitsAllocated = 32
        del dataset.PixelData

    paths = write_series(tmp_path, hounsfield)
    change(paths, floats)
    with pytest.raises(InputError, match=r"its pixels are floating-point numbers; ctcovid reads integers of 8, 16 and 32 bits"):
        next(dicom_frames(paths[0], (1, 64, 64)))


def test_values_that_index_a_palette_are_colour(hounsfield: np.ndarray, write_series: Write, tmp_path: Path) -> None:
    write_series(tmp_path, hounsfield, PhotometricInterpretation="PALETTE COLOR")
    (scan,) = find_scans([tmp_path])
    assert not scan.slices and "colour" in scan.refusal
