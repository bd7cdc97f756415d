"""NIfTI, NRRD, MetaImage and TIFF pages: the same volume as the pictures, whatever the axes; what is damaged is refused."""

from __future__ import annotations

import itertools
import random
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from PIL import Image
from pydicom.uid import RLELossless
from whole import read_scan

from ctcovid.base.errors import InputError
from ctcovid.scans.discover import find_dataset, find_scans
from ctcovid.scans.read import scan_format
from ctcovid.scans.scale import HOUNSFIELD
from ctcovid.scans.scan import Scan
from ctcovid.scans.window import LUNG, Window
from ctcovid.volumes.encode import Job, encode_slices, probe_scan
from ctcovid.volumes.verdicts import Criteria, check_scan, findings_of

# Pillow says on its own what it finds in a damaged TIFF.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
TESTS = Path(__file__).parents[1]
# From (column, row, slice) of a head-first axial stack, patient left on the right, to RAS+ millimetres.
NORMAL = np.array([[-0.75, 0, 0, 100], [0, -0.75, 0, 90], [0, 0, -2.0, 300], [0, 0, 0, 1]])


def grey(values: np.ndarray, level: float = -600, width: float = 1500) -> np.ndarray:
    """A window by its definition, in double precision."""
    return np.clip(np.rint((values.astype(float) - level + width / 2) * 255 / width), 0, 255).astype(np.uint8)


def squared(values: np.ndarray, level: float = -600, width: float = 1500) -> np.ndarray:
    return np.pad(grey(values, level, width), ((0, 0), (0, 0), (2, 2)))


def only(path: Path) -> Scan:
    (scan,) = find_scans([path])
    return scan


def write_nifti(path: Path, values: np.ndarray, affine: np.ndarray, slope: float = 1.0, code: int = 1) -> None:
    """A NIfTI-1 file by its definition: `values` are int16 (k, j, i), `affine` leads from (i, j, k) to RAS+."""
    header = bytearray(348)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *values.shape[::-1], 1, 1, 1, 1)
    struct.pack_into("<hh", header, 70, 4, 16)
    struct.pack_into("<8f", header, 76, 1, *np.linalg.norm(affine[:3, :3], axis=0), 1, 1, 1, 1)
    struct.pack_into("<3f", header, 108, 352, slope, 0)
    struct.pack_into("<hh", header, 252, 0, code)
    struct.pack_into("<12f", header, 280, *affine[:3].ravel())
    header[344:348] = b"n+1\0"
    path.write_bytes(bytes(header) + bytes(4) + values.astype("<i2").tobytes())


