"""No text that somebody may have typed into a DICOM header reaches an output, a message or a traceback of any command."""

from __future__ import annotations

import gzip
import io
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch

from ctcovid.cli import main
from ctcovid.models import registry, saved_model
from ctcovid.models.network import SCALING

WriteSeries = Callable[..., list[Path]]
MARK = "ZQX"
# Elements that a usable series may have with any text in them.
TEXTS = """
PatientName PatientID PatientAddress PatientComments OtherPatientIDs OtherPatientNames EthnicGroup Occupation AdditionalPatientHistory
PatientBirthName PatientMotherBirthName MedicalRecordLocator MilitaryRank CountryOfResidence RegionOfResidence PatientTelephoneNumbers
InstitutionName InstitutionAddress InstitutionalDepartmentName StationName ReferringPhysicianName PerformingPhysicianName OperatorsName
NameOfPhysiciansReadingStudy RequestingPhysician RequestingService StudyDescription SeriesDescription ProtocolName AccessionNumber StudyID
ImageComments RequestedProcedureDescription PerformedProcedureStepDescription Manufacturer ManufacturerModelName DeviceSerialNumber
BodyPartExamined ConvolutionKernel ContrastBolusAgent DerivationDescription StudyComments AcquisitionDeviceProcessingDescription
"""
NAMES = [name for line in TEXTS.splitlines() for name in line.split()]
# Those that make it unusable, or are quoted when something is wrong with it; of two stacks, where one has the text.
ALONE = ["Modality", "RescaleType", "PhotometricInterpretation", "ImageType", "ConvolutionKernel", "StackID", "SeriesNumber"]
ALONE += ["RescaleSlope"]


def marked(number: int) -> str:
    return f"{MARK}{number:03d}"


@pytest.fixture
def scanned(write_series: WriteSeries, chest: np.ndarray, tmp_path: Path) -> Path:
    """A list of nine usable scans whose elements are marked, and of one for each element that makes them unusable or odd."""
    lines = ["path,label,patient,split"]
    texts = {name: marked(number) for number, name in enumerate(NAMES)}
    texts |= {"StudyDate": "17760704", "AcquisitionDateTime": "17760704120000"}
    for number, (label, part) in enumerate((label, part) for label in ("NCP", "CP", "Normal") for part in ("train", "valid", "test")):
        paths = write_series(tmp_path / f"s{number}", chest + 20 * number, study=f"1.2.77031.{number}", **texts)
        for path in paths:
            with pydicom.dcmread(path) as header:
                header.private_block(0x0009, marked(90), create=True).add_new(1, "LO", marked(91))
                header.save_as(path)
        lines.append(f"s{number},{label},p{number},{part}")
    for number, name in enumerate(ALONE, start=len(NAMES)):
        for path in write_series(tmp_path / f"odd{number}", chest, study=f"1.2.77031.1{number}", **texts)[:: 2 if name in NAMES else 1]:
            with pydicom.dcmread(path) as header:
                setattr(header, name, "777777" if name in ("SeriesNumber", "RescaleSlope") else marked(number))
                header.save_as(path)
            path.write_bytes(path.read_bytes().replace(b"777777", marked(number).encode()))
        lines.append(f"odd{number},NCP,q{number},train")
    (tmp_path / "scans.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def contents(path: Path) -> Iterator[tuple[str, bytes]]:
    """A file's name and bytes, and those of what is packed in it."""
    content = path.read_bytes()
    yield str(path), content
    if content.startswith(b"\x1f\x8b"):
        yield str(path), gzip.decompress(content)
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            yield from ((f"{path}:{name}", archive.read(name)) for name in archive.namelist())


def test_no_text_of_a_header_reaches_any_output(
    scanned: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], thin: None
) -> None:
    out = scanned / "out"
    monkeypatch.chdir(scanned)
    torch.manual_seed(0)
    (out / "runs" / "small").mkdir(parents=True)
    saved_model.save_weights(out / "runs" / "small" / saved_model.WEIGHTS, registry.create("r3d18"))
    card = {"architecture": "r3d18", "classes": ["NCP", "CP", "Normal"], "positive": "NCP", "depth": 4, "size": 24, "scaling": SCALING}
    saved_model.save_card(out / "runs" / "small", {**card, "data": {"path": "out/volumes.h5"}})
    model = ["--runs", "out/runs", "--device", "cpu", "--verbose"]
    for line, code in (
        (["prepare", "scans.csv", "--size", "24", "--workers", "1", "-o", "out/volumes.h5", "--verbose"], 4),
        (["evaluate", "--data", "out/volumes.h5", "-o", "out/evaluation", "--bootstrap", "10", "--workers", "1", *model], 0),
        (["predict", "scans.csv", "-o", "out/predictions.csv", "--workers", "1", *model], 4),
        (["explain", "s0", f"odd{len(NAMES) + 1}", "-o", "out/maps", "--samples", "1", "--workers", "1", *model], 4),
        (["predict", f"odd{len(NAMES)}", "--workers", "1", *model], 3),
    ):
        monkeypatch.setattr(sys, "argv", ["ctcovid", *line])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capfd.readouterr()
        assert ended.value.code == code, said.err
        assert MARK not in said.out + said.err and "77031" not in said.out + said.err and "1776" not in said.out + said.err
    names = [path for path in out.rglob("*") if path.is_file()]
    assert len(names) > 20 and {".h5", ".csv", ".json", ".html", ".npz", ".gz"} <= {path.suffix for path in names}
    found = [(name, word) for path in names for name, content in contents(path) for word in (MARK, "1.2.77031") if word.encode() in content]
    assert found == []
