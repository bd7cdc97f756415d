"""Maps as NIfTI lie where their scan lies, as another program reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK

from ctcovid.explanation.cells import boxes
from ctcovid.explanation.upsample import to_scan
from ctcovid.reports.nifti import save_nifti


def tilted(spacing: tuple[float, float, float], origin: tuple[float, float, float], degrees: float) -> np.ndarray:
    """An affine to RAS+ of a scan head to feet, turned about the axis from right to left as a tilted gantry would."""
    turn = np.radians(degrees)
    about = np.array([[1, 0, 0], [0, np.cos(turn), -np.sin(turn)], [0, np.sin(turn), np.cos(turn)]])
    affine = np.eye(4)
    affine[:3, :3] = about @ np.diag([-1.0, -1.0, -1.0]) * np.array(spacing)
    affine[:3, 3] = origin
    return affine


def test_values_and_places_are_read_back_by_another_program(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((5, 7, 9)).astype(np.float32)
    affine = tilted((0.7, 0.8, 5.0), (120.5, 80.25, -33.0), 12)
    save_nifti(tmp_path / "map.nii.gz", values, affine)
    image = SimpleITK.ReadImage(str(tmp_path / "map.nii.gz"))
    assert np.array_equal(SimpleITK.GetArrayFromImage(image), values)
    for index in ((0, 0, 0), (8, 6, 4), (3, 5, 1)):
        expected = affine @ [*index, 1]
        left, back, up = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose([-left, -back, up], expected[:3], atol=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == ["map.nii.gz"]


def test_the_same_map_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.nii.gz", "other.nii.gz"):
        save_nifti(tmp_path / name, np.ones((2, 3, 4)), np.eye(4))
    assert (tmp_path / "one.nii.gz").read_bytes() == (tmp_path / "other.nii.gz").read_bytes()


def test_the_peak_is_where_the_lesion_is_in_millimetres(tmp_path: Path) -> None:
    """A lesion in a known voxel of slices that are not square, in a tilted scan; maps at a quarter of the model's resolution."""
    height, width, depth = 48, 64, 2
    affine = tilted((0.8, 0.8, 4.0), (100, 60, 300), -15)
    lesion = (41, 13, 5)
    native = np.zeros((4, 2, 16, 16), np.float32)
    # The model sees 64 x 64, with 8 rows of padding above: row 13 is row 21 there, and column 41 stays.
    native[5 // depth, 5 % depth, 21 // 4, 41 // 4] = 1
    save_nifti(tmp_path / "map.nii.gz", to_scan(native, boxes((depth, 64, 64), (2, 16, 16)), height, width), affine)
    image = SimpleITK.ReadImage(str(tmp_path / "map.nii.gz"))
    values = SimpleITK.GetArrayFromImage(image)
    assert values.shape == (8, height, width)
    where = np.argwhere(values == values.max()).mean(0)[::-1]
    left, back, up = image.TransformContinuousIndexToPhysicalPoint(where.tolist())
    np.testing.assert_allclose([-left, -back, up], (affine @ [*lesion, 1])[:3], atol=2.5)
