"""Read slices to one channel of uint8: any picture that Pillow reads, and what SimpleITK decodes."""

from __future__ import annotations

import contextlib
import struct
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ctcovid.base.errors import InputError
from ctcovid.scans import decode
from ctcovid.scans.decoded import Decoded, from_hounsfield
from ctcovid.scans.scale import GREY, HOUNSFIELD, WIDE, Scale, Values, scan_scale, values_of
from ctcovid.scans.scan import MOST_PIXELS_PER_SIDE, Scan, Stack
from ctcovid.scans.window import LUNG, Window

# What Pillow raises on damaged files, documented or not.
UNDECODABLE = (OSError, SyntaxError, ValueError, TypeError, EOFError, KeyError, IndexError, struct.error, Image.DecompressionBombError)
# More pages than any scan has slices are damage.
MOST_PAGES = 4096
# EXIF's orientation, its values for pictures that are turned or mirrored, and those that exchange width and height.
ORIENTATION, TURNED, SIDEWAYS = 0x112, range(2, 9), range(5, 9)
# Tags of a TIFF, and a value of the first.
TIFF_PHOTOMETRIC, TIFF_BITS, WHITE_IS_ZERO = 262, 258, 0
_WIDE_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_lock = threading.Lock()
# One entry per thread in `pillow_silenced`, each the filters to restore.
_silenced: list[warnings.catch_warnings] = []


@contextlib.contextmanager
def pillow_silenced() -> Iterator[None]:
    """Ignore Pillow's warnings: what matters is raised as an error. Warning filters are the process's, so threads share them."""
    with _lock:
        if _silenced:
            _silenced.append(_silenced[0])
        else:
            _silenced.append(warnings.catch_warnings())
            _silenced[0].__enter__()
            # Pillow warns of sizes above its own limit, which is higher than ours.
            warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    try:
        yield
    finally:
        with _lock:
            filters = _silenced.pop()
            if not _silenced:
                filters.__exit__(None, None, None)


@dataclass(frozen=True)
class ScanFormat:
    """Size of a scan's slices, and the scale of their stored numbers."""

    height: int
    width: int
    scale: Scale


@dataclass(frozen=True)
class PictureHeader:
    """What one picture says: its size, and its values if it has more than 8 bits per value."""

    height: int
    width: int
    values: Values | None


def scan_format(scan: Scan) -> ScanFormat:
    """Check the headers of a scan's slices, and tell the scale of pictures of more than 8 bits per value, and what is padding in DICOM.

    Raises InputError that names the first slice that is empty, is not an image, or has another size than the rest, or says why
    the scan cannot be used.
    """
    scan.require_slices()
    if scan.stack is None:
        return probe(scan.slices)
    height, width = scan.stack.slice_size
    if scan.stack.reader == "pages":
        path = scan.slices[0]
        with _opened(path, pages=True) as image:
            return ScanFormat(height, width, scan_scale(_wide(path, page) for page in _pages(path, image)))
    padding = decode.sampled_padding(scan) if scan.stack.reader == "dicom" else None
    return ScanFormat(height, width, replace(HOUNSFIELD, padding=padding))


def probe(slices: Sequence[Path]) -> ScanFormat:
    """`scan_format` of a scan of pictures."""
    size = (0, 0)

    def values() -> Iterator[Values | None]:
        nonlocal size
        for path in slices:
            header = picture_header(path)
            size = (header.height, header.width) if path is slices[0] else size
            if (header.height, header.width) != size:
                raise InputError(
                    f"{path}: {header.width}×{header.height} pixels, but {slices[0].name} has {size[1]}×{size[0]}. "
                    "All slices of a scan must have one size. Put other series into folders of their own."
                )
            yield header.values

    scale = scan_scale(values())
    return ScanFormat(*size, scale)


def picture_header(path: Path) -> PictureHeader:
    """Size and values of a picture, of which only one of more than 8 bits per value is decoded.

    Raises InputError if it cannot be read.
    """
    with _opened(path) as image:
        values = _wide(path, image)
        with _decoding(path):
            # Only decoding tells the size of a picture that lies on its side: releases of Pillow differ for TIFF.
            width, height = (_upright(image) if _orientation(image) in SIDEWAYS else image).size
    return PictureHeader(height, width, values)


def read_slices(scan: Scan, scale: Scale = GREY, window: Window = LUNG) -> Iterator[Decoded]:
    """The slices of a scan, or of a piece of one, head to feet.

    Parameters
    ----------
    scale : from `scan_format`, of pictures and DICOM
    window : maps Hounsfield units to grey

    Raises InputError if a slice cannot be decoded.
    """
    stack = scan.stack
    if stack is None:
        yield from (read_picture(path, scale, window) for path in scan.slices)
    elif stack.reader == "dicom" and stack.frames:
        yield from decode.decode_frames(scan.slices, stack, window, scale.padding)
    elif stack.reader == "dicom":
        yield from (decode.decode_slice(path, stack, window, scale.padding) for path in scan.slices)
    elif stack.reader == "pages":
        yield from _read_pages(scan.slices[0], stack, scale, window)
    else:
        yield from decode.decode_volume(scan.slices[0], stack, window)


def read_picture(path: Path, scale: Scale = GREY, window: Window = LUNG) -> Decoded:
    """One picture as a slice, upright.

    Colour becomes luminance (three equal channels are unchanged), transparency is dropped.

    Raises InputError if the file cannot be decoded, or its scale cannot be told.
    """
    with _opened(path) as image:
        return _slice(path, image, scale, window)


