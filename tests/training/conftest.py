"""A small prepared file."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ctcovid.base.console import Console
from ctcovid.commands import prepare


@pytest.fixture(scope="session")
def _prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prepared")
    for position, label in enumerate(("NCP", "CP", "Normal")):
        for number in range(3):
            folder = root / label / str(10 * position + number) / "1"
            folder.mkdir(parents=True)
            for index in range(6):
                pixels = np.random.default_rng([position, number, index]).integers(40 * position, 200, (32, 32), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    options = prepare.Options(root, depth=2, size=32, output=root / "volumes.h5", workers=1)
    prepare.run(options, Console(quiet=True, results=False))
    return root / "volumes.h5"


@pytest.fixture
def volumes_file(_prepared: Path, tmp_path: Path) -> Path:
    """A volumes.h5 of depth 2 and size 32, three classes, of noise; each test has its own."""
    return Path(shutil.copy(_prepared, tmp_path / "volumes.h5"))
