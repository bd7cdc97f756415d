"""Options of ctcovid manual, and its pages."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Annotated

import typer

from ctcovid.options import shared


def pages() -> dict[str, str]:
    """The text of each page of the manual, Markdown, by topic."""
    folder = resources.files("ctcovid").joinpath("manual")
    found = sorted((page for page in folder.iterdir() if page.name.endswith(".md")), key=lambda page: page.name)
    return {page.name.removesuffix(".md"): page.read_text(encoding="utf-8") for page in found}


def complete_topic(incomplete: str) -> list[str]:
    """Topics that start with what was typed, for completion."""
    return [topic for topic in pages() if topic.startswith(incomplete)]


@dataclass(frozen=True)
class Options(shared.Options):
    """Print a page of the manual, or the list of its pages."""

    topic: Annotated[str, typer.Argument(help="Page to print; without one, the list of pages.", autocompletion=complete_topic)] = ""
