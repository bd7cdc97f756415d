"""ctcovid prepare: scans on disk to volumes.h5."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ctcovid.base import cpus
from ctcovid.base.console import Console
from ctcovid.base.errors import InputError, UsageError, listing
from ctcovid.base.files import claim_file, write_text
from ctcovid.base.runcard import RunCard
from ctcovid.base.signals import StopRequest
from ctcovid.base.workers import Workers
from ctcovid.reports.dataset_table import dataset_table, missing_classes
from ctcovid.reports.tables import Table
from ctcovid.scans.discover import class_order, find_dataset, positive_class
from ctcovid.scans.findings import warn_of
from ctcovid.scans.kind import SEGMENTED, image_kind
from ctcovid.scans.manifest import is_manifest, manifest_parts, manifest_scans
from ctcovid.scans.privacy import Pseudonyms
from ctcovid.scans.read import ScanFormat
from ctcovid.scans.scan import Scan
from ctcovid.scans.window import Window, parse_window
from ctcovid.volumes.encode import BATCH, Chunk, encode_slices, probe_scan
from ctcovid.volumes.layout import ScanRow
from ctcovid.volumes.reader import VolumesFile
from ctcovid.volumes.split import parse_shares, read_split_file, split_patients
from ctcovid.volumes.writer import VolumesWriter


@dataclass(frozen=True)
class Options:
    """What `ctcovid prepare` was asked for; `sources` says where each value came from."""

    dataset: Path
    depth: int = 4
    size: int = 512
    output: Path = Path("volumes.h5")
    split: str = "60/20/20"
    split_file: Path | None = None
    positive: str | None = None
    window: str = "-600/1500"
    series: str | None = None
    keep_ids: bool = False
    seed: int = 0
    workers: int = 0
    overwrite: bool = False
    sources: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """What was prepared: rows of the table by class and split, and the scans that had to be left out."""

    output: Path
    table: Table
    failed: list[str]

    def document(self) -> dict[str, Any]:
        rows = [dict(zip(self.table.columns, row, strict=True)) for row in self.table.rows]
        return {"output": str(self.output), "table": rows, "failed": self.failed}


def run(options: Options, console: Console) -> Summary:
    """Check everything, decode what is sound, write the file, and count it as Table 1 does."""
    claim_file(options.output, options.overwrite)
    shares = parse_shares(options.split)
    if options.split_file is not None and options.sources.get("split", "default") != "default":
        raise UsageError("--split and --split-file exclude each other. Give one of them.")
    window = parse_window(options.window)
    scans, problems, given = _find(options)
    classes = class_order(scan.label for scan in scans)
    positive = positive_class(classes, options.positive)
    patients, slices = len({scan.patient for scan in scans}), sum(len(scan.slices) for scan in scans)
    console.say(f"Found {len(scans):,} scans of {patients:,} patients in {', '.join(classes)}: {slices:,} slices.")
    warn_of(scans, console)

    card = RunCard(options.output.with_suffix(".run.json"), "prepare", asdict(options), options.sources)
    workers = options.workers or cpus.allowed()
    with card.recording(), StopRequest() as stop, Workers(workers) as pool:
        sound, unsound = _check(scans, pool, stop, console)
        problems += unsound
        if problems:
            console.warn(f"{len(problems):,} of the folders cannot be used and are left out:\n{listing(problems)}")
        if not sound:
            raise InputError(f"No scan under {options.dataset} can be used; the reasons are above.")
        longest = max(len(scan.slices) for scan, _ in sound)
        if longest < options.depth:
            raise InputError(
                f"No scan under {options.dataset} has {options.depth} slices, the longest has {longest}. Choose a smaller --depth."
            )
        parts = given or _split([scan for scan, _ in sound], classes, shares, options, console)
        settings = _settings(options, classes, parts, sound, window, "manifest" if given else "")
        with VolumesWriter(options.output, options.depth, options.size, classes, positive, settings) as writer:
            damaged = _encode(sound, parts, options.size, window, writer, pool, stop, console)
            if not writer.rows:
                raise InputError(f"No scan under {options.dataset} can be used:\n{listing(damaged)}")
            writer.finish()

        file = VolumesFile(options.output)
        card.input(options.dataset, f"listing:{settings['listing']}")
        card.output(options.output)
        summary = Summary(options.output, dataset_table(file.rows, classes, options.depth), problems + damaged)
        table_path = options.output.with_suffix(".table.csv")
        write_text(table_path, summary.table.csv())
        card.output(table_path)
        card.content["failed"] = summary.failed
    _report(summary, file, options.dataset, damaged, console)
    return summary


def _find(options: Options) -> tuple[list[Scan], list[str], dict[str, str] | None]:
    """Scans, what looked wrong on the way, and part by patient where a manifest gives it."""
    if is_manifest(options.dataset):
        given = manifest_parts(options.dataset)
        if given and options.split_file is not None:
            raise UsageError(f"{options.dataset} has a split, which --split-file would contradict. Leave one of them away.")
        return manifest_scans(options.dataset, options.series), [], given
    salt = None if options.keep_ids else options.output.with_name(options.output.name + ".salt")
    return *find_dataset(options.dataset, options.series, Pseudonyms(salt)), None


def _split(scans: list[Scan], classes: list[str], shares: tuple[float, float, float], options: Options, console: Console) -> dict[str, str]:
    """Part by patient. One id is one patient, in whichever class folders it stands."""
    patients: dict[str, str] = {}
    # Patients of whom no volume comes must not take the places of others; they fill up the training part.
    long_enough = [scan for scan in scans if len(scan.slices) >= options.depth]
    for scan in sorted(long_enough, key=lambda scan: classes.index(scan.label)):
        patients.setdefault(scan.patient, scan.label)
    several = sorted({scan.patient for scan in long_enough if patients[scan.patient] != scan.label})
    if several:
        names = ", ".join(several[:5]) + (", …" if len(several) > 5 else "")
        console.warn(
            f"{len(several):,} patient ids stand in several classes ({names}); each is taken for one patient and stays in one part."
        )
    if options.split_file is not None:
        return read_split_file(options.split_file, dict.fromkeys(scan.patient for scan in scans))
    return dict.fromkeys((scan.patient for scan in scans), "train") | split_patients(patients, shares, options.seed)


def _check(scans: list[Scan], pool: Workers, stop: StopRequest, console: Console) -> tuple[list[tuple[Scan, ScanFormat]], list[str]]:
    """Sound scans with their format, and what is wrong with the others, by the headers of all slices."""
    sound, unsound = [], []
    total = sum(len(scan.slices) for scan in scans)
    with console.progress(total, "Checking slices") as advance:
        for scan, found in zip(scans, pool.map(probe_scan, scans), strict=True):
            if isinstance(found, InputError):
                unsound.append(str(found))
            else:
                sound.append((scan, found))
            advance(len(scan.slices))
            if stop.received:
                raise stop.error("Nothing is packed yet; run the line again.")
    return sound, unsound


def _settings(
    options: Options, classes: list[str], parts: dict[str, str], sound: list[tuple[Scan, ScanFormat]], window: Window, source: str
) -> dict[str, Any]:
    """All that the file's content depends on: a killed run is continued only where none of it has changed."""
    listing_hash = hashlib.sha256()
    for scan, form in sound:
        listing_hash.update(repr((scan.source, form)).encode())
        for path in dict.fromkeys(scan.slices):
            state = path.stat()
            listing_hash.update(repr((path.name, state.st_size, state.st_mtime_ns)).encode())
    return {
        "depth": options.depth,
        "size": options.size,
        "classes": classes,
        "split": source or ("file" if options.split_file else options.split),
        "window": [window.level, window.width],
        "seed": options.seed,
        "parts": hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest(),
        "listing": listing_hash.hexdigest(),
    }


