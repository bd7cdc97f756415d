"""last.pt: all that a run needs to continue as if it had not been stopped."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ctcovid.base.errors import ModelRefusedError
from ctcovid.base.files import atomic
from ctcovid.models.store import read_tensors
from ctcovid.training.history import EpochRow


@dataclass
class Progress:
    """How far a run has come: `epoch` whole epochs, and `step` batches of the next with the sums over their volumes."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    history: list[EpochRow] = field(default_factory=list)

    @property
    def best(self) -> EpochRow | None:
        """The row of the best epoch so far."""
        best: EpochRow | None = None
        for row in self.history:
            if row.better_than(best):
                best = row
        return best


def save_checkpoint(
    path: Path, module: torch.nn.Module, optimiser: torch.optim.Optimizer, progress: Progress, settings: dict[str, Any]
) -> None:
    """Write weights, optimiser, progress and the settings of the run, plain types only, whole or not at all."""
    content = {
        "model": module.state_dict(),
        "optimiser": optimiser.state_dict(),
        "progress": asdict(progress),
        "settings": settings,
    }
    with atomic(path) as temporary:
        torch.save(content, temporary)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU.

    Raises ModelRefusedError where the file is damaged or holds anything but tensors and plain types.
    """
    try:
        content = read_tensors(path)
    except ValueError as error:
        raise ModelRefusedError(f"{path} is no checkpoint of ctcovid: {error}. Train again with --overwrite.") from error
    if not isinstance(content, dict) or not {"model", "optimiser", "progress", "settings"} <= set(content):
        raise ModelRefusedError(f"{path} is no checkpoint of ctcovid. Train again with --overwrite.")
    return content


def restore(content: dict[str, Any], module: torch.nn.Module, optimiser: torch.optim.Optimizer) -> Progress:
    """Put the checkpoint's state into `module` and `optimiser`; how far the run had come."""
    module.load_state_dict(content["model"])
    optimiser.load_state_dict(content["optimiser"])
    progress = Progress(**content["progress"])
    progress.history = [EpochRow(**row) for row in content["progress"]["history"]]
    return progress
