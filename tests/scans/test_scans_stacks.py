"""DICOM slices that belong together, and those that do not: out of a series comes one consistent stack, or the reason why not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid
from whole import read_scan

from ctcovid.base.errors import InputError
from ctcovid.scans.discover import find_scans
from ctcovid.scans.scan import Scan

Write = Callable[..., list[Path]]
Marks = Callable[[int], dict[str, Any]]
SIDE = 32


def grey(values: np.ndarray) -> np.ndarray:
    """The lung window by its definition, in double precision."""
    return np.clip(np.rint((values.astype(float) + 1350) * 255 / 1500), 0, 255).astype(np.uint8)


def only(path: Path, series: str | None = None) -> Scan:
    (scan,) = find_scans([path], series)
    return scan


def codes(scan: Scan) -> set[str]:
    return {finding.code for finding in scan.findings}


def said(scan: Scan, code: str) -> str:
    (finding,) = (one for one in scan.findings if one.code == code)
    assert finding.severity == ("error" if not scan.slices else "warning")
    return finding.message


def shows(scan: Scan, values: np.ndarray) -> bool:
    return np.array_equal(read_scan(scan, SIDE), grey(values))


@pytest.fixture(scope="module")
def inhaled(sample_data: Path) -> np.ndarray:
    """A real chest, int16 (12, 32, 32), head first."""
    image = SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(sample_data / "nifti" / "chest-cap001-128.nii.gz")), "LPS")
    values = SimpleITK.GetArrayFromImage(image)[::-1]
    step = len(values) // 14
    return np.ascontiguousarray(values[step : 13 * step : step, ::4, ::4][:12]).round().clip(-1024, 3000).astype(np.int16)


@pytest.fixture(scope="module")
def exhaled(inhaled: np.ndarray) -> np.ndarray:
    """The same chest two pixels higher."""
    return np.roll(inhaled, -2, axis=1)


@pytest.fixture
def write() -> Write:
    """Slices 12 mm apart in one series, each of 12 mm, whose numbers count from `first`, from the head, as files in no order.

    An element may be a function from the place of a slice to its value; None leaves it out.
    """

    def write(folder: Path, values: np.ndarray, first: int = 1, shift: float = 0, spacing: float = 12, **elements: Any) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        names = np.random.default_rng(first).permutation(len(values))
        paths = []
        for place, pixels in enumerate(values):
            header = ct(pixels[None])
            header.SOPClassUID, header.SeriesInstanceUID = CTImageStorage, "1.5"
            header.InstanceNumber = first + place
            header.ImagePositionPatient = [0, 0, 300 - spacing * place - shift]
            header.ImageOrientationPatient, header.PixelSpacing, header.SliceThickness = [1, 0, 0, 0, 1, 0], [0.75, 0.75], 12
            header.RescaleSlope, header.RescaleIntercept = 1, 0
            for name, value in elements.items():
                setattr(header, name, value(place) if callable(value) else value)
            paths.append(folder / f"{first}-{shift:g}-{names[place]}.dcm")
            header.save_as(paths[-1], enforce_file_format=True)
        return paths

    return write


def ct(values: np.ndarray) -> pydicom.Dataset:
    header = pydicom.Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SOPInstanceUID, header.StudyInstanceUID, header.PatientID = generate_uid(), "1.1", "P"
    header.Modality, header.SeriesNumber, header.ImageType = "CT", 1, ["ORIGINAL", "PRIMARY", "AXIAL"]
    header.Rows, header.Columns = values.shape[1:]
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 1
    header.PixelData = values.astype("<i2").tobytes()
    header["PixelData"].VR = "OW"
    return header


# --- several stacks in one series


@pytest.mark.parametrize(
    ("count", "shift"), [(12, 0.0), (12, 1.0), (12, 4.0), (12, 6.0), (12, 8.0), (8, 5.0), (8, 6.0), (5, 0.0), (5, 6.0)]
)
def test_of_two_acquisitions_one_is_used_wherever_the_second_lies(
    count: int, shift: float, write: Write, inhaled: np.ndarray, exhaled: np.ndarray, tmp_path: Path
) -> None:
    write(tmp_path, inhaled, AcquisitionNumber=1)
    write(tmp_path, exhaled[:count], first=101, shift=shift, AcquisitionNumber=2)
    scan = only(tmp_path)
    assert shows(scan, inhaled)
    assert codes(scan) == {"several-acquisitions"}
    assert said(scan, "several-acquisitions") == (
        f"series 1 is not one stack: used acquisition 1 (12 slices, 12 mm); not used: acquisition 2 ({count} slices)"
    )


def test_of_acquisitions_the_one_with_more_slices_is_used(write: Write, inhaled: np.ndarray, exhaled: np.ndarray, tmp_path: Path) -> None:
    write(tmp_path, inhaled[:7], AcquisitionNumber=1)
    write(tmp_path, exhaled, first=101, shift=6, AcquisitionNumber=2)
    assert shows(only(tmp_path), exhaled)


@pytest.mark.parametrize("shift", [0.0, 6.0])
@pytest.mark.parametrize(
    ("mark", "one", "other"),
    [
        ("AcquisitionTime", "101500", "101512"),
        ("ContentTime", "101500", "101512"),
        ("TemporalPositionIdentifier", 1, 2),
        ("TriggerTime", 120, 480),
        ("EchoNumbers", 1, 2),
        ("ImageType", ["ORIGINAL", "PRIMARY", "AXIAL"], ["DERIVED", "SECONDARY", "AXIAL"]),
        ("ImageType", ["ORIGINAL", "PRIMARY", "AXIAL", "VMI"], ["ORIGINAL", "PRIMARY", "AXIAL", "STANDARD"]),
        ("ConvolutionKernel", "B31f", "B70f"),
        ("KVP", 80, 140),
        ("SeriesDescription", "T=0%", "T=50%"),
        ("FrameOfReferenceUID", "1.2.1", "1.2.2"),
        ("Nothing", None, None),
    ],
)
def test_any_mark_that_interleaves_tells_stacks_apart(
    mark: str, one: object, other: object, shift: float, write: Write, inhaled: np.ndarray, exhaled: np.ndarray, tmp_path: Path
) -> None:
    """Even none: each stack has its own run of numbers."""
    write(tmp_path, inhaled, **({mark: one} if one else {}))
    write(tmp_path, exhaled, first=101, shift=shift, **({mark: other} if other else {}))
    scan = only(tmp_path)
    assert shows(scan, inhaled)
    assert codes(scan) == {"several-acquisitions"}


@pytest.mark.parametrize("fastest", ["position", "phase"])
@pytest.mark.parametrize("mark", ["NominalPercentageOfCardiacPhase", "TemporalPositionIndex", ""])
def test_of_ten_phases_one_is_used(mark: str, fastest: str, write: Write, inhaled: np.ndarray, tmp_path: Path) -> None:
    for phase in range(10):
        marked: dict[str, Any] = {mark: 10 * phase} if mark else {}
        if fastest == "phase":
            marked["InstanceNumber"] = lambda place, phase=phase: 10 * place + phase + 1
        write(tmp_path, np.roll(inhaled, -phase, axis=1), first=100 * phase + 1, **marked)
    scan = only(tmp_path)
    assert shows(scan, inhaled)
    assert len(scan.slices) == 12 and codes(scan) == {"several-acquisitions"}
    assert "and 4 more" in said(scan, "several-acquisitions")


def test_phases_within_acquisitions_are_told_apart_by_both(write: Write, inhaled: np.ndarray, exhaled: np.ndarray, tmp_path: Path) -> None:
    for acquisition in (1, 2):
        for echo in (1, 2):
            values = inhaled if acquisition == echo == 1 else exhaled
            write(tmp_path, values, first=100 * acquisition + 20 * echo, EchoNumbers=echo, AcquisitionNumber=acquisition)
    scan = only(tmp_path)
    assert shows(scan, inhaled)
    assert "used echo 1, acquisition 1 (12 slices, 12 mm)" in said(scan, "several-acquisitions")


def test_original_is_used_and_not_what_was_computed_from_it(write: Write, inhaled: np.ndarray, exhaled: np.ndarray, tmp_path: Path) -> None:
    write(tmp_path, exhaled, ImageType=["DERIVED", "SECONDARY", "AXIAL"])
    write(tmp_path, inhaled[:10], first=101, shift=12, ImageType=["ORIGINAL", "PRIMARY", "AXIAL"])
    scan = only(tmp_path)
    assert shows(scan, inhaled[:10])
    assert codes(scan) == {"several-acquisitions"}


def test_derived_slices_that_complete_a_stack_are_named(write: Write, inhaled: np.ndarray, tmp_path: Path) -> None:
    kinds = ["DERIVED", "ORIGINAL"]
    write(tmp_path, inhaled, ImageType=lambda place: [kinds[place < 8], "PRIMARY", "AXIAL"])
    scan = only(tmp_path)
    assert shows(scan, inhaled)
    assert said(scan, "derived-series") == "4 of its 12 slices are marked as computed from others"


def test_scouts_and_maps_within_a_series_are_named(write: Write, inhaled: np.ndarray, tmp_path: Path) -> None:
    write(tmp_path, inhaled)
    write(tmp_path, inhaled[:1], first=50, shift=40, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write(tmp_path, inhaled[:2], first=60, shift=50, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    write(tmp_path, inhaled[:12], first=70, shift=3, RescaleType="MGML")
    scan = only(tmp_path)
    assert shows(scan, inhaled)
    assert said(scan, "several-acquisitions") == (
        "series 1 is not one stack: used 12 slices, 12 mm; not used: 12 slices, in mg/ml (MGML), 2 slices, coronal, 1 slice, scout"
    )


def test_bolus_tracking_within_a_series_is_left(write: Write, inhaled: np.ndarray, tmp_path: Path) -> None:
    write(tmp_path, inhaled, first=20, AcquisitionNumber=2)
    write(tmp_path, inhaled[[5] * 6], spacing=0, shift=60, AcquisitionNumber=1)
    scan = only(tmp_path)
    assert shows(scan, inhaled)
    assert codes(scan) == {"several-acquisitions"}


@pytest.mark.parametrize("shift", [0.0, 4.0])
def test_stacks_that_nothing_tells_apart_are_refused(
    shift: float, write: Write, inhaled: np.ndarray, exhaled: np.ndarray, tmp_path: Path
) -> None:
    paths = [*write(tmp_path / "a", inhaled, InstanceNumber=1), *write(tmp_path / "b", exhaled, shift=shift, InstanceNumber=1)]
    for name, path in zip(np.random.default_rng(4).permutation(24), paths, strict=True):
        path.rename(tmp_path / f"{name:02d}")
    scan = only(tmp_path)
    assert codes(scan) == {"inconsistent-stack"}
    with pytest.raises(InputError, match="nothing tells"):
        read_scan(scan, SIDE)


def test_file_that_was_copied_is_one_slice(write: Write, inhaled: np.ndarray, tmp_path: Path) -> None:
    paths = write(tmp_path, inhaled)
    for path in paths:
        (tmp_path / f"copy of {path.name}").write_bytes(path.read_bytes())
    scan = only(tmp_path)
    assert shows(scan, inhaled)
    assert said(scan, "duplicate-position") == "12 slices there twice; one copy of each is kept"


# --- what stays one stack


@pytest.mark.parametrize(
    "number",
    [lambda place: place + 1, lambda place: 12 - place, lambda place: place // 4 + 1, lambda place: 1 + (place > 6)],
    ids=["each its own", "backwards", "step and shoot", "two halves"],
)
@pytest.mark.parametrize("mark", ["AcquisitionNumber", "AcquisitionTime", "TriggerTime"])
def test_acquisitions_along_the_patient_are_one_stack(
    mark: str, number: Callable[[int], int], write: Write, inhaled: np.ndarray, tmp_path: Path
) -> None:
    write(tmp_path, inhaled, **{mark: lambda place: number(place) if mark.endswith("Number") else f"1015{number(place):02d}"})
    scan = only(tmp_path)
    assert codes(scan) == set()
    assert shows(scan, inhaled)


@pytest.mark.parametrize("seed", range(8))
def test_marks_in_no_order_leave_a_stack_whole(seed: int, write: Write, inhaled: np.ndarray, tmp_path: Path) -> None:
    """As of slices that several computers reconstruct, or whose numbers were shuffled."""
    generator = np.random.default_rng(seed)
    times, numbers = generator.integers(4, size=12), generator.permutation(12)
    write(tmp_path, inhaled, ContentTime=lambda place: f"1015{times[place]:02d}", InstanceNumber=lambda place: int(numbers[place]))
    scan = only(tmp_path)
    assert codes(scan) == set()
    assert shows(scan, inhaled)


def test_slices_that_cover_the_patient_only_together_are_one_stack(write: Write, inhaled: np.ndarray, tmp_path: Path) -> None:
    """Two acquisitions, of which the second takes the slices that the first left out."""
    write(tmp_path, inhaled[::2], spacing=24, AcquisitionNumber=1)
    write(tmp_path, inhaled[1::2], first=101, spacing=24, shift=12, AcquisitionNumber=2)
    scan = only(tmp_path)
    assert codes(scan) == set()
    assert shows(scan, inhaled)


@pytest.mark.parametrize("shift", [0.0, 6.0])
def test_acquisitions_that_overlap_at_their_ends_are_joined(shift: float, write: Write, inhaled: np.ndarray, tmp_path: Path) -> None:
    """The second begins two slices before the end of the first, or one and a half."""
    write(tmp_path, inhaled[:7], AcquisitionNumber=1)
    write(tmp_path, inhaled[5:], first=101, shift=60 + shift, AcquisitionNumber=2)
    scan = only(tmp_path)
    assert shows(scan, inhaled)
    assert "several-acquisitions" in codes(scan)
    assert "used acquisition 1 and acquisition 2" in said(scan, "several-acquisitions")


@pytest.mark.parametrize("reverse", [False, True])
def test_tilted_stack_of_acquisitions_comes_from_the_head(
    reverse: bool, write: Write, inhaled: np.ndarray, exhaled: np.ndarray, tmp_path: Path
) -> None:
    angle = np.radians(15)
    tilted = {"ImageOrientationPatient": [1, 0, 0, 0, float(np.cos(angle)), -float(np.sin(angle))], "GantryDetectorTilt": 15}
    write(tmp_path, inhaled, AcquisitionNumber=1, InstanceNumber=lambda place: 12 - place if reverse else place + 1, **tilted)
    write(tmp_path, exhaled, first=101, shift=6, AcquisitionNumber=2, **tilted)
    scan = only(tmp_path)
    assert codes(scan) == {"several-acquisitions", "gantry-tilt"}
    assert shows(scan, inhaled)


# --- several files of many slices


def enhanced(
    path: Path, values: np.ndarray, places: Sequence[int], marks: Callable[[int], dict[str, Any]] = lambda place: {}, **elements: Any
) -> None:
    """An Enhanced CT of the slices at `places`, 12 mm apart; `marks` gives elements of each slice by the sequence they are in."""
    header = ct(values[[int(place) for place in places]])
    header.SOPClassUID, header.SeriesInstanceUID, header.NumberOfFrames = EnhancedCTImageStorage, "1.2", len(places)
    header.SharedFunctionalGroupsSequence = [
        group_of(
            PlaneOrientationSequence={"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
            PixelMeasuresSequence={"PixelSpacing": [0.75, 0.75], "SliceThickness": 12},
            PixelValueTransformationSequence={"RescaleSlope": 1, "RescaleIntercept": 0, "RescaleType": "HU"},
        )
    ]
    header.PerFrameFunctionalGroupsSequence = [
        group_of(PlanePositionSequence={"ImagePositionPatient": [0, 0, 300 - 12 * place]}, **marks(place)) for place in places
    ]
    for name, value in elements.items():
        setattr(header, name, value)
    header.save_as(path, enforce_file_format=True)


def group_of(**sequences: dict[str, Any]) -> pydicom.Dataset:
    group = pydicom.Dataset()
    for name, elements in sequences.items():
        item = pydicom.Dataset()
        for keyword, value in elements.items():
            setattr(item, keyword, value)
        setattr(group, name, [item])
    return group


@pytest.mark.parametrize("named", [True, False])
def test_files_of_a_concatenation_are_one_scan_in_whatever_order(named: bool, inhaled: np.ndarray, tmp_path: Path) -> None:
    for name, part, places in (("b", 1, [3, 1, 0, 2]), ("c", 2, [4, 6, 5]), ("a", 3, [11, 9, 8, 10, 7])):
        parts = {"ConcatenationUID": "1.7", "InConcatenationNumber": part, "InConcatenationTotalNumber": 3} if named else {}
        enhanced(tmp_path / f"{name}.dcm", inhaled, places, InstanceNumber=part, **parts)
    scan = only(tmp_path)
    assert codes(scan) == set()
    assert shows(scan, inhaled)
    assert np.array_equal(np.concatenate([read_scan(piece, SIDE) for piece in scan.pieces(1)]), grey(inhaled))
    assert len(scan.pieces(1)) == 3


def test_concatenation_whose_last_file_has_one_slice_is_whole(inhaled: np.ndarray, tmp_path: Path) -> None:
    enhanced(tmp_path / "1.dcm", inhaled, range(11))
    enhanced(tmp_path / "2.dcm", inhaled, [11])
    assert shows(only(tmp_path), inhaled)


@pytest.mark.parametrize("total", [3, None])
def test_concatenation_that_lacks_a_file_is_refused(total: int | None, inhaled: np.ndarray, tmp_path: Path) -> None:
    for part, places in ((1, range(4)), (3, range(8, 12))):
        enhanced(
            tmp_path / f"{part}.dcm",
            inhaled,
            places,
            ConcatenationUID="1.7",
            InConcatenationNumber=part,
            InConcatenationTotalNumber=total,
        )
    assert said(only(tmp_path), "inconsistent-stack") == "series 1: only 2 of the 3 files of its concatenation are there"


def test_damaged_file_of_a_concatenation_counts_with_all_its_slices(inhaled: np.ndarray, tmp_path: Path) -> None:
    enhanced(tmp_path / "1.dcm", inhaled, range(8))
    enhanced(tmp_path / "2.dcm", inhaled, range(8, 12))
    (tmp_path / "2.dcm").write_bytes((tmp_path / "2.dcm").read_bytes()[:-100])
    assert said(only(tmp_path), "unreadable-slice") == "4 of its 12 slices in 1 file cannot be read: 1 cut short"


@pytest.mark.parametrize(
    ("sequence", "keyword", "values"),
    [
        ("FrameContentSequence", "TemporalPositionIndex", (1, 2)),
        ("FrameContentSequence", "FrameAcquisitionNumber", (1, 2)),
        ("FrameContentSequence", "StackID", ("1", "2")),
        ("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase", (30.0, 75.0)),
        ("RespiratorySynchronizationSequence", "NominalPercentageOfRespiratoryPhase", (0.0, 50.0)),
        ("CTImageFrameTypeSequence", "FrameType", (["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], ["DERIVED", "PRIMARY", "VOLUME", "NONE"])),
        ("CTReconstructionSequence", "ConvolutionKernel", ("B31f", "B70f")),
    ],
)
def test_frames_of_one_file_are_told_apart_as_files_are(
    sequence: str, keyword: str, values: tuple[Any, Any], inhaled: np.ndarray, exhaled: np.ndarray, tmp_path: Path
) -> None:
    """24 frames at 12 positions in turn."""
    both = np.concatenate([inhaled, exhaled])
    enhanced(tmp_path / "e.dcm", both, [place for pair in zip(range(12), range(12, 24), strict=True) for place in pair])
    header = pydicom.dcmread(tmp_path / "e.dcm")
    for frame, group in enumerate(header.PerFrameFunctionalGroupsSequence):
        group.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 300 - 12 * (frame // 2)]
        setattr(group, sequence, getattr(group_of(**{sequence: {keyword: values[frame % 2]}}), sequence))
    header.save_as(tmp_path / "e.dcm")
    scan = only(tmp_path)
    assert shows(scan, inhaled)
    assert codes(scan) == {"several-acquisitions"}


def test_scout_among_the_frames_of_a_file_is_left(inhaled: np.ndarray, tmp_path: Path) -> None:
    kinds = {12: ["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]}
    values = np.concatenate([inhaled, inhaled[:1]])
    enhanced(
        tmp_path / "e.dcm",
        values,
        range(13),
        lambda place: {"CTImageFrameTypeSequence": {"FrameType": kinds.get(place, ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"])}},
    )
    scan = only(tmp_path)
    assert shows(scan, inhaled)
    assert codes(scan) == {"several-acquisitions"}


# --- a series, or study, for each slice


@pytest.mark.parametrize("own", [("SeriesInstanceUID",), ("StudyInstanceUID",), ("StudyInstanceUID", "SeriesInstanceUID")])
def test_slices_with_a_series_of_their_own_are_joined(own: Sequence[str], write: Write, inhaled: np.ndarray, tmp_path: Path) -> None:
    write(tmp_path, inhaled, SeriesNumber=lambda place: place, **dict.fromkeys(own, lambda place: f"1.9.{place}"))
    scan = only(tmp_path)
    what = "study" if "StudyInstanceUID" in own else "series"
    assert shows(scan, inhaled)
    assert (
        said(scan, "joined-series") == f"each of its 12 files has a {what} UID of its own; joined, as their positions continue each other"
    )


def test_kernels_of_slices_with_a_series_of_their_own_are_not_mixed(
    write: Write, inhaled: np.ndarray, exhaled: np.ndarray, tmp_path: Path
) -> None:
    write(tmp_path, inhaled, ConvolutionKernel="B70f", SeriesInstanceUID=lambda place: f"1.8.{place}")
    lone = {"SeriesInstanceUID": lambda place: f"1.9.{place}", "SeriesNumber": 2}
    write(tmp_path, exhaled, first=101, shift=6, ConvolutionKernel="B31f", **lone)
    scan = only(tmp_path)
    assert shows(scan, inhaled)
    assert codes(scan) == {"joined-series", "several-series"}


@pytest.mark.parametrize("places", [[0, 0, 0, 12, 12, 12, 24, 24, 24, 36, 36, 36], [0, 5, 31, 40, 41, 90, 97, 120, 155, 170, 171, 300]])
def test_slices_with_a_series_of_their_own_that_do_not_continue_are_refused_with_the_cause(
    places: list[float], write: Write, inhaled: np.ndarray, tmp_path: Path
) -> None:
    for number, place in enumerate(places):
        write(tmp_path / "scan", inhaled[:1], first=number, shift=place, SeriesInstanceUID=f"1.9.{number}", InstanceNumber=1)
    text = "each of its 12 files has a series UID of its own, and their positions do not continue each other"
    assert said(only(tmp_path / "scan"), "inconsistent-stack") == text


def test_series_of_a_study_are_not_merged(write: Write, inhaled: np.ndarray, tmp_path: Path) -> None:
    """A chest and an abdomen that continue each other, and single slices beside them."""
    write(tmp_path, inhaled[:8], SeriesNumber=5)
    write(tmp_path, inhaled[8:], first=20, shift=96, SeriesInstanceUID="1.6", SeriesNumber=6)
    for number in range(4):
        own = {"SeriesInstanceUID": f"1.7.{number}", "SeriesNumber": 7 + number}
        write(tmp_path, inhaled[:1], first=50 + number, shift=150 + 12 * number, **own)
    scan = only(tmp_path)
    assert shows(scan, inhaled[:8])
    assert codes(scan) == {"several-series"}


@pytest.mark.parametrize("elements", [{"PatientID": "other"}, {"FrameOfReferenceUID": "1.4"}])
def test_single_slices_of_others_are_not_joined(elements: dict[str, str], write: Write, inhaled: np.ndarray, tmp_path: Path) -> None:
    own = {"StudyInstanceUID": lambda place: f"1.9.{place}", "SeriesInstanceUID": lambda place: f"1.8.{place}"}
    others = {name: lambda place, value=value: f"{value}.{place}" for name, value in elements.items()}
    write(tmp_path, inhaled[:4], **{"FrameOfReferenceUID": "1.3", **own, **others})
    assert len(find_scans([tmp_path])) == 4


# --- in Hounsfield units


def in_real_world(unit: str) -> list[pydicom.Dataset]:
    mapping = group_of(MeasurementUnitsCodeSequence={"CodeValue": unit, "CodingSchemeDesignator": "UCUM", "CodeMeaning": unit})
    return [mapping]


@pytest.mark.parametrize(
    ("elements", "named"),
    [
        ({"RescaleType": "MGML"}, "mg/ml (MGML)"),
        ({"RescaleType": "ED"}, "electron density (ED)"),
        ({"RescaleType": "EDW"}, "electron density relative to water (EDW)"),
        ({"RescaleType": "Z_EFF"}, "effective atomic number (Z_EFF)"),
        ({"RescaleType": "HU_MOD"}, "modified Hounsfield units (HU_MOD)"),
        ({"RescaleType": "OD"}, "optical density (OD)"),
        ({"RescaleType": "PCT"}, "per cent (PCT)"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", "MAT_SPECIFIC"]}, "MAT_SPECIFIC"),
        ({"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "MAT_REMOVED"], "RescaleType": "HU"}, "MAT_REMOVED"),
        ({"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "ELECTRON_DENSITY"]}, "electron density (ELECTRON_DENSITY)"),
        ({"RealWorldValueMappingSequence": in_real_world("mg/cm3")}, "mg/cm3"),
    ],
)
def test_maps_are_not_ct(elements: dict[str, Any], named: str, write: Write, inhaled: np.ndarray, tmp_path: Path) -> None:
    """Never used beside a CT, however many more or thinner slices they have; alone, refused with their unit."""
    write(tmp_path / "map", inhaled, spacing=6, SeriesInstanceUID="1.6", SeriesNumber=2, **elements)
    scan = only(tmp_path)
    assert said(scan, "not-hounsfield") == (f"series 2 is in {named}, not in Hounsfield units; give the CT that it was computed from")
    write(tmp_path / "ct", inhaled[:8])
    scan = only(tmp_path)
    assert shows(scan, inhaled[:8])
    assert f"series 2 (12 slices, in {named})" in scan.findings[0].message
    assert codes(only(tmp_path, "2")) == {"not-hounsfield"}


@pytest.mark.parametrize(
    "elements",
    [
        {"RescaleType": "HU"},
        {"RescaleType": "US"},
        {"RescaleType": ""},
        {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", "VMI"]},
        {"RealWorldValueMappingSequence": in_real_world("[hnsf'U]")},
        {"RealWorldValueMappingSequence": in_real_world("1"), "RescaleType": "HU"},
    ],
)
def test_ct_that_says_so_or_nothing_is_used(elements: dict[str, Any], write: Write, inhaled: np.ndarray, tmp_path: Path) -> None:
    write(tmp_path, inhaled, **elements)
    scan = only(tmp_path)
    assert codes(scan) == set()
    assert shows(scan, inhaled)


@pytest.mark.parametrize(("unit", "found"), [("HU", set()), ("OD", {"not-hounsfield"})])
def test_modality_table_is_a_rescale(unit: str, found: set[str], write: Write, inhaled: np.ndarray, tmp_path: Path) -> None:
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData, table.ModalityLUTType = [2, 0, 16], bytes(4), unit
    for path in write(tmp_path, inhaled, ModalityLUTSequence=[table], PixelRepresentation=0):
        header = pydicom.dcmread(path)
        del header.RescaleIntercept
        header.save_as(path)
    assert codes(only(tmp_path)) == found


def test_maps_in_frames_of_a_file_are_not_ct(inhaled: np.ndarray, tmp_path: Path) -> None:
    map_ = {"RescaleSlope": 0.1, "RescaleIntercept": 0, "RescaleType": "MGML"}
    hu = {"RescaleSlope": 1, "RescaleIntercept": 0, "RescaleType": "HU"}
    enhanced(tmp_path / "e.dcm", inhaled, range(12), lambda place: {"PixelValueTransformationSequence": hu if place < 8 else map_})
    scan = only(tmp_path)
    assert shows(scan, inhaled[:8])
    assert "4 slices, in mg/ml (MGML)" in said(scan, "several-acquisitions")
    enhanced(tmp_path / "e.dcm", inhaled, range(12), lambda place: {"PixelValueTransformationSequence": map_})
    assert codes(only(tmp_path)) == {"not-hounsfield"}


def test_frames_without_rescale_are_known(inhaled: np.ndarray, tmp_path: Path) -> None:
    enhanced(tmp_path / "e.dcm", inhaled, range(12))
    header = pydicom.dcmread(tmp_path / "e.dcm")
    del header.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence
    header.save_as(tmp_path / "e.dcm")
    assert codes(only(tmp_path)) == {"no-rescale"}