def _encode(
    sound: list[tuple[Scan, ScanFormat]],
    parts: dict[str, str],
    size: int,
    window: Window,
    writer: VolumesWriter,
    pool: Workers,
    stop: StopRequest,
    console: Console,
) -> list[str]:
    """Decode and write every scan that the file does not hold yet; the scans that turned out to be damaged."""
    written = {row.source for row in writer.rows}
    if written:
        console.say(f"Continuing {writer.partial}: {len(written):,} of {len(sound):,} scans are there already.")
    todo = [(scan, form) for scan, form in sound if scan.source not in written]
    jobs = ((part, form.bits, size, window) for scan, form in todo for part in scan.parts(BATCH))
    results = pool.map(encode_slices, jobs)
    damaged = []
    with console.progress(sum(len(scan.slices) for scan, _ in todo), "Packing slices") as advance:
        for scan, form in todo:
            chunks = _take(results, len(scan.parts(BATCH)))
            if isinstance(chunks, InputError):
                damaged.append(str(chunks))
            else:
                kind = image_kind(sum(chunk.masked for chunk in chunks), len(chunks))
                checks = json.dumps({"height": form.height, "width": form.width, "bits": form.bits})
                row = ScanRow(scan.id, scan.patient, scan.label, parts[scan.patient], 0, len(chunks), kind, scan.source, checks, crc32=0)
                writer.add(row, chunks)
            advance(len(scan.slices))
            if stop.received:
                raise stop.error(f"{len(writer.rows):,} scans are packed; the same line again continues.")
    return damaged


def _take(results: Iterator[list[Chunk] | InputError], count: int) -> list[Chunk] | InputError:
    """The chunks of one scan, which come in `count` parts, or its first error."""
    chunks: list[Chunk] = []
    error: InputError | None = None
    for _ in range(count):
        result = next(results)
        if isinstance(result, InputError):
            error = error or result
        else:
            chunks += result
    return error or chunks


def _report(summary: Summary, file: VolumesFile, dataset: Path, damaged: list[str], console: Console) -> None:
    if damaged:
        console.warn(f"{len(damaged):,} scans are damaged and were left out:\n{listing(damaged)}")
    short = [f"{dataset / row.source}: {row.slice_count} slices" for row in file.rows if not row.volume_count(file.depth)]
    if short:
        console.warn(f"{len(short):,} scans are shorter than the depth of {file.depth}; a smaller --depth uses them:\n{listing(short)}")
    dropped = sum(row.slice_count % file.depth for row in file.rows)
    if dropped:
        console.say(f"{dropped:,} slices at the ends of scans do not fill a volume of depth {file.depth} and take no part.")
    _report_kinds(file, console)
    for part, labels in missing_classes(file.rows, file.classes, file.depth).items():
        lacks = "is empty" if len(labels) == len(file.classes) else f"has no {' and no '.join(labels)}"
        console.warn(f"the {part} part {lacks}. Assign patients yourself with --split-file.")
    console.result(summary.table, summary.document())
    console.say(f"Wrote {summary.output} and {summary.output.with_suffix('.table.csv')}.")


def _report_kinds(file: VolumesFile, console: Console) -> None:
    masked = {label: sum(row.label == label and row.image_kind == SEGMENTED for row in file.rows) for label in file.classes}
    if any(masked.values()):
        counts = ", ".join(f"{label} {masked[label]:,} of {sum(row.label == label for row in file.rows):,}" for label in file.classes)
        console.warn(
            f"segmented scans (black outside the lungs) among the scans: {counts}. "
            "Where the shares differ, a network can learn the mask in place of the disease."
        )
