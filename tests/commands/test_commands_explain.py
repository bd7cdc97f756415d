"""ctcovid explain: what it writes for a scan, and what it refuses."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
import torch
from PIL import Image
from seers import brightness
from torch import nn

from ctcovid.base.console import Console
from ctcovid.base.errors import InputError, OutputExistsError, UsageError
from ctcovid.commands import demo, explain, predict
from ctcovid.explanation.pointing import Pointing
from ctcovid.models import registry, saved_model
from ctcovid.models.network import SCALING

CLASSES = ["NCP", "CP", "Normal"]


def registered(runs: Path, module: nn.Module, size: int = 32) -> Path:
    """A folder of runs whose only one, called small, has these weights."""
    (runs / "small").mkdir(parents=True)
    saved_model.save_weights(runs / "small" / saved_model.WEIGHTS, module)
    about = {"architecture": "r3d18", "classes": CLASSES, "positive": "NCP", "depth": 4, "size": size, "scaling": SCALING}
    split = {"split": {"train": ["patient-7"], "valid": [], "test": []}}
    saved_model.save_card(runs / "small", {**about, **split, "data": {"path": "volumes.h5", "fingerprint": "sha256:0"}})
    return runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with random weights: what a map looks like is tested elsewhere."""
    torch.manual_seed(0)
    return registered(tmp_path_factory.mktemp("runs"), registry.create("r3d18"))


@pytest.fixture
def scan(tmp_path: Path, make_scan: Callable[..., Path]) -> Path:
    return make_scan(tmp_path / "scan", slices=10)


def explained(runs: Path, scan: Path, quiet: bool = True, **options: object) -> tuple[dict[str, object], Path]:
    given = {"output": scan.parent / "out", "device": "cpu", "workers": 1, "samples": 2, **options}
    summary = explain.run(explain.Options((scan,), runs=runs, **given), Console(quiet=quiet, results=False))  # type: ignore[arg-type]
    folder = given["output"] / scan.name.split(".")[0]  # type: ignore[operator]
    assert summary.explained == [json.loads((folder / "manifest.json").read_text())]
    return summary.explained[0], folder


@pytest.mark.parametrize(
    ("method", "layer", "shape"),
    [
        ("smooth-gradcam++", None, [1, 1, 1]),
        ("gradcam", "layer2", [1, 4, 4]),
        ("gradcam++", "layer1", [2, 8, 8]),
        ("occlusion", None, [1, 12, 12]),
    ],
)
def test_every_method_gives_maps_of_every_class(runs: Path, scan: Path, method: str, layer: str | None, shape: list[int]) -> None:
    manifest, folder = explained(runs, scan, method=method, layer=layer, target="CP")
    maps = np.load(folder / "saliency.npz")
    assert maps["native"].shape == (2, 3, *shape) and manifest["native_shape"] == shape
    assert manifest["class"] == "CP" and manifest["layer"] == (None if method == "occlusion" else layer or "layer4")
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json",
        "montage.png",
        "overlays",
        "run.json",
        "saliency.npz",
        "viewer.html",
    }
    assert len(list((folder / "overlays").iterdir())) == 8 and manifest["slices_without_map"] == ["0008.png", "0009.png"]


