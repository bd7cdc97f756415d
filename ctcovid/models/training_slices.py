"""The slices that a model was trained on, as hashes, so that they are recognised whatever their files are called."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ctcovid.models.saved_model import load_arrays, save_arrays

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
    return {"count": len(slices.hashes), "sha256": save_arrays(folder / FILE, {"hashes": slices.hashes})}


def load_training_slices(folder: Path, card: dict[str, Any]) -> TrainingSlices | None:
    """What `save_training_slices` wrote; see `saved_model.load_arrays`."""
    return load_arrays(folder / FILE, card.get("training_slices"), _training_slices, "it")


def _training_slices(arrays: dict[str, np.ndarray]) -> TrainingSlices:
    hashes = arrays["hashes"]
    if hashes.dtype != np.uint64 or hashes.ndim != 1:
        raise ValueError("not a list of hashes")
    return TrainingSlices(hashes)
