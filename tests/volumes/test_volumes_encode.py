"""Slices to chunks, in worker processes."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ctcovid.base.errors import InputError
from ctcovid.scans.scan import Scan
from ctcovid.scans.window import LUNG
from ctcovid.volumes.encode import encode_slices, probe_scan


def pictures(*slices: Path) -> Scan:
    return Scan("scan", "", "", slices[0].parent, slices, ".")


def fletcher32(data: bytes) -> int:
    """The checksum as its definition has it, over big-endian words of 16 bits."""
    first = second = 0
    for position in range(0, len(data), 2):
        word = data[position] << 8 | (data[position + 1] if position + 1 < len(data) else 0)
        first = (first + word) % 65535
        second = (second + first) % 65535
    return second << 16 | first


def test_chunk_is_gzip_of_the_pixels_with_their_fletcher32(sample_data: Path) -> None:
    path = sample_data / "ccccii/NCP/920/2462/0025.JPG"
    (chunk,) = encode_slices((pictures(path), 8, 128, LUNG))  # type: ignore[misc]
    compressed, checksum = chunk.data[:-4], int.from_bytes(chunk.data[-4:], "little")
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L").resize((128, 128), Image.Resampling.BILINEAR))
    assert zlib.decompress(compressed) == pixels.tobytes()
    assert checksum == fletcher32(compressed)
    assert chunk.crc32 == zlib.crc32(pixels.tobytes())


def test_chunk_knows_whether_the_slice_is_masked(sample_data: Path) -> None:
    complete, masked = (sample_data / name for name in ("ccccii/NCP/16/1164/0070.png", "ccccii-segmented/NCP/96/1328/0058.png"))
    assert [chunk.masked for chunk in encode_slices((pictures(complete, masked), 8, 64, LUNG))] == [False, True]  # type: ignore[union-attr]


def test_encoding_leaves_no_file_behind(make_scan: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HDF5 makes the chunk in memory, under the name of a file that it must not make, nor touch where there is one."""
    slices = tuple(sorted(make_scan(tmp_path / "scan").iterdir()))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    encode_slices((pictures(*slices), 8, 32, LUNG))
    assert list((tmp_path / "empty").iterdir()) == []
    (tmp_path / "empty" / "chunk").write_text("mine")
    encode_slices((pictures(*slices), 8, 32, LUNG))
    assert (tmp_path / "empty" / "chunk").read_text() == "mine"


def test_errors_come_back_as_values_that_name_the_slice(make_scan: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_scan(tmp_path / "scan")
    whole = (folder / "0003.png").read_bytes()
    (folder / "0003.png").write_bytes(whole[: len(whole) // 2])
    slices = tuple(sorted(folder.iterdir()))
    found = encode_slices((pictures(*slices), 8, 32, LUNG))
    assert isinstance(found, InputError) and str(folder / "0003.png") in str(found)
    (folder / "0003.png").write_bytes(b"")
    assert isinstance(probe_scan(pictures(*slices)), InputError)
