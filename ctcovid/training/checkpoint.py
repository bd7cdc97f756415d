"""last.pt: all that a run needs to continue as if it had not been stopped."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ctcovid.base.errors import ModelRefusedError
from ctcovid.base.files import atomic
from ctcovid.models.store import read_tensors
from ctcovid.training.ema import Ema
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

    def note(self) -> str:
        """Mean loss and accuracy over the epoch so far, in words."""
        return f"loss {self.loss_sum / self.seen:.4f}, accuracy {self.correct / self.seen:.4f}" if self.seen else ""

    def over(self, epochs: int, patience: int) -> bool:
        """Whether there have been so many epochs, or `patience` of them (0: any number) since the best one."""
        return self.epoch >= epochs or (self.best is not None and 0 < patience <= self.epoch - self.best.epoch)


def save_checkpoint(
    path: Path,
    module: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    progress: Progress,
    settings: dict[str, Any],
    ema: Ema | None = None,
) -> None:
    """Write weights and their average, optimiser, progress and the settings of the run, plain types only, whole or not at all."""
    content = {
        "model": module.state_dict(),
        "optimiser": optimiser.state_dict(),
        "ema": None if ema is None else ema.state(),
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


def restore(content: dict[str, Any], module: torch.nn.Module, optimiser: torch.optim.Optimizer, ema: Ema | None = None) -> Progress:
    """Put the checkpoint's state into `module`, `optimiser` and `ema`; how far the run had come."""
    module.load_state_dict(content["model"])
    optimiser.load_state_dict(content["optimiser"])
    if ema is not None:
        ema.load(content["ema"])
    progress = Progress(**content["progress"])
    progress.history = [EpochRow(**row) for row in content["progress"]["history"]]
    return progress
