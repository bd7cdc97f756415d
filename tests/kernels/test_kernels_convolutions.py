"""convolutions.py: less than half of the multiplications, and the same convolution."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ctcovid.kernels import convolutions, depthfold
from ctcovid.models import registry
from ctcovid.models.resnet3d import ResNet3D

WHERE = "Winograd's convolutions need AVX512-BF16 without AMX, and compiled code; elsewhere, as with AVX2 alone, they do not exist"
pytestmark = pytest.mark.skipif(not convolutions.supported, reason=WHERE)


def whole(*shape: int, seed: int, step: int = 1) -> Tensor:
    """Whole numbers so small, and multiples of `step`, that no transform of them has more digits than bfloat16."""
    return step * torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).float()


def all_of_it(
    x: Tensor, kernel: Tensor, bias: Tensor | None, g: Tensor, dtype: torch.dtype, stride: int = 1, padding: int = 1
) -> list[Tensor]:
    """Output, input gradient, kernel gradient and bias gradient of torch's own convolution, slice by slice, of (B, H, W, D, C)."""
    x, kernel, *rest = (t.detach().to(dtype).requires_grad_() for t in (x, kernel, bias) if t is not None)
    images = x.permute(0, 3, 4, 1, 2).flatten(0, 1)
    y = F.conv2d(images, kernel.permute(0, 3, 1, 2), *rest, stride=stride, padding=padding)
    y = y.unflatten(0, (len(x), -1)).permute(0, 3, 4, 1, 2)
    y.backward(g.to(dtype))
    return [y.detach(), *(t.grad for t in (x, kernel, *rest) if t.grad is not None)]


def ours(x: Tensor, kernel: Tensor, bias: Tensor | None, g: Tensor) -> list[Tensor]:
    x, kernel, *rest = (t.detach().clone().requires_grad_() for t in (x.bfloat16(), kernel, bias) if t is not None)
    y = convolutions.convolve(x, kernel, convolutions.pack(kernel), *(rest or [None]))
    y.backward(g.bfloat16())
    return [y.detach(), *(t.grad for t in (x, kernel, *rest) if t.grad is not None)]


def require_exact(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, truth in zip(found, expected, strict=True):
        assert torch.equal(one, truth.to(one.dtype))


@contextlib.contextmanager
def computing_with(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@settings(max_examples=80, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 19), st.integers(1, 19), st.integers(1, 3), st.integers(1, 150)),
    outputs=st.integers(1, 150),
    biased=st.booleans(),
    threads=st.integers(1, 3),
)
def test_whole_numbers_are_convolved_without_any_error(
    shape: tuple[int, int, int, int, int], outputs: int, biased: bool, threads: int
) -> None:
    """Every sum and product is exact here, so that a wrong index anywhere shows. Only the results are rounded, once."""
    x, kernel = whole(*shape, seed=1), whole(outputs, 3, 3, shape[4], seed=2, step=4)
    bias, g = whole(outputs, seed=3) if biased else None, whole(*shape[:4], outputs, seed=4)
    with computing_with(threads):
        found = ours(x, kernel, bias, g)
    require_exact(found, all_of_it(x, kernel, bias, g, torch.float64))


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3),
    slices=st.integers(1, 4),
    height=st.integers(7, 40),
    width=st.integers(7, 120),
    channels=st.integers(1, 16),
    outputs=st.integers(16, 130),
    few=st.builds(convolutions.FewChannels, st.integers(2, 7), st.integers(1, 3), st.integers(0, 3)),
    biased=st.booleans(),
    threads=st.integers(1, 3),
)
def test_whole_numbers_of_few_channels_are_convolved_without_any_error(
    batch: int, slices: int, height: int, width: int, channels: int, outputs: int, few: convolutions.FewChannels, biased: bool, threads: int
) -> None:
    x, kernel = whole(batch, height, width, slices, channels, seed=1), whole(outputs, few.side, few.side, channels, seed=2)
    bias = whole(outputs, seed=3) if biased else None
    g = whole(batch, few.size(height), few.size(width), slices, outputs, seed=4)
    images = x.movedim(3, 1).flatten(0, 1).contiguous().bfloat16().requires_grad_()
    weight = kernel.permute(0, 3, 1, 2).bfloat16().requires_grad_()
    assert convolutions.FewChannels.of(weight, (few.stride,) * 2, (few.padding,) * 2) == few
    added = None if bias is None else bias.requires_grad_()
    with computing_with(threads):
        y = convolutions.convolve_few(images, weight, added, few, slices)
        y.backward(g.bfloat16())
    assert images.grad is not None and weight.grad is not None
    found = [y.detach(), images.grad.unflatten(0, (batch, slices)).movedim(1, 3), weight.grad.permute(0, 2, 3, 1)]
    expected = all_of_it(x, kernel, None if bias is None else bias.detach(), g, torch.float64, few.stride, few.padding)
    require_exact(found, expected[:3])
    if added is not None:
        assert added.grad is not None and torch.allclose(added.grad.double(), expected[3], rtol=0.01, atol=1)


