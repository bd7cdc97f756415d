"""The HDF5 objects of a volumes file: plain, in the file itself, and of the declared type, size and filters, or refused.

Nothing is followed that could lead out of the file: links other than hard ones, external storage, virtual views. Sizes are known from
the file's own index before anything of that size is read.
"""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5g, h5l, h5o, h5t, h5z

from ctcovid.volumes.layout import FormatError

# Of one slice: deflated, with a checksum.
FILTERS = [h5z.FILTER_DEFLATE, h5z.FILTER_FLETCHER32]
# A deflated slice takes at least so much, and at most this share and this much more than its pixels.
LEAST_STORED, MOST_SHARE, MOST_MORE = 12, 0.02, 4096
# What a file may hold beside its slices: so much, and for each of them.
MOST_BESIDE, BESIDE_EACH = 128 << 20, 256
# Rows of a column in a chunk, and the bytes of all texts of a table.
ROWS_AT_ONCE = 1024
MOST_TEXT = 128 << 20
# How a text stands in its column: its length, and where the file has it.
TEXT = np.dtype([("length", "<u4"), ("heap", "<u8"), ("index", "<u4")])
HIGHEST = (1 << 63) - 1
HEAP = b"GCOL\1\0\0\0"
WORDS = {"text": "a text", "whole": "a whole number", "flag": "true or false"}
Dataset = Any
Group = Any


@dataclass(frozen=True)
class Stored:
    """The chunks of ``/slices``, one for each slice: where in the file, int64 (S,), and how many bytes, int64 (S,)."""

    offsets: np.ndarray
    sizes: np.ndarray

    @property
    def bytes(self) -> int:
        return int(self.sizes.sum())


def root(file: h5py.File) -> Group:
    """The top of a file.

    Raises FormatError if it is not laid out as HDF5 does by default.
    """
    made = file.id.get_create_plist()
    if tuple(made.get_sizes()) != (8, 8) or made.get_userblock():
        raise FormatError("it has a user block, or addresses that are not of 64 bits")
    return h5g.open(file.id, b"/")


def member(group: Group, name: str, where: str, kind: type) -> Any:
    """A group or dataset of a group.

    Raises FormatError if it is absent, behind a link, or something else.
    """
    key = name.encode()
    if key not in group:
        raise FormatError(f"{where} is missing")
    if group.links.get_info(key).type != h5l.TYPE_HARD:
        raise FormatError(f"{where} is a link to something else")
    found = h5o.open(group, key)
    if not isinstance(found, kind):
        raise FormatError(f"{where} is not a {'dataset' if kind is h5d.DatasetID else 'group'}")
    return found


def group_of(parent: Group, name: str) -> Group:
    return member(parent, name, f"/{name}", h5g.GroupID)


def attribute(file: h5py.File, name: str, kind: str, rank: int = 0) -> Any:
    """An attribute of the file: ``text``, ``whole`` or ``flag``; a list of such if `rank` is 1.

    Raises FormatError if it is absent or of another type.
    """
    if not h5a.exists(file.id, name.encode()):
        raise FormatError(f"the attribute {name} is missing")
    found = h5a.open(file.id, name.encode())
    stored = found.get_type()
    good = {"text": _is_text, "whole": _is_whole, "flag": lambda one: isinstance(one, h5t.TypeEnumID)}[kind](stored)
    if not good or len(found.shape) != rank or (rank and not 0 < found.shape[0] <= ROWS_AT_ONCE):
        raise FormatError(f"the attribute {name} is not {'a list of texts' if rank else WORDS[kind]}")
    value = file.attrs[name]
    if kind != "text":
        return int(value)
    words = [str(word) for word in ([value] if not rank else value)]
    try:
        "".join(words).encode()
    except UnicodeEncodeError as error:
        raise FormatError(f"the attribute {name} is not UTF-8") from error
    return words if rank else words[0]


def _is_text(stored: Any) -> bool:
    return isinstance(stored, h5t.TypeStringID) and stored.is_variable_str()


def _is_whole(stored: Any, size: int = 8) -> bool:
    return isinstance(stored, h5t.TypeIntegerID) and stored.get_size() <= size


