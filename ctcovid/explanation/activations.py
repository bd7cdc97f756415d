"""Feature maps of any layer, and the gradients of class scores with respect to them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ctcovid.base.errors import UsageError, did_you_mean
from ctcovid.kernels.depthfold import GlobalAverage
from ctcovid.models.network import Network
from ctcovid.models.reference_features import last_linear

AVERAGES = (GlobalAverage, nn.AdaptiveAvgPool3d)


class Activations:
    """Context manager that records the output of one layer of a network, and always removes its hook.

    Parameters
    ----------
    layer : name of a module, such as ``layer4`` or ``layer3.1.conv2``

    Raises UsageError, with the nearest name, if the network has no such layer.
    """

    def __init__(self, network: Network, layer: str) -> None:
        self.network, self.layer = network, layer
        self.module = find_layer(network.module, layer)
        self.head = linear_head(network) if layer == network.architecture.last_layer else None
        # A transformer's blocks give (B, D, H, W, C), but the convolution that makes its patches does not.
        self.channels_last = network.architecture.channels_last and not isinstance(self.module, nn.Conv3d)
        self._output: Tensor | None = None
        self._handle: RemovableHandle | None = None

    def __enter__(self) -> Activations:
        self._watch(True)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._watch(False)
        self._output = None

    def _watch(self, on: bool) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._handle = self.module.register_forward_hook(self._keep) if on else None

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != 5:
            raise UsageError(f"--layer {self.layer} has no feature maps. Choose a convolution or a stage, such as layer4.")
        # Earlier layers need no gradient, so the backward pass ends here. The next layer gets a copy, because an in-place ReLU after a
        # convolution would overwrite the maps.
        self._output = output.detach().requires_grad_(self.head is None)
        return self._output.clone()

    def maps_and_gradients(self, scaled: Tensor, classes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, feature maps, and gradients of the logits of `classes`, each with respect to its own volume's maps.

        After the last layer the head averages each channel over its n positions and is linear, S_c = b_c + sum_k W_ck mean(A_k), so that
        dS_c/dA_k = W_ck / n everywhere, without a backward pass. For other layers the backward pass ends at the layer.

        Parameters
        ----------
        scaled : float (B, 1, D, H, W), from ``Network.scale``
        classes : indices of K classes

        Returns
        -------
        logits : float32 (B, all classes)
        maps : float (B, C, d, h, w)
        gradients : float (B, K, C, d, h, w)
        """
        network = self.network
        if network.graphs.recorder is None:
            return self._computed(scaled, classes)
        # A graph outlives this recording, so what it captures has a hook of its own.
        self._watch(False)
        try:
            work = partial(_recorded, network, self.layer, tuple(classes))
            logits, maps, gradients = network.graphs.run("a pass for explanations", work, scaled, key=(self.layer, *classes))
        finally:
            self._watch(True)
        assert logits is not None and maps is not None and gradients is not None
        return logits, maps, gradients

    def _computed(self, scaled: Tensor, classes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        with torch.set_grad_enabled(self.head is None):
            logits = self.network.forward(scaled)
            assert self._output is not None
            found: list[Tensor] = []
            for number in classes if self.head is None else ():
                more = len(found) + 1 < len(classes)
                found.append(torch.autograd.grad(logits[:, number].sum(), self._output, retain_graph=more)[0])
        maps = self._tidy(self._output.detach())
        if self.head is None:
            gradients = torch.stack([self._tidy(gradient) for gradient in found], 1)
        else:
            slope = self.head.weight.detach()[list(classes)].to(maps.dtype) / maps[0, 0].numel()
            gradients = slope[None, :, :, None, None, None].expand(len(maps), -1, -1, *maps.shape[2:])
        return logits.detach(), maps, gradients

    def _tidy(self, tensor: Tensor) -> Tensor:
        """Channels second, float32 or better."""
        ordered = tensor.permute(0, 4, 1, 2, 3) if self.channels_last else tensor
        return ordered.to(torch.promote_types(ordered.dtype, torch.float32))


def _recorded(network: Network, layer: str, classes: Sequence[int], scaled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    with Activations(network, layer) as activations:
        return activations._computed(scaled, classes)


def linear_head(network: Network) -> nn.Linear | None:
    """The linear layer after the global average of the last layer, or None if the head is of another kind."""
    return last_linear(network) if isinstance(getattr(network.module, "avgpool", None), AVERAGES) else None


def find_layer(module: nn.Module, name: str) -> nn.Module:
    """The named layer. Raises UsageError, with the nearest name, if there is none."""
    layers = dict(module.named_modules())
    if not name or name not in layers:
        known = [layer for layer in layers if layer]
        stages = ", ".join(layer for layer in known if "." not in layer)
        raise UsageError(f"No layer '{name}'.{did_you_mean(name, known)} The stages are {stages}.")
    return layers[name]
