"""Read NIfTI-1, NIfTI-2 and .hdr/.img pairs with nibabel.

A file is opened by its first bytes, not by its ending, read once from front to back, and to its end, so that its checksum is compared.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ctcovid.scans.findings import KEPT, WARNING, Finding
from ctcovid.scans.geometry import normalise
from ctcovid.scans.scan import MOST_BYTES
from ctcovid.scans.volume_header import GZIP, MOST_DEFLATED, SLAB_BYTES, UnreadableError, VolumeHeader, not_a, too_much, values_beside

NIFTI_ENDINGS = (".nii.gz", ".nii", ".hdr.gz", ".hdr")
# In Hounsfield units; an intercept between is one from stored values that begin at 0.
AIR = -1100.0, -900.0
# `sizeof_hdr`, with which a header begins, and nibabel's class for it.
CLASSES = {348: "Nifti1Header", 540: "Nifti2Header"}
SINGLE, PAIR = (b"n+1", b"n+2"), (b"ni1", b"ni2")
MILLIMETRES = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}
# By what share of the smallest voxel side the positions of the two affines may differ: both are rounded.
ROUNDED = 0.1
# Left, back and head, as in DICOM and ITK, in RAS+.
ASSUMED = (-1.0, -1.0, 1.0)


@dataclass(frozen=True)
class _Source:
    """nibabel's header, the file of the values, and the byte at which they begin."""

    header: Any
    values: Path
    offset: int


