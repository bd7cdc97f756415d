"""metrics.csv: one row per epoch."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ctcovid.base.errors import InputError, ModelRefusedError
from ctcovid.base.files import write_text
from ctcovid.base.lists import read_list

Finite = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True)
class EpochRow:
    """What one epoch gave. Losses are mean cross-entropy per volume, accuracies three-way (Li et al. 2021, Eq. (5)).

    The validation fields are None if the validation part is empty; those of training are NaN if no step was made.
    """

    epoch: Annotated[int, Field(ge=1)]
    learning_rate: Finite
    train_loss: float
    train_accuracy: float
    valid_loss: Finite | None
    valid_accuracy: Finite | None

    def __post_init__(self) -> None:
        if (self.valid_loss is None) != (self.valid_accuracy is None):
            raise ValueError("one of valid_loss and valid_accuracy is missing")

    def better_than(self, other: EpochRow | None) -> bool:
        """Higher validation accuracy, or the same with a lower loss; the later epoch if nothing was validated."""
        if other is None or self.valid_accuracy is None or other.valid_accuracy is None:
            return True
        assert self.valid_loss is not None and other.valid_loss is not None
        return (self.valid_accuracy, -self.valid_loss) > (other.valid_accuracy, -other.valid_loss)


def write_history(path: Path, rows: list[EpochRow]) -> None:
    """Write the rows as CSV with full precision, whole or not at all. It holds no times, so that equal runs give equal files."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(EpochRow)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_text(path, text.getvalue())


def read_history(path: Path) -> dict[str, list[float]]:
    """The columns of metrics.csv, with NaN for what was not validated.

    Raises ModelRefusedError if it is not what `write_history` writes.
    """
    names = [field.name for field in fields(EpochRow)]
    try:
        found = read_list(path, names, "history")
        if found.headings != names:
            raise InputError(f"{path} has the columns {found.named}, not {', '.join(names)}.")
        columns = {name: [float(text) if text else math.nan for text in found.column(name)] for name in names}
        if columns["epoch"] != list(range(1, len(found.rows) + 1)):
            raise InputError(f"{path}: its epochs are not 1, 2 and so on.")
        return columns
    except (InputError, ValueError) as error:
        raise ModelRefusedError(f"{str(error).rstrip('.')}. Restore {path}, or remove it to continue without the curves.") from error
