"""Volumes files made in this process, from scans whose pixels the test knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ctcovid.scans.scale import GREY
from ctcovid.scans.scan import Scan
from ctcovid.scans.window import LUNG
from ctcovid.volumes.encode import Chunk, Job, encode_slices
from ctcovid.volumes.layout import FileInfo, ScanRow
from ctcovid.volumes.writer import VolumesWriter

CLASSES = ["NCP", "CP", "Normal"]


@dataclass(frozen=True)
class KnownScan:
    """A scan as the writer takes it, with the pixels that went into it: uint8 (S, H, W)."""

    row: ScanRow
    chunks: list[Chunk]
    pixels: np.ndarray


@pytest.fixture
def known_scans(tmp_path: Path) -> list[KnownScan]:
    """Six scans of five patients and three parts, of 3 to 9 slices, of noise that gzip cannot shrink."""
    scans = []
    listing = [
        ("16", "NCP", "train"),
        ("16", "NCP", "train"),
        ("920", "NCP", "test"),
        ("0", "CP", "train"),
        ("7", "CP", "valid"),
        ("5", "Normal", "test"),
    ]
    for number, (patient, label, split) in enumerate(listing):
        pixels = np.random.default_rng(number).integers(0, 256, (8 - number if number % 2 else 3 + number, 32, 32), dtype=np.uint8)
        source = f"{label}/{patient}/{1000 + number}"
        (tmp_path / "scans" / source).mkdir(parents=True)
        paths = tuple(tmp_path / "scans" / source / f"{position:04d}.png" for position in range(len(pixels)))
        for path, slice_ in zip(paths, pixels, strict=True):
            Image.fromarray(slice_).save(path)
        scan = Scan(source, patient, label, paths[0].parent, paths, source)
        chunks = encode_slices(Job(scan, GREY, 32, LUNG))
        chunks = [one for one in chunks if isinstance(one, Chunk)]
        row = ScanRow(str(1000 + number), patient, label, split, 0, len(pixels), "complete", source, '{"bits": 8}', 0)
        scans.append(KnownScan(row, chunks, pixels))
    return scans


def write(path: Path, scans: Sequence[KnownScan], depth: int = 2, settings: dict[str, object] | None = None) -> None:
    """The file, continued where it was left."""
    with VolumesWriter(path, FileInfo(depth, 32, CLASSES, "NCP", settings or {"depth": depth})) as writer:
        written = {row.source for row in writer.rows}
        for scan in scans:
            if scan.row.source not in written:
                writer.add(scan.row, scan.chunks)
        writer.finish()


@pytest.fixture
def write_volumes() -> Callable[..., None]:
    return write


@pytest.fixture
def volumes_file(known_scans: list[KnownScan], tmp_path: Path) -> Path:
    """A complete volumes.h5 of the known scans, of depth 2."""
    write(tmp_path / "volumes.h5", known_scans)
    return tmp_path / "volumes.h5"
