"""NIfTI and its neighbours: what is sound is read, whatever its name says, and "damaged" is said of nothing else than damage."""

from __future__ import annotations

import bz2
import gzip
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from whole import read_scan

from ctcovid.base.errors import InputError
from ctcovid.scans.discover import find_scans
from ctcovid.scans.scan import Scan
from ctcovid.scans.volume_header import MOST_DEFLATED

# From (column, row, slice) of a head-first axial stack, patient left on the right, to RAS+ millimetres.
NORMAL = np.array([[-0.75, 0, 0, 100], [0, -0.75, 0, 90], [0, 0, -2.0, 300], [0, 0, 0, 1]])


def squared(values: np.ndarray) -> np.ndarray:
    """The lung window by its definition, padded to a square."""
    return np.pad(np.clip(np.rint((values.astype(float) + 1350) * 255 / 1500), 0, 255).astype(np.uint8), ((0, 0), (0, 0), (2, 2)))


def only(path: Path) -> Scan:
    (scan,) = find_scans([path])
    return scan


def codes(path: Path) -> list[str]:
    return [finding.code for finding in only(path).findings]


def image(values: np.ndarray, affine: np.ndarray = NORMAL, kind: type = nibabel.Nifti1Image) -> nibabel.Nifti1Image:
    made = kind(np.asfortranarray(values.T), None, dtype=values.dtype)
    made.set_sform(affine, 1)
    return made


def edited(path: Path, at: int, content: bytes) -> None:
    whole = bytearray(path.read_bytes())
    whole[at : at + len(content)] = content
    path.write_bytes(whole)


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_scan(only(path), 24)
    return str(caught.value)


@pytest.mark.parametrize(
    ("row", "column", "shear", "code"),
    [(1, 2, 2 * np.tan(np.radians(12)), "gantry-tilt"), (0, 2, 0.01 * 2, "gantry-tilt"), (0, 1, 0.02 * 0.75, "sheared-pixels")],
)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_sheared_axes_are_read_and_named(
    row: int, column: int, shear: float, code: str, order: tuple[int, ...], name: str, chest: np.ndarray, tmp_path: Path
) -> None:
    affine = NORMAL.copy()
    affine[row, column] = shear
    # Stored along other axes, in the other direction.
    turned = nibabel.Nifti1Image(np.flip(chest.T.transpose(order), 0), None)
    change = np.zeros((4, 4))
    change[3, 3] = 1
    for stored, source in enumerate(order):
        change[source, stored] = -1 if stored == 0 else 1
    change[order[0], 3] = chest.T.shape[order[0]] - 1
    turned.set_sform(affine @ change, 1)
    nibabel.save(turned, tmp_path / name)
    scan = only(tmp_path / name)
    assert np.array_equal(read_scan(scan, 24), squared(chest))
    assert scan.geometry is not None and np.allclose(scan.geometry.affine, affine, atol=1e-4)
    assert codes(tmp_path / name) == [code]


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.int64, np.uint64, np.float32, np.float64])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_every_type_of_number_byte_order_and_version_gives_the_same_greys(
    kind: type, order: str, version: type, chest: np.ndarray, tmp_path: Path
) -> None:
    values = (np.clip(chest, -1024, 1500) + 1024) // 12 if kind is np.uint8 else chest + 1024
    made = image(values.astype(kind), kind=version)
    header = made.header.as_byteswapped(order)
    header.set_data_dtype(np.dtype(kind).newbyteorder(order))
    swapped = version(np.asarray(made.dataobj), None, header, dtype=header.get_data_dtype())
    nibabel.save(swapped, tmp_path / "scan.nii")
    # The slope and intercept of both versions, where they are.
    at, number = (112, "f4") if version is nibabel.Nifti1Image else (176, "f8")
    edited(tmp_path / "scan.nii", at, np.array([12 if kind is np.uint8 else 1, -1024], f"{order}{number}").tobytes())
    assert np.array_equal(read_scan(only(tmp_path / "scan.nii"), 24), squared(values.astype(int) * (12 if kind is np.uint8 else 1) - 1024))
    assert codes(tmp_path / "scan.nii") == []


@pytest.mark.parametrize("slope", [0.0, np.nan, np.inf])
def test_a_slope_that_is_none_leaves_the_values_as_they_are(slope: float, chest: np.ndarray, tmp_path: Path) -> None:
    nibabel.save(image(chest), tmp_path / "scan.nii")
    edited(tmp_path / "scan.nii", 112, np.array([slope, 7], "<f4").tobytes())
    assert np.array_equal(read_scan(only(tmp_path / "scan.nii"), 24), squared(chest))


