"""Random changes to training volumes, on the device: flip, small affine map, intensity, noise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ctcovid.models.torchvision import import_torchvision

# Repeated scans of one patient differ about as much in position, breathing and window.
FLIP = 0.5  # probability of a left-right flip
ANGLE = 10.0  # degrees, in the slice's plane
SHIFT = 0.05  # of a slice's side
ZOOM = 0.1  # of a slice's size
GAMMA = 0.2  # as a factor, up or down
GAIN = 0.1  # as a factor, up or down
NOISE = 0.03  # highest standard deviation, as a share of the grey range


@dataclass(frozen=True)
class Change:
    """The change to one volume, the same for all of its slices except for the noise.

    `angle` is in degrees, `shift` a share of a slice's width and height, `noise` a standard deviation on the scale of 0 to 1.
    """

    flip: bool
    angle: float
    shift: tuple[float, float]
    zoom: float
    gamma: float
    gain: float
    noise: float
    noise_seed: int


def draw(seed: int, indices: Sequence[int]) -> list[Change]:
    """A change for each volume of a step, which depends only on the step's seed and the volume's index in its set.

    It is therefore the same in any piece, on any process, and in a resumed run. A volume that is in the step several times is changed
    differently each time.
    """
    found, repeats = [], Counter[int]()
    for index in indices:
        found.append(_draw(np.random.default_rng([seed, index, repeats[index]])))
        repeats[index] += 1
    return found


def _draw(generator: np.random.Generator) -> Change:
    flip = bool(generator.random() < FLIP)
    angle, across, down, zoom, gamma, gain = generator.uniform(-1, 1, 6).tolist()
    return Change(
        flip=flip,
        angle=ANGLE * angle,
        shift=(SHIFT * across, SHIFT * down),
        zoom=1 + ZOOM * zoom,
        gamma=(1 + GAMMA) ** gamma,
        gain=(1 + GAIN) ** gain,
        noise=NOISE * generator.random(),
        noise_seed=int(generator.integers(2**63)),
    )


@torch.no_grad()
def apply(scaled: Tensor, changes: Sequence[Change]) -> Tensor:
    """Apply to each of the volumes, float (B, 1, D, H, W) from 0 to 1, its own change. Beyond the edges a volume is black.

    A flip moves the heart to the right side. It is commonly used all the same: these classes differ in the texture of the lungs, which
    both sides share, and not in the side.
    """
    import_torchvision()
    from torchvision.transforms.v2 import InterpolationMode, functional

    found = []
    for volume, change in zip(scaled.squeeze(1), changes, strict=True):
        # The slices are the channels of one image, so that all have the same map.
        x = functional.horizontal_flip(volume) if change.flip else volume
        height, width = x.shape[-2:]
        translate = [change.shift[0] * width, change.shift[1] * height]
        x = functional.affine(x, change.angle, translate, change.zoom, [0.0, 0.0], InterpolationMode.BILINEAR)
        x = functional.adjust_gamma(x, change.gamma, change.gain)
        # torchvision's own noise takes no generator, and the global one is for what the network draws.
        generator = torch.Generator(x.device).manual_seed(change.noise_seed)
        noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        found.append((x + change.noise * noise).clamp(0, 1))
    return torch.stack(found).unsqueeze(1).contiguous(memory_format=torch.channels_last_3d)
