"""A training that replays graphs is the training that runs everything as it is called, to the bit, with every option."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from replaying import remembering
from small import Breaking
from torch import Tensor, nn

from ctcovid.base.console import Console
from ctcovid.base.errors import StoppedError
from ctcovid.base.process_info import ProcessInfo
from ctcovid.commands import train
from ctcovid.distributed.ranks import Ranks
from ctcovid.explanation.methods import Method, saliency_maps
from ctcovid.models import registry
from ctcovid.models.architectures import architecture
from ctcovid.models.network import Network
from ctcovid.models.reference_features import probabilities_and_features
from ctcovid.training import data
from ctcovid.training.checkpoint import TrainingState
from ctcovid.training.ema import Ema
from ctcovid.training.freeze import freeze, learn
from ctcovid.training.recipe import Recipe
from ctcovid.training.step import Stepper
from ctcovid.volumes.batches import Batch, VolumeSet

CPU = torch.device("cpu")
BATCH, STEPS = 7, 20
EVERYTHING: dict[str, Any] = {
    "augment": True,
    "class_balance": "weights",
    "label_smoothing": 0.1,
    "clip_gradient": 0.5,
    "weight_decay": 0.1,
    "ema": 0.9,
    "warmup": 0.5,
}


class Dropping(Breaking):
    """With random numbers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout3d(0.2)

    def forward(self, x: Tensor) -> Tensor:
        broken = x.amin((1, 2, 3, 4)) >= 1
        y: Tensor = self.fc(self.drop(self.norm(self.conv(x)).relu()).mean((2, 3, 4)))
        return y / torch.where(broken, 0.0, 1.0)[:, None]


def batches() -> Iterator[Batch]:
    """Of which every fifth is smaller, and the seventh has volumes that break the network, unless they are changed."""
    generator = torch.Generator().manual_seed(1)
    for number in range(STEPS):
        count = 4 if number % 5 == 4 else BATCH
        volumes = torch.randint(0, 200, (count, 2, 8, 8), dtype=torch.uint8, generator=generator)
        if number == 6:
            volumes[:] = 255
        yield Batch(volumes, torch.arange(count) % 3, torch.arange(count) + 10 * number)


def trained(options: dict[str, Any], frozen: str = "", new_at: int = -1) -> list[Tensor]:
    """What 20 steps leave: numbers of each step, weights, averages, moments. Step `new_at` is made by another Stepper and network."""
    recipe = Recipe(batch=BATCH, **options)

    def begin() -> Stepper:
        torch.manual_seed(0)
        network = Network(Dropping(), architecture("r3d18"), ["a", "b", "c"], CPU, torch.float32)
        if frozen:
            freeze(network.module, frozen)
        learn(network.module)
        ema = Ema(network.module, recipe.ema) if recipe.ema else None
        return Stepper(TrainingState(network, recipe.optimiser(network.module), ema), recipe, Ranks(ProcessInfo()))

    stepper, found = begin(), []
    for number, batch in enumerate(batches()):
        if number == new_at:
            before, stepper = stepper.state, begin()
            stepper.network.module.load_state_dict(before.network.module.state_dict())
            stepper.state.optimiser.load_state_dict(before.optimiser.state_dict())
            if before.ema is not None and stepper.state.ema is not None:
                stepper.state.ema.load(before.ema.state())
        for group in stepper.state.optimiser.param_groups:
            group["lr"] = recipe.rate(0, number, STEPS)
        torch.manual_seed(recipe.step_seed(0, number))
        weights = torch.tensor([0.5, 1.0, torch.inf if number == 6 else 3.0]) if recipe.class_balance == "weights" else None
        step = stepper.make(batch, batch.indices.tolist(), None, recipe.step_seed(0, number), weights)
        assert bool(step.numbers[3] > 0) == (number == 6)
        found.append(step.numbers.clone())
    state = stepper.state
    found += [tensor.clone() for tensor in state.network.module.state_dict().values()]
    found += [] if state.ema is None else [*state.ema.tensors.values(), state.ema.updates]
    return found + [value.clone() for values in state.optimiser.state.values() for value in values.values()]


