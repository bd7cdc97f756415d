"""The parts of a volumes file that a training needs."""

from __future__ import annotations

from ctcovid.base.console import Console
from ctcovid.base.errors import InputError
from ctcovid.volumes.batches import VolumeSet
from ctcovid.volumes.reader import VolumesFile


def parts_to_learn_from(file: VolumesFile, depth: int, console: Console) -> tuple[VolumeSet, VolumeSet]:
    """The volumes to train and to validate on.

    Raises InputError where there is nothing to learn from.
    """
    train_set, valid_set = VolumeSet(file, "train", depth), VolumeSet(file, "valid", depth)
    present = [label for number, label in enumerate(file.classes) if (train_set.labels == number).any()]
    if not len(train_set):
        raise InputError(
            f"{file.path} has no training volumes of depth {depth}. Assign patients to train with ctcovid prepare --split-file, "
            "or choose a smaller --depth."
        )
    if len(present) < 2:
        raise InputError(
            f"The training part of {file.path} has one class only ({present[0]}); a classifier needs two. "
            "Assign patients of other classes to train with ctcovid prepare --split-file."
        )
    if len(present) < len(file.classes):
        missing = ", ".join(label for label in file.classes if label not in present)
        console.warn(f"the training part has no {missing}: the model will not know that class.")
    if not len(valid_set):
        console.warn("the validation part is empty: the last epoch is kept, and nothing tells whether an earlier one was better.")
    return train_set, valid_set
