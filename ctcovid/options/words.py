"""Options from the words of a command line, and back: how one command runs another exactly as a user would type it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import typer

from ctcovid.base.errors import UsageError
from ctcovid.options.commands import COMMANDS
from ctcovid.options.messages import Messages
from ctcovid.options.settings import sources
from ctcovid.options.shared import Options
from ctcovid.options.signature import declared, typer_function

# What a command is called with: its name, the context, and the values that Typer has converted.
Call = Callable[[str, typer.Context, dict[str, Any]], None]


def add_commands(app: typer.Typer, call: Call) -> None:
    """Add every command to an app, made from its options."""
    for name, command in COMMANDS.items():
        function = typer_function(name, (command.options, Messages), partial(call, name))
        app.command(name, help=command.help, epilog=f"Example: {command.example}")(function)


def split_off_messages(name: str, ctx: typer.Context, values: dict[str, Any]) -> tuple[Messages, Options]:
    """The two parts of a command's values: what it prints, and its own options."""
    messages = Messages(**{field.name: values.pop(field.name) for field in fields(Messages)})
    found = sources(ctx, [*values, "config"])
    return messages, COMMANDS[name].options(**values, sources=found, config=messages.config)


def parsed(name: str, words: Sequence[object], config: Path | None = None) -> Any:
    """The options of a command line, also from the environment and, if given, the settings file.

    Raises UsageError if the environment or the file has a value that the command refuses.
    """
    found: list[Options] = []
    line = [name, *map(str, words), *(["--config", str(config)] if config else [])]
    try:
        with _root().make_context("ctcovid", line, obj=found) as ctx:
            _root().invoke(ctx)
    except typer.BadParameter as error:
        raise UsageError(f"ctcovid {name}: {error.format_message()}") from error
    return found[0]


@functools.cache
def _root() -> Any:
    """All commands, each of which appends its options to the context's list."""
    app = typer.Typer()
    # With a callback, Typer keeps the commands' names.
    app.callback()(lambda: None)
    add_commands(app, lambda name, ctx, values: ctx.obj.append(split_off_messages(name, ctx, values)[1]))
    return typer.main.get_command(app)


def words_of(options: Options, without: Sequence[str] = ()) -> list[str]:
    """The options that are not at their default, as the words of a command line, without these names."""
    words = []
    for one in declared(type(options)):
        value = getattr(options, one.name)
        if one.is_argument or one.name in without or one.name not in options.given or value is None or value is False:
            continue
        words += [one.spellings[0]] if value is True else [one.spellings[0], str(value)]
    if options.config is not None:
        words += ["--config", str(options.config)]
    return words
