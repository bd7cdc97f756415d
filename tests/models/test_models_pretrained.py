"""Public weights are loaded into the right layers, and what does not fit is named."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ctcovid.base.errors import InputError, ModelRefusedError
from ctcovid.models import registry
from ctcovid.models.pretrained import _convolutions_of_norms, load_pretrained


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
        "layer2.0.downsample.0.weight (no such tensor in the network)",
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


def test_weights_of_a_trained_run_are_taken_by_its_folder(network: nn.Module, tmp_path: Path) -> None:
    save_file(weights("r3d18", 3), tmp_path / "model.safetensors")
    assert load_pretrained(network, tmp_path).loaded == 87


def test_safetensors_are_known_by_what_is_in_them(network: nn.Module, tmp_path: Path) -> None:
    save_file(weights("r3d18", 3), tmp_path / "weights.bin")
    torch.save(weights("r3d18", 3), tmp_path / "weights.safetensors")
    for name in ("weights.bin", "weights.safetensors"):
        assert load_pretrained(network, tmp_path / name).loaded == 87


@pytest.mark.parametrize("prefix", ["model.", "backbone.", "net.", "model.encoder.module."])
def test_any_prefix_before_all_names_is_cut_off(network: nn.Module, tmp_path: Path, prefix: str) -> None:
    given = weights("r3d18", 3)
    state = {f"{prefix}{name}": tensor for name, tensor in given.items()} | {"criterion.weight": torch.ones(3)}
    torch.save({"state_dict": state}, tmp_path / "lightning.ckpt")
    match = load_pretrained(network, tmp_path / "lightning.ckpt")
    assert (match.prefix, match.loaded, match.unused) == (prefix, 87, ["criterion.weight (no such tensor in the network)"])
    assert torch.equal(network.layer4[1].conv2.weight, given["layer4.1.conv2.weight"])


def test_how_much_was_loaded_is_reported(network: nn.Module, tmp_path: Path) -> None:
    given = weights("r3d18", 400)
    torch.save(given, tmp_path / "whole.pth")
    match = load_pretrained(network, tmp_path / "whole.pth")
    assert match.share == pytest.approx(1 - 3 * 513 / 33_031_619) and match.warning() == ""
    assert match.sentence().startswith("85 of 87 tensors loaded, 100% of the parameters (3D-ResNets-PyTorch layout)")
    assert match.record() == {"layout": "3D-ResNets-PyTorch", "loaded": 85, "wanted": 87, "share": match.share}
    few = {name: tensor for name, tensor in given.items() if name.startswith(("conv1", "bn1", "layer1"))}
    torch.save(few, tmp_path / "few.pth")
    assert "only 25 of 87 tensors (2% of the parameters)" in load_pretrained(network, tmp_path / "few.pth").warning()


@pytest.mark.parametrize(("arch", "source"), [("r3d34", "r3d50"), ("r3d50", "r3d34"), ("tv_r3d_18", "tv_mc3_18")])
def test_weights_of_another_architecture_give_a_warning(arch: str, source: str, tmp_path: Path) -> None:
    torch.save(weights(source, 400), tmp_path / "other.pth")
    assert "another architecture?" in load_pretrained(registry.create(arch), tmp_path / "other.pth").warning()


def test_a_batch_norm_is_not_used_without_its_convolution(tmp_path: Path) -> None:
    network, given = registry.create("tv_r3d_18"), weights("tv_mc3_18", 400)
    for name, tensor in given.items():
        if name.endswith("running_mean"):
            tensor.fill_(1)
    torch.save(given, tmp_path / "mc3.pth")
    match = load_pretrained(network, tmp_path / "mc3.pth")
    own = network.state_dict()
    # From its second layer on, the mixed network has kernels without depth.
    assert "layer2.0.conv1.1.running_mean (its convolution did not fit)" in match.unused
    assert {name for name in own if name.endswith("running_mean") and own[name].any()} == {
        "stem.1.running_mean",
        *(f"layer1.{block}.conv{conv}.1.running_mean" for block in (0, 1) for conv in (1, 2)),
        *(f"layer{layer}.0.downsample.1.running_mean" for layer in (2, 3, 4)),
    }


@pytest.mark.parametrize("name", ["r3d18", "r3d50", "r2plus1d18", "r2plus1d50", "tv_r3d_18", "tv_mc3_18", "tv_r2plus1d_18", "tv_s3d"])
def test_the_convolution_of_a_batch_norm_is_the_one_whose_output_it_gets(name: str) -> None:
    with torch.device("meta"), torch.inference_mode():
        network = registry.create(name, plain=True).eval()
        made: dict[int, tuple[str, Tensor]] = {}
        expected: dict[str, str] = {}

        def follow(path: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if isinstance(layer, nn.Conv3d):
                # Kept, so that no later tensor takes its identity.
                made[id(output)] = (f"{path}.weight", output)
            elif isinstance(layer, nn.BatchNorm3d):
                expected[path] = made[id(inputs[0])][0]

        for path, layer in network.named_modules():
            layer.register_forward_hook(partial(follow, path))
        network(torch.empty(1, 3, 16, 224, 224))
    assert expected and _convolutions_of_norms(network) == expected


def test_names_are_those_of_the_file_where_ours_differ(tmp_path: Path) -> None:
    given = weights("tv_r2plus1d_18", 400)
    torch.save(given, tmp_path / "kinetics.pth")
    match = load_pretrained(registry.create("r2plus1d18"), tmp_path / "kinetics.pth")
    assert {name.partition(" ")[0] for name in match.unused} < set(given)
    torch.save(weights("tv_r3d_18", 400), tmp_path / "r3d.pth")
    match = load_pretrained(registry.create("r3d18"), tmp_path / "r3d.pth")
    assert match.adapted == ["stem.0.weight (3 taps in depth set in the middle of 7)"]


def test_tensors_that_are_not_weights_are_not_loaded(network: nn.Module, tmp_path: Path) -> None:
    given: dict[object, Tensor] = {**weights("r3d18", 3), 7: torch.ones(3)}
    odd = {
        "layer1.0.conv1.weight": (given["layer1.0.conv1.weight"].to_sparse(), "not dense"),
        "layer1.0.conv2.weight": (given["layer1.0.conv2.weight"].to("meta"), "without values"),
        "layer1.1.conv1.weight": (given["layer1.1.conv1.weight"].to(torch.complex64), "complex64"),
        "layer1.1.conv2.weight": (given["layer1.1.conv2.weight"].to(torch.int64), "int64"),
    }
    given["layer2.0.conv1.weight"] = given["layer2.0.conv1.weight"].half()
    torch.save(given | {name: tensor for name, (tensor, _) in odd.items()}, tmp_path / "odd.pth")
    match = load_pretrained(network, tmp_path / "odd.pth")
    assert match.unused[:4] == [f"{name} ({reason})" for name, (_, reason) in odd.items()]
    assert set(odd) < set(match.fresh) and "layer2.0.conv1.weight" not in match.fresh
    assert network.bn1.num_batches_tracked.dtype == torch.int64


@pytest.mark.parametrize("path", ["", "x" * 300, "absent.pth", "folder"])
def test_a_path_without_weights_is_said_in_one_sentence(
    network: nn.Module, tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="is a folder without" if path in ("", "folder") else "No file|too long"):
        load_pretrained(network, Path(path))


def test_what_holds_no_fitting_weights_is_refused_in_words(network: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing is downloaded"):
        load_pretrained(network, tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("no weights")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"state_dict": {"other.weight": torch.zeros(3)}}, tmp_path / "other.pth")
    torch.save({}, tmp_path / "empty.pth")
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7, 7, dtype=torch.int64)}, tmp_path / "integers.pth")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    (tmp_path / "header.pth").write_bytes(b"\xff\0\0\0\0\0\0\0{")
    refused = {
        "text": "cannot be read as weights: it is not a PyTorch checkpoint",
        "list": "not hold a state dict",
        "other": r"No convolution.*'other.weight' \(3,\)",
        "empty": "not hold named tensors",
        "integers": "No convolution",
        "module": "Python code of type torch.nn.modules.linear.Linear, which is never run",
        "header": "damaged safetensors",
    }
    for name, words in refused.items():
        with pytest.raises(ModelRefusedError, match=words):
            load_pretrained(network, tmp_path / f"{name}.pth")


@pytest.mark.parametrize(("name", "value"), [("layer1.0.conv1.weight", float("nan")), ("layer3.0.bn1.running_var", -1.0)])
def test_values_that_no_training_leaves_are_refused_by_name(network: nn.Module, tmp_path: Path, name: str, value: float) -> None:
    broken = weights("r3d18", 3)
    broken[name].view(-1)[0] = value
    torch.save(broken, tmp_path / "broken.pth")
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    with pytest.raises(ModelRefusedError, match=re.escape(name)):
        load_pretrained(network, tmp_path / "broken.pth")
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
