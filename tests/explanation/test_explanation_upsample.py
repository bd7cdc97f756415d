"""Maps line up with the slices."""

from __future__ import annotations

import numpy as np
import pytest

from ctcovid.explanation.upsample import to_slices


def along(maps: np.ndarray, axis: int, length: int) -> np.ndarray:
    """Linear interpolation along one axis, voxels being boxes that fill the volume."""
    old = maps.shape[axis]
    places = (np.arange(length) + 0.5) * old / length - 0.5
    return np.apply_along_axis(lambda line: np.interp(places, np.arange(old), line), axis, maps)


@pytest.mark.parametrize(
    ("native", "depth", "size"), [((1, 2, 2), 4, 64), ((1, 16, 16), 4, 32), ((2, 3, 5), 7, 20), ((4, 8, 8), 4, 8), ((4, 64, 64), 8, 64)]
)
def test_maps_are_interpolated_linearly_in_all_three_directions(native: tuple[int, ...], depth: int, size: int) -> None:
    maps = np.random.default_rng(0).random((3, *native), dtype=np.float32)
    found = to_slices(maps, depth, size)
    assert found.shape == (3, depth, size, size)
    assert found.dtype == np.float32
    expected = along(along(along(maps.astype(float), 1, depth), 2, size), 3, size)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_constant_map_stays_constant() -> None:
    found = to_slices(np.full((2, 1, 16, 16), 0.375, dtype=np.float32), 4, 64)
    assert (found == 0.375).all()


def test_slices_of_a_volume_share_a_map_of_depth_one() -> None:
    found = to_slices(np.random.default_rng(0).random((1, 1, 4, 4)), 4, 32)[0]
    assert all(np.array_equal(found[0], other) for other in found[1:])


def test_nothing_is_added_beyond_the_range_of_the_map() -> None:
    native = np.random.default_rng(0).random((1, 2, 4, 4)).astype(np.float32)
    found = to_slices(native, 8, 64)
    assert native.min() <= found.min()
    assert found.max() <= native.max()


def test_left_stays_left_and_up_stays_up() -> None:
    native = np.zeros((1, 1, 2, 2), dtype=np.float32)
    native[0, 0, 0, 1] = 1
    found = to_slices(native, 1, 64)[0, 0]
    assert found[0, -1] == 1
    assert found[0, 0] == found[-1, -1] == found[-1, 0] == 0
