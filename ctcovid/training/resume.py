"""Whether a run directory is to be begun, continued or left alone, and whether what is asked for is the run that is there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ctcovid.base.console import Console
from ctcovid.base.errors import InputError, UsageError
from ctcovid.base.files import RUN_CARD, made_by
from ctcovid.base.runcard import sha256
from ctcovid.base.temporaries import clear_all
from ctcovid.models import store
from ctcovid.models.reference import FILE as FEATURES
from ctcovid.models.weightfile import find_weights
from ctcovid.training.checkpoint import Progress, read_checkpoint
from ctcovid.training.scalars import clear as clear_scalars

BEST, HISTORY = "best.safetensors", "metrics.csv"
# What training writes into the folder of its run, beside its run card and what TensorBoard wants.
WRITTEN = (store.CARD, store.WEIGHTS, FEATURES, BEST, store.CHECKPOINT, HISTORY, "loss.png", "accuracy.png")
# Settings that a run may change on its way: which weights it began with is on file, and the rest changes how it is computed.
FREE = ("pretrained", "ranks", "device", "micro_batch")
# Settings whose names have changed; checkpoints of earlier versions have the old ones.
RENAMED = {"balance": "class_balance"}
RESEMBLES = "From here on the result resembles that of an undisturbed run, and is not equal to it bit by bit."


def find_checkpoint(folder: Path, resume: bool, overwrite: bool) -> dict[str, Any] | None:
    """The checkpoint to go on from, or None for a new run.

    Raises OutputExistsError where there is a run already and neither `resume` nor `overwrite` is on.
    """
    path = folder / store.CHECKPOINT
    if resume and path.is_file():
        return read_checkpoint(path)
    if resume and (folder / store.CARD).is_file():
        raise InputError(f"{folder} is finished, and without its {store.CHECKPOINT} it cannot be continued. Choose another --name.")
    if not overwrite:
        store.require_no_run(folder)
    return None


def is_finished(folder: Path, progress: Progress) -> bool:
    """Whether the model of all epochs in `progress` is registered. That of fewer stays until a continued run has come to its end.

    Raises ModelRefusedError where model.json is damaged.
    """
    return (folder / store.CARD).is_file() and store.read_card(folder).get("trained") == progress.epoch


def clear(folder: Path) -> None:
    """Remove what an earlier run of that name has left: a half-trained model must not pass for a finished one."""
    for name in (*WRITTEN, "MODEL_CARD.md"):
        (folder / name).unlink(missing_ok=True)
    clear_scalars(folder)
    if made_by(folder / "evaluation", "evaluate"):
        shutil.rmtree(folder / "evaluation")


def clear_unfinished(folder: Path) -> None:
    """Remove what killed runs were writing in `folder` when they were killed, on whatever host; none may be at work there."""
    clear_all(folder, (*WRITTEN, RUN_CARD))


def began_with(given: Path | None, before: dict[str, Any] | None) -> dict[str, Any] | None:
    """Which weights the resumed run began with. It has them in its checkpoint; the file is not needed again.

    Raises UsageError where others are given.
    """
    if given is None:
        return before
    try:
        same = before is not None and sha256(find_weights(given)) == before["sha256"]
    except InputError:
        same = before is not None and before["path"] in (str(given.resolve()), str((given / store.WEIGHTS).resolve()))
    if not same:
        raise UsageError(f"The run did not begin with {given}. Leave --pretrained away, or choose another --name.")
    return before


def require_same(before: dict[str, Any], now_wanted: dict[str, Any], folder: Path, console: Console) -> None:
    """Raises InputError where the data have changed since the run began, UsageError where the settings have.

    `console` hears what may change, and changes the result.
    """
    before = {RENAMED.get(name, name): value for name, value in before.items()}
    if before.get("data") != now_wanted["data"]:
        raise InputError(
            f"{folder} cannot be resumed: the volumes file was {before.get('data')} when the run began and is {now_wanted['data']}. "
            "Name the file that it began with by --data, or begin anew with another --name."
        )
    # What is off and what an earlier ctcovid did not have is the same.
    different = [
        f"--{name.replace('_', '-')} was {_word(before.get(name))} and is {_word(value)}"
        for name, value in now_wanted.items()
        if name not in FREE and (before.get(name) or None) != (value or None)
    ]
    if different:
        raise UsageError(f"{folder} cannot be resumed with other settings: {'; '.join(different)}. Give the same, or another --name.")
    was, now = before.get("micro_batch"), now_wanted.get("micro_batch")
    same_ranks = before.get("ranks", 1) == now_wanted.get("ranks", 1)
    if same_ranks and was not in (None, 0, "auto") and now not in (was, "auto"):
        console.warn(f"batch norm saw {was} volumes at a time and now {now} (--micro-batch): the run no longer equals an undisturbed one.")


def changed_ranks(before: dict[str, Any], ranks: int, synchronised: bool) -> str | None:
    """What is different where a run goes on with another number of processes; None where it does not."""
    was = before.get("ranks", 1)
    if was == ranks:
        return None
    norms = "" if synchronised else " batch norm sees the volumes of a step in other groups, and"
    return (
        f"the run had {was} process{'' if was == 1 else 'es'} and goes on with {ranks}: the same batches in the same order, but{norms} "
        f"sums are taken in another order. {RESEMBLES}"
    )


def changed_device(before: dict[str, Any], kind: str) -> str | None:
    """What is different where a run goes on with another kind of device; None where it does not, or nothing is known."""
    was = before.get("device")
    if was in (None, kind):
        return None
    return f"the run was on {was} and goes on on {kind}: the same batches in the same order, but it rounds in another way. {RESEMBLES}"


def _word(value: object) -> str:
    return str(value).removeprefix("torch.")
