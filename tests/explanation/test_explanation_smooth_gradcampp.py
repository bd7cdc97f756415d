"""Smooth Grad-CAM++ against a slow one written from the formulas, and on networks whose attention is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ctcovid.commands.explain import telling_slices
from ctcovid.explanation.activations import Activations
from ctcovid.explanation.smooth_gradcampp import smooth_gradcampp
from ctcovid.explanation.upsample import to_slices
from ctcovid.models import registry
from ctcovid.models.catalog import architecture
from ctcovid.models.network import Network


class Small(nn.Module):
    """Three layers whose parts can be called one by one. layer3 has maps of both signs, layer4 a linear head behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer3 = nn.Conv3d(1, 5, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.layer4 = nn.Sequential(nn.Conv3d(5, 6, 3, stride=2, padding=1), nn.ReLU())
        self.fc = nn.Linear(6, 3)

    def below(self, layer: str, x: Tensor) -> Tensor:
        x = self.layer3(x)
        return x if layer == "layer3" else self.layer4(torch.relu(x))

    def above(self, layer: str, maps: Tensor) -> Tensor:
        if layer == "layer3":
            maps = self.layer4(torch.relu(maps))
        return self.fc(maps.mean((2, 3, 4)))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer4(self.relu(self.layer3(x))).mean((2, 3, 4)))


def small_network() -> Network:
    torch.manual_seed(4)
    return placed(Small())


def placed(module: nn.Module) -> Network:
    return Network(module.requires_grad_(False), architecture("r3d18"), ["NCP", "CP", "Normal"], torch.device("cpu"), torch.float32)


def some_volumes(count: int = 3, size: int = 8) -> Tensor:
    """Volumes of unlike ranges of grey."""
    volumes = torch.rand(count, 1, 4, size, size, generator=torch.Generator().manual_seed(1))
    return volumes * torch.linspace(0.3, 1, count)[:, None, None, None, None]


def saliency(
    network: Network, layer: str, scaled: Tensor, targets: list[int], samples: int = 1, noise: float = 0.0, seed: int = 0
) -> np.ndarray:
    with Activations(network, layer) as activations:
        return smooth_gradcampp(activations, scaled, torch.tensor(targets), samples, noise, seed).numpy()


def slowly(module: Small, layer: str, volume: Tensor, target: int, samples: int, noise: float, seed: int) -> np.ndarray:
    """Omeiza et al. 2019, Eqs. (9) to (11), for one volume (1, D, H, W), one copy and one voxel of the map after the other."""
    generator = torch.Generator().manual_seed(seed)
    spread = noise * float(volume.max() - volume.min())
    maps, gradients = [], []
    for _ in range(samples):
        copy = volume + spread * torch.randn(volume.shape, generator=generator)
        feature_maps = module.below(layer, copy[None]).detach().requires_grad_()
        module.above(layer, feature_maps)[0, target].backward()
        maps.append(feature_maps.detach()[0].double().numpy())
        gradients.append(feature_maps.grad[0].double().numpy())
    channels = len(maps[0])
    weights = np.zeros(channels)
    for k in range(channels):
        total = sum(fmap[k].sum() for fmap in maps) / samples
        for voxel in np.ndindex(*maps[0].shape[1:]):
            first = sum(gradient[k][voxel] for gradient in gradients) / samples
            second = sum(gradient[k][voxel] ** 2 for gradient in gradients) / samples
            third = sum(gradient[k][voxel] ** 3 for gradient in gradients) / samples
            denominator = 2 * second + total * third
            alpha = second / denominator if denominator != 0 else 0.0
            weights[k] += alpha * max(first, 0.0)
    return sum(np.maximum(np.tensordot(weights, fmap, 1), 0) for fmap in maps) / samples


@pytest.mark.parametrize("layer", ["layer3", "layer4"])
@pytest.mark.parametrize(("samples", "noise"), [(1, 0.0), (1, 0.2), (4, 0.2), (3, 1.0)])
def test_it_equals_the_formulas_written_out(layer: str, samples: int, noise: float) -> None:
    network, scaled, targets = small_network(), some_volumes(), [0, 1, 2]
    found = saliency(network, layer, scaled, targets, samples, noise, seed=5)
    for number, target in enumerate(targets):
        expected = slowly(network.module, layer, scaled[number], target, samples, noise, 5)
        assert expected.max() > 0
        np.testing.assert_allclose(found[number], expected, rtol=0, atol=2e-5 * expected.max())


@pytest.mark.parametrize("layer", ["layer3", "layer4"])
def test_without_noise_it_is_gradcampp(layer: str) -> None:
    """Chattopadhyay et al. 2018, Eq. (19) and the ReLU of the weighted sum; more copies of the same change nothing."""
    network, scaled = small_network(), some_volumes(1)
    maps = network.module.below(layer, scaled).detach().requires_grad_()
    (g,) = torch.autograd.grad(network.module.above(layer, maps)[0, 1], maps)
    a, g = maps.detach().double().numpy()[0], g.double().numpy()[0]
    denominator = 2 * g**2 + a.sum((1, 2, 3), keepdims=True) * g**3
    alpha = np.divide(g**2, denominator, out=np.zeros_like(g), where=denominator != 0)
    weights = (alpha * np.maximum(g, 0)).sum((1, 2, 3))
    expected = np.maximum(np.einsum("k,kdhw->dhw", weights, a), 0)
    for samples in (1, 3):
        np.testing.assert_allclose(saliency(network, layer, scaled, [1], samples)[0], expected, rtol=0, atol=1e-5 * expected.max())


