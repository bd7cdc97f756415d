"""ctcovid evaluate on predictions of any system: scores, comparison, files."""

from __future__ import annotations

import csv
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import threadpoolctl
from PIL import Image
from scipy.stats import fisher_exact
from sklearn.metrics import accuracy_score, roc_auc_score

from ctcovid.base.console import Console
from ctcovid.base.errors import InputError, OutputExistsError, UsageError
from ctcovid.commands.evaluate import Options, Summary, run
from ctcovid.evaluation.predictions import Predictions, read_predictions, reordered

CLASSES = ["NCP", "CP", "Normal"]
LABELS = np.repeat([0, 1, 2], [60, 50, 40])


def write(folder: Path, name: str, strength: float, order: tuple[int, ...] = (0, 1, 2), seed: int = 0, rows: slice = slice(None)) -> Path:
    """Predictions of a model that is the better the greater its strength, with its class columns in that order."""
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet([1, 1, 1], len(LABELS)) + strength * np.eye(3)[LABELS]
    probabilities /= probabilities.sum(1, keepdims=True)
    numbers = np.arange(len(LABELS))
    everything = Predictions(name, CLASSES, [str(i // 5) for i in numbers], ["s"] * len(LABELS), numbers, LABELS, probabilities)
    chosen = reordered(everything, [CLASSES[place] for place in order])
    lines = chosen.csv().splitlines(keepends=True)
    path = folder / f"{name}.csv"
    path.write_text("".join([lines[0], *lines[1:][rows]]))
    return path


def evaluate(*paths: Path, **options: object) -> Summary:
    settings = {"bootstrap": 50, "output": paths[0].parent / "out", **options}
    return run(Options(models=tuple(map(str, paths)), **settings), Console(quiet=True, results=False))


def test_scores_are_those_of_the_predictions_and_the_first_is_the_reference(tmp_path: Path) -> None:
    strong, weak = write(tmp_path, "strong", 2), write(tmp_path, "weak", 0.3, seed=1)
    summary = evaluate(strong, weak)
    assert (summary.positive, summary.classes, [score.name for score in summary.study.scores]) == ("NCP", CLASSES, ["strong", "weak"])
    for path, score in zip((strong, weak), summary.study.scores, strict=True):
        read = read_predictions(path)
        assert (score.rows, score.patients) == (150, 30)
        assert score.estimates["accuracy"].value == accuracy_score(read.labels, read.predicted)
        assert score.estimates["macro_auroc"].value == pytest.approx(roc_auc_score(read.labels, read.probabilities, multi_class="ovr"))
    reference, other = summary.study.scores
    (comparison,) = summary.study.comparisons
    assert comparison.name == other.name and comparison.paired
    right = [int(np.trace(score.confusion)) for score in summary.study.scores]
    assert comparison.fisher["accuracy"] == pytest.approx(fisher_exact([[count, 150 - count] for count in right]).pvalue)
    assert "***" in summary.table().rows[1][2]
    assert "*" not in summary.table().rows[0][2]
    assert {(0, 2), (0, 3)} <= summary.table().bold and reference.name == "strong"


def test_the_order_of_class_columns_changes_no_score(tmp_path: Path) -> None:
    summary = evaluate(write(tmp_path, "mine", 0.5), write(tmp_path, "theirs", 0.5, order=(2, 0, 1)))
    mine, theirs = summary.study.scores
    assert mine.estimates == theirs.estimates
    assert np.array_equal(mine.confusion, theirs.confusion)


def test_no_thread_draws_while_libraries_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """threadpoolctl holds the loader's lock and waits for Python; a thread that imports holds Python and waits for the loader."""
    threads = []
    limits = threadpoolctl.threadpool_limits

    def seen(**wanted: Any) -> Any:
        threads.append({thread.name.partition("_")[0] for thread in threading.enumerate()})
        return limits(**wanted)

    monkeypatch.setattr(threadpoolctl, "threadpool_limits", seen)
    evaluate(write(tmp_path, "mine", 0.5), write(tmp_path, "theirs", 0.2, seed=2))
    assert threads and all("artist" not in names for names in threads)


def test_everything_is_written_and_can_be_read_again(tmp_path: Path) -> None:
    path = write(tmp_path, "mine", 0.5)
    summary = evaluate(path, write(tmp_path, "theirs", 0.2, seed=2))
    folder = tmp_path / "out"
    tables = {f"predictions-{name}.csv" for name in ("mine", "theirs")} | {"table.csv", "table.tex", "report.html", "figures", "tables"}
    assert {file.name for file in folder.iterdir()} == {"run.json", "evaluation.md", "evaluation.json"} | tables
    kinds = ("confusion", "roc", "pr", "reliability")
    figures = {f"{kind}-{name}.{ending}" for kind in kinds for name in ("mine", "theirs") for ending in ("svg", "png", "csv")}
    assert {file.name for file in (folder / "figures").iterdir()} == figures
    assert (folder / "predictions-mine.csv").read_text() == path.read_text()
    names = {"results", "further-figures", "by-class-each-against-the-rest", "intervals-by-volume-and-by-patient", "tests-against-mine"}
    assert {file.name for file in (folder / "tables").iterdir()} == {f"{name}.csv" for name in names}
    rows = list(csv.DictReader((folder / "tables" / "by-class-each-against-the-rest.csv").open()))
    assert [(row["model"], row["class"]) for row in rows] == [(name, label) for name in ("mine", "theirs") for label in CLASSES]
    document = json.loads((folder / "evaluation.json").read_text())
    assert document == json.loads(json.dumps(summary.document()))
    assert document["reference"] == "mine"
    assert "Fisher's exact test against mine" in (folder / "evaluation.md").read_text()
    with Image.open(folder / "figures" / "confusion-mine.png") as image:
        assert image.format == "PNG"
    assert json.loads((folder / "run.json").read_text())["command"] == "evaluate"


def test_figures_are_written_as_pdf_too_where_that_is_asked_for(tmp_path: Path) -> None:
    evaluate(write(tmp_path, "mine", 0.5), pdf=True)
    figures = tmp_path / "out" / "figures"
    assert {path.stem for path in figures.glob("*.pdf")} == {path.stem for path in figures.glob("*.svg")}
    assert all(path.read_bytes().startswith(b"%PDF") for path in figures.glob("*.pdf"))


def test_a_csv_with_a_mistake_is_refused_before_a_run_is_loaded(tmp_path: Path) -> None:
    """The run has a model.json and no weights, which would be refused otherwise."""
    path = write(tmp_path, "mine", 0.5)
    path.write_text(path.read_text() + "1,s,one,NCP,1,0,0\n")
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match=r"mine\.csv, line 152: the volume"):
        run(Options(models=(str(tmp_path / "run"), str(path))), Console(quiet=True, results=False))


def test_metrics_that_are_not_defined_are_said_to_be_and_the_others_shown(tmp_path: Path) -> None:
    """No Normal volume: macro-AUROC has no meaning, all else has."""
    summary = evaluate(write(tmp_path, "mine", 1, rows=slice(0, 110)))
    (score,) = summary.study.scores
    assert set(score.undefined) == {"macro_auroc"} and np.isfinite(score.estimates["average_precision:0"].value)
    assert "mine: macro-AUROC is not defined, no volume is Normal" in summary.table().text()
    assert list(summary.table().rows[0]).count("not defined") == 1
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["models"][0]["macro_auroc"]["value"] is None


@pytest.mark.parametrize("ci", ["percentile", "normal", "bca"])
def test_the_mean_is_shown_with_the_papers_interval_only(tmp_path: Path, ci: str) -> None:
    """The calibration error of bootstrap samples is greater than that of the sample, beyond the BCa interval."""
    summary = evaluate(write(tmp_path, "mine", 1), ci=ci, bootstrap=400)
    found = summary.study.scores[0].estimates
    assert found["ece"].mean > found["ece"].value
    for metric in ("accuracy", "ece"):
        expected = found[metric].mean if ci == "normal" else found[metric].value
        said = f"{expected:.4f} ({found[metric].low:.4f}, {found[metric].high:.4f})"
        for name in ("evaluation.md", "report.html"):
            assert said in (tmp_path / "out" / name).read_text()
    assert f"{found['accuracy'].shown(ci):.4f} (" in (tmp_path / "out" / "table.tex").read_text()
    (row,) = csv.DictReader((tmp_path / "out" / "table.csv").open())
    assert float(row["ece_value"]) == found["ece"].value and ("ece_mean" in row) == (ci == "normal")
    assert ("bootstrap mean" in (tmp_path / "out" / "evaluation.md").read_text()) == (ci == "normal")


def test_another_positive_class_can_be_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, "mine", 0.5)
    score = evaluate(path, positive="CP").study.scores[0]
    read = read_predictions(path)
    assert score.estimates["recall"].value == (read.predicted[read.labels == 1] == 1).mean()


def test_different_volumes_are_compared_without_pairing_and_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = evaluate(write(tmp_path, "mine", 1), write(tmp_path, "fewer", 1, rows=slice(3, None)))
    assert "fewer and mine were not scored on the same volumes" in capsys.readouterr().err
    (comparison,) = summary.study.comparisons
    assert not comparison.paired and comparison.mcnemar is None
    assert "DeLong, unpaired" in (tmp_path / "out" / "evaluation.md").read_text()


def test_models_scored_on_different_patients_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="29 patients"):
        evaluate(write(tmp_path, "mine", 1), write(tmp_path, "fewer", 1, rows=slice(5, None)))
    assert not (tmp_path / "out").exists()


