"""Layers that keep their weights, for fine-tuning."""

from __future__ import annotations

from torch import nn

from ctcovid.base.errors import UsageError, did_you_mean


def freeze(module: nn.Module, layer: str) -> None:
    """Freeze the weights of everything from the input up to and including `layer`.

    `layer` is a name from `named_modules`, such as ``layer2`` or ``layer4.0``, or ``stem`` for what comes before the residual layers.

    Raises UsageError if there is no such layer, or nothing would be left to learn.
    """
    children = dict(module.named_children())
    names = [name for name, child in children.items() if any(True for _ in child.parameters())]
    first = next((position for position, name in enumerate(names) if name.startswith("layer")), 0)
    last = names[first - 1] if layer == "stem" and first and "stem" not in children else layer
    known = list(dict(module.named_modules()))
    inside = [name for name, _ in module.named_parameters() if name.startswith(f"{last}.")]
    if not inside:
        offered = ["stem", *names[first:-1]] if first and "stem" not in children else names[:-1]
        raise UsageError(f"--freeze {layer}: no such layer with weights.{did_you_mean(layer, [*known, 'stem'])} Use {', '.join(offered)}.")
    parameters = dict(module.named_parameters())
    order = list(parameters)
    frozen = order[: order.index(inside[-1]) + 1]
    if len(frozen) == len(order):
        raise UsageError(f"--freeze {layer} would leave nothing to learn. Name an earlier layer, or use --epochs 0.")
    for name in frozen:
        parameters[name].requires_grad_(False)


def learn(module: nn.Module) -> None:
    """Set `module` to training mode, except its frozen layers: their batch norms use their running statistics and keep them."""
    module.train()
    for layer in module.modules():
        parameters = list(layer.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            layer.eval()