@pytest.mark.parametrize("micro_batch", [0, 3])
@pytest.mark.parametrize(("options", "frozen"), [({}, ""), (EVERYTHING, ""), ({"clip_gradient": 0.5}, "norm")])
def test_twenty_replayed_steps_equal_twenty_steps_to_the_bit(
    options: dict[str, Any], frozen: str, micro_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**options, "micro_batch": micro_batch}
    expected = trained(options, frozen)
    recorder = remembering(monkeypatch)
    for new_at, captures in ((-1, 1), (11, 2)):
        recorder.captures = 0
        found = trained(options, frozen, new_at)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one.isnan(), other.isnan()) and torch.equal(one.nan_to_num(), other.nan_to_num())
        # Pieces of seven volumes are of three and of two.
        assert recorder.captures == captures * (2 if micro_batch else 1)


def test_batch_norm_over_all_processes_is_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = remembering(monkeypatch)
    network = Network(Dropping(), architecture("r3d18"), ["a", "b", "c"], CPU, torch.float32)
    recipe = Recipe(batch=BATCH)
    stepper = Stepper(TrainingState(network, recipe.optimiser(network.module)), recipe, Ranks(ProcessInfo()), synchronised=True)
    batch = next(batches())
    stepper.make(batch, batch.indices.tolist())
    assert recorder.captures == 0


def _train(volumes: Path, runs: Path, **options: Any) -> train.Summary:
    asked = {"augment": True, "ema": 0.9, "clip_gradient": 1.0, "label_smoothing": 0.1, "class_balance": "weights", **options}
    return train.run(
        train.Options(data=volumes, epochs=3, batch=4, runs=runs, name="run", workers=1, device="cpu", **asked), Console(quiet=True)
    )


@pytest.mark.usefixtures("thin")
def test_volumes_that_are_kept_in_memory_train_and_validate_like_those_that_are_read(
    volumes_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _train(volumes_file, tmp_path / "read").folder
    monkeypatch.setattr(data, "fastest_memory", lambda *_: ("host", "host"))
    read: list[str] = []
    batches = VolumeSet.batches

    def noted(self: VolumeSet, *arguments: Any, **more: Any) -> Any:
        read.append(self.part)
        return batches(self, *arguments, **more)

    monkeypatch.setattr(VolumeSet, "batches", noted)
    found = _train(volumes_file, tmp_path / "kept").folder
    assert (found / "metrics.csv").read_bytes() == (expected / "metrics.csv").read_bytes()
    # What comes after is for the reference features and the calibration, once.
    assert read == ["train", "valid", "valid", "train", "train"]


@pytest.mark.usefixtures("thin")
def test_commands_that_replay_leave_what_others_leave(volumes_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is stopped in the middle of an epoch and resumed, its validation, and predictions and maps of its model."""
    expected = _train(volumes_file, tmp_path / "plain").folder
    recorder = remembering(monkeypatch)
    made, make = [0], Stepper.make

    def stopping(self: Stepper, *arguments: Any, **more: Any) -> Any:
        made[0] += 1
        if made[0] == 3:
            arguments[2].received = signal.SIGTERM
        return make(self, *arguments, **more)

    monkeypatch.setattr(Stepper, "make", stopping)
    with pytest.raises(StoppedError):
        _train(volumes_file, tmp_path / "replayed")
    assert recorder.replays > 2
    found = _train(volumes_file, tmp_path / "replayed", resume=True).folder
    for name in ("metrics.csv", "model.safetensors"):
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name
    # Loaded by its own path each: one with graphs, one without.
    model = registry.load(str(found), "cpu")
    assert model.network.graphs.recorder is recorder
    monkeypatch.undo()
    plain = registry.load(str(expected), "cpu")
    assert plain.network.graphs.recorder is None
    volumes = np.random.default_rng(0).integers(0, 256, (9, 2, 32, 32), dtype=np.uint8)
    for ask in (
        lambda network: network.probabilities(volumes),
        lambda network: probabilities_and_features(network, volumes)[1],
        lambda network: saliency_maps(network, volumes, Method("smooth-gradcam++", "layer4", samples=3), [0, 2]),
        lambda network: saliency_maps(network, volumes, Method("gradcam", "layer2"), [1]),
        lambda network: saliency_maps(network, volumes[:1], Method("occlusion"), [1]),
    ):
        before = recorder.replays
        first, second = ask(model.network), ask(model.network)
        assert np.array_equal(first, ask(plain.network)) and np.array_equal(first, second)
        assert recorder.replays >= before + 2
