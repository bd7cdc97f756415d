"""Feature maps of any layer, and the gradient of a class score with respect to them."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ctcovid.base.errors import UsageError, did_you_mean
from ctcovid.models.network import Network


class Activations:
    """Context manager that watches one layer of a network and always lets go of it.

    Parameters
    ----------
    network : the network to watch
    layer : name of a module, as in ``layer4`` or ``layer3.1.conv2``

    Raises UsageError, with the nearest name, where there is no such layer.
    """

    def __init__(self, network: Network, layer: str) -> None:
        self.network, self.layer = network, layer
        self.module = find_layer(network.module, layer)
        # A transformer's blocks give (B, D, H, W, C), but the convolution that makes its patches does not.
        self.channels_last = network.architecture.channels_last and not isinstance(self.module, nn.Conv3d)
        self._output: Tensor | None = None
        self._handle: RemovableHandle | None = None

    def __enter__(self) -> Activations:
        self._handle = self.module.register_forward_hook(self._keep)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._output = None

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != 5:
            raise UsageError(f"--layer {self.layer} gives no feature maps. Choose a convolution or a stage, such as layer4.")
        # The layers below need no gradient, so the backward pass ends here. The next layer gets a view of its own, because an
        # in-place ReLU behind a convolution would overwrite the maps.
        self._output = output.detach().requires_grad_()
        return self._output.clone()

    def scores_and_maps(self, scaled: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, feature maps, and gradients of the targets' logits.

        Parameters
        ----------
        scaled : float (B, 1, D, H, W), as ``Network.scale`` gives
        targets : int64 (B,), class whose score is differentiated

        Returns
        -------
        logits : float32 (B, classes)
        maps, gradients : float32 (B, C, d, h, w)
        """
        with torch.enable_grad():
            logits = self.network.forward(scaled)
            assert self._output is not None
            score = logits.gather(1, targets[:, None]).sum()
            (gradients,) = torch.autograd.grad(score, self._output)
        maps = self._output.detach()
        if self.channels_last:
            maps, gradients = (tensor.permute(0, 4, 1, 2, 3) for tensor in (maps, gradients))
        return logits.detach(), maps.float(), gradients.float()


def find_layer(module: nn.Module, name: str) -> nn.Module:
    """The named layer. Raises UsageError, with the nearest name, where there is none."""
    layers = dict(module.named_modules())
    if not name or name not in layers:
        known = [layer for layer in layers if layer]
        stages = ", ".join(layer for layer in known if "." not in layer)
        raise UsageError(f"No layer '{name}'.{did_you_mean(name, known)} The stages are {stages}.")
    return layers[name]
