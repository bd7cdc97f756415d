"""A network on its device: uint8 volumes in, logits or probabilities out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ctcovid.base.errors import ModelRefusedError
from ctcovid.kernels.graphs import Function, Graphs
from ctcovid.models.architectures import Architecture

# Volumes per forward pass, of so many voxels each: enough to keep a device busy, few enough for its memory.
VOLUMES_AT_ONCE = {"cpu": 4, "mps": 4, "cuda": 32}
VOXELS_PER_VOLUME = 4 * 512 * 512

# Pixels enter the network as (pixel - offset) / scale, so that black is zero, the value with which convolutions pad.
SCALING = {"offset": 0.0, "scale": 255.0}


class Network:
    """One architecture with its weights, on one device, in one precision. Callers need no memory formats and no autocast.

    Attributes
    ----------
    module : the torch module, float32 parameters
    architecture : its row in the catalogue
    classes : class names in the order of the outputs
    device, precision : where and how it computes
    graphs : its CUDA graphs, on a GPU
    """

    def __init__(
        self, module: nn.Module, architecture: Architecture, classes: list[str], device: torch.device, precision: torch.dtype
    ) -> None:
        self.module = module.to(device=device, memory_format=torch.channels_last_3d).eval()  # type: ignore[call-overload]
        self.architecture, self.classes, self.device, self.precision = architecture, classes, device, precision
        self.graphs = Graphs(self.module, device, precision)

    def scale(self, volumes: Tensor) -> Tensor:
        """uint8 (B, D, H, W) on any device to float32 (B, 1, D, H, W) on this one, scaled to 0..1."""
        pixels = volumes.to(self.device, non_blocking=True).unsqueeze(1)
        return (pixels - SCALING["offset"]).div_(SCALING["scale"]).contiguous(memory_format=torch.channels_last_3d)

    def forward(self, scaled: Tensor) -> Tensor:
        """float (B, 1, D, H, W), scaled, to float32 logits (B, classes), in this network's precision."""
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            return self.module(scaled).float()

    def logits(self, volumes: Tensor) -> Tensor:
        """uint8 (B, D, H, W) to float32 logits (B, classes), with gradients where they are on."""
        return self.forward(self.scale(volumes))

    def passes(self, volumes: Tensor | np.ndarray) -> Iterator[tuple[Tensor, int]]:
        """uint8 (N, D, H, W) in batches of one forward pass each, with the number of volumes that count in the batch.

        Every batch has the same size; copies fill up the last one. Libraries choose their kernels by shape, and in bfloat16 the fourth
        digit of a volume's result would otherwise depend on how many other volumes are in its batch.
        """
        pixels = torch.as_tensor(volumes)
        if len(pixels):
            at_once = self.at_once(pixels[0].numel())
            for some in pixels.split(at_once):
                yield torch.cat([some, some[-1:].expand(at_once - len(some), -1, -1, -1)]), len(some)

    def at_once(self, voxels: int) -> int:
        """How many volumes of so many voxels one forward pass takes."""
        most = VOLUMES_AT_ONCE[self.device.type]
        return max(1, min(most, most * VOXELS_PER_VOLUME // voxels))

    @torch.inference_mode()
    def probabilities(self, volumes: Tensor | np.ndarray) -> np.ndarray:
        """uint8 (N, D, H, W), any number of them, to softmax probabilities, float64 (N, classes), each row summing to 1.

        Raises ModelRefusedError if the network returns NaN or Inf.
        """
        return self.softmax(list(self.logits_by_passes(volumes)))

    def logits_by_passes(self, volumes: Tensor | np.ndarray) -> Iterator[Tensor]:
        """Logits, float32 (count, classes), of uint8 volumes (N, D, H, W), pass by pass. To be called without gradients."""
        for (logits,) in self.by_passes("a forward pass", lambda some: (self.logits(some),), volumes):
            yield logits

    def by_passes(self, what: str, function: Function, volumes: Tensor | np.ndarray) -> Iterator[tuple[Tensor, ...]]:
        """What `function`, named `what`, returns for the volumes of each pass, without the copies that fill up the last one.

        On a GPU a CUDA graph of it is replayed. To be called without gradients.
        """
        self.module.eval()
        for some, count in self.passes(volumes):
            yield tuple(y[:count] for y in self.graphs.run(what, function, some) if y is not None)

    def softmax(self, logits: Sequence[Tensor]) -> np.ndarray:
        """Probabilities, float64 (N, classes), from logits (count, classes) of several passes.

        Raises ModelRefusedError if they are NaN or Inf.
        """
        probabilities = np.concatenate([np.zeros((0, len(self.classes))), *(some.cpu().double().softmax(1).numpy() for some in logits)])
        if not np.isfinite(probabilities).all():
            raise ModelRefusedError(f"The {self.architecture.name} returns NaN or Inf, so its weights are unusable. Train the model again.")
        return probabilities
