"""Frozen layers stay as they were, to the bit."""

from __future__ import annotations

import pytest
import torch

from ctcovid.base.errors import UsageError
from ctcovid.base.process_info import ProcessInfo
from ctcovid.distributed.ranks import Ranks
from ctcovid.models import registry
from ctcovid.training.checkpoint import TrainingState
from ctcovid.training.freeze import freeze, learn
from ctcovid.training.recipe import Recipe
from ctcovid.training.step import Stepper
from ctcovid.volumes.batches import Batch


def _learning(arch: str, layer: str) -> list[str]:
    with torch.device("meta"):
        module = registry.create(arch)
    freeze(module, layer)
    return [name for name, parameter in module.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize(
    ("arch", "layer", "first"),
    [
        ("r3d18", "stem", "layer1.0.conv1.weight"),
        ("r3d50", "layer3", "layer4.0.conv1.weight"),
        ("r2plus1d18", "stem", "layer1.0.conv1_s.weight"),
        ("r3d18", "layer4.0", "layer4.1.conv1.weight"),
        ("r3d18", "layer4", "fc.weight"),
        ("tv_r3d_18", "stem", "layer1.0.conv1.0.weight"),
        ("tv_s3d", "features", "classifier.1.weight"),
        ("tv_swin3d_t", "patch_embed", "features.0.0.norm1.weight"),
    ],
)
def test_all_up_to_the_layer_is_frozen_and_all_behind_it_learns(arch: str, layer: str, first: str) -> None:
    with torch.device("meta"):
        names = [name for name, _ in registry.create(arch).named_parameters()]
    assert _learning(arch, layer) == names[names.index(first) :]


def test_a_layer_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UsageError, match=r"layer5.*stem, layer1, layer2, layer3, layer4"):
        _learning("r3d18", "layer5")
    with pytest.raises(UsageError, match="nothing to learn"):
        _learning("r3d18", "fc")
    with pytest.raises(UsageError, match="features"):
        _learning("tv_s3d", "stem")


@pytest.mark.parametrize("arch", ["r3d18", "r2plus1d18"])
def test_frozen_weights_and_running_statistics_keep_their_bits_and_the_others_move(arch: str) -> None:
    torch.manual_seed(0)
    network = registry.build(arch, ["a", "b", "c"], "cpu", "float32")
    freeze(network.module, "layer2")
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    recipe = Recipe(batch=4)
    stepper = Stepper(TrainingState(network, recipe.optimiser(network.module)), recipe, Ranks(ProcessInfo()))
    volumes = torch.randint(0, 256, (4, 4, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    for _ in range(2):
        learn(network.module)
        stepper.make(Batch(volumes, torch.arange(4) % 3, torch.arange(4)), range(4))
    for name, tensor in network.module.state_dict().items():
        moved = not torch.equal(tensor, before[name])
        assert moved == name.startswith(("layer3", "layer4", "fc")), name