def turned(values: np.ndarray, order: tuple[int, ...], flips: tuple[bool, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A head-first stack stored along other axes, with the affine that says so."""
    stored = values.transpose(order)
    change = np.zeros((4, 4))
    change[3, 3] = 1
    for axis, source in enumerate(order):
        # Numpy's axes run from slices to columns, those of the affine from columns to slices.
        change[2 - source, 2 - axis] = -1 if flips[axis] else 1
        if flips[axis]:
            stored = np.flip(stored, axis)
            change[2 - source, 3] = values.shape[source] - 1
    return np.ascontiguousarray(stored), NORMAL @ change


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_volume_is_the_same_along_whatever_axes_it_is_stored(order: tuple[int, ...], chest: np.ndarray, tmp_path: Path) -> None:
    for flips in itertools.product((False, True), repeat=3):
        stored, affine = turned(chest, order, flips)
        write_nifti(tmp_path / "scan.nii", stored, affine)
        scan = only(tmp_path / "scan.nii")
        assert np.array_equal(read_scan(scan, 24), squared(chest)), (order, flips)
        assert scan.geometry is not None and np.allclose(scan.geometry.affine, NORMAL, atol=1e-4)
        assert scan_format(scan).height, scan_format(scan).width == chest.shape[1:]
        assert scan.findings == ()


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan.nrrd", "scan.mha", "scan.mhd"])
def test_every_kind_of_volume_file_gives_the_same_volume_as_dicom_and_pictures(
    name: str, write_series: Callable[..., list[Path]], chest: np.ndarray, tmp_path: Path
) -> None:
    write_series(tmp_path / "dicom", chest)
    (tmp_path / "pictures").mkdir()
    for number, pixels in enumerate(grey(chest)):
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number}.png")
    image = SimpleITK.GetImageFromArray(chest[::-1])
    image.SetSpacing((0.75, 0.75, 2))
    image.SetOrigin((-100, -90, 284))
    (tmp_path / "volume").mkdir()
    SimpleITK.WriteImage(image, str(tmp_path / "volume" / name), useCompression=name != "scan.mhd")
    expected = read_scan(only(tmp_path / "pictures"), 24)
    assert np.array_equal(expected, squared(chest))
    assert np.array_equal(read_scan(only(tmp_path / "dicom"), 24), expected)
    scan = only(tmp_path / "volume")
    assert np.array_equal(read_scan(scan, 24), expected)
    assert scan.id == "volume"
    assert scan.findings == ()
    series = only(tmp_path / "dicom").geometry
    assert scan.geometry is not None and series is not None and np.allclose(scan.geometry.affine, series.affine)


def test_window_is_the_one_asked_for(chest: np.ndarray, tmp_path: Path) -> None:
    write_nifti(tmp_path / "scan.nii", chest, NORMAL)
    assert np.array_equal(read_scan(only(tmp_path / "scan.nii"), 24, window=Window(40, 400)), squared(chest, 40, 400))


def test_slope_of_a_nifti_file_is_honoured(chest: np.ndarray, tmp_path: Path) -> None:
    write_nifti(tmp_path / "scan.nii", chest // 2, NORMAL, slope=2)
    assert np.array_equal(read_scan(only(tmp_path / "scan.nii"), 24), squared(chest // 2 * 2))


def test_volume_of_greys_is_taken_as_it_is(chest: np.ndarray, tmp_path: Path) -> None:
    write_nifti(tmp_path / "scan.nii", grey(chest), NORMAL)
    assert np.array_equal(read_scan(only(tmp_path / "scan.nii"), 24), squared(chest))


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan.nrrd", "scan.mha"])
@pytest.mark.parametrize("kind", ["Hounsfield", "grey"])
def test_what_is_no_number_is_black_and_named_and_the_rest_is_as_without_it(
    name: str, kind: str, chest: np.ndarray, tmp_path: Path
) -> None:
    values = chest.astype(np.float32) if kind == "Hounsfield" else grey(chest).astype(np.float32)
    expected = grey(chest)
    values[3:5, 10, :6] = np.nan
    values[5, 0, 0] = np.inf
    expected[3:5, 10, :6] = 0
    expected[5, 0, 0] = 0
    image = SimpleITK.GetImageFromArray(values[::-1])
    SimpleITK.WriteImage(image, str(tmp_path / name))
    scan = only(tmp_path / name)
    assert np.array_equal(read_scan(scan, 24), np.pad(expected, ((0, 0), (0, 0), (2, 2))))
    row, _ = check_scan(scan, probe_scan(scan), encode_slices(Job(scan, HOUNSFIELD, 24, LUNG)), Criteria(4, "all", "repair"))
    (said,) = (finding for _, finding in findings_of([row]) if finding.code == "not-a-number")
    assert (said.severity, said.action, said.slices) == ("warning", "kept", (3, 4, 5))


def test_volume_without_one_number_is_refused(chest: np.ndarray, tmp_path: Path) -> None:
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.full(chest.shape, np.nan, np.float32)), str(tmp_path / "scan.nrrd"))
    with pytest.raises(InputError, match="all its values are NaN or Inf"):
        read_scan(only(tmp_path / "scan.nrrd"), 24)


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nrrd"])
@pytest.mark.parametrize(("shift", "scale"), [(1350, 1), (1350, 20), (1300, 1)])
def test_values_that_are_neither_hounsfield_nor_grey_are_refused_with_the_remedy(
    name: str, shift: int, scale: int, chest: np.ndarray, tmp_path: Path
) -> None:
    values = (chest.astype(np.int32) + shift) * scale
    # The last as after an interpolation, which shoots below 0.
    assert values.max() > 255 and values.min() > -100
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), str(tmp_path / name))
    scan = only(tmp_path / name)
    row, chunks = check_scan(scan, probe_scan(scan), encode_slices(Job(scan, HOUNSFIELD, 24, LUNG)), Criteria(4, "all", "repair"))
    (said,) = (finding for _, finding in findings_of([row]) if finding.severity == "error")
    assert (said.code, said.action, chunks) == ("not-hounsfield", "scan dropped", [])
    assert "values are not Hounsfield units" in said.message and said.message.endswith("8-bit grey.")


def test_values_from_0_to_1_with_corners_of_0_are_refused_for_their_scale(chest: np.ndarray, tmp_path: Path) -> None:
    values = np.pad((chest + 1000) / 2000, ((0, 0), (8, 8), (8, 8)))
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values.astype(np.float32)), str(tmp_path / "scan.nrrd"))
    scan = only(tmp_path / "scan.nrrd")
    row, _ = check_scan(scan, probe_scan(scan), encode_slices(Job(scan, HOUNSFIELD, 24, LUNG)), Criteria(4, "all", "repair"))
    assert [finding.code for _, finding in findings_of([row]) if finding.severity == "error"] == ["not-hounsfield"]


def test_file_that_does_not_say_how_it_lies_is_named(chest: np.ndarray, tmp_path: Path) -> None:
    write_nifti(tmp_path / "scan.nii", chest, NORMAL, code=0)
    assert [finding.code for finding in only(tmp_path / "scan.nii").findings] == ["orientation-unknown"]


@pytest.mark.parametrize(("degrees", "code"), [(20, "oblique"), (44, "unreadable")])
def test_oblique_volume_is_named_and_a_strongly_oblique_one_is_refused(
    degrees: float, code: str, chest: np.ndarray, tmp_path: Path
) -> None:
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[cosine, -sine, 0, 0], [sine, cosine, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    write_nifti(tmp_path / "scan.nii", chest, turn @ NORMAL)
    scan = only(tmp_path / "scan.nii")
    assert [finding.code for finding in scan.findings] == [code]
    assert f"{degrees}°" in scan.findings[0].message
    if code == "unreadable":
        with pytest.raises(InputError, match="resample it to axial slices"):
            read_scan(scan, 24)


def test_real_nifti_is_the_jpeg_scan_of_the_same_patient(sample_data: Path) -> None:
    """The shared NIfTI has every fourth pixel of every second slice; the JPEG files are lossy, 1 grey off in the mean."""
    nifti = read_scan(only(sample_data / "nifti" / "chest-cap001-128.nii.gz"), 128).astype(int)
    jpeg = read_scan(only(sample_data / "ccccii" / "CP" / "1068" / "3107"), 512).astype(int)
    assert np.abs(nifti - jpeg[1::2, ::4, ::4]).mean() < 1.5


def test_dataset_takes_volume_files_in_each_folder(chest: np.ndarray, write_series: Callable[..., list[Path]], tmp_path: Path) -> None:
    for name in ("NCP/16/1164", "NCP/17/2", "CP/4", "CP"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    for name in ("NCP/16/1164/ct.nii", "NCP/17/2/a.nii", "NCP/17/2/b.nii", "CP/4/3505.nii", "CP/5.nii"):
        write_nifti(tmp_path / name, chest, NORMAL)
    write_series(tmp_path / "Normal" / "9" / "1" / "DICOM" / "SE0", chest)
    scans, problems = find_dataset(tmp_path)
    assert problems == []
    assert [(scan.label, scan.patient, scan.id) for scan in scans] == [
        ("CP", "5", "5"),
        ("CP", "4", "3505"),
        ("NCP", "16", "1164"),
        ("NCP", "17", "2/a"),
        ("NCP", "17", "2/b"),
        ("Normal", "9", "1"),
    ]
    assert len({scan.source for scan in scans}) == 6
    assert all(np.array_equal(read_scan(scan, 24), squared(chest)) for scan in scans)


def test_pages_of_a_tiff_are_slices(chest: np.ndarray, tmp_path: Path) -> None:
    pages = [Image.fromarray(pixels) for pixels in grey(chest)]
    pages[0].save(tmp_path / "scan.tif", save_all=True, append_images=pages[1:])
    for path in (tmp_path, tmp_path / "scan.tif"):
        assert np.array_equal(read_scan(only(path), 24), squared(chest))


def test_pages_of_16_bits_are_scaled_by_the_range_of_the_whole_scan(tmp_path: Path) -> None:
    ramp = np.minimum(np.linspace(0, 1.5, 64).reshape(8, 8), 1)
    pages = [Image.fromarray((ramp * value).astype(np.uint16)) for value in (200, 1000, 4095)]
    pages[0].save(tmp_path / "scan.tif", save_all=True, append_images=pages[1:])
    assert read_scan(only(tmp_path), 8)[:, 7, 7].tolist() == [round(200 * 255 / 4095), round(1000 * 255 / 4095), 255]


# --- what cannot be read


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        for scan in find_scans([path]):
            read_scan(scan, 24)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan.nrrd", "scan.mha", "plain.mha"])
def test_file_cut_short_is_refused_and_never_filled_with_zeros(name: str, share: float, chest: np.ndarray, tmp_path: Path) -> None:
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(chest), str(tmp_path / name), useCompression=name != "plain.mha")
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
    assert refused(tmp_path / name)


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nrrd", "scan.mha"])
def test_compressed_file_with_a_flipped_bit_is_refused(name: str, chest: np.ndarray, tmp_path: Path) -> None:
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(chest), str(tmp_path / name), useCompression=True)
    whole = bytearray((tmp_path / name).read_bytes())
    whole[len(whole) * 3 // 4] ^= 4
    (tmp_path / name).write_bytes(whole)
    assert refused(tmp_path / name)


def test_header_that_names_another_file_is_refused(chest: np.ndarray, tmp_path: Path) -> None:
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(chest), str(tmp_path / "scan.mhd"))
    text = (tmp_path / "scan.mhd").read_text()
    (tmp_path / "scan.mhd").write_text(text.replace("scan.raw", "/dev/zero"))
    assert "its values are in /dev/zero, which is not a file beside it" in refused(tmp_path / "scan.mhd")


def test_four_dimensions_and_colours_are_refused(chest: np.ndarray, tmp_path: Path) -> None:
    SimpleITK.WriteImage(SimpleITK.JoinSeries([SimpleITK.GetImageFromArray(chest)] * 2), str(tmp_path / "time.nii"))
    assert "a scan has three axes" in refused(tmp_path / "time.nii")
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.stack([chest] * 3, axis=-1), isVector=True), str(tmp_path / "colour.mha"))
    assert "colours or vectors" in refused(tmp_path / "colour.mha")


def huge_png(path: Path) -> None:
    """50,000×50,000 pixels, all black, in a file of some megabytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(50_001)) for _ in range(50_000)) + packer.flush()
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


