"""Slices to chunks, in worker processes."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from ctcovid.scans.quality import Unusable
from ctcovid.scans.read import ScanFormat
from ctcovid.scans.scale import GREY, Scale
from ctcovid.scans.scan import Scan
from ctcovid.scans.window import LUNG
from ctcovid.volumes.encode import Chunk, Job, encode_slices, probe_scan


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
    (chunk,) = encode_slices(Job(pictures(path), GREY, 128, LUNG))
    assert isinstance(chunk, Chunk)
    compressed, checksum = chunk.data[:-4], int.from_bytes(chunk.data[-4:], "little")
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L").resize((128, 128), Image.Resampling.BILINEAR))
    assert zlib.decompress(compressed) == pixels.tobytes()
    assert checksum == fletcher32(compressed)
    assert chunk.crc32 == zlib.crc32(pixels.tobytes())


def test_chunk_knows_whether_the_slice_is_masked(sample_data: Path) -> None:
    complete, masked = (sample_data / name for name in ("ccccii/NCP/16/1164/0070.png", "ccccii-segmented/NCP/96/1328/0058.png"))
    chunks = encode_slices(Job(pictures(complete, masked), GREY, 64, LUNG))
    assert [chunk.summary.masked for chunk in chunks if isinstance(chunk, Chunk)] == [False, True]


def test_slices_that_cannot_be_read_say_why_and_the_others_are_encoded(make_scan: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_scan(tmp_path / "scan")
    slices = tuple(sorted(folder.iterdir()))
    whole = slices[3].read_bytes()
    slices[3].write_bytes(whole[: len(whole) // 2])
    slices[4].write_bytes(b"")
    slices[5].write_text("503 Service Unavailable")
    found = encode_slices(Job(pictures(*slices), GREY, 32, LUNG))
    assert [one.code if isinstance(one, Unusable) else "" for one in found] == ["", "", "", "truncated", "empty-file", "unreadable", "", ""]
    assert all(str(path) in one.message for path, one in zip(slices, found, strict=True) if isinstance(one, Unusable))


def test_slices_that_are_only_looked_at_are_not_compressed(make_scan: Callable[..., Path], tmp_path: Path) -> None:
    slices = tuple(sorted(make_scan(tmp_path / "scan").iterdir()))
    packed, seen = encode_slices(Job(pictures(*slices), GREY, 32, LUNG)), encode_slices(Job(pictures(*slices), GREY, None, LUNG))
    for one, other in zip(packed, seen, strict=True):
        assert isinstance(one, Chunk) and isinstance(other, Chunk)
        assert (one.summary.digest, other.data) == (other.summary.digest, b"")


def test_format_is_that_of_most_slices(make_scan: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_scan(tmp_path / "scan")
    Image.fromarray(np.zeros((40, 48), np.uint8)).save(folder / "0000.png")
    Image.fromarray(np.minimum(np.arange(1024).reshape(32, 32) * 6, 4095).astype(np.uint16)).save(folder / "0001.png")
    (folder / "0002.png").write_bytes(b"")
    assert probe_scan(pictures(*sorted(folder.iterdir()))).form == ScanFormat(32, 32, Scale(12))
    for path in folder.iterdir():
        path.write_bytes(b"")
    assert probe_scan(pictures(*sorted(folder.iterdir()))).form == ScanFormat(0, 0, GREY)