def is_header(path: Path) -> bool:
    """Whether a file begins as NIfTI or Analyze does: other programs have files that end in .hdr, too. True if it cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError:
        return True
    return head[:2] == GZIP or int.from_bytes(head, "little") in CLASSES or int.from_bytes(head, "big") in CLASSES


def nifti_header(path: Path) -> VolumeHeader:
    """The header of a NIfTI file.

    Raises UnreadableError with the reason if it cannot be used, and OSError if the file cannot be read.
    """
    source = _source(path)
    shape = _shape(source.header)
    _require_whole(source, math.prod(shape))
    affine, assumed, findings = _affine(source.header, shape)
    return VolumeHeader(shape, affine, assumed, findings, None if source.values == path else source.values)


def nifti_slabs(path: Path) -> Iterator[np.ndarray]:
    """The values of a NIfTI file by slope and intercept, in pieces (slices, rows, columns), in the order of the file.

    They are of the stored type, or float64 if they are scaled. Raises UnreadableError if they are damaged, and OSError if the file
    cannot be read.
    """
    from nibabel.arrayproxy import ArrayProxy

    source = _source(path)
    slices, rows, columns = _shape(source.header)
    # Not (columns, rows, slices): what follows is one value long each.
    stored = (*source.header.get_data_shape(), 1)[: max(len(source.header.get_data_shape()), 3)]
    slope, inter = _scaling(source.header)
    thickness = max(1, SLAB_BYTES // (8 * rows * columns))
    with _damage_named(), _opened(source.values) as file:
        proxy = ArrayProxy(file, (stored, source.header.get_data_dtype(), source.offset, slope, inter), mmap=False)
        for first in range(0, slices, thickness):
            last = min(first + thickness, slices)
            values = np.asarray(proxy[(slice(None), slice(None), slice(first, last)) + (0,) * (len(stored) - 3)])
            yield values.reshape((columns, rows, last - first), order="F").T
        _require_checksum(file)


def placement(path: Path) -> Any:
    """A NIfTI-1 header of nibabel's that has only the place of the file's voxels: qform, sform, their codes and units, and voxel sizes.

    Raises UnreadableError or OSError if the file cannot be read.
    """
    import nibabel

    header, placed = _source(path).header, nibabel.Nifti1Header()
    fields = [f"{name}_{axis}" for name in ("srow", "qoffset") for axis in "xyz"]
    for name in ("qform_code", "sform_code", *(f"quatern_{part}" for part in "bcd"), *fields):
        placed[name] = header[name]
    placed["pixdim"][:4] = header["pixdim"][:4]
    placed.set_xyzt_units(_unit(header))
    return placed


def _source(path: Path) -> _Source:
    import nibabel

    with _damage_named(), _opened(path) as file:
        head = file.read(540)
    little = int.from_bytes(head[:4], "little") in CLASSES
    size = int.from_bytes(head[:4], "little" if little else "big")
    if size not in CLASSES:
        raise not_a("NIfTI", head)
    if len(head) < size:
        raise UnreadableError("cut short")
    header = getattr(nibabel, CLASSES[size])(head[:size], endianness="<" if little else ">", check=False)
    magic = header["magic"].item()[:3]
    if magic not in SINGLE + PAIR:
        raise UnreadableError("an Analyze 7.5 file, which does not tell the left from the right; convert it to NIfTI")
    offset = float(header["vox_offset"])
    if not 0 <= offset < 1 << 62 or (magic in SINGLE and offset < size):
        raise UnreadableError("damaged: its values would begin inside its header")
    values = path if magic in SINGLE else _image_of(path)
    return _Source(header, values, int(offset))


def _image_of(path: Path) -> Path:
    name = path.name
    base = name[: -len(next(kind for kind in NIFTI_ENDINGS if name.lower().endswith(kind)))]
    return values_beside(path, [f"{base}.img", f"{base}.img.gz"], any_case=True)


def _shape(header: Any) -> tuple[int, int, int]:
    """Slices, rows and columns.

    Raises UnreadableError if it holds no single volume of grey values.
    """
    try:
        kind = header.get_data_dtype()
    except KeyError as error:
        raise UnreadableError(f"its values are of type {int(header['datatype'])}, which NIfTI does not know") from error
    if kind.fields is not None:
        raise UnreadableError("it holds colours or vectors, not grey values")
    if kind.kind not in "iuf" or kind.itemsize > 8:
        raise UnreadableError(f"it holds values of type {kind.name}, which are not read; convert them to 32-bit floats or integers")
    sizes = tuple(int(size) for size in header.get_data_shape())
    if not 2 <= len(sizes) <= 7 or min(sizes) < 1:
        raise UnreadableError(f"damaged: its header declares {'×'.join(map(str, sizes)) or 'no'} values")
    said = "×".join(map(str, sizes))
    if math.prod(sizes[4:]) > 1:
        raise UnreadableError(f"it holds colours or vectors, not grey values ({said})")
    if math.prod(sizes[3:]) > 1:
        raise UnreadableError(f"{said} values, but a scan has three axes; save one of its {sizes[3]} volumes as a file of its own")
    columns, rows, slices = (*sizes, 1)[:3]
    return slices, rows, columns


def _scaling(header: Any) -> tuple[float, float]:
    """Slope and intercept; none for a slope of 0 or NaN, as the standard asks.

    Yet ITK, and what is built on it, adds the intercept then, and one such as −1024 can only mean Hounsfield units.

    Raises UnreadableError if the intercept is NaN or Inf.
    """
    from nibabel.spatialimages import HeaderDataError

    try:
        slope, inter = header.get_slope_inter()
    except HeaderDataError as error:
        raise UnreadableError("damaged: the intercept of its values is NaN or Inf") from error
    if slope is None:
        added = float(header["scl_inter"])
        return 1.0, added if AIR[0] <= added <= AIR[1] else 0.0
    return slope, inter


def _require_whole(source: _Source, values: int) -> None:
    """Raises UnreadableError if the header declares too many values, or more than the file can hold."""
    _scaling(source.header)
    stored = values * source.header.get_data_dtype().itemsize
    # Only the grey values are in memory as a whole.
    if values > MOST_BYTES:
        raise too_much(stored)
    size = source.values.stat().st_size
    with source.values.open("rb") as file:
        packed = file.read(2) == GZIP
    # If packed, reading it tells.
    if source.offset + stored > (size * MOST_DEFLATED if packed else size):
        raise UnreadableError("cut short")


def _affine(header: Any, shape: tuple[int, int, int]) -> tuple[np.ndarray, bool, tuple[Finding, ...]]:
    """From (column, row, slice) to millimetres in RAS+, whether it is assumed, and a finding if the file has two that differ.

    The sform is taken if it is coded, as in nibabel, FSL and SPM. ITK, and with it 3D Slicer and ITK-SNAP, takes it if its code is 1 or
    there is no qform, and the qform if the sform is sheared.

    Raises UnreadableError or ValueError if there is none that is usable.
    """
    scale = np.diag([*[MILLIMETRES[_unit(header)]] * 3, 1.0])
    sform, qform = (_usable(form, header, scale, shape) for form in ("sform", "qform"))
    codes = {form: int(header[f"{form}_code"]) for form in ("sform", "qform")}
    if not any(codes.values()):
        sides = np.abs(header["pixdim"][1:4].astype(np.float64)) * ASSUMED
        return scale @ np.diag([*sides, 1.0]), True, ()
    if sform is None and qform is None:
        raise UnreadableError("damaged: its axes have no valid length or direction")
    taken = "qform" if sform is None else "sform"
    affine = qform if sform is None else sform
    assert affine is not None
    if not all(codes.values()):
        return affine, False, ()
    if sform is None or qform is None:
        text = f"its {'sform' if sform is None else 'qform'} is not valid; the {taken} gives the orientation"
    else:
        corners = np.array([[x, y, z, 1.0] for x in (0, shape[2] - 1) for y in (0, shape[1] - 1) for z in (0, shape[0] - 1)]).T
        apart = float(np.linalg.norm((sform - qform) @ corners, axis=0).max())
        if apart <= ROUNDED * np.linalg.norm(affine[:3, :3], axis=0).min():
            return affine, False, ()
        text = f"its sform and qform differ by up to {apart:.3g} mm; the sform is used, and other programs may use the qform"
    return affine, False, (Finding("affines-differ", WARNING, text, KEPT),)


def _unit(header: Any) -> str:
    """The unit of lengths; "unknown" if its code is none of the standard."""
    with contextlib.suppress(KeyError):
        unit = str(header.get_xyzt_units()[0])
        return unit if unit in MILLIMETRES else "unknown"
    return "unknown"


def _usable(form: str, header: Any, scale: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray | None:
    """An affine of the header in millimetres; None if it is not coded, or not valid."""
    from nibabel.spatialimages import HeaderDataError

    with contextlib.suppress(ValueError, HeaderDataError):
        if form == "sform":
            affine, _ = header.get_sform(coded=True)
        else:
            repaired = header.copy()
            # By the standard, whatever is not -1 counts as 1; nibabel's own reader takes sizes without their sign.
            repaired["pixdim"][:4] = [-1 if header["pixdim"][0] == -1 else 1, *np.abs(header["pixdim"][1:4])]
            affine, _ = repaired.get_qform(coded=True)
        if affine is not None:
            affine = scale @ affine.astype(np.float64)
            normalise(affine, shape)
        return affine
    return None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file, unpacked if it is gzip, whatever its name says."""
    with path.open("rb") as file:
        packed = file.read(2) == GZIP
        file.seek(0)
        if not packed:
            yield file
            return
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield unpacked  # type: ignore[misc]


def _require_checksum(file: IO[bytes]) -> None:
    """Read a gzip file to its end, where its checksum is compared; no further than a scan can be long."""
    if not isinstance(file, gzip.GzipFile):
        return
    left = MOST_BYTES
    try:
        while left > 0 and (piece := file.read(1 << 20)):
            left -= len(piece)
    except gzip.BadGzipFile as error:
        # What follows a stream whose checksum is right, gunzip ignores too.
        if not str(error).startswith("Not a gzipped file"):
            raise


@contextlib.contextmanager
def _damage_named() -> Iterator[None]:
    """Raises UnreadableError in place of what damaged files raise; an OSError of the file system passes."""
    try:
        yield
    except UnreadableError:
        raise
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UnreadableError("damaged: its compressed values do not fit their checksum") from error
    except (EOFError, ValueError) as error:
        raise UnreadableError("cut short") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise UnreadableError("cut short") from error
