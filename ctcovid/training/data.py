"""The volumes that a training reads: the parts train and valid of a volumes file."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import torch

from ctcovid.base.console import Console
from ctcovid.base.errors import InputError
from ctcovid.base.signals import StopRequest
from ctcovid.distributed.session import Session
from ctcovid.volumes.batches import Batch, VolumeSet
from ctcovid.volumes.reader import VolumesFile
from ctcovid.volumes.resident import Resident, fastest_memory, resident, size_of


@dataclass(frozen=True)
class TrainingData:
    """The volumes to train and to validate on; each may be kept in memory."""

    train: VolumeSet
    valid: VolumeSet
    train_kept: Resident | None = None
    valid_kept: Resident | None = None

    def in_memory(self, device: torch.device, session: Session, workers: int) -> TrainingData:
        """The same with the volumes in memory, if a GPU is to train on them and there is room. They are read by `workers`.

        Raises InputError if a volume cannot be read.
        """
        places = fastest_memory(size_of(self.train), size_of(self.valid), device, session.ranks.local_size)
        kept = []
        for volumes, memory in zip((self.train, self.valid), places, strict=True):
            wanted = memory is not None and not session.stop.received
            kept.append(resident(volumes, str(memory), device, workers, session.stop, session.console) if wanted else None)
        return replace(self, train_kept=kept[0], valid_kept=kept[1])

    def batches(self, shares: Sequence[list[int]], workers: int, pin: bool, stop: StopRequest) -> Generator[Batch, None, None]:
        """This process's shares of the training batches, some of which may be empty; from memory, or read by `workers`.

        Raises StopAwaitedError as `VolumeSet.batches`.
        """
        nothing = torch.zeros(0, dtype=torch.int64)
        empty = Batch(torch.zeros(0, *self.train.shape, dtype=torch.uint8), nothing, nothing)
        some = [share for share in shares if share]
        read = self.train.batches(some, workers, pin, stop) if self.train_kept is None else self.train_kept.batches(some)
        try:
            for share in shares:
                yield next(read) if share else empty
        finally:
            read.close()

    def valid_batches(self, order: Sequence[Sequence[int]], workers: int, stop: StopRequest) -> Generator[Batch, None, None]:
        """Batches of the validation part, at least one; from memory, or read by `workers`.

        Raises StopAwaitedError as `VolumeSet.batches`.
        """
        return self.valid.batches(order, workers, stop=stop) if self.valid_kept is None else self.valid_kept.batches(order)


def read_training_data(file: VolumesFile, depth: int, console: Console) -> TrainingData:
    """The depth-n volumes of the parts train and valid.

    Raises InputError if there is nothing to learn from.
    """
    data = TrainingData(VolumeSet(file, "train", depth), VolumeSet(file, "valid", depth))
    present = [label for number, label in enumerate(file.classes) if (data.train.labels == number).any()]
    if not len(data.train):
        raise InputError(
            f"{file.path} has no training volumes of depth {depth}. Assign patients to train with ctcovid prepare --split-file, "
            "or choose a smaller --depth."
        )
    if len(present) < 2:
        raise InputError(
            f"The training part of {file.path} has one class only ({present[0]}), and a classifier needs two. "
            "Assign patients of other classes to train with ctcovid prepare --split-file."
        )
    if len(present) < len(file.classes):
        missing = ", ".join(label for label in file.classes if label not in present)
        console.warn(f"the training part has no {missing}. The model cannot learn that class.")
    if not len(data.valid):
        console.warn("the validation part is empty, so the weights of the last epoch are kept, whether or not an earlier one was better.")
    return data
