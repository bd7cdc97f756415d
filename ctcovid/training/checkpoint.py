"""last.pt: everything that a run needs to resume as if it had not been stopped."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ctcovid.base.errors import CtcovidError, ModelRefusedError
from ctcovid.base.files import atomic
from ctcovid.models.network import Network
from ctcovid.models.saved_model import read_tensors
from ctcovid.training.ema import Ema
from ctcovid.training.history import EpochRow


@dataclass
class Progress:
    """How far a run is: `epoch` whole epochs, and `step` batches of the next with the sums over their volumes.

    `skipped` steps had no finite loss and gradient; `skipped_in_a_row` counts those since the last step that was made.
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

    def end_epoch(self, row: EpochRow) -> None:
        """Count the epoch that `row` describes, and start the sums of the next."""
        self.history.append(row)
        self.epoch, self.step = self.epoch + 1, 0
        self.loss_sum, self.correct, self.seen = 0.0, 0, 0


@dataclass(frozen=True)
class TrainingState:
    """What training changes and a checkpoint holds: weights, their moving average, optimiser and progress."""

    network: Network
    optimiser: torch.optim.Optimizer
    ema: Ema | None = None
    progress: Progress = field(default_factory=Progress)


class Saving:
    """Calls `save` every so many `minutes`, when the loop asks for it between two steps; never with 0 minutes."""

    def __init__(self, minutes: float, save: Callable[[], None]) -> None:
        self.seconds, self._save = 60 * minutes, save
        self.last = time.monotonic()

    def due(self) -> bool:
        return 0 < self.seconds <= time.monotonic() - self.last

    def save(self) -> None:
        self._save()
        self.last = time.monotonic()


def save_checkpoint(path: Path, state: TrainingState, settings: dict[str, Any]) -> None:
    """Write the state and the settings of the run, plain types only, whole or not at all."""
    content = {
        "model": state.network.module.state_dict(),
        "optimiser": state.optimiser.state_dict(),
        "ema": None if state.ema is None else state.ema.state(),
        "progress": asdict(state.progress),
        "settings": settings,
    }
    with atomic(path) as temporary:
        try:
            with temporary.open("wb") as file:
                torch.save(content, file)
        except RuntimeError as error:
            # torch's message does not mention a full disk. The error of the file, which does, is its context.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


@contextlib.contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Turn the error of a full disk, or of a used up quota, into a message that says what is left of the run at `path`.

    Raises CtcovidError instead.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        kept = f"The previous {path} is kept" if path.is_file() else "Nothing is saved yet"
        raise CtcovidError(
            f"No space is left to save {path} ({error.strerror}). {kept}. Free some space, and resume with the same command and --resume."
        ) from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU.

    Raises ModelRefusedError if the file is damaged or holds anything but tensors and plain types.
    """
    try:
        content = read_tensors(path)
    except ValueError as error:
        raise ModelRefusedError(f"{path} is not a checkpoint of ctcovid: {error}. Train again with --overwrite.") from error
    if not isinstance(content, dict) or not {"model", "optimiser", "progress", "settings"} <= set(content):
        raise ModelRefusedError(f"{path} is not a checkpoint of ctcovid. Train again with --overwrite.")
    return content


def restore(content: dict[str, Any], state: TrainingState) -> TrainingState:
    """Load the checkpoint's `content` into network, optimiser and average of `state`; the state with the checkpoint's progress."""
    state.network.module.load_state_dict(content["model"])
    state.optimiser.load_state_dict(content["optimiser"])
    if state.ema is not None:
        state.ema.load(content["ema"])
    progress = Progress(**content["progress"])
    progress.history = [EpochRow(**row) for row in content["progress"]["history"]]
    return replace(state, progress=progress)
