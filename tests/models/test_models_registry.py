"""The registry is the only door to a trained model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ctcovid.base.errors import InputError, ModelRefusedError, UsageError
from ctcovid.models import registry, saved_model
from ctcovid.models.architectures import ARCHITECTURES
from ctcovid.models.network import SCALING, Network
from ctcovid.models.registry import require_fit
from ctcovid.scans.window import Window

# The smallest network that takes thin volumes.
ARCHITECTURE = "tv_mc3_18"
CLASSES = ["NCP", "CP", "Normal"]
CARD = {
    "architecture": ARCHITECTURE,
    "classes": CLASSES,
    "positive": "NCP",
    "depth": 4,
    "size": 32,
    "scaling": SCALING,
    "data": {"path": "volumes.h5"},
}


def volumes() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 4, 32, 32), dtype=np.uint8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Network]:
    """A run directory, and the network that was saved in it."""
    torch.manual_seed(0)
    network = registry.build(ARCHITECTURE, CLASSES, "cpu", "float32")
    folder = tmp_path_factory.mktemp("trained") / "runs" / "mc3-d4"
    folder.mkdir(parents=True)
    saved_model.save_weights(folder / saved_model.WEIGHTS, network.module)
    saved_model.save_card(folder, CARD)
    return folder, network


def with_card(folder: Path, trained: Path, **changes: Any) -> Path:
    """A run with the weights of `trained` and a card of its own."""
    folder.mkdir(parents=True)
    (folder / saved_model.WEIGHTS).symlink_to(trained / saved_model.WEIGHTS)
    card = {**json.loads((trained / saved_model.CARD).read_text()), **changes}
    (folder / saved_model.CARD).write_text(json.dumps(card))
    return folder


def finished_run(runs: Path, name: str, hour: int) -> Path:
    """A run directory with a card of that hour, and weights that nobody reads here."""
    folder = runs / name
    folder.mkdir(parents=True)
    (folder / saved_model.WEIGHTS).write_bytes(b"")
    saved_model.save_card(folder, {**CARD, "created": f"2021-07-23T{hour:02d}:00:00+00:00"})
    os.utime(folder / saved_model.CARD, (1_627_000_000 + 3600 * hour,) * 2)
    return folder


def test_a_trained_model_comes_back_exactly(trained: tuple[Path, Network]) -> None:
    folder, original = trained
    model = registry.load(str(folder), "cpu", "float32")
    assert (model.name, model.classes, model.depth, model.size) == ("mc3-d4", CLASSES, 4, 32)
    assert np.array_equal(model.network.probabilities(volumes()), original.probabilities(volumes()))
    expected = original.module.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.network.module.state_dict().items())


def test_a_model_is_loaded_once_in_a_process(trained: tuple[Path, Network], monkeypatch: pytest.MonkeyPatch) -> None:
    """By name, by path, by the path of one of its files, or as the newest one."""
    folder, _ = trained
    first = registry.load(folder.name, "cpu", "float32", folder.parent)
    assert registry.load(str(folder), "cpu", "float32") is first
    assert registry.load(str(folder / saved_model.WEIGHTS), "cpu", "float32") is first
    assert registry.load(None, "cpu", "float32", folder.parent) is first
    monkeypatch.chdir(folder.parent.parent)
    assert registry.load("runs/mc3-d4", "cpu", "float32") is first
    assert registry.load("mc3-d4", "cpu", "float32") is first


def test_the_same_device_by_another_word_is_the_same_device(trained: tuple[Path, Network], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    folder, _ = trained
    assert registry.load(str(folder), "auto", "auto") is registry.load(str(folder), "cpu", "float32")


def test_a_model_that_was_trained_again_is_loaded_again(trained: tuple[Path, Network], tmp_path: Path) -> None:
    folder = with_card(tmp_path / "again", trained[0])
    first = registry.load(str(folder), "cpu", "float32")
    torch.manual_seed(1)
    network = registry.build(ARCHITECTURE, CLASSES, "cpu", "float32")
    (folder / saved_model.WEIGHTS).unlink()
    saved_model.save_weights(folder / saved_model.WEIGHTS, network.module)
    saved_model.save_card(folder, CARD)
    second = registry.load(str(folder), "cpu", "float32")
    assert second is not first
    assert torch.equal(second.network.module.state_dict()["fc.weight"], network.module.state_dict()["fc.weight"])


def test_weights_for_another_number_of_classes_are_refused(trained: tuple[Path, Network], tmp_path: Path) -> None:
    folder = with_card(tmp_path / "two", trained[0], classes=["NCP", "Normal"])
    with pytest.raises(ModelRefusedError, match="2 classes") as caught:
        registry.load(str(folder), "cpu")
    assert str(folder / saved_model.WEIGHTS) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": "r3d19"}, "r3d19"),
        ({"scaling": {"offset": 0.0, "scale": 1.0}}, "scaling"),
        ({"format_version": 99}, "newer"),
        ({"window": [-600, 0]}, "window"),
        ({"window": "lung"}, "window"),
    ],
)
def test_a_card_that_this_program_cannot_honour_is_refused(
    trained: tuple[Path, Network], tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    folder = with_card(tmp_path / "odd", trained[0], **change)
    with pytest.raises(ModelRefusedError, match=said) as caught:
        registry.load(str(folder), "cpu")
    assert str(folder / saved_model.CARD) in str(caught.value)


def test_a_model_from_before_there_was_a_choice_of_windows_has_the_lung_window(trained: tuple[Path, Network], tmp_path: Path) -> None:
    assert registry.load(str(trained[0]), "cpu", "float32").window == Window(-600, 1500)
    chosen = with_card(tmp_path / "chosen", trained[0], window=[40, 400])
    assert registry.load(str(chosen), "cpu", "float32").window == Window(40, 400)


def test_without_a_name_the_newest_finished_run_is_taken(tmp_path: Path) -> None:
    names = {"b-middle": 2, "z-oldest": 1, "a-newest": 3}
    folders = {name: finished_run(tmp_path, name, hour) for name, hour in names.items()}
    (tmp_path / "unfinished").mkdir()
    assert registry.find(None, tmp_path) == folders["a-newest"]
    assert [folder.name for folder in registry.finished_runs(tmp_path)] == ["z-oldest", "b-middle", "a-newest"]


def test_a_name_under_runs_goes_before_a_folder_of_that_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    inside = finished_run(Path("runs"), "model", 1)
    outside = finished_run(Path(), "model", 2)
    assert registry.find("model", Path("runs")) == inside
    assert registry.find("./model", Path("elsewhere")) == outside


def test_models_that_lie_elsewhere_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a demo, and where the folder of runs, or the one above it, is given in place of a run."""
    monkeypatch.chdir(tmp_path)
    made = finished_run(Path("ctcovid-demo/runs"), "r3d18-d4-b16", 1)
    with pytest.raises(InputError, match="Those in ctcovid-demo/runs/ are used with --runs ctcovid-demo/runs"):
        registry.find(None, Path("runs"))
    for folder in ("ctcovid-demo", "ctcovid-demo/runs"):
        with pytest.raises(ModelRefusedError, match=f"{folder} is not a trained model, but holds 1 model. Name one: {made}"):
            registry.find(folder, Path("runs"))


