"""What ctcovid prepare works on: which scans, of which classes, and how patients are assigned to parts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctcovid.base.console import Console
from ctcovid.base.errors import InputError, UsageError, agreeing, counted
from ctcovid.commands.prepare_summary import Summary
from ctcovid.options.prepare import Options
from ctcovid.reports.dataset_table import dataset_table
from ctcovid.reports.preparation import say_choice
from ctcovid.reports.quality_table import summary_table
from ctcovid.scans.classes import class_order, positive_class
from ctcovid.scans.discover import find_dataset
from ctcovid.scans.manifest import is_manifest, manifest_parts, manifest_scans
from ctcovid.scans.privacy import Pseudonyms
from ctcovid.scans.scan import Scan
from ctcovid.scans.window import Window
from ctcovid.volumes.appending import joined_listing, not_there_yet, parts_of, require_same_choice
from ctcovid.volumes.encode import Probed
from ctcovid.volumes.listing import read_exclusions, read_lesions, read_plan
from ctcovid.volumes.reader import VolumesFile
from ctcovid.volumes.selection import Sizes, Split, choose, slices_by_part
from ctcovid.volumes.split import parse_shares, read_split_file
from ctcovid.volumes.verdicts import Criteria

# Scans with what the headers of all their slices say.
ProbedScans = list[tuple[Scan, Probed]]


@dataclass(frozen=True)
class Discovered:
    """Scans to prepare, a sentence for each folder that cannot be used, and part by patient if a manifest gives it."""

    scans: list[Scan]
    problems: list[str]
    parts: dict[str, str] | None
    pseudonyms: Pseudonyms


@dataclass(frozen=True)
class Scheme:
    """How scans are prepared: their classes, which slices are kept, the window to grey, and the split of patients."""

    classes: list[str]
    positive: str
    criteria: Criteria
    window: Window
    split: Split


def discover(options: Options, base: VolumesFile | None, console: Console) -> Discovered:
    """The scans of the data set without excluded ones and those of `base`, the file to append to.

    Raises InputError or UsageError if there are none, or lists contradict the options.
    """
    pseudonyms = Pseudonyms(None if options.keep_ids else options.salt, lasting=not options.check)
    with console.busy("Looking for scans"):
        scans, problems, parts = _find(options, pseudonyms)
    if options.exclude:
        scans = _without_excluded(scans, options.exclude, console)
    if base:
        found, scans = len(scans), not_there_yet(base, scans)
        console.say(f"{base.path} has {counted(len(base.rows), 'scan')}, among them {found - len(scans):,} of the {found:,} here.")
    return Discovered(scans, problems, parts, pseudonyms)


def _find(options: Options, pseudonyms: Pseudonyms) -> tuple[list[Scan], list[str], dict[str, str] | None]:
    if not is_manifest(options.dataset):
        return *find_dataset(options.dataset, options.series, pseudonyms), None
    parts = manifest_parts(options.dataset)
    for name, given in (("--split-file", options.split_file), ("--same-as", options.same_as), ("--balance", options.balance)):
        if parts and given:
            raise UsageError(f"{options.dataset} has a split, which {name} would contradict. Omit one of them.")
    return manifest_scans(options.dataset, options.series), [], parts


def _without_excluded(scans: list[Scan], path: Path, console: Console) -> list[Scan]:
    excluded = read_exclusions(path)
    kept = [scan for scan in scans if not excluded & {(scan.label, scan.patient, scan.id), ("", scan.patient, scan.id)}]
    absent = len(excluded) - len(excluded & {(label, scan.patient, scan.id) for scan in scans for label in (scan.label, "")})
    if len(kept) == len(scans):
        console.warn(f"none of the scans here is listed in {path}. It needs lines such as NCP/96/1328, or the columns patient_id,scan_id.")
    else:
        note = f" {absent:,} more that it lists {agreeing(absent, 'is', 'are')} not here." if absent else ""
        console.say(f"Left out {counted(len(scans) - len(kept), 'scan')} of {path}.{note}")
    if not kept:
        raise InputError(f"{path} excludes every scan. Give a shorter list.")
    return kept


def scheme_for(found: Discovered, options: Options, window: Window, base: VolumesFile | None) -> Scheme:
    """Classes, criteria and split for the scans that were found.

    Raises InputError or UsageError if lists do not fit the scans or `base`.
    """
    lesions = read_lesions(options.lesions) if options.lesions else None
    criteria = Criteria(options.depth, options.images, options.on_problem, lesions)
    classes = base.classes if base else class_order(scan.label for scan in found.scans)
    positive = positive_class(classes, options.positive)
    parts = found.parts
    if options.split_file:
        parts = read_split_file(options.split_file, dict.fromkeys(scan.patient for scan in found.scans))
    if base:
        require_same_choice(base, _hash(options.lesions), parts)
    shares = parse_shares(options.split, recorded=base is not None)
    split = Split(shares, options.seed, parts, _sizes(options), options.balance, parts_of(base) if base else {})
    return Scheme(classes, positive, criteria, window, split)


def settings_of(probed: ProbedScans, found: Discovered, scheme: Scheme, options: Options, base: VolumesFile | None) -> dict[str, Any]:
    """All that the file's content depends on. A killed run is resumed only if none of it but the listing has changed."""
    listing_hash = hashlib.sha256(repr(sorted(listings_of(probed).items())).encode())
    given = sorted((scheme.split.parts or {}).items()), sorted((scheme.split.sizes or {}).items())
    settings: dict[str, Any] = {
        "depth": options.depth,
        "size": options.size,
        "classes": scheme.classes,
        "split": "same-as" if options.same_as else "file" if scheme.split.parts else options.split,
        "window": [scheme.window.level, scheme.window.width],
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
    if found.pseudonyms.used:
        settings["pseudonyms"] = found.pseudonyms.mark
    if base:
        settings["listing"] = joined_listing(base, settings["listing"])
    return {**base.settings, **settings} if base else settings


def listings_of(probed: ProbedScans) -> dict[str, str]:
    """By source, a hash of the scan's names, headers and files: a resumed run keeps scans whose hash has not changed."""
    listings = {}
    for scan, headers in probed:
        turned = (scan.stack.turn, scan.stack.frames) if scan.stack else None
        digest = hashlib.sha256(repr((scan.source, scan.id, scan.patient, scan.label, turned, headers)).encode())
        for path in dict.fromkeys(scan.slices):
            try:
                state = path.stat()
                digest.update(repr((path.name, state.st_size, state.st_mtime_ns)).encode())
            except OSError as error:
                digest.update(repr((path.name, error.errno)).encode())
        listings[scan.source] = digest.hexdigest()
    return listings


def report_plan(options: Options, console: Console) -> Summary:
    """The result of --plan: the table that would result, from a listing of the scans alone."""
    rows = read_plan(options.dataset, options.defects)
    listed = len(rows)
    excluded = read_exclusions(options.exclude) if options.exclude else set()
    rows = [row for row in rows if not excluded & {(row.label, row.patient, row.id), ("", row.patient, row.id)}]
    of_kind = [row for row in rows if options.images in (row.image_kind, "all")]
    console.say(
        f"{counted(listed, 'scan')} {agreeing(listed, 'is', 'are')} listed, {listed - len(rows):,} excluded, "
        f"{len(rows) - len(of_kind):,} of the other kind of images."
    )
    usable = [row for row in of_kind if row.slice_count]
    if not usable:
        raise InputError(f"{options.dataset} lists no usable scan. Give the CSV that lists the scans, or other --images.")
    classes = class_order(row.label for row in usable)
    parts = read_split_file(options.split_file, dict.fromkeys(row.patient for row in usable)) if options.split_file else None
    split = Split(parse_shares(options.split), options.seed, parts, _sizes(options), options.balance)
    chosen = choose(usable, classes, options.depth, split)
    summary = Summary(None, dataset_table(chosen, classes, options.depth), [], summary_table([]))
    say_choice(usable, chosen, split.sizes, console)
    console.result(summary.table, summary.document())
    return summary


def _sizes(options: Options) -> Sizes | None:
    return slices_by_part(VolumesFile(options.same_as).rows) if options.same_as else None


def _hash(path: Path | None) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path else None
