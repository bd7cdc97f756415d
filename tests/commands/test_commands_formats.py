"""DICOM, NIfTI and lists of scans through the commands, as a user types them; what DICOM says of a patient stays in the DICOM files."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import forked
import h5py
import numpy as np
import pytest
import SimpleITK
import torch
from PIL import Image

from ctcovid.base.errors import InputError
from ctcovid.models import registry, saved_model
from ctcovid.models.network import SCALING
from ctcovid.scans.manifest import manifest_scans

WriteSeries = Callable[..., list[Path]]
PLANTED = {"PatientName": "Mustermann^Erika", "PatientBirthDate": "19640812", "InstitutionName": "Charite Planted", "PatientID": "KH-77123"}
LEVEL, WIDTH = -500, 1400


def ctcovid(cwd: Path, *arguments: object, thin: bool = False) -> subprocess.CompletedProcess[str]:
    return forked.run(*arguments, cwd=cwd, thin=thin)


def grey(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint((values.astype(float) - LEVEL + WIDTH / 2) * 255 / WIDTH), 0, 255).astype(np.uint8)


def write_volume(path: Path, values: np.ndarray) -> None:
    image = SimpleITK.GetImageFromArray(values[::-1])
    image.SetSpacing((0.75, 0.75, 2))
    SimpleITK.WriteImage(image, str(path))


def write_pictures(folder: Path, values: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for number, pixels in enumerate(grey(values)):
        Image.fromarray(pixels).save(folder / f"{number}.png")


def rows_of(path: Path) -> list[dict[str, str]]:
    with h5py.File(path) as file:
        names = ("id", "patient", "label", "split", "source")
        columns = [file["scans"][name].asstr()[:] for name in names]
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


@pytest.fixture
def listed(write_series: WriteSeries, chest: np.ndarray, tmp_path: Path) -> Path:
    """A directory with a list of nine scans of three kinds, each of three classes once as DICOM, as NIfTI and as pictures."""
    lines = ["path,label,patient,scan,split"]
    for number, label in enumerate(("NCP", "CP", "Normal")):
        values = chest + 60 * number
        write_series(tmp_path / "scanner" / f"S{number}", values, study=f"1.{number}", **PLANTED)
        write_volume(tmp_path / f"{label}.nii.gz", values)
        write_pictures(tmp_path / "png" / label, values)
        lines += [f"scanner/S{number},{label},d{number},,train", f"{label}.nii.gz,{label},n{number},x,valid"]
        lines += [f"png/{label},{label},p{number},,test"]
    (tmp_path / "scans.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_list_of_scans_is_prepared_learnt_and_classified_with_the_window_of_the_model(listed: Path) -> None:
    done = ctcovid(listed, "prepare", "scans.csv", "--size", 24, "--window", f"{LEVEL}/{WIDTH}", "--output", "out/volumes.h5")
    assert done.returncode == 0, done.stderr
    rows = rows_of(listed / "out" / "volumes.h5")
    assert [(row["patient"], row["split"], row["source"]) for row in rows[:3]] == [
        ("d0", "train", "scanner/S0"),
        ("n0", "valid", "NCP.nii.gz"),
        ("p0", "test", "png/NCP"),
    ]
    assert [row["id"] for row in rows[:3]] == ["S0", "x", "NCP"]
    with h5py.File(listed / "out" / "volumes.h5") as file:
        slices = file["slices"][:].reshape(9, 9, 24, 24)
        assert json.loads(file.attrs["settings"])["window"] == [LEVEL, WIDTH]
    # As DICOM, as NIfTI and as pictures it is the same volume.
    for label in range(3):
        assert np.array_equal(slices[3 * label], slices[3 * label + 2]) and np.array_equal(slices[3 * label + 1], slices[3 * label + 2])

    line = ("train", "--data", "out/volumes.h5", "--depth", 4, "--epochs", 1, "--batch", 2, "--runs", "out/runs")
    done = ctcovid(listed, *line, thin=True)
    assert done.returncode == 0, done.stderr
    (card,) = (listed / "out" / "runs").glob("*/model.json")
    assert json.loads(card.read_text())["window"] == [LEVEL, WIDTH]

    done = ctcovid(listed, "predict", "scans.csv", "--runs", "out/runs", thin=True)
    assert done.returncode == 0, done.stderr
    found = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["scan"] for row in found[:3]] == ["d0", "n0/x", "p0"]
    # Only by the model's own window are the scans equal to their pictures.
    assert len({row["p_NCP"] for row in found[:3]}) == 1
    assert_nothing_of(PLANTED.values(), listed / "out")


def test_files_by_name_are_classified_and_explained_with_the_window_of_the_model(listed: Path) -> None:
    """By a network in its full width."""
    torch.manual_seed(0)
    (listed / "out" / "runs" / "wide").mkdir(parents=True)
    saved_model.save_weights(listed / "out" / "runs" / "wide" / saved_model.WEIGHTS, registry.create("r3d18"))
    card = {"architecture": "r3d18", "classes": ["NCP", "CP", "Normal"], "positive": "NCP", "depth": 4, "size": 24, "scaling": SCALING}
    saved_model.save_card(listed / "out" / "runs" / "wide", {**card, "window": [LEVEL, WIDTH], "data": {"path": "volumes.h5"}})
    line = ("predict", "scanner/S0", "NCP.nii.gz", "png/NCP", "--runs", "out/runs", "--output", "out/predictions.csv")
    done = ctcovid(listed, *line)
    assert done.returncode == 0, done.stderr
    files = list(csv.DictReader((listed / "out" / "predictions.csv").open()))
    assert [row["scan"] for row in files] == ["scanner/S0", "NCP", "png/NCP"]
    assert len({row["p_NCP"] for row in files}) == 1
    done = ctcovid(listed, "explain", "scanner/S0", "NCP.nii.gz", "--runs", "out/runs", "--output", "out/maps", "--samples", 1)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((listed / "out" / "maps" / "scanner-S0" / "manifest.json").read_text())
    assert manifest["slices"] == [f"{number:04d}" for number in range(8)]
    assert_nothing_of(PLANTED.values(), listed / "out")


def assert_nothing_of(words: object, folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 3
    for path in files:
        content = path.read_bytes() + str(path).encode()
        for word in words:  # type: ignore[attr-defined]
            for part in (str(word), *str(word).split("^")):
                assert part.encode() not in content, f"{part} in {path}"


@pytest.fixture
def dumped(write_series: WriteSeries, chest: np.ndarray, tmp_path: Path) -> Path:
    """Class folders that hold slices of several patients directly, so that DICOM alone names them."""
    for label, first in (("NCP", 0), ("CP", 3)):
        for number in range(3):
            planted = PLANTED | {"PatientID": f"KH-77123-{first + number}"}
            study = f"1.2.826.0.1.7712{first + number}"
            write_series(tmp_path / "data" / label, chest, study=study, number=first + number, **planted)
    return tmp_path


def test_ids_of_dicom_are_pseudonyms_with_a_salt_of_the_file(dumped: Path) -> None:
    (dumped / "out").mkdir()
    for name in ("one", "two"):
        done = ctcovid(dumped, "prepare", "data", "--size", 24, "--output", f"out/{name}.h5")
        assert done.returncode == 0, done.stderr
        assert (dumped / "out" / f"{name}.h5.salt").stat().st_mode & 0o077 == 0
    patients = {name: [row["patient"] for row in rows_of(dumped / "out" / f"{name}.h5")] for name in ("one", "two")}
    assert len(set(patients["one"])) == 6 and all(len(patient) == 16 for patient in patients["one"])
    assert not set(patients["one"]) & set(patients["two"])
    assert_nothing_of([*PLANTED.values(), "1.2.826.0.1.7712"], dumped / "out")
    # The same salt gives the same names: a file made again stays comparable.
    done = ctcovid(dumped, "prepare", "data", "--size", 24, "--output", "out/one.h5", "--overwrite")
    assert [row["patient"] for row in rows_of(dumped / "out" / "one.h5")] == patients["one"]


def test_ids_of_dicom_are_kept_on_request(dumped: Path) -> None:
    done = ctcovid(dumped, "prepare", "data", "--size", 24, "--keep-ids")
    assert done.returncode == 0, done.stderr
    assert {row["patient"] for row in rows_of(dumped / "volumes.h5")} == {f"KH-77123-{number}" for number in range(6)}
    assert not (dumped / "volumes.h5.salt").exists()


def test_wrong_lines_of_a_list_are_named_by_number(listed: Path) -> None:
    (listed / "wrong.csv").write_text("path,label,patient\npng/NCP,NCP,1\nabsent,CP,2\n\npng,CP,3\npng/NCP,CP,4\n")
    done = ctcovid(listed, "prepare", "wrong.csv")
    assert done.returncode == 3
    assert "wrong.csv: 3 lines cannot be used" in done.stderr
    for said in (
        "line 3: No such file or folder: absent",
        "line 5: png holds 3 scans; give a line for each",
        "line 6: png/NCP is also in line 2",
    ):
        assert said in done.stderr
    (listed / "wrong.csv").write_text("path,label,patient\npng/NCP,,1\npng/CP,CP,\n")
    assert "line 2: no label" in (said := ctcovid(listed, "prepare", "wrong.csv").stderr) and "line 3: no patient" in said
    (listed / "wrong.csv").write_text("path,label,patient,scan\npng/NCP,NCP,1,a\npng/CP,NCP,1,a\n")
    assert "line 3: scan a of patient 1 is also in line 2, with another path" in ctcovid(listed, "prepare", "wrong.csv").stderr
    (listed / "wrong.csv").write_text("path,label\npng/NCP,NCP\n")
    assert "has no column patient. It needs path,label,patient[,scan,split]" in ctcovid(listed, "prepare", "wrong.csv").stderr


def test_dicom_and_a_volume_in_one_folder_have_a_line_each(write_series: WriteSeries, chest: np.ndarray, tmp_path: Path) -> None:
    write_series(tmp_path / "both", chest)
    write_volume(tmp_path / "both" / "a.nii.gz", chest)
    (tmp_path / "scans.csv").write_text("path,label,patient\nboth,NCP,1\n")
    with pytest.raises(InputError, match="line 2: both holds 2 scans; give a line for each"):
        manifest_scans(tmp_path / "scans.csv")
    (tmp_path / "scans.csv").write_text("path,label,patient\nboth,NCP,1\nboth/a.nii.gz,CP,2\n")
    assert [scan.stack and scan.stack.reader for scan in manifest_scans(tmp_path / "scans.csv")] == ["dicom", "volume"]
    # As Excel saves it where numbers have decimal commas.
    (tmp_path / "scans.csv").write_text("sep=;\nPath;Label;Patient\nboth;NCP;1\nboth/a.nii.gz;CP;2\n", encoding="utf-16")
    assert [(scan.label, scan.patient) for scan in manifest_scans(tmp_path / "scans.csv")] == [("NCP", "1"), ("CP", "2")]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["png/NCP,NCP,1,train", "png/CP,CP,2,"], "line 3: split '' is not one of train, valid, test"),
        (["png/NCP,NCP,1,train", "png/CP,CP,1,test"], "line 3: patient 1 is in test here, but in train above"),
        (["png/NCP,NCP,1,train", "png/CP,CP,2,rest"], "line 3: split 'rest' is not one of"),
    ],
)
def test_split_of_a_list_is_whole_and_by_patient(lines: list[str], said: str, listed: Path) -> None:
    (listed / "wrong.csv").write_text("\n".join(["path,label,patient,split", *lines]))
    done = ctcovid(listed, "prepare", "wrong.csv")
    assert done.returncode == 3
    assert said in done.stderr


@pytest.mark.parametrize("window", ["-600", "wide", "-600/0", "nan/1500", "-600/inf"])
def test_window_that_is_none_is_a_usage_error(window: str, listed: Path) -> None:
    done = ctcovid(listed, "prepare", "scans.csv", f"--window={window}")
    assert done.returncode == 2
    assert "--window" in done.stderr and "Traceback" not in done.stderr


def test_series_that_is_used_is_said_and_another_can_be_asked_for(write_series: WriteSeries, chest: np.ndarray, tmp_path: Path) -> None:
    for label in ("NCP", "CP"):
        write_series(tmp_path / "data" / label / "1" / "1", chest, number=2)
        write_series(tmp_path / "data" / label / "1" / "1", chest[:5], number=3)
    done = ctcovid(tmp_path, "prepare", "data", "--size", 24)
    assert done.returncode == 0, done.stderr
    assert "used series 2 (9 slices, 2 mm); not used: series 3 (5 slices, 2 mm)" in done.stderr
    done = ctcovid(tmp_path, "prepare", "data", "--size", 24, "--overwrite", "--series", "3")
    assert done.returncode == 0, done.stderr
    with h5py.File(tmp_path / "volumes.h5") as file:
        assert file["scans/slice_count"][:].tolist() == [5, 5]
    done = ctcovid(tmp_path, "prepare", "data", "--size", 24, "--overwrite", "--series", "4")
    assert done.returncode == 3
    assert "no series 4 in the study" in done.stderr
