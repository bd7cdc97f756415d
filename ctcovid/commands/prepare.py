"""ctcovid prepare: scans on disk to volumes.h5."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ctcovid.base import cpus
from ctcovid.base.choices import ImagesChoice
from ctcovid.base.console import Console
from ctcovid.base.errors import InputError, UsageError, listing
from ctcovid.base.files import claim_file, write_text
from ctcovid.base.runcard import RunCard
from ctcovid.base.signals import StopRequest
from ctcovid.base.workers import Workers
from ctcovid.reports.dataset_table import dataset_table
from ctcovid.reports.preparation import say_choice, say_what_was_packed, warn_of_several_classes
from ctcovid.reports.quality_table import findings_table, summary_table
from ctcovid.reports.tables import Table
from ctcovid.scans.discover import class_order, find_dataset, positive_class
from ctcovid.scans.findings import SCAN_DROPPED, warn_of
from ctcovid.scans.manifest import is_manifest, manifest_parts, manifest_scans
from ctcovid.scans.privacy import Pseudonyms
from ctcovid.scans.scan import Scan
from ctcovid.scans.window import Window, parse_window
from ctcovid.volumes.encode import BATCH, Chunk, Job, Probed, encode_slices, probe_scan
from ctcovid.volumes.judging import Wishes, findings_of, judged, reasons_of
from ctcovid.volumes.layout import ScanRow
from ctcovid.volumes.listing import read_exclusions, read_lesions, read_plan
from ctcovid.volumes.reader import VolumesFile
from ctcovid.volumes.selection import Deal, choose, slices_by_part
from ctcovid.volumes.split import parse_shares, read_split_file
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
    images: str = "complete"
    on_problem: str = "repair"
    exclude: Path | None = None
    lesions: Path | None = None
    balance: bool = False
    same_as: Path | None = None
    check: bool = False
    plan: bool = False
    defects: Path | None = None
    window: str = "-600/1500"
    series: str | None = None
    keep_ids: bool = False
    seed: int = 0
    workers: int = 0
    overwrite: bool = False
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def quality(self) -> Path:
        """Where the findings go: quality.csv beside volumes.h5, other.quality.csv beside other.h5."""
        return self.output.with_name("quality.csv" if self.output.stem == "volumes" else f"{self.output.stem}.quality.csv")


@dataclass(frozen=True)
class Summary:
    """What was prepared: rows of the table by class and split, the scans that had to be left out, and what was found wrong.

    `output` is None where only a check or a plan was asked for.
    """

    output: Path | None
    table: Table
    failed: list[str]
    quality: Table

    def document(self) -> dict[str, Any]:
        output = {"output": str(self.output)} if self.output else {}
        return {**output, "table": _records(self.table), "failed": self.failed, "quality": _records(self.quality)}


def run(options: Options, console: Console) -> Summary:
    """Check everything, decode and judge each scan, write what is sound, deal the patients, and count them as Table 1 does."""
    shares = _require_sense(options)
    if options.plan:
        return _plan(options, shares, console)
    if not options.check:
        claim_file(options.output, options.overwrite)
    window = parse_window(options.window)
    scans, problems, parts = _find(options)
    scans = _without_excluded(scans, options.exclude, console)
    lesions = read_lesions(options.lesions) if options.lesions else None
    wishes = Wishes(options.depth, options.images, options.on_problem, lesions)
    classes = class_order(scan.label for scan in scans)
    positive = positive_class(classes, options.positive)
    if options.split_file:
        parts = read_split_file(options.split_file, dict.fromkeys(scan.patient for scan in scans))
    sizes = slices_by_part(VolumesFile(options.same_as).rows) if options.same_as else None
    deal = Deal(shares, options.seed, parts, sizes, options.balance)
    patients, slices = len({scan.patient for scan in scans}), sum(len(scan.slices) for scan in scans)
    console.say(f"Found {len(scans):,} scans of {patients:,} patients in {', '.join(classes)}: {slices:,} slices.")
    warn_of(scans, console)
    longest = max(len(scan.slices) for scan in scans)
    if not longest:
        reasons = [f"{scan.folder}: {one.message}" for scan in scans for one in scan.findings if one.action == SCAN_DROPPED]
        raise InputError(f"No scan under {options.dataset} can be used:\n{listing(reasons)}")
    if longest < options.depth:
        raise InputError(
            f"No scan under {options.dataset} has {options.depth} slices, the longest has {longest}. Choose a smaller --depth."
        )
    if options.check:
        with StopRequest() as stop, Workers(options.workers or cpus.allowed()) as pool:
            probed = _probe(scans, pool, stop, console)
            rows = [row for row, _ in _judged(probed, None, window, wishes, pool, stop, console)]
        return _report_check(rows, problems, options, console)

    card = RunCard(options.output.with_suffix(".run.json"), "prepare", asdict(options), options.sources)
    with card.recording(), StopRequest() as stop, Workers(options.workers or cpus.allowed()) as pool:
        if problems:
            console.warn(f"{len(problems):,} of the folders cannot be used and are left out:\n{listing(problems)}")
        probed = _probe(scans, pool, stop, console)
        settings = _settings(options, classes, deal, probed, window)
        with VolumesWriter(options.output, options.depth, options.size, classes, positive, settings) as writer:
            _pack(probed, writer, options.size, window, wishes, pool, stop, console)
            rows = writer.rows
            failed = _failed(rows, options.dataset)
            quality = _write_quality(rows, options, card)
            usable = [row for row in rows if row.slice_count]
            if not usable:
                raise InputError(_none_usable(options, rows, failed))
            warn_of_several_classes(usable, classes, options.depth, console)
            chosen = choose(usable, classes, options.depth, deal)
            if not chosen:
                raise InputError(f"No scan of the classes of {options.same_as} is there. Give a data set of the same classes.")
            writer.finish(chosen)

        file = VolumesFile(options.output)
        card.input(options.dataset, f"listing:{settings['listing']}")
        card.output(options.output)
        summary = Summary(options.output, dataset_table(file.rows, classes, options.depth), problems + failed, quality)
        table_path = options.output.with_suffix(".table.csv")
        write_text(table_path, summary.table.csv())
        card.output(table_path)
        card.content["failed"] = summary.failed
    say_choice(usable, file.rows, sizes, console)
    say_what_was_packed(file, options.dataset, options.images, failed, quality, console)
    console.result(summary.table, summary.document())
    console.say(f"Wrote {summary.output}, {table_path} and {options.quality}.")
    return summary


def _find(options: Options) -> tuple[list[Scan], list[str], dict[str, str] | None]:
    """Scans, what looked wrong on the way, and part by patient where a manifest gives it."""
    if not is_manifest(options.dataset):
        salt = None if options.keep_ids else options.output.with_name(options.output.name + ".salt")
        return *find_dataset(options.dataset, options.series, Pseudonyms(salt, lasting=not options.check)), None
    parts = manifest_parts(options.dataset)
    for name, given in (("--split-file", options.split_file), ("--same-as", options.same_as), ("--balance", options.balance)):
        if parts and given:
            raise UsageError(f"{options.dataset} has a split, which {name} would contradict. Leave one of them away.")
    return manifest_scans(options.dataset, options.series), [], parts


def _require_sense(options: Options) -> tuple[float, float, float]:
    """Shares of the parts.

    Raises UsageError where options exclude each other.
    """
    given = {
        "--split": options.sources.get("split", "default") != "default",
        "--split-file": options.split_file is not None,
        "--same-as": options.same_as is not None,
        "--balance": options.balance,
        "--check": options.check,
        "--plan": options.plan,
    }
    for pair in (("--split", "--split-file"), ("--split", "--same-as"), ("--split-file", "--same-as"), ("--check", "--plan")):
        if all(given[name] for name in pair):
            raise UsageError(f"{pair[0]} and {pair[1]} exclude each other. Give one of them.")
    for other in ("--split-file", "--same-as"):
        if options.balance and given[other]:
            raise UsageError(f"--balance and {other} exclude each other. Give one of them.")
    if options.defects is not None and not options.plan:
        raise UsageError("--defects goes with --plan. To leave listed scans out, pass --exclude.")
    return parse_shares(options.split)


def _plan(options: Options, shares: tuple[float, float, float], console: Console) -> Summary:
    """The table that would result, from a listing of the scans alone."""
    rows = read_plan(options.dataset, options.defects)
    listed = len(rows)
    excluded = read_exclusions(options.exclude) if options.exclude else set()
    rows = [row for row in rows if not excluded & {(row.label, row.patient, row.id), ("", row.patient, row.id)}]
    of_kind = [row for row in rows if options.images in (row.image_kind, ImagesChoice.ALL)]
    console.say(f"{listed:,} scans are listed, {listed - len(rows):,} excluded, {len(rows) - len(of_kind):,} of the other kind of images.")
    usable = [row for row in of_kind if row.slice_count]
    if not usable:
        raise InputError(f"{options.dataset} lists no scan that can be used. Give the CSV that lists the scans, or other --images.")
    classes = class_order(row.label for row in usable)
    parts = read_split_file(options.split_file, dict.fromkeys(row.patient for row in usable)) if options.split_file else None
    sizes = slices_by_part(VolumesFile(options.same_as).rows) if options.same_as else None
    chosen = choose(usable, classes, options.depth, Deal(shares, options.seed, parts, sizes, options.balance))
    summary = Summary(None, dataset_table(chosen, classes, options.depth), [], summary_table([]))
    say_choice(usable, chosen, sizes, console)
    console.result(summary.table, summary.document())
    return summary


def _without_excluded(scans: list[Scan], path: Path | None, console: Console) -> list[Scan]:
    if path is None:
        return scans
    excluded = read_exclusions(path)
    left = [scan for scan in scans if not excluded & {(scan.label, scan.patient, scan.id), ("", scan.patient, scan.id)}]
    absent = len(excluded) - len(excluded & {(label, scan.patient, scan.id) for scan in scans for label in (scan.label, "")})
    said = f" {absent:,} more that it lists are not here." if absent else ""
    console.say(f"Left out {len(scans) - len(left):,} scans that {path} lists.{said}")
    if not left:
        raise InputError(f"{path} excludes every scan. Give a shorter list.")
    return left


def _probe(scans: list[Scan], pool: Workers, stop: StopRequest, console: Console) -> list[tuple[Scan, Probed]]:
    """Scans with what the headers of all their slices say."""
    probed = []
    with console.progress(sum(len(scan.slices) for scan in scans), "Checking slices") as advance:
        for scan, found in zip(scans, pool.map(probe_scan, scans), strict=True):
            probed.append((scan, found))
            advance(len(scan.slices))
            if stop.received:
                raise stop.error("Nothing is packed yet; run the line again.")
    return probed


def _settings(options: Options, classes: list[str], deal: Deal, probed: list[tuple[Scan, Probed]], window: Window) -> dict[str, Any]:
    """All that the file's content depends on: a killed run is continued only where none of it has changed."""
    listing_hash = hashlib.sha256()
    for scan, found in probed:
        listing_hash.update(repr((scan.source, found)).encode())
        for path in dict.fromkeys(scan.slices):
            state = path.stat()
            listing_hash.update(repr((path.name, state.st_size, state.st_mtime_ns)).encode())
    given = sorted((deal.parts or {}).items()), sorted((deal.sizes or {}).items())
    settings = {
        "depth": options.depth,
        "size": options.size,
        "classes": classes,
        "split": "same-as" if options.same_as else "file" if deal.parts else options.split,
        "window": [window.level, window.width],
        "seed": options.seed,
        "images": options.images,
        "on_problem": options.on_problem,
        "balance": options.balance,
        "parts": hashlib.sha256(json.dumps(given).encode()).hexdigest(),
        "listing": listing_hash.hexdigest(),
    }
    if options.lesions:
        settings["lesions"] = hashlib.sha256(options.lesions.read_bytes()).hexdigest()
    return settings