@pytest.mark.parametrize("layer", ["layer1", "layer2"])
@pytest.mark.parametrize("feet_first", [False, True])
def test_the_peak_of_the_map_is_at_the_lesion_in_millimetres(
    layer: str, feet_first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a NIfTI file with a tilted affine to the map beside it; bright is ill to this network, and nothing but the lesion is bright."""
    runs = registered(tmp_path / "runs", brightness("r3d18", monkeypatch).module, size=64)
    pixels = np.random.default_rng(0).normal(-600, 60, (16, 60, 52)).astype(np.int16)
    x, y, z = lesion = (18, 34, 6)
    for away, radius in ((-1, 2), (0, 4), (1, 2)):
        pixels[z + away, y - radius : y + radius + 1, x - radius : x + radius + 1] = 100
    image = SimpleITK.GetImageFromArray(pixels)
    angle, along = np.radians(12), -1.0 if feet_first else 1.0
    image.SetSpacing((0.8, 0.8, 3.0))
    image.SetOrigin((-20.0, 35.0, 400.0))
    tilted = [1, 0, 0, 0, np.cos(angle), -along * np.sin(angle), 0, np.sin(angle), along * np.cos(angle)]
    image.SetDirection(tilted)
    SimpleITK.WriteImage(image, str(tmp_path / "scan.nii.gz"))

    explained(runs, tmp_path / "scan.nii.gz", method="gradcam", layer=layer, target="NCP", precision="float32")
    found = SimpleITK.ReadImage(str(tmp_path / "out" / "scan" / "saliency.nii.gz"))
    values = SimpleITK.GetArrayFromImage(found)
    peak = np.argwhere(values > values.max() - 1e-6 * np.ptp(values)).mean(0)[::-1]
    here = np.array(found.TransformContinuousIndexToPhysicalPoint(peak.tolist()))
    there = np.array(image.TransformIndexToPhysicalPoint(lesion))
    # Maps enlarged as pictures are would be 2.3 and 6.0 mm off; cells of layer1 are 3 mm apart, and 6 mm along the scan.
    assert np.linalg.norm(here - there) <= {"layer1": 2, "layer2": 3.5}[layer]


def test_the_page_names_no_patient_of_the_models_split(runs: Path, scan: Path) -> None:
    _, folder = explained(runs, scan, method="gradcam")
    page = (folder / "viewer.html").read_text()
    assert "r3d18" in page and "patient-7" not in page


def test_measures_of_faithfulness_and_of_the_mask_are_in_the_manifest_and_the_page(runs: Path, scan: Path) -> None:
    masks = scan.parent / "lesions"
    masks.mkdir()
    for number in range(10):
        Image.fromarray(np.full((32, 32), 255 * (number < 4), np.uint8)).save(masks / f"{number}.png")
    manifest, folder = explained(runs, scan, method="gradcam", layer="layer1", faithfulness=True, mask=masks)
    # Lesions that fill their slices are always hit, by chance as well.
    assert manifest["pointing"] == {"hits": 1.0, "energy": pytest.approx(1), "chance": 1.0, "slices": 4}
    checked = manifest["faithfulness"]
    assert isinstance(checked, dict) and 0 <= checked["deletion_area"] <= 1 and "caution" in checked
    page = (folder / "viewer.html").read_text()
    assert "deletion, area" in page and "saliency inside lesions" in page and "medically right" in page


@pytest.fixture
def mask(scan: Path) -> Path:
    """Lesions in one corner of each slice of the scan, written as 1."""
    masks = scan.parent / "lesions"
    masks.mkdir()
    for path in scan.iterdir():
        Image.fromarray(np.pad(np.ones((9, 9), np.uint8), (0, 23))).save(masks / path.name)
    return masks


def test_a_flat_map_is_reported_and_gets_no_measures(
    scan: Path, mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seer = registered(tmp_path / "seer", brightness("r3d18", monkeypatch).module)
    # Nothing speaks for this class: its weights are 0.
    manifest, folder = explained(seer, scan, method="gradcam", target="CP", faithfulness=True, mask=mask, quiet=False)
    assert manifest["maximum"] == 0 and manifest["faithfulness"] is None and manifest["pointing"] is None
    said = capsys.readouterr().err
    assert "The map of CP is empty" in said
    # A row that says so, and no table without figures.
    (row,) = [line for line in said.splitlines() if "flat map" in line]
    assert row.count("flat map") == 8
    assert "The map of CP is empty" in (folder / "viewer.html").read_text()


def test_measures_of_all_scans_are_printed(runs: Path, scan: Path, mask: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = explain.Options((scan,), runs=runs, output=scan.parent / "out", device="cpu", method="gradcam", faithfulness=True, mask=mask)
    explain.run(asked, Console(results=False))
    said = capsys.readouterr().err
    assert "deletion area" in said and "randomised correlation" in said and " hits " in said
    assert "The mask has lesions on 10 of 10 slices: all values but 0." in said


def test_what_explain_cannot_use_is_refused_before_work(runs: Path, scan: Path) -> None:
    for options, error, words in (
        ({"mask": scan / "absent.nii"}, InputError, "No such mask: .*absent.nii"),
        ({"method": "occlusion", "layer": "layer3"}, UsageError, "does not use a layer"),
    ):
        with pytest.raises(error, match=words):
            explained(runs, scan, **options)
        assert not (scan.parent / "out").exists()


@pytest.mark.parametrize("code", ["LPS", "RAI", "ASR", "SLP"])
def test_the_map_has_the_voxels_of_the_volume_file_in_its_order(runs: Path, tmp_path: Path, code: str) -> None:
    pixels = np.random.default_rng(0).normal(-700, 60, (9, 30, 24)).astype(np.int16)
    pixels[np.random.default_rng(1).random(pixels.shape) < 0.03] = 50
    image = SimpleITK.GetImageFromArray(pixels)
    image.SetSpacing((0.8, 0.9, 3.0))
    image.SetOrigin((-20.0, 35.0, 400.0))
    stored = SimpleITK.DICOMOrient(image, code)
    SimpleITK.WriteImage(stored, str(tmp_path / "scan.nii.gz"))
    _, folder = explained(runs, tmp_path / "scan.nii.gz", method="gradcam", layer="layer1")
    found = SimpleITK.ReadImage(str(folder / "saliency.nii.gz"))
    assert found.GetSize() == stored.GetSize()
    for one, other in ((found.GetOrigin(), stored.GetOrigin()), (found.GetDirection(), stored.GetDirection())):
        np.testing.assert_allclose(one, other, atol=1e-3)
    # The slice that fills no volume has no map, and keeps its position in the file: at the feet.
    values = SimpleITK.GetArrayFromImage(SimpleITK.DICOMOrient(found, "LPI"))
    assert values.any((1, 2)).tolist() == [True] * 8 + [False]


def test_maps_of_a_nifti_scan_have_both_of_its_affines_and_are_read_again_as_a_mask(runs: Path, tmp_path: Path) -> None:
    """Whichever of the two a viewer takes for the scan, it takes for the map; both differ here, and one is sheared."""
    pixels = np.random.default_rng(0).normal(-700, 60, (8, 30, 24)).astype(np.int16)
    pixels[np.random.default_rng(1).random(pixels.shape) < 0.03] = 50
    affine = np.array([[-0.0008, 0, 0, 0.02], [0, -0.0008, 0.0006, 0.03], [0, 0, -0.003, 0.4], [0, 0, 0, 1]])
    scan = nibabel.Nifti2Image(pixels.T, None)
    scan.set_sform(affine, 2)
    scan.set_qform(np.diag([0.0008, 0.0008, 0.003, 1]), 1)
    scan.header.set_xyzt_units("meter")
    scan.header["descrip"] = b"Mustermann"
    nibabel.save(scan, tmp_path / "scan.nii")
    _, folder = explained(runs, tmp_path / "scan.nii", method="gradcam", layer="layer1")
    made = nibabel.load(folder / "saliency.nii.gz")
    for form in ("get_sform", "get_qform"):
        (one, code), (other, other_code) = (getattr(image, form)(coded=True) for image in (made, scan))
        assert code == other_code and np.allclose(one, other, atol=1e-7)
    assert made.header.get_xyzt_units()[0] == "meter" and made.header["descrip"].item() == b""
    manifest, _ = explained(runs, tmp_path / "scan.nii", method="gradcam", mask=folder / "saliency.nii.gz", output=tmp_path / "again")
    assert manifest["pointing"]["slices"] == 8 and 0 < manifest["pointing"]["chance"] < 1


@pytest.mark.parametrize("name", ["scan.nrrd", "scan.mha", "dicom"])
def test_maps_of_a_sheared_scan_are_read_again_as_its_mask(
    name: str, runs: Path, write_series: Callable[..., list[Path]], chest: np.ndarray, tmp_path: Path
) -> None:
    if name == "dicom":
        written = write_series(tmp_path / name, chest)
        for path in written:
            header = pydicom.dcmread(path)
            header.ImageOrientationPatient = [1, 0, 0, 0, float(np.cos(0.26)), -float(np.sin(0.26))]
            header.save_as(path)
    else:
        image = SimpleITK.GetImageFromArray(chest)
        image.SetDirection((1, 0, 0, 0, 1, 0.26, 0, 0, -0.97))
        SimpleITK.WriteImage(image, str(tmp_path / name))
    manifest, folder = explained(runs, tmp_path / name, method="gradcam", layer="layer1")
    assert "gantry-tilt" in manifest["flags"]
    manifest, _ = explained(runs, tmp_path / name, method="gradcam", mask=folder / "saliency.nii.gz", output=tmp_path / "again")
    assert manifest["pointing"]["slices"] == 8
    # ITK, which cannot use a sheared sform, opens it by the qform.
    assert SimpleITK.ReadImage(str(folder / "saliency.nii.gz")).GetSize() == (20, 24, 9)


def test_the_same_seed_gives_the_same_maps(runs: Path, scan: Path) -> None:
    found = []
    for _ in range(2):
        _, folder = explained(runs, scan, layer="layer3", overwrite=True)
        found.append(np.load(folder / "saliency.npz")["native"])
    assert np.array_equal(*found)


def test_a_mask_of_one_scan_is_refused_for_several(runs: Path, scan: Path, make_scan: Callable[..., Path]) -> None:
    make_scan(scan.parent / "other")
    asked = explain.Options((scan, scan.parent / "other"), runs=runs, output=scan.parent / "out", mask=scan)
    with pytest.raises(UsageError, match="--mask belongs to one scan, but 2"):
        explain.run(asked, Console(quiet=True, results=False))


def test_a_mask_without_lesions_on_the_slices_of_the_map_is_an_error_and_never_an_empty_table(runs: Path, scan: Path, mask: Path) -> None:
    for path in mask.iterdir():
        pixels = np.asarray(Image.open(path))
        # Ten slices are two volumes of 4, and the last two have no map.
        Image.fromarray(pixels * (path.stem > "0007")).save(path)
    with pytest.raises(InputError, match="No scan could be explained"):
        explained(runs, scan, mask=mask)


def test_a_mask_that_does_not_fit_leaves_nothing_behind(runs: Path, scan: Path, make_scan: Callable[..., Path]) -> None:
    masks = make_scan(scan.parent / "lesions", slices=3)
    with pytest.raises(InputError):
        explained(runs, scan, mask=masks)
    assert not (scan.parent / "out" / "scan").exists()


def test_the_demo_says_how_well_maps_point_in_words() -> None:
    points = {"trained": Pointing(0.124, 0.067, 0.043, 354), "untrained": Pointing(0.056, 0.054, 0.043, 354)}
    assert demo._points_line(points) == (
        "Grad-CAM points into a lesion in 12% of the 354 slices with one, all of unseen patients. "
        "The chance level is 4%; a network with random weights reaches 6%."
    )


def test_a_scan_is_repaired_and_flagged_as_in_predict(runs: Path, tmp_path: Path) -> None:
    """A damaged slice among ten is left out, in the overlays and in what the volumes are made of."""
    folder = tmp_path / "scan"
    folder.mkdir()
    for number in range(10):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "3.png").write_bytes(b"damaged")
    manifest, made = explained(runs, folder, method="gradcam")
    (row,) = predict.run(predict.Options((folder,), runs=runs, device="cpu", workers=1), Console(quiet=True, results=False)).rows
    assert row["flags"] == ["unreadable", "small-slices"]
    assert manifest["flags"] == row["flags"] and " ".join(manifest["notes"]) == row["notes"]  # type: ignore[call-overload]
    assert list(manifest["probabilities"].values()) == pytest.approx([row[f"p_{name}"] for name in CLASSES])  # type: ignore[attr-defined]
    assert manifest["slices"] == ["0.png", "1.png", "2.png", "4.png", "5.png", "6.png", "7.png", "8.png"]
    assert manifest["slices_without_map"] == ["3.png", "9.png"]
    assert len(list((made / "overlays").iterdir())) == 8


def test_each_scan_has_a_folder_of_its_own_beside_its_converted_file(runs: Path, tmp_path: Path, make_scan: Callable[..., Path]) -> None:
    make_scan(tmp_path / "d" / "p1", slices=8)
    for name in ("p1.nii.gz", "p1.mha"):
        values = np.random.default_rng(0).normal(-600, 200, (8, 32, 32)).astype(np.int16)
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), str(tmp_path / "d" / name))
    asked = explain.Options((tmp_path / "d",), runs=runs, output=tmp_path / "ex", device="cpu", workers=1, samples=1, method="gradcam")
    summary = explain.run(asked, Console(quiet=True, results=False))
    assert [made["scan"] for made in summary.explained] == ["p1", "p1.mha", "p1.nii.gz"]
    for made in summary.explained:
        assert json.loads((tmp_path / "ex" / str(made["scan"]) / "manifest.json").read_text()) == made


@pytest.mark.skipif(sys.platform != "linux", reason="only there a file name may be any bytes")
def test_a_resumed_run_explains_what_is_missing_and_keeps_the_rest(
    runs: Path, tmp_path: Path, make_scan: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    scans = (tmp_path / "scans",)
    make_scan(scans[0] / "a", slices=8)
    given = {"runs": runs, "device": "cpu", "workers": 1, "method": "gradcam", "output": tmp_path / "out"}
    with pytest.raises(OutputExistsError, match="already"):
        for _ in range(2):
            explain.run(explain.Options(scans, **given), Console(quiet=True, results=False))  # type: ignore[arg-type]
    make_scan(scans[0] / "b", slices=8)
    first = {path: path.read_bytes() for path in (tmp_path / "out" / "a").rglob("*") if path.is_file()}
    summary = explain.run(explain.Options(scans, resume=True, **given), Console(results=False))  # type: ignore[arg-type]
    assert "1 of 2 scans is already in" in capsys.readouterr().err
    assert [made["scan"] for made in summary.explained] == ["a", "b"]
    assert {path: path.read_bytes() for path in first} == first and (tmp_path / "out" / "b").is_dir()
    other = {**given, "method": "gradcam++"}
    with pytest.raises(OutputExistsError, match="other settings"):
        explain.run(explain.Options(scans, resume=True, **other), Console(quiet=True, results=False))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--resume keeps"):
        explain.Options(scans, resume=True, overwrite=True, **given).require_sense()  # type: ignore[arg-type]


def test_a_name_that_is_not_utf_8_is_explained(runs: Path, tmp_path: Path, make_scan: Callable[..., Path]) -> None:
    name = os.fsdecode(b"caf\xe9")
    folder = make_scan(tmp_path / name, slices=8)
    (folder / "0000.png").rename(folder / f"{name}.png")
    asked = explain.Options((folder,), runs=runs, output=tmp_path / "ex", device="cpu", workers=1, samples=1, method="gradcam")
    (made,) = explain.run(asked, Console(quiet=True, results=False)).explained
    assert made["scan"] == r"caf\xe9" and r"caf\xe9.png" in made["slices"]
    assert json.loads(Path(made["folder"], "manifest.json").read_bytes().decode("utf-8"))["scan"] == made["scan"]
    assert r"caf\\xe9" in Path(made["folder"], "viewer.html").read_text(encoding="utf-8")
    assert Path(made["folder"], "overlays", r"caf\xe9.png").is_file()
