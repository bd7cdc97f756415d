"""The synthetic CC-CCII: the same bytes for the same seed, laid out like the real one, with the defects that it says it has."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from whole import read_scan

from ctcovid.phantom.chest import ScanKey, chest
from ctcovid.phantom.dataset import DEFECTS, LESIONS, SCANS, Parameters, plan, write_dataset
from ctcovid.phantom.defects import Defects
from ctcovid.phantom.distributions import EXTENSIONS
from ctcovid.scans.classes import class_order
from ctcovid.scans.discover import TRUTH, find_dataset
from ctcovid.scans.kind import is_masked
from ctcovid.scans.read import UNDECODABLE

CLASSES = ("NCP", "CP", "Normal")
KINDS = ("repeated", "shuffled", "reversed", "masked", "corrupt", "odd_size")
SMALL = Parameters(patients=2, size=32, seed=5, slices=(8, 11), scans=2)
DEFECTIVE = Parameters(patients=6, size=32, seed=2, slices=(9, 12), scans=1, extension="png", defects=Defects(*[1 / 9] * 6))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small")
    write_dataset(root, SMALL)
    return root


@pytest.fixture(scope="module")
def defective(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scans of each defect among eighteen."""
    root = tmp_path_factory.mktemp("defective")
    write_dataset(root, DEFECTIVE)
    return root


def test_any_number_of_workers_writes_the_same_bytes_and_another_seed_others(small: Path, tmp_path: Path) -> None:
    done: list[int] = []
    scans = write_dataset(tmp_path / "two", SMALL, workers=2, advance=done.append)
    assert sum(done) == len(scans)
    assert files(tmp_path / "two") == files(small)
    write_dataset(tmp_path / "other", Parameters(1, 32, 6, slices=(8, 11), scans=1))
    assert not set(files(small).values()) & {content for name, content in files(tmp_path / "other").items() if name.startswith(CLASSES)}


def test_files_hold_what_was_drawn_in_every_format_that_loses_nothing(small: Path, tmp_path: Path) -> None:
    seen = set()
    for parameters in (
        SMALL,
        Parameters(1, 33, 3, slices=(2, 3), scans=1, extension="png"),
        Parameters(1, 20, 3, slices=(2, 3), extension="bmp"),
    ):
        root = small if parameters is SMALL else tmp_path / str(parameters.extension)
        if root != small:
            write_dataset(root, parameters)
        for scan in plan(parameters):
            if scan.extension.lower() in ("jpg", "jpeg"):
                continue
            pixels, lesions = chest(scan.label, scan.slices, parameters.size, ScanKey(parameters.seed, scan.patient, scan.number))
            for number, (drawn, lesion) in enumerate(zip(pixels, lesions, strict=True)):
                path = scan.folder(root) / f"{number:04d}.{scan.extension}"
                assert np.array_equal(np.asarray(Image.open(path)), drawn)
                assert np.array_equal(np.asarray(Image.open((scan.folder(root / TRUTH) / path.name).with_suffix(".png"))), lesion)
            seen.add(scan.extension.lower())
    assert {"png", "bmp"} <= seen


def test_data_set_has_the_real_layout_and_every_patient_one_class(small: Path) -> None:
    scans, problems = find_dataset(small)
    assert problems == []
    assert class_order(scan.label for scan in scans) == list(CLASSES)
    patients = {scan.patient: scan.label for scan in scans}
    assert Counter(patients.values()) == dict.fromkeys(CLASSES, SMALL.patients)
    assert "0" in patients
    assert all(str(int(scan.patient)) == scan.patient and str(int(scan.id)) == scan.id for scan in scans)
    assert len({scan.id for scan in scans}) == len(scans)
    for scan in scans:
        assert [path.stem for path in scan.slices] == [f"{number:04d}" for number in range(len(scan.slices))]
        assert len({path.suffix for path in scan.slices}) == 1
        assert 8 <= len(scan.slices) <= 11
        assert read_scan(scan, 32).shape == (len(scan.slices), 32, 32)