def _pack(
    probed: list[tuple[Scan, Probed]],
    writer: VolumesWriter,
    size: int,
    window: Window,
    wishes: Wishes,
    pool: Workers,
    stop: StopRequest,
    console: Console,
) -> None:
    """Write every scan that the file does not hold yet. One that is left out gets a row without slices until the file is finished."""
    written = {row.source for row in writer.rows}
    if written:
        console.say(f"Continuing {writer.partial}: {len(written):,} of {len(probed):,} scans are there already.")
    todo = [(scan, found) for scan, found in probed if scan.source not in written]
    for row, chunks in _judged(todo, size, window, wishes, pool, stop, console):
        writer.add(row, chunks)
        if stop.received:
            raise stop.error(f"{len(writer.rows):,} scans are packed; the same line again continues.")


def _judged(
    todo: list[tuple[Scan, Probed]],
    size: int | None,
    window: Window,
    wishes: Wishes,
    pool: Workers,
    stop: StopRequest,
    console: Console,
) -> Iterator[tuple[ScanRow, list[Chunk]]]:
    """Decode and judge scans: a row for each, without its part, and the slices that stay. Without `size`, only judge them.

    Raises InputError at the first scan with a problem where that is wished for.
    """
    jobs = (Job(part, found.form.bits, size, window) for scan, found in todo for part in scan.parts(BATCH))
    results = pool.map(encode_slices, jobs)
    with console.progress(sum(len(scan.slices) for scan, _ in todo), "Packing slices" if size else "Judging slices") as advance:
        for scan, found in todo:
            slices = [one for _ in scan.parts(BATCH) for one in next(results)]
            yield judged(scan, found, slices, wishes)
            advance(len(scan.slices))
            if stop.received and size is None:
                raise stop.error("Nothing is written; run the line again.")


