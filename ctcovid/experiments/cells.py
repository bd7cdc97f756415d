"""The rows of the paper's Tables 4 to 7, and the cells behind them: what is trained, on which images, how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ctcovid.base.errors import UsageError, did_you_mean

COMPLETE, SAME_NUMBER, SEGMENTED = IMAGES = ("complete", "same-number", "segmented")
TABLES = {
    4: "Accuracy and recall of complete and segmented CT images",
    5: "Effect of depths on different metrics",
    6: "Effect of batch sizes on different metrics",
    7: "Comparison of classification results using different models",
}
# The paper makes no test in Table 4.
WITHOUT_STARS = 4
BASELINE = "r3d18"
DEPTHS = (2, 4, 8, 16, 32, 64)
# Depth and batch of the rows of Table 6. The paper's GPU had no memory for a batch of 64 at depth 8 and more.
BATCH_SIZES = ((2, 32), (2, 64), (4, 32), (4, 64), (8, 32), (16, 32))
ARCHITECTURES = ("r3d18", "r2plus1d18", "r3d34", "r2plus1d34", "r3d50")
ONLY_TABLE_7 = "Table 7, the only one of models other than r3d18, is of depth 4 and batch 32."


@dataclass(frozen=True)
class Cell:
    """A training: volumes of `depth` slices of these images, `batch` of them per step.

    `repeat` counts the repetitions with other seeds, from 0.
    """

    images: str
    arch: str
    depth: int
    batch: int
    repeat: int = 0

    @property
    def run(self) -> str:
        """The name of its run."""
        return f"{self.arch}-d{self.depth}-b{self.batch}" + ("" if self.images == COMPLETE else f"-{self.images}") + self.suffix

    @property
    def suffix(self) -> str:
        """What its names have in addition if it is a repetition."""
        return f"-s{self.repeat}" if self.repeat else ""


@dataclass(frozen=True)
class Row:
    """A row of one of the paper's tables, and the cell that it shows."""

    table: int
    name: str
    cell: Cell


@dataclass(frozen=True)
class Scale:
    """Which of the cells are asked for, and how often each is repeated with other seeds."""

    depths: tuple[int, ...] = DEPTHS
    batches: tuple[int, ...] = (8, 32, 64)
    archs: tuple[str, ...] = ARCHITECTURES
    seeds: int = 1

    @property
    def thickest(self) -> int:
        """The depth of Table 4: 64 in the paper."""
        return self.depths[-1]


# The model that Figs. 6 to 9 show, the best of Table 7.
BEST = Cell(COMPLETE, BASELINE, 4, 32)


def rows(thickest: int = DEPTHS[-1]) -> list[Row]:
    """The rows of Tables 4 to 7 in the paper's order; `thickest` is the depth of Table 4."""
    fourth = [Row(4, f"t4-{images}", Cell(images, BASELINE, thickest, 8)) for images in IMAGES]
    fifth = [Row(5, f"t5-d{depth}-b8", Cell(COMPLETE, BASELINE, depth, 8)) for depth in DEPTHS]
    sixth = [Row(6, f"t6-d{depth}-b{batch}", Cell(COMPLETE, BASELINE, depth, batch)) for depth, batch in BATCH_SIZES]
    return [*fourth, *fifth, *sixth, *(Row(7, f"t7-{arch}", replace(BEST, arch=arch)) for arch in ARCHITECTURES)]


def asked_for(scale: Scale, images: Sequence[str]) -> list[Cell]:
    """The cells that are asked for, on these images. One that stands in two tables comes once; repetitions come last.

    Raises UsageError if there is none.
    """
    cells = [row.cell for row in rows(scale.thickest) if row.cell.images in images and _is_asked_for(row.cell, scale)]
    if not cells:
        raise UsageError(
            f'No cell of the paper has --depths "{_words(scale.depths)}", --batches "{_words(scale.batches)}" and '
            f'--archs "{_words(scale.archs)}". Its batches are 8, 32 and 64; {ONLY_TABLE_7}'
        )
    return [replace(cell, repeat=repeat) for repeat in range(scale.seeds) for cell in dict.fromkeys(cells)]


def _is_asked_for(cell: Cell, scale: Scale) -> bool:
    return cell.depth in scale.depths and cell.batch in scale.batches and cell.arch in scale.archs


def in_vain(scale: Scale, cells: Sequence[Cell]) -> list[str]:
    """A sentence for each word of the scale that no cell has."""
    known: dict[str, tuple[Sequence[object], set[object]]] = {
        "--depths": (scale.depths, {cell.depth for cell in cells}),
        "--batches": (scale.batches, {cell.batch for cell in cells}),
        "--archs": (scale.archs, {cell.arch for cell in cells}),
    }
    return [
        f"no cell has {word} of {option}. {ONLY_TABLE_7}" for option, (words, found) in known.items() for word in words if word not in found
    ]


def names(cell: Cell, thickest: int) -> list[str]:
    """What a cell is called, its rows in the paper's tables first, its run last."""
    first = replace(cell, repeat=0)
    return [*(row.name + cell.suffix for row in rows(thickest) if row.cell == first), cell.run]


def find_cell(word: str, cells: Sequence[Cell], thickest: int) -> Cell:
    """The cell of that number, counted from 1, or of that name.

    Raises UsageError if none is meant.
    """
    if word.isdigit():
        if 1 <= int(word) <= len(cells):
            return cells[int(word) - 1]
        raise UsageError(f"There is no cell {word}: {len(cells)} are asked for. `ctcovid paper list` shows them.")
    known = {name: cell for cell in cells for name in names(cell, thickest)}
    if word not in known:
        raise UsageError(f"There is no cell {word} among those asked for.{did_you_mean(word, known)} `ctcovid paper list` shows them.")
    return known[word]


def is_name(word: str, thickest: int) -> bool:
    """Whether a word is the number of a cell, or has the form of a name of one, and so is not meant as a path."""
    known = {name for row in rows(thickest) for name in (row.name, row.cell.run)}
    stem, _, repeat = word.rpartition("-s")
    return word.isdigit() or word in known or (repeat.isdigit() and stem in known)


def _words(values: Sequence[object]) -> str:
    return " ".join(map(str, values))
