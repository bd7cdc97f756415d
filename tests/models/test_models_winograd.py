"""winograd.py: less than half of the multiplications, and the same convolution."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ctcovid.models import registry, winograd
from ctcovid.models.resnet3d import ResNet3D

pytestmark = pytest.mark.skipif(not winograd.supported, reason="this processor does not multiply bfloat16 in vectors, or has AMX")


def whole(*shape: int, seed: int, step: int = 1) -> Tensor:
    """Whole numbers so small, and multiples of `step`, that no transform of them has more digits than bfloat16."""
    return step * torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).float()


def all_of_it(x: Tensor, kernel: Tensor, bias: Tensor | None, g: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Output, input gradient, kernel gradient, and bias gradient, of torch's own convolution."""
    x, kernel, *rest = (t.detach().to(dtype).requires_grad_() for t in (x, kernel, bias) if t is not None)
    y = F.conv2d(x.permute(0, 3, 1, 2), kernel.permute(0, 3, 1, 2), *rest, padding=1).permute(0, 2, 3, 1)
    y.backward(g.to(dtype))
    return [y.detach(), *(t.grad for t in (x, kernel, *rest) if t.grad is not None)]


def ours(x: Tensor, kernel: Tensor, bias: Tensor | None, g: Tensor) -> list[Tensor]:
    x, kernel, *rest = (t.detach().clone().requires_grad_() for t in (x.bfloat16(), kernel, bias) if t is not None)
    y = winograd.convolve(x, kernel, winograd.pack(kernel), *(rest or [None]))
    y.backward(g.bfloat16())
    return [y.detach(), *(t.grad for t in (x, kernel, *rest) if t.grad is not None)]


@settings(max_examples=80, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 19), st.integers(1, 19), st.integers(1, 150)),
    outputs=st.integers(1, 150),
    biased=st.booleans(),
    threads=st.integers(1, 3),
)
def test_whole_numbers_are_convolved_without_any_error(shape: tuple[int, int, int, int], outputs: int, biased: bool, threads: int) -> None:
    """Every sum and product is exact here, so that a wrong index anywhere shows. Only the results are rounded, once."""
    x, kernel = whole(*shape, seed=1), whole(outputs, 3, 3, shape[3], seed=2, step=4)
    bias, g = whole(outputs, seed=3) if biased else None, whole(*shape[:3], outputs, seed=4)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = ours(x, kernel, bias, g)
    finally:
        torch.set_num_threads(before)
    for one, expected in zip(found, all_of_it(x, kernel, bias, g, torch.float64), strict=True):
        assert torch.equal(one, expected.to(one.dtype))


@pytest.mark.parametrize(("channels", "outputs", "side"), [(64, 144, 16), (128, 128, 32), (512, 512, 8)])
def test_it_is_nearly_as_exact_as_a_direct_convolution_in_bfloat16(channels: int, outputs: int, side: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, side, side, channels, generator=generator).relu().bfloat16()
    kernel = torch.randn(outputs, 3, 3, channels, generator=generator) * (2 / 9 / channels) ** 0.5
    g = torch.randn(2, side, side, outputs, generator=generator).bfloat16()
    exact = all_of_it(x, kernel, None, g, torch.float64)
    direct = all_of_it(x, kernel, None, g, torch.bfloat16)
    for one, other, truth in zip(ours(x, kernel, None, g), direct, exact, strict=True):
        error, usual = ((found.double() - truth).norm() / truth.norm() for found in (one, other))
        assert error < 3 * usual
        assert error < 0.01


@pytest.mark.parametrize(("arch", "training"), [*product(("r3d18", "r2plus1d18", "r3d50"), (True, False))])
def test_a_network_is_as_near_to_float32_with_it_as_without(arch: str, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = registry.create(arch, 3).to(memory_format=torch.channels_last_3d).train(training)
    x = torch.rand(4, 1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    calls = []
    run = winograd.convolve
    monkeypatch.setattr(winograd, "convolve", lambda *given: calls.append(given) or run(*given))

    def measure(precision: torch.dtype) -> list[Tensor]:
        network.zero_grad()
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            logits = network(x)
        F.cross_entropy(logits.float(), torch.tensor([0, 1, 2, 0])).backward()
        return [logits.detach().float(), *(p.grad.clone() for p in network.parameters())]

    assert isinstance(network, ResNet3D)
    exact, fast = measure(torch.float32), measure(torch.bfloat16)
    assert calls
    calls.clear()
    monkeypatch.setattr(winograd, "supported", False)
    direct = measure(torch.bfloat16)
    assert not calls
    pairs = [zip(exact, some, strict=True) for some in (fast, direct)]
    errors = torch.tensor([[(found - truth).norm() / truth.norm() for truth, found in each] for each in pairs])
    assert errors[0].median() < 1.5 * errors[1].median()
    assert errors[0, 0] < 2.5 * errors[1, 0]


def test_the_rule_takes_large_convolutions_of_stride_1_alone() -> None:
    kernel = torch.empty(64, 32, 3, 3)
    assert winograd.pays(kernel, (1, 1), (1, 1), 64)
    assert not winograd.pays(kernel, (1, 1), (1, 1), 63)
    assert not winograd.pays(kernel, (2, 2), (1, 1), 64)
    assert not winograd.pays(kernel, (1, 1), (0, 0), 64)
    assert not winograd.pays(kernel[:, :31], (1, 1), (1, 1), 64)
    assert not winograd.pays(torch.empty(64, 32, 5, 5), (1, 1), (1, 1), 64)


def test_float32_and_float64_are_left_alone() -> None:
    assert winograd.usable(torch.zeros(1, dtype=torch.bfloat16))
    assert not winograd.usable(torch.zeros(1))
    assert not winograd.usable(torch.zeros(1, dtype=torch.float64))