def _failed(rows: list[ScanRow], dataset: Path) -> list[str]:
    """A sentence for each scan that is left out for what is wrong with it."""
    return [said if str(dataset) in said else f"{dataset / source}: {said}" for source, said in reasons_of(rows).items()]


def _write_quality(rows: list[ScanRow], options: Options, card: RunCard | None = None) -> Table:
    found = findings_of(rows)
    write_text(options.quality, findings_table(found).csv())
    if card is not None:
        card.output(options.quality)
    return summary_table(found)


def _report_check(rows: list[ScanRow], problems: list[str], options: Options, console: Console) -> Summary:
    quality = _write_quality(rows, options)
    failed = problems + _failed(rows, options.dataset)
    if failed:
        console.warn(f"{len(failed):,} scans cannot be used:\n{listing(failed)}")
    summary = Summary(None, summary_table([]), failed, quality)
    console.result(quality, {"quality": _records(quality), "failed": failed, "file": str(options.quality)})
    console.say(f"Wrote {options.quality}." if quality.rows else f"Nothing is wrong. Wrote {options.quality}, without a row.")
    return summary


def _none_usable(options: Options, rows: list[ScanRow], failed: list[str]) -> str:
    if failed:
        return f"No scan under {options.dataset} can be used:\n{listing(failed)}"
    if options.lesions and all(row.image_kind == options.images for row in rows):
        return f"No scan under {options.dataset} has slices that {options.lesions} lists. Its rows are such as NCP/96/1328/0032.png."
    return f"No scan under {options.dataset} is a {options.images} one. Pass --images all, or the other kind."


def _records(table: Table) -> list[dict[str, Any]]:
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]