def test_the_same_seed_gives_the_same_maps_and_another_one_others() -> None:
    network, scaled = small_network(), some_volumes()
    first, second, other = (saliency(network, "layer4", scaled, [0, 0, 0], 2, 0.3, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, second)
    assert not np.allclose(first, other)


def test_maps_are_never_negative_and_about_the_class_that_was_asked_for() -> None:
    network, scaled = small_network(), some_volumes()
    found = [saliency(network, "layer3", scaled, [target] * 3, 2, 0.1) for target in range(3)]
    assert all((maps >= 0).all() for maps in found)
    assert not np.allclose(found[0], found[1])


def test_noise_is_a_share_of_each_volumes_own_range() -> None:
    """A volume without contrast gets none."""
    network = small_network()
    flat = torch.full((1, 1, 4, 8, 8), 0.6)
    assert np.array_equal(saliency(network, "layer4", flat, [0], 3, 0.5), saliency(network, "layer4", flat, [0], 3, 0.0))


@pytest.mark.parametrize("name", ["r3d18", "r2plus1d18"])
def test_maps_of_a_volume_do_not_depend_on_what_else_is_in_the_batch(name: str) -> None:
    torch.manual_seed(0)
    network = registry.place(name, ["NCP", "CP", "Normal"], "cpu", "float32")
    network.module.requires_grad_(False)
    scaled, targets = some_volumes(3, size=64), [0, 1, 2]
    # Behind layer3 a mean of several gradients can cancel almost to nothing in a denominator, where the last bit becomes a visible one.
    for layer, shape, samples in (("layer4", (3, 1, 2, 2), 3), ("layer3", (3, 1, 4, 4), 1)):
        together = saliency(network, layer, scaled, targets, samples, 0.1)
        assert together.shape == shape
        assert together.max() > 0
        alone = np.concatenate([saliency(network, layer, scaled[i : i + 1], targets[i : i + 1], samples, 0.1) for i in range(3)])
        backwards = saliency(network, layer, scaled.flip(0), targets[::-1], samples, 0.1)[::-1]
        for other in (alone, backwards):
            np.testing.assert_allclose(other, together, rtol=0, atol=1e-5 * together.max())


class Seeker(nn.Module):
    """Class 0 is how much bright there is, class 1 how much dark: two 1x1x1 filters, thresholded, and a head that keeps them apart."""

    def __init__(self) -> None:
        super().__init__()
        self.layer4 = nn.Sequential(nn.AvgPool3d((1, 4, 4)), nn.Conv3d(1, 2, 1), nn.ReLU())
        self.fc = nn.Linear(2, 3)
        with torch.no_grad():
            self.layer4[1].weight.copy_(torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1, 1))
            self.layer4[1].bias.copy_(torch.tensor([-0.7, 0.3]))
            self.fc.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
            self.fc.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer4(x).mean((2, 3, 4)))


QUADRANTS = {
    "upper left": (slice(0, 16), slice(0, 16)),
    "upper right": (slice(0, 16), slice(16, 32)),
    "lower left": (slice(16, 32), slice(0, 16)),
    "lower right": (slice(16, 32), slice(16, 32)),
}


@pytest.mark.parametrize("where", QUADRANTS)
@pytest.mark.parametrize(("target", "level"), [(0, 1.0), (1, 0.0)])
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_the_map_lies_where_the_class_is_and_nowhere_else(where: str, target: int, level: float, noise: float) -> None:
    """From the volume to the map at the resolution of the slices: half grey everywhere, and the finding in one corner of slice 2."""
    volume = torch.full((1, 1, 4, 32, 32), 0.5)
    rows, columns = QUADRANTS[where]
    volume[0, 0, 2, rows, columns] = level
    network = placed(Seeker())
    native = saliency(network, "layer4", volume, [target], 5, noise)
    maps = to_slices(native, 4, 32)[0]
    assert maps.shape == (4, 32, 32)
    inside = np.zeros_like(maps, dtype=bool)
    inside[2, rows, columns] = True
    assert maps[inside].sum() > 0.8 * maps.sum() > 0
    assert maps[2].sum() == pytest.approx(maps.sum(), rel=1e-3)
    assert telling_slices(maps, 1) == [2]
    # The class that is not there has no map.
    assert not saliency(network, "layer4", volume, [1 - target], 5, noise).any()


def test_telling_slices_are_the_strongest_of_equal_stretches() -> None:
    strength = np.array([0.0, 3, 1, 0, 0, 9, 8, 1, 2])
    maps = np.broadcast_to(strength[:, None, None], (9, 2, 2))
    assert telling_slices(maps, 3) == [1, 5, 6]
    assert telling_slices(maps, 1) == [5]
    assert telling_slices(maps[:2], 4) == [0, 1]
