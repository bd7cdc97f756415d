"""Grad-CAM methods against plain ones written from the formulas, at every layer, and on networks whose attention is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ctcovid.base.choices import SMOOTH
from ctcovid.explanation.activations import Activations
from ctcovid.explanation.cells import cells_of
from ctcovid.explanation.gradcam import Gathered
from ctcovid.explanation.methods import Method, saliency_maps
from ctcovid.explanation.noise import Noise
from ctcovid.explanation.upsample import most_salient_slices, to_slices
from ctcovid.models import registry
from ctcovid.models.architectures import architecture
from ctcovid.models.network import Network

CPU = (["NCP", "CP", "Normal"], torch.device("cpu"), torch.float32)


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
    return built(Small())


def built(module: nn.Module) -> Network:
    return Network(module.requires_grad_(False), architecture("r3d18"), *CPU)


class Double(Network):
    def scale(self, volumes: Tensor) -> Tensor:
        return super().scale(volumes).double()


def some_volumes(count: int = 3, size: int = 8) -> Tensor:
    """Volumes of unlike ranges of grey."""
    volumes = torch.rand(count, 1, 4, size, size, generator=torch.Generator().manual_seed(1))
    return volumes * torch.linspace(0.3, 1, count)[:, None, None, None, None]


def saliency(
    network: Network,
    layer: str,
    scaled: Tensor,
    targets: list[int],
    samples: int = 1,
    noise: float = 0.0,
    seed: int = 0,
    method: str = SMOOTH,
) -> np.ndarray:
    """A map of each volume for its own target; all copies of all volumes in one pass."""
    draws = Noise(tuple(scaled.shape[1:]), samples, noise, seed)
    copies = torch.stack([draws.added(volume, copy) for volume in scaled for copy in range(samples)])
    with Activations(network, layer) as activations:
        _, maps, gradients = activations.maps_and_gradients(copies, [0, 1, 2])
    found = []
    for number, target in enumerate(targets):
        gathered = Gathered()
        for copy in range(number * samples, (number + 1) * samples):
            gathered.add(maps[copy], gradients[copy])
        found.append(gathered.saliency(method)[target].numpy())
    return np.stack(found)


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


def plainly(
    network: Network, layer: str, volume: np.ndarray, target: int, method: str, samples: int, noise: float, seed: int
) -> np.ndarray:
    """Twenty lines of autograd through the whole network, with a hook that keeps the layer's output: one copy after the other."""
    kept: list[Tensor] = []
    handle = network.module.get_submodule(layer).register_forward_hook(lambda m, i, out: kept.append(out) or out.clone())
    x = (torch.from_numpy(volume)[None, None].float() / 255).double()
    generator = torch.Generator().manual_seed(seed)
    maps, g = [], []
    for _ in range(samples):
        draw = torch.randn(x[0].shape, generator=generator) if noise else 0
        copy = (x + noise * (x.max() - x.min()) * draw).requires_grad_()
        score = network.module(copy)[0, target]
        maps.append(kept[-1].detach()[0].double())
        g.append(torch.autograd.grad(score, kept[-1])[0][0].double())
    handle.remove()
    a = torch.stack(maps)
    d1, d2, d3 = (torch.stack([one**power for one in g]).mean(0) for power in (1, 2, 3))
    if method == "gradcam":
        weights = d1.mean((1, 2, 3))
    else:
        below = 2 * d2 + a.mean(0).sum((1, 2, 3), keepdim=True) * d3
        weights = (torch.nan_to_num(d2 / below, 0, 0, 0) * torch.relu(d1)).sum((1, 2, 3))
    return torch.relu(torch.einsum("k,nkdhw->ndhw", weights, a)).mean(0).numpy()


@pytest.fixture(scope="module", params=[False, True], ids=["folded", "plain"])
def whole(request: pytest.FixtureRequest) -> Network:
    """r3d18 in double precision: the last bit of a denominator that nearly vanishes is visible in Grad-CAM++."""
    torch.manual_seed(1)
    module = registry.create("r3d18", plain=request.param).requires_grad_(False).double()
    return Double(module, architecture("r3d18"), *CPU)


@pytest.mark.parametrize("layer", ["conv1", "maxpool", "layer2.0.bn2", "layer3.1", "layer4.0", "layer4"])
def test_it_equals_plain_autograd_at_every_layer_with_and_without_depth_folding(whole: Network, layer: str) -> None:
    volume = np.random.default_rng(0).integers(0, 256, (1, 4, 32, 32), dtype=np.uint8)
    seen = 0.0
    for method, samples, noise in (("smooth-gradcam++", 2, 0.1), ("gradcam", 1, 0.0)):
        found = saliency_maps(whole, volume, Method(method, layer, samples, noise, seed=3), [2, 0])[0]
        for position, target in enumerate([2, 0]):
            expected = plainly(whole, layer, volume[0], target, method, samples, noise, 3)
            np.testing.assert_allclose(found[position], expected, rtol=0, atol=1e-5 * expected.max() + 1e-30)
            seen += expected.max()
    assert seen > 0


@pytest.mark.parametrize("samples", [1, 3, 7])
def test_copies_of_many_volumes_share_passes_and_change_nothing(samples: int) -> None:
    """Whatever the number of copies, of volumes and of those that fit into a pass."""
    network = small_network()
    volumes = np.random.default_rng(0).integers(0, 256, (5, 4, 8, 8), dtype=np.uint8)
    method = Method(SMOOTH, "layer3", samples, noise_std=0.2)
    done: list[int] = []
    together = saliency_maps(network, volumes, method, [1], done.append)
    assert done == [1] * 5
    for number in range(5):
        alone = saliency_maps(network, volumes[number : number + 1], method, [1])
        np.testing.assert_allclose(together[number], alone[0], rtol=0, atol=1e-6 * alone.max())


def test_noise_that_is_too_large_to_keep_is_drawn_again_and_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    volume = torch.rand(1, 4, 8, 8)
    kept, again = (Noise((1, 4, 8, 8), 3, 0.1, 5) for _ in range(2))
    again.keep = False
    for _ in range(2):
        for copy in range(3):
            assert torch.equal(kept.added(volume, copy), again.added(volume, copy))
    assert len(kept.kept) == 3 and not again.kept


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
    network = registry.build(name, ["NCP", "CP", "Normal"], "cpu", "float32")
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
    network = built(Seeker())
    native = saliency(network, "layer4", volume, [target], 5, noise)
    maps = to_slices(native, cells_of(network, (4, 32, 32), native.shape[1:]))[0]
    assert maps.shape == (4, 32, 32)
    inside = np.zeros_like(maps, dtype=bool)
    inside[2, rows, columns] = True
    assert maps[inside].sum() > 0.8 * maps.sum() > 0
    assert maps[2].sum() == pytest.approx(maps.sum(), rel=1e-3)
    assert most_salient_slices(maps, 1) == [2]
    # The class that is not there has no map.
    assert not saliency(network, "layer4", volume, [1 - target], 5, noise).any()


def test_most_salient_slices_are_the_strongest_of_equal_stretches() -> None:
    strength = np.array([0.0, 3, 1, 0, 0, 9, 8, 1, 2])
    maps = np.broadcast_to(strength[:, None, None], (9, 2, 2))
    assert most_salient_slices(maps, 3) == [1, 5, 6]
    assert most_salient_slices(maps, 1) == [5]
    assert most_salient_slices(maps[:2], 4) == [0, 1]
