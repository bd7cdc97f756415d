"""Options that every command has: what it prints, and its settings file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ctcovid.options.settings import read_config


@dataclass(frozen=True)
class Messages:
    """What a command prints, and its settings file."""

    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML settings file: a table for each command, and settings for all commands above the tables.",
            is_eager=True,
            callback=read_config,
        ),
    ] = None
    json: Annotated[bool, typer.Option(help="Print one JSON document on stdout.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only results, warnings and errors.")] = False
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            help="Also details, such as what runs without a CUDA graph and why, and the traceback of an unexpected error.",
        ),
    ] = False
