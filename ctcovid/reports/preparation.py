"""What prepare says of the scans that it has packed and left out."""

from __future__ import annotations

from pathlib import Path

from ctcovid.base.console import Console
from ctcovid.base.errors import agreeing, counted, listing
from ctcovid.reports.dataset_table import missing_classes
from ctcovid.reports.tables import Table
from ctcovid.scans.findings import SCAN_DROPPED
from ctcovid.scans.kind import SEGMENTED
from ctcovid.volumes.layout import ScanRow
from ctcovid.volumes.reader import VolumesFile
from ctcovid.volumes.selection import patients_of, slices_by_part


def warn_of_several_classes(rows: list[ScanRow], classes: list[str], depth: int, console: Console) -> None:
    labels, _ = patients_of(rows, classes, depth)
    several = sorted({row.patient for row in rows if row.volume_count(depth) and labels[row.patient] != row.label})
    if several:
        names = ", ".join(several[:5]) + (", …" if len(several) > 5 else "")
        ids = f"{counted(len(several), 'patient id')} {agreeing(len(several), 'occurs', 'occur')}"
        console.warn(f"{ids} in several classes ({names}); each is treated as one patient, in one part.")


def say_choice(usable: list[ScanRow], chosen: list[ScanRow], sizes: dict[tuple[str, str], int] | None, console: Console) -> None:
    """What --balance or --same-as left out, and what --same-as could not fill."""
    left = len(usable) - len(chosen)
    if left:
        slices = sum(row.slice_count for row in usable) - sum(row.slice_count for row in chosen)
        said = f"{counted(left, 'scan')}, {counted(slices, 'slice')} in all"
        console.say(f"Left out {said}, so that the classes have the requested numbers.")
    have = slices_by_part(chosen)
    short = [f"{label} {part}: {have.get((label, part), 0):,} of {size:,}" for (label, part), size in (sizes or {}).items()]
    short = [line for line, key in zip(short, sizes or {}, strict=True) if have.get(key, 0) < (sizes or {})[key]]
    if short:
        console.warn(f"there are fewer slices than --same-as requests:\n{listing(short)}")


def say_what_was_packed(file: VolumesFile, dataset: Path, images: str, failed: list[str], quality: Table, console: Console) -> None:
    """What is wrong, what is left out, and what the parts lack."""
    if failed:
        console.warn(f"{counted(len(failed), 'scan')} left out, which cannot be used:\n{listing(failed)}")
    if quality.rows:
        console.say(quality.text())
    short = [f"{dataset / row.source}: {counted(row.slice_count, 'slice')}" for row in file.rows if not row.volume_count(file.depth)]
    if short:
        said = f"{counted(len(short), 'scan')} shorter than the depth of {file.depth}"
        console.warn(f"{said}, which a smaller --depth uses:\n{listing(short)}")
    dropped = sum(row.slice_count % file.depth for row in file.rows)
    if dropped:
        console.say(f"Left over: {counted(dropped, 'slice')} at the ends of scans, too few for a volume of depth {file.depth}.")
    _say_kinds(file, images, quality, console)
    for part, labels in missing_classes(file.rows, file.classes, file.depth).items():
        lacks = "is empty" if len(labels) == len(file.classes) else f"has no {' and no '.join(labels)}"
        console.warn(f"the {part} part {lacks}. Assign patients yourself with --split-file.")


def _say_kinds(file: VolumesFile, images: str, quality: Table, console: Console) -> None:
    other = [row for row in quality.rows if row[0] in ("segmented", "complete") and row[2] == SCAN_DROPPED]
    for code, _, _, scans, _ in other:
        console.say(f"Left out {counted(int(scans), f'{code} scan')}; --images all takes both kinds.")
    masked = {label: sum(row.label == label and row.image_kind == SEGMENTED for row in file.rows) for label in file.classes}
    if any(masked.values()) and images == "all":
        counts = ", ".join(f"{label} {masked[label]:,} of {sum(row.label == label for row in file.rows):,}" for label in file.classes)
        console.warn(
            f"segmented scans (black outside the lungs) among the scans: {counts}. "
            "Where the shares differ, a network can learn the mask in place of the disease."
        )