@pytest.mark.parametrize(("channels", "outputs", "side"), [(64, 144, 16), (128, 128, 32), (512, 512, 8)])
def test_it_is_nearly_as_exact_as_a_direct_convolution_in_bfloat16(channels: int, outputs: int, side: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, side, side, 1, channels, generator=generator).relu().bfloat16()
    kernel = torch.randn(outputs, 3, 3, channels, generator=generator) * (2 / 9 / channels) ** 0.5
    g = torch.randn(2, side, side, 1, outputs, generator=generator).bfloat16()
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
    run = convolutions.convolve
    monkeypatch.setattr(convolutions, "convolve", lambda *given: calls.append(given) or run(*given))

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
    monkeypatch.setattr(convolutions, "supported", False)
    direct = measure(torch.bfloat16)
    assert not calls
    pairs = [zip(exact, some, strict=True) for some in (fast, direct)]
    errors = torch.tensor([[(found - truth).norm() / truth.norm() for truth, found in each] for each in pairs])
    assert errors[0].median() < 1.5 * errors[1].median()
    assert errors[0, 0] < 2.5 * errors[1, 0]


@pytest.mark.parametrize(("depth", "height", "width"), [(1, 33, 40), (2, 7, 9), (3, 40, 33), (4, 64, 64), (7, 19, 50), (10, 33, 35)])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_stem_in_inference_is_convolution_relu_and_pooling_to_the_last_digit(depth: int, height: int, width: int, threads: int) -> None:
    x, weight = whole(2, 1, depth, height, width, seed=1), whole(48, 1, 7, 7, 7, seed=2)
    bias, geometry = whole(48, seed=3), ((1, 2, 2), (3, 3, 3))
    kernel = depthfold.prepare(weight, bias, *geometry, x.bfloat16())
    with computing_with(threads):
        found = depthfold.stem(x.bfloat16(), kernel)
    assert found is not None
    expected = F.max_pool3d(F.conv3d(x.double(), weight.double(), bias.double(), *geometry).relu(), 3, 2, 1)
    assert torch.equal(found, expected.bfloat16())


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_nan_is_not_pooled_away(sign: float) -> None:
    x, weight = torch.zeros(1, 1, 4, 32, 32), torch.zeros(16, 1, 7, 7, 7)
    weight[3, 0, 3, 3, 3] = torch.copysign(torch.tensor(float("nan")), torch.tensor(sign))
    kernel = depthfold.prepare(weight, torch.zeros(16), (1, 2, 2), (3, 3, 3), x.bfloat16())
    found = depthfold.stem(x.bfloat16(), kernel)
    assert found is not None
    assert found[:, 3].isnan().all()
    assert found.isnan().sum() == found[:, 3].numel()


