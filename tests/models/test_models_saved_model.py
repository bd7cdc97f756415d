"""What was saved comes back exactly; what cannot be trusted is refused, and never run."""

from __future__ import annotations

import json
import math
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ctcovid.base.declared import table
from ctcovid.base.errors import ModelRefusedError
from ctcovid.models import saved_model
from ctcovid.models.card import schema
from ctcovid.options.manual import pages


def tiny(classes: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.Flatten(), nn.Linear(4, classes))
    network(torch.rand(5, 1, 3, 3, 3))
    return network


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run directory with a small model."""
    run = tmp_path / "a run"
    run.mkdir()
    saved_model.save_weights(run / saved_model.WEIGHTS, tiny())
    card = {"architecture": "tiny", "classes": ["NCP", "CP", "Normal"], "positive": "NCP", "depth": 4, "size": 32}
    saved_model.save_card(run, {**card, "scaling": {"offset": 0.0, "scale": 255.0}, "data": {"path": "volumes.h5"}})
    return run


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    card = json.loads((folder / saved_model.CARD).read_text())
    card = change(card) or card
    (folder / saved_model.CARD).write_text(json.dumps(card))


def refusal(folder: Path, file: str, network: nn.Module | None = None) -> str:
    """The sentence with which the model is refused; it names the file."""
    with pytest.raises(ModelRefusedError) as caught:
        saved_model.load_weights(folder, saved_model.read_card(folder), network or tiny(seed=1))
    assert caught.value.exit_code == 6
    assert str(folder / file) in str(caught.value)
    return str(caught.value)


def test_weights_and_card_come_back_exactly(folder: Path) -> None:
    original, loaded = tiny(), tiny(seed=1)
    card = saved_model.read_card(folder)
    saved_model.load_weights(folder, card, loaded)
    expected, found = original.state_dict(), loaded.state_dict()
    assert expected.keys() == found.keys()
    assert "1.num_batches_tracked" in found
    assert all(torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in expected.items())
    assert (card["classes"], card["positive"], card["depth"], card["size"]) == (["NCP", "CP", "Normal"], "NCP", 4, 32)
    assert card["format_version"] == saved_model.CARD_VERSION


def test_weights_in_channels_last_memory_are_saved_in_order(folder: Path) -> None:
    laid_out = tiny().to(memory_format=torch.channels_last_3d)
    saved_model.save_weights(folder / "other.safetensors", laid_out)
    assert (folder / "other.safetensors").read_bytes() == (folder / saved_model.WEIGHTS).read_bytes()


def test_saving_leaves_nothing_beside_the_two_files(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [saved_model.CARD, saved_model.WEIGHTS]


class Burglar:
    """What a pickle could do to whoever opens it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.mark), "w")


