"""A network on its device: uint8 volumes in, logits or probabilities out."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ctcovid.models.catalog import Architecture

# Voxels per forward pass: enough to keep a GPU busy; on a CPU more only costs memory.
VOXELS_AT_ONCE = {"cuda": 32 * 4 * 512 * 512}
VOXELS_ON_CPU = 4 * 4 * 512 * 512

# Pixels enter the network as (pixel - offset) / scale, so that black, with which convolutions pad, is zero.
SCALING = {"offset": 0.0, "scale": 255.0}


class Network:
    """One architecture with its weights, on one device, in one precision. Callers see neither layouts nor autocast.

    Attributes
    ----------
    module : the torch module, float32 parameters
    architecture : its row of the catalogue
    classes : class names in the order of the outputs
    device, precision : where and how it computes
    """

    def __init__(
        self, module: nn.Module, architecture: Architecture, classes: list[str], device: torch.device, precision: torch.dtype
    ) -> None:
        self.module = module.to(device=device, memory_format=torch.channels_last_3d).eval()  # type: ignore[call-overload]
        self.architecture, self.classes, self.device, self.precision = architecture, classes, device, precision

    def scale(self, volumes: Tensor) -> Tensor:
        """uint8 (B, D, H, W) on any device to float32 (B, 1, D, H, W) on this one, scaled to 0..1."""
        pixels = volumes.to(self.device, non_blocking=True).unsqueeze(1).float()
        return ((pixels - SCALING["offset"]) / SCALING["scale"]).contiguous(memory_format=torch.channels_last_3d)

    def forward(self, scaled: Tensor) -> Tensor:
        """float (B, 1, D, H, W), scaled, to float32 logits (B, classes), in this network's precision."""
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            return self.module(scaled).float()

    def logits(self, volumes: Tensor) -> Tensor:
        """uint8 (B, D, H, W) to float32 logits (B, classes), with gradients where they are on."""
        return self.forward(self.scale(volumes))

    @torch.inference_mode()
    def probabilities(self, volumes: Tensor | np.ndarray) -> np.ndarray:
        """uint8 (B, D, H, W), any number of them, to softmax probabilities, float64 (B, classes), each row summing to 1.

        Every pass has the same number of volumes, the last one filled up: libraries choose their kernels by shape, and in bfloat16
        a volume's probabilities would otherwise depend, in the fourth place, on how many others came with it.
        """
        self.module.eval()
        pixels = torch.as_tensor(volumes)
        if not len(pixels):
            return np.zeros((0, len(self.classes)))
        at_once = max(1, VOXELS_AT_ONCE.get(self.device.type, VOXELS_ON_CPU) // pixels[0].numel())
        passes = []
        for some in pixels.split(at_once):
            filled = torch.cat([some, some[-1:].expand(at_once - len(some), -1, -1, -1)]) if len(some) < at_once else some
            passes.append(self.logits(filled)[: len(some)].double().softmax(1).cpu())
        return torch.cat(passes).numpy()