@pytest.mark.parametrize(("kernel", "depth"), [((3, 3, 3), 2), ((1, 3, 3), 3)])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("added", [True, False])
def test_residual_and_relu_in_the_same_pass_give_what_they_give_behind_it(
    kernel: tuple[int, int, int], depth: int, relu: bool, added: bool
) -> None:
    x, weight, bias = whole(2, 32, depth, 9, 8, seed=1), whole(48, 32, *kernel, seed=2, step=4), whole(48, seed=3)
    residual = whole(2, 48, depth, 9, 8, seed=4).bfloat16() if added else None
    geometry = ((1, 1, 1), tuple(k // 2 for k in kernel))
    prepared = depthfold.prepare(weight, bias, *geometry, x.bfloat16())
    assert prepared.packed is not None
    expected = F.conv3d(x.double(), weight.double(), bias.double(), *geometry) + (0 if residual is None else residual.double())
    expected = (expected.relu() if relu else expected).bfloat16()
    assert torch.equal(depthfold.convolve(x.bfloat16(), prepared, relu, residual), expected)
    # Where gradients are wanted, each is a step of its own, and rounds.
    with_gradient = depthfold.convolve(x.bfloat16().requires_grad_(), prepared, relu, residual)
    assert with_gradient.requires_grad
    assert torch.allclose(with_gradient, expected, rtol=0.02)


def test_a_relu_in_the_same_pass_lets_nan_through() -> None:
    x, weight = whole(1, 32, 2, 8, 8, seed=1), whole(32, 32, 3, 3, 3, seed=2)
    weight[5] = float("nan")
    prepared = depthfold.prepare(weight, None, (1, 1, 1), (1, 1, 1), x.bfloat16())
    assert depthfold.convolve(x.bfloat16(), prepared, relu=True)[:, 5].isnan().all()


def test_the_rule_takes_large_convolutions_of_stride_1_alone() -> None:
    kernel = torch.empty(64, 32, 3, 3)
    assert convolutions.pays(kernel, (1, 1), (1, 1), 64)
    assert not convolutions.pays(kernel, (1, 1), (1, 1), 63)
    assert not convolutions.pays(kernel, (2, 2), (1, 1), 64)
    assert not convolutions.pays(kernel, (1, 1), (0, 0), 64)
    assert not convolutions.pays(kernel[:, :31], (1, 1), (1, 1), 64)
    assert not convolutions.pays(torch.empty(64, 32, 5, 5), (1, 1), (1, 1), 64)


def test_few_are_square_kernels_of_at_most_sixteen_channels() -> None:
    few = convolutions.FewChannels(7, 2, 3)
    assert convolutions.FewChannels.of(torch.empty(64, 16, 7, 7), (2, 2), (3, 3)) == few
    for other in ((64, 17, 7, 7), (15, 4, 7, 7), (64, 4, 7, 5), (64, 4, 1, 1)):
        assert convolutions.FewChannels.of(torch.empty(other), (2, 2), (3, 3)) is None
    assert convolutions.FewChannels.of(torch.empty(64, 4, 7, 7), (2, 1), (3, 3)) is None
    assert convolutions.FewChannels.of(torch.empty(64, 4, 7, 7), (2, 2), (3, 0)) is None


@pytest.mark.parametrize("arch", ["r3d18", "r2plus1d18"])
def test_no_volumes_give_no_logits(arch: str) -> None:
    network = registry.build(arch, ["a", "b", "c"], "cpu", "bfloat16")
    assert network.logits(torch.zeros(0, 4, 64, 64, dtype=torch.uint8)).shape == (0, 3)


def test_a_residual_that_does_not_fit_is_refused() -> None:
    x, kernel = torch.zeros(1, 8, 8, 1, 32).bfloat16(), torch.zeros(32, 3, 3, 32)
    for residual in (torch.zeros(1, 8, 8, 1, 32), torch.zeros(1, 8, 4, 1, 32).bfloat16()):
        with pytest.raises(ValueError, match="residual"):
            convolutions.convolve_relu(x, convolutions.pack(kernel), None, residual, True, 32)


def test_a_kernel_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        convolutions.convolve_few(
            torch.zeros(1, 6, 9, 1).bfloat16(), torch.zeros(16, 1, 7, 7).bfloat16(), None, convolutions.FewChannels(7, 2, 0), 1
        )


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    generator = torch.Generator().manual_seed(0)
    x, kernel = (torch.randn(shape, generator=generator) for shape in ((2, 21, 30, 2, 64), (80, 3, 3, 64)))
    g = torch.randn(2, 21, 30, 2, 80, generator=generator)
    found = []
    for threads in (1, 2, 5):
        with computing_with(threads):
            found.append(ours(x, kernel, None, g))
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


def test_float32_and_float64_are_left_alone() -> None:
    assert convolutions.usable(torch.zeros(1, dtype=torch.bfloat16))
    assert not convolutions.usable(torch.zeros(1))
    assert not convolutions.usable(torch.zeros(1, dtype=torch.float64))
