"""The parts of gpu.sh lose nothing, and the step that they measure is the one that trains."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import gpu
import networks
import pytest
import torch
from replaying import remembering

SAID = """\
Training r3d18 on 2,790 volumes of 4×512×512 (610 to validate), cuda (NVIDIA H100 80GB HBM3), bfloat16, into runs/r3d18-d4-b32/.
2,790 volumes of the train part (2.9 GB) are read once and kept on the GPU.
Read 4,321 volumes/s, with 16 workers.
610 volumes of the valid part (0.6 GB) are read once and kept on the GPU.
Read 3,210 volumes/s, with 16 workers.
No CUDA graph of the training step: operation not permitted.
Epoch 1: trained in 9.00 s, validated in 0.90 s.
Epoch 1 of 3: training loss 1.0 accuracy 0.5, validation loss 1.0 accuracy 0.5; 310.0 volumes/s, about 20 s left
Epoch 2: trained in 2.00 s, validated in 0.20 s.
Epoch 2 of 3: training loss 1.0 accuracy 0.5, validation loss 1.0 accuracy 0.5; 1,395.0 volumes/s, about 2 s left
Epoch 3: trained in 2.00 s, validated in 0.20 s.
Epoch 3 of 3: training loss 1.0 accuracy 0.5, validation loss 1.0 accuracy 0.5; 1,395.0 volumes/s"""


def test_what_train_said_is_read_and_extrapolated() -> None:
    at = iter([1, 2, 3, 4, 5, 6, 15, 15, 17.2, 18, 20.2, 21, 25])
    found = gpu.read_train([*((next(at), line) for line in SAID.splitlines()), (25.0, "")])
    assert (found["train"], found["valid"], found["read"], found["wall"]) == (2790, 610, [4321, 3210], 25.0)
    assert found["epochs"][1] == {"trained": 2.0, "validated": 0.2, "at": 18}
    assert found["said"] == ["No CUDA graph of the training step: operation not permitted."]
    found |= {"arch": "r3d18", "cores": 16}
    text = "\n".join(gpu.train_lines(found, {"step": 0.0007, "forward": 0.0002}))
    assert "training 98%, with validation 94%" in text
    # (20,699 * 2 / 2,790 + 2,070 * 0.2 / 610 + 0.8) * 20 / 60
    assert "2,070 to validate: 5.4 min" in text


def test_a_variant_that_fails_and_parts_that_are_missing_cost_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(variant: str, *_: Any) -> dict[str, Any]:
        if variant == "plain bfloat16":
            raise torch.OutOfMemoryError("CUDA out of memory | more\nand more")
        return {"step": 1e-3 if variant == gpu.OURS else 8e-3, "forward": 1e-4, "memory": 2**30, "issue": 1e-3}

    monkeypatch.setattr(gpu, "measure", measured)
    monkeypatch.setattr(gpu, "matrix_peak", lambda *_: 4e14)
    chosen = argparse.Namespace(arch="r3d18", out=tmp_path, device="cpu", small=False)
    gpu.networks(chosen)
    (tmp_path / "train-r3d18.json").write_text(json.dumps({"arch": "r3d18", "cores": 2, "slices_per_core": 20.0}))
    gpu.table(chosen)
    said = capsys.readouterr().out
    assert "| r3d18 | plain bfloat16 | OutOfMemoryError: CUDA out of memory / more |" in said
    assert "| r3d18 step against plain bfloat16 channels last | 8.0× | 6.5× | 10× | reached |" in said
    assert "| r3d18 | plain float32 | 0.100 | 1.00 | 8.000 | 8.00 | 1.00 | 1.0 |" in said
    assert "`train` gave no epochs to read" in said


@pytest.mark.usefixtures("thin")
def test_on_a_gpu_what_is_measured_is_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = remembering(monkeypatch)
    contestant = networks.Contestant("ctcovid float32", "r3d18", torch.device("cpu"))
    contestant.as_commands = True
    volumes = networks.volumes_of(4, 4, 32, torch.device("cpu"))
    weights = contestant.module.fc.weight.detach().clone()
    for work in ("step", "step", "forward", "forward"):
        getattr(contestant, work)(volumes)
    assert (recorder.captures, recorder.replays) == (2, 2 * 2 + 2)
    assert not torch.equal(contestant.module.fc.weight, weights)
