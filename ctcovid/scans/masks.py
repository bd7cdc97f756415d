"""Lesion masks: a picture for each slice of a scan, the pages of one TIFF, or one volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctcovid.base.errors import InputError, counted
from ctcovid.base.files import require_there
from ctcovid.scans.absent import raise_if_absent
from ctcovid.scans.contents import PICTURES, listed
from ctcovid.scans.decode import ending, stored_values, volume_scan
from ctcovid.scans.mask_pictures import mask_values
from ctcovid.scans.read import square
from ctcovid.scans.scan import Scan, Stack

# Of lossy pictures, whose black is not 0, from 0 to 255.
HALF = 127
ALL_BUT_0 = "all values but 0"
# More than this share of all pixels is not lesions but their background.
MOST_LESION = 0.75
# Whole numbers that were scaled are whole again only to rounding.
ROUNDED = 1e-3
# By how many slices, and shares of a voxel side, grids may differ to be the same.
SAME_GRID = 0.05


@dataclass(frozen=True)
class Mask:
    """A lesion mask on the slices of a scan.

    Attributes
    ----------
    inside : bool (slices, size, size), head to feet, on the model's grid, True inside lesions
    rule : which values count as a lesion, in words
    placed : whether the mask itself says which slice is next to the head, and the scan does not
    """

    inside: np.ndarray
    rule: str
    placed: bool = False

    def of(self, kept: Sequence[int]) -> np.ndarray:
        """The mask of the slices at these positions of the scan, bool (S, size, size).

        A scan that was repaired, because its slices lay feet first, is head first now, as a mask with positions always is.

        Raises InputError if the scan was put into another order, in which such a mask does not say what belongs together.
        """
        chosen = list(kept)
        if not self.placed or chosen == sorted(chosen):
            return self.inside[chosen]
        if chosen != sorted(chosen, reverse=True):
            raise InputError("The slices of the scan were reordered, so a volume cannot be matched to them. Give a mask of pictures.")
        return self.inside[[len(self.inside) - 1 - position for position in chosen]]

    def __str__(self) -> str:
        with_lesion = int(self.inside.any((1, 2)).sum())
        return f"The mask has lesions on {with_lesion} of {counted(len(self.inside), 'slice')}: {self.rule}."


def read_mask(path: Path, scan: Scan, size: int, own_size: tuple[int, int] | None = None) -> Mask:
    """The mask of `scan`, on slices of `size`; `own_size` is the height and width of the scan's own slices, if they are known.

    A lesion is any value but 0 of pictures and of whole numbers, and of other numbers, as of soft edges, what is above half of the
    largest. Of lossy pictures it is what is above 127. Volumes are turned to head first, front up, the patient's left on the right.

    Raises InputError if it cannot be read, holds no lesion or nearly nothing else, or does not belong to the slices of the scan.
    """
    require_there(path, "mask")
    values, names, stack, lossy = _values(path)
    lesions, rule = _lesions(path, values, lossy)
    if stack is not None and scan.stack is not None and _both_placed(stack, scan.stack):
        lesions = _on_voxels(path, np.stack(lesions), stack, scan)
    else:
        _require_shape(path, lesions, own_size)
        lesions = _on_names(path, lesions, names, scan)
    placed = stack is not None and not stack.assumed and not scan.positioned
    return Mask(np.stack([_resized(one, size) for one in lesions]), rule, placed)


def _values(path: Path) -> tuple[list[np.ndarray], list[str], Stack | None, bool]:
    """The values of each slice, (rows, columns); for pictures, the names of the slices; for a volume, its stack; whether they are lossy."""
    if path.is_dir():
        contents = listed(path)
        files = contents.pictures or contents.volumes
        if not contents.pictures and len(files) != 1:
            found = f"{len(files)} volume files" if files else "DICOM" if contents.dicom else "no picture"
            raise InputError(f"{path}: {found} in the folder of the mask. Give a PNG file for each slice, or one NIfTI file.")
        if not contents.pictures:
            path = files[0]
    else:
        files = (path,)
    if ending(path.name):
        return (*_volume(path), False)
    if not path.is_dir() and path.suffix.lower() not in PICTURES:
        raise InputError(f"{path}: not a mask by its name. Give NIfTI, NRRD, MetaImage, a TIFF of pages, or a folder of PNG files.")
    pages = [page for file in files for page in mask_values(file)]
    names = [file.stem for file in files] if len(files) == len(pages) else []
    return [values for values, _ in pages], names, None, any(lossy for _, lossy in pages)


def _volume(path: Path) -> tuple[list[np.ndarray], list[str], Stack]:
    try:
        scan = volume_scan(Scan("", "", "", path, (), ""), path)
    except OSError as error:
        raise_if_absent(path, error)
        raise
    if scan.stack is None or not scan.slices:
        reasons = "; ".join(finding.message for finding in scan.findings)
        raise InputError(f"{path}: not a readable volume ({reasons}). Give NIfTI, or a folder of PNG files.")
    return list(stored_values(path, scan.stack)), [], scan.stack


def _lesions(path: Path, slices: Sequence[np.ndarray], lossy: bool) -> tuple[list[np.ndarray], str]:
    """Where the lesions are, bool of the shape of each slice, and the rule in words.

    Raises InputError if there are none, or if nearly everything is one.
    """
    # Slices may differ in size, as those of a scan may, of which the odd ones are dropped.
    values = np.concatenate([one.ravel() for one in slices])
    values = np.nan_to_num(values, copy=False, nan=0, posinf=0, neginf=0) if values.dtype.kind == "f" else values
    if lossy:
        inside, rule = values > HALF, f"values above {HALF} of 255, as lossy pictures have no exact 0"
    elif values.dtype.kind != "f":
        inside, rule = values != 0, ALL_BUT_0
    else:
        whole = np.rint(values)
        # Not of tiny numbers, which would all be rounded to 0.
        labels = np.abs(values - whole).max() <= ROUNDED and (whole.any() or not values.any())
        inside, rule = (whole != 0, ALL_BUT_0) if labels else _soft(values)
    least, most = float(values.min()), float(values.max())
    held = f"all its values are {least:g}" if least == most else f"its values go from {least:g} to {most:g}"
    if rule != ALL_BUT_0 and -least > most / 2:
        raise InputError(f"{path}: not a lesion mask: {held}. Give the mask of this scan.")
    if not inside.any():
        raise InputError(f"{path}: no lesion in the mask: {held}, and lesions are {rule}. Give the mask of this scan.")
    if rule == ALL_BUT_0 and inside.mean() > MOST_LESION:
        share = f"{inside.mean():.0%} of the mask would be lesions: {held}, and lesions are {rule}"
        raise InputError(f"{path}: {share}. Give a mask whose background is 0.")
    pieces = np.split(inside, np.cumsum([one.size for one in slices])[:-1])
    return [piece.reshape(one.shape) for piece, one in zip(pieces, slices, strict=True)], rule


def _soft(values: np.ndarray) -> tuple[np.ndarray, str]:
    """`_lesions` of numbers that are not whole: soft edges, probabilities, or a map such as explain's own."""
    most = float(values.max())
    threshold, said = most / 2, "half of the largest"
    if most > 0 and (values > threshold).mean() > MOST_LESION:
        # A map that is nowhere near 0, except in slices that have none.
        threshold, said = (float(values[values != 0].min()) + most) / 2, "midway between the smallest and the largest"
    return values > threshold, f"values above {threshold:.3g}, {said}, as they are not whole numbers"


