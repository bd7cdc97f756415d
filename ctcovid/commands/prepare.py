"""ctcovid prepare: scans on disk to volumes.h5."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from ctcovid.base import cpus
from ctcovid.base.cluster import PROCESSES, cluster_workers
from ctcovid.base.console import Console
from ctcovid.base.errors import InputError, counted, listing
from ctcovid.base.faults import MachineFaultError
from ctcovid.base.files import claim_file, write_text
from ctcovid.base.locks import alone_at
from ctcovid.base.runcard import RunCard
from ctcovid.base.signals import StopAwaitedError, StopRequest
from ctcovid.base.workers import Workers
from ctcovid.commands.prepare_discover import Discovered, ProbedScans, Scheme, discover, listings_of, report_plan, scheme_for, settings_of
from ctcovid.commands.prepare_summary import Summary, failed_scans, report_check, report_nothing_new, write_quality
from ctcovid.options.prepare import Options
from ctcovid.reports.dataset_table import dataset_table
from ctcovid.reports.preparation import say_choice, say_what_was_packed, warn_of_several_classes
from ctcovid.reports.tables import Table
from ctcovid.scans.absent import MACHINE_FAULT, read_again
from ctcovid.scans.findings import SCAN_DROPPED, warn_of
from ctcovid.scans.scan import Scan
from ctcovid.scans.window import parse_window
from ctcovid.volumes.appending import carried_over, require_same_salt
from ctcovid.volumes.encode import BATCH, Chunk, Job, encode_slices, probe_scan
from ctcovid.volumes.layout import FileInfo, ScanRow
from ctcovid.volumes.reader import VolumesFile
from ctcovid.volumes.selection import choose_awaiting
from ctcovid.volumes.verdicts import check_scan, findings_of, is_read_again
from ctcovid.volumes.writer import VolumesWriter


@dataclass(frozen=True)
class Session:
    """What every step of the work needs: where it reports, whether it is to stop, and the processes that decode."""

    console: Console
    stop: StopRequest
    workers: Workers


@dataclass(frozen=True)
class Packed:
    """The complete file, its usable scans before the split, a sentence for each scan that failed, and the findings by code."""

    file: VolumesFile
    usable: list[ScanRow]
    failed: list[str]
    quality: Table


def run(options: Options, console: Console) -> Summary:
    """Discover the scans, check and decode each, pack the sound ones, split the patients, and count them as Table 1 does."""
    options.require_sense()
    if options.plan:
        return report_plan(_resolved(options, _base(options) if options.append else None), console)
    with alone_at(options.quality if options.check else options.output, console.say, lambda: _claim_output(options)):
        return _prepare(options, console)


def _prepare(options: Options, console: Console) -> Summary:
    """The work of `run`, while no other process writes the same output."""
    base = _base(options) if options.append else None
    options = _resolved(options, base)
    window = parse_window(options.window)
    found = discover(options, base, console)
    if base and all(read_again(scan.findings) for scan in found.scans):
        return report_nothing_new(base, [*found.problems, *(scan.refusal for scan in found.scans)], console)
    scheme = scheme_for(found, options, window, base)
    _say_found(found.scans, scheme.classes, console)
    if options.check:
        with _session(options, console) as session:
            rows = _check(found.scans, scheme, session)
        return report_check(rows, found.problems, options, console)

    _require_long_enough(found.scans, options)
    card = RunCard(options.output.with_suffix(".run.json"), "prepare", asdict(options), options.sources)
    with card.recording(), _session(options, console) as session:
        if found.problems:
            console.warn(f"{counted(len(found.problems), 'folder')} left out, which cannot be used:\n{listing(found.problems)}")
        packed = _pack(found, scheme, options, base, card, session)
        summary = _summarise(packed, found.problems, options, card)
    say_choice(packed.usable, packed.file.rows, scheme.split.sizes, console)
    say_what_was_packed(packed.file, options.dataset, options.images, packed.failed, packed.quality, console)
    console.result(summary.table, summary.document())
    console.say(f"Wrote {options.output}, {options.output.with_suffix('.table.csv')} and {options.quality}.")
    return summary


def _base(options: Options) -> VolumesFile:
    if not options.output.exists():
        raise InputError(f"--append: there is no {options.output} to add to. Omit --append to create it.")
    base = VolumesFile(options.output)
    require_same_salt(base, options.salt)
    return base


def _resolved(options: Options, base: VolumesFile | None) -> Options:
    """The options with the settings of the file to append to, and a path that workers on other nodes understand."""
    if base:
        options = replace(options, **carried_over(base, {name: getattr(options, name) for name in options.given if hasattr(options, name)}))
    if options.executor != PROCESSES:
        # These workers have another working folder.
        options = replace(options, dataset=options.dataset.absolute())
    return options


def _claim_output(options: Options) -> None:
    if not options.check:
        claim_file(options.output, options.overwrite or options.append)
    elif options.output.exists() and not options.overwrite:
        # A check may replace the findings of an earlier check, but not those of a prepared file.
        claim_file(options.quality, overwrite=False)


@contextlib.contextmanager
def _session(options: Options, console: Console) -> Iterator[Session]:
    """Workers, and a stop request that is heeded while one of them is awaited.

    Raises StoppedError then.
    """
    with StopRequest() as stop, _workers(options, console) as workers:
        workers.stop = stop
        try:
            yield Session(console, stop, workers)
        except StopAwaitedError as error:
            raise stop.error("Finished scans are kept. Run the same command again to resume.") from error


def _workers(options: Options, console: Console) -> Workers:
    if options.executor != PROCESSES:
        return cluster_workers(options.executor, options.dataset)
    have = cpus.decided()
    workers = Workers(options.workers or have.count)
    who = f"with {counted(workers.count, 'worker')}" if workers.count else "without workers, for which file handles or /dev/shm are too few"
    console.say(f"Decoding {who}, {have}.")
    return workers


def _say_found(scans: list[Scan], classes: list[str], console: Console) -> None:
    patients, slices = len({scan.patient for scan in scans}), sum(len(scan.slices) for scan in scans)
    console.say(
        f"Found {counted(len(scans), 'scan')} of {counted(patients, 'patient')} in {', '.join(classes)}: {counted(slices, 'slice')}."
    )
    warn_of(scans, console)


def _require_long_enough(scans: list[Scan], options: Options) -> None:
    longest = max(len(scan.slices) for scan in scans)
    if not longest:
        reasons = [f"{scan.folder}: {one.message}" for scan in scans for one in scan.findings if one.action == SCAN_DROPPED]
        faults = any(one.code == MACHINE_FAULT for scan in scans for one in scan.findings)
        raise (MachineFaultError if faults else InputError)(f"No scan under {options.dataset} can be used:\n{listing(reasons)}")
    if longest < options.depth:
        raise InputError(
            f"No scan under {options.dataset} has {options.depth} slices, the longest has {longest}. Choose a smaller --depth."
        )


def _check(scans: list[Scan], scheme: Scheme, session: Session) -> list[ScanRow]:
    rows = []
    for row, _ in _checked(_probe(scans, session), None, scheme, session):
        rows.append(row)
        if session.stop.received:
            raise session.stop.error("Nothing is written. Run the same command again.")
    return rows


def _pack(found: Discovered, scheme: Scheme, options: Options, base: VolumesFile | None, card: RunCard, session: Session) -> Packed:
    """Write the file, with the findings beside it.

    Raises InputError if no scan can be used.
    """
    probed = _probe(found.scans, session)
    settings = settings_of(probed, found, scheme, options, base)
    info = FileInfo(options.depth, options.size, scheme.classes, scheme.positive, settings)
    with VolumesWriter(options.output, info, base, listings_of(probed)) as writer:
        again = _write_scans(probed, scheme, writer, session)
        new = [*writer.rows[len(base.rows) if base else 0 :], *again]
        failed = failed_scans(new, options.dataset)
        quality = write_quality([*writer.rows, *again, *writer.left_out_before], options.quality)
        card.output(options.quality)
        order = {scan.source: number for number, (scan, _) in enumerate(probed)}
        # After a fault of the machine, a resumed run has read some scans later than others.
        usable = sorted((row for row in writer.rows if row.slice_count), key=lambda row: order.get(row.source, -1))
        if not usable:
            faults = any(one.code == MACHINE_FAULT for _, one in findings_of(again))
            raise (MachineFaultError if faults else InputError)(_none_usable(options, new, failed))
        warn_of_several_classes(usable, scheme.classes, options.depth, session.console)
        chosen, awaited = choose_awaiting(usable, again, scheme.classes, options.depth, scheme.split)
        if not chosen:
            raise InputError(f"No scan has a class of {options.same_as}. Give a data set of the same classes.")
        writer.finish(chosen, awaited)
    file = VolumesFile(options.output)
    card.input(options.dataset, f"listing:{settings['listing']}")
    card.output(options.output)
    return Packed(file, usable, failed, quality)


def _summarise(packed: Packed, problems: list[str], options: Options, card: RunCard) -> Summary:
    """The summary, whose table is also written beside the file."""
    file = packed.file
    summary = Summary(options.output, dataset_table(file.rows, file.classes, file.depth), problems + packed.failed, packed.quality)
    table_path = options.output.with_suffix(".table.csv")
    write_text(table_path, summary.table.csv())
    card.output(table_path)
    card.content["failed"] = summary.failed
    return summary


def _probe(scans: list[Scan], session: Session) -> ProbedScans:
    probed = []
    with session.console.progress(sum(len(scan.slices) for scan in scans), "Checking headers") as advance:
        for scan, headers in zip(scans, session.workers.map(probe_scan, scans), strict=True):
            probed.append((scan, headers))
            advance(len(scan.slices))
            if session.stop.received:
                raise session.stop.error("Nothing is packed yet. Run the same command again.")
    return probed


def _write_scans(probed: ProbedScans, scheme: Scheme, writer: VolumesWriter, session: Session) -> list[ScanRow]:
    """Write every scan that the file does not hold yet. One that is left out gets a row without slices until the file is finished.

    Returns rows of scans that are not written, because the next run is to read them again.
    """
    again = []
    written = {row.source for row in writer.rows} & {scan.source for scan, _ in probed}
    if written:
        session.console.say(f"Resuming {writer.partial}, which has {len(written):,} of {counted(len(probed), 'scan')}.")
    todo = [(scan, headers) for scan, headers in probed if scan.source not in written]
    for row, chunks in _checked(todo, writer.info.size, scheme, session):
        if is_read_again(row):
            again.append(row)
        else:
            writer.add(row, chunks)
        if session.stop.received:
            raise session.stop.error(f"{counted(len(writer.rows), 'scan')} packed. Run the same command again to resume.")
    return again


def _checked(todo: ProbedScans, size: int | None, scheme: Scheme, session: Session) -> Iterator[tuple[ScanRow, list[Chunk]]]:
    """Decode and check scans: a row for each, without its part, and its kept slices. Without `size`, slices are only checked.

    Raises InputError at the first scan with a problem with --on-problem stop.
    """
    jobs = (Job(piece, headers.form.scale, size, scheme.window) for scan, headers in todo for piece in scan.pieces(BATCH))
    results = session.workers.map(encode_slices, jobs)
    with session.console.progress(sum(len(scan.slices) for scan, _ in todo), "Packing slices" if size else "Checking slices") as advance:
        for scan, headers in todo:
            slices = [one for _ in scan.pieces(BATCH) for one in next(results)]
            yield check_scan(scan, headers, slices, scheme.criteria)
            advance(len(scan.slices))


def _none_usable(options: Options, rows: list[ScanRow], failed: list[str]) -> str:
    if failed:
        return f"No scan under {options.dataset} can be used:\n{listing(failed)}"
    if options.lesions and all(row.image_kind == options.images for row in rows):
        return f"No scan under {options.dataset} has slices that {options.lesions} lists. Its rows must be like NCP/96/1328/0032.png."
    return f"No scan under {options.dataset} is {options.images}. Pass --images all, or the other kind."