def test_a_slope_of_none_with_the_intercept_of_hounsfield_units_is_one(chest: np.ndarray, tmp_path: Path) -> None:
    nibabel.save(image(chest + 1024), tmp_path / "scan.nii")
    edited(tmp_path / "scan.nii", 112, np.array([0, -1024], "<f4").tobytes())
    assert np.array_equal(read_scan(only(tmp_path / "scan.nii"), 24), squared(chest))


@pytest.mark.parametrize("name", ["a.NII", "a.Nii.Gz", "a.NII.GZ", "plain.nii.gz", "packed.nii", "a.NRRD", "a.MHA", "A.NHDR", "A.MHD"])
def test_endings_in_any_case_and_gzip_that_does_not_fit_its_ending(name: str, chest: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    if ".nii" in name.lower():
        packed = name.lower().endswith(".gz") != (name in ("plain.nii.gz", "packed.nii"))
        nibabel.save(image(chest), tmp_path / "scan.nii")
        whole = (tmp_path / "scan.nii").read_bytes()
        (tmp_path / "in" / name).write_bytes(gzip.compress(whole) if packed else whole)
    else:
        written = SimpleITK.GetImageFromArray(chest)
        written.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, -1))
        SimpleITK.WriteImage(written, str(tmp_path / "in" / name.lower()), useCompression=True)
        shutil.move(tmp_path / "in" / name.lower(), tmp_path / "in" / name)
    assert np.array_equal(read_scan(only(tmp_path / "in"), 24), squared(chest))


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_pair_of_header_and_image_is_read_and_both_belong_to_its_fingerprint(packed: str, chest: np.ndarray, tmp_path: Path) -> None:
    nibabel.save(image(chest, kind=nibabel.Nifti1Pair), tmp_path / "scan.img")
    if packed:
        (tmp_path / "scan.img.gz").write_bytes(gzip.compress((tmp_path / "scan.img").read_bytes()))
        (tmp_path / "scan.img").unlink()
    scan = only(tmp_path)
    assert np.array_equal(read_scan(scan, 24), squared(chest))
    before = scan.sha256()
    nibabel.save(image(chest + 1, kind=nibabel.Nifti1Pair), tmp_path / "other.img")
    (tmp_path / f"scan.img{packed}").write_bytes((tmp_path / "other.img").read_bytes())
    assert scan.sha256() != before
    (tmp_path / f"scan.img{packed}").unlink()
    assert "its values are in scan.img, which is not a file beside it" in refusal(tmp_path / "scan.hdr")


@pytest.mark.parametrize("name", ["scan.nhdr", "scan.mhd"])
def test_values_in_a_file_beside_the_header(name: str, chest: np.ndarray, tmp_path: Path) -> None:
    written = SimpleITK.GetImageFromArray(chest)
    written.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, -1))
    for compressed in (False, True):
        for path in tmp_path.iterdir():
            path.unlink()
        SimpleITK.WriteImage(written, str(tmp_path / name), useCompression=compressed)
        scan = only(tmp_path)
        assert np.array_equal(read_scan(scan, 24), squared(chest))
        (values,) = (path for path in tmp_path.iterdir() if path.name != name)
        values.write_bytes(values.read_bytes()[:-300])
        assert re.search("cut short|damaged", refusal(tmp_path / name))
        values.unlink()
        assert "which is not a file beside it" in refusal(tmp_path / name) and "damaged" not in refusal(tmp_path / name)


def test_other_files_that_end_in_hdr_are_no_scans(chest: np.ndarray, tmp_path: Path) -> None:
    nibabel.save(image(chest), tmp_path / "scan.nii")
    (tmp_path / "map.hdr").write_text("ENVI\nsamples = 4\n")
    assert only(tmp_path).slices[0].name == "scan.nii"


def nrrd(chest: np.ndarray, encoding: str, values: bytes, space: str = "space: left-posterior-superior") -> bytes:
    lines = [
        "NRRD0005", "type: short", "dimension: 3", space, f"sizes: {' '.join(map(str, chest.shape[::-1]))}",
        "space directions: (1,0,0) (0,1,0) (0,0,-2)", "endian: little", f"encoding: {encoding}",
    ]  # fmt: skip
    return ("\n".join(lines) + "\n\n").encode() + values


def test_encodings_and_spaces_of_nrrd(chest: np.ndarray, tmp_path: Path) -> None:
    path, raw = tmp_path / "scan.nrrd", chest.astype("<i2").tobytes()
    text = " ".join(map(str, chest.ravel())).encode()
    for encoding, values in (("raw", raw), ("gzip", gzip.compress(raw)), ("ascii", text), ("hex", raw.hex().encode())):
        path.write_bytes(nrrd(chest, encoding, values))
        assert np.array_equal(read_scan(only(path), 24), squared(chest)), encoding
        assert codes(path) == []
    path.write_bytes(nrrd(chest, "bzip2", bz2.compress(raw)))
    assert "its values are encoded as bzip2, which is not read" in refusal(path) and "damaged" not in refusal(path)
    # From right to left and from front to back: both are turned round.
    path.write_bytes(nrrd(chest, "raw", raw, "space: right-anterior-superior"))
    assert np.array_equal(read_scan(only(path), 24), squared(chest[:, ::-1, ::-1]))
    for space in ("space dimension: 3", "space: scanner-xyz"):
        path.write_bytes(nrrd(chest, "raw", raw, space))
        assert codes(path) == ["orientation-unknown"], space


