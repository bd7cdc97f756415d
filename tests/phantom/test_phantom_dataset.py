"""The synthetic CC-CCII: the same for the same seed, laid out like the real one, and different from class to class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ctcovid.phantom.chest import CONSOLIDATION, GROUND_GLASS, chest
from ctcovid.phantom.dataset import write_dataset
from ctcovid.scans.discover import class_order, find_dataset
from ctcovid.scans.kind import looks_masked
from ctcovid.scans.read import read_scan

CLASSES = ("NCP", "CP", "Normal")


def share(volume: np.ndarray, value: float) -> float:
    return float(np.mean(np.abs(volume.astype(float) - value) < 12))


@pytest.fixture(scope="module")
def chests() -> dict[str, list[np.ndarray]]:
    return {label: [chest(label, 16, 64, np.random.default_rng(seed)) for seed in range(3)] for label in CLASSES}


def test_same_arguments_write_the_same_pixels_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("one", 5), ("two", 5), ("three", 6)):
        write_dataset(tmp_path / name, patients=1, size=24, seed=seed, advance=lambda count: None)
    one, two, three = (
        {path.relative_to(tmp_path / name): np.asarray(Image.open(path)) for path in (tmp_path / name).rglob("*.png")}
        for name in ("one", "two", "three")
    )
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert one.keys() != three.keys() or any(not np.array_equal(one[name], three[name]) for name in one)


def test_data_set_has_the_real_layout_and_every_patient_one_class(tmp_path: Path) -> None:
    done: list[int] = []
    assert write_dataset(tmp_path, patients=2, size=24, seed=0, advance=done.append) == 6
    assert sum(done) == 6
    scans, problems = find_dataset(tmp_path)
    assert problems == []
    assert class_order(scan.label for scan in scans) == list(CLASSES)
    assert [scan.label for scan in scans].count("CP") == 2
    assert len({scan.patient for scan in scans}) == len({scan.id for scan in scans}) == 6
    assert all(16 <= len(scan.slices) <= 24 and scan.slices[0].name == "0000.png" for scan in scans)
    assert read_scan(scans[0].slices, 24).shape == (len(scans[0].slices), 24, 24)


@pytest.mark.parametrize("label", CLASSES)
def test_phantom_is_uint8_of_the_size_asked_for(label: str) -> None:
    volume = chest(label, 7, 40, np.random.default_rng(0))
    assert (volume.dtype, volume.shape) == (np.uint8, (7, 40, 40))


def test_no_phantom_passes_for_a_masked_scan(chests: dict[str, list[np.ndarray]]) -> None:
    assert not any(looks_masked(pixels) for volumes in chests.values() for volume in volumes for pixels in volume)


def test_only_covid_has_ground_glass_and_pneumonia_most_consolidation(chests: dict[str, list[np.ndarray]]) -> None:
    glass = {label: [share(volume, GROUND_GLASS) for volume in volumes] for label, volumes in chests.items()}
    assert min(glass["NCP"]) > 5 * max(glass["CP"] + glass["Normal"])
    # The same seed draws the same body and vessels, so the lesions are all the difference.
    block = {label: [share(volume, CONSOLIDATION) for volume in volumes] for label, volumes in chests.items()}
    assert all(sick > healthy for sick, healthy in zip(block["CP"], block["Normal"], strict=True))


def test_ground_glass_lies_under_the_pleura_and_consolidation_inside() -> None:
    """Li et al. 2021, Sec. 3.4: by the distance of what differs from a normal chest of the same seed from the middle of a lung."""
    distances = {}
    for label, value in (("NCP", GROUND_GLASS), ("CP", CONSOLIDATION)):
        volume = chest(label, 16, 96, np.random.default_rng(1)).astype(float)
        lesion = np.abs(volume[8] - value) < 12
        y, x = np.mgrid[-1:1:96j, -1:1:96j]
        radius = ((np.abs(x) - 0.42) / 0.33) ** 2 + (y / 0.5) ** 2
        inside = lesion & (radius < 0.95)
        assert inside.sum() > 20
        distances[label] = float(np.median(radius[inside]))
    assert distances["NCP"] > 0.55 > distances["CP"]
