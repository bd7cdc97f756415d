"""Which weights a run starts with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ctcovid.base.console import Console
from ctcovid.base.errors import ModelRefusedError, UsageError
from ctcovid.base.runcard import sha256
from ctcovid.models.network import Network
from ctcovid.models.pretrained import load_pretrained
from ctcovid.models.public_weights import find_weights
from ctcovid.training.checkpoint import Progress


def require_weights(epochs: int, pretrained: Path | None, freeze: str, progress: Progress | None) -> None:
    """Check that a new run has weights worth keeping, or a resumed one with that `progress` has been validated.

    Raises UsageError if not.
    """
    if progress is None and pretrained is None and not epochs:
        raise UsageError("--epochs 0 trains nothing: it registers the weights of --pretrained as a model. Name them.")
    if progress is None and pretrained is None and freeze:
        raise UsageError(f"--freeze {freeze} would keep random weights. Name trained ones with --pretrained.")
    if progress is not None and progress.step and not progress.history and not epochs:
        raise UsageError("--epochs 0: the run is in its first epoch. Use more --epochs, or --overwrite instead of --resume.")


def load_initial_weights(given: Path | None, folder: Path, network: Network, epochs: int, console: Console) -> dict[str, Any] | None:
    """Load the weights that were `given`, and return the record of which they are and what matched.

    Raises UsageError if they are in a folder that is about to be cleared, ModelRefusedError if no epoch trains what they lack.
    """
    if given is None:
        return None
    file = find_weights(given)
    if file.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"--pretrained {file} is in {folder}/, which the new run would clear. Choose another --name for the new run.")
    match = load_pretrained(network.module, file)
    console.say(f"{file}: {match.sentence()}")
    if match.warning():
        console.warn(match.warning())
    if not epochs and match.fresh:
        raise ModelRefusedError(f"{file} has no weights for {match.fresh[0]}, which would stay random. Train with --epochs above 0.")
    return {"path": str(file.resolve()), "sha256": sha256(file), **match.record()}
