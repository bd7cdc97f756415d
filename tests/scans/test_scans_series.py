"""DICOM: which series, in which order, turned which way, and its findings."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless
from whole import read_scan

from ctcovid.base.errors import InputError
from ctcovid.scans.discover import find_dataset, find_scans
from ctcovid.scans.scan import Scan

WriteSeries = Callable[..., list[Path]]


def grey(values: np.ndarray) -> np.ndarray:
    """The lung window by its definition, in double precision."""
    return np.clip(np.rint((values.astype(float) + 1350) * 255 / 1500), 0, 255).astype(np.uint8)


def squared(values: np.ndarray) -> np.ndarray:
    """Slices of 24×20 padded to 24×24, in grey."""
    return np.pad(grey(values), ((0, 0), (0, 0), (2, 2)))


def only(path: Path, series: str | None = None) -> Scan:
    (scan,) = find_scans([path], series)
    return scan


def codes(scan: Scan) -> set[str]:
    return {finding.code for finding in scan.findings}


def test_slices_come_by_position_from_the_head_and_not_by_name(write_series: WriteSeries, chest: np.ndarray, tmp_path: Path) -> None:
    from_head = write_series(tmp_path / "scan", chest)
    scan = only(tmp_path / "scan")
    assert list(scan.slices) == from_head != sorted(from_head)
    assert np.array_equal(read_scan(scan, 24), squared(chest))
    assert codes(scan) == set()
    assert scan.names == tuple(f"{number:04d}" for number in range(9))


def test_geometry_leads_from_pixels_to_the_patient(write_series: WriteSeries, chest: np.ndarray, tmp_path: Path) -> None:
    write_series(tmp_path / "scan", chest)
    geometry = only(tmp_path / "scan").geometry
    assert geometry is not None
    assert geometry.spacing == (0.75, 0.75, 2.0)
    # DICOM's first pixel is at (-100, -90, 300) in LPS; NIfTI counts to the right and to the front.
    assert np.allclose(geometry.affine @ [0, 0, 0, 1], [100, 90, 300, 1])
    assert np.allclose(geometry.affine @ [4, 2, 3, 1], [100 - 3, 90 - 1.5, 300 - 6, 1])


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        ((-1, 0, 0, 0, -1, 0), lambda values: values[:, ::-1, ::-1]),
        ((-1, 0, 0, 0, 1, 0), lambda values: values[:, :, ::-1]),
        ((0, 1, 0, 1, 0, 0), lambda values: values.transpose(0, 2, 1)),
        ((0, -1, 0, 1, 0, 0), lambda values: values.transpose(0, 2, 1)[:, :, ::-1]),
    ],
)
def test_slices_that_lie_otherwise_are_turned(
    orientation: tuple[float, ...], stored: Callable[[np.ndarray], np.ndarray], write_series: WriteSeries, chest: np.ndarray, tmp_path: Path
) -> None:
    write_series(tmp_path / "scan", stored(chest), orientation=orientation)
    assert np.array_equal(read_scan(only(tmp_path / "scan"), 24), squared(chest))


def test_rescale_slope_and_intercept_are_honoured(write_series: WriteSeries, chest: np.ndarray, tmp_path: Path) -> None:
    write_series(tmp_path / "scan", chest, slope=0.5)
    assert np.array_equal(read_scan(only(tmp_path / "scan"), 24), squared(chest))


def test_missing_slices_are_named_with_their_position(write_series: WriteSeries, chest: np.ndarray, tmp_path: Path) -> None:
    paths = write_series(tmp_path / "scan", chest)
    for index in (4, 5):
        paths[index].unlink()
    scan = only(tmp_path / "scan")
    (gap,) = scan.findings
    assert (gap.code, gap.slices) == ("gap", (3,))
    assert "about 2 slices are missing" in gap.message
    assert np.array_equal(read_scan(scan, 24), squared(np.delete(chest, (4, 5), axis=0)))


def test_a_single_missing_slice_is_said_to_be_one(write_series: WriteSeries, chest: np.ndarray, tmp_path: Path) -> None:
    write_series(tmp_path / "scan", chest)[4].unlink()
    (gap,) = only(tmp_path / "scan").findings
    assert gap.message == "about 1 slice is missing: a gap of 4 mm, where 2 mm is usual"


def test_of_acquisitions_at_one_position_the_whole_one_is_used(write_series: WriteSeries, chest: np.ndarray, tmp_path: Path) -> None:
    write_series(tmp_path / "scan", chest, series="1.5", AcquisitionNumber=1)
    write_series(tmp_path / "scan" / "again", chest[:4] + 100, series="1.5", AcquisitionNumber=2)
    scan = only(tmp_path / "scan")
    (said,) = scan.findings
    assert (said.code, said.severity) == ("several-acquisitions", "warning")
    assert said.message == "series 1 is not one stack: used acquisition 1 (9 slices, 2 mm); not used: acquisition 2 (4 slices)"
    assert np.array_equal(read_scan(scan, 24), squared(chest))


def test_uneven_distances_are_named(write_series: WriteSeries, chest: np.ndarray, tmp_path: Path) -> None:
    write_series(tmp_path / "scan", chest, positions=[0, 2, 4, 6, 8.5, 10, 12, 14, 16])
    assert codes(only(tmp_path / "scan")) == {"uneven-spacing"}


def test_tilted_gantry_is_named_and_is_in_the_geometry(write_series: WriteSeries, chest: np.ndarray, tmp_path: Path) -> None:
    angle = np.radians(15)
    write_series(tmp_path / "scan", chest, orientation=(1, 0, 0, 0, np.cos(angle), -np.sin(angle)), GantryDetectorTilt=15)
    scan = only(tmp_path / "scan")
    (tilt,) = scan.findings
    assert tilt.code == "gantry-tilt" and "15.0°" in tilt.message
    assert np.array_equal(read_scan(scan, 24), squared(chest))
    assert scan.geometry is not None
    assert np.allclose(scan.geometry.affine[:3, 2], [0, 0, -2])
    assert np.allclose(scan.geometry.affine[:3, 1], [0, -0.75 * np.cos(angle), -0.75 * np.sin(angle)])


def test_files_that_do_not_say_where_they_lie_come_by_number_with_a_warning(
    write_series: WriteSeries, chest: np.ndarray, tmp_path: Path
) -> None:
    for number, path in enumerate(write_series(tmp_path / "scan", chest)):
        header = pydicom.dcmread(path)
        del header.ImagePositionPatient
        header.InstanceNumber = 10 * number
        header.save_as(path)
    scan = only(tmp_path / "scan")
    assert codes(scan) == {"no-positions"}
    assert scan.geometry is None
    assert np.array_equal(read_scan(scan, 24), squared(chest))


def test_files_that_all_claim_one_position_come_by_number_with_a_warning(
    write_series: WriteSeries, chest: np.ndarray, tmp_path: Path
) -> None:
    for number, path in enumerate(write_series(tmp_path / "scan", chest, spacing=0)):
        header = pydicom.dcmread(path)
        header.InstanceNumber = number
        header.save_as(path)
    scan = only(tmp_path / "scan")
    assert codes(scan) == {"no-positions"}
    assert np.array_equal(read_scan(scan, 24), squared(chest))


def test_pixels_that_are_not_square_are_named(write_series: WriteSeries, chest: np.ndarray, tmp_path: Path) -> None:
    write_series(tmp_path / "scan", chest, PixelSpacing=[0.75, 0.6])
    (said,) = only(tmp_path / "scan").findings
    assert (said.code, said.message) == ("anisotropic-pixels", "pixels are 0.6 mm wide and 0.75 mm high, but are used as squares")


# --- which series


def test_thinnest_of_the_axial_series_is_used_and_the_others_are_named(
    write_series: WriteSeries, chest: np.ndarray, tmp_path: Path
) -> None:
    write_series(tmp_path / "study" / "thick", chest[::2], spacing=4, number=2)
    write_series(tmp_path / "study" / "thin", chest, spacing=2, number=3)
    write_series(tmp_path / "study" / "part", chest[:6], spacing=2, number=4)
    write_series(tmp_path / "study", chest, spacing=1, number=5, ImageType=["DERIVED", "SECONDARY", "MPR"])
    write_series(tmp_path / "study", chest[:2], number=1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_series(tmp_path / "study", chest, number=6, orientation=(1, 0, 0, 0, 0, -1), step=(0, 1, 0))
    write_series(tmp_path / "study", chest, number=7, orientation=(0, 1, 0, 0, 0, -1), step=(1, 0, 0))
    write_series(tmp_path / "study", chest[:3], number=8, SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    write_series(tmp_path / "study", chest, spacing=1, number=9, Modality="MR")
    scan = only(tmp_path / "study")
    assert scan.id == "study"
    assert np.array_equal(read_scan(scan, 24), squared(chest))
    (said,) = scan.findings
    assert (said.code, said.severity) == ("several-series", "info")
    assert said.message == (
        "used series 3 (9 slices, 2 mm); not used: series 1 (2 slices, scout), series 2 (5 slices, 4 mm), series 4 (6 slices, 2 mm), "
        "series 5 (9 slices, derived), series 6 (9 slices, coronal), series 7 (9 slices, sagittal), "
        "series 8 (3 slices, secondary capture), series 9 (9 slices, modality MR)"
    )


@pytest.mark.parametrize("wanted", ["2", "1.9.2", "Lung 5.0 B70f", "lung 5.0 b70f"])
def test_series_can_be_asked_for_by_uid_number_or_description(
    wanted: str, write_series: WriteSeries, chest: np.ndarray, tmp_path: Path
) -> None:
    write_series(tmp_path / "study", chest, spacing=1, number=1)
    write_series(tmp_path / "study", chest[:5], number=2, series="1.9.2", SeriesDescription="Lung 5.0 B70f")
    assert np.array_equal(read_scan(only(tmp_path / "study", wanted), 24), squared(chest[:5]))


def test_series_without_a_number_is_numbered_by_rank(write_series: WriteSeries, chest: np.ndarray, tmp_path: Path) -> None:
    write_series(tmp_path / "study" / "a", chest, number=0, series="1.1", SeriesNumber=None)
    write_series(tmp_path / "study" / "b", chest[:5], number=0, series="1.2", SeriesNumber=None)
    scan = only(tmp_path / "study")
    assert scan.findings[0].message == "used series #1 (9 slices, 2 mm); not used: series #2 (5 slices, 2 mm)"
    assert len(only(tmp_path / "study", "#2").slices) == 5


def test_table_of_contents_of_a_medium_is_no_slice(write_series: WriteSeries, chest: np.ndarray, tmp_path: Path) -> None:
    write_series(tmp_path / "DICOM", chest)
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + bytes(100))
    assert codes(only(tmp_path)) == set()


def test_series_that_is_not_there_is_refused_with_those_that_are(write_series: WriteSeries, chest: np.ndarray, tmp_path: Path) -> None:
    write_series(tmp_path / "study", chest, number=4)
    with pytest.raises(InputError, match=r"study: no series 5 in the study; it has series 4 \(9 slices, 2 mm\)"):
        read_scan(only(tmp_path / "study", "5"), 24)


def test_study_without_axial_ct_is_refused_with_the_reason(write_series: WriteSeries, chest: np.ndarray, tmp_path: Path) -> None:
    write_series(tmp_path / "study", chest, number=6, orientation=(1, 0, 0, 0, 0, -1), step=(0, 1, 0))
    with pytest.raises(InputError, match=r"study: no axial CT series; there is series 6 \(9 slices, coronal\)"):
        read_scan(only(tmp_path / "study"), 24)


def test_derived_series_is_used_where_there_is_no_other(write_series: WriteSeries, chest: np.ndarray, tmp_path: Path) -> None:
    write_series(tmp_path / "study", chest, ImageType=["DERIVED", "SECONDARY", "AXIAL"])
    scan = only(tmp_path / "study")
    assert codes(scan) == {"derived-series"}
    assert np.array_equal(read_scan(scan, 24), squared(chest))


def test_scout_within_the_series_is_left(write_series: WriteSeries, chest: np.ndarray, tmp_path: Path) -> None:
    write_series(tmp_path / "study", chest, series="1.7")
    write_series(tmp_path / "study" / "scout", chest[:1], series="1.7", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    assert np.array_equal(read_scan(only(tmp_path / "study"), 24), squared(chest))


def test_each_study_of_a_tree_is_a_scan(write_series: WriteSeries, chest: np.ndarray, tmp_path: Path) -> None:
    write_series(tmp_path / "a" / "one", chest, study="1.1")
    write_series(tmp_path / "a" / "two", chest, study="1.1", spacing=1)
    write_series(tmp_path / "b", chest, study="not-a-uid-but-3f2c")
    (tmp_path / "b" / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    assert [scan.id for scan in find_scans([tmp_path])] == ["a/two", "b"]


def test_studies_in_one_folder_are_told_apart(write_series: WriteSeries, chest: np.ndarray, tmp_path: Path) -> None:
    for study in ("1.1", "1.2"):
        for path in write_series(tmp_path / study, chest, study=study):
            (tmp_path / "dump").mkdir(exist_ok=True)
            path.rename(tmp_path / "dump" / f"{study}-{path.name}")
        (tmp_path / study).rmdir()
    scans = find_scans([tmp_path / "dump"])
    assert [scan.id for scan in scans] == ["dump#1", "dump#2"]
    assert all(np.array_equal(read_scan(scan, 24), squared(chest)) for scan in scans)


def test_study_over_several_folders_of_a_patient_is_one_scan(write_series: WriteSeries, chest: np.ndarray, tmp_path: Path) -> None:
    write_series(tmp_path / "NCP" / "16" / "soft", chest, study="1.1")
    write_series(tmp_path / "NCP" / "16" / "thin", chest, study="1.1", spacing=1)
    write_series(tmp_path / "NCP" / "16" / "later", chest, study="1.2")
    scans, problems = find_dataset(tmp_path)
    assert [(scan.label, scan.patient, scan.id, scan.source) for scan in scans] == [
        ("NCP", "16", "later", "NCP/16/later"),
        ("NCP", "16", "thin", "NCP/16/thin"),
    ]
    assert problems == []


def test_real_study_uses_the_series_with_more_slices(sample_data: Path) -> None:
    scan = only(sample_data / "dicom" / "two-series-study")
    assert len(scan.slices) == 30
    assert {path.parent.name[:8] for path in scan.slices} == {"3.000000"}
    assert len(only(sample_data / "dicom" / "two-series-study", "ThoraxRoutine  8.0.0  B70f").slices) == 16


# --- kinds of files


def test_real_jpeg_lossless_series_is_the_jpeg_scan_of_the_same_patient(sample_data: Path) -> None:
    """The shared JPEG files are lossy: 1 grey off in the mean, without bias."""
    series = read_scan(only(sample_data / "dicom" / "jpeg-lossless-series"), 512).astype(int)
    jpeg = read_scan(only(sample_data / "ccccii" / "CP" / "1068" / "3107"), 512).astype(int)[48:108]
    assert len(series) == 60
    difference = series - jpeg
    assert np.abs(difference).mean() < 1.5
    assert np.abs(difference.mean((1, 2))).max() < 0.1
    # Not the neighbouring slice either.
    assert all(np.abs(series[index] - jpeg[index]).mean() < 0.5 * np.abs(series[index] - jpeg[index + 1]).mean() for index in range(59))


def test_jpeg_2000_gives_the_same_as_uncompressed(
    write_series: WriteSeries, compress: Callable[..., None], chest: np.ndarray, tmp_path: Path
) -> None:
    large = np.repeat(np.repeat(chest, 4, axis=1), 4, axis=2)
    for path, values in zip(write_series(tmp_path / "scan", large), large, strict=True):
        picture = io.BytesIO()
        Image.fromarray((values + 1024).astype(np.uint16)).save(picture, "JPEG2000", irreversible=False, no_jp2=True)
        compress(path, picture.getvalue(), JPEG2000Lossless)
    assert np.array_equal(read_scan(only(tmp_path / "scan"), 96), np.pad(grey(large), ((0, 0), (0, 0), (8, 8))))


def test_rle_gives_the_same_as_uncompressed(write_series: WriteSeries, chest: np.ndarray, tmp_path: Path) -> None:
    for path in write_series(tmp_path / "scan", chest):
        header = pydicom.dcmread(path)
        header.compress(RLELossless, generate_instance_uid=False)
        header.save_as(path)
    assert np.array_equal(read_scan(only(tmp_path / "scan"), 24), squared(chest))


@pytest.mark.parametrize("kind", ["no preamble", "big endian", "deflated", "signed", "high bits", "high bits, signed"])
def test_uncommon_ways_to_write_the_same_are_read(kind: str, write_series: WriteSeries, chest: np.ndarray, tmp_path: Path) -> None:
    for index, path in enumerate(write_series(tmp_path / "scan", chest)):
        header = pydicom.dcmread(path)
        if kind == "signed":
            # Twelve bits with a sign; bits above them do not belong to the value.
            header.PixelRepresentation, header.RescaleIntercept = 1, 0
            header.PixelData = (np.clip(chest[index], -2048, 2047).astype("<u2") & 0x0FFF | 0x5000).tobytes()
            header.save_as(path)
        elif kind.startswith("high bits"):
            header.HighBit = 15
            if kind.endswith("signed"):
                header.PixelRepresentation, header.RescaleIntercept = 1, 0
                header.PixelData = (chest[index].astype("<u2") << 4 | 0x5).tobytes()
            else:
                header.PixelData = (np.frombuffer(header.PixelData, "<u2") << 4 | 0x5).tobytes()
            header.save_as(path)
        elif kind == "no preamble":
            path.unlink()
            meta, header.file_meta = header.file_meta, FileMetaDataset()
            del meta
            header.save_as(path.with_suffix(".dcm"), implicit_vr=True, little_endian=True, enforce_file_format=False)
        elif kind == "big endian":
            header.decode()
            swapped = pydicom.Dataset({element.tag: element for element in header})
            swapped.PixelData = np.frombuffer(header.PixelData, "<u2").astype(">u2").tobytes()
            swapped.file_meta = header.file_meta
            swapped.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
            swapped.save_as(path, enforce_file_format=True)
        else:
            header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
            header.save_as(path)
    assert np.array_equal(read_scan(only(tmp_path / "scan"), 24), squared(chest))


def write_enhanced(path: Path, chest: np.ndarray, **elements: object) -> None:
    """An Enhanced CT, whose frames lie in no order and have intercepts of their own."""
    order = np.random.default_rng(3).permutation(len(chest))
    header = pydicom.Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SOPClassUID, header.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2.1", "1.2.9"
    header.Modality, header.StudyInstanceUID, header.SeriesInstanceUID, header.SeriesNumber = "CT", "1.1", "1.2", 1
    header.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    header.NumberOfFrames, header.Rows, header.Columns = len(chest), *chest.shape[1:]
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 1
    shared, orientation, measures = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing = [0.75, 0.75]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = Sequence([orientation]), Sequence([measures])
    header.SharedFunctionalGroupsSequence = Sequence([shared])
    groups, stored = [], []
    for index in order:
        group, position, transformation = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        position.ImagePositionPatient = [0, 0, 100 - 2 * int(index)]
        transformation.RescaleSlope, transformation.RescaleIntercept = 1, -int(index)
        group.PlanePositionSequence, group.PixelValueTransformationSequence = Sequence([position]), Sequence([transformation])
        groups.append(group)
        stored.append(chest[index] + index)
    header.PerFrameFunctionalGroupsSequence = Sequence(groups)
    header.PixelData = np.stack(stored).astype("<i2").tobytes()
    for key, value in elements.items():
        setattr(header, key, value)
    header.save_as(path, enforce_file_format=True)


def test_frames_of_one_file_come_by_position(chest: np.ndarray, tmp_path: Path) -> None:
    write_enhanced(tmp_path / "enhanced.dcm", chest)
    scan = only(tmp_path / "enhanced.dcm")
    assert codes(scan) == set()
    assert np.array_equal(read_scan(scan, 24), squared(chest))
    assert scan.geometry is not None and np.allclose(scan.geometry.spacing, (0.75, 0.75, 2))


def test_files_of_one_slice_and_of_many_are_not_mixed(write_series: WriteSeries, chest: np.ndarray, tmp_path: Path) -> None:
    write_enhanced(tmp_path / "0.dcm", chest[:4], PatientID="P-17")
    write_series(tmp_path, chest, study="1.1", series="1.2", number=1)
    scan = only(tmp_path)
    assert np.array_equal(read_scan(scan, 24), squared(chest))
    assert [(one.code, one.message) for one in scan.findings] == [
        ("several-acquisitions", "series 1 is not one stack: used 9 slices, 2 mm; not used: 4 slices, 2 mm")
    ]


def test_series_whose_direction_varies_a_little_is_one(write_series: WriteSeries, chest: np.ndarray, tmp_path: Path) -> None:
    for number, path in enumerate(write_series(tmp_path / "scan", chest)):
        header = pydicom.dcmread(path)
        sine = 0.0499 if number % 2 else 0.0501
        header.ImageOrientationPatient = [1, 0, 0, 0, float(np.sqrt(1 - sine**2)), -sine]
        header.save_as(path)
    scan = only(tmp_path / "scan")
    assert "several-series" not in codes(scan)
    assert np.array_equal(read_scan(scan, 24), squared(chest))


def test_directions_that_differ_are_series_of_their_own(write_series: WriteSeries, chest: np.ndarray, tmp_path: Path) -> None:
    """Of one UID, as a console exports what it reformats."""
    write_series(tmp_path / "scan", chest, series="1.5", number=1)
    cosine, sine = float(np.cos(np.radians(8))), float(np.sin(np.radians(8)))
    write_series(tmp_path / "scan" / "again", chest[:5], series="1.5", number=1, orientation=(cosine, sine, 0, -sine, cosine, 0))
    scan = only(tmp_path / "scan")
    assert codes(scan) == {"several-acquisitions"}
    assert len(scan.slices) == 9


def test_unsigned_values_without_rescale_are_refused(write_series: WriteSeries, chest: np.ndarray, tmp_path: Path) -> None:
    for path in write_series(tmp_path / "scan", chest):
        header = pydicom.dcmread(path)
        del header.RescaleIntercept
        header.save_as(path)
    scan = only(tmp_path / "scan")
    assert codes(scan) == {"not-hounsfield"}
    with pytest.raises(InputError, match="no RescaleIntercept"):
        read_scan(scan, 24)


def test_signed_values_without_rescale_are_taken_for_hounsfield_units(write_series: WriteSeries, chest: np.ndarray, tmp_path: Path) -> None:
    for index, path in enumerate(write_series(tmp_path / "scan", chest)):
        header = pydicom.dcmread(path)
        del header.RescaleIntercept
        header.PixelRepresentation, header.BitsStored, header.HighBit = 1, 16, 15
        header.PixelData = chest[index].astype("<i2").tobytes()
        header.save_as(path)
    scan = only(tmp_path / "scan")
    assert codes(scan) == {"no-rescale"}
    assert np.array_equal(read_scan(scan, 24), squared(chest))


def test_loose_studies_that_name_no_patient_are_patients_of_their_own(write_series: WriteSeries, chest: np.ndarray, tmp_path: Path) -> None:
    for study in ("1.1", "1.2", "1.3"):
        for path in write_series(tmp_path / study, chest, study=study, PatientID="" if study != "1.3" else "P-9"):
            (tmp_path / "data" / "NCP").mkdir(parents=True, exist_ok=True)
            path.rename(tmp_path / "data" / "NCP" / f"{study}-{path.name}")
    scans, _ = find_dataset(tmp_path / "data")
    assert [(scan.patient, codes(scan)) for scan in scans] == [("1.1", {"no-patient"}), ("1.2", {"no-patient"}), ("P-9", set())]


def test_unreadable_file_among_the_slices_is_counted_and_left(write_series: WriteSeries, chest: np.ndarray, tmp_path: Path) -> None:
    values = np.repeat(chest, 3, axis=0)
    paths = write_series(tmp_path / "DOE_JANE", values)
    paths[8].rename(paths[8].with_suffix(".dcm")).write_bytes(b"")
    paths[26].write_bytes(paths[26].read_bytes()[:-100])
    scan = only(tmp_path / "DOE_JANE")
    assert [(finding.code, finding.message) for finding in scan.findings if finding.code != "gap"] == [
        ("unreadable-slice", "2 of its 27 slices cannot be read: 1 cut short, 1 empty")
    ]
    assert np.array_equal(read_scan(scan, 24), squared(np.delete(values, (8, 26), axis=0)))


@pytest.mark.parametrize("lost", [range(14), range(0, 24, 2), (4, 5, 6), (1, 9, 17)])
@pytest.mark.parametrize("header_left", [True, False])
def test_series_that_lost_too_many_slices_is_not_used(
    lost: Collection[int], header_left: bool, write_series: WriteSeries, chest: np.ndarray, tmp_path: Path
) -> None:
    """As a scan of pictures: no more than a tenth, and no more than two in a row."""
    paths = write_series(tmp_path / "scan", np.repeat(chest, 3, axis=0)[:24] if lost != (4, 5, 6) else np.repeat(chest, 4, axis=0))
    for index in lost:
        damaged = paths[index].rename(paths[index].with_suffix(".dcm"))
        damaged.write_bytes(damaged.read_bytes()[:-100] if header_left else b"")
    scan = only(tmp_path / "scan")
    assert scan.slices == ()
    (said,) = scan.findings
    assert (said.code, said.severity, said.action) == ("unreadable-slice" if header_left else "empty-file", "error", "scan dropped")
    assert f"{len(lost)} of its {len(paths)} slices cannot be read" in said.message


def test_unreadable_files_of_another_series_cost_nothing(write_series: WriteSeries, chest: np.ndarray, tmp_path: Path) -> None:
    write_series(tmp_path / "scan", chest, number=1)
    for path in write_series(tmp_path / "scan", chest, number=2, spacing=4)[:5]:
        path.write_bytes(path.read_bytes()[:-100])
    scan = only(tmp_path / "scan")
    assert len(scan.slices) == 9
    assert ("unreadable-file", "5 other files of its study cannot be read: 5 cut short") in {
        (one.code, one.message) for one in scan.findings
    }


def test_study_of_which_nothing_can_be_read_is_not_passed_over(write_series: WriteSeries, chest: np.ndarray, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_series(tmp_path / name, chest, study=f"1.{name}")
    for path in (tmp_path / "c").iterdir():
        path.write_bytes(path.read_bytes()[:-100])
    scans = find_scans([tmp_path])
    assert [(scan.id, len(scan.slices)) for scan in scans] == [("a", 9), ("b", 9), ("c", 0)]
    assert scans[2].findings[0].message == "no readable DICOM slices: 9 cut short"