def _both_placed(mask: Stack, scan: Stack) -> bool:
    return mask.geometry is not None and scan.geometry is not None and not mask.assumed and not scan.assumed


def _on_voxels(path: Path, lesions: np.ndarray, mask: Stack, scan: Scan) -> list[np.ndarray]:
    """The mask on the scan's slices by its position, if it has the scan's voxels; it may have fewer or more slices.

    Raises InputError if a corner of the mask is more than half a voxel off.
    """
    assert mask.geometry is not None and scan.stack is not None and scan.stack.geometry is not None
    slices, (height, width), affine = len(scan.slices), scan.stack.slice_size, scan.stack.geometry.affine
    # Where the mask's first voxel is among the scan's.
    shift = np.linalg.solve(affine, mask.geometry.affine @ [0, 0, 0, 1])[2]
    offset = round(float(shift)) if len(lesions) != slices else 0
    corners = np.array([[x, y, z, 1.0] for x in (0, width - 1) for y in (0, height - 1) for z in (0, len(lesions) - 1)]).T
    moved = corners + np.array([[0.0], [0.0], [offset], [0.0]])
    apart = np.linalg.norm(mask.geometry.affine @ corners - affine @ moved, axis=0).max()
    side = min(scan.stack.geometry.spacing)
    rows, columns = lesions.shape[1:]
    # Of other slice counts, only a grid that is surely the same is taken.
    if (rows, columns) != (height, width) or apart > side * (0.5 if len(lesions) == slices else SAME_GRID):
        if len(lesions) != slices:
            raise _other_count(path, len(lesions), slices)
        where = f"{columns}×{rows} pixels, up to {apart:.1f} mm away from the scan's {width}×{height}"
        raise InputError(f"{path}: {where}. Resample the mask to the scan's voxels, or give the mask of this scan.")
    placed = np.zeros((slices, height, width), bool)
    first, last = max(offset, 0), min(offset + len(lesions), slices)
    placed[first:last] = lesions[first - offset : max(last - offset, 0)]
    if not placed.any():
        raise InputError(f"{path}: its lesions are all beside the slices of the scan. Give the mask of this scan.")
    return list(placed)


