"""The methods by name, and saliency maps of many volumes by any of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ctcovid.base import choices
from ctcovid.base.choices import OCCLUSION, PLAIN, PLUS, SMOOTH
from ctcovid.explanation.activations import Activations
from ctcovid.explanation.cells import Cells, boxes, cells_of
from ctcovid.explanation.gradcam import Gathered
from ctcovid.explanation.noise import Noise
from ctcovid.explanation.occlusion import occlusion_maps
from ctcovid.models.network import Network

TITLES = {SMOOTH: "Smooth Grad-CAM++", PLAIN: "Grad-CAM", PLUS: "Grad-CAM++", OCCLUSION: "Occlusion"}


@dataclass(frozen=True)
class Method:
    """A method and its settings.

    Attributes
    ----------
    name : one of `TITLES`
    layer : the layer that is explained; occlusion needs none
    samples, noise_std, seed : of Smooth Grad-CAM++: noisy copies of each volume, standard deviation of the noise as a share of the
        volume's grey range, and the seed of the noise
    """

    name: choices.Method
    layer: str = ""
    samples: int = 10
    noise_std: float = 0.1
    seed: int = 0

    @property
    def title(self) -> str:
        return TITLES[self.name]

    @property
    def uses_layer(self) -> bool:
        return self.name != OCCLUSION

    @property
    def described(self) -> str:
        """For a sentence: the title, and the layer if there is one."""
        return f"{self.title}, layer {self.layer}" if self.uses_layer else self.title


def map_cells(network: Network, method: Method, shape: tuple[int, ...], native: tuple[int, ...]) -> Cells:
    """Where the cells of a method's maps (d, h, w) lie in volumes of `shape` (D, H, W)."""
    return cells_of(network, shape, native) if method.uses_layer else boxes(shape, native)


def saliency_maps(
    network: Network,
    volumes: np.ndarray,
    method: Method,
    classes: Sequence[int],
    advance: Callable[[int], None] = lambda count: None,
) -> np.ndarray:
    """Saliency maps of uint8 volumes (N, D, H, W) for K classes at the method's own resolution, float32 (N, K, d, h, w), not negative.

    advance : called with the number of volumes that are done
    """
    if not method.uses_layer:
        return occlusion_maps(network, volumes, classes, advance)
    copies, std = (method.samples, method.noise_std) if method.name == SMOOTH else (1, 0.0)
    noise = Noise((1, *volumes.shape[1:]), copies, std, method.seed)
    pairs = [(volume, copy) for volume in range(len(volumes)) for copy in range(copies)]
    at_once = network.at_once(volumes[0].size)
    found, gathered = [], Gathered()
    with Activations(network, method.layer) as activations:
        # Copies of all volumes follow one another, so that every pass is full; the last one is padded, as in Network.passes.
        for start in range(0, len(pairs), at_once):
            some = pairs[start : start + at_once]
            scaled = network.scale(torch.from_numpy(volumes[[volume for volume, _ in some]]))
            noisy = torch.stack([noise.added(one, copy) for one, (_, copy) in zip(scaled, some, strict=True)])
            filled = torch.cat([noisy, noisy[-1:].expand(at_once - len(some), -1, -1, -1, -1)])
            _, maps, gradients = activations.maps_and_gradients(filled.contiguous(memory_format=torch.channels_last_3d), classes)
            for position, (_, copy) in enumerate(some):
                gathered.add(maps[position], gradients[position])
                if copy == copies - 1:
                    found.append(gathered.saliency(method.name).cpu().numpy())
                    gathered = Gathered()
                    advance(1)
    return np.stack(found)
