"""last.pt: all that a run needs to continue as if it had not been stopped."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ctcovid.base.errors import CtcovidError, ModelRefusedError
from ctcovid.base.files import atomic
from ctcovid.models.store import read_tensors
from ctcovid.training.ema import Ema
from ctcovid.training.history import EpochRow


@dataclass
class Progress:
    """How far a run has come: `epoch` whole epochs, and `step` batches of the next with the sums over their volumes.

    `skipped` steps, the last `skipped_in_a_row` of all among them, had no finite loss and gradient.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
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


class Saving:
    """Calls `save` every so many `minutes`, where the loop asks for it between two steps; never with 0 minutes."""

    def __init__(self, minutes: float, save: Callable[[], None]) -> None:
        self.seconds, self._save = 60 * minutes, save
        self.last = time.monotonic()

    def due(self) -> bool:
        return 0 < self.seconds <= time.monotonic() - self.last

    def save(self) -> None:
        self._save()
        self.last = time.monotonic()


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
        try:
            with temporary.open("wb") as file:
                torch.save(content, file)
        except RuntimeError as error:
            # What torch says of a full disk does not let one guess it; behind it is what the file said.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


@contextlib.contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Turn a full disk, or a used up quota, into a sentence that says what is left of the run at `path`.

    Raises CtcovidError in its place.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        kept = f"{path} is kept as it was" if path.is_file() else "nothing is kept yet"
        raise CtcovidError(
            f"No space is left to save {path} ({error.strerror}); {kept}. Free some, and the same line with --resume goes on."
        ) from error


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
