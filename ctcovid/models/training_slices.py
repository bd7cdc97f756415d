"""The slices that a model was trained on, as hashes, so that they are recognised whatever their files are called."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ctcovid.base.errors import ModelRefusedError
from ctcovid.base.files import atomic
from ctcovid.base.runcard import sha256

FILE = "training-slices.safetensors"
# Among a million slices, one in ten million others would share a hash of eight bytes.
STORED_BYTES = 8


def slice_hash(pixels: np.ndarray) -> bytes:
    """What tells one slice, uint8 (H, W), from others."""
    return hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()


@dataclass(frozen=True)
class TrainingSlices:
    """`hashes` of the slices that a model was trained on, uint64 (N,)."""

    hashes: np.ndarray

    @classmethod
    def of(cls, hashes: Iterable[bytes]) -> TrainingSlices:
        """From what `slice_hash` returns."""
        return cls(np.unique(_shortened(hashes)))

    def count(self, hashes: Iterable[bytes]) -> int:
        """How many of these slices are among them."""
        return int(np.isin(_shortened(hashes), self.hashes).sum())


def _shortened(hashes: Iterable[bytes]) -> np.ndarray:
    return np.array([int.from_bytes(one[:STORED_BYTES], "little") for one in hashes], np.uint64)


def save_training_slices(folder: Path, slices: TrainingSlices) -> dict[str, Any]:
    """Write the hashes beside the weights, and return their entry for model.json."""
    from safetensors.numpy import save

    with atomic(folder / FILE) as temporary:
        temporary.write_bytes(save({"hashes": slices.hashes}))
    return {"count": len(slices.hashes), "sha256": sha256(folder / FILE)}


def load_training_slices(folder: Path, card: dict[str, Any]) -> TrainingSlices | None:
    """What `save_training_slices` wrote; None if the model has none, or the file was not copied with it.

    Raises ModelRefusedError if the file is damaged, or not the one that model.json was written for.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    said, path = card.get("training_slices"), folder / FILE
    if not said or not path.is_file():
        return None
    try:
        if sha256(path) != said["sha256"]:
            raise ValueError("not the file that model.json was written for")
        hashes = load_file(path)["hashes"]
        if hashes.dtype != np.uint64 or hashes.ndim != 1:
            raise ValueError("not a list of hashes")
        return TrainingSlices(hashes)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelRefusedError(f"{path}: {error}. Restore it, or remove it to continue without it.") from error