def _slice(path: Path, image: Image.Image, scale: Scale, window: Window) -> Decoded:
    if image.mode not in _WIDE_MODES:
        with _decoding(path):
            return Decoded(np.asarray(_upright(image if image.mode == "L" else image.convert("L"))))
    if scale.problem:
        raise InputError(f"{path.parent if path.parent.is_dir() else path}: {scale.problem}")
    values = _values(path, image)
    return Decoded(scale.grey(values)) if scale.offset is None else from_hounsfield(scale.hounsfield(values), window, scale.padding)


def square(pixels: np.ndarray, size: int) -> np.ndarray:
    """Bring a slice to uint8 (size, size): padded with black to a square, so that no anatomy is stretched, then resized.

    Pillow's bilinear filter widens with the reduction, so that it does not alias.
    """
    height, width = pixels.shape
    if height != width:
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        pixels = np.pad(pixels, ((top, side - height - top), (left, side - width - left)))
    if pixels.shape[0] == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR))


def pages_scan(scan: Scan, path: Path) -> Scan:
    """`scan` with the pages of a TIFF as slices, in their order.

    Raises InputError if the file cannot be read.
    """
    with _opened(path, pages=True) as image:
        width, height = image.size
        pages = getattr(image, "n_frames", 1)
    return replace(scan, slices=(path,) * pages, stack=Stack("pages", (pages, height, width)))


def page_count(path: Path) -> int:
    """Pages of a TIFF; 1 if it cannot be read."""
    try:
        with _opened(path, pages=True) as image:
            return int(getattr(image, "n_frames", 1))
    except InputError:
        return 1


def _read_pages(path: Path, stack: Stack, scale: Scale, window: Window) -> Iterator[Decoded]:
    with _opened(path, pages=True) as image:
        for page in _pages(path, image):
            if page.size != (stack.shape[2], stack.shape[1]):
                raise InputError(f"{path}: pages of several sizes, but a scan has one. Export each series to its own file.")
            yield _slice(path, page, scale, window)


def _pages(path: Path, image: Image.Image) -> Iterator[Image.Image]:
    for number in range(getattr(image, "n_frames", 1)):
        with _decoding(path):
            image.seek(number)
        _require_usable(path, image)
        yield image


def _wide(path: Path, image: Image.Image) -> Values | None:
    """The values of a picture of more than 8 bits per value; None for others."""
    return values_of(_values(path, image)) if image.mode in _WIDE_MODES else None


def _opened(path: Path, pages: bool = False) -> Image.Image:
    with _decoding(path):
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty. Copy it again or remove the scan.")
        image = Image.open(path)
        try:
            if image.format == "TIFF" and _orientation(image) in SIDEWAYS:
                image.close()
                # Pillow 12 and 13 scramble such a file if they map it into memory.
                image = Image.open(BytesIO(path.read_bytes()))
            _require_usable(path, image)
            count = getattr(image, "n_frames", 1)
            if count > (MOST_PAGES if pages else 1):
                raise InputError(f"{path}: {count} pictures in one file among others. Export one file per slice, or one file per scan.")
        except BaseException:
            image.close()
            raise
        return image


@contextlib.contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Raises InputError in place of what Pillow raises on damaged files."""
    try:
        with pillow_silenced():
            yield
    except UNDECODABLE as error:
        raise _unreadable(path, error) from error


def _require_usable(path: Path, image: Image.Image) -> None:
    """Called before a pixel is decoded: a file of some bytes can declare gigabytes."""
    if image.mode == "F":
        raise InputError(f"{path}: floating-point pixels have no fixed grey scale. Export the scan with 8 or 16 bits.")
    if max(image.size) > MOST_PIXELS_PER_SIDE:
        raise InputError(
            f"{path}: {image.width}×{image.height} pixels, but the limit is {MOST_PIXELS_PER_SIDE} per side. Export the scan again."
        )


def _values(path: Path, image: Image.Image) -> np.ndarray:
    """The values of a picture of more than 8 bits per value, int32 (H, W), black first."""
    with _decoding(path):
        # Read before the pixels: Pillow drops what it has applied.
        tags = getattr(image, "tag_v2", {})
        inverted, bits = tags.get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO, tags.get(TIFF_BITS, 16)
        # 32 bits hold all values of the modes of more than 8.
        values = np.asarray(_upright(image)).astype(np.int32)
    if inverted:
        # Pillow does so for 8 bits and fewer.
        values = (1 << int(bits[0] if isinstance(bits, tuple) else bits)) - 1 - values
    if values.min() < 0 or values.max() >= WIDE:
        raise InputError(f"{path}: values from {values.min()} to {values.max()}; export the scan with 8 or 16 bits without sign.")
    return values


def _upright(image: Image.Image) -> Image.Image:
    """The picture turned as its orientation tag says. Pillow itself turns a TIFF when it decodes it, and drops the tag."""
    image.load()
    return ImageOps.exif_transpose(image) if _orientation(image) in TURNED else image


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except UNDECODABLE:
        # A damaged EXIF says nothing of the pixels.
        return 1


def _unreadable(path: Path, error: Exception) -> InputError:
    if isinstance(error, PermissionError):
        return InputError(f"{path} cannot be read: {error.strerror}. Fix its permissions.")
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path} has been removed since the folder was listed. Run the same command again.")
    known = isinstance(error, Image.UnidentifiedImageError)
    reason = "not an image despite its name" if known else f"damaged ({str(error).rstrip('.')})"
    return InputError(f"{path}: {reason}. Copy it again or remove the scan.")
