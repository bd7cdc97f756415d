"""The catalogue says of every architecture what it is."""

from __future__ import annotations

import pytest
import torch

from ctcovid.base.errors import UsageError
from ctcovid.models import registry
from ctcovid.models.architectures import ARCHITECTURES, DEFAULT, architecture
from ctcovid.models.torchvision import import_torchvision

# 3D-ResNets-PyTorch with conv1_t_size=7, conv1_t_stride=1, max pool, 3 channels, 3 classes, shortcut A or B as the paper has it.
PUBLISHED = {
    "r3d18": 33_031_619,
    "r3d34": 63_341_251,
    "r3d50": 46_205_123,
    "r3d101": 85_251_267,
    "r3d152": 117_409_987,
    "r3d200": 126_609_603,
    "r2plus1d18": 33_043_679,
    "r2plus1d34": 63_370_015,
    "r2plus1d50": 46_221_929,
}
TORCHVISION = [name for name in ARCHITECTURES if name.startswith("tv_")]
# Numbers that enter the linear head of torchvision's models.
HEAD_INPUTS = {"tv_s3d": 1024, "tv_swin3d_t": 768, "tv_swin3d_s": 768, "tv_swin3d_b": 1024}


def count(name: str, classes: int = 3) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in registry.create(name, classes).parameters())


def test_the_default_is_the_papers_best() -> None:
    assert DEFAULT == "r3d18"
    assert DEFAULT in ARCHITECTURES


def test_all_networks_that_users_know_by_name_are_there() -> None:
    torchvision = {f"tv_{name}" for name in ("r3d_18", "mc3_18", "r2plus1d_18", "s3d", "swin3d_t", "swin3d_s", "swin3d_b")}
    assert set(ARCHITECTURES) == set(PUBLISHED) | torchvision
    assert all(name == row.name for name, row in ARCHITECTURES.items())


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_those_of_3d_resnets_pytorch(name: str) -> None:
    assert count(name) == PUBLISHED[name] == architecture(name).parameters


@pytest.mark.parametrize("name", TORCHVISION)
def test_parameter_counts_are_those_that_torchvision_publishes(name: str) -> None:
    """torchvision publishes them for the 400 classes of Kinetics."""
    import_torchvision()
    from torchvision.models import get_model_weights

    published = get_model_weights(name.removeprefix("tv_")).DEFAULT.meta["num_params"]
    fewer = (400 - 3) * (HEAD_INPUTS.get(name, 512) + 1)
    assert count(name) == published - fewer == architecture(name).parameters


@pytest.mark.parametrize("name", ["r3d18", "r3d50", "tv_mc3_18", "tv_swin3d_t"])
def test_the_number_of_classes_changes_only_the_last_layer(name: str) -> None:
    features = {"r3d50": 2048, "tv_swin3d_t": 768}.get(name, 512)
    assert count(name, 5) - count(name, 2) == 3 * (features + 1)


@pytest.mark.parametrize(
    ("typed", "meant"), [("r3d_18", "r3d18"), ("R3D18", "r3d18"), ("r2plus1d-18", "r2plus1d18"), ("tv_swin_t", "tv_swin3d_t")]
)
def test_an_unknown_architecture_is_a_usage_error_that_names_the_nearest(typed: str, meant: str) -> None:
    for door in (architecture, registry.create):
        with pytest.raises(UsageError, match=f"'{typed}'.*'{meant}'") as caught:
            door(typed)
        assert caught.value.exit_code == 2


def test_a_word_near_to_nothing_gets_no_wild_guess() -> None:
    with pytest.raises(UsageError) as caught:
        architecture("zzzzzzzzzzzz")
    assert "Did you mean" not in str(caught.value)


def test_the_last_layer_of_each_architecture_is_one_of_its_modules() -> None:
    for name in ("r3d18", "r2plus1d50", "tv_r3d_18", "tv_s3d", "tv_swin3d_t"):
        with torch.device("meta"):
            assert architecture(name).last_layer in dict(registry.create(name).named_modules())
