"""NIfTI-1 files of maps, in the space of their scan."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np

from ctcovid.base.files import atomic

HEADER_BYTES, OFFSET = 348, 352
FLOAT32, MILLIMETRES, SCANNER = 16, 2, 1


def save_nifti(path: Path, values: np.ndarray, affine: np.ndarray) -> None:
    """Write values as ``.nii.gz``, whole or not at all, and to the same bytes each time.

    Parameters
    ----------
    values : float (S, H, W)
    affine : float (4, 4), from (column, row, slice) to millimetres in RAS+; it is stored as it is, sheared or not (sform)
    """
    slices, height, width = values.shape
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    header = bytearray(OFFSET)
    struct.pack_into("<i", header, 0, HEADER_BYTES)
    struct.pack_into("<8h", header, 40, 3, width, height, slices, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, FLOAT32, 32)
    struct.pack_into("<8f", header, 76, 1.0, *spacing, 1, 1, 1, 1)
    struct.pack_into("<3f", header, 108, OFFSET, 1.0, 0.0)
    struct.pack_into("<b", header, 123, MILLIMETRES)
    struct.pack_into("<2h", header, 252, 0, SCANNER)
    struct.pack_into("<12f", header, 280, *affine[:3].reshape(-1))
    struct.pack_into("<4s", header, 344, b"n+1\0")
    with atomic(path) as temporary, temporary.open("wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
        packed.write(header)
        for one in values:
            packed.write(np.ascontiguousarray(one, dtype="<f4").tobytes())
