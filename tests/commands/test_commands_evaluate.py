"""ctcovid evaluate on trained runs: operating point, checks, subgroups, model card, depths beside each other."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import recall_score

from ctcovid.base.console import Console
from ctcovid.base.errors import InputError, UsageError
from ctcovid.commands import prepare, train
from ctcovid.commands.evaluate import Options, Summary, run
from ctcovid.evaluation.inference import open_evaluation_set
from ctcovid.evaluation.predictions import read_predictions
from ctcovid.models import registry
from ctcovid.volumes.reader import VolumesFile

SILENT = Console(quiet=True, results=False)
pytestmark = pytest.mark.usefixtures("thin")


@pytest.fixture(scope="module")
def trained_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 8 patients in each class, told apart by brightness, and runs of depths 2 and 4 on it."""
    folder = tmp_path_factory.mktemp("evaluate")
    generator = np.random.default_rng(0)
    for position, label in enumerate(("NCP", "CP", "Normal")):
        for patient in range(8):
            scan = folder / "data" / label / str(100 * position + patient) / "1"
            scan.mkdir(parents=True)
            for number in range(8 + patient % 3):
                pixels = np.clip(generator.normal(60 + 60 * position, 20, (32, 32)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(scan / f"{number:04d}.png")
    prepare.run(prepare.Options(folder / "data", 4, 32, folder / "volumes.h5"), SILENT)
    for depth in (2, 4):
        options = train.Options(data=folder / "volumes.h5", arch="r3d18", depth=depth, epochs=1, batch=8, runs=folder / "runs")
        train.run(options, SILENT)
    return folder


def evaluate(trained_runs: Path, *models: str, console: Console = SILENT, **options: object) -> Summary:
    settings = {"bootstrap": 40, "runs": trained_runs / "runs", "output": trained_runs / "out", "overwrite": True, **options}
    return run(Options(models=models, **settings), console)


def test_the_threshold_comes_from_the_validation_part_and_the_rates_from_the_test_part(trained_runs: Path) -> None:
    summary = evaluate(trained_runs, "r3d18-d4-b8", sensitivity=0.9)
    (model,) = summary.study.models
    assert model.point is not None
    threshold, rates = model.point
    trained = registry.load("r3d18-d4-b8", "cpu", "auto", trained_runs / "runs")
    valid = open_evaluation_set(trained, None, "valid", SILENT).volume_set
    scores = trained.network.probabilities(np.stack([valid.file.read(one.first_slice, 4) for one in valid.volumes]))[:, 0]
    positive = np.array([one.scan.label == "NCP" for one in valid.volumes])
    assert recall_score(positive, scores >= threshold) >= 0.9
    assert recall_score(positive, scores > threshold) < 0.9
    tested = read_predictions(trained_runs / "out" / "predictions-r3d18-d4-b8.csv")
    assert rates["recall"].value == recall_score(tested.labels == 0, tested.probabilities[:, 0] >= threshold)
    assert "Operating point" in (trained_runs / "out" / "evaluation.md").read_text()
    with pytest.raises(UsageError, match="--part"):
        evaluate(trained_runs, "r3d18-d4-b8", sensitivity=0.9, part="valid")


def test_checks_and_trivial_models_stand_beside_the_figures(trained_runs: Path) -> None:
    summary = evaluate(trained_runs, "r3d18-d4-b8")
    document = json.loads((trained_runs / "out" / "evaluation.json").read_text())
    (check,) = document["checks"].values()
    assert (check["population"], check["repeated_volumes"]) == ("internal", 0)
    majority, logistic = document["baselines"]
    # The classes are told apart by brightness alone.
    assert logistic["accuracy"]["value"] == 1 and majority["macro_auroc"]["value"] == 0.5
    text = summary.table().text()
    assert "Internal test" in text and "none of the volumes" in text and "| majority class" in text


@pytest.mark.parametrize("as_json", [False, True])
def test_what_was_found_out_about_the_test_set_is_said_once(trained_runs: Path, capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    evaluate(trained_runs, "r3d18-d4-b8", console=Console(json=as_json))
    said = capsys.readouterr()
    assert [text.count("Repeated images: none") for text in (said.out, said.err)] == [1, 0]


def test_kinds_of_image_slices_and_columns_of_a_csv_are_subgroups(trained_runs: Path) -> None:
    tested = {
        row.patient
        for row in open_evaluation_set(
            registry.load("r3d18-d4-b8", "cpu", "auto", trained_runs / "runs"), None, "test", SILENT
        ).volume_set.file.rows
    }
    lines = ["patient_id,sex", *(f"{patient},{number % 2 + 1}" for number, patient in enumerate(sorted(tested)))]
    (trained_runs / "metadata.csv").write_text("\n".join(lines))
    summary = evaluate(trained_runs, "r3d18-d4-b8", subgroups=trained_runs / "metadata.csv", level="patient", resample="patient")
    groups = summary.study.models[0].groups
    assert {group.grouping for group in groups} == {"sex", "slices of the scan"}
    assert all(group.small for group in groups)
    assert "†" in (trained_runs / "out" / "evaluation.md").read_text()


def test_runs_of_two_depths_are_compared_unpaired_and_drawn_over_depth(trained_runs: Path) -> None:
    summary = evaluate(trained_runs, "r3d18-d4-b8", "r3d18-d2-b8")
    (comparison,) = summary.study.comparisons
    assert not comparison.paired and "unpaired" in comparison.why
    figures = {path.name for path in (trained_runs / "out" / "figures").iterdir()}
    assert {"effect-of-depth.svg", "training-loss-r3d18-d4-b8.svg", "training-accuracy-r3d18-d2-b8.png"} <= figures
    rows = list(csv.DictReader((trained_runs / "out" / "figures" / "effect-of-depth.csv").open()))
    assert {row["depth"] for row in rows} == {"2", "4"}


def test_by_patient_both_depths_have_the_same_rows_and_are_paired(trained_runs: Path) -> None:
    (comparison,) = evaluate(trained_runs, "r3d18-d4-b8", "r3d18-d2-b8", level="patient", join="vote").study.comparisons
    assert comparison.paired and comparison.mcnemar is not None


def test_the_model_card_says_what_was_measured_and_is_replaced_only_when_asked(trained_runs: Path) -> None:
    path = trained_runs / "runs" / "r3d18-d4-b8" / "MODEL_CARD.md"
    path.write_text("mine")
    evaluate(trained_runs, "r3d18-d4-b8", output=trained_runs / "another", overwrite=False)
    assert path.read_text() == "mine"
    summary = evaluate(trained_runs, "r3d18-d4-b8")
    text = path.read_text()
    accuracy = summary.study.scores[0].estimates["accuracy"]
    assert f"{accuracy.value:.4f} ({accuracy.low:.4f}, {accuracy.high:.4f})" in text
    for said in (
        "## Intended use",
        "## Data and split",
        "## Recipe",
        "learning rate 0.001",
        "## Limits",
        "TRIPOD+AI",
        "CLAIM",
        "internal test",
    ):
        assert said in text
    evaluate(trained_runs, "r3d18-d4-b8", part="valid")
    assert path.read_text() == text


def test_an_image_that_stands_in_training_too_is_counted_and_warned_about(
    tmp_path: Path, make_dataset: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """make_dataset gives patients of one class and one number of slices the same pixels."""
    prepare.run(prepare.Options(make_dataset(tmp_path / "data"), 4, 32, tmp_path / "volumes.h5"), SILENT)
    train.run(train.Options(data=tmp_path / "volumes.h5", arch="r3d18", epochs=1, batch=8, runs=tmp_path / "runs"), SILENT)
    summary = run(Options(bootstrap=20, runs=tmp_path / "runs", output=tmp_path / "out"), SILENT)
    count = summary.study.checks[0].repeated_volumes
    file = VolumesFile(tmp_path / "volumes.h5")
    known = {slice_.tobytes() for name in ("train", "valid") for one in file.volumes(name, 4) for slice_ in file.read(one.first_slice, 4)}
    tested = [{slice_.tobytes() for slice_ in file.read(one.first_slice, 4)} for one in file.volumes("test", 4)]
    assert count == sum(slices <= known for slices in tested) > 0
    assert f"{count} volumes of the test part were in the training or validation part too" in capsys.readouterr().err


def of_other_patients(folder: Path, first: int, seed: int) -> Path:
    """A volumes file like that of `trained_runs`, with the ids counted from `first`, and other images."""
    generator = np.random.default_rng(seed)
    for position, label in enumerate(("NCP", "CP", "Normal")):
        for patient in range(8):
            scan = folder / "data" / label / str(first + 100 * position + patient) / "1"
            scan.mkdir(parents=True)
            for number in range(4):
                pixels = np.clip(generator.normal(60 + 60 * position, 20, (32, 32)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(scan / f"{number:04d}.png")
    prepare.run(prepare.Options(folder / "data", 4, 32, folder / "volumes.h5", split="20/20/60"), SILENT)
    return folder / "volumes.h5"


def trained_with(trained_runs: Path, folder: Path, path: Path) -> Path:
    """The run of depth 4, as if its file had been at that path. Returns the folder of runs."""
    run_folder = folder / "runs" / "r3d18-d4-b8"
    shutil.copytree(trained_runs / "runs" / "r3d18-d4-b8", run_folder)
    card = json.loads((run_folder / "model.json").read_text())
    card["data"]["path"] = str(path)
    (run_folder / "model.json").write_text(json.dumps(card))
    return folder / "runs"


def test_a_file_that_replaced_the_training_file_chooses_no_threshold_and_trains_no_baseline(
    trained_runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replaced, external = of_other_patients(tmp_path / "a", 1000, 1), of_other_patients(tmp_path / "b", 2000, 2)
    runs = trained_with(trained_runs, tmp_path, replaced)
    summary = run(Options(data=external, bootstrap=20, runs=runs, output=tmp_path / "out", sensitivity=0.9), SILENT)
    assert "has changed since the training" in capsys.readouterr().err
    assert summary.study.models[0].point is None
    assert [baseline.name for baseline in summary.study.baselines] == ["majority class"]
    (check,) = summary.study.checks
    assert check.repeated_volumes is None and any("has changed since the training" in note for note in check.notes)


def test_patients_of_another_archive_with_the_same_ids_are_tested_on_with_a_warning(
    trained_runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    namesakes = of_other_patients(tmp_path, 0, 3)
    summary = evaluate(trained_runs, "r3d18-d4-b8", data=namesakes, output=tmp_path / "out")
    assert "without an image in common" in capsys.readouterr().err
    assert summary.study.checks[0].population == "external"


def test_training_patients_are_refused_in_another_file_by_their_images(trained_runs: Path, tmp_path: Path) -> None:
    prepare.run(prepare.Options(trained_runs / "data", 4, 32, tmp_path / "volumes.h5", split="20/20/60"), SILENT)
    with pytest.raises(InputError, match="images"):
        evaluate(trained_runs, "r3d18-d4-b8", data=tmp_path / "volumes.h5", output=tmp_path / "out")


def test_equal_ids_are_refused_with_the_remedy_if_images_cannot_be_compared(trained_runs: Path, tmp_path: Path) -> None:
    namesakes = of_other_patients(tmp_path, 0, 3)
    runs = trained_with(trained_runs, tmp_path, tmp_path / "gone.h5")
    with pytest.raises(InputError, match=r"gone\.h5 no longer exists\. Restore"):
        run(Options(data=namesakes, runs=runs, output=tmp_path / "out"), SILENT)
