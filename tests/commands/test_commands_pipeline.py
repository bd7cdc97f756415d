"""All five commands, one after another in an empty directory, as a user types them."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from pathlib import Path

import forked
import h5py
import numpy as np
import pytest
from PIL import Image


def ctcovid(cwd: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return forked.run(*arguments, cwd=cwd, thin=False)


@pytest.fixture(scope="module")
def directory(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real scans, prepared and trained on at a small size, in a directory of their own."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copytree(sample_data / "ccccii", folder / "CC-CCII")
    shutil.copytree(sample_data / "ccccii" / "NCP" / "920" / "2462", folder / "scan_dir")
    done = ctcovid(folder, "prepare", "./CC-CCII", "--depth", 4, "--size", 32)
    assert done.returncode == 0, done.stderr
    done = ctcovid(folder, "train", "--arch", "r2plus1d18", "--epochs", 1)
    assert done.returncode == 0, done.stderr
    assert "validation part is empty" in done.stderr
    return folder


def test_prepare_fills_train_then_test_and_names_what_is_missing(directory: Path) -> None:
    rows = list(csv.DictReader((directory / "volumes.table.csv").open()))
    counts = {(row["class"], row["split"]): int(row["patients"]) for row in rows}
    assert [counts[label, part] for label in ("NCP", "CP", "Normal") for part in ("train", "valid", "test")] == [1, 0, 1, 1, 0, 0, 1, 0, 0]
    assert sum(int(row["slices"]) for row in rows if row["class"] != "all" and row["split"] == "all") == 520


def test_slices_are_the_real_ones(directory: Path) -> None:
    with h5py.File(directory / "volumes.h5") as file:
        sources = file["scans/source"].asstr()[:].tolist()
        row = sources.index("CP/1068/3107")
        first = int(file["scans/first_slice"][row])
        found = file["slices"][first + 100]
    with Image.open(directory / "CC-CCII/CP/1068/3107/0100.jpg") as image:
        expected = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.BILINEAR))
    assert np.array_equal(found, expected)


def test_evaluate_gives_what_is_defined_and_names_what_is_not(directory: Path) -> None:
    done = ctcovid(directory, "evaluate", "--json")
    assert done.returncode == 0, done.stderr
    (model,) = json.loads(done.stdout)["models"]
    assert model["n_volumes"] == 12 and model["p_values"] is None
    assert model["macro_auroc"]["value"] is None and "CP" in model["undefined"]["macro_auroc"]
    assert model["accuracy"]["value"] == sum(model["confusion"][i][i] for i in range(3)) / 12
    written = directory / "runs" / "r2plus1d18-d4-b32" / "evaluation"
    assert json.loads((written / "evaluation.json").read_text()) == json.loads(done.stdout)

    again = ctcovid(directory, "evaluate", "--json")
    assert again.returncode == 5 and again.stdout == ""
    assert "TRIPOD+AI" in (written.parent / "MODEL_CARD.md").read_text() and (written / "report.html").is_file()
    own = written / "predictions-r2plus1d18-d4-b32.csv"
    shutil.copy(own, directory / "other.csv")
    both = ctcovid(directory, "evaluate", "r2plus1d18-d4-b32", "other.csv", "--json", "-o", "compared")
    assert both.returncode == 0, both.stderr
    first, second = json.loads(both.stdout)["models"]
    assert first["confusion"] == second["confusion"] == model["confusion"]
    assert second["p_values"] == {"accuracy": 1.0, "precision": 1.0, "recall": 1.0, "f1": 1.0}


def test_predict_goes_on_past_a_bad_scan(directory: Path, tmp_path: Path) -> None:
    shutil.copytree(directory / "scan_dir", tmp_path / "many" / "good")
    (tmp_path / "many" / "bad").mkdir()
    for number in range(4):
        (tmp_path / "many" / "bad" / f"000{number}.png").write_text("no picture")
    done = ctcovid(directory, "predict", tmp_path / "many")
    assert done.returncode == 4
    assert "bad/0000.png: not an image" in done.stderr and "research use" in done.stderr
    bad, row = csv.DictReader(done.stdout.splitlines())
    assert (bad["scan"], bad["predicted"], bad["p_NCP"], bad["flags"]) == ("bad", "", "", "refused;unreadable")
    assert (row["scan"], row["n_volumes"], row["n_slices"]) == ("good", "12", "50")
    assert sum(float(row[f"p_{label}"]) for label in ("NCP", "CP", "Normal")) == pytest.approx(1)

    alone = ctcovid(directory, "predict", "scan_dir/", "--json", "-o", tmp_path / "out.csv")
    assert alone.returncode == 0
    (same,) = csv.DictReader((tmp_path / "out.csv").open())
    assert [same[f"p_{label}"] for label in ("NCP", "CP", "Normal")] == [row[f"p_{label}"] for label in ("NCP", "CP", "Normal")]


def test_explain_writes_overlays_montage_maps_and_manifest(directory: Path) -> None:
    done = ctcovid(directory, "explain", "scan_dir/", "--samples", 2)
    assert done.returncode == 0, done.stderr
    folder = directory / "explanations" / "scan_dir"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["native_shape"] == [1, 1, 1] and manifest["method"] == "Smooth Grad-CAM++" and manifest["layer"] == "layer4"
    assert manifest["seed"] == 0 and manifest["class"] == manifest["predicted"]
    assert [path.name for path in sorted((folder / "overlays").iterdir())] == [f"{number:04d}.png" for number in range(48)]
    assert manifest["slices_without_map"] == ["0048.JPG", "0049.JPG"]
    maps = np.load(folder / "saliency.npz")
    assert maps["native"].shape == (12, 3, 1, 1, 1) and maps["saliency"].shape == (48, 32, 32)
    assert maps["classes"].tolist() == ["NCP", "CP", "Normal"]
    assert "scan_dir" in (folder / "viewer.html").read_text() and not (folder / "saliency.nii.gz").exists()
    assert ctcovid(directory, "explain", "scan_dir/").returncode == 5


def test_models_lists_the_run(directory: Path) -> None:
    done = ctcovid(directory, "models", "--json")
    (run,) = json.loads(done.stdout)["runs"]
    assert (run["name"], run["architecture"], run["depth"]) == ("r2plus1d18-d4-b32", "r2plus1d18", 4)


def test_segmented_scans_are_told_from_complete_ones(sample_data: Path, tmp_path: Path) -> None:
    shutil.copytree(sample_data / "ccccii-segmented", tmp_path / "data")
    shutil.copytree(sample_data / "ccccii" / "NCP" / "920", tmp_path / "data" / "NCP" / "920")
    done = ctcovid(tmp_path, "prepare", "data", "--size", 64, "--images", "all")
    assert done.returncode == 0, done.stderr
    with h5py.File(tmp_path / "volumes.h5") as file:
        kinds = dict(zip(file["scans/id"].asstr()[:].tolist(), file["scans/image_kind"].asstr()[:].tolist(), strict=True))
        assert file.attrs["image_kind"] == "mixed"
    assert kinds == {"1328": "segmented", "2462": "complete", "500": "segmented"}
    assert "learn the mask" in done.stderr
