"""ctcovid paper: the experiments of Li, Pei and Guo 2021, one cell after another or as an array of jobs, and their report."""

from __future__ import annotations

import contextlib
import importlib
import shlex
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ctcovid.base import choices
from ctcovid.base.console import Console
from ctcovid.base.errors import CtcovidError, InputError, StoppedError, counted
from ctcovid.base.faults import told
from ctcovid.base.files import RUN_CARD
from ctcovid.base.locks import in_turn
from ctcovid.base.runcard import RunCard
from ctcovid.base.signals import no_signal_lost
from ctcovid.experiments import done, listing
from ctcovid.experiments.cells import in_vain
from ctcovid.experiments.report import RESULTS, Report, make_report
from ctcovid.experiments.running import Work, run_cells
from ctcovid.experiments.slurm import Script, batch_script
from ctcovid.experiments.study import RECORD, Study, read_study, require_scans
from ctcovid.options.paper import Options
from ctcovid.options.words import parsed, words_of
from ctcovid.reports.tables import Table


@dataclass(frozen=True)
class Listing:
    """The cells that are asked for, a row each."""

    cells: Table


def run(options: Options, console: Console) -> Report | Listing | Script:
    """Read what is asked for, and list it, print it as a batch script, run it, or report it."""
    options.require_sense()
    study = read_study(options)
    for sentence in in_vain(study.scale, study.cells):
        console.warn(sentence)
    if options.action == choices.LIST:
        return _list(study, console)
    if options.action == choices.SBATCH:
        return _sbatch(study, options, console)
    if options.action == choices.REPORT:
        return _report(study, [], options, console)
    require_scans(study)
    done.require_epochs(study)
    study.record()
    cells = [study.one] if study.one else study.cells
    with _resumed():
        failed = run_cells(_work(study, options, console), cells, lambda error: _told(error, console))
        return _report(study, failed, options, console)


def _list(study: Study, console: Console) -> Listing:
    table = listing.cells_table(study)
    console.result(table, listing.document(table))
    return Listing(table)


def _sbatch(study: Study, options: Options, console: Console) -> Script:
    require_scans(study)
    scans = [options.scans] if options.scans else []
    script = batch_script(len(study.cells), [*scans, *words_of(options)])
    console.result(script, script.document())
    console.say("Save this as paper.sbatch, and submit it: sbatch paper.sbatch")
    return script


def _work(study: Study, options: Options, console: Console) -> Work:
    """What the steps need. Each runs a command as if its line had been typed, and only the report goes to stdout."""
    inner = Console(quiet=console.quiet, verbose=console.verbose, results=False)

    def do(name: str, words: Sequence[object]) -> Any:
        console.say(f"$ ctcovid {name} {shlex.join(map(str, words))}")
        asked = parsed(name, words, options.config)
        with no_signal_lost():
            return importlib.import_module(f"ctcovid.commands.{name}").run(asked, inner)

    given = {name: [f"--{name}", getattr(options, name)] for name in ("workers", "device", "precision") if name in options.given}
    return Work(study, do, console, given.get("workers", []), [*given.get("device", []), *given.get("precision", [])])


def _report(study: Study, failed: list[str], options: Options, console: Console) -> Report:
    """Make the report of what there is; jobs of an array do so one at a time."""
    if not (study.out / RECORD).is_file():
        raise InputError(f"There is no {study.out} to report. Run the experiments with ctcovid paper run, or name their --output.")
    with in_turn(study.out, console.say):
        card = RunCard(study.out / RUN_CARD, "paper", asdict(options), options.sources)
        with card.recording():
            report = make_report(study, failed)
            card.output(study.out / RESULTS)
            card.content["failed"] = failed
    console.result(report, report.document())
    console.say(f"{report.done} of {counted(report.cells, 'cell')} done. Wrote {study.out / RESULTS}, tables and figures beside it.")
    return report


@contextlib.contextmanager
def _resumed() -> Iterator[None]:
    """Each stopped command says how itself is resumed. Here the same command does that for all."""
    try:
        yield
    except StoppedError as error:
        by = str(error).partition(". ")[0]
        raise StoppedError(f"{by}. The same command resumes where it stopped.", error.exit_code, error.together) from error


def _told(error: Exception, console: Console) -> str:
    if console.verbose and not isinstance(error, CtcovidError):
        traceback.print_exception(error)
    return told(error)
