"""Slices as uint8, exactly, whatever file they lie in."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from whole import read_scan, read_slice

from ctcovid.base.errors import InputError
from ctcovid.scans.read import ScanFormat, probe, square
from ctcovid.scans.scale import GREY, Scale
from ctcovid.scans.scan import Scan

NCP = "ccccii/NCP/16/1164"
# Pillow says on its own what it finds in a damaged TIFF.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


@pytest.fixture(scope="module")
def ct(sample_data: Path) -> np.ndarray:
    """A real slice as uint8 (512, 512), with many greys."""
    with Image.open(sample_data / NCP / "0070.png") as image:
        pixels = np.asarray(image)
    assert pixels.dtype == np.uint8 and len(np.unique(pixels)) > 200
    return pixels


def pictures(*slices: Path) -> Scan:
    return Scan("scan", "", "", slices[0].parent, slices, ".")


def write_png(path: Path, pixels: np.ndarray, colour_type: int = 0) -> Path:
    """A PNG of 16 bits made by hand: Pillow's own writer knows fewer kinds than are in circulation."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b""))
    return path


def write_tiff(path: Path, pixels: np.ndarray, big_endian: bool = False, next_directory: int = 0) -> Path:
    """An uncompressed grey TIFF made by hand."""
    order = ">" if big_endian else "<"
    height, width = pixels.shape
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    fields = [
        (256, width),
        (257, height),
        (258, 8 * pixels.itemsize),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, height),
        (279, len(data)),
        (339, 2 if pixels.dtype.kind == "i" else 1),
    ]
    entries = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in fields)
    directory = struct.pack(order + "H", len(fields)) + entries + struct.pack(order + "I", next_directory)
    mark = b"MM" if big_endian else b"II"
    path.write_bytes(mark + struct.pack(order + "HI", 42, 8 + len(data)) + data + directory)
    return path


# --- 8 bits, exactly


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("slice.png", {}),
        ("slice.bmp", {}),
        ("plain.tif", {}),
        ("deflate.tif", {"compression": "tiff_adobe_deflate"}),
        ("lzw.tiff", {"compression": "tiff_lzw"}),
        ("packed.TIF", {"compression": "packbits"}),
    ],
)
@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_real_slice_is_the_same_in_every_lossless_file_and_mode(
    mode: str, name: str, options: dict[str, str], ct: np.ndarray, tmp_path: Path
) -> None:
    Image.fromarray(ct).convert(mode).save(tmp_path / name, **options)
    assert np.array_equal(read_slice(tmp_path / name), ct)
    assert probe([tmp_path / name]) == ScanFormat(512, 512, GREY)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_dropped_and_not_blended(mode: str, ct: np.ndarray, tmp_path: Path) -> None:
    image = Image.fromarray(ct).convert(mode)
    image.putalpha(Image.fromarray(np.roll(ct, 100, axis=0)))
    image.save(tmp_path / "slice.png")
    assert np.array_equal(read_slice(tmp_path / "slice.png"), ct)


def test_palette_that_is_out_of_order_is_looked_up(ct: np.ndarray, tmp_path: Path) -> None:
    image = Image.fromarray(255 - ct)
    image.putpalette([255 - grey for grey in range(256) for _ in range(3)])
    image.save(tmp_path / "slice.png")
    assert image.mode == "P"
    assert np.array_equal(read_slice(tmp_path / "slice.png"), ct)


def test_colour_becomes_luminance(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "slice.png")
    luminance = pixels @ np.array([0.299, 0.587, 0.114])
    assert np.abs(read_slice(tmp_path / "slice.png") - luminance).max() <= 0.51


