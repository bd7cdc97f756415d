"""Tables 4 to 7 and Figs. 4 to 9 in the paper's form, out of what paper.sh has trained and evaluated.

    paper.sh tables        # calls this with the rows of the tables on standard input

Writes OUT/table-4.md, .csv and .tex, and so on, OUT/figure-4.png and so on, and OUT/results.md with all tables. A row whose cell is not
finished says "missing".
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ctcovid.evaluation.significance import stars
from ctcovid.models.architectures import ARCHITECTURES
from ctcovid.reports.figures import figure, literal
from ctcovid.reports.tables import Table, csv_text
from ctcovid.scans.classes import class_order
from ctcovid.volumes.reader import VolumesFile

METRICS = {"accuracy": "Accuracy (95% CI)", "f1": "F1-score (95% CI)", "precision": "Precision (95% CI)", "recall": "Recall (95% CI)"}
CAPTIONS = {
    4: "Accuracy and recall of complete and segmented CT images",
    5: "Effect of depths on different metrics",
    6: "Effect of batch sizes on different metrics",
    7: "Comparison of classification results using different models",
}
# The paper's Table 4 makes no test.
WITHOUT_STARS = 4
MISSING = "missing"


@dataclass(frozen=True)
class Row:
    """A row of one of the paper's tables; `score` is what ctcovid evaluate wrote of its model, None where that is not finished."""

    table: int
    name: str
    images: str
    arch: str
    depth: int
    batch: int
    score: dict[str, Any] | None


def read_rows(lines: list[str], out: Path) -> list[Row]:
    """Rows as paper.sh lists them, each with its score."""
    rows = []
    for line in lines:
        table, name, images, arch, depth, batch = line.split()
        scores = {score["name"]: score for score in evaluation(out, int(table)).get("models", [])}
        rows.append(Row(int(table), name, images, arch, int(depth), int(batch), scores.get(name)))
    return rows


def evaluation(out: Path, table: int) -> dict[str, Any]:
    """What ctcovid evaluate wrote for a table, of its models together or each for itself; empty where none is finished."""
    folder = out / f"table-{table}"
    paths = [folder / "evaluation.json", *sorted(folder.glob("*/evaluation.json"))]
    found: list[dict[str, Any]] = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]
    return {**found[0], "models": [model for document in found for model in document["models"]]} if found else {}


def labels(row: Row, out: Path) -> dict[str, str]:
    """What the paper calls the row: headings and cells of its first columns."""
    if row.table == 4:
        images = {"same-number": "complete, same number"}.get(row.images, row.images)
        return {"Depth and batch size": f"{row.depth} {row.batch} ({images})", "Slices": slices(out / f"{row.images}.h5")}
    if row.table == 7:
        layers = row.arch.removeprefix("r2plus1d").removeprefix("r3d")
        return {"Model": f"ResNet-{layers}(2+1)D" if ARCHITECTURES[row.arch].family.startswith("(2+1)D") else f"ResNet-{layers}"}
    return {"Depth": str(row.depth), "Batch size": str(row.batch)}


def slices(path: Path) -> str:
    return f"{sum(row.slice_count for row in VolumesFile(path).rows):,}" if path.is_file() else MISSING


def cell(score: dict[str, Any] | None, metric: str, with_stars: bool) -> str:
    """As the paper writes it: mean, stars, and the interval in brackets."""
    if score is None:
        return MISSING
    found = score[metric]
    if found["mean"] is None:
        return "not defined" if found["value"] is None else f"{found['value']:.4f}"
    mark = stars(score["p_values"].get(metric)) if with_stars and score["p_values"] else ""
    return f"{found['mean']:.4f}{mark} ({found['low']:.4f}, {found['high']:.4f})"


def paper_table(rows: list[Row], out: Path) -> Table:
    """One of the paper's tables."""
    number, document = rows[0].table, evaluation(out, rows[0].table)
    named = [labels(row, out) for row in rows]
    cells = [
        [*name.values(), f"{row.score['n_volumes']:,}" if row.score else MISSING]
        + [cell(row.score, metric, number != WITHOUT_STARS) for metric in METRICS]
        for name, row in zip(named, rows, strict=True)
    ]
    notes = ["Means and mean ± 1.96 standard deviations of the bootstrap over volumes of the test part."]
    if document:
        notes.append(f"Accuracy is over all classes; F1-score, precision and recall are {document['positive']} against the rest.")
    if document and number != WITHOUT_STARS:
        reference = next(name for name, row in zip(named, rows, strict=True) if row.name == document["reference"])
        which = ", ".join(f"{heading} {value}" for heading, value in reference.items())
        notes.append(f"Two-sided Fisher's exact test against {which}: * p < 0.05, ** p < 0.01, *** p < 0.001.")
    if missing := sum(row.score is None for row in rows):
        notes.append(f"{missing} of {len(rows)} cells missing: not asked for, or the training is not finished.")
    title = f"Table {number}. {CAPTIONS[number]}"
    return Table((*named[0], "Test volumes", *METRICS.values()), cells, title, text_columns=len(named[0]), notes=notes)


