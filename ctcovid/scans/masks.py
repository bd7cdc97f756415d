"""Lesion masks: a picture for each slice of a scan, or one volume."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ctcovid.base.errors import InputError
from ctcovid.base.files import require_there
from ctcovid.scans.contents import listed
from ctcovid.scans.decode import stored_values, volume_scan
from ctcovid.scans.read import read_slice, square
from ctcovid.scans.scan import Scan, Stack


def read_mask(path: Path, slices: int, size: int, stack: Stack | None = None) -> np.ndarray:
    """The mask of a scan of `slices` slices, head to feet, on the model's grid: bool (slices, size, size), True inside lesions.

    A folder holds a picture for each slice, in the natural order of names, white inside lesions. A volume (NIfTI, NRRD, MetaImage) is
    turned to head first, front up, the patient's left on the right; any value but 0 is a lesion.

    Raises InputError if it cannot be read, has another number of slices, or its voxels are not those of the scan's `stack`.
    """
    require_there(path, "mask")
    if path.is_dir():
        inside = [read_slice(file) > 127 for file in listed(path).pictures]
    else:
        inside = list(_volume(path, stack, slices) != 0)
    if len(inside) != slices:
        raise InputError(f"{path}: {len(inside)} slices, but the scan has {slices}. Give the mask of this scan.")
    return np.stack([square(one.astype(np.uint8) * 255, size) > 127 for one in inside])


def _volume(path: Path, whole: Stack | None, slices: int) -> np.ndarray:
    scan = volume_scan(Scan("", "", "", path, (), ""), path)
    if scan.stack is None or not scan.slices:
        reasons = "; ".join(finding.message for finding in scan.findings)
        raise InputError(f"{path}: not a readable volume ({reasons}). Give NIfTI, or a folder of PNG files.")
    if whole is not None:
        _require_same_voxels(path, scan.stack, whole, slices)
    return stored_values(path, scan.stack)


def _require_same_voxels(path: Path, mask: Stack, scan: Stack, slices: int) -> None:
    """Raises InputError if a corner of the mask is more than half a voxel off, as far as both files give positions."""
    if mask.geometry is None or scan.geometry is None or mask.assumed or scan.assumed:
        return
    (height, width), (rows, columns) = scan.slice_size, mask.slice_size
    corners = np.array([[x, y, z, 1.0] for x in (0, width - 1) for y in (0, height - 1) for z in (0, slices - 1)]).T
    apart = np.linalg.norm((mask.geometry.affine - scan.geometry.affine) @ corners, axis=0).max()
    if (rows, columns) != (height, width) or apart > min(scan.geometry.spacing) / 2:
        where = f"{columns}×{rows} pixels, up to {apart:.1f} mm away from the scan's {width}×{height}"
        raise InputError(f"{path}: {where}. Resample the mask to the scan's voxels, or give the mask of this scan.")