def test_lengths_scans_of_a_patient_and_extensions_are_those_of_cc_ccii() -> None:
    scans = plan(Parameters(patients=400, seed=1))
    lengths = np.array([scan.slices for scan in scans])
    assert lengths.min() >= 16
    assert lengths.max() <= 664
    assert abs(np.median(lengths) - 65) < 5
    of_patient = Counter(scan.patient for scan in scans)
    assert abs(np.mean([count == 1 for count in of_patient.values()]) - 982 / 1437) < 0.05
    kinds = Counter(scan.extension for scan in scans)
    assert kinds.keys() <= EXTENSIONS.keys()
    assert abs(kinds["png"] / len(scans) - 1750 / 2073) < 0.05


def test_side_files_have_the_real_columns_and_agree_with_the_folders(small: Path) -> None:
    scans, _ = find_dataset(small)
    listed = rows(small / SCANS)
    assert list(listed[0]) == ["zip_file", "label", "patient_id", "scan_id", "n_slice"]
    assert {(row["label"], row["patient_id"], row["scan_id"], int(row["n_slice"])) for row in listed} == {
        (scan.label, scan.patient, scan.id, len(scan.slices)) for scan in scans
    }
    lesions = rows(small / LESIONS)
    assert list(lesions[0]) == ["imgpath"]
    assert all((small / row["imgpath"]).is_file() for row in lesions)
    assert not any(row["imgpath"].startswith("Normal") for row in lesions)
    assert rows(small / DEFECTS) == []


def test_truth_has_a_mask_for_every_slice_and_lesion_slices_are_those_with_a_lesion(small: Path) -> None:
    truth = small / TRUTH
    with_lesion = {row["imgpath"] for row in rows(small / LESIONS)}
    for scan in find_dataset(small)[0]:
        for path in scan.slices:
            name = path.relative_to(small)
            mask = np.asarray(Image.open(truth / name.with_suffix(".png")).convert("L"))
            assert mask.shape == Image.open(path).size[::-1]
            assert set(np.unique(mask)) <= {0, 255}
            assert (name.as_posix() in with_lesion) == bool(mask.any())


def test_defects_listed_are_the_defects_found(defective: Path) -> None:
    listed = rows(defective / DEFECTS)
    assert list(listed[0]) == ["kind", "class", "patient", "scan", "detail"]
    assert Counter(row["kind"] for row in listed) == dict.fromkeys(KINDS, 2)
    kinds = {(row["class"], row["patient"], row["scan"]): row["kind"] for row in listed}
    clean = plan(Parameters(**{**vars(DEFECTIVE), "defects": Defects()}))
    for scan in clean:
        kind = kinds.get((scan.label, str(scan.patient), str(scan.scan)), "")
        stack, pictures = [], sorted(scan.folder(defective).iterdir())
        damaged = 0
        for path in pictures:
            try:
                stack.append(np.asarray(Image.open(path)))
            except UNDECODABLE:
                damaged += 1
        assert damaged == (kind == "corrupt")
        assert all(pixels.shape == ((59, 64) if kind == "odd_size" else (32, 32)) for pixels in stack)
        names = [pixels.tobytes() for pixels in stack]
        assert (len(set(names)) < len(names)) == (kind == "repeated")
        middle = stack[len(stack) // 2]
        assert is_masked(middle) == (kind == "masked")


def test_reversed_and_shuffled_scans_hold_the_same_slices_in_another_order(defective: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path, Parameters(**{**vars(DEFECTIVE), "defects": Defects()}))
    for row in rows(defective / DEFECTS):
        name = Path(row["class"]) / row["patient"] / row["scan"]
        before, after = ([path.read_bytes() for path in sorted((root / name).iterdir())] for root in (tmp_path, defective))
        if row["kind"] in ("reversed", "shuffled"):
            assert after != before
            assert sorted(after) == sorted(before)
        if row["kind"] == "reversed":
            assert after[::-1] == before
        if row["kind"] == "repeated":
            assert after[: len(before)] == before


def test_wishes_that_cannot_be_met_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 1"):
        Defects(masked=0.7, corrupt=0.6)
    with pytest.raises(ValueError, match="difficulty"):
        Parameters(1, difficulty=1.5)
    with pytest.raises(ValueError, match="slices"):
        Parameters(1, slices=(9, 3))
