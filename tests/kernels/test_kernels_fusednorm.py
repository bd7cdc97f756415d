"""The fused passes do what torch's batch norm, sum, ReLU and max pooling do one after another."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctcovid.kernels import depthfold, native
from ctcovid.kernels.depthfold import Conv3d, MaxPool3d
from ctcovid.kernels.fusednorm import Activation, forgetful, norm_relu, norm_relu_pool, relu_pool

LAYOUTS = ("folded", "by slices", "contiguous")
# With and without a length that fills the processor's registers; more channels than the passes take at a time.
SHAPES = [(2, 5, 4, 7, 6), (1, 64, 2, 9, 9), (3, 70, 1, 5, 8), (2, 16, 3, 1, 1), (1, 130, 5, 4, 3)]

NORMALISE = native.normalise

needs_compiled = pytest.mark.skipif(native.compiled is None, reason="no compiler was at hand when ctcovid was installed")


@pytest.fixture(params=["compiled", "torch"])
def passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(native, "compiled", None)
    elif native.compiled is None:
        pytest.skip("no compiler was at hand when ctcovid was installed")
    return str(request.param)


def laid_out(x: Tensor, layout: str) -> Tensor:
    order, back = (depthfold.FOLDED, depthfold.FOLDED_BACK) if layout == "folded" else (depthfold.BY_SLICES, depthfold.BY_SLICES_BACK)
    return x if layout == "contiguous" else x.permute(order).contiguous().permute(back)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def norm(channels: int) -> nn.BatchNorm3d:
    made = nn.BatchNorm3d(channels)
    with torch.no_grad():
        made.weight.copy_(random(channels, seed=3) + 0.2)
        made.bias.copy_(random(channels, seed=4) * 0.3)
        made.running_mean.copy_(random(channels, seed=5))
        made.running_var.copy_(random(channels, seed=6).exp())
    assert (made.weight < 0).any() or channels < 6
    return made.train()


def require_equal(found: Tensor, expected: Tensor, norms: list[nn.BatchNorm3d], inputs: list[list[Tensor]], tolerance: float) -> None:
    """Values, running statistics and gradients of ours (first of each pair) are those of float64."""

    def close(ours: Tensor, right: Tensor) -> None:
        scale = max(right.abs().max().item(), 1e-3)
        torch.testing.assert_close(ours.double(), right, rtol=0, atol=tolerance * scale)

    close(found, expected)
    for name, buffer in norms[0].named_buffers():
        close(buffer, dict(norms[1].named_buffers())[name].double())
    direction = random(*expected.shape, seed=7)
    found.backward(direction.to(found.dtype))
    expected.backward(direction.to(found.dtype).double())
    pairs = [*zip(*inputs, strict=True), (norms[0].weight, norms[1].weight), (norms[0].bias, norms[1].bias)]
    for ours, right in pairs:
        close(ours.grad, right.grad)


@pytest.mark.parametrize(("shape", "layout", "added"), [*product(SHAPES, LAYOUTS, ("nothing", "same", "narrow", "strided"))])
@pytest.mark.parametrize("relu", [True, False])
def test_batch_norm_sum_and_relu(passes: str, shape: tuple[int, ...], layout: str, added: str, relu: bool) -> None:
    B, C, D, H, W = shape
    ours, right = norm(C), norm(C).double()
    stride = 2 if added == "strided" else 1
    sizes = {"same": shape, "narrow": (B, C // 2 or 1, D, H, W), "strided": (B, C // 2 or 1, 2 * D - 1, 2 * H, 2 * W)}
    x = [laid_out(random(*shape) * 2 + 1, layout).requires_grad_(), (random(*shape) * 2 + 1).double().requires_grad_()]
    inputs = [[x[0]], [x[1]]]
    residuals: list[Tensor | None] = [None, None]
    if added in sizes:
        values = random(*sizes[added], seed=8)
        residuals = [laid_out(values, layout).clone().requires_grad_(), values.double().requires_grad_()]
        inputs = [[x[0], residuals[0]], [x[1], residuals[1]]]
    found = norm_relu(x[0], ours, relu, residuals[0], stride).values
    expected = right(x[1])
    if residuals[1] is not None:
        kept = residuals[1][:, :, ::stride, ::stride, ::stride]
        expected = expected + F.pad(kept, (0, 0, 0, 0, 0, 0, 0, C - kept.shape[1]))
    require_equal(found, F.relu(expected) if relu else expected, [ours, right], inputs, 2e-5)


@pytest.mark.parametrize(("shape", "layout"), [*product(SHAPES, LAYOUTS)])
def test_pooling_before_the_affine_map_is_pooling_behind_it(passes: str, shape: tuple[int, ...], layout: str) -> None:
    """Also for channels whose weight is negative, where the smallest value becomes the largest."""
    ours, right = norm(shape[1]), norm(shape[1]).double()
    x = [laid_out(random(*shape), layout).requires_grad_(), random(*shape).double().requires_grad_()]
    found = norm_relu_pool(x[0], ours, MaxPool3d())
    require_equal(found, F.max_pool3d(F.relu(right(x[1])), 3, 2, 1), [ours, right], [[x[0]], [x[1]]], 2e-5)


@needs_compiled
@pytest.mark.parametrize("layout", LAYOUTS)
def test_passes_in_bfloat16_round_only_what_they_write(layout: str) -> None:
    shape = (2, 64, 4, 12, 12)
    half = (random(*shape) * 2 + 1).bfloat16()
    ours, right = norm(64), norm(64).double()
    x = [laid_out(half, layout).clone().requires_grad_(), half.double().requires_grad_()]
    found = norm_relu_pool(x[0], ours, MaxPool3d())
    assert found.dtype == torch.bfloat16
    require_equal(found, F.max_pool3d(F.relu(right(x[1])), 3, 2, 1), [ours, right], [[x[0]], [x[1]]], 2e-2)


@pytest.mark.parametrize(("shape", "layout"), [*product(SHAPES, LAYOUTS)])
def test_in_inference_relu_and_pooling_are_exchanged(passes: str, shape: tuple[int, ...], layout: str) -> None:
    x = laid_out(random(*shape), layout)
    expected = F.max_pool3d(F.relu(x), 3, 2, 1)
    with torch.inference_mode():
        assert torch.equal(relu_pool(x, MaxPool3d()), expected)
    assert torch.equal(relu_pool(x.clone().requires_grad_(), MaxPool3d()), expected)


@needs_compiled
def test_ties_go_to_the_first_voxel_as_in_torch() -> None:
    """A CT has margins of one value; where the gradient goes there must not depend on the way of computing."""
    levels = (random(1, 8, 4, 10, 10) * 1.5).round()
    ours, right = norm(8), norm(8)
    with torch.no_grad():
        ours.weight.abs_(), right.weight.abs_(), ours.bias.fill_(1.0), right.bias.fill_(1.0)
    x = [laid_out(levels, "folded").clone().requires_grad_(), levels.clone().requires_grad_()]
    norm_relu_pool(x[0], ours, MaxPool3d()).sum().backward()
    F.max_pool3d(F.relu(right(x[1])), 3, 2, 1).sum().backward()
    torch.testing.assert_close(x[0].grad, x[1].grad, rtol=0, atol=1e-5)


@needs_compiled
def test_the_mean_of_large_numbers_does_not_eat_the_variance() -> None:
    """The variance is not the difference of two large squares."""
    x = random(2000, 3).double() + 1e4
    mean, var = native.moments(x.float())
    torch.testing.assert_close(mean.double(), x.float().double().mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(var.double(), x.float().double().var(0, correction=0), rtol=1e-3, atol=0)


@needs_compiled
def test_nan_is_not_hidden() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x = random(1, 4, 4, 6, 6).to(dtype)
        x[0, 1, 1, 1, 1] = float("nan")
        assert norm_relu_pool(laid_out(x, "folded"), norm(4), MaxPool3d())[:, 1].isnan().all()
        assert norm_relu(laid_out(x, "folded"), norm(4), relu=False).values[:, 1].isnan().all()


@needs_compiled
def test_the_number_of_threads_changes_nothing_but_rounding() -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            x = laid_out(random(2, 6, 3, 5, 5), "folded").requires_grad_()
            norm_relu_pool(x, norm(6), MaxPool3d()).sum().backward()
            found.append(x.grad)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)


def test_a_single_value_per_channel_cannot_be_normalised(passes: str) -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm_relu(torch.ones(1, 3, 1, 1, 1), norm(3))


@needs_compiled
def test_values_between_two_convolutions_are_computed_again_and_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same gradients, with one more pass in the backward pass, which needs them."""
    results, computed_again = [], []
    for remember in (True, False):
        torch.manual_seed(0)
        conv, x = Conv3d(8, 8, 3, padding=1, bias=False), random(2, 8, 2, 6, 6).requires_grad_()
        made = norm_relu(x, norm(8))
        y = forgetful(conv, Activation(made.values) if remember else made)
        calls = []
        monkeypatch.setattr(native, "normalise", lambda *arguments, to=calls, make=NORMALISE: (to.append(1), make(*arguments))[1])
        del made
        y.square().sum().backward()
        monkeypatch.setattr(native, "normalise", NORMALISE)
        results.append([y, x.grad, conv.weight.grad])
        computed_again.append(len(calls))
    assert computed_again == [0, 1]
    for ours, right in zip(*results, strict=True):
        torch.testing.assert_close(ours, right)


@needs_compiled
def test_a_block_can_be_changed_in_place_by_whoever_gets_it() -> None:
    x = random(2, 8, 2, 6, 6).requires_grad_()
    norm_relu(x, norm(8)).values.mul_(2).sum().backward()
    other = random(2, 8, 2, 6, 6).requires_grad_()
    (norm_relu(other, norm(8)).values * 2).sum().backward()
    torch.testing.assert_close(x.grad, other.grad)


@needs_compiled
def test_what_does_not_fit_together_is_refused_before_memory_is_touched() -> None:
    x = random(2, 4, 2, 6, 6)
    with pytest.raises(ValueError, match="cannot be added"):
        norm_relu(x, norm(4), residual=random(2, 4, 2, 3, 3))
    with pytest.raises(ValueError, match="cannot be added"):
        norm_relu(x, norm(4), residual=random(2, 5, 2, 6, 6))


@needs_compiled
def test_another_default_type_of_numbers_changes_nothing() -> None:
    x = laid_out(random(1, 4, 4, 6, 6), "folded")
    expected = norm_relu_pool(x, norm(4), MaxPool3d())
    made = norm(4)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(norm_relu_pool(x, made, MaxPool3d()), expected)
    finally:
        torch.set_default_dtype(torch.float32)
