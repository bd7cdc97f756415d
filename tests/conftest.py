"""What many tests need: real slices where there are any, a small data set in the CC-CCII layout, and DICOM as scanners write it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from thin import WIDTHS

from ctcovid.models import resnet3d

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)

# Several processes of torch threads on a few cores stand in each other's way, and one thread sums in one order.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cuda", help="where the tests marked cuda run; cpu shows whether they run at all")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--device") == "cuda" and not torch.cuda.is_available():
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no GPU here"))


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    return torch.device(pytestconfig.getoption("--device"))


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """Folder of real CT for tests, from CTCOVID_SAMPLE_DATA."""
    folder = os.environ.get("CTCOVID_SAMPLE_DATA")
    if not folder:
        pytest.skip("CTCOVID_SAMPLE_DATA is not set: no real CT here")
    return Path(folder)


@pytest.fixture(scope="module")
def thin() -> Iterator[None]:
    """Networks made in this process are as thin as those of the processes that `THIN` starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resnet3d, "WIDTHS", WIDTHS)
        yield


@pytest.fixture
def make_scan() -> Callable[..., Path]:
    """Write a scan of grey noise whose brightness differs by `level`, and return its folder."""

    def make(folder: Path, slices: int = 8, size: int = 32, level: int = 100, extension: str = "png") -> Path:
        folder.mkdir(parents=True)
        generator = np.random.default_rng(level + slices)
        for number in range(slices):
            pixels = np.clip(generator.normal(level, 20, (size, size)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:04d}.{extension}")
        return folder

    return make


@pytest.fixture
def make_dataset(make_scan: Callable[..., Path]) -> Callable[..., Path]:
    """Write a data set of `patients` patients in each of three classes, told apart by brightness, and return its folder."""

    def make(root: Path, patients: int = 5, slices: int = 8, size: int = 32) -> Path:
        for position, label in enumerate(("NCP", "CP", "Normal")):
            for number in range(patients):
                make_scan(root / label / str(100 * position + number) / "1", slices + number % 3, size, 60 + 60 * position)
        return root

    return make


@pytest.fixture
def chest() -> np.ndarray:
    """Hounsfield units, int16 (slices, rows, columns), head first, unlike their mirror images along every axis."""
    slices, rows, columns = 9, 24, 20
    values = np.random.default_rng(6).normal(-700, 60, (slices, rows, columns))
    values += np.linspace(0, 300, slices)[:, None, None] + np.linspace(0, 200, rows)[:, None] + np.linspace(0, 150, columns)
    values[2, 3:9, 4:7] = 400
    return values.astype(np.int16)


@pytest.fixture
def write_series() -> Callable[..., list[Path]]:
    """Write slices, int16 (S, H, W) in Hounsfield units and head first, as a DICOM series that is stored in no order."""

    def write(
        folder: Path,
        values: np.ndarray,
        spacing: float = 2.0,
        orientation: Sequence[float] = AXIAL,
        step: Sequence[float] = (0.0, 0.0, -1.0),
        positions: Sequence[float] | None = None,
        study: str = "1.2.3",
        series: str = "",
        number: int = 1,
        slope: float = 1.0,
        **elements: Any,
    ) -> list[Path]:
        import pydicom
        from pydicom.dataset import FileMetaDataset
        from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

        folder.mkdir(parents=True, exist_ok=True)
        series = series or generate_uid()
        along = np.asarray(positions if positions is not None else np.arange(len(values)) * spacing)
        places = np.multiply.outer(along, step)
        order = np.random.default_rng(number).permutation(len(values))
        paths = []
        for name, place in enumerate(order):
            header = pydicom.Dataset()
            header.file_meta = FileMetaDataset()
            header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            header.SOPClassUID, header.SOPInstanceUID = CTImageStorage, generate_uid()
            header.Modality, header.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
            header.StudyInstanceUID, header.SeriesInstanceUID, header.SeriesNumber = study, series, number
            header.InstanceNumber = name + 1
            header.PatientID = "P-17"
            header.ImagePositionPatient = [float(x) for x in places[place] + np.array([-100.0, -90.0, 300.0])]
            header.ImageOrientationPatient = [float(x) for x in orientation]
            header.PixelSpacing = [0.75, 0.75]
            header.WindowCenter, header.WindowWidth = [40, -600], [400, 1200]
            header.Rows, header.Columns = values[place].shape
            header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
            header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 12, 11, 0
            header.RescaleSlope, header.RescaleIntercept = slope, -1024
            header.PixelData = np.rint((values[place] + 1024.0) / slope).astype("<u2").tobytes()
            for key, value in elements.items():
                setattr(header, key, value)
            paths.append(folder / f"IM{number}_{name}")
            header.save_as(paths[-1], enforce_file_format=True)
        return [paths[list(order).index(place)] for place in range(len(values))]

    return write


@pytest.fixture
def compress() -> Callable[[Path, bytes, str], None]:
    """Replace the pixels of a DICOM file by a compressed picture."""

    def replace(path: Path, picture: bytes, syntax: str) -> None:
        import pydicom
        from pydicom.encaps import encapsulate

        header = pydicom.dcmread(path)
        header.PixelData = encapsulate([picture])
        header["PixelData"].VR = "OB"
        header.file_meta.TransferSyntaxUID = syntax
        header.save_as(path)

    return replace


@pytest.fixture(scope="session")
def _prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from ctcovid.base.console import Console
    from ctcovid.commands import prepare

    root = tmp_path_factory.mktemp("prepared")
    for position, label in enumerate(("NCP", "CP", "Normal")):
        for number in range(3):
            folder = root / label / str(10 * position + number) / "1"
            folder.mkdir(parents=True)
            for index in range(6):
                pixels = np.random.default_rng([position, number, index]).integers(40 * position, 200, (32, 32), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    options = prepare.Options(root, depth=2, size=32, output=root / "volumes.h5", workers=1)
    prepare.run(options, Console(quiet=True, results=False))
    return root / "volumes.h5"


@pytest.fixture
def volumes_file(_prepared: Path, tmp_path: Path) -> Path:
    """A volumes.h5 of depth 2 and size 32, three classes, of noise; each test has its own."""
    return Path(shutil.copy(_prepared, tmp_path / "volumes.h5"))
