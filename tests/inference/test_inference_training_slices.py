"""Scans that a model was trained on are flagged, whatever their folders are called and however their pixels are stored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from PIL import Image

from ctcovid.base.console import Console
from ctcovid.base.errors import ModelRefusedError
from ctcovid.commands import predict, prepare, train
from ctcovid.models import registry
from ctcovid.models.training_slices import FILE
from ctcovid.scans.discover import find_scans, with_patients

pytestmark = pytest.mark.usefixtures("thin")
QUIET = Console(quiet=True, results=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, thin: None) -> Path:
    """A data set of five patients in each of three classes, NCP/0 … Normal/204, and in runs/ a model of one epoch."""
    root = tmp_path_factory.mktemp("seen")
    for position, label in enumerate(("NCP", "CP", "Normal")):
        for number in range(5):
            folder = root / "data" / label / str(100 * position + number) / "1"
            folder.mkdir(parents=True)
            for index in range(6):
                # Higher than wide, so that stored slices are padded and resized.
                pixels = np.random.default_rng([position, number, index]).integers(40 * position, 200, (48, 40), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    prepare.run(prepare.Options(root / "data", depth=2, size=32, output=root / "volumes.h5", workers=1), QUIET)
    train.run(train.Options(data=root / "volumes.h5", epochs=1, batch=4, runs=root / "runs", name="run", device="cpu", workers=1), QUIET)
    return root


def patient_of(trained: Path, part: str) -> Path:
    """The folder of a patient of a part."""
    name = json.loads((trained / "runs" / "run" / "model.json").read_text())["split"][part][0]
    (folder,) = (trained / "data").glob(f"*/{name}")
    return folder


def flagged(trained: Path, *scans: Path) -> list[tuple[list[str], str]]:
    rows = predict.run(predict.Options(scans, ("run",), runs=trained / "runs", device="cpu", workers=1), QUIET).rows
    return [([flag for flag in row["flags"] if flag == "seen-in-training"], row["notes"]) for row in rows]


def test_a_training_scan_is_flagged_and_a_test_scan_is_not(trained: Path) -> None:
    ((codes, notes),) = flagged(trained, patient_of(trained, "train"))
    assert codes == ["seen-in-training"] and "6 of its 6 slices are in the model's training part." in notes
    assert all(codes == [] for codes, _ in flagged(trained, patient_of(trained, "test"), patient_of(trained, "valid")))


@pytest.mark.parametrize("form", ["renamed", "tif", "bmp", "nii.gz", "fewer"])
def test_a_training_scan_is_recognised_under_other_names_and_in_other_lossless_forms(trained: Path, tmp_path: Path, form: str) -> None:
    pictures = sorted((patient_of(trained, "train") / "1").iterdir())
    copied = tmp_path / "elsewhere"
    copied.mkdir()
    if form == "nii.gz":
        # Values from 0 to 255 are taken for grey as they are. NIfTI's z axis runs from feet to head.
        image = SimpleITK.GetImageFromArray(np.stack([np.asarray(Image.open(path)) for path in reversed(pictures)]))
        SimpleITK.WriteImage(image, str(copied / "scan.nii.gz"))
    for number, path in enumerate(pictures):
        if form == "renamed":
            shutil.copy(path, copied / f"x{number + 40}.png")
        elif form == "fewer" and number in (1, 4, 5):
            shutil.copy(path, copied / f"{number}.png")
        elif form in ("tif", "bmp"):
            Image.open(path).save(copied / f"{number}.{form}")
    ((codes, notes),) = flagged(trained, copied)
    count = 3 if form == "fewer" else 6
    assert codes == ["seen-in-training"] and f"{count} of its {count} slices are in the model's training part." in notes


def test_single_slices_of_a_training_scan_are_counted(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(patient_of(trained, "test") / "1", tmp_path / "mixed")
    shutil.copy(patient_of(trained, "train") / "1" / "3.png", tmp_path / "mixed" / "3.png")
    ((codes, notes),) = flagged(trained, tmp_path / "mixed")
    assert codes == ["seen-in-training"] and "1 of its 6 slices is in the model's training part." in notes


def test_another_scan_of_a_training_patient_is_flagged_by_its_name(trained: Path, tmp_path: Path, make_scan: Callable[..., Path]) -> None:
    name = patient_of(trained, "train").name
    make_scan(tmp_path / "CP" / name / "2", 6)
    make_scan(tmp_path / "CP" / "nobody" / "2", 6, level=90)
    (_, notes), (other, _) = flagged(trained, tmp_path)
    assert f"A patient of the same name, {name}, is in the model's training part." in notes and other == []


def test_a_run_without_the_list_of_its_slices_works_and_a_damaged_list_is_refused(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    (tmp_path / "data").symlink_to(trained / "data")
    path = tmp_path / "runs" / "run" / FILE
    assert json.loads((path.parent / "model.json").read_text())["training_slices"]["count"] == 6 * 9
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelRefusedError, match=FILE):
        flagged(tmp_path, patient_of(trained, "test"))
    path.unlink()
    registry._loaded.clear()
    # By the name of the patient, which is still there.
    ((codes, notes),) = flagged(tmp_path, patient_of(trained, "train"))
    assert codes == ["seen-in-training"] and "same name" in notes
    registry._loaded.clear()


def test_the_patient_is_that_of_the_path_where_a_class_folder_tells_it(
    tmp_path: Path, make_scan: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for scan in ("NCP/16/1164", "NCP/16/1165", "CP/7/1", "Tumour/9/1", "NCP/loose", "CP/x/Normal/1", "CP/8/a/b"):
        make_scan(tmp_path / scan, 2)
    values = np.zeros((3, 8, 8), np.int16)
    for file in ("Normal/21.nii.gz", "Normal/22/1.nii.gz", "Normal/23/1/ct.nii.gz"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), str(tmp_path / file))
    classes = ["NCP", "CP", "Normal"]

    def patients(*paths: Path) -> dict[str, str]:
        return {scan.folder.resolve().relative_to(tmp_path).as_posix(): scan.patient for scan in with_patients(find_scans(paths), classes)}

    expected = {"NCP/16/1164": "16", "NCP/16/1165": "16", "CP/7/1": "7", "CP/8/a/b": "8", "Tumour/9/1": "", "NCP/loose": ""}
    expected |= {"CP/x/Normal/1": "", "Normal/21.nii.gz": "21", "Normal/22/1.nii.gz": "22", "Normal/23/1/ct.nii.gz": "23"}
    assert patients(tmp_path) == expected
    # As well from a class folder, a patient's, a scan's, or from within.
    for given in ("NCP", "NCP/16", "NCP/16/1164"):
        assert patients(tmp_path / given).items() <= expected.items()
    monkeypatch.chdir(tmp_path / "NCP" / "16" / "1164")
    assert patients(Path()) == {"NCP/16/1164": "16"}
    # A patient of a list stays.
    (tmp_path / "scans.csv").write_text("path,patient\nNCP/16/1164,a\nCP/7/1,\n")
    assert patients(tmp_path / "scans.csv") == {"NCP/16/1164": "a", "CP/7/1": "7"}
