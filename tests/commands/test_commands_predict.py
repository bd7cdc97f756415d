"""ctcovid predict: a row for every scan whatever its form, company or process, flags, ensembles, shards, and runs that go on."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import SimpleITK
import torch
from PIL import Image
from thin import THIN

from ctcovid.base import runcard
from ctcovid.base.console import Console
from ctcovid.base.errors import InputError, ModelRefusedError, OutputExistsError, UsageError
from ctcovid.commands import predict
from ctcovid.models import registry, resnet3d, saved_model
from ctcovid.models.network import SCALING

CLASSES = ["NCP", "CP", "Normal"]
ROOT = Path(__file__).parents[2]
WriteSeries = Callable[..., list[Path]]
FULL_WIDTHS = resnet3d.WIDTHS

pytestmark = pytest.mark.usefixtures("thin")


def save_model(folder: Path, seed: int, depth: int = 4, size: int = 32, **about: Any) -> None:
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    module = registry.create("r3d18")
    # Random weights alone give every volume nearly the same probabilities.
    module.fc.weight.data *= 30
    saved_model.save_weights(folder / saved_model.WEIGHTS, module)
    card = {"architecture": "r3d18", "classes": CLASSES, "positive": "NCP", "depth": depth, "size": size, "scaling": SCALING}
    saved_model.save_card(folder, {**card, "data": {"path": "volumes.h5"}, **about})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, thin: None) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    save_model(folder / "other", 1, depth=2, size=24)
    save_model(folder / "warm", 0, calibration={"temperature": 2.0})
    save_model(folder / "small", 0)
    return folder


@pytest.fixture
def scans(tmp_path: Path, make_scan: Callable[..., Path]) -> Path:
    """Five scans of noise, the fourth of them too short."""
    for number, slices in enumerate((10, 9, 13, 3, 8)):
        make_scan(tmp_path / "scans" / f"s{number}", slices, level=60 + 30 * number)
    return tmp_path / "scans"


def predicted(runs: Path, *paths: Path, model: str = "small", **options: Any) -> predict.Summary:
    asked = predict.Options(paths, (model,), runs=runs, device="cpu", workers=2, **options)
    return predict.run(asked, Console(quiet=True, results=False))


def shares(row: dict[str, Any]) -> list[float]:
    return [float(row[f"p_{name}"]) for name in CLASSES]


def test_volumes_of_several_scans_share_passes_and_stay_their_own(scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a network in its full width."""
    monkeypatch.setattr(resnet3d, "WIDTHS", FULL_WIDTHS)
    runs = tmp_path / "runs"
    save_model(runs / "small", 0)
    together = predicted(runs, scans, output=tmp_path / "p.csv", volumes=tmp_path / "v.csv")
    assert [row["scan"] for row in together.rows] == ["s0", "s1", "s2", "s3", "s4"] and len(together.failed) == 1
    model = registry.load("small", "cpu", runs=runs)
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    volumes = list(csv.DictReader((tmp_path / "v.csv").open()))
    for row in rows:
        own = [volume for volume in volumes if volume["scan"] == row["scan"]]
        if row["scan"] == "s3":
            assert (row["predicted"], row["flags"], own) == ("", "refused;too-few-slices", [])
            assert "3 slices, but the model takes volumes of 4" in row["notes"]
            continue
        pictures = [np.asarray(Image.open(path)) for path in sorted((scans / row["scan"]).iterdir())]
        count = len(pictures) // 4
        expected = model.network.probabilities(np.stack(pictures[: 4 * count]).reshape(count, 4, 32, 32))
        assert np.allclose([shares(volume) for volume in own], expected, atol=1e-3)
        assert np.allclose(shares(row), expected.mean(0), atol=1e-3)
        assert (int(row["n_volumes"]), int(row["n_slices"])) == (count, len(pictures))
        assert row["predicted"] == CLASSES[int(expected.mean(0).argmax())]
        assert float(row["agreement"]) == np.mean([volume["predicted"] == row["predicted"] for volume in own])
        assert [volume["first_slice"] for volume in own] == [f"{4 * number:04d}.png" for number in range(count)]
        assert own[-1]["last_slice"] == f"{4 * count - 1:04d}.png"
        assert np.allclose(shares(predicted(runs, scans / row["scan"]).rows[0]), shares(row), atol=1e-3)


