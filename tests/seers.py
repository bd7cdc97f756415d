"""Networks whose answer is known, for tests of where maps point."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ctcovid.models import registry, resnet3d
from ctcovid.models.network import Network


def brightness(name: str, monkeypatch: pytest.MonkeyPatch) -> Network:
    """A thin network that blurs and nothing else: positive weights, batch norms that change nothing. The brighter, the more class 0."""
    monkeypatch.setattr(resnet3d, "WIDTHS", (2, 2, 4, 4))
    network = registry.build(name, ["NCP", "CP", "Normal"], "cpu", "float32")
    for module in network.module.modules():
        if isinstance(module, (nn.Conv3d, nn.Linear)):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    head = getattr(network.module, "fc", None)
    if head is not None:
        with torch.no_grad():
            head.weight[1:] = 0
    return network