@pytest.mark.parametrize("typed", ["r3d18-d4-b23", "r3d18-d4", "R3D18-D4-B32"])
def test_an_unknown_name_gets_the_nearest_one(tmp_path: Path, typed: str) -> None:
    finished_run(tmp_path, "r3d18-d4-b32", 1)
    finished_run(tmp_path, "swin-first-try", 2)
    with pytest.raises(InputError, match=f"'{typed}'.*'r3d18-d4-b32'"):
        registry.find(typed, tmp_path)


def test_without_a_trained_model_the_message_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ctcovid train"):
        registry.find(None, tmp_path / "runs")


def test_an_unfinished_run_is_not_taken_by_name_either(tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    with pytest.raises(ModelRefusedError, match="unfinished"):
        registry.load("half", "cpu", runs=tmp_path)


def test_a_file_in_place_of_a_run_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(ModelRefusedError, match=r"weights\.pth.*run directory"):
        registry.find(str(tmp_path / "weights.pth"), tmp_path)


def test_a_run_with_a_damaged_card_is_described_by_its_error(tmp_path: Path) -> None:
    """So that one of them does not keep `ctcovid models` from listing the others."""
    good, bad = finished_run(tmp_path, "good", 1), finished_run(tmp_path, "bad", 2)
    (bad / saved_model.CARD).write_text("{")
    assert registry.describe(good)["architecture"] == ARCHITECTURE
    assert str(bad / saved_model.CARD) in registry.describe(bad)["error"]


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "tv_s3d"])
def test_every_architecture_takes_the_papers_volumes(name: str) -> None:
    require_fit(name, depth=4, size=512)


def test_an_architecture_that_needs_thicker_volumes_says_so() -> None:
    require_fit("tv_s3d", depth=16, size=224)
    for depth, size, pixels in ((4, 224, ""), (4, 32, " with slices of 224 pixels"), (16, 32, " with slices of 224 pixels")):
        with pytest.raises(UsageError, match=f"{depth}×{size}×{size} volumes are too small for tv_s3d. --depth 16{pixels} is enough"):
            require_fit("tv_s3d", depth, size)


def test_an_architecture_that_cannot_be_trained_on_one_volume_at_a_time_says_so() -> None:
    require_fit("r3d18", depth=4, size=32, volumes=2)
    require_fit("r3d18", depth=4, size=64, volumes=1)
    require_fit("tv_swin3d_t", depth=4, size=32, volumes=1)
    with pytest.raises(UsageError, match=r"one 4×32×32 volume at a time.*--batch, --micro-batch"):
        require_fit("r3d18", depth=4, size=32, volumes=1)