def test_the_same_scan_as_dicom_nifti_and_pictures_gets_the_same_probabilities(
    runs: Path, tmp_path: Path, write_series: WriteSeries, chest: np.ndarray
) -> None:
    values = np.rint(chest).astype(np.int16)
    write_series(tmp_path / "dicom", values)
    image = SimpleITK.GetImageFromArray(values[::-1])
    image.SetSpacing((0.75, 0.75, 2))
    SimpleITK.WriteImage(image, str(tmp_path / "scan.nii.gz"))
    (tmp_path / "pictures").mkdir()
    for number, grey in enumerate(np.clip(np.rint((values + 1350.0) * 255 / 1500), 0, 255).astype(np.uint8)):
        Image.fromarray(grey).save(tmp_path / "pictures" / f"{number}.png")
    paths = (tmp_path / "dicom", tmp_path / "scan.nii.gz", tmp_path / "pictures")
    found = [shares(row) for row in predicted(runs, *paths).rows] + [shares(predicted(runs, path).rows[0]) for path in paths]
    assert len(found) == 6 and np.ptp(found, axis=0).max() < 0.01


def test_two_processes_write_the_rows_of_one(runs: Path, scans: Path, tmp_path: Path) -> None:
    predicted(runs, scans, output=tmp_path / "one.csv", volumes=tmp_path / "one.jsonl")
    line = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "localhost:0",
    ]
    line += [THIN[1], "predict", str(scans), "-m", "small", "--runs", str(runs), "--device", "cpu"]
    line += ["-o", str(tmp_path / "two.csv"), "--volumes", str(tmp_path / "two.jsonl")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    # torchrun exits with 1 whatever its processes say; they say 4 for the scan that is too short.
    assert "1 of 5 scans could not be classified" in done.stderr and "exitcode  : 4" in done.stderr, done.stderr
    assert (tmp_path / "two.jsonl").read_text() == (tmp_path / "one.jsonl").read_text()
    one, two = (list(csv.DictReader((tmp_path / name).open())) for name in ("one.csv", "two.csv"))
    assert one == two


def test_probabilities_are_calibrated_unless_raw_ones_are_wanted(runs: Path, scans: Path) -> None:
    raw = predicted(runs, scans / "s0", model="warm", raw=True)
    assert shares(raw.rows[0]) == pytest.approx(shares(predicted(runs, scans / "s0").rows[0]))
    warm = predicted(runs, scans / "s0", model="warm")
    each = registry.load("warm", "cpu", runs=runs).network
    pictures = np.stack([np.asarray(Image.open(path)) for path in sorted((scans / "s0").iterdir())][:8]).reshape(2, 4, 32, 32)
    logits = torch.cat([each.logits(some)[:count] for some, count in each.passes(pictures)]).double()
    assert shares(warm.rows[0]) == pytest.approx((logits / 2).softmax(1).mean(0).tolist(), abs=1e-3)
    assert warm.models[0]["temperature"] == 2 and raw.models[0]["temperature"] == 1


def test_an_ensemble_is_the_mean_of_its_models_with_their_spread(runs: Path, scans: Path) -> None:
    (first,), (second,) = (predicted(runs, scans / "s2", model=name).rows for name in ("small", "other"))
    (row,) = predicted(runs, scans / "s2", model="small,other").rows
    assert shares(row) == pytest.approx(np.mean([shares(first), shares(second)], axis=0).tolist(), abs=1e-3)
    column = f"p_{row['predicted']}"
    assert row["spread"] == pytest.approx(abs(first[column] - second[column]) / 2, abs=1e-3)
    assert row["n_volumes"] == first["n_volumes"] + second["n_volumes"] == 3 + 6
    (again,) = predicted(runs, scans / "s2", model="small,small").rows
    assert "spread" not in again


def test_models_of_other_classes_are_no_ensemble(runs: Path, scans: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "runs" / "a", 0)
    save_model(tmp_path / "runs" / "b", 0, classes=["CP", "NCP", "Normal"])
    with pytest.raises(ModelRefusedError, match="same classes"):
        predicted(tmp_path / "runs", scans, model="a,b")


def test_models_of_one_name_are_no_ensemble(runs: Path, scans: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "runs" / "small", 1)
    with pytest.raises(UsageError, match=r"Several of the models are called small\. Rename one"):
        predicted(runs, scans, model=f"small,{tmp_path / 'runs' / 'small'}")


def test_shards_share_the_scans_out(runs: Path, scans: Path) -> None:
    found = [[row["scan"] for row in predicted(runs, scans, shard=f"{number}/2").rows] for number in (1, 2)]
    assert found == [["s0", "s2", "s4"], ["s1", "s3"]]
    assert predicted(runs, scans, shard="6/6").rows == []
    for wrong in ("0/2", "3/2", "x", "1/0"):
        with pytest.raises(UsageError, match="--shard"):
            predicted(runs, scans, shard=wrong)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "json"])
