"""ctcovid prepare: scans on disk to volumes.h5."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ctcovid.base import cpus
from ctcovid.base.cluster import PROCESSES, cluster_workers
from ctcovid.base.console import Console
from ctcovid.base.errors import InputError, UsageError, counted, listing
from ctcovid.base.files import claim_file, write_text
from ctcovid.base.runcard import RunCard
from ctcovid.base.signals import StopRequest
from ctcovid.base.workers import Workers
from ctcovid.commands.prepare_summary import Summary, records
from ctcovid.options.prepare import Options
from ctcovid.reports.dataset_table import dataset_table
from ctcovid.reports.preparation import say_choice, say_what_was_packed, warn_of_several_classes
from ctcovid.reports.quality_table import findings_table, summary_table
from ctcovid.reports.tables import Table
from ctcovid.scans.classes import class_order, positive_class
from ctcovid.scans.discover import find_dataset
from ctcovid.scans.findings import SCAN_DROPPED, warn_of
from ctcovid.scans.manifest import is_manifest, manifest_parts, manifest_scans
from ctcovid.scans.privacy import Pseudonyms
from ctcovid.scans.scan import Scan
from ctcovid.scans.window import Window, parse_window
from ctcovid.volumes.appending import carried_over, joined_listing, not_there_yet, parts_of, require_same_choice, require_same_salt
from ctcovid.volumes.encode import BATCH, Chunk, Job, Probed, encode_slices, probe_scan
from ctcovid.volumes.layout import ScanRow
from ctcovid.volumes.listing import read_exclusions, read_lesions, read_plan
from ctcovid.volumes.reader import VolumesFile
from ctcovid.volumes.selection import Deal, choose, slices_by_part
from ctcovid.volumes.split import parse_shares, read_split_file
from ctcovid.volumes.verdicts import Wishes, findings_of, judged, reasons_of
from ctcovid.volumes.writer import VolumesWriter


def run(options: Options, console: Console) -> Summary:
    """Check everything, decode and judge each scan, write what is sound, deal the patients, and count them as Table 1 does."""
    options.require_sense()
    shares = parse_shares(options.split)
    base = _base(options) if options.append else None
    if base:
        options = replace(options, **carried_over(base, {name: getattr(options, name) for name in options.given if hasattr(options, name)}))
        shares = parse_shares(options.split, recorded=True)
    if options.executor != PROCESSES:
        # Workers elsewhere have another working folder.
        options = replace(options, dataset=options.dataset.absolute())
    if options.plan:
        return _plan(options, shares, console)
    if not options.check:
        claim_file(options.output, options.overwrite or options.append)
    elif options.output.exists() and not options.overwrite:
        # The findings of a check may be replaced by those of the next one, those of a prepared file may not.
        claim_file(options.quality, overwrite=False)
    window = parse_window(options.window)
    pseudonyms = Pseudonyms(None if options.keep_ids else options.salt, lasting=not options.check)
    with console.busy("Looking for scans"):
        scans, problems, parts = _find(options, pseudonyms)
    scans = _without_excluded(scans, options.exclude, console)
    if base:
        found, scans = len(scans), not_there_yet(base, scans)
        console.say(f"{base.path} has {counted(len(base.rows), 'scan')}, among them {found - len(scans):,} of the {found:,} here.")
        if not scans:
            return _nothing_new(base, options, console)
    lesions = read_lesions(options.lesions) if options.lesions else None
    wishes = Wishes(options.depth, options.images, options.on_problem, lesions)
    classes = base.classes if base else class_order(scan.label for scan in scans)
    positive = positive_class(classes, options.positive)
    if options.split_file:
        parts = read_split_file(options.split_file, dict.fromkeys(scan.patient for scan in scans))
    if base:
        require_same_choice(base, _hash(options.lesions), parts)
    sizes = slices_by_part(VolumesFile(options.same_as).rows) if options.same_as else None
    deal = Deal(shares, options.seed, parts, sizes, options.balance, parts_of(base) if base else {})
    patients, slices = len({scan.patient for scan in scans}), sum(len(scan.slices) for scan in scans)
    console.say(
        f"Found {counted(len(scans), 'scan')} of {counted(patients, 'patient')} in {', '.join(classes)}: {counted(slices, 'slice')}."
    )
    warn_of(scans, console)
    if options.check:
        with StopRequest() as stop, _workers(options) as pool:
            probed = _probe(scans, pool, stop, console)
            rows = [row for row, _ in _judged(probed, None, window, wishes, pool, stop, console)]
        return _report_check(rows, problems, options, console)

    longest = max(len(scan.slices) for scan in scans)
    if not longest:
        reasons = [f"{scan.folder}: {one.message}" for scan in scans for one in scan.findings if one.action == SCAN_DROPPED]
        raise InputError(f"No scan under {options.dataset} can be used:\n{listing(reasons)}")
    if longest < options.depth:
        raise InputError(
            f"No scan under {options.dataset} has {options.depth} slices, the longest has {longest}. Choose a smaller --depth."
        )
    card = RunCard(options.output.with_suffix(".run.json"), "prepare", asdict(options), options.sources)
    with card.recording(), StopRequest() as stop, _workers(options) as pool:
        if problems:
            console.warn(f"{len(problems):,} of the folders cannot be used and are left out:\n{listing(problems)}")
        probed = _probe(scans, pool, stop, console)
        settings = _settings(options, classes, deal, probed, window)
        if pseudonyms.used:
            settings["pseudonyms"] = pseudonyms.mark
        if base:
            settings |= {"listing": joined_listing(base, settings["listing"])}
            settings = {**base.settings, **settings}
        with VolumesWriter(options.output, options.depth, options.size, classes, positive, settings, base) as writer:
            _pack(probed, writer, options.size, window, wishes, pool, stop, console)
            rows = writer.rows
            failed = _failed(rows[len(base.rows) if base else 0 :], options.dataset)
            quality = _write_quality([*rows, *(base.left_out if base else ())], options, card)
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


def _workers(options: Options) -> Workers:
    if options.executor == PROCESSES:
        return Workers(options.workers or cpus.allowed())
    return cluster_workers(options.executor, options.dataset)


def _base(options: Options) -> VolumesFile:
    if not options.output.exists():
        raise InputError(f"--append: there is no {options.output} to add to yet. Leave --append away, and it is made.")
    base = VolumesFile(options.output)
    require_same_salt(base, options.salt)
    return base


def _nothing_new(base: VolumesFile, options: Options, console: Console) -> Summary:
    quality = summary_table(findings_of([*base.rows, *base.left_out]))
    summary = Summary(options.output, dataset_table(base.rows, base.classes, base.depth), [], quality)
    console.result(summary.table, summary.document())
    console.say(f"There is nothing to add. {base.path} stays as it is.")
    return summary


def _find(options: Options, pseudonyms: Pseudonyms) -> tuple[list[Scan], list[str], dict[str, str] | None]:
    """Scans, what looked wrong on the way, and part by patient where a manifest gives it."""
    if not is_manifest(options.dataset):
        return *find_dataset(options.dataset, options.series, pseudonyms), None
    parts = manifest_parts(options.dataset)
    for name, given in (("--split-file", options.split_file), ("--same-as", options.same_as), ("--balance", options.balance)):
        if parts and given:
            raise UsageError(f"{options.dataset} has a split, which {name} would contradict. Leave one of them away.")
    return manifest_scans(options.dataset, options.series), [], parts


def _plan(options: Options, shares: tuple[float, float, float], console: Console) -> Summary:
    """The table that would result, from a listing of the scans alone."""
    rows = read_plan(options.dataset, options.defects)
    listed = len(rows)
    excluded = read_exclusions(options.exclude) if options.exclude else set()
    rows = [row for row in rows if not excluded & {(row.label, row.patient, row.id), ("", row.patient, row.id)}]
    of_kind = [row for row in rows if options.images in (row.image_kind, "all")]
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
    if len(left) == len(scans):
        console.warn(f"none of the scans here is listed in {path}. It needs lines such as NCP/96/1328, or the columns patient_id,scan_id.")
    else:
        console.say(f"Left out {counted(len(scans) - len(left), 'scan')} of {path}.{said}")
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
        turned = (scan.stack.turn, scan.stack.frames) if scan.stack else None
        listing_hash.update(repr((scan.source, scan.id, scan.patient, scan.label, turned, found)).encode())
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
        "keep_ids": options.keep_ids,
        "parts": hashlib.sha256(json.dumps(given).encode()).hexdigest(),
        "listing": listing_hash.hexdigest(),
    }
    if options.lesions:
        settings["lesions"] = _hash(options.lesions)
    return settings


def _hash(path: Path | None) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path else None


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
    written = {row.source for row in writer.rows} & {scan.source for scan, _ in probed}
    if written:
        console.say(f"Continuing {writer.partial}: {len(written):,} of {counted(len(probed), 'scan')} there already.")
    todo = [(scan, found) for scan, found in probed if scan.source not in written]
    for row, chunks in _judged(todo, size, window, wishes, pool, stop, console):
        writer.add(row, chunks)
        if stop.received:
            raise stop.error(f"{counted(len(writer.rows), 'scan')} packed; the same command again continues.")


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
        console.warn(f"{counted(len(failed), 'scan')} cannot be used:\n{listing(failed)}")
    summary = Summary(None, summary_table([]), failed, quality)
    console.result(quality, {"quality": records(quality), "failed": failed, "file": str(options.quality)})
    console.say(f"Wrote {options.quality}." if quality.rows else f"Nothing is wrong. Wrote {options.quality}, without a row.")
    return summary


def _none_usable(options: Options, rows: list[ScanRow], failed: list[str]) -> str:
    if failed:
        return f"No scan under {options.dataset} can be used:\n{listing(failed)}"
    if options.lesions and all(row.image_kind == options.images for row in rows):
        return f"No scan under {options.dataset} has slices that {options.lesions} lists. Its rows are such as NCP/96/1328/0032.png."
    return f"No scan under {options.dataset} is a {options.images} one. Pass --images all, or the other kind."
