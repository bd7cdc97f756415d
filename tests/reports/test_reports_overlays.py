"""Overlays show the slice where nothing is salient, and colour where something is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ctcovid.reports.overlays import montage, overlay, save_overlay

GREYS = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_without_saliency_the_overlay_is_the_grey_slice_exactly(kind: type) -> None:
    found = overlay(GREYS, np.zeros((16, 16), dtype=kind))
    assert found.dtype == np.uint8
    assert found.shape == (16, 16, 3)
    assert all(np.array_equal(found[..., channel], GREYS) for channel in range(3))


def test_real_slices_stay_as_they_are_where_nothing_is_salient(sample_data: Path) -> None:
    with Image.open(sample_data / "ccccii" / "NCP" / "16" / "1164" / "0060.png") as image:
        slice_ = np.asarray(image.convert("L"))[::4, ::4]
    saliency = np.zeros(slice_.shape)
    saliency[: len(slice_) // 2] = 0.8
    found = overlay(slice_, saliency)
    lower = len(slice_) // 2
    assert np.array_equal(found[lower:], np.repeat(slice_[lower:, :, None], 3, axis=2))
    assert (found[:lower].astype(int).max(2) > found[:lower].min(2)).mean() > 0.9


def test_the_stronger_the_saliency_the_less_is_left_of_the_grey() -> None:
    """On a white slice and on a black one, the difference between the two is what shines through."""
    steps = np.linspace(0, 1, 11)[None]
    white, black = (overlay(np.full((1, 11), level, dtype=np.uint8), steps).astype(int) for level in (255, 0))
    through = (white - black)[0]
    assert (np.ptp(through, axis=1) <= 1).all()
    assert through[0].tolist() == [255, 255, 255]
    assert (np.diff(through[:, 0]) < 0).all()
    assert through[-1, 0] > 0


def test_the_strongest_saliency_is_the_brightest_colour() -> None:
    black = overlay(np.zeros((1, 11), dtype=np.uint8), np.linspace(0, 1, 11)[None]).astype(int)[0]
    assert (np.diff(black.sum(1)) > 0).all()


def test_saved_overlays_are_those_pixels_and_nothing_else_is_left(tmp_path: Path) -> None:
    saliency = np.random.default_rng(0).random((16, 16))
    save_overlay(tmp_path / "overlays" / "0000.png", GREYS, saliency)
    assert [path.name for path in (tmp_path / "overlays").iterdir()] == ["0000.png"]
    with Image.open(tmp_path / "overlays" / "0000.png") as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (16, 16))
        assert np.array_equal(np.asarray(image), overlay(GREYS, saliency))


@pytest.mark.parametrize("count", [1, 4])
def test_a_montage_has_room_for_its_slices(tmp_path: Path, count: int) -> None:
    generator = np.random.default_rng(0)
    slices = generator.integers(0, 256, (count, 32, 32), dtype=np.uint8)
    names = [f"{number:04d}.png" for number in range(count)]
    montage(tmp_path / "montage.png", slices, generator.random((count, 32, 32)), names, "NCP/16/1164: Smooth Grad-CAM++ for NCP")
    assert [path.name for path in tmp_path.iterdir()] == ["montage.png"]
    with Image.open(tmp_path / "montage.png") as image:
        assert image.format == "PNG"
        assert image.size == (round((2.2 * count + 0.9) * 150), 750)
        picture = np.asarray(image.convert("RGB"), dtype=int)
    coloured = np.ptp(picture, axis=2) > 40
    upper, lower = coloured[: 750 // 2], coloured[750 // 2 :]
    assert not upper.any()
    assert lower.mean() > 0.1
