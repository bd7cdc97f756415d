"""ctcovid train with what goes beyond the paper's recipe: exact resumption, and which weights become the model."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.utils.class_weight import compute_class_weight

from ctcovid.base.console import Console
from ctcovid.base.errors import ModelRefusedError, StoppedError, UsageError
from ctcovid.commands import prepare, train
from ctcovid.models import resnet3d
from ctcovid.models.registry import load
from ctcovid.training import augment, resume, scalars, step
from ctcovid.training.recipe import Recipe
from ctcovid.training.step import Stepper
from ctcovid.volumes.reader import VolumesFile

EVERYTHING: dict[str, Any] = {
    "augment": True,
    "class_balance": "sampler",
    "label_smoothing": 0.1,
    "weight_decay": 0.01,
    "schedule": "cosine",
    "warmup": 0.5,
    "ema": 0.9,
    "patience": 5,
    "clip_gradient": 1.0,
}


@pytest.fixture(autouse=True, scope="module")
def narrow() -> Iterator[None]:
    """Networks of few channels, which take a step in milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resnet3d, "WIDTHS", (8, 8, 16, 16))
        yield


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared file of 32×32 slices; classes differ in brightness, and in size."""
    root = tmp_path_factory.mktemp("data")
    for position, (label, patients) in enumerate((("NCP", 7), ("CP", 5), ("Normal", 4))):
        for number in range(patients):
            folder = root / label / str(100 * position + number) / "1"
            folder.mkdir(parents=True)
            generator = np.random.default_rng([position, number])
            for index in range(8):
                pixels = np.clip(generator.normal(60 + 60 * position, 20, (32, 32)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    file = root / "volumes.h5"
    prepare.run(prepare.Options(root, depth=4, size=32, output=file, workers=1), Console(quiet=True, results=False))
    return file


def _train(volumes: Path, runs: Path, **settings: Any) -> train.Summary:
    plain = {"epochs": 3, "batch": 4, "name": "run", "workers": 1, "device": "cpu"}
    return train.run(train.Options(data=volumes, runs=runs, **{**plain, **settings}), Console(quiet=True, results=False))


@pytest.fixture(scope="module")
def undisturbed(volumes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _train(volumes, tmp_path_factory.mktemp("undisturbed"), **EVERYTHING).folder


def _assert_same(run: Path, other: Path) -> None:
    assert (run / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()
    weights, expected = load_file(run / "model.safetensors"), load_file(other / "model.safetensors")
    assert weights.keys() == expected.keys()
    assert all(weights[name].equal(expected[name]) for name in expected)
    last, expected_last = (torch.load(folder / "last.pt", weights_only=True) for folder in (run, other))
    for key in ("model", "ema"):
        tensors, wanted = ((content[key] or {}).get("tensors", content[key]) for content in (last, expected_last))
        assert all(tensors[name].equal(wanted[name]) for name in wanted)


class _KilledError(Exception):
    """Ends a training where it stands, with nothing saved, as SIGKILL does."""


def _interrupted(volumes: Path, runs: Path, monkeypatch: pytest.MonkeyPatch, step: int, kill: bool, **settings: Any) -> None:
    """Train until a signal comes, or the end, in step number `step`."""
    made = [0]
    make_step = Stepper.make

    def counting(*arguments: Any) -> Any:
        made[0] += 1
        if made[0] == step:
            if kill:
                raise _KilledError
            os.kill(os.getpid(), signal.SIGTERM)
        return make_step(*arguments)

    with monkeypatch.context() as patch, pytest.raises(_KilledError if kill else StoppedError):
        patch.setattr(Stepper, "make", counting)
        _train(volumes, runs, **settings)


@pytest.mark.parametrize(("step", "kill"), [(1, False), (7, False), (8, True), (12, False)])
def test_with_everything_on_a_stopped_and_resumed_run_equals_an_undisturbed_one(
    volumes: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, kill: bool
) -> None:
    _interrupted(volumes, tmp_path, monkeypatch, step, kill, **EVERYTHING)
    # A second stop, in what the first has left.
    _interrupted(volumes, tmp_path, monkeypatch, 2, False, resume=True, **EVERYTHING)
    _train(volumes, tmp_path, resume=True, **EVERYTHING)
    _assert_same(tmp_path / "run", undisturbed)


def test_a_checkpoint_of_a_version_that_called_it_balance_resumes(volumes: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / undisturbed.name
    shutil.copytree(undisturbed, run)
    content = torch.load(run / "last.pt", weights_only=True)
    content["settings"]["balance"] = content["settings"].pop("class_balance")
    torch.save(content, run / "last.pt")
    with pytest.raises(UsageError, match="--class-balance was sampler and is weights"):
        _train(volumes, tmp_path, **{**EVERYTHING, "class_balance": "weights"}, name=run.name, resume=True)
    assert _train(volumes, tmp_path, **EVERYTHING, name=run.name, resume=True).folder == run


def test_the_model_records_its_recipe(undisturbed: Path) -> None:
    recipe = json.loads((undisturbed / "model.json").read_text())["recipe"]
    assert {name: recipe[name] for name in EVERYTHING} == EVERYTHING


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("augment", False),
        ("class_balance", "weights"),
        ("label_smoothing", 0.0),
        ("weight_decay", 0.1),
        ("schedule", "step"),
        ("warmup", 1.0),
        ("ema", 0.99),
        ("clip_gradient", 2.0),
        ("freeze", "stem"),
        ("epochs", 4),
    ],
)
def test_a_run_is_not_resumed_as_another_training(volumes: Path, undisturbed: Path, setting: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"--{setting.replace('_', '-')} was"):
        _train(volumes, undisturbed.parent, resume=True, **{**EVERYTHING, setting: value})


def test_every_setting_of_a_recipe_is_recorded() -> None:
    """How long to train, and in what pieces, may change when a run is resumed; the paper's decay is no option."""
    free = {"epochs", "patience", "micro_batch", "decay", "decay_every"}
    assert set(Recipe.__dataclass_fields__) - set(resume.IDENTITY) == free


