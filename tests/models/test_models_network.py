"""A network gives a volume the same answer whatever comes with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ctcovid.base.errors import ModelRefusedError
from ctcovid.models import network as network_module
from ctcovid.models import registry
from ctcovid.models.architectures import architecture
from ctcovid.models.network import Network

CLASSES = ["NCP", "CP", "Normal"]
DEPTH, SIZE = 4, 32


def volumes(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, DEPTH, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=["r3d18-float32", "r2plus1d18-float32", "r2plus1d18-bfloat16"])
def network(request: pytest.FixtureRequest) -> Network:
    """Real networks, their last layer ten times stronger, so that the probabilities are far from all alike."""
    name, precision = request.param.split("-")
    torch.manual_seed(0)
    built = registry.build(name, CLASSES, "cpu", "float32" if precision == "float32" else "auto")
    if str(built.precision) != f"torch.{precision}":
        pytest.skip(f"{name} computes in {built.precision} here")
    with torch.no_grad():
        built.module.fc.weight.mul_(10)
    return built


@pytest.fixture
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two volumes are one pass."""
    monkeypatch.setitem(network_module.VOLUMES_AT_ONCE, "cpu", 2)


def test_nan_is_never_reported_as_a_class() -> None:
    built = registry.build("tv_mc3_18", CLASSES, "cpu", "float32")
    with torch.no_grad():
        built.module.fc.bias[1] = float("nan")
    with pytest.raises(ModelRefusedError, match="NaN or Inf"):
        built.probabilities(volumes(2))


@pytest.mark.usefixtures("few_at_once")
def test_probabilities_of_a_volume_do_not_depend_on_the_other_volumes(network: Network) -> None:
    together = volumes(3)
    expected = network.probabilities(together)
    alone = np.concatenate([network.probabilities(volume[None]) for volume in together])
    backwards = network.probabilities(together.flip(0))[::-1]
    among_others = network.probabilities(torch.cat([volumes(2, seed=1), together]))[2:]
    assert np.array_equal(alone, expected)
    assert np.array_equal(backwards, expected)
    assert np.array_equal(among_others, expected)
    assert expected.std(0).min() > 1e-4


def test_in_inference_the_module_does_not_mix_the_volumes_of_a_batch(network: Network) -> None:
    together = volumes(3)
    with torch.inference_mode():
        expected = network.logits(together)
        alone = torch.cat([network.logits(volume[None]) for volume in together])
    tolerance = 1e-6 if network.precision == torch.float32 else 1e-2
    torch.testing.assert_close(alone, expected, rtol=0, atol=tolerance * max(1.0, expected.abs().max().item()))


@pytest.mark.usefixtures("few_at_once")
def test_probabilities_are_the_softmax_of_the_logits(network: Network) -> None:
    """Li et al. 2021, Sec. 2.3."""
    some = volumes(2)
    with torch.inference_mode():
        logits = network.logits(some).double().numpy()
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = network.probabilities(some)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-14)


@pytest.mark.usefixtures("few_at_once")
def test_probabilities_take_arrays_and_leave_no_trace(network: Network) -> None:
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    some = volumes(3).numpy()
    network.module.train()
    found = network.probabilities(some)
    assert not network.module.training
    assert np.array_equal(found, network.probabilities(torch.from_numpy(some)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.module.state_dict().items())


class Recorder(nn.Module):
    """Keeps what reaches the network."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x)
        return torch.stack([x.mean((1, 2, 3, 4)), 1 - x.mean((1, 2, 3, 4))], 1)


@pytest.fixture
def recorder() -> Network:
    return Network(Recorder(), architecture("r3d18"), ["bright", "dark"], torch.device("cpu"), torch.float32)


def test_pixels_enter_on_a_scale_from_black_zero_to_white_one(recorder: Network) -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 4, 8, 8)
    scaled = recorder.scale(pixels)
    assert scaled.shape == (1, 1, 4, 8, 8)
    assert scaled.dtype == torch.float32
    assert torch.equal(scaled.flatten(), torch.arange(256) / 255)


@pytest.mark.usefixtures("few_at_once")
def test_every_pass_has_the_same_number_of_volumes(recorder: Network) -> None:
    found = recorder.probabilities(volumes(5))
    assert {tuple(x.shape) for x in recorder.module.seen} == {(2, 1, DEPTH, SIZE, SIZE)}
    means = volumes(5).double().mean((1, 2, 3)).numpy() / 255
    np.testing.assert_allclose(found[:, 0], 1 / (1 + np.exp(1 - 2 * means)), rtol=1e-6)


def test_no_volumes_give_no_probabilities(recorder: Network) -> None:
    assert recorder.probabilities(volumes(0)).shape == (0, 2)
