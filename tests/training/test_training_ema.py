"""Moving averages of the weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ctcovid.training.ema import Ema, averaged


def _module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2))


def _move(module: nn.Module) -> None:
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.add_(torch.randn(tensor.shape) if tensor.is_floating_point() else 1)


def test_average_follows_its_formula() -> None:
    module = _module()
    ema = Ema(module, 0.9)
    expected = {name: tensor.double().numpy() for name, tensor in module.state_dict().items()}
    for number in range(1, 121):
        _move(module)
        ema.update(module)
        kept = min(0.9, (1 + number) / (10 + number))
        for name, tensor in module.state_dict().items():
            counts = not tensor.is_floating_point()
            expected[name] = tensor.numpy() if counts else kept * expected[name] + (1 - kept) * tensor.double().numpy()
    for name, tensor in ema.tensors.items():
        assert tensor.numpy() == pytest.approx(expected[name], abs=1e-5), name


def test_once_it_has_begun_the_average_is_torchs() -> None:
    module = _module()
    ema = Ema(module, 0.8)
    ema.updates.fill_(1000)
    reference = [tensor.clone() for tensor in ema.tensors.values() if tensor.is_floating_point()]
    update = get_ema_multi_avg_fn(0.8)
    for _ in range(5):
        _move(module)
        ema.update(module)
        update(reference, [tensor for tensor in module.state_dict().values() if tensor.is_floating_point()], 1)
    floating = [tensor for tensor in ema.tensors.values() if tensor.is_floating_point()]
    assert all(torch.allclose(found, expected, atol=1e-6) for found, expected in zip(floating, reference, strict=True))


def test_averages_are_in_the_network_while_they_are_used_and_its_own_bits_come_back() -> None:
    module = _module()
    ema = Ema(module, 0.9)
    _move(module)
    ema.update(module)
    own = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    average = {name: tensor.clone() for name, tensor in ema.tensors.items()}
    with pytest.raises(ZeroDivisionError), averaged(module, ema):
        assert all(torch.equal(tensor, average[name]) for name, tensor in module.state_dict().items())
        raise ZeroDivisionError
    assert all(torch.equal(tensor, own[name]) for name, tensor in module.state_dict().items())
    assert all(torch.equal(tensor, average[name]) for name, tensor in ema.tensors.items())
    with averaged(module, None):
        assert all(torch.equal(tensor, own[name]) for name, tensor in module.state_dict().items())


def test_a_restored_average_continues_as_if_it_had_not_stopped() -> None:
    module = _module()
    ema, other = Ema(module, 0.99), Ema(module, 0.99)
    _move(module)
    ema.update(module)
    other.load(ema.state())
    _move(module)
    ema.update(module)
    other.update(module)
    assert all(np.array_equal(tensor, other.tensors[name]) for name, tensor in ema.tensors.items())
