"""Chunks that ctcovid makes by itself are those that HDF5 would have made, as far as HDF5 can tell."""

from __future__ import annotations

import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from ctcovid.volumes.chunk import CHUNK_OPTIONS, chunk_bytes, fletcher32


def checksum_by_hdf5(data: bytes) -> int:
    """The Fletcher-32 that the HDF5 library stores behind these bytes."""
    values = np.frombuffer(data, np.uint8)
    with h5py.File("chunk", "w", driver="core", backing_store=False) as file:
        dataset = file.create_dataset("values", data=values, chunks=values.shape, fletcher32=True)
        return int.from_bytes(dataset.id.read_direct_chunk((0,))[1][-4:], "little")


@pytest.mark.parametrize("size", [1, 2, 3, 255, 511, 512, 513, 1000, 65535, 1 << 18])
def test_fletcher32_is_that_of_hdf5(size: int) -> None:
    noise = np.random.default_rng(size).bytes(size)
    # Sums that are multiples of 65535 are where a remainder and HDF5's folding differ.
    for data in (noise, bytes(size), b"\xff" * size, b"\xff\xff" + bytes(size), bytes(size) + b"\xff\xff", b"\x7f\xff\x80\x00" * size):
        assert fletcher32(data) == checksum_by_hdf5(data)


def test_no_sum_runs_over_in_the_largest_slice() -> None:
    """4096² pixels that cannot be deflated."""
    for data in (b"\xff" * (1 << 24) + b"\x01\x02\x03", np.random.default_rng(0).bytes(1 << 24)):
        assert fletcher32(data) == checksum_by_hdf5(data)


def test_hdf5_reads_chunks_and_finds_damage_in_them(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    slices = [
        generator.integers(0, 256, (33, 33), dtype=np.uint8),
        np.zeros((33, 33), np.uint8),
        np.tile(np.arange(33, dtype=np.uint8), (33, 1)),
    ]
    chunks = [chunk_bytes(pixels) for pixels in slices]
    with h5py.File(tmp_path / "slices.h5", "w") as file:
        dataset = file.create_dataset("slices", (4, 33, 33), np.uint8, chunks=(1, 33, 33), **CHUNK_OPTIONS)
        for place, chunk in enumerate(chunks):
            dataset.id.write_direct_chunk((place, 0, 0), chunk)
        dataset.id.write_direct_chunk((3, 0, 0), chunks[0][:99] + bytes([chunks[0][99] ^ 1]) + chunks[0][100:])
    with h5py.File(tmp_path / "slices.h5", "r") as file:
        assert np.array_equal(file["slices"][:3], np.stack(slices))
        with pytest.raises(OSError, match="filter|Fletcher32"):
            file["slices"][3]


def test_chunks_of_real_slices_are_hardly_larger_than_gzip_makes_them(sample_data: Path) -> None:
    """All real scans together, complete and segmented ones."""
    ours = gzips = 0
    for folder in sorted({path.parent for path in sample_data.glob("ccccii*/*/*/*/*")}):
        for path in sorted(folder.iterdir())[::8]:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("L"))
            ours += len(chunk_bytes(pixels))
            gzips += len(zlib.compress(pixels.tobytes(), 1))
    assert 0 < ours < 1.06 * gzips
