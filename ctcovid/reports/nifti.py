"""NIfTI-1 files of maps, in the space of their scan."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np

from ctcovid.base.files import atomic

SCANNER = 1


def save_nifti(path: Path, values: np.ndarray, affine: np.ndarray, placement: Any = None) -> None:
    """Write values as ``.nii.gz``, whole or not at all, and to the same bytes each time.

    Parameters
    ----------
    values : float (S, H, W)
    affine : float (4, 4), from (column, row, slice) to millimetres in RAS+. The sform is this affine, sheared or not; the qform, which
        cannot be sheared, is the nearest one. Programs that cannot use a sheared sform, such as ITK's, then still open the file
    placement : header of the scan's own NIfTI file (`ctcovid.scans.nifti.placement`), used instead of `affine`: whichever of its qform
        and sform a program takes for the scan, it takes for the map
    """
    import nibabel

    header = nibabel.Nifti1Header() if placement is None else placement
    header.set_data_dtype(np.float32)
    header.set_data_shape(values.shape[::-1])
    image = nibabel.Nifti1Image(np.asarray(values, np.float32).T, None, header)
    if placement is None:
        image.set_sform(affine, SCANNER)
        image.set_qform(affine, SCANNER)
        image.header.set_xyzt_units("mm")
    with atomic(path) as temporary, temporary.open("wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
        image.file_map["image"].fileobj = packed
        image.to_file_map()
