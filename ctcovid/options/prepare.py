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

# Options of which one only can be given.
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
    split: Annotated[str, typer.Option(help="Per cent of the patients to train, validate and test with.")] = "60/20/20"
    split_file: Annotated[Path | None, typer.Option(help="CSV with the columns patient,split, in place of --split.")] = None
    positive: Annotated[str | None, typer.Option(help="Class that precision and recall are about; by default the first.")] = None
    images: Annotated[choices.Images, typer.Option(help="Complete CT, segmented CT (black outside the lungs), or both.")] = "complete"
    on_problem: Annotated[
        choices.OnProblem, typer.Option(help="Repair what can be repaired for certain, drop such scans, or stop at the first.")
    ] = "repair"
    exclude: Annotated[Path | None, typer.Option(help="List of scans to leave out, such as NCP/96/1328.")] = None
    lesions: Annotated[Path | None, typer.Option(help="CSV of the slices with lesions; others of diseased classes are left out.")] = None
    balance: Annotated[bool, typer.Option(help="Choose patients so that all classes have as many slices.")] = False
    same_as: Annotated[Path | None, typer.Option(help="Volumes file whose number of slices by class and part is taken.")] = None
    check: Annotated[bool, typer.Option(help="Only check the scans, and write quality.csv.")] = False
    plan: Annotated[bool, typer.Option(help="Only print the table that would result, from a CSV of scans.")] = False
    defects: Annotated[Path | None, typer.Option(help="With --plan: CSV of segmented and repeated scans.")] = None
    window: Annotated[str, typer.Option(help="Window that maps Hounsfield units to grey.", metavar="LEVEL/WIDTH")] = "-600/1500"
    series: shared.Series = None
    keep_ids: Annotated[bool, typer.Option(help="Write DICOM's own patient and study ids, not pseudonyms.")] = False
    seed: shared.Seed = 0
    workers: shared.Workers = None
    executor: Annotated[str, typer.Option(help="What decodes: processes, dask://HOST:8786, dask or mpi.", metavar="ENGINE")] = "processes"
    append: Annotated[bool, typer.Option(help="Add scans that the output lacks; every patient keeps its part.")] = False
    overwrite: shared.Overwrite = False

    @property
    def salt(self) -> Path:
        """Where the salt of pseudonyms lies."""
        return self.output.with_name(self.output.name + ".salt")

    @property
    def quality(self) -> Path:
        """Where the findings go: quality.csv beside volumes.h5, other.quality.csv beside other.h5."""
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
            raise UsageError("--defects goes with --plan. To leave listed scans out, pass --exclude.")
        require_engine(self.executor)
        parse_shares(self.split)
