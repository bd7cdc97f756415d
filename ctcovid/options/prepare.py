"""Options of ctcovid prepare."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated

import typer

from ctcovid.base import choices
from ctcovid.base.errors import UsageError
from ctcovid.options import shared

# Pairs of options that exclude each other.
EXCLUSIVE = (
    *combinations(("--split", "--split-file", "--same-as"), 2),
    ("--check", "--plan"),
    *(("--balance", other) for other in ("--split-file", "--same-as")),
    *(("--append", other) for other in ("--balance", "--same-as", "--check", "--plan", "--overwrite")),
)


@dataclass(frozen=True)
class Options(shared.Options):
    """Pack CT slices into an HDF5 file of depth-n volumes."""

    dataset: Annotated[Path, typer.Argument(help="Folder of CLASS/patient/scan, or CSV of path,label,patient. With --plan a CSV of scans.")]
    depth: Annotated[int, shared.depth_option("Slices per volume.")] = 4
    size: Annotated[int, shared.size_option("Pixels per side of a slice.")] = 512
    output: Annotated[Path, shared.output_option("HDF5 file to write.")] = Path("volumes.h5")
    split: Annotated[str, typer.Option(help="Per cent of the patients for train, valid and test.")] = "60/20/20"
    split_file: Annotated[Path | None, typer.Option(help="CSV with the columns patient,split, in place of --split.")] = None
    positive: Annotated[str | None, typer.Option(help="Positive class of precision and recall; by default the first.")] = None
    images: Annotated[choices.Images, typer.Option(help="Complete CT, segmented CT (black outside the lungs), or both.")] = "complete"
    on_problem: Annotated[
        choices.OnProblem, typer.Option(help="Repair what can be repaired safely, drop such scans, or stop at the first problem.")
    ] = "repair"
    exclude: Annotated[Path | None, typer.Option(help="List of scans to exclude, such as NCP/96/1328.")] = None
    lesions: Annotated[
        Path | None, typer.Option(help="CSV of the slices with lesions; all other slices of diseased classes are excluded.")
    ] = None
    balance: Annotated[bool, typer.Option(help="Choose patients so that all classes have equally many slices.")] = False
    same_as: Annotated[Path | None, typer.Option(help="Volumes file whose number of slices per class and part is matched.")] = None
    check: Annotated[bool, typer.Option(help="Only check the scans, and write quality.csv.")] = False
    plan: Annotated[bool, typer.Option(help="Only print the resulting table, from a CSV of scans.")] = False
    defects: Annotated[Path | None, typer.Option(help="With --plan: CSV of segmented and repeated scans.")] = None
    window: Annotated[str, typer.Option(help="Window that maps Hounsfield units to grey.", metavar="LEVEL/WIDTH")] = "-600/1500"
    series: shared.Series = None
    keep_ids: Annotated[bool, typer.Option(help="Keep DICOM's patient and study ids instead of pseudonyms.")] = False
    seed: shared.Seed = 0
    workers: shared.Workers = None
    executor: Annotated[str, typer.Option(help="What decodes the slices: processes, dask://HOST:8786, dask or mpi.", metavar="ENGINE")] = (
        "processes"
    )
    append: Annotated[bool, typer.Option(help="Add the scans that the output lacks; every patient stays in its part.")] = False
    overwrite: shared.Overwrite = False

    @property
    def salt(self) -> Path:
        """The file with the salt of the pseudonyms."""
        return self.output.with_name(self.output.name + ".salt")

    @property
    def quality(self) -> Path:
        """The file of the findings: quality.csv for volumes.h5, other.quality.csv for other.h5."""
        return self.output.with_name("quality.csv" if self.output.stem == "volumes" else f"{self.output.stem}.quality.csv")

    def require_sense(self) -> None:
        from ctcovid.base.cluster import require_engine
        from ctcovid.volumes.split import parse_shares

        chosen = {
            "--split": "split" in self.given,
            "--split-file": self.split_file is not None,
            "--same-as": self.same_as is not None,
            "--balance": self.balance,
            "--check": self.check,
            "--plan": self.plan,
            "--append": self.append,
            "--overwrite": self.overwrite,
        }
        for one, other in EXCLUSIVE:
            if chosen[one] and chosen[other]:
                raise UsageError(f"{one} and {other} exclude each other. Give one of them.")
        if self.defects is not None and not self.plan:
            raise UsageError("--defects needs --plan. To exclude listed scans, use --exclude.")
        require_engine(self.executor)
        parse_shares(self.split)
