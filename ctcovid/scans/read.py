"""Read slices: any file that Pillow knows, any mode, to one channel of uint8."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ctcovid.base.errors import InputError
from ctcovid.scans.discover import Scan

# What Pillow raises on damaged files, beside what it documents.
UNDECODABLE = (OSError, SyntaxError, ValueError, TypeError, EOFError, KeyError, IndexError, struct.error, Image.DecompressionBombError)
_WIDE_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True)
class ScanFormat:
    """What the slices of one scan have in common.

    `bits` is the number of bits that the scan's values use: 8, 12 or 16.
    """

    height: int
    width: int
    bits: int


def probe(slices: Sequence[Path]) -> ScanFormat:
    """Check the headers of a scan's slices, and how many bits a scan of more than 8 bits per value really uses.

    Raises InputError that names the first slice that is empty, is not an image, or has another size than the rest.
    """
    sizes: dict[tuple[int, int], Path] = {}
    highest = 0
    for path in slices:
        with _opened(path) as image:
            sizes.setdefault(image.size, path)
            if image.mode in _WIDE_MODES:
                highest = max(highest, int(_values(path, image).max()))
    if len(sizes) > 1:
        (first, one), (second, other) = list(sizes.items())[:2]
        raise InputError(
            f"{other}: {second[0]}×{second[1]} pixels, but {one.name} has {first[0]}×{first[1]}. "
            "Slices of one scan are of one size; put other series into folders of their own."
        )
    width, height = next(iter(sizes))
    return ScanFormat(height, width, bits=8 if highest < 1 << 8 else 12 if highest < 1 << 12 else 16)


def read_slice(path: Path, bits: int = 8) -> np.ndarray:
    """One slice as uint8 (H, W).

    Colour becomes luminance (three equal channels stay what they are), transparency is dropped, and values of more than 8 bits are
    scaled from the full range of `bits`.

    Raises InputError where the file cannot be decoded.
    """
    with _opened(path) as image:
        if image.mode in _WIDE_MODES:
            scale = 255 / ((1 << bits) - 1)
            return np.clip(np.rint(_values(path, image) * scale), 0, 255).astype(np.uint8)
        try:
            return np.asarray(image.convert("L"))
        except UNDECODABLE as error:
            raise _unreadable(path, error) from error


def square(pixels: np.ndarray, size: int) -> np.ndarray:
    """Bring a slice to uint8 (size, size): padded with black to a square, so that no anatomy is stretched, then resized.

    Pillow's bilinear filter widens with the reduction and so does not alias.
    """
    height, width = pixels.shape
    if height != width:
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        pixels = np.pad(pixels, ((top, side - height - top), (left, side - width - left)))
    if pixels.shape[0] == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR))


def read_scan(slices: Sequence[Path], size: int, workers: int = 1) -> np.ndarray:
    """All slices of a scan as uint8 (S, size, size), `workers` of them decoded at a time.

    Raises InputError that names the slice that is wrong.
    """
    bits = probe(slices).bits
    # Threads: Pillow decodes without holding the interpreter.
    with ThreadPoolExecutor(workers) as pool:
        return np.stack(list(pool.map(lambda path: square(read_slice(path, bits), size), slices)))


def read_volumes(scan: Scan, depth: int, size: int, workers: int = 1) -> np.ndarray:
    """The non-overlapping depth-n volumes of a scan, uint8 (N, depth, size, size), N ≥ 1; the tail is dropped (Sec. 2.2).

    Raises InputError where a slice cannot be read, or the scan is shorter than a volume.
    """
    count = len(scan.slices) // depth
    if count == 0:
        raise InputError(
            f"{scan.folder}: {len(scan.slices)} slices, but the model takes volumes of {depth}. Give the whole scan, or another model."
        )
    return read_scan(scan.slices, size, workers)[: count * depth].reshape(count, depth, size, size)


def _opened(path: Path) -> Image.Image:
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty. Copy it again or remove the scan.")
        image = Image.open(path)
        if image.mode == "F":
            raise InputError(f"{path}: floating-point pixels have no fixed grey scale. Export the scan with 8 or 16 bits.")
        if getattr(image, "n_frames", 1) > 1:
            raise InputError(f"{path}: {image.n_frames} pictures in one file. Export one file per slice.")  # type: ignore[attr-defined]
        return image
    except UNDECODABLE as error:
        raise _unreadable(path, error) from error


def _values(path: Path, image: Image.Image) -> np.ndarray:
    try:
        values = np.asarray(image).astype(np.int64)
    except UNDECODABLE as error:
        raise _unreadable(path, error) from error
    if values.min() < 0 or values.max() >= 1 << 16:
        raise InputError(f"{path}: values from {values.min()} to {values.max()}; export the scan with 8 or 16 bits without sign.")
    return values


def _unreadable(path: Path, error: Exception) -> InputError:
    if isinstance(error, PermissionError):
        return InputError(f"{path} cannot be read: {error.strerror}. Mend its permissions.")
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path} has gone since the folder was listed. Run the command again.")
    known = isinstance(error, Image.UnidentifiedImageError)
    reason = "not an image, whatever its name says" if known else f"damaged ({str(error).rstrip('.')})"
    return InputError(f"{path}: {reason}. Copy it again or remove the scan.")
