"""Folded layers are three-dimensional ones: the same values, the same gradients, whatever the shape."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ctcovid.kernels import depthfold
from ctcovid.kernels.depthfold import Conv3d, GlobalAverage, MaxPool3d, convolve, folds, prepare, shortcut, way
from ctcovid.models import registry
from ctcovid.models.costs import plan

LAYOUTS = ("contiguous", "folded", "by slices", "strided")


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same numbers in another memory order."""
    if layout == "folded":
        return x.permute(depthfold.FOLDED).contiguous().permute(depthfold.FOLDED_BACK)
    if layout == "by slices":
        return x.contiguous(memory_format=torch.channels_last_3d)
    return x.repeat(1, 1, 1, 1, 2)[..., : x.shape[4]] if layout == "strided" else x


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def require_equal(found: Tensor, expected: Tensor, found_inputs: list[Tensor], expected_inputs: list[Tensor]) -> None:
    """Values and gradients, along a random direction, agree to rounding in float64."""
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    direction = random(*expected.shape, seed=1)
    wanted = torch.autograd.grad((expected * direction).sum(), expected_inputs)
    gradients = torch.autograd.grad((found * direction).sum(), found_inputs)
    for gradient, right in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, right, rtol=0, atol=1e-10)


@st.composite
def layers(draw: st.DrawFn) -> dict[str, object]:
    kernel = tuple(draw(st.integers(1, 5)) for _ in range(3))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    sizes = tuple(draw(st.integers(max(1, k - 2 * p), 9)) for k, p in zip(kernel, padding, strict=True))
    return {
        "shape": (draw(st.integers(1, 3)), draw(st.integers(1, 4)), *sizes),
        "outputs": draw(st.integers(1, 4)),
        "kernel": kernel,
        "stride": tuple(draw(st.integers(1, 3)) for _ in range(3)),
        "padding": padding,
        "layout": draw(st.sampled_from(LAYOUTS)),
        "bias": draw(st.booleans()),
    }


@settings(max_examples=150, deadline=None)
@given(layers())
def test_any_convolution_equals_conv3d_in_value_and_gradient(layer: dict[str, object]) -> None:
    x = random(*layer["shape"])
    inputs = [laid_out(x, layer["layout"]).detach().requires_grad_(), x.clone().requires_grad_()]
    parameters = [random(layer["outputs"], layer["shape"][1], *layer["kernel"], seed=2).requires_grad_()]
    parameters += [random(layer["outputs"], seed=3).requires_grad_()] if layer["bias"] else []
    bias = parameters[1] if layer["bias"] else None
    kernel = prepare(parameters[0], bias, layer["stride"], layer["padding"], x)
    found = convolve(inputs[0], kernel)
    expected = F.conv3d(inputs[1], parameters[0], bias, layer["stride"], layer["padding"])
    require_equal(found, expected, [inputs[0], *parameters], [inputs[1], *parameters])


