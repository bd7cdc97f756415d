"""Feature maps and gradients of any layer, taken without leaving a trace."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ctcovid.base.errors import UsageError
from ctcovid.explanation.activations import Activations, find_layer
from ctcovid.models import registry
from ctcovid.models.network import Network

CLASSES = ["NCP", "CP", "Normal"]
TARGETS = torch.tensor([2, 0])


def trained(name: str) -> Network:
    """A network as the registry gives it for a trained model."""
    torch.manual_seed(0)
    network = registry.build(name, CLASSES, "cpu", "float32")
    network.module.requires_grad_(False)
    return network


@pytest.fixture(scope="module")
def r3d18() -> Network:
    return trained("r3d18")


@pytest.fixture(scope="module")
def swin() -> Network:
    return trained("tv_swin3d_t")


@pytest.fixture(scope="module")
def scaled() -> Tensor:
    return torch.rand(2, 1, 4, 64, 64, generator=torch.Generator().manual_seed(0))


def taken(activations: Activations, scaled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, maps, and the gradient of each volume's own target."""
    logits, maps, gradients = activations.maps_and_gradients(scaled, TARGETS.tolist())
    return logits, maps, gradients[range(len(TARGETS)), range(len(TARGETS))]


def from_below_and_above(below: Callable[[Tensor], Tensor], above: Callable[[Tensor], Tensor], scaled: Tensor) -> tuple[Tensor, ...]:
    """The same by taking the network apart at the layer."""
    with torch.no_grad():
        maps = below(scaled.expand(-1, 3, -1, -1, -1))
    maps.requires_grad_()
    logits = above(maps.clone())
    (gradients,) = torch.autograd.grad(logits[0, TARGETS[0]] + logits[1, TARGETS[1]], maps)
    return logits.detach(), maps.detach(), gradients


def require_close(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * other.abs().max().item())


def test_a_middle_layer_gives_its_maps_and_the_gradient_of_the_class_score(r3d18: Network, scaled: Tensor) -> None:
    m = r3d18.module
    with Activations(r3d18, "layer3") as activations:
        found = taken(activations, scaled)
    stem = nn.Sequential(m.conv1, m.bn1, m.relu, m.maxpool, m.layer1, m.layer2, m.layer3)
    head = nn.Sequential(m.layer4, m.avgpool, nn.Flatten(), m.fc)
    assert found[1].shape == (2, 256, 1, 4, 4)
    require_close(found, from_below_and_above(stem, head, scaled))


def test_a_convolution_before_an_in_place_relu_gives_what_it_gave(r3d18: Network, scaled: Tensor) -> None:
    """Batch norm's output is overwritten by the ReLU behind it; the maps must be those before."""
    m = r3d18.module
    with Activations(r3d18, "bn1") as activations:
        found = taken(activations, scaled)
    stem = nn.Sequential(m.conv1, m.bn1)
    head = nn.Sequential(m.relu, m.maxpool, m.layer1, m.layer2, m.layer3, m.layer4, m.avgpool, nn.Flatten(), m.fc)
    assert found[1].min() < 0
    require_close(found, from_below_and_above(stem, head, scaled))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        ("conv1", (64, 4, 32, 32)),
        ("layer1", (64, 2, 16, 16)),
        ("layer2.0", (128, 1, 8, 8)),
        ("layer3.1.bn2", (256, 1, 4, 4)),
        ("layer4.1.conv2", (512, 1, 2, 2)),
        ("layer4", (512, 1, 2, 2)),
    ],
)
def test_any_layer_can_be_named(r3d18: Network, scaled: Tensor, layer: str, shape: tuple[int, ...]) -> None:
    with Activations(r3d18, layer) as activations:
        logits, maps, gradients = taken(activations, scaled)
    assert maps.shape == gradients.shape == (2, *shape)
    assert gradients.abs().sum() > 0
    torch.testing.assert_close(logits, r3d18.forward(scaled), rtol=0, atol=1e-6)


def test_the_gradient_of_the_last_layer_is_the_heads_weights_over_the_size_of_the_map(r3d18: Network, scaled: Tensor) -> None:
    """The head is average pooling and one linear layer, so no backward pass is needed to know it; autograd says the same."""
    with Activations(r3d18, "layer4") as activations:
        found = taken(activations, scaled)
    m = r3d18.module
    expected = m.fc.weight[TARGETS][:, :, None, None, None] / found[1][0, 0].numel()
    torch.testing.assert_close(found[2], expected.expand_as(found[2]), rtol=1e-6, atol=0)
    stem = nn.Sequential(m.conv1, m.bn1, m.relu, m.maxpool, m.layer1, m.layer2, m.layer3, m.layer4)
    require_close(found, from_below_and_above(stem, nn.Sequential(m.avgpool, nn.Flatten(), m.fc), scaled))


