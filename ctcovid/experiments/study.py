"""A repetition of the paper's experiments: its data and scale, which its folder records, so that later commands need not repeat them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctcovid.base import choices
from ctcovid.base.errors import InputError, OutputExistsError, UsageError, did_you_mean
from ctcovid.base.faults import raise_machine_fault
from ctcovid.base.files import claim_folder, require_there, resolved, write_json
from ctcovid.experiments.cells import ARCHITECTURES, COMPLETE, IMAGES, SAME_NUMBER, SEGMENTED, Cell, Scale, asked_for, find_cell, is_name
from ctcovid.options.paper import Options, numbers

RECORD = "paper.json"
# What the data depend on: it cannot change once they are prepared.
DATA = ("scans", "segmented", "synthetic", "patients", "size", "seed")
SCALE = ("epochs", "depths", "batches", "archs", "seeds")
PATIENTS = 20


@dataclass(frozen=True)
class Study:
    """The experiments at a scale, in the folder `out`.

    Attributes
    ----------
    scans, segmented : folders of CT, None if there is none; those of synthetic CT are in `out`
    patients : of each class, of synthetic CT
    cells : those that are asked for, in the order in which they are run
    one : the only cell to run, or None for all
    settings : DATA and SCALE by name, as they are recorded
    """

    out: Path
    scans: Path | None
    segmented: Path | None
    synthetic: bool
    patients: int
    size: int
    epochs: int
    seed: int
    scale: Scale
    cells: list[Cell]
    one: Cell | None
    settings: dict[str, Any]

    @property
    def runs(self) -> Path:
        """Folder of the trained models."""
        return self.out / "runs"

    def data(self, images: str) -> Path:
        """The volumes file of these images."""
        return self.out / f"{images}.h5"

    def folder(self, images: str) -> Path | None:
        """The folder that these images come from, None if there is none."""
        return {COMPLETE: self.scans, SEGMENTED: self.segmented, SAME_NUMBER: self.segmented and self.scans}[images]

    def record(self) -> None:
        """Write the settings into the folder, for the commands that follow."""
        if _recorded(self.out) != self.settings:
            write_json(self.out / RECORD, self.settings)


def read_study(options: Options) -> Study:
    """The study that the options ask for. What they leave open is as the folder records it.

    Raises UsageError if the options contradict each other or the data that are prepared, InputError if paper.json is damaged,
    OutputExistsError if the folder is not one of this command.
    """
    out = options.output
    recorded = _claimed(out)
    settings = {
        name: recorded[name] if name in recorded and name not in options.given else _value(options, name) for name in (*DATA, *SCALE)
    }
    scale = _scale(settings)
    word = options.cell
    if options.action == choices.RUN and is_name(options.scans, scale.thickest):
        if word:
            raise UsageError(f"Both {options.scans} and --cell {word} name a cell. Give one, or write the folder as ./{options.scans}.")
        word, settings["scans"] = options.scans, recorded.get("scans")
    _require_same(recorded, settings, out)
    scans, segmented = (Path(settings[name]) if settings[name] else None for name in ("scans", "segmented"))
    for path, kind in ((scans, COMPLETE), (segmented, SEGMENTED)):
        if path is not None and not (out / f"{kind}.h5").is_file() and options.action in (choices.RUN, choices.SBATCH):
            require_there(path, "file, folder or cell")
    if settings["synthetic"]:
        scans = segmented = out / "synthetic"
    cells = asked_for(scale, IMAGES if segmented else IMAGES[:1])
    one = find_cell(word, cells, scale.thickest) if word else None
    numbers_of = {name: settings[name] for name in ("size", "epochs", "seed")}
    patients = settings["patients"] or PATIENTS
    return Study(out, scans, segmented, settings["synthetic"], patients, scale=scale, cells=cells, one=one, settings=settings, **numbers_of)


def require_scans(study: Study) -> None:
    """Raises UsageError if the data are neither prepared nor named."""
    if study.scans is None and not study.data(COMPLETE).is_file():
        raise UsageError("Name the folder of complete CT, as in ctcovid paper run ./CC-CCII, or pass --synthetic.")


def _claimed(out: Path) -> dict[str, Any]:
    """What the folder records; nothing if it is not there yet."""
    if (out / RECORD).exists():
        return _recorded(out)
    if out.is_dir() and any(out.iterdir()):
        raise OutputExistsError(f"{out} exists already and ctcovid paper did not make it. Name another --output.")
    claim_folder(out, overwrite=True, command="paper")
    return {}


def _recorded(out: Path) -> dict[str, Any]:
    path = out / RECORD
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise_machine_fault(error, path)
        raise InputError(f"{path} cannot be read ({error}). Restore it, or name another --output.") from error
    defaults = Options(choices.RUN)
    kinds = {name: type(getattr(defaults, name)) for name in (*DATA, *SCALE)} | {"segmented": str, "patients": int}
    if (
        not isinstance(found, dict)
        or set(found) != set(kinds)
        or any(not _is_kind(found[name], name, kind) for name, kind in kinds.items())
    ):
        raise InputError(f"{path} is not what ctcovid paper has written. Restore it, or name another --output.")
    return found


def _is_kind(value: Any, name: str, kind: type) -> bool:
    return type(value) is kind or (value is None and name in ("scans", "segmented", "patients"))


def _value(options: Options, name: str) -> Any:
    """An option as it is recorded: paths without links, so that they mean the same from another folder."""
    value = getattr(options, name)
    if name in ("scans", "segmented"):
        return str(resolved(Path(value))) if value else None
    return value


def _scale(settings: dict[str, Any]) -> Scale:
    archs = tuple(settings["archs"].replace(",", " ").split())
    for arch in archs or ("",):
        if arch not in ARCHITECTURES:
            near = did_you_mean(arch, ARCHITECTURES)
            raise UsageError(f"--archs: '{arch}' is none of the paper's architectures, which are {' '.join(ARCHITECTURES)}.{near}")
    depths, batches = (numbers(name, settings[name]) for name in ("depths", "batches"))
    return Scale(depths, batches, archs, settings["seeds"])


def _require_same(recorded: dict[str, Any], settings: dict[str, Any], out: Path) -> None:
    """Raises UsageError if the data are prepared, and other settings of theirs are asked for."""
    if settings["synthetic"] and settings["scans"]:
        raise UsageError(f"--synthetic and {settings['scans']} name different data. Give one of them, or another --output.")
    if settings["patients"] and not settings["synthetic"]:
        raise UsageError("--patients is the size of the synthetic data. Add --synthetic, or omit it.")
    if not any((out / f"{images}.h5").is_file() for images in IMAGES):
        return
    for name in DATA:
        # Segmented CT may be added later.
        if settings[name] != recorded.get(name) and not (name == "segmented" and recorded.get(name) is None):
            was, now = (_shown(name, some.get(name)) for some in (recorded, settings))
            raise UsageError(f"{out} was prepared with {was}, not with {now}. Give the same, or another --output.")


def _shown(name: str, value: Any) -> str:
    if name == "scans":
        return str(value or "no scans")
    option = f"--{name}"
    if value is None or value is False:
        return f"no {option}"
    return option if value is True else f"{option} {value}"
