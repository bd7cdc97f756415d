"""One slice as a chunk of the HDF5 file: deflated, with its checksum, as the library's own filters would have made it."""

from __future__ import annotations

from typing import Any

import numpy as np
from isal import isal_zlib

# gzip is the only filter that every HDF5 tool has. Tools that add slices to the file use this level.
CHUNK_OPTIONS: dict[str, Any] = {"compression": "gzip", "compression_opts": 1, "fletcher32": True}
# ISA-L's level 2 compresses CT about as much as zlib's level 1, in a quarter of the time.
LEVEL = 2
# 16-bit words per row: sums of 32 bits then hold a row, and a column of the largest slices, of 4096² pixels.
ROW = 1024


def chunk_bytes(pixels: np.ndarray) -> bytes:
    """The bytes of a chunk of `pixels`, uint8 (H, W): a zlib stream, and its Fletcher-32, little end first."""
    stream: bytes = isal_zlib.compress(np.ascontiguousarray(pixels), LEVEL)
    return stream + fletcher32(stream).to_bytes(4, "little")


def fletcher32(data: bytes) -> int:
    """HDF5's Fletcher-32: sums of 16-bit words, high end first, modulo 65535.

    HDF5 sums by folding carries back, which ends at 65535 where a remainder would be 0; only zeros alone give 0.
    """
    # Word i counts n - i times in the second sum. Sums of rows and of columns give that without a product for each word.
    count = -(-len(data) // 2)
    words = np.frombuffer(data + bytes(-len(data) % (2 * ROW)), "<u2").reshape(-1, ROW).astype(np.uint32)
    rows, columns = words.sum(1, dtype=np.uint32).astype(np.int64), words.sum(0, dtype=np.uint32).astype(np.int64)
    second = rows @ (count - ROW * np.arange(len(rows))) - columns @ np.arange(ROW)
    # Swapping bytes multiplies a word by 256, modulo 65535, so that the words need not be swapped one by one.
    return _folded(256 * int(second)) << 16 | _folded(256 * int(rows.sum()))


def _folded(total: int) -> int:
    return (total - 1) % 65535 + 1 if total else 0