def test_a_run_goes_on_where_it_was_killed(runs: Path, scans: Path, tmp_path: Path, ending: str) -> None:
    whole, cut = tmp_path / f"whole.{ending}", tmp_path / f"cut.{ending}"
    predicted(runs, scans, output=whole, volumes=tmp_path / "whole-volumes.csv")
    (scans / "s2").rename(tmp_path / "later")
    predicted(runs, scans, output=cut, volumes=tmp_path / "cut-volumes.csv")
    with pytest.raises(OutputExistsError):
        predicted(runs, scans, output=cut)
    if ending != "json":
        # The last line is cut, and its volumes stand there already.
        text = cut.read_text()
        cut.write_text(text[: text.rstrip().rfind("\n") + 20])
    (tmp_path / "later").rename(scans / "s2")
    on = predicted(runs, scans, output=cut, volumes=tmp_path / "cut-volumes.csv", resume=True)
    assert [row["scan"] for row in on.rows] == (["s2", "s3"] if ending == "json" else ["s2", "s3", "s4"])

    def content(path: Path) -> list[Any]:
        if path.suffix == ".csv":
            return sorted(map(tuple, csv.reader(path.open())))
        rows = json.loads(path.read_text())["scans"] if ending == "json" else list(map(json.loads, path.read_text().splitlines()))
        return sorted(rows, key=lambda row: row["scan"])

    names = (("cut", "whole"), ("cut-volumes", "whole-volumes"))
    for one, other in (
        (content(tmp_path / f"{a}.{e}"), content(tmp_path / f"{b}.{e}")) for (a, b), e in zip(names, (ending, "csv"), strict=True)
    ):
        assert [list(row)[:3] for row in one] == [list(row)[:3] for row in other] and len(one) == len(other)
    with pytest.raises(InputError, match="was written with small"):
        predicted(runs, scans, model="other", output=cut, resume=True)


def test_a_scan_beside_its_converted_file_is_not_taken_for_done(runs: Path, scans: Path, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(-600, 200, (8, 32, 32)).astype(np.int16)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), str(scans / "s0.nii.gz"))
    rows = predicted(runs, scans, output=tmp_path / "p.csv").rows
    assert [row["scan"] for row in rows] == ["s0", "s0.nii.gz", "s1", "s2", "s3", "s4"]
    lines = (tmp_path / "p.csv").read_text().splitlines(keepends=True)
    (tmp_path / "p.csv").write_text("".join(line for line in lines if not line.startswith("s0.nii.gz,")))
    predicted(runs, scans, output=tmp_path / "p.csv", resume=True)
    assert sorted(row["scan"] for row in csv.DictReader((tmp_path / "p.csv").open())) == [row["scan"] for row in rows]


@pytest.mark.skipif(sys.platform != "linux", reason="only there a file name may be any bytes")
@pytest.mark.parametrize("ending", ["csv", "jsonl", "json"])
def test_a_name_that_is_not_utf_8_is_classified(runs: Path, scans: Path, tmp_path: Path, ending: str) -> None:
    for name in ("s0", "s3"):
        (scans / name).rename(os.fsdecode(os.fsencode(scans / name) + b"-\xe9"))
    (picture,) = (path for path in (scans / "s1").iterdir() if path.name == "0000.png")
    picture.rename(os.fsdecode(os.fsencode(scans / "s1") + b"/0000-\xe9.png"))
    output, volumes = tmp_path / f"p.{ending}", tmp_path / f"v.{ending}"
    rows = predicted(runs, scans, output=output, volumes=volumes).rows
    assert [row["scan"] for row in rows] == [r"s0-\xe9", "s1", "s2", r"s3-\xe9", "s4"]
    for path in (output, volumes, tmp_path / f"p.{ending}.run.json"):
        assert r"\xe9" in path.read_bytes().decode("utf-8")
    on = predicted(runs, scans, output=output, volumes=volumes, resume=True)
    assert [row["scan"] for row in on.kept] == [r"s0-\xe9", "s1", "s2", "s4"] and [row["scan"] for row in on.rows] == [r"s3-\xe9"]


