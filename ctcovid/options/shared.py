"""Options that several commands have, declared once so that a name means the same in all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from ctcovid.base import choices
from ctcovid.base.choices import LEAST_SIDE, MOST_SIDE, MOST_SLICES
from ctcovid.models.architectures import ARCHITECTURES


@dataclass(frozen=True)
class Options:
    """What the options of all commands have in common.

    `sources` says where each value comes from, and `config` names the settings file, if there is one.

    A subclass declares a command's arguments and options as fields: type, default, help, limits and panel (typer's metadata). Everything
    else is made from them: the function that Typer calls, help, environment, settings files, completion, run card and the manual's tables.
    The first line of the subclass's docstring is the command's help.
    """

    sources: dict[str, str] = field(default_factory=dict, kw_only=True)
    config: Path | None = field(default=None, kw_only=True)

    @property
    def given(self) -> set[str]:
        """Names of the options that are not at their default, on the command line, in the environment or in a file."""
        return {name for name, source in self.sources.items() if source != "default"}

    def require_sense(self) -> None:
        """Refuse what can be refused without torch: options that exclude each other, missing files, an absent device.

        The command line calls this before it imports the command, so that mistakes are reported at once.

        Raises UsageError, InputError or OutputExistsError.
        """


def require_device(device: str) -> None:
    """Raises UsageError if a device that was named is absent. auto and cpu always exist, and need no torch."""
    if device not in ("auto", "cpu"):
        from ctcovid.models.device import choose_device

        choose_device(device)


def complete_architecture(incomplete: str) -> list[str]:
    """Architectures that start with what was typed, for completion."""
    return [name for name in ARCHITECTURES if name.startswith(incomplete)]


def complete_model(incomplete: str) -> list[str]:
    """Trained models in runs/ that start with what was typed, for completion."""
    return sorted(path.parent.name for path in Path("runs").glob("*/model.json") if path.parent.name.startswith(incomplete))


def architecture_option(what: str, **further: Any) -> Any:
    """An option that names an architecture."""
    return typer.Option(help=what, autocompletion=complete_architecture, **further)


def depth_option(what: str) -> Any:
    """An option for the slices per volume."""
    return typer.Option(min=1, max=MOST_SLICES, help=what)


def size_option(what: str, **further: Any) -> Any:
    """An option for the pixels per side of a slice."""
    return typer.Option(min=LEAST_SIDE, max=MOST_SIDE, help=what, **further)


def output_option(what: str) -> Any:
    """The option that names the output."""
    return typer.Option("--output", "-o", help=what)


def model_option(what: str) -> Any:
    """The option that names a trained model."""
    return typer.Option("--model", "-m", help=what, autocompletion=complete_model)


Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Precision = Annotated[choices.Precision, typer.Option(help="auto uses bfloat16 if the device is faster with it.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of all random numbers.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes or threads that read; by default one per CPU of the job.")]
Overwrite = Annotated[bool, typer.Option(help="Replace an existing result.")]
Runs = Annotated[Path, typer.Option(help="Folder of the trained models.")]
Scans = Annotated[list[Path], typer.Argument(help="Folders of slices, folders of such folders, scan files, or a CSV of paths.")]
Series = Annotated[str | None, typer.Option(help="DICOM series of each study, by UID, number or description.")]