def test_sform_is_used_where_the_two_affines_differ_and_this_is_said(chest: np.ndarray, tmp_path: Path) -> None:
    other = NORMAL @ np.diag([-1, 1, 1, 1])
    path = tmp_path / "scan.nii"

    def saved(sform: np.ndarray, sform_code: int, qform: np.ndarray, qform_code: int) -> list[str]:
        made = image(chest)
        made.set_sform(sform, sform_code)
        made.set_qform(qform, qform_code)
        nibabel.save(made, path)
        return codes(path)

    assert saved(NORMAL, 1, NORMAL, 1) == [] and saved(NORMAL, 2, NORMAL, 1) == []
    assert saved(NORMAL, 1, other, 0) == [] and saved(other, 0, NORMAL, 1) == []
    assert np.array_equal(read_scan(only(path), 24), squared(chest))
    assert saved(NORMAL, 2, other, 1) == ["affines-differ"]
    assert "the sform is used" in only(path).findings[0].message
    assert np.array_equal(read_scan(only(path), 24), squared(chest))
    assert saved(np.zeros((4, 4)), 1, NORMAL, 1) == ["affines-differ"]
    assert "its sform is not valid; the qform" in only(path).findings[0].message
    assert np.array_equal(read_scan(only(path), 24), squared(chest))


def test_a_qform_with_sizes_below_0_or_an_odd_qfac_is_read_as_nibabel_reads_it(chest: np.ndarray, tmp_path: Path) -> None:
    made = image(chest)
    made.set_sform(None, 0)
    made.set_qform(np.diag([0.75, 0.75, 2, 1]), 1)
    for sizes in ([0, 0.75, 0.75, 2], [1, -0.75, 0.75, -2]):
        nibabel.save(made, tmp_path / "scan.nii")
        edited(tmp_path / "scan.nii", 76, np.array(sizes, "<f4").tobytes())
        geometry = only(tmp_path / "scan.nii").geometry
        assert geometry is not None and np.allclose(geometry.spacing, (0.75, 0.75, 2))
        assert np.array_equal(read_scan(only(tmp_path / "scan.nii"), 24), squared(chest[::-1, ::-1, ::-1]))


def test_units_are_those_of_the_header(chest: np.ndarray, tmp_path: Path) -> None:
    for unit, factor in (("meter", 1000), ("micron", 0.001), ("mm", 1), ("unknown", 1)):
        made = image(chest, np.diag([1 / factor] * 3 + [1.0]) @ NORMAL)
        made.header.set_xyzt_units(unit)
        nibabel.save(made, tmp_path / "scan.nii")
        geometry = only(tmp_path / "scan.nii").geometry
        assert geometry is not None and np.allclose(geometry.affine, NORMAL, rtol=1e-5), unit


def test_header_with_extensions_and_values_at_an_odd_place(chest: np.ndarray, tmp_path: Path) -> None:
    made = image(chest)
    made.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"x" * 100))
    nibabel.save(made, tmp_path / "scan.nii")
    assert np.array_equal(read_scan(only(tmp_path / "scan.nii"), 24), squared(chest))
    whole = (tmp_path / "scan.nii").read_bytes()
    offset = len(whole) - chest.nbytes
    (tmp_path / "scan.nii").write_bytes(whole[:offset] + b"\1" + whole[offset:])
    edited(tmp_path / "scan.nii", 108, np.float32(offset + 1).tobytes())
    assert np.array_equal(read_scan(only(tmp_path / "scan.nii"), 24), squared(chest))
    edited(tmp_path / "scan.nii", 108, np.float32(100).tobytes())
    assert "damaged: its values would begin inside its header" in refusal(tmp_path / "scan.nii")


