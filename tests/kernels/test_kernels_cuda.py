"""On a GPU: the passes are torch's operations, and folded networks the plain ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctcovid.kernels import passes
from ctcovid.kernels.fusednorm import norm_relu, norm_relu_pool
from ctcovid.models import registry
from ctcovid.models.architectures import ARCHITECTURES

pytestmark = pytest.mark.cuda

CLASSES = ["NCP", "CP", "Normal"]
TYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(autouse=True)
def _exact() -> None:
    """float32 is float32."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30))


@pytest.mark.parametrize("dtype", TYPES)
def test_the_passes_are_in_use(device: torch.device, dtype: torch.dtype) -> None:
    """Triton is installed, its kernels compile, and what they give is what torch gives."""
    assert passes.usable(torch.zeros(2, 8, 2, 4, 4, device=device, dtype=dtype))


@pytest.mark.parametrize("shape", [(2, 64, 4, 24, 20), (3, 110, 5, 13, 11), (1, 7, 1, 3, 9), (2, 230, 2, 8, 8)])
@pytest.mark.parametrize("dtype", TYPES)
def test_passes_give_what_torch_gives_in_float64(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    channels, tolerance = shape[1], 1e-4 if dtype == torch.float32 else 3e-2
    start = torch.randn(shape, generator=generator).to(dtype)
    residual = torch.randn(shape, generator=generator).to(dtype)
    weight, bias = torch.randn(channels, generator=generator), torch.randn(channels, generator=generator)
    norm = nn.BatchNorm3d(channels).to(device)
    with torch.no_grad():
        norm.weight.copy_(weight)
        norm.bias.copy_(bias)
    for pooled in (False, True):
        x = start.to(device, memory_format=torch.channels_last_3d).requires_grad_()
        r = residual.to(device, memory_format=torch.channels_last_3d).requires_grad_()
        wide_x, wide_r = (leaf.detach().double().cpu().requires_grad_() for leaf in (x, r))
        wide = F.batch_norm(wide_x, None, None, weight.double(), bias.double(), True, 0.1, norm.eps)
        if pooled:
            y, expected = norm_relu_pool(x, norm, nn.MaxPool3d(3, 2, 1)), F.max_pool3d(wide.relu(), 3, 2, 1)
        else:
            y, expected = norm_relu(x, norm, residual=r).values, (wide + wide_r).relu()
        assert apart(y.cpu(), expected) < tolerance
        sent = torch.randn(y.shape, generator=generator)
        y.backward(sent.to(device, dtype))
        expected.backward(sent.double())
        assert x.grad is not None and wide_x.grad is not None
        # Of two equal values in bfloat16 another one may be the largest; and a ReLU may flip.
        assert apart(x.grad.cpu(), wide_x.grad) < (1e-3 if dtype == torch.float32 else 0.15)


def outcome(module: nn.Module, precision: torch.dtype, volumes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits in use; loss and all gradients of a training step."""
    scaled = (volumes.unsqueeze(1).float() / 255).contiguous(memory_format=torch.channels_last_3d)
    labels = torch.arange(len(volumes), device=volumes.device) % 3
    module.zero_grad(set_to_none=True)
    with torch.autocast(volumes.device.type, precision, enabled=precision != torch.float32):
        with torch.no_grad():
            logits = module.eval()(scaled).float()
        loss = F.cross_entropy(module.train()(scaled).float(), labels)
    loss.backward()
    return logits, loss.detach(), torch.cat([p.grad.flatten().float() for p in module.parameters() if p.grad is not None])


@pytest.mark.parametrize("arch", [name for name in ARCHITECTURES if not name.startswith("tv_")])
def test_folded_networks_are_the_plain_ones(arch: str, device: torch.device) -> None:
    """In float32 to its rounding; in bfloat16 as close to float32 as the plain network in bfloat16 is."""
    torch.manual_seed(0)
    volumes = torch.randint(0, 256, (4, 4, 64, 64), dtype=torch.uint8).to(device)
    plain = registry.create(arch, len(CLASSES), plain=True).to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    folded = registry.build(arch, CLASSES, str(device), "float32").module

    def run(module: nn.Module, precision: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        module.load_state_dict(before)
        return outcome(module, precision, volumes)

    expected = run(plain, torch.float32)
    exact = [apart(one, other) for one, other in zip(run(folded, torch.float32), expected, strict=True)]
    assert exact[0] < 1e-3 and exact[1] < 1e-3 and exact[2] < 3e-2, exact
    usual = [apart(one, other) for one, other in zip(run(plain, torch.bfloat16), expected, strict=True)]
    ours = [apart(one, other) for one, other in zip(run(folded, torch.bfloat16), expected, strict=True)]
    for one, other in zip(ours, usual, strict=True):
        assert one < 2 * other + 2e-2, (ours, usual)