def _on_names(path: Path, lesions: list[np.ndarray], names: list[str], scan: Scan) -> list[np.ndarray]:
    """The mask on the scan's slices, one for each, or those of the same names.

    Raises InputError if there are others.
    """
    if len(lesions) == len(scan.slices):
        return lesions
    own = [file.stem for file in scan.slices] if scan.stack is None else []
    few, many = sorted((names, own), key=len)
    # Names that are numbered anew agree with the first ones of the longer list, and say nothing.
    if not few or not set(few) < set(many) or few == many[: len(few)] or len(set(many)) < len(many):
        raise _other_count(path, len(lesions), len(scan.slices))
    named = dict(zip(names, lesions, strict=True))
    placed = [named.get(name, np.zeros_like(lesions[0])) for name in own]
    if not any(one.any() for one in placed):
        raise InputError(f"{path}: its lesions are on slices that the scan does not have. Give the mask of this scan.")
    return placed


def _other_count(path: Path, mask: int, scan: int) -> InputError:
    return InputError(f"{path}: {counted(mask, 'slice')}, but the scan has {scan}. Give the mask of this scan.")


def _require_shape(path: Path, lesions: list[np.ndarray], own_size: tuple[int, int] | None) -> None:
    """Raises InputError if slices of the mask have another aspect than those of the scan: they would not lie on each other."""
    if own_size is None:
        return
    sizes = [one.shape for one in lesions]
    (rows, columns), (height, width) = max(dict.fromkeys(sizes), key=sizes.count), own_size
    if abs(rows * width - columns * height) > max(rows, columns, height, width):
        raise InputError(f"{path}: {columns}×{rows} pixels, but the scan has {width}×{height}. Give the mask of this scan.")


def _resized(lesion: np.ndarray, size: int) -> np.ndarray:
    """One slice on the model's grid. A lesion that is smaller than the cells of the grid stays, in the cell of each of its pixels."""
    resized = square(lesion.astype(np.uint8) * 255, size) > HALF
    if lesion.any() and not resized.any():
        side = max(lesion.shape)
        top, left = ((side - length) // 2 for length in lesion.shape)
        rows, columns = np.nonzero(lesion)
        resized = np.zeros((size, size), bool)
        resized[(rows + top) * size // side, (columns + left) * size // side] = True
    return resized
