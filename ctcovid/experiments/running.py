"""How the data are made and how a cell is run: which commands, with which words. What is done already is not done again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from ctcovid.base.console import Console
from ctcovid.base.errors import CtcovidError, counted
from ctcovid.base.locks import in_turn
from ctcovid.experiments import done
from ctcovid.experiments.cells import BEST, COMPLETE, SAME_NUMBER, SEGMENTED, Cell, names
from ctcovid.experiments.saliency import OUTPUT, explained, scans_to_explain
from ctcovid.experiments.study import Study

# Runs a command with the words of its command line, and returns its summary.
Do = Callable[[str, Sequence[object]], Any]
# How the data of each kind are prepared: Table 1 balances its classes, and the second row of Table 4 has as many slices as Table 2.
CHOICES: dict[str, tuple[str, ...]] = {COMPLETE: ("complete", "--balance"), SEGMENTED: ("segmented",), SAME_NUMBER: ("complete",)}
# Of synthetic CT: the share of segmented scans, and the fewest slices of a scan. A segmented scan lacks the slices without lung, up to a
# quarter of all.
MASKED, SLICES, WITHOUT_LUNG, RANGE = 0.25, 16, 1.5, 8


@dataclass(frozen=True)
class Work:
    """What every step needs: the study, how commands are run, and where messages go.

    `common` are words for all commands that take them, and `device` those about the device. `refused` has, by kind of images, why they
    cannot be prepared.
    """

    study: Study
    do: Do
    console: Console
    common: Sequence[object] = ()
    device: Sequence[object] = ()
    refused: dict[str, CtcovidError] = field(default_factory=dict)

    def run(self, cell: Cell) -> None:
        """Do what is not done of a cell, with its data and, for the best model, its saliency maps.

        Raises what the commands raise.
        """
        study = self.study
        self.data(cell.images)
        where = ("--runs", study.runs, *self.common, *self.device)
        if not done.is_trained(study, cell):
            shape = ("--arch", cell.arch, "--depth", cell.depth, "--batch", cell.batch, "--epochs", study.epochs)
            seed = ("--seed", study.seed + cell.repeat)
            self.do("train", ["--data", study.data(cell.images), "--name", cell.run, *shape, *seed, *where, "--resume"])
        if done.evaluation(study, cell) is None:
            # The paper's intervals are mean ± 1.96 standard deviations of the bootstrap.
            self.do("evaluate", [cell.run, "--ci", "normal", "--seed", study.seed, *where, "--overwrite"])
        if cell == BEST:
            self._saliency(where)

    def data(self, images: str) -> None:
        """Make and prepare the data of that kind. Of several jobs one does, and the others wait.

        Raises what the commands raise, each time if it is the input's fault.
        """
        if images in self.refused:
            raise self.refused[images]
        if self.study.data(images).is_file():
            return
        with in_turn(self.study.out, self.console.say):
            try:
                self._prepare(images)
            except CtcovidError as error:
                self.refused[images] = error
                raise

    def _prepare(self, images: str) -> None:
        study = self.study
        if study.synthetic and not done.is_synthesised(study.out / "synthetic"):
            self._synthesise()
        for kind in (SEGMENTED, SAME_NUMBER) if images == SAME_NUMBER else (images,):
            file = study.data(kind)
            if not file.is_file():
                same = ("--same-as", study.data(SEGMENTED)) if kind == SAME_NUMBER else ()
                settings = ("--size", study.size, "--seed", study.seed, *self.common)
                self.do("prepare", [study.folder(kind), "--output", file, "--images", *CHOICES[kind], *same, *settings])

    def _synthesise(self) -> None:
        study = self.study
        fewest = max(SLICES, ceil(WITHOUT_LUNG * max(cell.depth for cell in study.cells)))
        settings = ("--patients", study.patients, "--size", study.size, "--slices", f"{fewest}-{fewest + RANGE}", "--masked", MASKED)
        self.do("demo", [study.out / "synthetic", "--data-only", *settings, "--seed", study.seed, *self.common, "--overwrite"])

    def _saliency(self, where: Sequence[object]) -> None:
        """Maps of test patients for Fig. 7. A scan that cannot be explained is missing there."""
        study = self.study
        scans = scans_to_explain(study)
        if not scans or set(scans) <= set(explained(study)):
            return
        try:
            self.do("explain", [*scans, "--model", BEST.run, "--output", study.out / OUTPUT, *where, "--overwrite"])
        except CtcovidError as error:
            self.console.warn(f"Fig. 7 is not complete: {error}")


def run_cells(work: Work, cells: Iterable[Cell], told: Callable[[Exception], str]) -> list[str]:
    """Run cells one after another; a sentence for each that failed, as `told` puts it.

    Raises the error of the last one if all have failed.
    """
    failed: list[str] = []
    cells = list(cells)
    if len(cells) > 1 and any(cell.images == COMPLETE for cell in cells):
        # Without these there is nothing to go on with.
        work.data(COMPLETE)
    for number, cell in enumerate(cells, start=1):
        name = names(cell, work.study.scale.thickest)[0]
        if done.status(work.study, cell) != done.DONE:
            work.console.say(f"\nCell {number} of {len(cells)}: {name} (run {cell.run})")
        try:
            work.run(cell)
        except Exception as error:
            if len(failed) == len(cells) - 1:
                raise
            failed.append(f"{name}: {told(error)}")
            work.console.warn(f"cell {name} failed: {told(error)}")
    if failed:
        work.console.warn(f"{len(failed)} of {counted(len(cells), 'cell')} failed:\n" + "\n".join(f"  {sentence}" for sentence in failed))
    return failed
