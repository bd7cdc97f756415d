"""Slices of a volumes file: the stored bytes of each are inflated to the size of a slice, and no further."""

from __future__ import annotations

from typing import Any

import numpy as np
from h5py import h5d
from isal import isal_zlib

from ctcovid.volumes import structure
from ctcovid.volumes.chunk import fletcher32
from ctcovid.volumes.layout import FormatError


class Slices:
    """``/slices`` of an open HDF5 file, held against the description.

    Raises FormatError if it is something else.
    """

    def __init__(self, file: Any, side: int) -> None:
        self._file, self.side = file, side
        self._dataset = structure.member(structure.root(file), "slices", "/slices", h5d.DatasetID)
        self.count = structure.require_slices(self._dataset, side)

    def read(self, first: int, count: int) -> np.ndarray:
        """uint8 (count, side, side).

        Raises FormatError if a checksum does not match, or a slice is of another size; OSError if HDF5 cannot read its bytes.
        """
        pixels = np.empty((count, self.side, self.side), np.uint8)
        for number, one in enumerate(pixels):
            self._inflate(first + number, one)
        return pixels

    def stored(self, number: int) -> bytes:
        """The stored bytes of a slice: a zlib stream and its checksum.

        Raises as `read`.
        """
        if not 0 <= number < self.count:
            raise FormatError(f"it has {self.count:,} slices")
        masked, data = self._dataset.read_direct_chunk((number, 0, 0))
        if masked or not structure.LEAST_STORED <= len(data) <= structure.most_stored(self.side):
            raise FormatError(f"slice {number:,} cannot have {len(data):,} bytes")
        found: bytes = data
        return found

    def _inflate(self, number: int, into: np.ndarray) -> None:
        data = self.stored(number)
        stream, checksum = data[:-4], data[-4:]
        if fletcher32(stream) != int.from_bytes(checksum, "little"):
            raise FormatError(f"the checksum of slice {number:,} does not match")
        decoder = isal_zlib.decompressobj()
        try:
            pixels = decoder.decompress(stream, into.size + 1)
        except isal_zlib.error as error:  # type: ignore[misc] # declared as an instance
            raise FormatError(f"slice {number:,} cannot be inflated ({error})") from error
        if len(pixels) != into.size or not decoder.eof or decoder.unused_data:
            raise FormatError(f"slice {number:,} does not have the size of a slice")
        into.reshape(-1)[:] = np.frombuffer(pixels, np.uint8)
