"""ctcovid demo: a small synthetic CC-CCII through all five commands, or a synthetic data set of any size alone."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from ctcovid.base import cpus
from ctcovid.base.choices import PLAIN
from ctcovid.base.console import Console
from ctcovid.base.errors import StoppedError, UsageError
from ctcovid.base.files import RUN_CARD, claim_folder
from ctcovid.base.locks import alone_at
from ctcovid.base.runcard import RunCard
from ctcovid.base.signals import no_signal_lost
from ctcovid.commands import evaluate, explain, predict, prepare, train
from ctcovid.commands.demo_presets import AUTO, PRESETS, Machine, Preset, choose
from ctcovid.evaluation.levels import scan_probabilities
from ctcovid.explanation.faithfulness import with_random_weights
from ctcovid.explanation.methods import TITLES, Method, map_cells, saliency_maps
from ctcovid.explanation.pointing import Pointing, pointing
from ctcovid.explanation.upsample import to_slices
from ctcovid.inference.checked_scan import read_checked
from ctcovid.models import registry
from ctcovid.models.device import choose_device, multiplies_bfloat16
from ctcovid.models.network import Network
from ctcovid.models.saved_model import read_card
from ctcovid.options.demo import Options
from ctcovid.phantom.dataset import MOST_SCANS, Parameters, plan, write_dataset
from ctcovid.phantom.defects import Defects
from ctcovid.phantom.lesions import DIFFICULTY
from ctcovid.reports.tables import Table
from ctcovid.scans.classes import CLASS_ORDER
from ctcovid.scans.discover import TRUTH, find_dataset
from ctcovid.scans.masks import read_mask
from ctcovid.scans.scan import Scan

ARCH = "r3d18"
# A map of the last layer has only 2 by 2 or 3 by 3 cells at these sizes. Smooth Grad-CAM++ has as many hits as Grad-CAM here, but after so
# short a training no more energy in lesions than with random weights.
METHOD = PLAIN
DEPTH = 4
SCANS, EASY = 1, 0.0
DATA = "CC-CCII"


@dataclass(frozen=True)
class Summary:
    """What the demo made; `points` are the pointing games of the trained and of an untrained network, by name."""

    folder: Path
    evaluation: evaluate.Summary
    montage: Path
    points: dict[str, Pointing]

    def document(self) -> dict[str, Any]:
        points = {name: asdict(found) for name, found in self.points.items()}
        return {"folder": str(self.folder), "montage": str(self.montage), "evaluation": self.evaluation.document(), "pointing": points}

    def table(self) -> Table:
        return self.evaluation.table()


@dataclass(frozen=True)
class Data:
    """The synthetic data set of --data-only."""

    folder: Path
    rows: list[list[Any]]

    def document(self) -> dict[str, Any]:
        names = ("class", "patients", "scans", "slices", "defects")
        return {"folder": str(self.folder), "classes": [dict(zip(names, row, strict=True)) for row in self.rows]}

    def table(self) -> Table:
        return Table(("class", "patients", "scans", "slices", "with a defect"), self.rows)


def run(options: Options, console: Console) -> Summary | Data:
    """Make the data, then run each command as a user would type it."""
    folder = options.folder
    preset, reason = _preset(options)
    with alone_at(folder, console.say, lambda: claim_folder(folder, options.overwrite, "demo")):
        return _make(options, preset, reason, console)


def _make(options: Options, preset: Preset | None, reason: str, console: Console) -> Summary | Data:
    """Into a folder that no other process is writing."""
    folder, parameters = options.folder, data_parameters(options, preset)
    data = folder if options.data_only else folder / DATA
    for earlier in (data / name for name in (*CLASS_ORDER, TRUTH)):
        if earlier.exists():
            shutil.rmtree(earlier)
    card = RunCard(folder / RUN_CARD, "demo", asdict(options), options.sources)
    if preset is not None:
        card.content["preset"] = asdict(preset) | {"reason": reason}
        console.say(f"Preset {preset.name} ({reason}). Use --preset {_others(preset)} for another size.")
    with card.recording(), _restarted():
        with console.progress(len(plan(parameters)), "Making synthetic scans") as advance:
            scans = write_dataset(data, parameters, options.workers or cpus.allowed(), advance)
        if preset is not None:
            return _five_commands(options, preset, data, parameters.size, console)
        rows = []
        for label in CLASS_ORDER:
            mine = [scan for scan in scans if scan.label == label]
            patients, defects = len({scan.patient for scan in mine}), sum(bool(scan.defect) for scan in mine)
            rows.append([label, patients, len(mine), sum(scan.slices for scan in mine), defects])
    made = Data(folder, rows)
    console.result(made.table(), made.document())
    console.say(f"The lesions are in {folder / TRUTH}, the defects in {folder / 'defects.csv'}.")
    console.say(f"Next:  ctcovid prepare {shlex.quote(str(folder))} --depth {DEPTH} --size {parameters.size}")
    return made


@contextlib.contextmanager
def _restarted() -> Iterator[None]:
    """A stopped command says how it is resumed. A demo cannot be resumed, and says that instead."""
    try:
        yield
    except StoppedError as error:
        by = str(error).partition(". ")[0]
        text = f"{by}. A demo cannot be resumed. Start it again with the same command and --overwrite."
        raise StoppedError(text, error.exit_code, error.together) from error


def _preset(options: Options) -> tuple[Preset | None, str]:
    """The preset, and why it was chosen; None for --data-only, which uses no preset."""
    if options.data_only:
        if options.preset != AUTO:
            raise UsageError(f"--preset {options.preset} is for all five commands. With --data-only, give --patients, --size and --slices.")
        return None, ""
    gpu = choose_device(options.device).type == "cuda"
    return choose(options.preset, Machine(gpu, multiplies_bfloat16(), cpus.allowed()))


def _others(preset: Preset) -> str:
    return "|".join(name for name in PRESETS if name != preset.name)


def _five_commands(options: Options, preset: Preset, data: Path, size: int, console: Console) -> Summary:
    folder = options.folder
    volumes, runs, explanations = (folder / name for name in ("volumes.h5", "runs", "explanations"))
    # Only the result of the demo itself goes to stdout.
    inner = Console(quiet=console.quiet, verbose=console.verbose, results=False)
    common: dict[str, Any] = {"seed": options.seed, "overwrite": options.overwrite}
    machine: dict[str, Any] = {"device": options.device}
    _show(console, "prepare", data, "--depth", DEPTH, "--size", size, "--output", volumes)
    with no_signal_lost():
        prepared = prepare.run(prepare.Options(data, DEPTH, size, volumes, workers=options.workers, **common), inner)
    console.show(prepared.table)
    words: list[Any] = []
    recipe = preset.recipe()
    for name, value in recipe.items():
        words += [f"--{name.replace('_', '-')}"] + ([] if value is True else [value])
    _show(console, "train", "--arch", ARCH, "--data", volumes, "--runs", runs, *words)
    training = train.Options(data=volumes, arch=ARCH, runs=runs, workers=options.workers, **recipe, **machine, **common)
    with no_signal_lost():
        trained = train.run(training, inner)
    _show(console, "evaluate", "--runs", runs)
    evaluated = evaluate.run(evaluate.Options(runs=runs, workers=options.workers, **machine, **common), inner)
    # Several processes, of which only the first has a result, are refused for a demo.
    assert evaluated is not None
    unseen = _unseen_lesions(data, trained.folder)
    _show(console, "predict", unseen[0].folder, "--runs", runs)
    predicted = predict.run(predict.Options([unseen[0].folder], runs=runs, **machine), inner)
    console.show(predicted.table())
    method = Method(METHOD, preset.layer)
    _show(console, "explain", unseen[0].folder, "--method", METHOD, "--layer", preset.layer, "--runs", runs, "--output", explanations)
    explaining = explain.Options([unseen[0].folder], method=METHOD, layer=preset.layer, runs=runs, output=explanations, **machine, **common)
    explained = explain.run(explaining, inner)
    points = _pointing(options, method, unseen, trained.folder, console)

    summary = Summary(folder, evaluated, Path(explained.explained[0]["folder"]) / "montage.png", points)
    console.result(summary.table(), summary.document())
    if points:
        console.show(_points_table(points))
        console.say(_points_line(points))
    console.say(
        f"\nThe scans are synthetic: these figures show that the commands work, and nothing about patients. After so short a training,\n"
        f"do not rely on maps.\n"
        f"Open {summary.montage.with_name('viewer.html')} in a browser, and look at {trained.folder / 'accuracy.png'}.\n"
        f"To try this model on a scan of yours:     ctcovid predict YOUR_SCAN --runs {shlex.quote(str(runs))}\n"
        f"To train on labelled scans in a folder:   ctcovid prepare ./CC-CCII --depth {DEPTH}"
    )
    return summary


def _show(console: Console, command: str, *words: object) -> None:
    console.say(f"\n$ ctcovid {command} {shlex.join(map(str, words))}")


def data_parameters(options: Options, preset: Preset | None) -> Parameters:
    """Parameters of the data set; `preset` is None for --data-only. Raises UsageError if no such data set can be made."""
    defects = {item.name: getattr(options, item.name) for item in fields(Defects)}
    slices = options.slices or ("" if preset is None else preset.slices)
    limits = _limits(slices) if slices else None
    data_only = (20, 512, MOST_SCANS, DIFFICULTY)
    patients, size, scans, usual = data_only if preset is None else (preset.patients, preset.size, SCANS, EASY)
    difficulty = usual if options.difficulty is None else options.difficulty
    try:
        return Parameters(
            options.patients or patients, options.size or size, options.seed, difficulty, limits, scans, defects=Defects(**defects)
        )
    except ValueError as error:
        raise UsageError(f"This data set cannot be made: {error}.") from error


def _limits(slices: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", slices)
    if found is None:
        raise UsageError(f"--slices {slices}: give the fewest and the most slices of a scan, as in --slices 20-40.")
    return int(found[1]), int(found[2] or found[1])


def _unseen_lesions(data: Path, run_folder: Path) -> list[Scan]:
    """Scans with COVID-19 and pneumonia, alternating, of test patients."""
    test = set(read_card(run_folder)["split"]["test"])
    scans = [scan for scan in find_dataset(data)[0] if scan.patient in test]
    by_class = [[scan for scan in scans if scan.label == label] for label in ("NCP", "CP")]
    paired = [scan for pair in zip(*by_class, strict=False) for scan in pair]
    return paired + [scan for scan in scans if scan not in paired and scan.label != "Normal"]


def _pointing(options: Options, method: Method, scans: list[Scan], run_folder: Path, console: Console) -> dict[str, Pointing]:
    """Pointing games of the trained network and of one with random weights, on scans of unseen patients with lesions.

    Maps are of the scan's true class. Scans with a wrong prediction are counted too; a row of its own has only the right ones.
    """
    trained = registry.load(run_folder.name, options.device, runs=run_folder.parent)
    untrained = with_random_weights(trained.network, options.seed)
    truth = {scan.source: scan for scan in find_dataset(options.folder / DATA / TRUTH)[0]}
    maps: dict[str, list[np.ndarray]] = {"trained": [], "untrained": []}
    lesions, right = [], []
    workers = ThreadPoolExecutor(options.workers or cpus.allowed())
    with workers as pool, console.progress(len(scans), "Comparing maps with lesions") as advance:
        for scan in scans:
            checked = read_checked(scan, trained.size, trained.window, pool, trained.depth)
            volumes = checked.volumes(trained.depth)
            mask = read_mask(truth[scan.source].folder, scan, trained.size)
            lesions.append(mask.of(checked.kept[: len(volumes) * trained.depth]))
            target = trained.classes.index(scan.label)
            right.append(int(scan_probabilities(trained.network.probabilities(volumes)).argmax()) == target)
            for name, network in (("trained", trained.network), ("untrained", untrained)):
                maps[name].append(_maps(network, method, volumes, target))
            advance(1)
    every = [True] * len(scans)
    rows = {"trained": ("trained", every), "trained, where it is right": ("trained", right), "untrained": ("untrained", every)}
    found = {
        row: pointing(*(np.concatenate(list(compress(some, counted))) for some in (maps[name], lesions)))
        for row, (name, counted) in rows.items()
        if any(counted)
    }
    return {name: points for name, points in found.items() if points is not None}


def _maps(network: Network, method: Method, volumes: np.ndarray, target: int) -> np.ndarray:
    native = saliency_maps(network, volumes, method, [target])[:, 0]
    cells = map_cells(network, method, volumes.shape[1:], native.shape[1:])
    return to_slices(native, cells).reshape(-1, *volumes.shape[2:])


def _points_table(points: dict[str, Pointing]) -> Table:
    rows: list[list[Any]] = [[name, found.hits, found.energy, found.chance, found.slices] for name, found in points.items()]
    return Table(
        ("network", "most salient pixel in a lesion", "saliency in lesions", "chance level", "slices"), rows, "Do maps point into lesions?"
    )


def _points_line(points: dict[str, Pointing]) -> str:
    """The table in words."""
    trained, untrained = points["trained"], points["untrained"]
    return (
        f"{TITLES[METHOD]} points into a lesion in {trained.hits:.0%} of the {trained.slices} slices with one, all of unseen patients. "
        f"The chance level is {trained.chance:.0%}; a network with random weights reaches {untrained.hits:.0%}."
    )