def many_frames(path: Path, write_series: Callable[..., list[Path]], chest: np.ndarray) -> None:
    (written,) = write_series(path.parent, chest[:1])
    header = pydicom.dcmread(written)
    header.NumberOfFrames, header.Rows, header.Columns = 100_000, 512, 512
    header.save_as(path)
    written.unlink()


def huge_nifti(path: Path, chest: np.ndarray) -> None:
    write_nifti(path, chest, NORMAL)
    content = bytearray(path.read_bytes())
    struct.pack_into("<3h", content, 42, 32767, 32767, 32767)
    path.write_bytes(content)


def long_row(path: Path, write_series: Callable[..., list[Path]], chest: np.ndarray) -> None:
    """Padded to a square it would take gigabytes."""
    (written,) = write_series(path.parent, chest[:1])
    header = pydicom.dcmread(written)
    header.Rows, header.Columns, header.PixelData = 1, 65535, bytes(2 * 65535)
    header.save_as(path)
    written.unlink()


def circle(path: Path) -> None:
    for name in ("a", "b"):
        (path / name).mkdir(parents=True)
        for target in ("a", "b", "."):
            (path / name / f"to-{target.replace('.', 'top')}").symlink_to(path / target)
    (path / "self.nii").symlink_to(path / "self.nii")


