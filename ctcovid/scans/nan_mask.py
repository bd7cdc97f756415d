"""NaN and Inf in NIfTI files, which ITK silently replaces by 0: that is water, not black."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

NIFTI_2_BYTES = 540
FLOATS = {16: "f4", 64: "f8"}
HEADER_BYTES = 352


def nan_masks(path: Path, shape: tuple[int, int, int]) -> Iterator[np.ndarray]:
    """For each slice, where the stored values are NaN or Inf: bool (rows, columns). Nothing for files of integers.

    Raises OSError, EOFError, ValueError, struct.error or zlib.error if the file is damaged.
    """
    slices, rows, columns = shape
    with gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb") as file:
        head = file.read(HEADER_BYTES)
        order = "<" if int.from_bytes(head[:4], "little") <= NIFTI_2_BYTES else ">"
        second = struct.unpack_from(f"{order}i", head)[0] == NIFTI_2_BYTES
        (kind,) = struct.unpack_from(f"{order}h", head, 12 if second else 70)
        if kind not in FLOATS:
            return
        (start,) = struct.unpack_from(f"{order}q", head, 168) if second else struct.unpack_from(f"{order}f", head, 108)
        file.seek(int(start))
        number = np.dtype(order + FLOATS[kind])
        for _ in range(slices):
            stored = np.frombuffer(file.read(rows * columns * number.itemsize), number)
            yield ~np.isfinite(stored.reshape(rows, columns))