@pytest.mark.parametrize(("kernel", "depth"), [*product((3, 7), (1, 2, 3, 4, 5, 7, 10, 11, 16, 32))])
def test_both_branches_of_the_rule_equal_conv3d(kernel: int, depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for margin, wanted in ((1e9, "folded"), (0.0, "plain")):
        monkeypatch.setattr(depthfold, "MARGIN", margin)
        conv = Conv3d(3, 4, kernel, stride=(2, 1, 2), padding=kernel // 2, bias=False).double()
        x = random(2, 3, depth, 5, 6)
        inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
        assert way(depth, (kernel,) * 3, (kernel // 2,) * 3) == wanted
        expected = F.conv3d(inputs[1], conv.weight, stride=(2, 1, 2), padding=kernel // 2)
        require_equal(conv(inputs[0]), expected, [inputs[0], conv.weight], [inputs[1], conv.weight])


def test_the_rule_folds_where_the_dense_band_costs_less_than_half_more_than_the_padding_did() -> None:
    """Multiplications per output slice: all input slices folded, all taps of the kernel plain."""
    assert [depth for depth in range(1, 65) if folds(depth, 3)] == [1, 2, 3, 4]
    assert [depth for depth in range(1, 65) if folds(depth, 7)] == list(range(1, 11))


@pytest.mark.parametrize(
    ("depth", "kernel", "padding", "expected"),
    [
        (4, (7, 7, 7), (3, 3, 3), "folded"),
        (2, (3, 3, 3), (1, 1, 1), "folded"),
        (64, (7, 7, 7), (3, 3, 3), "plain"),
        (4, (1, 7, 7), (0, 3, 3), "slices"),
        (4, (7, 1, 1), (3, 0, 0), "band"),
        (8, (7, 1, 1), (3, 0, 0), "columns"),
        (4, (1, 1, 1), (0, 0, 0), "points"),
    ],
)
def test_kernels_without_extent_in_depth_or_plane_run_as_two_dimensional_ones(
    depth: int, kernel: tuple[int, int, int], padding: tuple[int, int, int], expected: str
) -> None:
    assert way(depth, kernel, padding) == expected


def test_one_input_channel_stands_for_equal_ones_in_value_and_gradient() -> None:
    """The grey stem: Li et al. 2021, Sec. 2.2 feeds three equal channels."""
    conv = Conv3d(3, 4, 7, stride=(1, 2, 2), padding=3, bias=False).double()
    grey = [random(2, 1, 4, 9, 10).requires_grad_() for _ in range(2)]
    expected = F.conv3d(grey[1].expand(-1, 3, -1, -1, -1), conv.weight, stride=(1, 2, 2), padding=3)
    require_equal(conv(grey[0]), expected, [grey[0], conv.weight], [grey[1], conv.weight])


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(1, 3), st.integers(1, 4), *[st.integers(1, 9)] * 3), st.sampled_from(LAYOUTS), st.integers(2, 1000))
def test_max_pooling_equals_torchs_and_gives_ties_to_the_first(shape: tuple[int, ...], layout: str, levels: int) -> None:
    """With few levels most windows have several largest values, as the black margin of a CT does."""
    x = (random(*shape) * levels).round() / levels if levels > 20 else (random(*shape) * levels / 4).round()
    inputs = [laid_out(x, layout).detach().requires_grad_(), x.clone().requires_grad_()]
    require_equal(MaxPool3d()(inputs[0]), F.max_pool3d(inputs[1], 3, 2, 1), [inputs[0]], [inputs[1]])


def test_max_pooling_does_not_hide_nan() -> None:
    x = random(1, 2, 4, 6, 6)
    x[0, 1, 2, 3, 3] = float("nan")
    torch.testing.assert_close(MaxPool3d()(x), F.max_pool3d(x, 3, 2, 1), equal_nan=True)


@pytest.mark.parametrize(("layout", "depth"), [*product(LAYOUTS, (1, 2, 4, 5))])
def test_the_shortcut_keeps_every_second_voxel_and_pads_with_zeros(layout: str, depth: int) -> None:
    x = random(2, 3, depth, 5, 6)
    inputs = [laid_out(x, layout).detach().requires_grad_(), x.clone().requires_grad_()]
    expected = F.pad(inputs[1][:, :, ::2, ::2, ::2], (0, 0, 0, 0, 0, 0, 0, 4))
    require_equal(shortcut(inputs[0], 7, 2), expected, [inputs[0]], [inputs[1]])
    assert torch.equal(shortcut(x, 3, 1), x)


def test_the_global_average_of_half_precision_numbers_is_taken_in_float32() -> None:
    x = torch.full((1, 2, 1, 64, 64), 1.0, dtype=torch.bfloat16)
    x[0, 1, 0, 0, 0] = 5.0
    assert GlobalAverage()(x).flatten().tolist() == [1.0, 1.0 + 4 / 4096]


@pytest.mark.parametrize(("margin", "depth"), [(0.0, 4), (1.5, 9)])
def test_a_plain_convolution_in_bfloat16_on_a_cpu_computes_in_float32(margin: float, depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own backward pass in bfloat16 is slow, and at batch 1 corrupted memory."""
    monkeypatch.setattr(depthfold, "MARGIN", margin)
    conv = Conv3d(4, 4, 3, padding=1, bias=False)
    x = random(1, 4, depth, 6, 6).bfloat16().requires_grad_()
    y = conv(x)
    expected = F.conv3d(x.detach().float(), conv.weight.bfloat16().float(), padding=1)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected.bfloat16(), rtol=0, atol=0)
    y.float().sum().backward()
    assert torch.isfinite(conv.weight.grad).all()


@pytest.mark.parametrize("conv", [Conv3d(3, 110, (1, 7, 7), bias=False), Conv3d(4, 8, 3, bias=False)])
def test_parameters_keep_the_names_and_shapes_of_conv3d(conv: nn.Conv3d) -> None:
    plain = nn.Conv3d(conv.in_channels, conv.out_channels, conv.kernel_size, bias=False)
    assert {name: tensor.shape for name, tensor in conv.state_dict().items()} == {
        name: tensor.shape for name, tensor in plain.state_dict().items()
    }


def test_the_plan_of_r3d18_at_the_papers_depth_leaves_three_fifths_of_the_arithmetic_out() -> None:
    rows = plan("r3d18", 4, 512)
    assert [row.layer for row in rows][:2] == ["conv1", "layer1.0.conv1"]
    assert rows[0].shape == (64, 4, 256, 256)
    assert rows[0].plain == pytest.approx(64 * 3 * 7**3 * 4 * 256**2 / 1e9)
    assert rows[0].folded == rows[0].cost == pytest.approx(64 * 7**2 * 4 * 4 * 256**2 / 1e9)
    assert {row.way for row in rows} == {"folded"}
    assert sum(row.plain for row in rows) == pytest.approx(50.785, abs=1e-3)
    assert sum(row.cost for row in rows) == pytest.approx(19.596, abs=1e-3)


@pytest.mark.parametrize("name", ["r3d50", "r2plus1d18", "tv_mc3_18"])
def test_the_plan_chooses_never_more_than_the_margin_allows(name: str) -> None:
    for depth in (2, 4, 16):
        rows = plan(name, depth, 64)
        assert len(rows) == sum(isinstance(module, nn.Conv3d) for module in registry.create(name).modules())
        assert all(row.cost <= depthfold.MARGIN * row.plain for row in rows)
        if name.startswith("tv_"):
            assert {(row.way, row.folded) for row in rows} == {("plain", None)}
            assert all(row.cost == row.plain for row in rows)
