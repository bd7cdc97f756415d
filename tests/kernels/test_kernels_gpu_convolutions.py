"""Convolutions in the shapes that a GPU is fast at equal Conv3d in value and gradient; passes are torch's here (gpu_stand_in.py)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gpu_stand_in
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctcovid.kernels import choice, gpu_convolutions, passes
from ctcovid.kernels.depthfold import BY_SLICES, FOLDED, Conv3d, convolve, prepare
from ctcovid.models import resnet3d
from ctcovid.models.resnet3d import ResNet3D


@pytest.fixture(autouse=True)
def _on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "GPUS", {"cpu"})
    monkeypatch.setattr(passes, "_found", {(torch.device("cpu"), dtype): gpu_stand_in for dtype in passes.TYPES})


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# way, then channels, kernel, stride, padding, depth, height and width
LAYERS = {
    "stem in blocks": ((1, 24), (7, 7, 7), (1, 2, 2), (3, 3, 3), (4, 18, 22)),
    "stem of odd size": ((1, 24), (7, 7, 7), (1, 2, 2), (3, 3, 3), (4, 17, 22)),
    "stem in patches": ((1, 30), (1, 7, 7), (1, 2, 2), (0, 3, 3), (3, 14, 15)),
    "stem of three channels": ((3, 16), (1, 7, 7), (1, 2, 2), (0, 3, 3), (2, 14, 16)),
    "folded": ((20, 24), (3, 3, 3), (2, 2, 2), (1, 1, 1), (2, 9, 8)),
    "plain": ((6, 8), (3, 3, 3), (1, 1, 1), (1, 1, 1), (7, 6, 5)),
    "slices": ((20, 30), (1, 3, 3), (1, 2, 2), (0, 1, 1), (3, 8, 9)),
    "band": ((20, 24), (7, 1, 1), (1, 1, 1), (3, 0, 0), (4, 6, 7)),
    "band with stride": ((20, 24), (3, 1, 1), (2, 1, 1), (1, 0, 0), (2, 6, 7)),
    "columns": ((20, 24), (3, 1, 1), (2, 1, 1), (1, 0, 0), (5, 6, 7)),
    "points": ((20, 24), (1, 1, 1), (2, 2, 2), (0, 0, 0), (3, 6, 7)),
}


def inputs_of(layer: tuple[tuple[int, ...], ...], order: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    (I, O), kernel, _, _, size = layer  # noqa: E741
    x = random(2, I, *size)
    back = [order.index(dim) for dim in range(5)]
    return x.permute(order).contiguous().permute(back), random(O, I, *kernel, seed=1) / 8


@pytest.mark.parametrize("more", [0, 4])
@pytest.mark.parametrize("order", [FOLDED, BY_SLICES])
@pytest.mark.parametrize("name", LAYERS)
def test_values_and_gradients_are_those_of_conv3d(name: str, order: tuple[int, ...], more: int) -> None:
    """Also with `more` output channels, and input channels, than the weight has."""
    _, _, stride, padding, _ = layer = LAYERS[name]
    x, weight = inputs_of(layer, order)
    ours = [F.pad(x, (0, 0, 0, 0, 0, 0, 0, more)).requires_grad_(), weight.clone().requires_grad_()]
    right = [x.double().requires_grad_(), weight.double().requires_grad_()]
    made = prepare(ours[1], None, stride, padding, ours[0], len(weight) + more)
    assert made.on_gpu
    found, expected = convolve(ours[0], made), F.conv3d(right[0], right[1], None, stride, padding)
    assert found.stride(1) == 1
    outputs, inputs = len(weight), x.shape[1]
    assert not found[:, outputs:].any()
    torch.testing.assert_close(found[:, :outputs].double(), expected, rtol=0, atol=2e-5)
    direction = random(*found.shape, seed=2)
    found.backward(direction)
    expected.backward(direction[:, :outputs].double())
    torch.testing.assert_close(ours[0].grad[:, :inputs].double(), right[0].grad, rtol=0, atol=5e-5)
    torch.testing.assert_close(ours[1].grad.double(), right[1].grad, rtol=0, atol=5e-4)
    assert not ours[0].grad[:, inputs:].any()


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_in_use_bias_residual_and_relu_belong_to_the_convolution(name: str, added: bool, relu: bool) -> None:
    _, _, stride, padding, _ = layer = LAYERS[name]
    x, weight = inputs_of(layer, BY_SLICES)
    bias = random(len(weight), seed=3)
    expected = F.conv3d(x.double(), weight.double(), bias.double(), stride, padding)
    residual = random(*expected.shape, seed=4) if added else None
    expected = expected if residual is None else expected + residual
    with torch.inference_mode():
        found = convolve(x, prepare(weight, bias, stride, padding, x), relu, residual)
    torch.testing.assert_close(found.double(), expected.relu() if relu else expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("factor", [1.0, 1.1, None])
def test_a_librarys_fused_convolution_is_used_only_where_it_does_what_its_steps_do(
    factor: float | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def library(*operands: Any) -> Tensor:
        if factor is None:
            raise RuntimeError("CUDNN_STATUS_NOT_SUPPORTED")
        return gpu_convolutions._steps(*operands, relu=True) * factor

    monkeypatch.setattr(gpu_convolutions, "_checked", {})
    monkeypatch.setattr(gpu_convolutions, "_library", library)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(choice, "_said", set())
    assert [gpu_convolutions._agrees(torch.zeros(1, dtype=torch.bfloat16)) for _ in range(2)] == [factor == 1.0] * 2
    assert capsys.readouterr().err.count("cuDNN has no sound convolution with bias, sum and ReLU in one") == (factor != 1.0)


def test_the_gradient_of_a_product_is_summed_in_parts_that_hold_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_convolutions, "PART", 8)
    rows, weight = random(6, 8, 4).requires_grad_(), random(3, 4, seed=1).requires_grad_()
    multiplied, bmm = [], torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: (multiplied.append(a.shape), bmm(a, b))[1])
    gpu_convolutions.product(rows, weight).square().sum().backward()
    found, rows.grad, weight.grad = (rows.grad, weight.grad), None, None
    (rows @ weight.T).square().sum().backward()
    assert multiplied == [(4, 3, 12)]
    torch.testing.assert_close(found, (rows.grad, weight.grad))


NETWORKS = [("basic", True, 4), ("basic", True, 2), ("basic", False, 4), ("bottleneck", False, 4), ("bottleneck", True, 8)]


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[tuple[ResNet3D, ResNet3D, Tensor]]:
    """A thin network, its plain twin in float64, and volumes."""
    block, factorised, depth = request.param
    monkeypatch.setattr(resnet3d, "WIDTHS", (16, 16, 32, 32))
    torch.manual_seed(0)
    ours, plain = ResNet3D(block, (1, 1, 1, 1), factorised, 3), ResNet3D(block, (1, 1, 1, 1), factorised, 3, plain=True)
    with torch.no_grad():
        for name, number in ours.named_parameters():
            if "bn" in name:
                number.add_(torch.randn_like(number) * 0.2)
        for name, number in ours.named_buffers():
            if "running" in name:
                number.add_(torch.rand_like(number))
    plain.load_state_dict(ours.state_dict())
    yield ours, plain.double(), random(3, 1, depth, 40, 36)


@pytest.mark.parametrize("pair", NETWORKS, indirect=True)
def test_the_network_agrees_with_a_plain_one_in_use_and_in_training(pair: tuple[ResNet3D, ResNet3D, Tensor]) -> None:
    ours, plain, x = pair
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(x).double(), plain.eval()(x.double()), rtol=0, atol=1e-4)
    direction = random(3, 3, seed=5)
    found, expected = ours.train()(x), plain.train()(x.double())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)
    found.backward(direction)
    expected.backward(direction.double())
    right = dict(plain.named_parameters())
    for name, number in ours.named_parameters():
        # A gradient may be zero, as that of a bias which the next batch norm takes out again.
        off = (number.grad.double() - right[name].grad).norm() / right[name].grad.norm().clamp_min(1e-2)
        assert number.grad.shape == number.shape and off < 2e-3, (name, off)
    buffers = dict(plain.named_buffers())
    for name, number in ours.named_buffers():
        torch.testing.assert_close(number.double(), buffers[name].double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("block", "factorised"), [("basic", True), ("basic", False), ("bottleneck", False)])
def test_no_activation_and_no_gradient_is_copied_into_another_memory_order(
    block: str, factorised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each convolution and each pass finds its input in an order in which it works, as what is before it wrote it so."""
    monkeypatch.setattr(resnet3d, "WIDTHS", (32, 32, 32, 32))
    torch.manual_seed(0)
    network = ResNet3D(block, (2, 1, 1, 1), factorised, 3).train()
    seen = []

    def watched(conv: Conv3d, x: Tensor, outputs: int | None = None) -> Tensor:
        wanted = conv.order_for(x.shape[2])
        seen.append(wanted is None or x.permute(wanted).is_contiguous())
        return right(conv, x, outputs)

    def taken(gradient: Tensor) -> Tensor:
        seen.append(gradient.stride(4) == 1)
        return gradient.contiguous() if gradient.stride(4) != 1 else gradient

    right = Conv3d.forward
    monkeypatch.setattr(Conv3d, "forward", watched)
    monkeypatch.setattr(passes, "rows", taken)
    network(random(2, 1, 4, 40, 36)).sum().backward()
    convolutions = sum(isinstance(module, Conv3d) for module in network.modules())
    # The volumes themselves, and the gradient of the average at the end, which comes back first, are small and have no such order.
    assert len(seen) == 2 * convolutions and all(seen[1:convolutions]) and all(seen[convolutions + 1 :])


def test_middle_channels_are_whole_vectors_and_parameters_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    made, right = [], gpu_stand_in.moments
    monkeypatch.setattr(gpu_stand_in, "moments", lambda x: (made.append(x.shape[4]), right(x))[1])
    network = ResNet3D("basic", (1, 1, 1, 1), True, 3).train()
    network(random(2, 1, 4, 32, 32))
    assert isinstance(network.get_submodule("conv1_s"), nn.Conv3d) and network.get_parameter("conv1_s.weight").shape[0] == 110
    # Middle widths of Tran et al. 2018 are 110, 144, 230, 288, 460, 576, 921 and 1152; those after the pooling pool themselves.
    assert [channels for channels in made if channels not in (64, 128, 256, 512)] == [112, 144, 144, 240, 288, 464, 576, 928, 1152]