def plain(found: Dataset, where: str, chunk: tuple[int, ...], filters: list[int]) -> tuple[int, ...]:
    """The shape of a dataset that lies in the file itself, in chunks of that size or in one piece.

    Raises FormatError if it does not, or has other filters.
    """
    made = found.get_create_plist()
    layout = made.get_layout()
    if layout == h5d.VIRTUAL:
        raise FormatError(f"{where} is a view of other data")
    if made.get_external_count():
        raise FormatError(f"{where} is stored in another file")
    if [made.get_filter(number)[0] for number in range(made.get_nfilters())] != filters:
        raise FormatError(f"{where} has other filters than ctcovid writes")
    if layout == h5d.CHUNKED:
        if made.get_chunk() != chunk:
            raise FormatError(f"{where} has chunks of {made.get_chunk()}, not {chunk}")
    elif filters or layout != h5d.CONTIGUOUS:
        raise FormatError(f"{where} is not stored in chunks")
    shape: tuple[int, ...] = found.get_space().get_simple_extent_dims()
    if len(shape) != len(chunk):
        raise FormatError(f"{where} has {len(shape)} axes, not {len(chunk)}")
    return shape


def require_slices(found: Dataset, side: int) -> int:
    """The number of slices.

    Raises FormatError unless ``/slices`` is uint8 (S, side, side) in chunks of one slice.
    """
    stored = found.get_type()
    if not (_is_whole(stored, 1) and stored.get_sign() == h5t.SGN_NONE):
        raise FormatError("/slices is not of 8-bit whole numbers")
    count, *sides = plain(found, "/slices", (1, side, side), FILTERS)
    if sides != [side, side]:
        raise FormatError(f"/slices has slices of {'×'.join(map(str, sides))}, not {side}×{side}")
    return count