@pytest.mark.parametrize("case", ["png", "dicom", "row", "nifti", "links"])
def test_what_declares_too_much_is_refused_within_2_gib(
    case: str, write_series: Callable[..., list[Path]], chest: np.ndarray, tmp_path: Path
) -> None:
    folder = tmp_path / "scan"
    folder.mkdir()
    if case == "png":
        huge_png(folder / "0.png")
    elif case == "dicom":
        many_frames(folder / "frames.dcm", write_series, chest)
    elif case == "row":
        long_row(folder / "row.dcm", write_series, chest)
    elif case == "nifti":
        huge_nifti(folder / "scan.nii", chest)
    else:
        circle(folder)
    code = (
        "import sys; from pathlib import Path; from ctcovid.base.errors import InputError\n"
        "from ctcovid.scans.discover import find_scans; from whole import read_scan\n"
        "try: [read_scan(scan, 64) for scan in find_scans([Path(sys.argv[1])])]\n"
        "except InputError as error: print(error)\n"
        # Not ru_maxrss: a process inherits it from the one that started it.
        "peak = next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('VmHWM'))\n"
        "sys.exit(int(peak.split()[1]) > 2 << 20)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=300, check=False, preexec_fn=_limit, cwd=TESTS
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(("No slices", str(folder))) and done.stderr == ""


def _limit() -> None:
    # What is reserved, and not only what is used; threads and libraries reserve much themselves.
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan.mha", "scan.nrrd", "scan.tif", "plain.dcm", "rle.dcm"])
def test_damaged_scan_is_read_or_refused_and_never_crashes(
    name: str, write_series: Callable[..., list[Path]], chest: np.ndarray, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Cut anywhere, bits flipped anywhere, bytes of the header replaced, by a seed that a failure names."""
    if name.endswith(".dcm"):
        (path,) = write_series(tmp_path, chest[:1])
        path = path.rename(tmp_path / name)
        if name == "rle.dcm":
            header = pydicom.dcmread(path)
            header.compress(RLELossless, generate_instance_uid=False)
            header.save_as(path)
    elif name == "scan.tif":
        pages = [Image.fromarray(pixels) for pixels in grey(chest)]
        pages[0].save(path := tmp_path / name, save_all=True, append_images=pages[1:])
    else:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(chest), str(path := tmp_path / name), useCompression=True)
    whole = path.read_bytes()
    for seed in range(120):
        draw = random.Random(seed)
        content = bytearray(whole)
        if seed % 3 == 0:
            del content[draw.randrange(len(content)) :]
        for _ in range(draw.randint(1, 6) if seed % 3 == 1 else 0):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        for _ in range(draw.randint(1, 6) if seed % 3 == 2 else 0):
            content[draw.randrange(min(400, len(content)))] = draw.randrange(256)
        path.write_bytes(content)
        try:
            found = [read_scan(scan, 24) for scan in find_scans([tmp_path])]
        except InputError as error:
            assert str(tmp_path) in str(error), seed
        else:
            assert all(volume.dtype == np.uint8 and volume.shape[1:] == (24, 24) for volume in found), seed
    assert name == "scan.tif" or capfd.readouterr().err == ""


def test_pictures_are_read_without_the_libraries_for_volumes(make_scan: Callable[..., Path], tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from ctcovid.scans.discover import find_scans; from whole import read_scan\n"
        "[read_scan(scan, 32) for scan in find_scans([Path(sys.argv[1])])]\n"
        "sys.exit(bool({'SimpleITK', 'nibabel', 'pydicom'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(make_scan(tmp_path / "scan"))], check=False, cwd=TESTS).returncode == 0
