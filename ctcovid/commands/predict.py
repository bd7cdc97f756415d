"""ctcovid predict: scans on disk to probabilities per scan."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from ctcovid.base.console import Console
from ctcovid.base.errors import InputError, ModelRefusedError, UsageError, agreeing, counted, listing
from ctcovid.base.faults import MachineFaultError
from ctcovid.base.files import MOST_RUN_CARD, claim_file, read_small
from ctcovid.base.locks import alone_at
from ctcovid.base.runcard import RunCard
from ctcovid.base.signals import StopRequest
from ctcovid.base.streams import stdout_is_closed
from ctcovid.distributed.ranks import Ranks, together
from ctcovid.distributed.session import Session
from ctcovid.inference.classify import classify
from ctcovid.models import registry
from ctcovid.models.device import announced, device_name, settle
from ctcovid.models.registry import TrainedModel
from ctcovid.options.predict import STDOUT, Options
from ctcovid.reports.prediction_rows import prediction_table, scan_columns, scan_row, source_of, typed_row, volume_columns, volume_rows
from ctcovid.reports.rows import Row, RowFile, read_rows
from ctcovid.reports.tables import CsvText
from ctcovid.scans.absent import MACHINE_FAULT
from ctcovid.scans.discover import find_scans, with_patients
from ctcovid.scans.findings import warn_of
from ctcovid.scans.scan import Scan

# Scans that each of several processes classifies before they exchange rows.
ROUND = 8


@dataclass(frozen=True)
class Summary:
    """The models, the rows of the scans, and a sentence for each scan that was refused or, with --strict, flagged.

    `kept` are rows of the requested scans from an earlier run.
    """

    models: list[dict[str, Any]]
    classes: list[str]
    rows: list[Row]
    failed: list[str]
    kept: list[Row] = field(default_factory=list)

    def document(self, rows: list[Row] | None = None) -> dict[str, Any]:
        scans = [*self.kept, *self.rows] if rows is None else rows
        return {"models": self.models, "classes": self.classes, "scans": scans, "failed": self.failed}

    def table(self) -> CsvText:
        return prediction_table([*self.kept, *self.rows], self.classes, len(self.models))

    def keep(self, row: Row, strict: bool) -> None:
        """Count a row of an earlier run; it is not of a refused scan."""
        self.kept.append(row)
        if strict and row["flags"]:
            self.failed.append(f"{row['scan']}: {row['notes']}")


@dataclass(frozen=True)
class ClassifiedScan:
    """What a process sends to the first one: the row of a scan, the rows of its volumes, and the path and hash of what was read."""

    row: Row
    volumes: list[Row]
    path: Path
    hash: str | None


@dataclass(frozen=True)
class Earlier:
    """Rows of scans and of volumes that an earlier run has written."""

    scans: list[Row]
    volumes: list[Row]


def run(options: Options, console: Console) -> Summary:
    """Find the scans, load the models, keep the rows of an earlier run, classify the other scans and write their rows.

    A scan that cannot be classified gets a row with the reason. Of several processes started together, each classifies its share of the
    scans, and the first writes.
    """
    with contextlib.ExitStack() as stack:
        ranks = stack.enter_context(together(console, options.device, "Run the same command again; if it has an --output, add --resume."))
        options.require_sense()
        _require_stdout(options, console)
        session = Session(console, StopRequest(), ranks, options.workers or ranks.cpus)
        for path in options.outputs if ranks.first else ():
            stack.enter_context(alone_at(path, console.say, lambda: _claim_outputs(options)))
        with console.busy("Looking for scans"):
            scans = list(options.own_shard(find_scans(options.scans, options.series)))
        models = _models(options)
        scans = with_patients(scans, models[0].classes)
        summary = Summary([_about(model, options.raw) for model in models], models[0].classes, [], [])
        listed = hashlib.sha256(repr([(scan.id, scan.patient) for scan in scans]).encode()).hexdigest()
        ranks.require_same((listed, summary.models), "the scans and the models")
        earlier = _earlier(options, summary, ranks)
        todo = _keep_earlier(scans, earlier, summary, options)
        _announce(models, summary, len(scans), options, console)
        with session.listening(), contextlib.closing(_rounds(todo, models, options, session)) as rounds:
            if not ranks.first:
                for _ in rounds:
                    pass
                return summary
            warn_of(todo, console)
            _write(rounds, summary, earlier, models, options, console)
    if console.json or not options.output:
        console.result(summary.table(), summary.document())
    console.notice()
    _require_some(summary)
    return summary


def _require_stdout(options: Options, console: Console) -> None:
    """Raises UsageError if stdout cannot take the rows that it is to take."""
    if console.json and options.output == STDOUT:
        raise UsageError("--json prints one document on stdout, but -o - prints a line of JSON per scan. Give one of them.")
    if options.output == STDOUT and stdout_is_closed():
        raise UsageError("-o - writes to stdout, which is closed. Name a file.")


def _require_some(summary: Summary) -> None:
    """Raises InputError if no scan could be classified, or MachineFaultError if the machine failed."""
    rows = [*summary.kept, *summary.rows]
    if rows and not any(row["predicted"] for row in rows):
        faults = any(MACHINE_FAULT in row["flags"] for row in rows)
        raise (MachineFaultError if faults else InputError)("No scan could be classified; the reasons are above.")


def _claim_outputs(options: Options) -> None:
    # Rows of volumes are only continued together with those of their scans.
    resumed = options.resume and options.output is not None and options.output.is_file()
    for path in options.outputs:
        claim_file(path, options.overwrite or resumed)


def _models(options: Options) -> list[TrainedModel]:
    """The models, each once.

    Raises ModelRefusedError if their classes differ, UsageError if two have the same name.
    """
    loaded = [registry.load(name, options.device, options.precision, options.runs) for name in options.models]
    settle(loaded[0].network.device)
    models = list({model.folder.resolve(): model for model in loaded}.values())
    counts = Counter(model.name for model in models)
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise UsageError(f"Several of the models are called {', '.join(repeated)}. Rename one of them.")
    for model in models[1:]:
        if model.classes != models[0].classes:
            raise ModelRefusedError(
                f"{model.name} has the classes {', '.join(model.classes)}, but {models[0].name} has {', '.join(models[0].classes)}. "
                "Only models with the same classes in the same order can be averaged."
            )
    return models


def _about(model: TrainedModel, raw: bool) -> dict[str, Any]:
    return {"name": model.name, "weights_sha256": model.card["weights_sha256"], "temperature": 1.0 if raw else model.temperature}


def _card_path(output: Path) -> Path:
    return output.with_name(output.name + ".run.json")


def _earlier(options: Options, summary: Summary, ranks: Ranks) -> Earlier:
    """With --resume, the rows of an earlier run, without scans that it refused: they may have been repaired since.

    Raises InputError if that run had other models, or its file cannot be continued.
    """
    found = Earlier([], [])
    if ranks.first and options.resume and options.output:
        models = None
        with contextlib.suppress(OSError, ValueError, AttributeError, RecursionError):
            models = json.loads(read_small(_card_path(options.output), MOST_RUN_CARD)).get("models")
        if options.output.is_file() and models is not None and models != summary.models:
            names = ", ".join(str(one.get("name")) for one in models if isinstance(one, dict)) if isinstance(models, list) else "others"
            raise InputError(f"{options.output} was written with {names}, or with another calibration. Give another --output.")
        columns = scan_columns(summary.classes, len(summary.models))
        rows = [row for row in read_rows(options.output, columns, lambda document: document["scans"]) if row["predicted"]]
        try:
            rows = list(map(typed_row, rows))
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{options.output} cannot be continued: {error}. Give another --output.") from error
        volumes: list[Row] = []
        if options.volumes:
            volumes = read_rows(options.volumes, volume_columns(summary.classes))
            # A scan without rows of its volumes is classified again.
            complete = {row["scan"] for row in volumes}
            rows = [row for row in rows if row["scan"] in complete]
        kept = {row["scan"] for row in rows}
        found = Earlier(rows, [row for row in volumes if row["scan"] in kept])
    return ranks.gather(found)[0]


def _keep_earlier(scans: list[Scan], earlier: Earlier, summary: Summary, options: Options) -> list[Scan]:
    """Add the rows of an earlier run to `summary`; the scans that have none.

    Raises UsageError if a row belongs to another scan with the same id.
    """
    patients = {scan.id: scan.patient for scan in scans}
    for known in (*earlier.scans, *earlier.volumes):
        # Earlier versions did not take patients from paths.
        known["patient"] = patients.get(known["scan"]) or known["patient"]
    rows = {known["scan"]: known for known in earlier.scans}
    for scan in scans:
        if row := rows.get(scan.id):
            if row["source"] != source_of(scan):
                raise UsageError(
                    f"{options.output} already has a scan {scan.id}, from {row['source']}, but this one is {source_of(scan)}. "
                    "Give the folder above both, so that their ids differ, or another --output."
                )
            summary.keep(row, options.strict)
    return [scan for scan in scans if scan.id not in rows]


def _announce(models: list[TrainedModel], summary: Summary, scans: int, options: Options, console: Console) -> None:
    for about, model in zip(summary.models, models, strict=True):
        kind = "not calibrated" if about["temperature"] == 1 else f"calibrated, temperature {about['temperature']:.3g}"
        kind += " (--raw)" if options.raw else ""
        console.say(f"Model {model.name} ({model.folder}), {announced(model.network.device)}, probabilities {kind}.")
    if summary.kept:
        console.say(
            f"{len(summary.kept):,} of {counted(scans, 'scan')} {agreeing(len(summary.kept), 'is', 'are')} already in {options.output}."
        )


def _rounds(
    scans: list[Scan], models: list[TrainedModel], options: Options, session: Session
) -> Generator[list[ClassifiedScan], None, None]:
    """What all processes have classified, a few scans at a time, in the order of the scans; the same in each process."""
    ranks, stop = session.ranks, session.stop
    classes, hashes = models[0].classes, {}

    def hashed(scan: Scan) -> None:
        # In the threads that read, right after the files were in memory.
        with contextlib.suppress(OSError):
            if digest := scan.sha256():
                hashes[id(scan)] = f"sha256:{digest}"

    def one(number: int, scan: Scan) -> tuple[int, ClassifiedScan]:
        prediction = next(predictions)
        volumes = volume_rows(prediction, classes) if options.volumes else []
        return number, ClassifiedScan(scan_row(prediction, classes, len(models)), volumes, scan.folder, hashes.pop(id(scan), None))

    share = ranks.share(list(enumerate(scans)))
    own = iter(share)
    after_reading = hashed if options.outputs else lambda scan: None
    predictions = classify([scan for _, scan in share], models, session.workers, options.raw, after_reading)
    at_once = ROUND if ranks.size > 1 else 1
    with contextlib.closing(predictions), session.console.progress(len(scans), "Scans") as advance:
        for _ in range(-(-len(scans) // (at_once * ranks.size))):
            done = []
            for number, scan in islice(own, at_once):
                done.append(one(number, scan))
                ranks.check()
                if stop.received:
                    break
            gathered = ranks.gather((done, stop.received))
            everything = sorted((item for some, _ in gathered for item in some), key=lambda item: item[0])
            yield [found for _, found in everything]
            advance(len(everything))
            # Processes notice a signal at different moments, but what they have exchanged is the same in all.
            if signals := [signal for _, signal in gathered if signal]:
                stop.received = signals[0]
                further = "the same command with --resume continues." if options.outputs else "run the same command again."
                raise stop.error(f"Finished scans are kept; {further}")


def _write(
    rounds: Iterator[list[ClassifiedScan]],
    summary: Summary,
    earlier: Earlier,
    models: list[TrainedModel],
    options: Options,
    console: Console,
) -> None:
    """Write the rows as they come, and add them to `summary`."""
    card = None
    if options.output and options.output != STDOUT:
        card = RunCard(_card_path(options.output), "predict", asdict(options), options.sources)
        card.content |= {"device": device_name(models[0].network.device), "models": summary.models}
        for model in models:
            card.input(model.folder / "model.safetensors", f"sha256:{model.card['weights_sha256']}")
    with contextlib.ExitStack() as stack:
        if card:
            stack.enter_context(card.recording())
        _write_files(rounds, summary, earlier, card, options)
        refused = [row["notes"] for row in summary.rows if row["predicted"] is None]
        if refused:
            console.warn(f"{len(refused):,} of {counted(len(summary.rows), 'scan')} could not be classified:\n{listing(refused)}")
        for path in options.outputs:
            if card:
                card.output(path)
            console.say(f"Wrote {path}.")


def _write_files(
    rounds: Iterator[list[ClassifiedScan]], summary: Summary, earlier: Earlier, card: RunCard | None, options: Options
) -> None:
    columns = scan_columns(summary.classes, len(summary.models)), volume_columns(summary.classes)
    with contextlib.ExitStack() as stack:
        scans = volumes = None
        if options.output:
            scans = stack.enter_context(RowFile(options.output, columns[0], earlier.scans, summary.document))
        if options.volumes:
            volumes = stack.enter_context(RowFile(options.volumes, columns[1], earlier.volumes))
        for done in rounds:
            for one in done:
                # The row of a scan is written last, so that a scan with a row is complete.
                if volumes:
                    for row in one.volumes:
                        volumes.add(row)
                if scans:
                    scans.add(one.row)
                summary.rows.append(one.row)
                if one.row["predicted"] is None or (options.strict and one.row["flags"]):
                    summary.failed.append(f"{one.row['scan']}: {one.row['notes']}")
                if card and one.hash:
                    card.input(one.path, one.hash)