def test_models_of_the_same_name_are_not_mixed_up(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(UsageError, match="model"):
        evaluate(write(tmp_path, "model", 1), write(tmp_path / "other", "model", 1))
    assert not (tmp_path / "out").exists()


def test_a_result_that_is_there_is_not_touched(tmp_path: Path) -> None:
    path = write(tmp_path, "mine", 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError):
        evaluate(path)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_a_bad_file_leaves_nothing_behind(tmp_path: Path) -> None:
    good = write(tmp_path, "good", 1)
    bad = tmp_path / "bad.csv"
    bad.write_text("patient,scan\n")
    with pytest.raises(InputError, match=r"bad\.csv"):
        evaluate(good, bad)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bad.csv", "good.csv"]


@pytest.mark.parametrize(
    ("labels", "predicted", "patients"),
    [
        ([0], [0], ["a"]),
        ([0, 1, 2], [0, 1, 1], ["a", "a", "a"]),
        ([1, 1, 1, 1], [1, 2, 1, 1], ["a", "a", "b", "c"]),
        ([0, 1, 2, 0, 1, 2], [0, 1, 2, 0, 1, 2], list("aabbcc")),
        ([0, 1, 2, 0, 1, 2], [1, 2, 0, 1, 2, 0], list("abcdef")),
    ],
    ids=["one volume", "one patient", "one class", "all right", "all wrong"],
)
def test_a_test_set_that_says_little_is_reported_all_the_same(
    tmp_path: Path, labels: list[int], predicted: list[int], patients: list[str]
) -> None:
    """Ties everywhere, twice the same model, and every kind of interval."""
    numbers = np.arange(len(labels))
    probabilities = np.eye(3)[predicted] * 0.5 + 0.5 / 3
    paths = []
    for name in ("first", "second"):
        some = Predictions(name, CLASSES, patients, ["s"] * len(labels), numbers, np.array(labels), probabilities)
        paths.append(tmp_path / f"{name}.csv")
        paths[-1].write_text(some.csv())
    (tmp_path / "groups.csv").write_text("patient,sex\na,1\nb,2\n")
    summary = evaluate(*paths, ci="bca", resample="patient", subgroups=tmp_path / "groups.csv", bootstrap=30)
    right = float(np.mean(np.array(labels) == np.array(predicted)))
    for score in summary.study.scores:
        assert score.estimates["accuracy"].value == right
        assert score.estimates["accuracy"].low <= right <= score.estimates["accuracy"].high
    (comparison,) = summary.study.comparisons
    assert comparison.mcnemar is not None and comparison.mcnemar.p_value == 1
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
    json.loads((tmp_path / "out" / "evaluation.json").read_text())