PICKLES: dict[str, Callable[[Path, object], object]] = {
    "protocol 0": lambda path, thing: path.write_bytes(pickle.dumps(thing, 0)),
    "protocol 2": lambda path, thing: path.write_bytes(pickle.dumps(thing, 2)),
    "protocol 5": lambda path, thing: path.write_bytes(pickle.dumps(thing, 5)),
    "torch, zipped": lambda path, thing: torch.save(thing, path),
    "torch, as before 1.6": lambda path, thing: torch.save(thing, path, _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("kind", PICKLES)
def test_a_pickle_is_refused_and_not_run(folder: Path, kind: str, tmp_path: Path) -> None:
    mark = tmp_path / "burgled"
    PICKLES[kind](folder / saved_model.WEIGHTS, {"weight": Burglar(mark)})
    said = refusal(folder, saved_model.WEIGHTS)
    assert not mark.exists()
    # Protocol 0 is plain text without a mark of its own.
    assert "pickle" in said or kind == "protocol 0"


def test_the_trap_of_the_test_above_is_a_real_one(tmp_path: Path) -> None:
    mark = tmp_path / "burgled"
    pickle.loads(pickle.dumps(Burglar(mark))).close()
    assert mark.exists()


@pytest.mark.parametrize("kept", [0, 1, 8, 50, -1])
def test_truncated_weights_are_refused(folder: Path, kept: int) -> None:
    whole = (folder / saved_model.WEIGHTS).read_bytes()
    (folder / saved_model.WEIGHTS).write_bytes(whole[:kept])
    assert "damaged" in refusal(folder, saved_model.WEIGHTS)


def test_missing_weights_are_refused(folder: Path) -> None:
    (folder / saved_model.WEIGHTS).unlink()
    assert "missing" in refusal(folder, saved_model.WEIGHTS)


def test_a_single_changed_number_is_noticed(folder: Path) -> None:
    whole = bytearray((folder / saved_model.WEIGHTS).read_bytes())
    whole[-1] ^= 1
    (folder / saved_model.WEIGHTS).write_bytes(bytes(whole))
    assert saved_model.CARD in refusal(folder, saved_model.WEIGHTS)


def test_weights_of_another_run_are_refused(folder: Path) -> None:
    saved_model.save_weights(folder / saved_model.WEIGHTS, tiny(seed=5))
    refusal(folder, saved_model.WEIGHTS)


def test_weights_for_another_number_of_classes_are_refused(folder: Path) -> None:
    rewrite(folder, lambda card: card.update(classes=["NCP", "Normal"]))
    assert "does not fit tiny with 2 classes" in refusal(folder, saved_model.WEIGHTS, tiny(classes=2))


def test_weights_of_another_network_are_refused(folder: Path) -> None:
    refusal(folder, saved_model.WEIGHTS, nn.Sequential(nn.Conv3d(1, 4, 3), nn.Flatten(), nn.Linear(4, 3)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(folder: Path, value: float) -> None:
    network = tiny()
    with torch.no_grad():
        network[3].weight[1, 2] = value
    saved_model.save_weights(folder / saved_model.WEIGHTS, network)
    saved_model.save_card(folder, saved_model.read_card(folder))
    assert "3.weight" in refusal(folder, saved_model.WEIGHTS)


def test_weights_with_a_variance_below_zero_are_refused(folder: Path) -> None:
    """Each is finite, and the square root of the variance is not."""
    network = tiny()
    network[1].running_var[2] = -1
    saved_model.save_weights(folder / saved_model.WEIGHTS, network)
    saved_model.save_card(folder, saved_model.read_card(folder))
    assert "variance below zero in 1.running_var" in refusal(folder, saved_model.WEIGHTS)


UNREADABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda path: path.write_text("no weights"), "not a PyTorch checkpoint"),
    "empty": (lambda path: path.write_bytes(b""), "not a PyTorch checkpoint"),
    "other pickle": (lambda path: path.write_bytes(pickle.dumps([1], 4)), "not a PyTorch checkpoint"),
    "module": (lambda path: torch.save(tiny(), path), "Python code of type torch.nn.modules.container.Sequential, which is never run"),
    "module, as before 1.6": (lambda path: torch.save(tiny(), path, _use_new_zipfile_serialization=False), "Python code of type"),
    "program": (lambda path: torch.jit.script(nn.Linear(1, 1)).save(str(path)), "TorchScript program, which is never run"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.filterwarnings("error")
def test_why_a_file_is_not_read_is_said_without_advice_to_have_its_code_run(kind: str, tmp_path: Path) -> None:
    write, reason = UNREADABLE[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write(tmp_path / "file")
    with pytest.raises(ValueError, match=reason) as caught:
        saved_model.read_tensors(tmp_path / "file")
    said = str(caught.value)
    assert len(said) < 120 and said.isprintable() and "weights_only" not in said


@pytest.mark.parametrize("field", ["architecture", "classes", "positive", "depth", "size", "scaling", "data", "weights_sha256"])
def test_a_card_without_a_field_is_refused_by_name(folder: Path, field: str) -> None:
    rewrite(folder, lambda card: card.pop(field) and None)
    assert f": {field}: " in refusal(folder, saved_model.CARD)
    rewrite(folder, lambda card: card.update({field: None}))
    assert f": {field}: " in refusal(folder, saved_model.CARD)


def test_the_card_of_a_newer_version_is_refused_with_the_way_out(folder: Path) -> None:
    rewrite(folder, lambda card: card.update(format_version=saved_model.CARD_VERSION + 1))
    assert "pip install -U ctcovid" in refusal(folder, saved_model.CARD)


@pytest.mark.parametrize("version", ["2", None, [1]])
def test_a_card_whose_version_is_not_a_number_is_refused(folder: Path, version: object) -> None:
    rewrite(folder, lambda card: card.update(format_version=version))
    refusal(folder, saved_model.CARD)


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b'"text"', b"\xff\xfe\x00", b"null"])
def test_a_damaged_card_is_refused(folder: Path, content: bytes) -> None:
    (folder / saved_model.CARD).write_bytes(content)
    refusal(folder, saved_model.CARD)


def test_a_run_without_a_card_is_called_unfinished(folder: Path) -> None:
    (folder / saved_model.CARD).unlink()
    with pytest.raises(ModelRefusedError, match=r"unfinished.*--resume") as caught:
        saved_model.read_card(folder)
    assert str(folder) in str(caught.value)


WRONG: dict[str, tuple[str, Any]] = {
    "size": ("size", 100_000),
    "depth": ("depth", 0),
    "classes: two names are the same": ("classes", ["NCP", "NCP", "NCP"]),
    "classes.1": ("classes", ["NCP", "", "CP"]),
    "classes: a model has two": ("classes", ["NCP"]),
    "positive: not one of the classes": ("positive", "Other"),
    "window.1": ("window", [-600, 0]),
    "calibration.temperature": ("calibration", {"temperature": math.inf}),
    "calibration.temperature: input should be less": ("calibration", {"temperature": 20.5}),
    "calibration.temperature: input should be greater": ("calibration", {"temperature": 0}),
    "features.threshold": ("features", {"threshold": math.nan, "sha256": "0" * 64}),
    "features.sha256": ("features", {"threshold": 1.0, "sha256": 5}),
    "training_slices.count": ("training_slices", {"count": -1, "sha256": "0" * 64}),
    "slice_spacing.0": ("slice_spacing", ["1", 2]),
    "slice_spacing: the smallest": ("slice_spacing", [3, 2]),
    "split.train": ("split", {"train": "16"}),
    "split.train.0": ("split", {"train": [16]}),
    "recipe.batch": ("recipe", {"batch": "32"}),
    "recipe.note": ("recipe", {"note": [1]}),
    "kept.epoch": ("kept", {"epoch": None}),
    "kept.valid_accuracy": ("kept", {"epoch": 1, "valid_accuracy": "high"}),
    "pretrained.path": ("pretrained", {"sha256": "0"}),
    "data.path": ("data", {"path": 5}),
    "versions.torch": ("versions", {"torch": 2.6}),
    "image_kind": ("image_kind", ["complete"]),
    "created": ("created", 2021),
    "scaling.offset": ("scaling", {"offset": []}),
}


@pytest.mark.parametrize("said", WRONG)
def test_a_card_that_is_not_as_declared_is_refused_by_the_field(said: str, folder: Path) -> None:
    name, value = WRONG[said]
    rewrite(folder, lambda card: {**card, name: value})
    assert f"{folder / saved_model.CARD}: {said}" in refusal(folder, saved_model.CARD)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '{"depth": ' + "9" * 10_000 + "}", " " * (17 << 20)])
def test_a_card_of_any_depth_and_length_is_refused(text: str, folder: Path) -> None:
    (folder / saved_model.CARD).write_text(text)
    refusal(folder, saved_model.CARD)


def test_weights_larger_than_their_network_are_not_read(folder: Path) -> None:
    with (folder / saved_model.WEIGHTS).open("r+b") as file:
        file.truncate(50 << 30)
    assert "has 53,687 MB, but the weights of tiny take" in refusal(folder, saved_model.WEIGHTS)


def test_the_table_of_the_manual_is_that_of_the_declaration() -> None:
    assert table("model.json", schema()) in pages()["files"]
