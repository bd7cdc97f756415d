"""Read slices to one channel of uint8: any picture that Pillow reads, and what SimpleITK decodes."""

from __future__ import annotations

import contextlib
import struct
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from ctcovid.base.errors import InputError, counted
from ctcovid.scans import decode
from ctcovid.scans.scan import MOST_PIXELS_PER_SIDE, Scan, Stack
from ctcovid.scans.window import LUNG, Window

# What Pillow raises on damaged files, documented or not.
UNDECODABLE = (OSError, SyntaxError, ValueError, TypeError, EOFError, KeyError, IndexError, struct.error, Image.DecompressionBombError)
# More pages than any scan has slices are damage.
MOST_PAGES = 4096
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
    """Size and depth of a scan's slices; `bits` is how many bits its values use: 8, 12 or 16."""

    height: int
    width: int
    bits: int


def scan_format(scan: Scan) -> ScanFormat:
    """Check the headers of a scan's slices, and how many bits pictures of more than 8 bits per value really use.

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
            highest = max(_highest(path, page) for page in _pages(path, image))
        return ScanFormat(height, width, _bits(highest))
    return ScanFormat(height, width, bits=16)


def probe(slices: Sequence[Path]) -> ScanFormat:
    """`scan_format` of a scan of pictures."""
    sizes: dict[tuple[int, int], Path] = {}
    highest = 0
    for path in slices:
        with _opened(path) as image:
            sizes.setdefault(image.size, path)
            highest = max(highest, _highest(path, image))
    if len(sizes) > 1:
        (first, one), (second, other) = list(sizes.items())[:2]
        raise InputError(
            f"{other}: {second[0]}×{second[1]} pixels, but {one.name} has {first[0]}×{first[1]}. "
            "All slices of a scan must have one size. Put other series into folders of their own."
        )
    width, height = next(iter(sizes))
    return ScanFormat(height, width, _bits(highest))


def read_slices(scan: Scan, bits: int = 8, window: Window = LUNG, nan_slices: set[int] | None = None) -> Iterator[np.ndarray]:
    """The slices of a scan, or of a piece of one, as uint8 (H, W), head to feet.

    Parameters
    ----------
    bits : from `scan_format`; scales pictures
    window : maps Hounsfield units to grey
    nan_slices : the numbers of slices with NaN or Inf are added to it before the first slice is returned

    Raises InputError if a slice cannot be decoded.
    """
    stack = scan.stack
    if stack is None:
        yield from (read_slice(path, bits) for path in scan.slices)
    elif stack.reader == "dicom" and stack.frames:
        yield from decode.decode_frames(scan.slices, stack, window)
    elif stack.reader == "dicom":
        yield from (decode.decode_slice(path, stack, window) for path in scan.slices)
    elif stack.reader == "pages":
        yield from _read_pages(scan.slices[0], stack, bits)
    else:
        yield from decode.decode_volume(scan.slices[0], stack, window, nan_slices)


def read_slice(path: Path, bits: int = 8) -> np.ndarray:
    """One slice as uint8 (H, W).

    Colour becomes luminance (three equal channels are unchanged), transparency is dropped, and values of more than 8 bits are
    scaled from the full range of `bits`.

    Raises InputError if the file cannot be decoded.
    """
    with _opened(path) as image:
        return _grey(path, image, bits)


def _grey(path: Path, image: Image.Image, bits: int) -> np.ndarray:
    if image.mode in _WIDE_MODES:
        scale = 255 / ((1 << bits) - 1)
        return np.clip(np.rint(_values(path, image) * scale), 0, 255).astype(np.uint8)
    with _decoding(path):
        return np.asarray(image if image.mode == "L" else image.convert("L"))


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


def read_scan(scan: Scan, size: int, workers: int = 1, window: Window = LUNG) -> np.ndarray:
    """All slices of a scan as uint8 (S, size, size), `workers` of them decoded at a time.

    Raises InputError that names the wrong slice.
    """
    bits = scan_format(scan).bits
    # Threads suffice: Pillow decodes without the interpreter's lock.
    with ThreadPoolExecutor(workers) as pool:
        pieces = pool.map(lambda piece: [square(pixels, size) for pixels in read_slices(piece, bits, window)], scan.pieces(1))
        return np.stack([pixels for piece in pieces for pixels in piece])


def read_volumes(scan: Scan, depth: int, size: int, workers: int = 1, window: Window = LUNG) -> np.ndarray:
    """The non-overlapping depth-n volumes of a scan, uint8 (N, depth, size, size), N ≥ 1; the tail is dropped (Sec. 2.2).

    Raises InputError if a slice cannot be read, or the scan is shorter than a volume.
    """
    scan.require_slices()
    count = len(scan.slices) // depth
    if count == 0:
        slices = counted(len(scan.slices), "slice")
        raise InputError(f"{scan.folder}: {slices}, but the model takes volumes of {depth}. Give the whole scan, or another model.")
    return read_scan(scan, size, workers, window)[: count * depth].reshape(count, depth, size, size)


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


def _read_pages(path: Path, stack: Stack, bits: int) -> Iterator[np.ndarray]:
    with _opened(path, pages=True) as image:
        for page in _pages(path, image):
            if page.size != (stack.shape[2], stack.shape[1]):
                raise InputError(f"{path}: pages of several sizes, but a scan has one. Export each series to its own file.")
            yield _grey(path, page, bits)


def _pages(path: Path, image: Image.Image) -> Iterator[Image.Image]:
    for number in range(getattr(image, "n_frames", 1)):
        with _decoding(path):
            image.seek(number)
        _require_usable(path, image)
        yield image


def _highest(path: Path, image: Image.Image) -> int:
    return int(_values(path, image).max()) if image.mode in _WIDE_MODES else 0


def _bits(highest: int) -> int:
    return 8 if highest < 1 << 8 else 12 if highest < 1 << 12 else 16


def _opened(path: Path, pages: bool = False) -> Image.Image:
    with _decoding(path):
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty. Copy it again or remove the scan.")
        image = Image.open(path)
        _require_usable(path, image)
        count = getattr(image, "n_frames", 1)
        if count > (MOST_PAGES if pages else 1):
            raise InputError(f"{path}: {count} pictures in one file among others. Export one file per slice, or one file per scan.")
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
    with _decoding(path):
        # 32 bits hold all values of the modes of more than 8.
        values = np.asarray(image).astype(np.int32)
    if values.min() < 0 or values.max() >= 1 << 16:
        raise InputError(f"{path}: values from {values.min()} to {values.max()}; export the scan with 8 or 16 bits without sign.")
    return values


def _unreadable(path: Path, error: Exception) -> InputError:
    if isinstance(error, PermissionError):
        return InputError(f"{path} cannot be read: {error.strerror}. Fix its permissions.")
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path} has been removed since the folder was listed. Run the same command again.")
    known = isinstance(error, Image.UnidentifiedImageError)
    reason = "not an image despite its name" if known else f"damaged ({str(error).rstrip('.')})"
    return InputError(f"{path}: {reason}. Copy it again or remove the scan.")