def test_each_of_many_studies_in_a_folder_is_hashed_by_its_own_files(
    runs: Path, tmp_path: Path, write_series: WriteSeries, chest: np.ndarray
) -> None:
    for number in range(3):
        write_series(tmp_path / "many", chest, number=number, study=f"1.2.{number}")
    (tmp_path / "many" / "notes.txt").write_text("a file that is not used")
    predicted(runs, tmp_path / "many", output=tmp_path / "p.csv")
    inputs = json.loads((tmp_path / "p.csv.run.json").read_text())["inputs"]
    hashes = [one["hash"] for one in inputs if one["path"].endswith("many")]
    assert len(hashes) == len(set(hashes)) == 3
    (tmp_path / "alone").mkdir()
    for path in (tmp_path / "many").glob("IM1_*"):
        (tmp_path / "alone" / path.name).symlink_to(path)
    assert f"sha256:{runcard.sha256(tmp_path / 'alone')}" in hashes


def test_lines_come_as_scans_are_done(runs: Path, scans: Path) -> None:
    done = forked.run("predict", scans, "-m", "small", "--runs", runs, "--device", "cpu", "-o", "-")
    rows = [json.loads(text) for text in done.stdout.splitlines()]
    assert done.returncode == 4 and [row["scan"] for row in rows] == ["s0", "s1", "s2", "s3", "s4"]
    assert rows[0]["flags"] == ["small-slices"] and rows[3]["p_NCP"] is None


def test_flags_end_a_strict_run_with_4(runs: Path, scans: Path) -> None:
    assert predicted(runs, scans / "s0").failed == []
    (failed,) = predicted(runs, scans / "s0", strict=True).failed
    assert failed.startswith("s0: Its slices of 32×32 pixels are too small")


@pytest.mark.parametrize("ending", ["csv", "jsonl", "json"])
def test_a_resumed_run_reports_all_requested_scans(runs: Path, scans: Path, tmp_path: Path, ending: str) -> None:
    output = tmp_path / f"p.{ending}"
    first = predicted(runs, scans / "s0", scans / "s1", output=output, strict=True)
    on = predicted(runs, scans / "s0", scans / "s1", output=output, strict=True, resume=True)
    assert len(first.failed) == 2 and on.failed == first.failed and on.rows == []
    assert on.document() == first.document()
    assert on.table().text() == first.table().text()
    # Other scans of the file are not reported.
    only = predicted(runs, scans / "s1", scans / "s4", output=output, resume=True)
    assert [row["scan"] for row in only.document()["scans"]] == [str(scans / "s1"), str(scans / "s4")] and only.failed == []


def test_a_file_with_words_in_place_of_numbers_is_not_resumed(runs: Path, scans: Path, tmp_path: Path) -> None:
    predicted(runs, scans / "s0", output=tmp_path / "p.csv")
    (row,) = list(csv.DictReader((tmp_path / "p.csv").open()))
    (tmp_path / "p.csv").write_text((tmp_path / "p.csv").read_text().replace(row["p_CP"], "much"))
    with pytest.raises(InputError, match=r"p\.csv cannot be continued: .*much.*--output"):
        predicted(runs, scans / "s0", output=tmp_path / "p.csv", resume=True)


