"""The report of a study: what was measured beside the paper's values, from evaluations that are made up and so known."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import fisher_exact

from ctcovid.base.console import Console
from ctcovid.commands import paper
from ctcovid.experiments.cells import Cell, rows
from ctcovid.experiments.figures import middle_slice, saliency_montage
from ctcovid.experiments.published import METRICS, published
from ctcovid.experiments.report import make_report
from ctcovid.experiments.results import stars_over_seeds, table_results
from ctcovid.experiments.study import Study, read_study
from ctcovid.options.words import parsed

CLASSES = ["NCP", "CP", "Normal"]
# Confusion matrices: true class by predicted class.
GOOD, POOR = np.diag([90, 95, 100]) + 1, np.full((3, 3), 30)


def measured(study: Study, cell: Cell, confusion: np.ndarray, **figures: tuple[float, float, float]) -> None:
    """Write what ctcovid train and evaluate would of a cell; `figures` are mean, low and high by metric, in place of 0.8 (0.7, 0.9)."""
    folder = study.runs / cell.run
    (folder / "evaluation").mkdir(parents=True, exist_ok=True)
    (folder / "model.json").write_text(json.dumps({"recipe": {"epochs": study.epochs}, "weights_sha256": cell.run}))
    found = {metric: figures.get(metric, (0.8, 0.7, 0.9)) for metric in (*METRICS, "macro_auroc")}
    model = {
        metric: dict(zip(("value", "mean", "low", "high"), (mean, mean, low, high), strict=True))
        for metric, (mean, low, high) in found.items()
    }
    document = {"models": [{"n_volumes": int(confusion.sum()), "confusion": confusion.tolist(), **model}], "classes": CLASSES}
    document |= {"positive": "NCP", "ci": "normal", "part": "test", "inputs": [{"path": "weights", "hash": f"sha256:{cell.run}"}]}
    (folder / "evaluation" / "evaluation.json").write_text(json.dumps(document))


def cell_of(row: str) -> Cell:
    return next(one.cell for one in rows() if one.name == row)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study of three seeds without data, in which rows of Table 5 and the first of Table 7 are done."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scans").mkdir()
    made = read_study(parsed("paper", ["run", "scans", "--seeds", 3]))
    made.record()
    measured(made, cell_of("t5-d2-b8"), POOR, accuracy=(0.84, 0.83, 0.85), recall=(0.9, 0.9, 0.9))
    measured(made, cell_of("t5-d4-b8"), GOOD, accuracy=(0.95, 0.94, 0.96), precision=(0.9, 0.88, 0.95))
    measured(made, cell_of("t7-r3d18"), GOOD)
    return made


def lines_of(table: Any, **wanted: str) -> list[dict[str, str]]:
    lines = [dict(zip(table.columns, line, strict=True)) for line in table.rows]
    return [line for line in lines if all(line[name] == value for name, value in wanted.items())]


def test_values_stand_beside_the_papers_with_difference_and_overlap(study: Study) -> None:
    _, beside = make_report(study, []).tables[5]
    assert len(beside.rows) == 6 * 4
    (accuracy,) = lines_of(beside, Row="depth 4, batch 8", Metric="Accuracy")
    assert accuracy["Paper (95% CI)"] == "0.9547*** (0.9499, 0.9597)"
    assert accuracy["Here (95% CI)"] == "0.9500*** (0.9400, 0.9600)"
    assert (accuracy["Difference"], accuracy["Intervals overlap"]) == ("-0.0047", "yes")
    (precision,) = lines_of(beside, Row="depth 4, batch 8", Metric="Precision")
    assert (precision["Difference"], precision["Intervals overlap"]) == ("-0.0935", "no")
    for line in lines_of(beside, Row="depth 8, batch 8"):
        assert line["Here (95% CI)"] == "missing" and (line["Difference"], line["Intervals overlap"]) == ("-", "-")
    table = pd.read_csv(study.out / "table-5.csv").set_index("row")
    four = table.loc["t5-d4-b8"]
    assert four["accuracy_p"] == pytest.approx(fisher_exact([[90, 180], [288, 6]]).pvalue)
    assert four["recall_p"] == pytest.approx(fisher_exact([[30, 60], [91, 2]]).pvalue)
    assert (four["accuracy_paper"], four["accuracy_paper_low"], four["accuracy_paper_high"]) == (0.9547, 0.9499, 0.9597)
    assert four["accuracy_difference"] == pytest.approx(0.95 - 0.9547) and bool(four["accuracy_overlap"])
    assert four["accuracy_paper_stars"] == "***" and np.isnan(table.loc["t5-d2-b8", "accuracy_p"])


def test_every_table_has_the_rows_of_the_paper_and_says_which_are_missing(study: Study) -> None:
    report = make_report(study, [])
    tables = {number: pd.read_csv(study.out / f"table-{number}.csv") for number in (4, 5, 6, 7)}
    assert tables[4]["images"].tolist() == ["complete", "same-number", "segmented"]
    assert tables[5]["depth"].tolist() == [2, 4, 8, 16, 32, 64] and set(tables[5]["batch"]) == {8}
    assert list(zip(tables[6]["depth"], tables[6]["batch"], strict=True)) == [(2, 32), (2, 64), (4, 32), (4, 64), (8, 32), (16, 32)]
    assert tables[7]["arch"].tolist() == ["r3d18", "r2plus1d18", "r3d34", "r2plus1d34", "r3d50"]
    finished = {number: table.index[table["status"] == "finished"].tolist() for number, table in tables.items()}
    assert finished == {4: [], 5: [0, 1], 6: [2], 7: [0]}
    results = (study.out / "results.md").read_text()
    for number, table in tables.items():
        text = (study.out / f"table-{number}.md").read_text()
        assert text.strip() in results
        lines = [line for line in text.splitlines() if line.startswith("|")][2 : 2 + len(table)]
        assert ["missing" in line.split("|")[-2] for line in lines] == (table["status"] == "missing").tolist()
        tex = (study.out / f"table-{number}.tex").read_text()
        assert tex.count(r"\\") == sum(1 + len(one.rows) for one in report.tables[number]) and not re.search(r"(?<!\\)[%_]", tex)
    assert report.figures == {4: True, 5: True, 6: True, 7: False, 8: False, 9: False}
    assert "Figure 6: figure-6.png\nFigure 7: missing" in results and "- Done: 3 of 48 cells" in results
    assert "macro-AUROC of the first row: 0.8000 (0.7000, 0.9000). The paper: 0.9998" in results


def test_what_is_trained_or_evaluated_otherwise_is_missing(study: Study) -> None:
    cell = cell_of("t5-d4-b8")
    for name, change in (
        ("model.json", {"recipe": {"epochs": 3}}),
        ("model.json", {"weights_sha256": "others"}),
        ("evaluation/evaluation.json", {"ci": "percentile"}),
        ("evaluation/evaluation.json", {"part": "valid"}),
    ):
        measured(study, cell, GOOD)
        path = study.runs / cell.run / name
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        assert [one.first is None for one in table_results(study, 5)] == [False, True, True, True, True, True], change


def test_a_star_survives_if_all_seeds_lie_on_the_papers_side_of_the_first_row(study: Study) -> None:
    """In the paper accuracy (***) and F1-score (**) rise from depth 2 to depth 4, precision (***) too, and recall (***) falls."""
    first, four = cell_of("t5-d2-b8"), cell_of("t5-d4-b8")
    for repeat, shift in ((0, 0.0), (1, 0.03), (2, -0.01)):
        low = dict.fromkeys(METRICS, (0.8 + shift, 0.7, 0.9))
        high = {"accuracy": 0.9, "f1": 0.84, "precision": 0.7, "recall": 0.9}
        measured(study, replace(first, repeat=repeat), POOR, **low)
        measured(study, replace(four, repeat=repeat), POOR if repeat else GOOD, **{m: (v + shift, 0.7, 0.9) for m, v in high.items()})
    found = {star.metric: star for star in stars_over_seeds(table_results(study, 5)) if star.row.name == "t5-d4-b8"}
    assert {metric: star.survives for metric, star in found.items()} == {"accuracy": True, "f1": False, "precision": False, "recall": False}
    accuracy = found["accuracy"]
    assert (accuracy.stars, accuracy.marks) == ("***", ("***", "", ""))
    assert accuracy.paper == pytest.approx(0.9547 - 0.8481) and accuracy.ours == pytest.approx(0.1)
    assert (accuracy.lowest, accuracy.highest) == (pytest.approx(0.06), pytest.approx(0.14))
    table, beside, stars = make_report(study, []).tables[5]
    assert "1 of 4 survive." in stars.notes and [line[-1] for line in stars.rows] == ["yes", "no", "no", "no"]
    (line,) = lines_of(beside, Row="depth 4, batch 8", Metric="Accuracy")
    assert line["Lowest to highest seed"] == "0.8900 to 0.9300"
    spread = pd.read_csv(study.out / "table-5.csv").set_index("row").loc["t5-d4-b8"]
    assert spread["accuracy_seed_sd"] == pytest.approx(np.std([0.9, 0.93, 0.89], ddof=1)) and spread["accuracy_seed_min"] == pytest.approx(
        0.89
    )
    assert len(table.rows) == 6


def test_a_falling_metric_survives_below_the_first_row(study: Study) -> None:
    for repeat in range(3):
        measured(study, replace(cell_of("t5-d2-b8"), repeat=repeat), POOR, recall=(0.9 + repeat / 100, 0.7, 0.9))
        measured(study, replace(cell_of("t5-d4-b8"), repeat=repeat), GOOD, recall=(0.8 + repeat / 100, 0.7, 0.9))
    (recall,) = (star for star in stars_over_seeds(table_results(study, 5)) if star.metric == "recall")
    assert recall.survives and recall.marks == ("***", "***", "***")


def test_one_seed_says_nothing_about_stars(study: Study) -> None:
    assert stars_over_seeds(table_results(study, 5)) == []


def test_the_document_of_the_report_has_all_tables_and_figures(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    options = parsed("paper", ["report"])
    paper.run(options, Console(json=True))
    document = json.loads(capsys.readouterr().out)
    assert document["cells"] == {"done": 3, "asked_for": 48, "failed": []} and document["settings"]["seeds"] == 3
    assert [len(document["tables"][number][1]["rows"]) for number in "4567"] == [12, 24, 24, 20]
    assert document["figures"]["6"].endswith("figure-6.png") and document["figures"]["9"] is None
    assert json.loads((study.out / "run.json").read_text())["command"] == "paper"


def test_the_papers_values_are_those_that_its_text_says_of_the_best_model() -> None:
    """Sec. 3.3: 99.24 % accuracy; Abstract: 99.96 % recall, 99.35 % precision, 99.65 % F1-score."""
    best = published()["t7-r3d18"]
    assert [best[metric].mean for metric in METRICS] == [0.9924, 0.9965, 0.9935, 0.9996]
    assert published()["t6-d4-b32"] == best
    assert set(published()) == {row.name for row in rows()}
    assert all(one.low <= one.mean <= one.high for values in published().values() for one in values.values())


def test_the_saliency_figure_shows_the_middle_slice_of_a_scan(tmp_path: Path) -> None:
    """CC-CCII's names are not padded, and sort as text into another order than that of the scan."""
    names = [f"{number}.png" for number in range(6, 17)]
    (tmp_path / "overlays").mkdir()
    for number, name in enumerate(names):
        Image.new("RGB", (8, 8), (0, 20 * number, 0)).save(tmp_path / "overlays" / name)
    assert saliency_montage(tmp_path / "figure.png", {"NCP": [middle_slice(tmp_path, names)]})
    with Image.open(tmp_path / "figure.png") as figure:
        colours = figure.convert("RGB").getcolors(1 << 20)
    assert (0, 20 * names.index("11.png"), 0) in [colour for _, colour in colours]