def test_one_bit_becomes_black_and_white(ct: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(ct > 100).save(tmp_path / "slice.tif")
    assert np.array_equal(read_slice(tmp_path / "slice.tif"), np.where(ct > 100, 255, 0))


@pytest.mark.parametrize(
    "name", ["ccccii/NCP/920/2462/0025.JPG", "ccccii/CP/1068/3107/0100.jpg", "ccccii/Normal/2316/771/0080.tif", f"{NCP}/0070.png"]
)
def test_real_file_is_read_as_pillow_alone_reads_it(name: str, sample_data: Path) -> None:
    with Image.open(sample_data / name) as image:
        decoded = np.asarray(image)
    if decoded.ndim == 3:
        assert np.array_equal(decoded[..., 0], decoded[..., 1]) and np.array_equal(decoded[..., 0], decoded[..., 2])
        decoded = decoded[..., 0]
    found = read_slice(sample_data / name)
    assert (found.dtype, found.shape) == (np.uint8, (512, 512))
    assert np.array_equal(found, decoded)


# --- more than 8 bits, exactly


def scaled(values: np.ndarray, bits: int) -> np.ndarray:
    """Nearest of the 256 greys by integer arithmetic; there are no ties, since the highest value is odd."""
    highest = (1 << bits) - 1
    return (values.astype(np.int64) * 510 + highest) // (2 * highest)


WRITERS: dict[str, Callable[[Path, np.ndarray], Path]] = {
    "png": write_png,
    "tif": write_tiff,
    "big-endian.tif": lambda path, pixels: write_tiff(path, pixels, big_endian=True),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_all_values_of_16_bits_are_scaled_from_the_full_range(kind: str, tmp_path: Path) -> None:
    values = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    path = WRITERS[kind](tmp_path / f"slice.{kind}", values)
    assert probe([path]) == ScanFormat(256, 256, Scale(16))
    assert np.array_equal(read_scan(pictures(path), 256)[0], scaled(values, 16))


@pytest.mark.parametrize("kind", WRITERS)
def test_12_bits_in_16_are_scaled_from_the_range_that_they_use(kind: str, tmp_path: Path) -> None:
    values = np.arange(1 << 12, dtype=np.uint16).reshape(64, 64)
    path = WRITERS[kind](tmp_path / f"slice.{kind}", values)
    assert probe([path]) == ScanFormat(64, 64, Scale(12))
    assert np.array_equal(read_scan(pictures(path), 64)[0], scaled(values, 12))


@pytest.mark.parametrize("kind", WRITERS)
def test_8_bits_in_16_stay_what_they_are(kind: str, ct: np.ndarray, tmp_path: Path) -> None:
    path = WRITERS[kind](tmp_path / f"slice.{kind}", ct.astype(np.uint16))
    assert probe([path]) == ScanFormat(512, 512, GREY)
    assert np.array_equal(read_scan(pictures(path), 512)[0], ct)


@pytest.mark.parametrize(("highest", "bits"), [(255, 8), (1023, 10), (4095, 12), (16383, 14), (65535, 16)])
def test_range_is_that_of_the_whole_scan_and_not_of_each_slice(highest: int, bits: int, tmp_path: Path) -> None:
    dark = write_png(tmp_path / "0.png", np.linspace(0, 200, 64).astype(np.uint16).reshape(8, 8))
    bright = write_png(tmp_path / "1.png", np.minimum(np.linspace(0, 1.5 * highest, 64), highest).astype(np.uint16).reshape(8, 8))
    assert probe([dark, bright]).scale == Scale(bits)
    found = read_scan(pictures(dark, bright), 8)
    assert found[:, 7, 7].tolist() == scaled(np.array([200, highest]), bits).tolist()


def test_16_bit_copies_of_real_slices_give_back_the_slices(sample_data: Path, tmp_path: Path) -> None:
    originals, copies = sorted((sample_data / NCP).iterdir())[60:64], []
    for path in originals:
        with Image.open(path) as image:
            copies.append(write_png(tmp_path / path.name, np.asarray(image).astype(np.uint16) * 257))
    assert np.array_equal(read_scan(pictures(*copies), 512), read_scan(pictures(*originals), 512))


def test_signed_values_below_zero_are_refused_with_the_remedy(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "hounsfield.tif", np.arange(-1000, 600, dtype=np.int16).reshape(40, 40))
    with pytest.raises(InputError, match=r"hounsfield\.tif: values from -1000 to 599; export the scan with 8 or 16 bits without sign"):
        probe([path])


def test_floating_point_is_refused_with_the_remedy(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(InputError, match=r"float\.tif: floating-point.*Export the scan with 8 or 16 bits"):
        probe([tmp_path / "float.tif"])


# --- to a square of the wanted size


def test_slice_that_has_the_size_is_not_touched(ct: np.ndarray) -> None:
    assert np.array_equal(square(ct, 512), ct)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 40), st.integers(1, 40))
def test_non_square_slice_is_padded_and_not_stretched(height: int, width: int) -> None:
    pixels = np.random.default_rng(height * 64 + width).integers(1, 256, (height, width), dtype=np.uint8)
    side = max(height, width)
    found = square(pixels, side)
    assert found.shape == (side, side)
    rows, columns = found.any(axis=1).nonzero()[0], found.any(axis=0).nonzero()[0]
    assert np.array_equal(found[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], pixels)
    # In the middle, to within the pixel that an odd rest leaves.
    assert abs(rows[0] - (side - 1 - rows[-1])) <= 1 and abs(columns[0] - (side - 1 - columns[-1])) <= 1


def test_circle_stays_round_in_a_wide_slice() -> None:
    """1024×944 occurs in CC-CCII; a stretched circle would be 8 % too high."""
    y, x = np.mgrid[:944, :1024]
    circle = np.where((y - 472) ** 2 + (x - 512) ** 2 < 300**2, 255, 0).astype(np.uint8)
    found = square(circle, 256) > 127
    assert found.any(axis=0).sum() == found.any(axis=1).sum() == 150
    assert np.array_equal(np.flatnonzero(found.any(axis=0)), np.flatnonzero(found.any(axis=1)))


def test_fine_checkerboard_shrinks_to_mid_grey() -> None:
    y, x = np.mgrid[:512, :512]
    board = np.where((x + y) % 2, 255, 0).astype(np.uint8)
    found = square(board, 64)
    assert found.min() >= 127 and found.max() <= 128


def test_even_grey_stays_even_at_every_size() -> None:
    for size in (16, 100, 300, 1024):
        assert np.array_equal(square(np.full((512, 512), 77, np.uint8), size), np.full((size, size), 77))


def test_whole_real_scan_is_read_in_order_at_a_smaller_size(sample_data: Path) -> None:
    slices = sorted((sample_data / "ccccii/CP/1068/3107").iterdir())[80:90]
    expected = [np.asarray(Image.open(path).convert("L").resize((96, 96), Image.Resampling.BILINEAR)) for path in slices]
    assert np.array_equal(read_scan(pictures(*slices), 96), np.stack(expected))


# --- what cannot be read


def refused(path: Path) -> str:
    """The message about a file whose headers are read and that is then decoded."""
    with pytest.raises(InputError) as caught:
        probe([path])
        read_slice(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_empty_file_is_named_as_empty(tmp_path: Path) -> None:
    (tmp_path / "0007.png").touch()
    assert refused(tmp_path / "0007.png") == f"{tmp_path}/0007.png: the file is empty. Copy it again or remove the scan."


def test_text_with_an_images_name_is_named_as_no_image(tmp_path: Path) -> None:
    (tmp_path / "0007.png").write_text("a line of text\n")
    assert "0007.png: not an image despite its name. Copy it again" in refused(tmp_path / "0007.png")


@pytest.mark.parametrize(
    "name", ["ccccii/NCP/920/2462/0025.JPG", "ccccii/CP/1068/3107/0100.jpg", f"{NCP}/0070.png", "ccccii/Normal/2316/771/0080.tif"]
)
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_real_file_cut_short_is_named_and_never_filled_with_grey(name: str, share: float, sample_data: Path, tmp_path: Path) -> None:
    whole = (sample_data / name).read_bytes()
    (tmp_path / Path(name).name).write_bytes(whole[: int(share * len(whole))])
    assert "Copy it again or remove the scan." in refused(tmp_path / Path(name).name)


def test_slices_of_two_sizes_are_named_both(make_scan: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_scan(tmp_path / "scan", slices=3, size=32)
    Image.fromarray(np.zeros((24, 40), np.uint8)).save(folder / "0003.png")
    with pytest.raises(InputError, match=r"0003\.png: 40×24 pixels, but 0000\.png has 32×32.*folders of their own"):
        read_scan(pictures(*sorted(folder.iterdir())), 32)


def test_several_pictures_in_one_file_among_others_are_refused(ct: np.ndarray, tmp_path: Path) -> None:
    pages = [Image.fromarray(np.roll(ct, step)) for step in range(3)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(InputError, match=r"stack\.tif: 3 pictures in one file among others. Export one file per slice"):
        probe([tmp_path / "stack.tif"])


def test_file_that_went_away_is_named(tmp_path: Path) -> None:
    assert "0007.png: removed since the folder was listed" in refused(tmp_path / "0007.png")


def test_tiff_whose_next_directory_lies_behind_the_end_is_named(tmp_path: Path) -> None:
    """Pillow raises TypeError there."""
    path = write_tiff(tmp_path / "slice.tif", np.zeros((8, 8), np.uint8), next_directory=10_000_000)
    with pytest.raises(InputError, match=r"slice\.tif"):
        probe([path])


@settings(deadline=None, max_examples=150, derandomize=True)
@given(extension=st.sampled_from(["png", "jpg", "bmp", "tif"]), data=st.data())
def test_damaged_file_is_read_or_refused_and_never_crashes(
    extension: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("damaged") / f"slice.{extension}"
    y, x = np.mgrid[:24, :24]
    Image.fromarray((x * y % 256).astype(np.uint8)).save(path)
    content = bytearray(path.read_bytes())
    for position, value in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=3)):
        content[position] = value
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        found = read_slice(path, probe([path]).scale)
    except InputError as error:
        assert str(path) in str(error)
    else:
        assert (found.dtype, found.ndim) == (np.uint8, 2)