def full_numbers(rows: list[Row]) -> str:
    """The same as CSV, without rounding: a row of numbers per cell, empty where it is missing."""
    parts = ("value", "mean", "low", "high", "p")
    heading = ["name", "images", "arch", "depth", "batch", "status", "test_volumes"]
    heading += [f"{metric}_{part}" for metric in METRICS for part in parts]
    lines = []
    for row in rows:
        numbers: list[Any] = [""] * (1 + len(METRICS) * len(parts))
        if row.score:
            tests = row.score["p_values"] or {}
            found = [{**row.score[metric], "p": tests.get(metric)} for metric in METRICS]
            numbers = [row.score["n_volumes"], *(score[part] for score in found for part in parts)]
        lines.append([row.name, row.images, row.arch, row.depth, row.batch, "finished" if row.score else MISSING, *numbers])
    return csv_text(heading, lines)


def latex(table: Table) -> str:
    """The table for a manuscript that uses the booktabs package."""
    lines = [" & ".join(str(cell) for cell in row) + r" \\" for row in (table.columns, *table.rows)]
    lines[0] += r" \midrule"
    caption = " ".join([f"{table.title.split('. ', 1)[1]}.", *table.notes])
    text = "\n".join([rf"\begin{{tabular}}{{{'l' * len(table.columns)}}} \toprule", *lines, r"\bottomrule \end{tabular}"])
    text = f"\\begin{{table}}\n\\caption{{{caption}}}\n{text}\n\\end{{table}}\n"
    for sign, written in (("%", r"\%"), ("±", r"$\pm$"), ("<", "$<$"), ("_", r"\_")):
        text = text.replace(sign, written)
    return text


def metrics_figure(path: Path, rows: list[Row], places: list[str], what: str, line: str) -> bool:
    """Fig. 4 or 5: the four metrics with their intervals, a place for each row; whether there was anything to draw."""
    if not any(row.score for row in rows):
        return False
    with figure(path, 6, 4) as drawn:
        axes = drawn.subplots()
        for number, (metric, name) in enumerate(METRICS.items()):
            found = [row.score[metric] if row.score else {} for row in rows]
            mean, low, high = (np.array([score.get(part) for score in found], dtype=float) for part in ("mean", "low", "high"))
            # Side by side, so that no interval hides another.
            beside = np.arange(len(rows)) + 0.08 * (number - 1.5)
            axes.errorbar(beside, mean, (mean - low, high - mean), fmt=line, markersize=4, capsize=3, label=name.split(" (")[0])
        axes.set_xticks(range(len(rows)), places)
        axes.set_xlim(-0.5, len(rows) - 0.5)
        axes.set(xlabel=what, ylabel="mean and 95 % interval")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    return True


def saliency_montage(path: Path, explained: Path) -> bool:
    """Fig. 7: a column for each class, the middle slice of three patients each; whether there was anything to draw."""
    columns: dict[str, list[Path]] = {}
    for manifest in sorted(explained.glob("*/manifest.json")):
        scan = json.loads(manifest.read_text(encoding="utf-8"))
        # In the order of the scan, which that of file names need not be.
        middle = Path(scan["slices"][len(scan["slices"]) // 2])
        columns.setdefault(Path(scan["source"]).parents[1].name, []).append(manifest.parent / "overlays" / f"{middle.stem}.png")
    if not columns:
        return False
    height = max(len(column) for column in columns.values())
    with figure(path, 2.4 * len(columns), 2.4 * height) as drawn:
        grid = drawn.subplots(height, len(columns), squeeze=False)
        for axes in grid.flat:
            axes.axis("off")
        for place, label in enumerate(class_order(columns)):
            grid[0, place].set_title(literal(label))
            for axes, overlay in zip(grid[:, place], columns[label], strict=False):
                axes.imshow(np.asarray(Image.open(overlay)))
    return True


def copied(source: Path, path: Path) -> bool:
    """Copy a figure that another command has drawn; whether there was one."""
    if source.is_file():
        shutil.copyfile(source, path)
    return source.is_file()


def main(out: Path, best: str) -> None:
    rows = read_rows(sys.stdin.read().splitlines(), out)
    text = []
    for number in CAPTIONS:
        mine = [row for row in rows if row.table == number]
        table = paper_table(mine, out)
        text.append(table.text())
        (out / f"table-{number}.md").write_text(table.text() + "\n", encoding="utf-8")
        (out / f"table-{number}.csv").write_text(full_numbers(mine), encoding="utf-8")
        (out / f"table-{number}.tex").write_text(latex(table), encoding="utf-8")
    for earlier in out.glob("figure-*.png"):
        earlier.unlink()
    depths, batches = ([row for row in rows if row.table == number] for number in (5, 6))
    drawn = {
        4: metrics_figure(out / "figure-4.png", depths, [str(row.depth) for row in depths], "depth (batch size 8)", "o-"),
        5: metrics_figure(out / "figure-5.png", batches, [f"{row.depth}, {row.batch}" for row in batches], "depth, batch size", "o"),
        6: copied(out / "table-7" / "figures" / f"confusion-{best}.png", out / "figure-6.png"),
        7: saliency_montage(out / "figure-7.png", out / "figure-7"),
        8: copied(out / "runs" / best / "loss.png", out / "figure-8.png"),
        9: copied(out / "runs" / best / "accuracy.png", out / "figure-9.png"),
    }
    text.append("\n".join(f"Figure {number}: {f'figure-{number}.png' if there else MISSING}" for number, there in drawn.items()))
    (out / "results.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    print("\n\n".join(text))
    print(f"Wrote {out}/results.md, and table-N.md, .csv, .tex and figure-N.png beside it.", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
