"""Whether a run starts, resumes or is refused, and whether it resumes with the settings that it was started with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ctcovid.base.console import Console
from ctcovid.base.errors import InputError, UsageError, counted
from ctcovid.base.runcard import sha256
from ctcovid.distributed.ranks import Ranks
from ctcovid.models import saved_model
from ctcovid.models.device import device_kind
from ctcovid.models.network import Network
from ctcovid.models.public_weights import find_weights
from ctcovid.options.train import Options
from ctcovid.training.checkpoint import read_checkpoint
from ctcovid.training.data import TrainingData
from ctcovid.training.recipe import Recipe

# What makes two runs the same training. A resumed run is refused if one of these has changed.
IDENTITY = (
    *("arch", "depth", "batch", "learning_rate", "sync_batchnorm", "seed", "precision"),
    *("augment", "class_balance", "label_smoothing", "weight_decay", "schedule", "warmup", "ema", "clip_gradient", "freeze"),
)
# Settings that may change in a resumed run: the initial weights are on record, and the others change only how it is computed.
FREE = ("pretrained", "ranks", "device", "micro_batch")
# Settings whose names have changed; checkpoints of earlier versions have the old ones.
RENAMED = {"balance": "class_balance"}
RESEMBLES = "From here on the result is close to that of an uninterrupted run, but not equal to the bit."


def find_checkpoint(folder: Path, resume: bool, overwrite: bool) -> dict[str, Any] | None:
    """The checkpoint to resume from, or None for a new run.

    Raises OutputExistsError if there is a run already and neither `resume` nor `overwrite` is on.
    """
    path = folder / saved_model.CHECKPOINT
    if resume and path.is_file():
        return read_checkpoint(path)
    if resume and (folder / saved_model.CARD).is_file():
        raise InputError(f"{folder} is finished and has no {saved_model.CHECKPOINT} to resume from. Choose another --name.")
    if not overwrite:
        saved_model.require_no_run(folder)
    return None


def run_settings(options: Options, recipe: Recipe, data: TrainingData, network: Network, ranks: Ranks) -> dict[str, Any]:
    """The settings that a checkpoint records, and that a resumed run is compared with."""
    settings = {name: getattr(options, name) for name in IDENTITY}
    settings |= {"depth": data.train.depth, "data": data.train.file.fingerprint, "ranks": ranks.size}
    settings |= {"precision": str(network.precision), "device": device_kind(network.device)}
    settings["micro_batch"] = "auto" if options.micro_batch == "auto" else recipe.at_once(ranks.size)
    # A cosine falls until its last epoch; the paper's steps do not depend on it.
    settings["epochs"] = options.epochs if options.schedule == "cosine" else None
    return settings


def recorded_pretrained(given: Path | None, before: dict[str, Any] | None) -> dict[str, Any] | None:
    """The record of the weights that the resumed run started with. The checkpoint has them, so that the file is not needed again.

    Raises UsageError if other weights are `given`.
    """
    if given is None:
        return before
    try:
        same = before is not None and sha256(find_weights(given)) == before["sha256"]
    except InputError:
        same = before is not None and before["path"] in (str(given.resolve()), str((given / saved_model.WEIGHTS).resolve()))
    if not same:
        raise UsageError(f"The run did not start with {given}. Omit --pretrained, or choose another --name.")
    return before


def require_same(before: dict[str, Any], now: dict[str, Any], folder: Path, console: Console) -> None:
    """Compare the settings of the run `before` with those of `now`, and warn of those that may change and change the result.

    Raises InputError if the data have changed since the run started, UsageError if the settings have.
    """
    before = {RENAMED.get(name, name): value for name, value in before.items()}
    if before.get("data") != now["data"]:
        raise InputError(
            f"{folder} cannot be resumed: the volumes file was {before.get('data')} when the run started and is {now['data']}. "
            "Name the original file with --data, or train again with another --name."
        )
    # A setting that is off equals one that an earlier version did not have.
    different = [
        f"--{name.replace('_', '-')} was {_word(before.get(name))} and is {_word(value)}"
        for name, value in now.items()
        if name not in FREE and (before.get(name) or None) != (value or None)
    ]
    if different:
        raise UsageError(f"{folder} cannot be resumed with other settings: {'; '.join(different)}. Use the same, or another --name.")
    was, pieces = before.get("micro_batch"), now.get("micro_batch")
    same_ranks = before.get("ranks", 1) == now.get("ranks", 1)
    if same_ranks and was not in (None, 0, "auto") and pieces not in (was, "auto"):
        console.warn(f"batch norm saw {counted(was, 'volume')} at a time and now sees {pieces} (--micro-batch). {RESEMBLES}")


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What a change in the number of processes or the kind of device means for a resumed run, a sentence for each."""
    found = []
    was, ranks = before.get("ranks", 1), now["ranks"]
    if was != ranks:
        norms = "" if now["sync_batchnorm"] else " batch norm sees other groups of volumes, and"
        found.append(
            f"the run had {was} process{'' if was == 1 else 'es'} and resumes with {ranks}. The batches are the same, but{norms} "
            f"sums are taken in another order. {RESEMBLES}"
        )
    # Earlier versions did not record the device.
    if before.get("device") not in (None, now["device"]):
        found.append(
            f"the run was on {before['device']} and resumes on {now['device']}. The batches are the same, but rounding differs. {RESEMBLES}"
        )
    return found


def _word(value: object) -> str:
    return str(value).removeprefix("torch.")
