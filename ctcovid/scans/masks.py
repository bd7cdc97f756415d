"""Lesion masks: a picture for each slice of a scan, or one volume."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ctcovid.base.errors import InputError
from ctcovid.scans.contents import look_into
from ctcovid.scans.decode import stored_values, volume_scan
from ctcovid.scans.read import read_slice, square
from ctcovid.scans.scan import Scan


def read_mask(path: Path, slices: int, size: int) -> np.ndarray:
    """The mask of a scan of `slices` slices, head to feet, on the model's grid: bool (slices, size, size), True inside of lesions.

    A folder holds a picture for each slice, in the natural order of names, white inside of lesions. A volume (NIfTI, NRRD, MetaImage) is
    turned to head first, front up, the patient's left on the right, and any value but 0 is a lesion.

    Raises InputError where it cannot be read, or has another number of slices.
    """
    if not path.exists():
        raise InputError(f"No such mask: {path}. Check the path.")
    if path.is_dir():
        inside = [read_slice(file) > 127 for file in look_into(path).pictures]
    else:
        inside = list(_volume(path) != 0)
    if len(inside) != slices:
        raise InputError(f"{path}: {len(inside)} slices, but the scan has {slices}. Give the mask of this scan.")
    return np.stack([square(one.astype(np.uint8) * 255, size) > 127 for one in inside])


def _volume(path: Path) -> np.ndarray:
    scan = volume_scan(Scan("", "", "", path, (), ""), path)
    if scan.stack is None or not scan.slices:
        reasons = "; ".join(finding.message for finding in scan.findings)
        raise InputError(f"{path}: not a volume that can be read ({reasons}). Give NIfTI, or a folder of PNG files.")
    return stored_values(path, scan.stack)