def test_no_scan_that_can_be_classified_is_unusable_input_with_its_rows(
    runs: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="No scan could be classified"):
        predicted(runs, scans / "s3", output=tmp_path / "p.csv")
    assert "too-few-slices" in (tmp_path / "p.csv").read_text()
    with pytest.raises(InputError, match="No scan could be classified"):
        predict.run(predict.Options((scans / "s3",), ("small",), runs=runs, device="cpu"), Console(json=True))
    assert "too-few-slices" in json.loads(capsys.readouterr().out)["scans"][0]["flags"]


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl"])
def test_another_scan_of_the_same_name_is_not_taken_for_done(
    runs: Path, make_scan: Callable[..., Path], tmp_path: Path, ending: str
) -> None:
    output = tmp_path / f"p.{ending}"
    one, other = (make_scan(tmp_path / patient / "CT", 8, level=level) for patient, level in (("A", 80), ("B", 120)))
    predicted(runs, one, output=output)
    before = output.read_bytes()
    with pytest.raises(UsageError, match=rf"already has a scan CT, from {one}, but this one is {other}\. Give the folder above both"):
        predicted(runs, other, output=output, resume=True)
    assert output.read_bytes() == before
    assert predicted(runs, one, output=output, resume=True).rows == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resume": True}, "--output"),
        ({"volumes": Path("-")}, "--volumes"),
        ({"volumes": Path("x"), "output": Path("x")}, "same file"),
        ({"output": Path("x"), "resume": True, "overwrite": True}, "--resume continues an .* and --overwrite"),
    ],
)
def test_options_that_do_not_fit_are_usage_errors(runs: Path, scans: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        predicted(runs, scans, **options)


def test_stdout_holds_one_document_or_lines_and_not_both(runs: Path, scans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=r"--json .*-o -"):
        predict.run(predict.Options((scans,), ("small",), runs=runs, device="cpu", output=Path("-")), Console(quiet=True, json=True))
    assert capsys.readouterr().out == ""


def test_real_scans_unlike_the_training_data_are_flagged_or_refused(tmp_path: Path, sample_data: Path) -> None:
    save_model(tmp_path / "runs" / "m", 0, slice_spacing=[1.0, 2.5])
    colours = np.random.default_rng(0).integers(0, 256, (8, 80, 80, 3), dtype=np.uint8)
    (tmp_path / "photographs").mkdir()
    for number, picture in enumerate(colours):
        Image.fromarray(picture).save(tmp_path / "photographs" / f"{number}.png")
    (tmp_path / "two").mkdir()
    for path in sorted((sample_data / "ccccii" / "NCP" / "920" / "2462").iterdir())[:2]:
        (tmp_path / "two" / path.name).symlink_to(path)
    paths = [sample_data / "nifti" / "abdomen-not-chest.nii.gz", sample_data / "dicom" / "two-series-study", tmp_path / "photographs"]
    paths += [sample_data / "ccccii-segmented" / "NCP", tmp_path / "two"]
    rows = predicted(tmp_path / "runs", *paths, model="m").rows
    flags = [row["flags"] for row in rows]
    assert flags[0] == ["refused", "not-a-chest"] and "no lungs" in rows[0]["notes"]
    assert "far-spacing" in flags[1] and "are 8 mm apart, those of the training scans 1 to 2.5 mm" in rows[1]["notes"]
    assert flags[2] == ["refused", "not-a-chest"] and "colour" in rows[2]["notes"]
    assert "segmented" in flags[3] and "black outside the lungs" in rows[3]["notes"]
    assert flags[4] == ["refused", "too-few-slices"] and "2 slices" in rows[4]["notes"]


def test_a_file_of_settings_may_name_one_model_or_several(runs: Path, scans: Path, tmp_path: Path) -> None:
    for models in ("'small'", "['small', 'other']"):
        (tmp_path / "s.toml").write_text(f"runs = '{runs}'\n[predict]\nmodel = {models}\n")
        done = forked.run("predict", scans / "s0", "--config", tmp_path / "s.toml", "--json", "--device", "cpu")
        assert done.returncode == 0, done.stderr
        assert [model["name"] for model in json.loads(done.stdout)["models"]] == (["small"] if models == "'small'" else ["small", "other"])


def test_rows_of_volumes_are_added_if_a_run_wrote_none(runs: Path, scans: Path, tmp_path: Path) -> None:
    predicted(runs, scans / "s0", output=tmp_path / "p.csv")
    on = predicted(runs, scans / "s0", output=tmp_path / "p.csv", volumes=tmp_path / "v.csv", resume=True)
    assert len(on.rows) == 1 and len((tmp_path / "v.csv").read_text().splitlines()) == 3
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 2
    assert predicted(runs, scans / "s0", output=tmp_path / "p.csv", volumes=tmp_path / "v.csv", resume=True).rows == []
    with pytest.raises(OutputExistsError, match=r"v\.csv"):
        predicted(runs, scans / "s0", output=tmp_path / "new.csv", volumes=tmp_path / "v.csv", resume=True)
