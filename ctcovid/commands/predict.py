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
from ctcovid.base.errors import InputError, ModelRefusedError, UsageError, counted, listing
from ctcovid.base.files import claim_file
from ctcovid.base.runcard import RunCard
from ctcovid.base.signals import StopRequest
from ctcovid.distributed.ranks import Ranks, together
from ctcovid.inference.classify import classify
from ctcovid.models import registry
from ctcovid.models.device import device_name, keep_freed_layers
from ctcovid.models.registry import TrainedModel
from ctcovid.options.predict import STDOUT, Options
from ctcovid.reports.prediction_rows import prediction_table, scan_columns, scan_row, source_of, typed_row, volume_columns, volume_rows
from ctcovid.reports.rows import Row, RowFile, read_rows
from ctcovid.reports.tables import CsvText
from ctcovid.scans.discover import find_scans
from ctcovid.scans.findings import warn_of
from ctcovid.scans.scan import Scan

# Scans that each of several processes classifies before they exchange rows.
ROUND = 8


@dataclass(frozen=True)
class Summary:
    """The models, the rows of the scans, and a sentence for each scan that was refused or, where that is asked for, flagged.

    Rows of this line's scans that an earlier run has left are `kept`.
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
        return prediction_table([*self.kept, *self.rows], scan_columns(self.classes, len(self.models)))

    def keep(self, row: Row, strict: bool) -> None:
        """Count a row of an earlier run, which is none of a refused scan."""
        self.kept.append(row)
        if strict and row["flags"]:
            self.failed.append(f"{row['scan']}: {row['notes']}")


@dataclass(frozen=True)
class Done:
    """What a process hands to the first one of a scan: its row, those of its volumes, and the path and hash of what was read."""

    row: Row
    volumes: list[Row]
    path: Path
    hash: str | None


def run(options: Options, console: Console) -> Summary:
    """Find the scans, classify each, and go on past those that cannot be checked.

    Of several processes started together, each takes its share of the scans, and the first writes.
    """
    with together(console, options.device, "Run the line again, with --resume if it has an --output.") as ranks:
        options.require_sense()
        if console.json and options.output == STDOUT:
            raise UsageError("--json prints one document on stdout, and -o - a line of JSON per scan. Give one of them.")
        if ranks.first:
            # Rows of volumes are continued only together with those of their scans.
            begun = options.resume and options.output is not None and options.output.is_file()
            for path in options.outputs:
                claim_file(path, options.overwrite or begun)
        with console.busy("Looking for scans"):
            scans = list(options.part_of(find_scans(options.scans, options.series)))
        models = _models(options)
        classes = models[0].classes
        summary = Summary([_about(model, options.raw) for model in models], classes, [], [])
        listed = hashlib.sha256(repr([(scan.id, scan.patient) for scan in scans]).encode()).hexdigest()
        ranks.require_same((listed, summary.models), "the scans and the models")
        kept = _kept(options, summary, ranks)
        there = {_key(row): row for row in kept[0]}
        todo = [scan for scan in scans if (scan.id, scan.patient) not in there]
        for scan in scans:
            if row := there.get((scan.id, scan.patient)):
                if row["source"] != source_of(scan):
                    raise UsageError(
                        f"{options.output} has a scan {scan.id} of {row['source']} already, and this one is {source_of(scan)}. "
                        "Give the folder above both, which tells them apart, or another --output."
                    )
                summary.keep(row, options.strict)
        for about, model in zip(summary.models, models, strict=True):
            fit = "softmax as it is" if about["temperature"] == 1 else f"calibrated with temperature {about['temperature']:.3g}"
            console.say(f"Model {model.name} ({model.folder}), {device_name(model.network.device)}, probabilities {fit}.")
        if summary.kept:
            console.say(f"{len(summary.kept):,} of {counted(len(scans), 'scan')} in {options.output} already.")
        with StopRequest() as stop, contextlib.closing(_rounds(todo, models, options, ranks, stop, console)) as rounds:
            ranks.tell_of(stop)
            if not ranks.first:
                for _ in rounds:
                    pass
                return summary
            warn_of(todo, console)
            _write(rounds, summary, kept, models, options, console)
    if console.json or not options.output:
        console.result(summary.table(), summary.document())
    console.notice()
    rows = [*summary.kept, *summary.rows]
    if rows and not any(row["predicted"] for row in rows):
        raise InputError("No scan could be classified; the reasons are above.")
    return summary


def _models(options: Options) -> list[TrainedModel]:
    """The models, each once.

    Raises ModelRefusedError where their classes differ, UsageError where names are the same.
    """
    loaded = [registry.load(name, options.device, options.precision, options.runs) for name in options.models]
    keep_freed_layers(loaded[0].network.device)
    models = list({model.folder.resolve(): model for model in loaded}.values())
    names_met = Counter(model.name for model in models)
    if repeated := [name for name, count in names_met.items() if count > 1]:
        raise UsageError(f"Several of the models are called {', '.join(repeated)}. Rename one, so that the rows tell them apart.")
    for model in models[1:]:
        if model.classes != models[0].classes:
            raise ModelRefusedError(
                f"{model.name} has the classes {', '.join(model.classes)}, {models[0].name} {', '.join(models[0].classes)}. "
                "Only models of the same classes, in the same order, are averaged."
            )
    return models


def _about(model: TrainedModel, raw: bool) -> dict[str, Any]:
    return {"name": model.name, "weights_sha256": model.card["weights_sha256"], "temperature": 1.0 if raw else model.temperature}


def _key(row: Row) -> tuple[str, str]:
    """What tells a scan from all others."""
    return row["scan"], row["patient"] or ""


def _card_path(output: Path) -> Path:
    return output.with_name(output.name + ".run.json")


def _kept(options: Options, summary: Summary, ranks: Ranks) -> tuple[list[Row], list[Row]]:
    """Rows of scans and of volumes that an earlier run has left, without scans that it refused: they may have been mended.

    Raises InputError where that run had other models.
    """
    found: tuple[list[Row], list[Row]] = ([], [])
    if ranks.first and options.resume and options.output:
        earlier = None
        with contextlib.suppress(OSError, ValueError):
            earlier = json.loads(_card_path(options.output).read_text(encoding="utf-8")).get("models")
        if options.output.is_file() and earlier is not None and earlier != summary.models:
            names = ", ".join(str(model.get("name")) for model in earlier)
            raise InputError(f"{options.output} was begun with {names}, or with another calibration. Name another --output.")
        columns = scan_columns(summary.classes, len(summary.models))
        rows = [row for row in read_rows(options.output, columns, lambda document: document["scans"]) if row["predicted"]]
        try:
            rows = list(map(typed_row, rows))
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{options.output} cannot be continued: {error}. Name another --output.") from error
        volumes: list[Row] = []
        if options.volumes:
            volumes = read_rows(options.volumes, volume_columns(summary.classes))
            # Where an earlier run wrote no volumes, or had no time to, the scan is classified again.
            complete = set(map(_key, volumes))
            rows = [row for row in rows if _key(row) in complete]
        there = set(map(_key, rows))
        found = rows, [row for row in volumes if _key(row) in there]
    return ranks.gather(found)[0]


def _rounds(
    scans: list[Scan], models: list[TrainedModel], options: Options, ranks: Ranks, stop: StopRequest, console: Console
) -> Generator[list[Done], None, None]:
    """What all processes have found, a few scans at a time, in the order of the scans; the same in each of them."""
    classes, hashes = models[0].classes, {}

    def hashed(scan: Scan) -> None:
        # The reading threads have the files at hand.
        with contextlib.suppress(OSError):
            if digest := scan.sha256():
                hashes[id(scan)] = f"sha256:{digest}"

    def one(number: int, scan: Scan) -> tuple[int, Done]:
        checked = next(predictions)
        volumes = volume_rows(checked, classes) if options.volumes else []
        return number, Done(scan_row(checked, classes, len(models)), volumes, scan.folder, hashes.pop(id(scan), None))

    share = ranks.share(list(enumerate(scans)))
    own = iter(share)
    predictions = classify(
        [scan for _, scan in share], models, options.workers or ranks.cpus, options.raw, hashed if options.outputs else lambda scan: None
    )
    at_once = ROUND if ranks.size > 1 else 1
    with contextlib.closing(predictions), console.progress(len(scans), "Scans") as advance:
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
            # Processes hear of a signal at different moments; what they have exchanged is the same for all.
            if heard := [signal for _, signal in gathered if signal]:
                stop.received = heard[0]
                further = "the same line with --resume continues it." if options.outputs else "run the line again."
                raise stop.error(f"What is done is kept; {further}")


def _write(
    rounds: Iterator[list[Done]],
    summary: Summary,
    kept: tuple[list[Row], list[Row]],
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
        _write_files(rounds, summary, kept, card, options)
        refused = [row["notes"] for row in summary.rows if row["predicted"] is None]
        if refused:
            console.warn(f"{len(refused):,} of {counted(len(summary.rows), 'scan')} could not be classified:\n{listing(refused)}")
        for path in options.outputs:
            if card:
                card.output(path)
            console.say(f"Wrote {path}.")


def _write_files(
    rounds: Iterator[list[Done]], summary: Summary, kept: tuple[list[Row], list[Row]], card: RunCard | None, options: Options
) -> None:
    columns = scan_columns(summary.classes, len(summary.models)), volume_columns(summary.classes)
    with contextlib.ExitStack() as stack:
        scans = volumes = None
        if options.output:
            scans = stack.enter_context(RowFile(options.output, columns[0], kept[0], summary.document))
        if options.volumes:
            volumes = stack.enter_context(RowFile(options.volumes, columns[1], kept[1]))
        for done in rounds:
            for one in done:
                # A scan's own row comes last: where it stands, all of the scan does.
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
