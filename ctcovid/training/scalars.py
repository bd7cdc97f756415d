"""The history of a run for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ctcovid.base.errors import UsageError
from ctcovid.training.history import EpochRow

FOLDER = "tensorboard"


class Scalars:
    """Event files in a folder of the run: loss and accuracy of both parts, and the learning rate, by epoch.

    A resumed run writes them again from its `history`, so that they have each epoch once, however the run had ended.

    Raises UsageError if TensorBoard is not installed.
    """

    def __init__(self, folder: Path, history: list[EpochRow]) -> None:
        clear(folder)
        self._writer = summary_writer()(str(folder / FOLDER))
        for row in history:
            self.add(row)

    def add(self, row: EpochRow) -> None:
        """Write the row of an epoch, which an open TensorBoard shows at once."""
        values = {
            "loss/train": row.train_loss,
            "loss/valid": row.valid_loss,
            "accuracy/train": row.train_accuracy,
            "accuracy/valid": row.valid_accuracy,
            "learning_rate": row.learning_rate,
        }
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, row.epoch)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def clear(folder: Path) -> None:
    """Remove the event files of an earlier run in `folder`, and nothing else."""
    for path in (folder / FOLDER).glob("events.out.tfevents.*"):
        path.unlink()


def summary_writer() -> Any:
    """torch's class that writes event files.

    Raises UsageError if TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError("--tensorboard needs TensorBoard, which is not installed: pip install 'ctcovid[tensorboard]'") from error
    return SummaryWriter
