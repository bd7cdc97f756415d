"""Whole scans as tests compare them: every slice, unchecked."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ctcovid.scans.read import read_picture, read_slices, scan_format, square
from ctcovid.scans.scale import GREY, Scale
from ctcovid.scans.scan import Scan
from ctcovid.scans.window import LUNG, Window


def read_scan(scan: Scan, size: int, window: Window = LUNG) -> np.ndarray:
    """All slices of a scan, uint8 (S, size, size)."""
    scale = scan_format(scan).scale
    return np.stack([square(one.pixels, size) for piece in scan.pieces(1) for one in read_slices(piece, scale, window)])


def read_slice(path: Path, scale: Scale = GREY) -> np.ndarray:
    """The pixels of a picture, uint8 (H, W)."""
    return read_picture(path, scale).pixels
