"""torchvision beside any build of torch, and its video models. Everything in ctcovid that needs torchvision imports it through here."""

from __future__ import annotations

import torch
from torch import Tensor, library, nn

# torch drops operator definitions with their library object, so these live as long as the process.
_definitions: list[library.Library] = []

# The compiled part of torchvision's usual package needs the CUDA build of torch. Beside a CPU-only build it does not load, and the import
# stops at the first of its operators that Python code refers to.
_OPERATORS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def import_torchvision() -> object:
    """The torchvision package, whether or not its compiled operators load beside this build of torch."""
    try:
        # What older releases compute when they are imported, they cannot on the meta device, where networks are made to be counted.
        with torch.device("cpu"):
            import torchvision
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        for name, schema in _OPERATORS.items():
            if not hasattr(torch.ops.torchvision, name):
                definition = library.Library("torchvision", "FRAGMENT")
                definition.define(schema)
                _definitions.append(definition)
        with torch.device("cpu"):
            import torchvision
    return torchvision


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
