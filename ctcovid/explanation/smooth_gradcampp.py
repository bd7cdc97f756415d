"""Smooth Grad-CAM++ (Omeiza et al. 2019) as Li et al. 2021, Sec. 2.8 words it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ctcovid.explanation.activations import Activations
from ctcovid.models.network import Network

METHOD = "Smooth Grad-CAM++"


def saliency_maps(
    network: Network,
    volumes: np.ndarray,
    layer: str,
    target: int,
    samples: int,
    noise: float,
    seed: int,
    advance: Callable[[int], None] = lambda count: None,
) -> np.ndarray:
    """Smooth Grad-CAM++ maps of uint8 volumes (N, D, H, W) for one class, float32 (N, d, h, w) at the layer's own resolution.

    `advance` is called with the number of volumes that are done; the other parameters are those of `smooth_gradcampp`.
    """
    found = []
    with Activations(network, layer) as activations:
        for some, count in network.passes(volumes):
            targets = torch.full((len(some),), target, device=network.device)
            maps = smooth_gradcampp(activations, network.scale(some), targets, samples, noise, seed)
            found.append(maps[:count].cpu().numpy())
            advance(count)
    return np.concatenate(found)


def smooth_gradcampp(activations: Activations, scaled: Tensor, targets: Tensor, samples: int, noise: float, seed: int) -> Tensor:
    """Saliency maps of a batch of volumes at the layer's own resolution.

    Gaussian noise makes `samples` copies of each volume. The first, second and third moments of the gradients over the copies
    give the channels' weights; each copy's feature maps, so weighted, give a saliency map; the result is the mean of those.

    Parameters
    ----------
    activations : the layer to look at, entered
    scaled : float (B, 1, D, H, W) in 0..1
    targets : int64 (B,), the class that each map is about
    samples : copies per volume, at least 1
    noise : standard deviation of the noise, as a share of each volume's range of values
    seed : a volume's noise depends on the seed alone, not on the batch it comes in

    Returns
    -------
    float32 (B, d, h, w), not negative, in units of the class score

    References
    ----------
    Omeiza et al. 2019, Eqs. (9) to (11), with the powers of the gradient for the higher derivatives of the exponential of the
    score, after Chattopadhyay et al. 2018, Eqs. (10), (15) to (19).
    """
    device = scaled.device
    generator = torch.Generator().manual_seed(seed)
    spread = scaled.amax((1, 2, 3, 4), keepdim=True) - scaled.amin((1, 2, 3, 4), keepdim=True)
    maps = []
    moments: list[Tensor] = []
    for _ in range(samples):
        # One draw for all volumes of a batch: what stands beside a volume must not change its map.
        disturbance = torch.randn(scaled.shape[1:], generator=generator).to(device)
        _, fmaps, gradients = activations.scores_and_maps(scaled + noise * spread * disturbance, targets)
        powers = [gradients, gradients**2, gradients**3]
        moments = [total + power for total, power in zip(moments, powers, strict=True)] if moments else powers
        maps.append(fmaps)
    first, second, third = (total / samples for total in moments)
    weights = channel_weights(torch.stack(maps).mean(0), first, second, third)
    saliency = [torch.relu((weights * fmaps).sum(1)) for fmaps in maps]
    return torch.stack(saliency).mean(0)


def channel_weights(maps: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """Weights of the channels from feature maps and moments of the gradients, all (B, C, d, h, w); float (B, C, 1, 1, 1).

    Omeiza et al. 2019, Eqs. (9) and (10).
    """
    denominator = 2 * second + maps.sum((2, 3, 4), keepdim=True) * third
    alpha = torch.where(denominator != 0, second / torch.where(denominator != 0, denominator, 1.0), 0.0)
    return (alpha * torch.relu(first)).sum((2, 3, 4), keepdim=True)
