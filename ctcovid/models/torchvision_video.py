"""torchvision's video models."""

from __future__ import annotations

from torch import Tensor, nn

from ctcovid.models.torchvision_package import import_torchvision


def video_model(name: str, classes: int) -> nn.Module:
    """A video model of torchvision, without weights, that takes one channel (meaning three equal ones) or three.

    A forward pass takes float (B, 1 or 3, D, H, W) and returns logits (B, classes).
    """
    import_torchvision()
    from torchvision.models import get_model

    model: nn.Module = get_model(name, num_classes=classes, weights=None)
    model.register_forward_pre_hook(_three_channels)
    return model


def _three_channels(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    (x,) = inputs
    return (x.expand(-1, 3, -1, -1, -1) if x.shape[1] == 1 else x,)
