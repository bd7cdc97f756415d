"""Synchronised batch norm is torch's batch norm of all volumes together."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import Tensor, nn

from ctcovid.distributed.sync_batchnorm import SyncBatchNorm3d, synchronise
from ctcovid.models.registry import create


def test_alone_it_is_torchs_batch_norm() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.BatchNorm3d(5))
    nn.init.normal_(plain[0].weight)
    ours = copy.deepcopy(plain)
    assert synchronise(ours, lambda sums: None) == 1
    x = (torch.randn(3, 5, 2, 4, 4) * 3 + 100).requires_grad_()
    y = x.detach().clone().requires_grad_()
    expected, found = plain(x), ours(y)
    gradient = torch.randn_like(expected)
    expected.backward(gradient)
    found.backward(gradient)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(y.grad, x.grad, rtol=1e-3, atol=1e-5)
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-3)
    assert ours.state_dict().keys() == plain.state_dict().keys()
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", [(2, 2), (3, 1), (4, 0)])
def test_halves_of_a_batch_have_the_statistics_of_the_whole(sizes: tuple[int, int]) -> None:
    """Two threads stand for two processes."""
    torch.manual_seed(0)
    x, gradient = torch.randn(4, 3, 2, 4, 4).double(), torch.randn(4, 3, 2, 4, 4).double()
    whole, wholes = nn.BatchNorm3d(3), x.float().requires_grad_()
    expected = whole(wholes)
    expected.backward(gradient.float())
    barrier, sums = threading.Barrier(2), {}
    found: dict[int, tuple[Tensor, Tensor, nn.Module]] = {}

    def half(rank: int) -> None:
        def exchange(tensor: Tensor) -> None:
            sums[rank] = tensor.clone()
            barrier.wait(60)
            total = sums[0] + sums[1]
            barrier.wait(60)
            tensor.copy_(total)

        norm = nn.Sequential(nn.BatchNorm3d(3))
        synchronise(norm, exchange)
        part = x.float().split(sizes)[rank].clone().requires_grad_()
        y = norm(part)
        y.backward(gradient.float().split(sizes)[rank])
        assert part.grad is not None
        found[rank] = (y.detach(), part.grad, norm[0])

    other = threading.Thread(target=half, args=(1,))
    other.start()
    half(0)
    other.join()
    torch.testing.assert_close(torch.cat([found[0][0], found[1][0]]), expected.detach())
    torch.testing.assert_close(torch.cat([found[0][1], found[1][1]]), wholes.grad)
    for _, _, norm in found.values():
        torch.testing.assert_close(norm.running_var, whole.running_var)


def test_the_papers_networks_take_it_and_stay_the_same_function() -> None:
    torch.manual_seed(0)
    plain = create("r3d18", plain=True).train()
    ours = create("r3d18")
    ours.load_state_dict(plain.state_dict())
    assert synchronise(ours.train(), lambda sums: None) == 20 - 3
    assert any(isinstance(part, SyncBatchNorm3d) for part in ours.modules())
    x = torch.rand(3, 1, 4, 64, 64)
    torch.testing.assert_close(ours(x), plain(x), rtol=1e-3, atol=1e-3)
    nothing = ours(x[:0])
    assert nothing.shape == (0, 3)
    nothing.sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in ours.parameters())
