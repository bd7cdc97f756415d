"""ctcovid demo: a small synthetic CC-CCII through all five commands, or a synthetic data set of any size alone."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from ctcovid.base import cpus
from ctcovid.base.console import Console
from ctcovid.base.errors import StoppedError, UsageError
from ctcovid.base.files import RUN_CARD, claim_folder
from ctcovid.base.runcard import RunCard
from ctcovid.commands import evaluate, explain, predict, prepare, train
from ctcovid.commands.demo_presets import AUTO, PRESETS, Machine, Preset, choose
from ctcovid.evaluation.aggregation import scan_probabilities
from ctcovid.explanation.faithfulness import with_random_weights
from ctcovid.explanation.gradcam import PLAIN
from ctcovid.explanation.methods import TITLES, map_cells, saliency_maps
from ctcovid.explanation.pointing import Pointing, pointing
from ctcovid.explanation.upsample import to_slices
from ctcovid.models import registry
from ctcovid.models.device import multiplies_bfloat16
from ctcovid.models.network import Network
from ctcovid.models.store import read_card
from ctcovid.phantom.dataset import MOST_SCANS, Parameters, plan, write_dataset
from ctcovid.phantom.defects import Defects
from ctcovid.phantom.lesions import DIFFICULTY
from ctcovid.reports.tables import Table
from ctcovid.scans.discover import CLASS_ORDER, TRUTH, find_dataset
from ctcovid.scans.read import read_volumes
from ctcovid.scans.scan import Scan

ARCH = "r3d18"
# The last layer sees so small a chest as 2 by 2 or 3 by 3 places. By its most salient places Smooth Grad-CAM++ points as well
# as Grad-CAM here, but so short a training leaves its energy in lesions no larger than that of random weights.
METHOD = PLAIN
DEPTH = 4
SCANS, EASY = 1, 0.0
DATA = "CC-CCII"


@dataclass(frozen=True)
class Options:
    """What `ctcovid demo` was asked for; `sources` says where each value came from.

    `patients` of each class, `size` and `slices` of a scan ("20-40") that are not given are the preset's, `difficulty` of the lesions is 0;
    with `data_only` they are 20, 512, as in CC-CCII and 0.2. The defects are shares of the scans.
    """

    folder: Path = Path("ctcovid-demo")
    data_only: bool = False
    preset: str = "auto"
    patients: int = 0
    size: int = 0
    slices: str = ""
    difficulty: float | None = None
    repeated: float = 0.0
    shuffled: float = 0.0
    reversed: float = 0.0
    masked: float = 0.0
    corrupt: float = 0.0
    odd_size: float = 0.0
    device: str = "auto"
    seed: int = 0
    workers: int = 0
    overwrite: bool = False
    sources: dict[str, str] = field(default_factory=dict)

    def parameters(self, preset: Preset | None) -> Parameters:
        """What the data set is like; no `preset` where only data are wanted. Raises UsageError where that cannot be."""
        defects = {item.name: getattr(self, item.name) for item in fields(Defects)}
        slices = self.slices or ("" if preset is None else preset.slices)
        limits = _limits(slices) if slices else None
        data_only = (20, 512, MOST_SCANS, DIFFICULTY)
        patients, size, scans, usual = data_only if preset is None else (preset.patients, preset.size, SCANS, EASY)
        difficulty = usual if self.difficulty is None else self.difficulty
        try:
            return Parameters(
                self.patients or patients, self.size or size, self.seed, difficulty, limits, scans, defects=Defects(**defects)
            )
        except ValueError as error:
            raise UsageError(f"No such data set can be made: {error}.") from error


@dataclass(frozen=True)
class Summary:
    """What the demo left behind; `points` has the pointing games of the trained and of an untrained network, by name."""

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
    """A synthetic data set that was written, and nothing else done."""

    folder: Path
    rows: list[list[Any]]

    def document(self) -> dict[str, Any]:
        names = ("class", "patients", "scans", "slices", "defects")
        return {"folder": str(self.folder), "classes": [dict(zip(names, row, strict=True)) for row in self.rows]}

    def table(self) -> Table:
        return Table(("class", "patients", "scans", "slices", "with a defect"), self.rows)


def run(options: Options, console: Console) -> Summary | Data:
    """Make the data, then run each command with the line that a person would type."""
    folder = options.folder
    preset, reason = _preset(options)
    parameters = options.parameters(preset)
    claim_folder(folder, options.overwrite, "demo")
    data = folder if options.data_only else folder / DATA
    for earlier in (data / name for name in (*CLASS_ORDER, TRUTH)):
        if earlier.exists():
            shutil.rmtree(earlier)
    card = RunCard(folder / RUN_CARD, "demo", asdict(options), options.sources)
    if preset is not None:
        card.content["preset"] = asdict(preset) | {"reason": reason}
        console.say(f"Preset {preset.name} ({reason}); --preset {_others(preset)} is another size.")
    with card.recording(), _begun_anew():
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
def _begun_anew() -> Iterator[None]:
    """A command that is stopped says how it is continued; the demo around it is not."""
    try:
        yield
    except StoppedError as error:
        by = str(error).partition(". ")[0]
        text = f"{by}. A demo is not continued: the same line with --overwrite begins it anew."
        raise StoppedError(text, error.exit_code, error.together) from error


def _preset(options: Options) -> tuple[Preset | None, str]:
    """The preset, and why it is that one; None where only data are wanted, which no preset is for."""
    if options.data_only:
        if options.preset != AUTO:
            raise UsageError(f"--preset {options.preset} sets the five commands. With --data-only, give --patients, --size and --slices.")
        return None, ""
    gpu = registry.choose_device(options.device).type == "cuda"
    return choose(options.preset, Machine(gpu, multiplies_bfloat16(), cpus.allowed()))


def _others(preset: Preset) -> str:
    return "|".join(name for name in PRESETS if name != preset.name)


def _five_commands(options: Options, preset: Preset, data: Path, size: int, console: Console) -> Summary:
    folder = options.folder
    volumes, runs, explanations = (folder / name for name in ("volumes.h5", "runs", "explanations"))
    # The commands' own results would mix with this command's one result on stdout.
    inner = Console(quiet=console.quiet, verbose=console.verbose, results=False)
    common: dict[str, Any] = {"seed": options.seed, "overwrite": options.overwrite}
    machine: dict[str, Any] = {"device": options.device}
    _show(console, "prepare", data, "--depth", DEPTH, "--size", size, "--output", volumes)
    prepared = prepare.run(prepare.Options(data, DEPTH, size, volumes, workers=options.workers, **common), inner)
    console.say(prepared.table.text())
    words: list[Any] = []
    recipe = preset.recipe()
    for name, value in recipe.items():
        words += [f"--{name.replace('_', '-')}"] + ([] if value is True else [value])
    _show(console, "train", "--arch", ARCH, "--data", volumes, "--runs", runs, *words)
    training = train.Options(volumes, ARCH, runs=runs, workers=options.workers, **recipe, **machine, **common)
    trained = train.run(training, inner)
    _show(console, "evaluate", "--runs", runs)
    evaluated = evaluate.run(evaluate.Options(runs=runs, workers=options.workers, **machine, **common), inner)
    unseen = _unseen_lesions(data, trained.folder)
    _show(console, "predict", unseen[0].folder, "--runs", runs)
    predicted = predict.run(predict.Options((unseen[0].folder,), runs=runs, **machine), inner)
    console.say(predicted.table().text())
    _show(console, "explain", unseen[0].folder, "--method", METHOD, "--layer", preset.layer, "--runs", runs, "--output", explanations)
    mapping: dict[str, Any] = {"method": METHOD, "layer": preset.layer}
    explaining = explain.Options((unseen[0].folder,), runs=runs, output=explanations, **mapping, **machine, **common)
    explained = explain.run(explaining, inner)
    points = _pointing(options, preset.layer, unseen, trained.folder, console)

    summary = Summary(folder, evaluated, Path(explained.explained[0]["folder"]) / "montage.png", points)
    console.result(summary.table(), summary.document())
    if points:
        console.say(f"{_points_table(points).text()}\n{_points_line(points)}")
    console.say(
        f"\nThe scans were synthetic, so the figures say that the way works and nothing about patients. After so short a training,\n"
        f"maps are not to be relied on.\n"
        f"Look at {summary.montage.with_name('viewer.html')} in a browser, and at {trained.folder / 'accuracy.png'}.\n"
        f"With scans of your own, in the folder CC-CCII:  ctcovid prepare ./CC-CCII --depth 4"
    )
    return summary


def _show(console: Console, command: str, *words: object) -> None:
    console.say(f"\n$ ctcovid {command} {shlex.join(map(str, words))}")


def _limits(slices: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", slices)
    if found is None:
        raise UsageError(f"--slices {slices}: give the fewest and the most slices of a scan, as in --slices 20-40.")
    return int(found[1]), int(found[2] or found[1])


def _unseen_lesions(data: Path, run_folder: Path) -> list[Scan]:
    """Scans with COVID-19 or pneumonia, in turn, of patients whom the model has not seen."""
    test = set(read_card(run_folder)["split"]["test"])
    scans = [scan for scan in find_dataset(data)[0] if scan.patient in test]
    by_class = [[scan for scan in scans if scan.label == label] for label in ("NCP", "CP")]
    paired = [scan for pair in zip(*by_class, strict=False) for scan in pair]
    return paired + [scan for scan in scans if scan not in paired and scan.label != "Normal"]


def _pointing(options: Options, layer: str, scans: list[Scan], run_folder: Path, console: Console) -> dict[str, Pointing]:
    """The pointing games of the trained network and of one with random weights, on all scans with a lesion of unseen patients.

    Maps are of the scan's true class. Those of a scan that the network takes for another class are counted as well; without them is
    a row of its own.
    """
    trained = registry.load(run_folder.name, options.device, runs=run_folder.parent)
    untrained = with_random_weights(trained.network, options.seed)
    truth = {scan.source: scan for scan in find_dataset(options.folder / DATA / TRUTH)[0]}
    workers = options.workers or cpus.allowed()
    maps: dict[str, list[np.ndarray]] = {"trained": [], "untrained": []}
    lesions, right = [], []
    with console.progress(len(scans), "Holding maps against lesions") as advance:
        for scan in scans:
            volumes = read_volumes(scan, trained.depth, trained.size, workers)
            masks = replace(truth[scan.source], label=scan.label)
            lesions.append(read_volumes(masks, trained.depth, trained.size, workers).reshape(-1, trained.size, trained.size) > 127)
            target = trained.classes.index(scan.label)
            right.append(int(scan_probabilities(trained.network.probabilities(volumes)).argmax()) == target)
            for name, network in (("trained", trained.network), ("untrained", untrained)):
                maps[name].append(_maps(network, layer, volumes, target))
            advance(1)
    every = [True] * len(scans)
    rows = {"trained": ("trained", every), "trained, where it is right": ("trained", right), "untrained": ("untrained", every)}
    found = {
        row: pointing(*(np.concatenate(list(compress(some, counted))) for some in (maps[name], lesions)))
        for row, (name, counted) in rows.items()
        if any(counted)
    }
    return {name: points for name, points in found.items() if points is not None}


def _maps(network: Network, layer: str, volumes: np.ndarray, target: int) -> np.ndarray:
    native = saliency_maps(network, volumes, METHOD, layer, [target])[:, 0]
    cells = map_cells(network, METHOD, volumes.shape[1:], native.shape[1:])
    return to_slices(native, cells).reshape(-1, *volumes.shape[2:])


def _points_table(points: dict[str, Pointing]) -> Table:
    rows: list[list[Any]] = [[name, found.hits, found.energy, found.chance, found.slices] for name, found in points.items()]
    return Table(
        ("network", "most salient in a lesion", "saliency in lesions", "by chance", "slices"), rows, "Do maps point into the lesions?"
    )


def _points_line(points: dict[str, Pointing]) -> str:
    """The table in words."""
    trained, untrained = points["trained"], points["untrained"]
    return (
        f"{TITLES[METHOD]} points into a lesion in {trained.hits:.0%} of the {trained.slices} slices of unseen patients that have one; "
        f"by chance it were {trained.chance:.0%}, and with random weights {untrained.hits:.0%}."
    )
