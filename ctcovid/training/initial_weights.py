"""Which weights a run begins with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ctcovid.base.console import Console
from ctcovid.base.errors import ModelRefusedError, UsageError
from ctcovid.base.runcard import sha256
from ctcovid.models.network import Network
from ctcovid.models.pretrained import load_pretrained
from ctcovid.models.weightfile import find_weights
from ctcovid.training.checkpoint import Progress


def require_weights(epochs: int, pretrained: Path | None, freeze: str, progress: Progress | None) -> None:
    """Raises UsageError where the weights of a run that begins, or of one that had come so far, are not what was asked for."""
    if progress is None and pretrained is None and not epochs:
        raise UsageError("--epochs 0 trains nothing: it makes a model of the weights that --pretrained names.")
    if progress is None and pretrained is None and freeze:
        raise UsageError(f"--freeze {freeze} would keep random weights. Name better ones with --pretrained.")
    if progress is not None and progress.step and not progress.history and not epochs:
        raise UsageError("--epochs 0: the run is in its first epoch. Give more --epochs, or --overwrite in place of --resume.")


def begin_with(given: Path | None, folder: Path, network: Network, epochs: int, console: Console) -> dict[str, Any] | None:
    """Begin with the weights that were `given`, and say which these are and what fitted.

    Raises UsageError where they lie in a folder to be cleared, ModelRefusedError where no epoch trains what they leave.
    """
    if given is None:
        return None
    file = find_weights(given)
    if file.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"--pretrained {file} lies in {folder}/, which the new run would clear. Give the new run another --name.")
    match = load_pretrained(network.module, file)
    console.say(f"{file}: {match.sentence()}")
    if match.warning():
        console.warn(match.warning())
    if not epochs and match.fresh:
        raise ModelRefusedError(f"{file} leaves {match.fresh[0]} at random values: train it, with --epochs above 0.")
    return {"path": str(file.resolve()), "sha256": sha256(file), **match.record()}
