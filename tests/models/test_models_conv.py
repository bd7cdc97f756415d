"""The factorised convolutions are three-dimensional ones that only run as two-dimensional ones."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctcovid.models.conv import DepthConv, PointConv, SpatialConv

CHANNELS, OUT_CHANNELS, HEIGHT, WIDTH = 5, 4, 6, 7
DEPTHS = range(1, 9)
LAYOUTS = ("contiguous", "channels last", "strided")


def volumes(depth: int, layout: str, seed: int = 0) -> Tensor:
    x = torch.randn(2, CHANNELS, depth, HEIGHT, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    if layout == "channels last":
        return x.contiguous(memory_format=torch.channels_last_3d)
    return x.repeat(1, 1, 1, 1, 2)[..., ::2] if layout == "strided" else x


def require_equal(convolution: nn.Conv3d, x: Tensor, stride: tuple[int, int, int], padding: tuple[int, int, int]) -> None:
    """Values and gradients with respect to input and weight are those of F.conv3d."""
    convolution.double()
    inputs = [x.detach().clone().requires_grad_() if x.is_contiguous() else x.detach().requires_grad_() for _ in range(2)]
    expected = F.conv3d(inputs[0], convolution.weight, stride=stride, padding=padding)
    found = convolution(inputs[1])
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    direction = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected_gradients = torch.autograd.grad((expected * direction).sum(), [inputs[0], convolution.weight])
    gradients = torch.autograd.grad((found * direction).sum(), [inputs[1], convolution.weight])
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("kernel", "stride", "layout"), [*product((3, 7), (1, 2), LAYOUTS)])
def test_a_spatial_convolution_equals_conv3d_in_value_and_gradient(kernel: int, stride: int, layout: str) -> None:
    for depth in DEPTHS:
        convolution = SpatialConv(CHANNELS, OUT_CHANNELS, kernel, stride)
        require_equal(convolution, volumes(depth, layout), (1, stride, stride), (0, kernel // 2, kernel // 2))


@pytest.mark.parametrize(("kernel", "stride", "layout"), [*product((3, 7), (1, 2), LAYOUTS)])
def test_a_depth_convolution_equals_conv3d_in_value_and_gradient(kernel: int, stride: int, layout: str) -> None:
    """Whether the volume is shallower than the kernel or not."""
    for depth in DEPTHS:
        convolution = DepthConv(CHANNELS, OUT_CHANNELS, kernel, stride)
        require_equal(convolution, volumes(depth, layout), (stride, 1, 1), (kernel // 2, 0, 0))


@pytest.mark.parametrize(("stride", "layout"), [*product((1, 2), LAYOUTS)])
def test_a_point_convolution_equals_conv3d_in_value_and_gradient(stride: int, layout: str) -> None:
    for depth in DEPTHS:
        require_equal(PointConv(CHANNELS, OUT_CHANNELS, stride), volumes(depth, layout), (stride,) * 3, (0, 0, 0))


@pytest.mark.parametrize(
    ("convolution", "shape"),
    [
        (SpatialConv(3, 110, 7, 2), (110, 3, 1, 7, 7)),
        (DepthConv(110, 64, 7), (64, 110, 7, 1, 1)),
        (PointConv(64, 256, 2), (256, 64, 1, 1, 1)),
    ],
)
def test_weights_keep_the_shape_of_conv3d_and_there_is_no_bias(convolution: nn.Conv3d, shape: tuple[int, ...]) -> None:
    assert {name: tuple(tensor.shape) for name, tensor in convolution.state_dict().items()} == {"weight": shape}
