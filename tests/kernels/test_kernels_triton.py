"""The passes in Triton do what torch does in float64: in its interpreter on a CPU, which `.ci/run` sets up."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from test_kernels_fusednorm import laid_out, norm, random, require_equal
from torch import Tensor

from ctcovid.kernels import choice, native, passes
from ctcovid.kernels.depthfold import BY_SLICES, FOLDED, MaxPool3d, memory_order
from ctcovid.kernels.fusednorm import norm_relu, norm_relu_pool, relu_pool
from ctcovid.models import resnet3d

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton's interpreter is not asked for (TRITON_INTERPRET=1)", allow_module_level=True)
pytest.importorskip("triton", reason="Triton is not installed")

TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def _interpreted() -> Iterator[None]:
    """The CPU is a GPU here, and what is to be tested is not checked each time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "GPUS", {"cpu"})
        module = importlib.import_module("ctcovid.kernels.triton_passes")
        # As few programs as a small tensor allows, and more than one of each kind.
        patch.setattr(module, "MERGED_CHANNELS", 32)
        patch.setattr(passes, "_found", {(torch.device("cpu"), dtype): module for dtype in passes.TYPES})
        patch.setattr(native, "compiled", None)
        yield


@pytest.mark.parametrize("dtype", passes.TYPES)
def test_the_check_of_the_first_use_passes(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(passes, "_found", {})
    assert passes.on_gpu(torch.zeros(1, dtype=dtype))
    assert capsys.readouterr().err == ""


def test_a_pass_that_is_wrong_is_found_and_said_and_not_used(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = passes._found[torch.device("cpu"), torch.float32]
    monkeypatch.setattr(passes, "_found", {})
    monkeypatch.setattr(choice, "_said", set())
    right = module.normalise
    monkeypatch.setattr(module, "normalise", lambda *arguments: right(*arguments).mul_(1.001))
    assert not passes.usable(torch.zeros(1))
    said = "do not agree with torch on this GPU (normalise), so torch's own operations are used, which are slower. Please report it.\n"
    assert capsys.readouterr().err == f"Warning: The passes in Triton {said}"
    assert not passes.usable(torch.zeros(1))
    assert capsys.readouterr().err == ""


def test_what_does_not_compile_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = passes._found[torch.device("cpu"), torch.float32]
    monkeypatch.setattr(passes, "_found", {})
    monkeypatch.setattr(choice, "_said", set())

    def broken(*arguments: object) -> None:
        raise RuntimeError("ptxas failed\n  long listing")

    monkeypatch.setattr(module, "moments", broken)
    assert not passes.usable(torch.zeros(1))
    said = (
        "cannot compile or run the passes on this GPU (RuntimeError: ptxas failed), so torch's own operations are used, which are slower.\n"
    )
    assert capsys.readouterr().err == f"Warning: Triton {said}"


# Odd sizes, channels that are no power of two and more than a program takes, one slice; folded, by slices, and in torch's own order.
SHAPES = [((2, 5, 4, 7, 6), "folded"), ((1, 64, 2, 9, 9), "by slices"), ((1, 270, 1, 3, 4), "folded"), ((2, 17, 3, 2, 5), "contiguous")]


@pytest.mark.parametrize(("shape", "layout"), SHAPES)
@pytest.mark.parametrize(
    ("added", "relu", "wanted"), [(None, True, None), ("same", True, "other"), ("strided", False, None), (None, False, "other")]
)
@pytest.mark.parametrize("dtype", passes.TYPES)
def test_batch_norm_sum_and_relu_in_any_memory_order(
    shape: tuple[int, ...], layout: str, added: str | None, relu: bool, wanted: str | None, dtype: torch.dtype
) -> None:
    B, C, D, H, W = shape
    ours, right = norm(C), norm(C).double()
    stride = 2 if added == "strided" else 1
    values = (random(*shape) * 2 + 1).to(dtype)
    x = [laid_out(values, layout).clone().requires_grad_(), values.double().requires_grad_()]
    inputs: list[list[Tensor]] = [[x[0]], [x[1]]]
    residual: list[Tensor | None] = [None, None]
    if added is not None:
        extra = random(*(shape if stride == 1 else (B, C // 2, 2 * D - 1, 2 * H, 2 * W)), seed=8).to(dtype)
        residual = [laid_out(extra, "by slices").clone().requires_grad_(), extra.double().requires_grad_()]
        inputs = [[x[0], residual[0]], [x[1], residual[1]]]
    order = None if wanted is None else BY_SLICES if memory_order(x[0])[0] == FOLDED else FOLDED
    found = norm_relu(x[0], ours, relu, residual[0], stride, order).values
    assert order is None or D == 1 or memory_order(found)[0] == order
    expected = right(x[1])
    if residual[1] is not None:
        kept = residual[1][:, :, ::stride, ::stride, ::stride]
        expected = expected + F.pad(kept, (0, 0, 0, 0, 0, 0, 0, C - kept.shape[1]))
    require_equal(found, F.relu(expected) if relu else expected, [ours, right], inputs, TOLERANCES[dtype])


@pytest.mark.parametrize(("shape", "layout"), [*SHAPES, ((1, 3, 5, 8, 37), "by slices")])
@pytest.mark.parametrize("dtype", passes.TYPES)
def test_pooling_before_the_affine_map_is_pooling_behind_it(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> None:
    ours, right = norm(shape[1]), norm(shape[1]).double()
    values = random(*shape).to(dtype)
    x = [laid_out(values, layout).clone().requires_grad_(), values.double().requires_grad_()]
    found = norm_relu_pool(x[0], ours, MaxPool3d(), BY_SLICES)
    assert memory_order(found)[0] == BY_SLICES
    require_equal(found, F.max_pool3d(F.relu(right(x[1])), 3, 2, 1), [ours, right], [[x[0]], [x[1]]], TOLERANCES[dtype])
    with torch.inference_mode():
        assert torch.equal(relu_pool(laid_out(values, layout), MaxPool3d()), F.max_pool3d(F.relu(values), 3, 2, 1))


def test_channels_beyond_those_of_the_batch_norm_are_zero_and_stay_so() -> None:
    ours, right = norm(5), norm(5)
    values = random(2, 5, 2, 4, 4)
    x = [F.pad(values, (0, 0, 0, 0, 0, 0, 0, 3)).requires_grad_(), values.clone().requires_grad_()]
    found, expected = norm_relu(x[0], ours).values, norm_relu(x[1], right).values
    assert not found[:, 5:].any()
    assert torch.equal(found[:, :5], expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    assert torch.equal(x[0].grad[:, :5], x[1].grad) and not x[0].grad[:, 5:].any()
    for name, parameter in (*ours.named_parameters(), *ours.named_buffers()):
        other = dict((*right.named_parameters(), *right.named_buffers()))[name]
        assert torch.equal(parameter, other), name
        assert parameter.grad is None or torch.equal(parameter.grad, other.grad)


def test_ties_go_to_the_first_voxel_and_minus_infinity_to_one_inside() -> None:
    levels = (random(1, 8, 4, 10, 10) * 1.5).round()
    levels[0, 3] = float("-inf")
    x = laid_out(levels, "folded").permute(0, 2, 3, 4, 1)
    pooled, tap, _, _ = passes.pool(x, torch.ones(8))
    expected, chosen = F.max_pool3d(levels, 3, 2, 1, return_indices=True)
    assert torch.equal(pooled.permute(0, 4, 1, 2, 3), expected)
    d, h, w = tap.long() // 9, tap.long() // 3 % 3, tap.long() % 3
    at = [2 * torch.arange(size) - 1 for size in tap.shape[1:4]]
    index = (d + at[0][:, None, None, None]) * 100 + (h + at[1][:, None, None]) * 10 + w + at[2][:, None]
    assert torch.equal(index.permute(0, 4, 1, 2, 3), chosen)


def test_nan_is_not_hidden_and_large_numbers_do_not_eat_the_variance() -> None:
    x = random(1, 4, 4, 6, 6)
    x[0, 1, 1, 1, 1] = float("nan")
    assert norm_relu_pool(laid_out(x, "folded"), norm(4), MaxPool3d())[:, 1].isnan().all()
    assert norm_relu(laid_out(x, "by slices"), norm(4), relu=False).values[:, 1].isnan().all()
    pooled = relu_pool(laid_out(x, "folded"), MaxPool3d())
    assert torch.equal(pooled[:, 1].isnan(), F.max_pool3d(x, 3, 2, 1)[:, 1].isnan())
    far = random(40, 50, 1, 1, 3).double() + 1e4
    mean, var = passes.moments(far.float())
    torch.testing.assert_close(mean.double(), far.float().double().mean((0, 1, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(var.double(), far.float().double().var((0, 1, 2, 3), correction=0), rtol=1e-3, atol=0)


def test_offsets_have_64_bits() -> None:
    """Of memory that is never touched, but for a row at each end."""
    memory = torch.empty((1 << 31) + 4096, dtype=torch.bfloat16)
    x = memory.as_strided((2, 2, 2, 2, 16), (1 << 31, 64, 32, 16, 1))
    x.copy_(random(2, 2, 2, 2, 16))
    near, channels, ones = x.clone(memory_format=torch.contiguous_format), random(16, seed=1), torch.ones(16)
    affine = native.Affine(channels, channels)
    module, out = passes.gpu(x), torch.empty_like(near)
    assert torch.equal(module.normalise(x, affine, x, out), module.normalise(near, affine, near, torch.empty_like(near)))
    assert torch.equal(module.normalise(near, affine, near, torch.empty_like(near)), out)
    for found, expected in zip(module.reduce(x, x, x, affine, ones), module.reduce(near, near, near, affine, ones), strict=True):
        torch.testing.assert_close(found, expected)
    for found, expected in zip(module.pool(x, ones, measure=True), module.pool(near, ones, measure=True), strict=True):
        assert torch.equal(found, expected)
    pooled, tap, _, _ = module.pool(near, ones, measure=False)
    expected = module.unpool(pooled, tap, near, channels, channels)
    assert torch.equal(module.unpool(pooled, tap, x, channels, channels), expected)
    # Results far apart too.
    x.zero_()
    module.normalise(near, affine, None, x)
    assert torch.equal(x, module.normalise(near, affine, None, torch.empty_like(near)))


def test_empty_tensors_pass() -> None:
    x = torch.zeros(0, 4, 2, 6, 6, requires_grad=True)
    y = norm_relu_pool(norm_relu(x, norm(4)).values, norm(4), MaxPool3d())
    assert y.shape == (0, 4, 1, 3, 3)
    y.sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape


def test_a_whole_network_agrees_with_a_plain_one_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """(2+1)D: every pass, both memory orders, padded channels, patches, products, bands, in training and in use."""
    monkeypatch.setattr(resnet3d, "WIDTHS", (8, 8, 8, 8))
    torch.manual_seed(0)
    ours, plain = (resnet3d.ResNet3D("basic", (1, 1, 0, 0), True, 3, plain) for plain in (False, True))
    plain.load_state_dict(ours.state_dict())
    x, direction = random(2, 1, 4, 20, 18), random(2, 3, seed=1)
    plain.double()
    found, expected = ours.train()(x), plain.train()(x.double())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)
    found.backward(direction)
    expected.backward(direction.double())
    right = dict(plain.named_parameters())
    for name, number in ours.named_parameters():
        off = (number.grad.double() - right[name].grad).norm() / right[name].grad.norm().clamp_min(1e-2)
        assert off < 2e-3, (name, off)
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(x).double(), plain.eval()(x.double()), rtol=0, atol=1e-4)
