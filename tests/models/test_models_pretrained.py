"""Public weights arrive where they belong, and what does not fit is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ctcovid.base.errors import InputError, ModelRefusedError
from ctcovid.models import registry
from ctcovid.models.pretrained import load_pretrained


def weights(name: str, classes: int, seed: int = 1) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {key: tensor.clone() for key, tensor in registry.create(name, classes=classes).state_dict().items()}


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return registry.create("r3d18")


@pytest.mark.parametrize("classes", [400, 700])
def test_3d_resnets_pytorch_with_its_prefix_and_its_classes(network: nn.Module, classes: int, tmp_path: Path) -> None:
    given = weights("r3d18", classes)
    fresh = network.fc.weight.clone()
    state = {f"module.{key}": tensor for key, tensor in given.items()}
    # Its public weights project in the shortcuts, which the paper's networks do not.
    state["module.layer2.0.downsample.0.weight"] = torch.zeros(128, 64, 1, 1, 1)
    torch.save({"epoch": 200, "arch": "resnet-18", "state_dict": state, "optimizer": {"lr": 0.1}}, tmp_path / "r3d18_K.pth")
    match = load_pretrained(network, tmp_path / "r3d18_K.pth")
    assert match.layout == "3D-ResNets-PyTorch"
    assert match.unused == [
        f"fc.weight ({classes} classes)",
        f"fc.bias ({classes} classes)",
        "layer2.0.downsample.0.weight (no such part)",
    ]
    assert match.fresh == ["fc.weight", "fc.bias"]
    for key, tensor in network.state_dict().items():
        if "num_batches" not in key and not key.startswith("fc."):
            assert torch.equal(tensor, given[key]), key
    assert torch.equal(network.fc.weight, fresh)
    assert f"{classes} classes" in match.sentence()


def test_medicalnets_one_channel_is_spread_over_three_equal_ones(network: nn.Module, tmp_path: Path) -> None:
    given = {key: tensor for key, tensor in weights("r3d18", 3).items() if not key.startswith("fc.")}
    given["conv1.weight"] = torch.randn(64, 1, 7, 7, 7)
    torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in given.items()}}, tmp_path / "resnet_18.pth")
    match = load_pretrained(network, tmp_path / "resnet_18.pth")
    assert match.layout == "MedicalNet"
    assert match.adapted == ["conv1.weight (one input channel spread over three)"]
    x = torch.rand(1, 1, 4, 32, 32)
    expected = nn.functional.conv3d(x, given["conv1.weight"], stride=(1, 2, 2), padding=3)
    torch.testing.assert_close(network.conv1(x), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("arch", "source"), [("r3d18", "tv_r3d_18"), ("r2plus1d18", "tv_r2plus1d_18")])
def test_torchvisions_blocks_carry_over_and_its_stem_is_the_middle_of_ours(arch: str, source: str, tmp_path: Path) -> None:
    network, given = registry.create(arch), weights(source, 400)
    torch.save(given, tmp_path / "kinetics.pth")
    match = load_pretrained(network, tmp_path / "kinetics.pth")
    own = network.state_dict()
    assert match.layout == "torchvision"
    if arch == "r3d18":
        assert torch.equal(own["conv1.weight"][:, :, 2:5], given["stem.0.weight"])
        assert not own["conv1.weight"][:, :, :2].any() and not own["conv1.weight"][:, :, 5:].any()
        assert torch.equal(own["layer3.1.conv2.weight"], given["layer3.1.conv2.0.weight"])
        assert torch.equal(own["layer3.1.bn2.running_var"], given["layer3.1.conv2.1.running_var"])
    else:
        assert torch.equal(own["layer1.1.conv2_s.weight"], given["layer1.1.conv2.0.0.weight"])
        assert torch.equal(own["layer1.1.bn2_s.bias"], given["layer1.1.conv2.0.1.bias"])
        assert torch.equal(own["layer1.1.conv2_t.weight"], given["layer1.1.conv2.0.3.weight"])
        assert torch.equal(own["layer1.1.bn2_t.bias"], given["layer1.1.conv2.1.bias"])
    assert any("downsample" in name for name in match.unused)


def test_torchvisions_weights_fit_torchvisions_own_network_as_they_are(tmp_path: Path) -> None:
    network, given = registry.create("tv_mc3_18"), weights("tv_mc3_18", 400)
    torch.save(given, tmp_path / "mc3.pth")
    match = load_pretrained(network, tmp_path / "mc3.pth")
    assert match.fresh == ["fc.weight", "fc.bias"]
    assert torch.equal(network.state_dict()["layer4.1.conv2.0.weight"], given["layer4.1.conv2.0.weight"])


def test_weights_of_an_own_run_with_as_many_classes_load_whole(network: nn.Module, tmp_path: Path) -> None:
    given = weights("r3d18", 3)
    save_file(given, tmp_path / "model.safetensors")
    match = load_pretrained(network, tmp_path / "model.safetensors")
    assert (match.unused, match.fresh, match.adapted) == ([], [], [])
    assert torch.equal(network.fc.weight, given["fc.weight"])


def test_what_holds_no_fitting_weights_is_refused_in_words(network: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing is downloaded"):
        load_pretrained(network, tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("no weights")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"state_dict": {"other.weight": torch.zeros(3)}}, tmp_path / "other.pth")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    for name, words in (("text", "cannot be read"), ("list", "no state dict"), ("other", "No convolution"), ("module", "never run")):
        with pytest.raises(ModelRefusedError, match=words):
            load_pretrained(network, tmp_path / f"{name}.pth")
    broken = weights("r3d18", 3)
    broken["layer1.0.conv1.weight"][0, 0, 0, 0, 0] = float("nan")
    torch.save(broken, tmp_path / "nan.pth")
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    with pytest.raises(ModelRefusedError, match=r"layer1\.0\.conv1\.weight"):
        load_pretrained(network, tmp_path / "nan.pth")
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