def test_one_volume_in_more_axes_is_read_and_what_is_no_single_volume_is_named(chest: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    for axes in (1, 2, 3):
        nibabel.save(image(chest[(None,) * axes]), path)
        assert np.array_equal(read_scan(only(path), 24), squared(chest))
    colours = np.zeros(chest.T.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    for values, words in (
        (np.stack([chest] * 2), "a scan has three axes; save one of its 2 volumes"),
        (np.stack([chest] * 3)[:, None], "it holds colours or vectors"),
        (colours.T, "it holds colours or vectors"),
        (chest.astype(np.complex64), "values of type complex64, which are not read"),
    ):
        nibabel.save(image(values), path)
        assert words in refusal(path) and "damaged" not in refusal(path)
    nibabel.save(image(chest), tmp_path / "scan.nii")
    for code, words in ((1536, "which are not read"), (1, "which are not read"), (77, "type 77, which NIfTI does not know")):
        edited(tmp_path / "scan.nii", 70, np.int16(code).tobytes())
        assert words in refusal(tmp_path / "scan.nii") and "damaged" not in refusal(tmp_path / "scan.nii")


def test_what_is_not_nifti_says_what_it_is(chest: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "scan.nii"
    for content, words in (
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a placeholder of git-annex or Git LFS"),
        (b"<!DOCTYPE html><html>503</html>" + bytes(600), "it is a web page"),
        (nrrd(chest, "raw", chest.tobytes()), "it is NRRD"),
        (bytes(1000), "not NIfTI despite its name"),
    ):
        path.write_bytes(content)
        assert words in refusal(path) and "damaged" not in refusal(path)
    nibabel.save(nibabel.AnalyzeImage(chest.T, np.eye(4)), tmp_path / "old.img")
    assert "Analyze 7.5" in refusal(tmp_path / "old.hdr") and "damaged" not in refusal(tmp_path / "old.hdr")
    (tmp_path / "scan.mha").write_bytes(b"a text")
    assert "not NRRD or MetaImage despite its name" in refusal(tmp_path / "scan.mha")


def test_checksum_at_the_end_of_the_file_counts_and_what_follows_it_does_not(chest: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    nibabel.save(image(chest), path)
    whole = path.read_bytes()
    path.write_bytes(whole + b"appended by a transfer")
    assert np.array_equal(read_scan(only(path), 24), squared(chest))
    path.write_bytes(whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:])
    assert "damaged: its compressed values do not fit their checksum" in refusal(path)
    for left in (1, 8, 20, len(whole) // 2):
        path.write_bytes(whole[:-left])
        assert "cut short" in refusal(path)
    # A stream that is whole, of a file that was cut before it was packed.
    path.write_bytes(gzip.compress(gzip.decompress(whole)[:-100]))
    assert "cut short" in refusal(path)


def test_what_packs_better_than_deflate_can_is_refused_from_the_header(chest: np.ndarray, tmp_path: Path) -> None:
    nibabel.save(image(chest), tmp_path / "scan.nii")
    whole = (tmp_path / "scan.nii").read_bytes()
    (tmp_path / "scan.nii.gz").write_bytes(gzip.compress(whole))
    content = bytearray(whole)
    content[42:48] = np.array([800, 800, 900], "<i2").tobytes()
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(bytes(content)))
    assert MOST_DEFLATED * (tmp_path / "bomb.nii.gz").stat().st_size < 800 * 800 * 900 * 2
    assert only(tmp_path / "bomb.nii.gz").slices == () and "cut short" in refusal(tmp_path / "bomb.nii.gz")


def test_dicom_that_begins_with_its_magic_bytes_is_found_under_any_name(
    write_series: Callable[..., list[Path]], chest: np.ndarray, tmp_path: Path
) -> None:
    for number, path in enumerate(write_series(tmp_path / "scan", chest)):
        (tmp_path / "scan" / f"IM{number:04d}").write_bytes(path.read_bytes()[128:])
        path.unlink()
    assert np.array_equal(read_scan(only(tmp_path / "scan"), 24), squared(chest))


@pytest.mark.parametrize("encoding", ["implicit", "explicit", "big"])
def test_dicom_without_preamble_is_found_under_any_name_and_read_in_its_byte_order(
    encoding: str, write_series: Callable[..., list[Path]], chest: np.ndarray, tmp_path: Path
) -> None:
    import pydicom

    for number, path in enumerate(write_series(tmp_path / "written", chest)):
        header = pydicom.dcmread(path)
        (tmp_path / "scan").mkdir(exist_ok=True)
        bare = tmp_path / "scan" / f"IM{number:04d}"
        header.preamble = None
        del header.file_meta
        if encoding == "big":
            header["PixelData"].value = np.frombuffer(header.PixelData, "<i2").astype(">i2").tobytes()
        pydicom.filewriter.dcmwrite(bare, header, implicit_vr=encoding == "implicit", little_endian=encoding != "big")
        assert bare.read_bytes()[128:132] != b"DICM"
    (tmp_path / "scan" / "notes").write_bytes(b"\10\0 a text that begins as an old DICOM file does")
    assert np.array_equal(read_scan(only(tmp_path / "scan"), 24), squared(chest))
    assert len(only(tmp_path / "scan").slices) == len(chest)
