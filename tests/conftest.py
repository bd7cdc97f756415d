"""What many tests need: real slices where there are any, and a small data set in the CC-CCII layout."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# Several processes of torch threads on a few cores stand in each other's way, and one thread sums in one order.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """Folder of real CT for tests, from CTCOVID_SAMPLE_DATA."""
    folder = os.environ.get("CTCOVID_SAMPLE_DATA")
    if not folder:
        pytest.skip("CTCOVID_SAMPLE_DATA is not set: no real CT here")
    return Path(folder)


@pytest.fixture
def make_scan() -> Callable[..., Path]:
    """Write a scan of grey noise whose brightness differs by `level`, and return its folder."""

    def make(folder: Path, slices: int = 8, size: int = 32, level: int = 100, extension: str = "png") -> Path:
        folder.mkdir(parents=True)
        generator = np.random.default_rng(level + slices)
        for number in range(slices):
            pixels = np.clip(generator.normal(level, 20, (size, size)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:04d}.{extension}")
        return folder

    return make


@pytest.fixture
def make_dataset(make_scan: Callable[..., Path]) -> Callable[..., Path]:
    """Write a data set of `patients` patients in each of three classes, told apart by brightness, and return its folder."""

    def make(root: Path, patients: int = 5, slices: int = 8, size: int = 32) -> Path:
        for position, label in enumerate(("NCP", "CP", "Normal")):
            for number in range(patients):
                make_scan(root / label / str(100 * position + number) / "1", slices + number % 3, size, 60 + 60 * position)
        return root

    return make
