"""Maps line up with the slices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ctcovid.explanation.cells import Cells, boxes
from ctcovid.explanation.upsample import to_slices


def along(maps: np.ndarray, axis: int, positions: np.ndarray) -> np.ndarray:
    """Linear interpolation along one axis, at positions counted in cells."""
    return np.apply_along_axis(lambda line: np.interp(positions, np.arange(len(line)), line), axis, maps)


@pytest.mark.parametrize(
    ("native", "depth", "size"), [((1, 2, 2), 4, 64), ((1, 16, 16), 4, 32), ((2, 3, 5), 7, 20), ((4, 8, 8), 4, 8), ((4, 64, 64), 8, 64)]
)
def test_maps_are_interpolated_linearly_in_all_three_directions(native: tuple[int, ...], depth: int, size: int) -> None:
    maps = np.random.default_rng(0).random((3, *native), dtype=np.float32)
    shape = (depth, size, size)
    found = to_slices(maps, boxes(shape, native))
    assert found.shape == (3, *shape)
    assert found.dtype == np.float32
    expected = maps.astype(float)
    for axis, (count, length) in enumerate(zip(native, shape, strict=True)):
        expected = along(expected, axis + 1, (np.arange(length) + 0.5) * count / length - 0.5)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    reference = F.interpolate(torch.from_numpy(maps)[:, None], shape, mode="trilinear", align_corners=False)[:, 0]
    np.testing.assert_allclose(found, reference, rtol=0, atol=1e-5)


def test_cells_keep_their_positions_at_any_size_of_the_result() -> None:
    """Cells of a stride of 16 over slices of 64 pixels, as they are, and half and twice as large."""
    maps = np.random.default_rng(0).random((2, 1, 4, 4)).astype(np.float32)
    cells = Cells((4, 64, 64), (0, 0, 0), (8, 16, 16))
    for side in (32, 64, 128):
        positions = ((np.arange(side) + 0.5) * 64 / side - 0.5) / 16
        expected = along(along(maps.astype(float), 2, positions), 3, positions).repeat(4, 1)
        np.testing.assert_allclose(to_slices(maps, cells, side), expected, rtol=0, atol=1e-5)
    assert np.array_equal(to_slices(maps, cells)[:, 0, ::16, ::16], maps[:, 0])


def test_a_constant_map_stays_constant() -> None:
    found = to_slices(np.full((2, 1, 16, 16), 0.375, dtype=np.float32), boxes((4, 64, 64), (1, 16, 16)))
    assert (found == 0.375).all()


def test_slices_of_a_volume_share_a_map_of_depth_one() -> None:
    found = to_slices(np.random.default_rng(0).random((1, 1, 4, 4)), boxes((4, 32, 32), (1, 4, 4)))[0]
    assert all(np.array_equal(found[0], other) for other in found[1:])


def test_nothing_is_added_beyond_the_range_of_the_map() -> None:
    native = np.random.default_rng(0).random((1, 2, 4, 4)).astype(np.float32)
    found = to_slices(native, boxes((8, 64, 64), (2, 4, 4)))
    assert native.min() <= found.min()
    assert found.max() <= native.max()


def test_left_stays_left_and_up_stays_up() -> None:
    native = np.zeros((1, 1, 2, 2), dtype=np.float32)
    native[0, 0, 0, 1] = 1
    found = to_slices(native, boxes((1, 64, 64), (1, 2, 2)))[0, 0]
    assert found[0, -1] == 1
    assert found[0, 0] == found[-1, -1] == found[-1, 0] == 0