@pytest.mark.parametrize(("layer", "backward_passes"), [("layer4", 0), ("layer3", 2)])
def test_the_last_layer_needs_no_backward_pass_and_others_end_at_the_layer(
    r3d18: Network, scaled: Tensor, layer: str, backward_passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    real = torch.autograd.grad

    def watched(outputs: Tensor, inputs: Tensor, **how: bool) -> tuple[Tensor, ...]:
        assert inputs.is_leaf
        asked.append(inputs.shape)
        return real(outputs, inputs, **how)

    monkeypatch.setattr(torch.autograd, "grad", watched)
    with Activations(r3d18, layer) as activations:
        taken(activations, scaled)
    assert len(asked) == backward_passes


def test_a_head_that_is_not_linear_is_differentiated(scaled: Tensor) -> None:
    """S3D ends in a convolution behind a pooling with overlapping windows."""
    network = trained("tv_s3d")
    wide = torch.rand(2, 1, 16, 224, 224, generator=torch.Generator().manual_seed(0))
    with Activations(network, network.architecture.last_layer) as activations:
        assert activations.head is None
        _, maps, gradients = taken(activations, wide)
    assert gradients.shape == maps.shape and gradients.abs().sum() > 0


def test_maps_of_a_transformer_have_their_channels_in_front(swin: Network, scaled: Tensor) -> None:
    with Activations(swin, swin.architecture.last_layer) as activations:
        _, maps, gradients = taken(activations, scaled)
    assert maps.shape == (2, 768, 2, 2, 2)
    torch.testing.assert_close(maps.mean(1), torch.zeros(2, 2, 2, 2), rtol=0, atol=1e-5)
    expected = swin.module.head.weight[TARGETS][:, :, None, None, None] / 8
    torch.testing.assert_close(gradients, expected.expand_as(gradients), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("layer", "shape"), [("features.0", (96, 2, 16, 16)), ("patch_embed", (96, 2, 16, 16)), ("patch_embed.proj", (96, 2, 16, 16))]
)
def test_earlier_layers_of_a_transformer_too(swin: Network, scaled: Tensor, layer: str, shape: tuple[int, ...]) -> None:
    with Activations(swin, layer) as activations:
        _, maps, gradients = taken(activations, scaled)
    assert maps.shape == gradients.shape == (2, *shape)


@pytest.mark.parametrize(("typed", "meant"), [("layr3", "layer3"), ("layer4.1.conv3", "layer4.1.conv2"), ("Layer4", "layer4")])
def test_an_unknown_layer_is_a_usage_error_that_names_the_nearest(r3d18: Network, typed: str, meant: str) -> None:
    for ask in (lambda: find_layer(r3d18.module, typed), lambda: Activations(r3d18, typed)):
        with pytest.raises(UsageError, match=f"'{typed}'.*'{meant}'"):
            ask()


def test_the_stages_are_listed_where_nothing_is_near(r3d18: Network) -> None:
    for typed in ("", "zzzzzz"):
        with pytest.raises(UsageError, match="layer1, layer2, layer3, layer4"):
            find_layer(r3d18.module, typed)


@pytest.mark.parametrize("layer", ["fc", "swin head"])
def test_a_layer_without_feature_maps_is_a_usage_error(r3d18: Network, swin: Network, scaled: Tensor, layer: str) -> None:
    network, name = (r3d18, "fc") if layer == "fc" else (swin, "head")
    with pytest.raises(UsageError, match=f"--layer {name}"), Activations(network, name) as activations:
        taken(activations, scaled)
    assert hooks(network) == 0


def hooks(network: Network) -> int:
    return sum(len(module._forward_hooks) + len(module._backward_hooks) for module in network.module.modules())


def test_hooks_are_removed_whatever_happens(r3d18: Network, scaled: Tensor) -> None:
    with Activations(r3d18, "layer4") as activations:
        assert hooks(r3d18) == 1
        taken(activations, scaled)
    assert hooks(r3d18) == 0

    class OddError(Exception):
        pass

    with pytest.raises(OddError), Activations(r3d18, "layer4"):
        raise OddError
    assert hooks(r3d18) == 0


def test_the_network_is_as_it_was(r3d18: Network, scaled: Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in r3d18.module.state_dict().items()}
    answer = r3d18.forward(scaled)
    with Activations(r3d18, "layer3") as activations:
        taken(activations, scaled)
    assert all(torch.equal(tensor, before[name]) for name, tensor in r3d18.module.state_dict().items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in r3d18.module.parameters())
    assert not any(module.training for module in r3d18.module.modules())
    assert torch.equal(r3d18.forward(scaled), answer)


def test_no_gradient_flows_to_weights_that_are_being_trained(scaled: Tensor) -> None:
    network = registry.build("tv_mc3_18", CLASSES, "cpu", "float32")
    with Activations(network, "layer2") as activations:
        _, maps, gradients = taken(activations, scaled)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.module.parameters())
    assert not maps.requires_grad
    assert not gradients.requires_grad


def test_it_works_where_gradients_are_off(r3d18: Network, scaled: Tensor) -> None:
    with torch.no_grad(), Activations(r3d18, "layer4") as activations:
        _, _, gradients = taken(activations, scaled)
    assert gradients.abs().sum() > 0
