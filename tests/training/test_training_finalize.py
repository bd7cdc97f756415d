"""The last step of training stores how to use the model."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ctcovid.base.console import Console
from ctcovid.commands import train
from ctcovid.models import registry
from ctcovid.training.finalize import learnt_from
from ctcovid.volumes.layout import ScanRow


def test_the_last_step_of_training_stores_how_to_use_the_model(volumes_file: Path, tmp_path: Path) -> None:
    options = train.Options(data=volumes_file, epochs=1, batch=4, runs=tmp_path / "runs", name="run", device="cpu", workers=1)
    train.run(options, Console(quiet=True, results=False))
    folder = tmp_path / "runs" / "run"
    card = json.loads((folder / "model.json").read_text())
    assert card["image_kind"] == "complete" and card["slice_spacing"] is None
    model = registry.load("run", "cpu", runs=tmp_path / "runs")
    about = card["calibration"]
    assert model.temperature == about["temperature"] in (1, about["fitted"])
    assert about["log_loss_calibrated"] <= about["log_loss"] and about["patients"] > 1
    assert model.reference is not None and model.reference.threshold > 0
    # A model without its reference features still works.
    (folder / "features.safetensors").unlink()
    registry._loaded.clear()
    assert registry.load("run", "cpu", runs=tmp_path / "runs").reference is None
    assert torch.isfinite(torch.tensor(model.temperature))


def row(first: int, kind: str, checks: str) -> ScanRow:
    return ScanRow(str(first), "p", "NCP", "train", first, 8, kind, "s", checks, 0)


def test_kind_and_spacing_of_training_scans_are_recorded() -> None:
    rows = [row(0, "complete", '{"slice_spacing": 2.5}'), row(8, "complete", "{}"), row(16, "complete", '{"slice_spacing": 1.0}')]
    assert learnt_from(rows) == {"image_kind": "complete", "slice_spacing": [1.0, 2.5]}
    assert learnt_from([rows[1], row(9, "segmented", "{}")]) == {"image_kind": "mixed", "slice_spacing": None}
