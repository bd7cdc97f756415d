"""Position of a stack of slices in the patient, and its turn to head first, axial, patient left on the image's right."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np

from ctcovid.scans.findings import KEPT, WARNING, Finding

# DICOM and ITK count towards the left and back of the patient, NIfTI towards the right and front.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Along columns to the left, along rows to the back, along slices to the feet, in RAS+.
_WANTED = np.diag([-1.0, -1.0, -1.0])
# Degrees. Beyond MOST_OBLIQUE the nearest axis of the patient is ambiguous; beyond OBLIQUE there is a warning.
MOST_OBLIQUE = 40.0
OBLIQUE = 10.0
# Degrees between axes that should be at right angles; less is rounding, or does no harm.
SHEARED = 0.5
# Share by which width and height of a pixel may differ.
NOT_SQUARE = 0.02


@dataclass(frozen=True)
class Geometry:
    """Position of the normalised stack: `affine`, float64 (4, 4), from (column, row, slice) to millimetres in RAS+, as in NIfTI."""

    affine: np.ndarray

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between columns, rows and slices."""
        across, down, along = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(across), float(down), float(along)


@dataclass(frozen=True)
class Turn:
    """How a source array (slice, row, column) becomes the normalised one: `axes` in numpy's order first, then the axes that are flipped."""

    axes: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[bool, bool, bool] = (False, False, False)

    def __call__(self, stack: np.ndarray) -> np.ndarray:
        """A view of the array, turned."""
        down, across, along = (slice(None, None, -1) if flip else slice(None) for flip in self.flips)
        return stack.transpose(self.axes)[down, across, along]


def as_stored(values: np.ndarray, turn: Turn, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Values on a turned stack, in the order of its file: the array, and its affine from (column, row, slice)."""
    flipped = values[tuple(slice(None, None, -1) if flip else slice(None) for flip in turn.flips)]
    change = np.zeros((4, 4))
    change[3, 3] = 1
    for turned, (stored, flip) in enumerate(zip(turn.axes, turn.flips, strict=True)):
        # Matrices count from columns, arrays from slices.
        change[2 - turned, 2 - stored] = -1 if flip else 1
        change[2 - turned, 3] = values.shape[turned] - 1 if flip else 0
    return flipped.transpose(np.argsort(turn.axes)), geometry.affine @ change


def normalise(affine: np.ndarray, shape: tuple[int, int, int]) -> tuple[Turn, Geometry, float]:
    """How to turn a stack whose axes may lie in any order and direction.

    Parameters
    ----------
    affine : (4, 4), from the source's (column, row, slice) to millimetres in RAS+
    shape : its slices, rows and columns

    Returns
    -------
    the turn, the geometry of the turned stack, and the largest angle in degrees between an axis and the patient's axis assigned to it

    Raises ValueError if the axes do not span three dimensions.
    """
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or (lengths < 1e-6).any() or (lengths > 1e4).any():
        raise ValueError("its axes have no valid length")
    cosines = _WANTED @ (affine[:3, :3] / lengths)
    if abs(np.linalg.det(cosines)) < 1e-3:
        raise ValueError("its axes are all in one plane")
    # Which source axis becomes columns, rows and slices.
    order = max(permutations(range(3)), key=lambda axes: sum(abs(cosines[wanted, axis]) for wanted, axis in enumerate(axes)))
    flips = [bool(cosines[wanted, axis] < 0) for wanted, axis in enumerate(order)]
    change = np.zeros((4, 4))
    change[3, 3] = 1
    for wanted, axis in enumerate(order):
        change[axis, wanted] = -1 if flips[wanted] else 1
        if flips[wanted]:
            change[axis, 3] = shape[2 - axis] - 1
    worst = min(abs(cosines[wanted, axis]) for wanted, axis in enumerate(order))
    columns, rows, slices = (2 - axis for axis in order)
    turn = Turn((slices, rows, columns), (flips[2], flips[1], flips[0]))
    return turn, Geometry(affine @ change), float(np.degrees(np.arccos(min(worst, 1.0))))


def shear_findings(geometry: Geometry, angle: float, stated: float = 0.0) -> list[Finding]:
    """Findings if slices or pixels are sheared, or oblique.

    Parameters
    ----------
    angle : that of `normalise`, which a tilt contributes to
    stated : tilt of the gantry in degrees that the file states; positions that were corrected do not show it
    """
    across, down, along = (geometry.affine[:3, :3] / geometry.spacing).T
    normal = np.cross(across, down)
    tilt = float(np.degrees(np.arccos(min(abs(along @ normal) / np.linalg.norm(normal), 1.0))))
    skew = float(np.degrees(np.arcsin(min(abs(across @ down), 1.0))))
    findings = []
    if tilt > SHEARED:
        text = f"its slices are shifted against each other, as by a gantry that is tilted by {tilt:.1f}°; they are used unchanged"
        findings.append(Finding("gantry-tilt", WARNING, text, KEPT))
    elif abs(stated) > SHEARED:
        text = f"its files state a gantry that is tilted by {abs(stated):.1f}°; slices are used unchanged"
        findings.append(Finding("gantry-tilt", WARNING, text, KEPT))
    if skew > SHEARED:
        text = f"its rows and columns meet at {90 - skew:.1f}° instead of 90°; slices are used unchanged"
        findings.append(Finding("sheared-pixels", WARNING, text, KEPT))
    if angle - (tilt if tilt > SHEARED else 0) > OBLIQUE:
        findings.append(Finding("oblique", WARNING, f"slices are {angle:.0f}° off the patient's axes; used unchanged", KEPT))
    return findings


def pixel_findings(geometry: Geometry) -> list[Finding]:
    """A finding if pixels are not square."""
    across, down, _ = geometry.spacing
    if abs(across - down) <= NOT_SQUARE * max(across, down):
        return []
    text = f"pixels are {across:.4g} mm wide and {down:.4g} mm high, but are used as squares"
    return [Finding("anisotropic-pixels", WARNING, text, KEPT)]
