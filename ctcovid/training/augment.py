"""Random changes to training volumes, on the device: flip, small affine map, intensity, noise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ctcovid.models.torchvision import import_torchvision

# Two scans of one patient on one scanner differ about as much in how the patient lies, breathes and was windowed.
FLIP = 0.5  # chance of a left-right flip
ANGLE = 10.0  # degrees, in the slice's plane
SHIFT = 0.05  # of a slice's side
ZOOM = 0.1  # of a slice's size
GAMMA = 0.2  # as a factor, up or down
GAIN = 0.1  # as a factor, up or down
NOISE = 0.03  # highest standard deviation, as a share of the grey range


@dataclass(frozen=True)
class Change:
    """What happens to one volume, to all of its slices alike but for the noise.

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
    """A change for each volume of a step, which depends on the step's seed and the volume's index in its set alone.

    So it is the same in whatever pieces, on whichever process, and after whatever interruption a volume comes. A volume that is more
    than once in the step is changed in another way each time.
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
    """Volumes, float (B, 1, D, H, W) from 0 to 1, each with its own change; black comes in from beyond the edges.

    A flip puts the heart on the right side. It is in common use all the same: these classes are told by the texture of the lungs, which
    both sides share, and not by the side.
    """
    import_torchvision()
    from torchvision.transforms.v2 import InterpolationMode, functional

    found = []
    for volume, change in zip(scaled.squeeze(1), changes, strict=True):
        # The slices go as the channels of one picture: one map for all of them.
        x = functional.horizontal_flip(volume) if change.flip else volume
        height, width = x.shape[-2:]
        translate = [change.shift[0] * width, change.shift[1] * height]
        x = functional.affine(x, change.angle, translate, change.zoom, [0.0, 0.0], InterpolationMode.BILINEAR)
        x = functional.adjust_gamma(x, change.gamma, change.gain)
        # torchvision's own noise takes no generator; the global one belongs to what the network draws.
        generator = torch.Generator(x.device).manual_seed(change.noise_seed)
        noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        found.append((x + change.noise * noise).clamp(0, 1))
    return torch.stack(found).unsqueeze(1).contiguous(memory_format=torch.channels_last_3d)
