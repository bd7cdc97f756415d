"""volumes.h5, format 1, as any HDF5 tool sees it: real scans, packed by prepare, read with plain h5py and plain Pillow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

import ctcovid
from ctcovid.base.console import Console
from ctcovid.commands.prepare import Options, run

DEPTH, SIZE = 4, 64
# Where the slices come from in the sample data, where they stand in the data set, and which of them: 16 is what one task of a
# worker holds.
SCANS = [
    ("ccccii/NCP/16/1164", "NCP/16/1164", 60, 33),
    ("ccccii/NCP/16/1164", "NCP/16/999", 40, 3),
    ("ccccii/NCP/920/2462", "NCP/920/2462", 10, 17),
    ("ccccii-segmented/NCP/96/1328", "NCP/96/1328", 50, 10),
    ("ccccii/CP/1068/3107", "CP/1068/3107", 80, 12),
    ("ccccii/Normal/2316/771", "Normal/2316/771", 70, 16),
    ("ccccii-segmented/Normal/1995/500", "Normal/1995/500", 50, 9),
]
# By class, patient and scan in the order of their numbers.
ORDER = ["CP/1068/3107", "NCP/16/999", "NCP/16/1164", "NCP/96/1328", "NCP/920/2462", "Normal/1995/500", "Normal/2316/771"]


@pytest.fixture(scope="module")
def dataset(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("CC-CCII")
    for origin, source, first, count in SCANS:
        (root / source).mkdir(parents=True)
        for path in sorted((sample_data / origin).iterdir())[first : first + count]:
            (root / source / path.name).symlink_to(path)
    return root


@pytest.fixture(scope="module")
def file(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[h5py.File]:
    path = tmp_path_factory.mktemp("out") / "volumes.h5"
    run(Options(dataset, DEPTH, SIZE, path, images="all", workers=1), Console(quiet=True, results=False))
    with h5py.File(path, "r") as opened:
        yield opened


def decoded(dataset: Path, source: str) -> np.ndarray:
    """A scan by Pillow alone; its slices have padded numbers, so that plain order is theirs."""
    slices = []
    for path in sorted((dataset / source).iterdir()):
        with Image.open(path) as image:
            slices.append(np.asarray(image.convert("L").resize((SIZE, SIZE), Image.Resampling.BILINEAR)))
    return np.stack(slices)


def column(file: h5py.File, name: str) -> list:
    dataset = file["scans"][name]
    return dataset.asstr()[...].tolist() if h5py.check_string_dtype(dataset.dtype) else dataset[...].tolist()


def test_attributes_say_what_the_file_is(file: h5py.File) -> None:
    attributes = dict(file.attrs)
    settings = json.loads(attributes.pop("settings"))
    assert attributes.pop("classes").tolist() == ["NCP", "CP", "Normal"]
    assert attributes == {
        "format": "ctcovid-volumes",
        "format_version": 1,
        "depth": DEPTH,
        "size": SIZE,
        "positive": "NCP",
        "image_kind": "mixed",
        "created_by": f"ctcovid {ctcovid.__version__}",
        "complete": True,
    }
    assert {name: settings[name] for name in ("depth", "size", "seed", "split", "classes")} == {
        "depth": DEPTH,
        "size": SIZE,
        "seed": 0,
        "split": "60/20/20",
        "classes": ["NCP", "CP", "Normal"],
    }


def test_slices_lie_in_chunks_of_one_compressed_and_with_checksums(file: h5py.File) -> None:
    slices = file["slices"]
    assert (slices.dtype, slices.shape) == (np.uint8, (100, SIZE, SIZE))
    assert slices.chunks == (1, SIZE, SIZE)
    assert (slices.compression, slices.fletcher32) == ("gzip", True)
    assert slices.id.get_num_chunks() == 100


def test_every_slice_is_there_once_scan_by_scan_and_equal_to_what_pillow_decodes(file: h5py.File, dataset: Path) -> None:
    assert column(file, "source") == ORDER
    assert np.array_equal(file["slices"][...], np.concatenate([decoded(dataset, source) for source in ORDER]))


def test_volumes_are_a_virtual_view_of_adjacent_slices_that_crosses_no_scan(file: h5py.File, dataset: Path) -> None:
    volumes = file["volumes"]
    assert volumes.is_virtual
    assert {source.dset_name for source in volumes.virtual_sources()} == {"slices"}
    stacked = [
        pixels[first : first + DEPTH]
        for pixels in (decoded(dataset, source) for source in ORDER)
        for first in range(0, len(pixels) - DEPTH + 1, DEPTH)
    ]
    assert (volumes.dtype, volumes.shape) == (np.uint8, (23, DEPTH, SIZE, SIZE))
    assert np.array_equal(volumes[...], np.stack(stacked))


def test_view_holds_on_after_the_file_is_moved(file: h5py.File, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.h5").write_bytes(Path(file.filename).read_bytes())
    with h5py.File(tmp_path / "elsewhere.h5", "r") as moved:
        assert np.array_equal(moved["volumes"][...], file["volumes"][...])
        assert moved["volumes"][...].any()


def test_each_volume_names_its_scan(file: h5py.File) -> None:
    counts = {source: count // DEPTH for _, source, _, count in SCANS}
    assert file["volume_scan"][...].tolist() == [row for row, source in enumerate(ORDER) for _ in range(counts[source])]


def test_scans_have_one_row_each_with_all_columns(file: h5py.File) -> None:
    counts = {source: count for _, source, _, count in SCANS}
    assert column(file, "label") == [source.split("/")[0] for source in ORDER]
    assert column(file, "patient") == [source.split("/")[1] for source in ORDER]
    assert column(file, "id") == [source.split("/")[2] for source in ORDER]
    assert column(file, "slice_count") == [counts[source] for source in ORDER]
    assert column(file, "first_slice") == [sum(counts[before] for before in ORDER[:row]) for row in range(len(ORDER))]
    kinds = ["segmented" if source in ("NCP/96/1328", "Normal/1995/500") else "complete" for source in ORDER]
    assert column(file, "image_kind") == kinds
    checks = [json.loads(text) for text in column(file, "checks")]
    codes = [[finding["code"] for finding in found.pop("findings", [])] for found in checks]
    short = ["too-few-slices" if counts[source] < DEPTH else "" for source in ORDER]
    masked = ["segmented" if kind == "segmented" else "" for kind in kinds]
    assert codes == [[code for code in both if code] for both in zip(short, masked, strict=True)]
    assert checks == [{"height": 512, "width": 512, "bits": 8, "scaling": "grey, 8 bits"}] * len(ORDER)


def test_no_patient_is_in_two_splits(file: h5py.File) -> None:
    parts: dict[str, set[str]] = {}
    for patient, part in zip(column(file, "patient"), column(file, "split"), strict=True):
        parts.setdefault(patient, set()).add(part)
    assert len(parts) == 6
    assert all(len(among) == 1 and among <= {"train", "valid", "test"} for among in parts.values())


def test_classes_of_three_two_and_one_patients_fill_train_then_test_then_valid(file: h5py.File) -> None:
    found: dict[str, set[tuple[str, str]]] = {}
    for label, patient, part in zip(column(file, "label"), column(file, "patient"), column(file, "split"), strict=True):
        found.setdefault(label, set()).add((patient, part))
    parts = {label: sorted(part for _, part in pairs) for label, pairs in found.items()}
    assert parts == {"NCP": ["test", "train", "valid"], "Normal": ["test", "train"], "CP": ["train"]}
