"""Augmentation: one change for a volume, drawn from the step's seed, and only in training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ctcovid.training import augment
from ctcovid.training.augment import Change

NOTHING = Change(flip=False, angle=0, shift=(0, 0), zoom=1, gamma=1, gain=1, noise=0, noise_seed=0)


def _volumes(count: int = 2, depth: int = 3, size: int = 32) -> torch.Tensor:
    return torch.rand(count, 1, depth, size, size, generator=torch.Generator().manual_seed(1))


def _one(change: Change, volumes: torch.Tensor) -> np.ndarray:
    return augment.apply(volumes, [change] * len(volumes)).numpy()


def test_no_change_changes_nothing() -> None:
    volumes = _volumes()
    assert _one(NOTHING, volumes) == pytest.approx(volumes.numpy(), abs=1e-5)


def test_each_change_is_what_it_is_called() -> None:
    volumes = _volumes()
    x = volumes.numpy()
    assert _one(replace(NOTHING, flip=True), volumes) == pytest.approx(x[..., ::-1], abs=1e-5)
    moved = np.zeros_like(x)
    moved[..., 3:, :-2] = x[..., :-3, 2:]
    assert _one(replace(NOTHING, shift=(-2 / 32, 3 / 32)), volumes) == pytest.approx(moved, abs=1e-5)
    assert _one(replace(NOTHING, angle=90), volumes) == pytest.approx(np.rot90(x, -1, (3, 4)), abs=1e-4)
    assert _one(replace(NOTHING, gamma=0.8, gain=1.1), volumes) == pytest.approx(np.minimum(1, 1.1 * x**0.8), abs=1e-5)


def test_zoom_enlarges_about_the_middle() -> None:
    square = torch.zeros(1, 1, 1, 64, 64)
    square[..., 22:42, 22:42] = 1
    grown = _one(replace(NOTHING, zoom=1.1), square)
    assert grown.sum() == pytest.approx(1.1**2 * 20**2, rel=0.02)
    assert grown == pytest.approx(grown[..., ::-1, ::-1], abs=1e-5)


def test_all_slices_of_a_volume_change_alike_and_volumes_change_apart() -> None:
    slices = _volumes(1, 1).expand(2, 1, 4, 32, 32)
    drawn = [replace(change, noise=0) for change in augment.draw(7, [3, 5])]
    found = augment.apply(slices, drawn)
    assert all(torch.equal(found[:, :, 0], found[:, :, number]) for number in range(4))
    assert not torch.allclose(found[0], found[1], atol=0.05)


def test_noise_differs_from_slice_to_slice_and_is_as_strong_as_said() -> None:
    grey = torch.full((1, 1, 4, 64, 64), 0.5)
    noise = _one(replace(NOTHING, noise=0.03, noise_seed=4), grey)[0, 0] - 0.5
    assert noise.std() == pytest.approx(0.03, rel=0.05)
    assert abs(np.corrcoef(noise.reshape(4, -1))[0, 1]) < 0.1


def test_a_draw_depends_on_seed_and_volume_alone() -> None:
    drawn = augment.draw(7, [3, 5, 9])
    assert augment.draw(7, [9, 3]) == [drawn[2], drawn[0]]
    assert augment.draw(8, [3])[0] != drawn[0]
    first, second = augment.draw(7, [3, 3])
    assert first == drawn[0] and second != first


def test_drawn_changes_stay_small_and_both_flips_come() -> None:
    drawn = augment.draw(0, list(range(400)))
    assert 150 < sum(change.flip for change in drawn) < 250
    assert max(abs(change.angle) for change in drawn) <= 10
    assert max(max(map(abs, change.shift)) for change in drawn) <= 0.05
    assert all(0.9 <= change.zoom <= 1.1 and 1 / 1.2 <= change.gamma <= 1.2 and 1 / 1.1 <= change.gain <= 1.1 for change in drawn)
    assert len({change.noise_seed for change in drawn}) == 400


def test_what_the_network_draws_is_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    augment.apply(_volumes(), augment.draw(0, [0, 1]))
    assert torch.equal(torch.rand(4), expected)


def test_real_slices_stay_in_range_and_recognisable(sample_data: Path) -> None:
    paths = sorted(path for path in sample_data.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))[:4]
    if len(paths) < 4:
        pytest.skip("no real slices as pictures here")
    pixels = np.stack([np.asarray(Image.open(path).convert("L").resize((128, 128))) for path in paths])
    volume = torch.from_numpy(pixels / np.float32(255))[None, None]
    changes = [replace(change, flip=False) for change in augment.draw(1, range(8))]
    found = augment.apply(volume.expand(8, -1, -1, -1, -1), changes)
    assert found.shape == (8, 1, 4, 128, 128) and found.min() >= 0 and found.max() <= 1
    for changed in found:
        assert not torch.equal(changed, volume[0])
        assert np.corrcoef(changed.flatten(), volume.flatten())[0, 1] > 0.4