def test_the_average_is_what_is_validated_and_registered(volumes: Path, tmp_path: Path) -> None:
    plain = _train(volumes, tmp_path, name="plain", epochs=1)
    summary = _train(volumes, tmp_path, name="average", epochs=1, ema=0.9)
    model, last = (load_file(summary.folder / "model.safetensors"), torch.load(summary.folder / "last.pt", weights_only=True))
    assert all(torch.equal(model[name], tensor) for name, tensor in last["ema"]["tensors"].items())
    assert not torch.equal(model["fc.weight"], last["model"]["fc.weight"])
    # The network itself learns as it does without an average.
    assert all(torch.equal(tensor, last["model"][name]) for name, tensor in load_file(plain.folder / "model.safetensors").items())
    assert (summary.history[0].train_loss, plain.history[0].train_loss) == (plain.history[0].train_loss,) * 2
    assert summary.history[0].valid_loss != plain.history[0].valid_loss


def test_only_training_volumes_are_augmented_and_each_of_them_once_an_epoch(
    volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    draw = augment.draw
    monkeypatch.setattr(augment, "draw", lambda seed, indices: seen.extend(indices) or draw(seed, indices))
    summary = _train(volumes, tmp_path, epochs=2, augment=True)
    count = len(set(seen))
    assert sorted(seen) == sorted(2 * list(range(count)))
    assert len(summary.history) == 2


def test_weights_of_the_classes_are_those_of_the_training_volumes(volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[torch.Tensor] = []
    summed_loss = step.summed_loss
    monkeypatch.setattr(step, "summed_loss", lambda *given: used.append(given[3]) or summed_loss(*given))
    _train(volumes, tmp_path, epochs=1, class_balance="weights")
    file = VolumesFile(volumes)
    labels = [file.classes.index(volume.scan.label) for volume in file.volumes("train", 4)]
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert len(set(expected)) > 1 and used
    assert all(weights.numpy() == pytest.approx(expected, rel=1e-6) for weights in used)


def test_training_ends_early_where_nothing_gets_better(volumes: Path, tmp_path: Path) -> None:
    # At this rate the first epoch is as good as the last.
    stuck = {"learning_rate": 1e-12, "epochs": 9, "patience": 2, "ema": 0.0}
    summary = _train(volumes, tmp_path, **stuck)
    assert summary.kept is not None
    assert len(summary.history) == summary.kept.epoch + 2 < 9
    before = (summary.folder / "last.pt").stat().st_mtime_ns
    assert len(_train(volumes, tmp_path, resume=True, **stuck).history) == len(summary.history)
    assert (summary.folder / "last.pt").stat().st_mtime_ns == before
    assert load("run", runs=tmp_path).card["kept"]["epoch"] == summary.kept.epoch


def test_weights_are_taken_as_they_are_with_no_epochs(volumes: Path, undisturbed: Path, tmp_path: Path) -> None:
    given = undisturbed / "model.safetensors"
    summary = _train(volumes, tmp_path, epochs=0, pretrained=given)
    assert summary.kept is None and summary.history == []
    assert summary.document()["kept"] is None
    model, expected = load("run", runs=tmp_path), load_file(given)
    found = {name: tensor for name, tensor in model.network.module.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert model.card["pretrained"]["path"] == str(given.resolve())
    # And such a model can be trained on.
    assert len(_train(volumes, tmp_path, epochs=1, resume=True).history) == 1


def test_no_model_is_made_of_random_values(volumes: Path, undisturbed: Path, tmp_path: Path) -> None:
    other = {name: tensor for name, tensor in load_file(undisturbed / "model.safetensors").items() if not name.startswith("fc.")}
    torch.save(other, tmp_path / "headless.pt")
    with pytest.raises(ModelRefusedError, match=r"fc\.weight"):
        _train(volumes, tmp_path / "runs", epochs=0, pretrained=tmp_path / "headless.pt")
    with pytest.raises(UsageError, match="--pretrained"):
        _train(volumes, tmp_path / "runs", epochs=0)
    with pytest.raises(UsageError, match="--pretrained"):
        _train(volumes, tmp_path / "runs", freeze="layer1")
    assert not (tmp_path / "runs").exists()


def test_frozen_layers_are_those_of_the_pretrained_file(volumes: Path, undisturbed: Path, tmp_path: Path) -> None:
    given = load_file(undisturbed / "model.safetensors")
    summary = _train(volumes, tmp_path, epochs=1, pretrained=undisturbed / "model.safetensors", freeze="layer2", ema=0.5, weight_decay=0.1)
    for name, tensor in load_file(summary.folder / "model.safetensors").items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, given[name]) != name.startswith(("layer3", "layer4", "fc")), name


def test_tensorboard_has_each_epoch_once_however_the_run_ended(
    volumes: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="TensorBoard is an extra")
    wanted = {**EVERYTHING, "tensorboard": True}
    _interrupted(volumes, tmp_path, monkeypatch, 12, True, **wanted)
    assert list((tmp_path / "run" / scalars.FOLDER).iterdir())
    summary = _train(volumes, tmp_path, resume=True, **wanted)
    events = accumulator.EventAccumulator(str(summary.folder / scalars.FOLDER), purge_orphaned_data=False).Reload()
    for name in ("loss/train", "loss/valid", "accuracy/train", "accuracy/valid", "learning_rate"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        column = {"learning_rate": name}.get(name, "_".join(reversed(name.split("/"))))
        assert found == [(row.epoch, pytest.approx(getattr(row, column), rel=1e-6)) for row in summary.history]
    _assert_same(summary.folder, undisturbed)


def test_without_tensorboard_the_option_says_what_to_install(volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match=r"ctcovid\[tensorboard\]"):
        _train(volumes, tmp_path / "runs", tensorboard=True)
    assert not (tmp_path / "runs").exists()


def test_patience_without_anything_to_wait_for_is_refused(volumes: Path, tmp_path: Path) -> None:
    copy = tmp_path / "volumes.h5"
    shutil.copy(volumes, copy)
    import h5py

    with h5py.File(copy, "r+") as file:
        parts = file["scans/split"]
        parts[...] = ["train" if part == b"valid" else part for part in parts[...]]
    with pytest.raises(UsageError, match="--patience"):
        _train(copy, tmp_path / "runs", patience=3)