def chunks_of(found: Dataset, side: int, size: int, complete: bool) -> Stored:
    """The chunks of ``/slices`` in a file of so many bytes, in one pass over their index. Nothing is inflated.

    Raises FormatError if one is absent from a `complete` file, stored twice, outside of the file, over another, or of a size that a
    slice cannot have.
    """
    count = found.get_space().get_simple_extent_dims()[0]
    most = min(count, size // LEAST_STORED)
    table = _index(found, most)
    if len(table) > most:
        raise FormatError(f"/slices has more chunks than its {count:,} slices")
    table = table[table[:, 0].argsort(kind="stable")]
    rows, masks, offsets, sizes = table.T
    if len(rows) and (rows[0] < 0 or rows[-1] >= count or (np.diff(rows) == 0).any()):
        raise FormatError("/slices has two chunks for one slice")
    if complete and len(rows) < count:
        missing = int(np.argmax(rows != np.arange(len(rows)))) if (rows != np.arange(len(rows))).any() else len(rows)
        raise FormatError(f"slice {missing:,} of {count:,} is absent from /slices")
    if masks.any():
        raise FormatError(f"slice {rows[masks != 0][0]:,} is stored without a filter")
    wrong = (sizes < LEAST_STORED) | (sizes > most_stored(side)) | (offsets < 0) | (offsets > size - sizes)
    if wrong.any():
        raise FormatError(f"slice {rows[wrong][0]:,} cannot have {sizes[wrong][0]:,} bytes in this file")
    order = offsets.argsort()
    if (np.diff(offsets[order]) < sizes[order][:-1]).any():
        raise FormatError("slices lie over each other in the file")
    return Stored(offsets, sizes)


def most_stored(side: int) -> int:
    """The most bytes that a deflated slice can take."""
    return int(side * side * (1 + MOST_SHARE)) + MOST_MORE


def _index(found: Dataset, most: int) -> np.ndarray:
    """Row, filters that were left out, place in the file and bytes of each chunk, int64 (N, 4); of `most` chunks and one more at most."""
    listed = array("q")

    def visit(one: Any) -> bool | None:
        place = -1 if one.byte_offset is None else min(one.byte_offset, HIGHEST)
        listed.extend((min(one.chunk_offset[0], HIGHEST), one.filter_mask, place, min(one.size, HIGHEST)))
        return True if len(listed) > 4 * most else None

    if hasattr(found, "chunk_iter"):
        found.chunk_iter(visit)
    else:
        # HDF5 before 1.14 finds each of them anew.
        for number in range(min(found.get_num_chunks(), most + 1)):
            visit(found.get_chunk_info(number))
    return np.array(listed, np.int64).reshape(-1, 4)


def require_little_beside(stored: Stored, size: int) -> None:
    """Raises FormatError if much more than slices is in the file: what is read at once, such as texts, could be as large."""
    beside = size - stored.bytes
    if beside > MOST_BESIDE + BESIDE_EACH * len(stored.sizes):
        raise FormatError(f"it holds {beside / 1e6:,.0f} MB beside its slices")


def numbers(group: Group, name: str, where: str, count: int | None) -> np.ndarray:
    """A column of whole numbers, int64 (N,), of which there must be `count`, unless it is None."""
    found = member(group, name, where, h5d.DatasetID)
    stored = found.get_type()
    if not (_is_whole(stored) and stored.get_size() == 8 and stored.get_sign() == h5t.SGN_2):
        raise FormatError(f"{where} is not of 64-bit whole numbers")
    length = _length(found, where, count, 8)
    return np.array(h5py.Dataset(found)[:length], np.int64)


def texts(group: Group, name: str, where: str, count: int | None, source: Any) -> list[str]:
    """A column of texts, of which there must be `count`, unless it is None; `source` is the file, open for reading bytes.

    Raises FormatError if they are not UTF-8 of bounded length.
    """
    found = member(group, name, where, h5d.DatasetID)
    if not _is_text(found.get_type()):
        raise FormatError(f"{where} is not of texts")
    length = _length(found, where, count, TEXT.itemsize)
    _require_texts(_references(found, length, source), where, source)
    try:
        return [str(text) for text in h5py.Dataset(found).asstr()[:length]]
    except UnicodeDecodeError as error:
        raise FormatError(f"{where} is not UTF-8") from error


def _length(found: Dataset, where: str, count: int | None, width: int) -> int:
    """The rows of a column that are in the file."""
    (length,) = plain(found, where, (ROWS_AT_ONCE,), [])
    if count is not None and length != count:
        raise FormatError(f"{where} has {length:,} rows, not {count:,}")
    at_once = ROWS_AT_ONCE * width if found.get_create_plist().get_layout() == h5d.CHUNKED else width
    room = -(-length * width // at_once) * at_once
    if found.get_storage_size() >= room:
        return length
    if count is not None:
        raise FormatError(f"{where} has rows that are not in the file")
    return int(found.get_storage_size() // at_once * ROWS_AT_ONCE)


def _references(found: Dataset, length: int, source: Any) -> np.ndarray:
    """Where the file has each text, TEXT (N,), without a look at any."""
    if found.get_create_plist().get_layout() == h5d.CHUNKED:
        pieces = [found.read_direct_chunk((first,))[1] for first in range(0, length, ROWS_AT_ONCE)]
        return np.frombuffer(b"".join(pieces), TEXT)[:length]
    if not length:
        return np.empty(0, TEXT)
    source.seek(found.get_offset())
    data = source.read(length * TEXT.itemsize)
    if len(data) < length * TEXT.itemsize:
        raise FormatError("a table ends before its rows")
    return np.frombuffer(data, TEXT)


def _require_texts(references: np.ndarray, where: str, source: Any) -> None:
    """Raises FormatError if the texts together, or the places of the file that hold them, are larger than texts can be."""
    held, end = 0, os.fstat(source.fileno()).st_size
    for place in np.unique(references["heap"][references["length"] > 0]).tolist():
        source.seek(min(place, end))
        head = source.read(16)
        if not head.startswith(HEAP):
            raise FormatError(f"{where} has a text that is not in the file")
        held += int.from_bytes(head[8:], "little")
    if max(int(references["length"].sum(dtype=np.uint64)), held) > MOST_TEXT:
        raise FormatError(f"{where} has texts of more than {MOST_TEXT >> 20} MB")


def require_view(found: Dataset, shape: tuple[int, ...], pieces: int) -> None:
    """Raises FormatError unless ``/volumes`` is a view of ``/slices`` of the same file, uint8 of that shape, in as many pieces or fewer."""
    made = found.get_create_plist()
    if made.get_layout() != h5d.VIRTUAL or made.get_external_count() or not _is_whole(found.get_type(), 1):
        raise FormatError("/volumes is not a view of /slices")
    count = made.get_virtual_count()
    if count > pieces:
        raise FormatError(f"/volumes is made of {count:,} pieces, but there are {pieces:,} scans")
    for number in range(count):
        if (made.get_virtual_filename(number), made.get_virtual_dsetname(number)) not in ((".", "slices"), (".", "/slices")):
            raise FormatError("/volumes is a view of something else than /slices")
    found_shape = found.get_space().get_simple_extent_dims()
    if found_shape != shape:
        raise FormatError(f"/volumes has the shape {found_shape}, not {shape}")
