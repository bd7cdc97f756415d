"""Where settings come from: option > environment > file > default."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import typer

from ctcovid.base.errors import UsageError, did_you_mean
from ctcovid.base.files import read_small
from ctcovid.kernels import choice

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

WORDS = {"COMMANDLINE": "option", "ENVIRONMENT": "environment", "DEFAULT_MAP": "file"}
# Of a settings file, of a line of it, of what a message quotes, and of a number.
MOST_BYTES, MOST_DOTS, LONGEST, MOST_BITS = 1 << 16, 200, 100, 64
# Options that make no sense in a settings file.
NOT_IN_FILE = {"config", "help"}
# Named like a setting, but read by the tests, and for comparisons by all that computes layers.
NO_SETTING = {"CTCOVID_SAMPLE_DATA", choice.VARIABLE}


def unknown_settings(ctx: typer.Context, environment: Mapping[str, str] = os.environ) -> list[str]:
    """A sentence for each environment variable that is named like a setting but is not one, such as a misspelt one in a batch script.

    Raises UsageError if an argument is empty: as a path it would be the current folder. Likewise if CTCOVID_KERNELS has an unknown value.
    """
    if "" in sys.argv[1:]:
        raise UsageError("An argument is empty; perhaps a variable of the script is unset. Give the argument a value, or omit it.")
    choice.plain_torch(environment)
    commands: dict[str, Any] = ctx.find_root().command.commands  # type: ignore[attr-defined]
    known = {name for command in commands.values() for parameter in _options(command) for name in parameter.envvar or ()} | NO_SETTING
    strange = sorted(name for name in environment if name.startswith("CTCOVID_") and name not in known)
    return [f"The environment variable {name} is not a setting and is ignored.{did_you_mean(name, known)}" for name in strange]


def sources(ctx: typer.Context, names: Iterable[str]) -> dict[str, str]:
    """Where each of the running command's values came from: "option", "environment", "file" or "default"."""
    found = {name: ctx.get_parameter_source(name) for name in names}
    return {name: WORDS.get(source.name, "default") if source else "default" for name, source in found.items()}


def read_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Callback of --config: the file's settings become defaults of the running command.

    Raises typer.BadParameter if the file cannot be read, or names an unknown command or option.
    """
    if path is None:
        return None
    try:
        text = read_small(path, MOST_BYTES).decode("utf-8")
        if any(line.count(".") > MOST_DOTS for line in text.splitlines()):
            # Reading such a key takes the square of its length.
            raise RecursionError
        content = tomllib.loads(text)
    except FileNotFoundError as error:
        raise typer.BadParameter(f"no such file: {path}") from error
    except RecursionError as error:
        raise typer.BadParameter(f"{path} cannot be read as TOML: it is nested too deep") from error
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{path} cannot be read as TOML: {str(error)[:LONGEST]}") from error
    commands: dict[str, Any] = ctx.find_root().command.commands  # type: ignore[attr-defined]
    everywhere = {parameter.name for command in commands.values() for parameter in _options(command)}
    here = {parameter.name for parameter in _options(ctx.command)}
    defaults: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            if key not in commands:
                raise typer.BadParameter(f"{path}: unknown command [{key[:LONGEST]}].{did_you_mean(key, commands)}")
            known = {parameter.name for parameter in _options(commands[key])}
            own = {_known(path, f"[{key}] ", name, known): _plain(path, name, item) for name, item in value.items()}
        else:
            own = {_known(path, "", key, everywhere): _plain(path, key, value)}
        if not isinstance(value, dict):
            # A command's own table goes before the settings for all commands.
            defaults = {**own, **defaults}
        elif key == ctx.info_name:
            defaults = {**defaults, **own}
    several = {parameter.name for parameter in _options(ctx.command) if parameter.multiple}
    # A string for an option with several values is one value, not a list of letters.
    chosen = {name: [value] if name in several and isinstance(value, str) else value for name, value in defaults.items() if name in here}
    ctx.default_map = {**(ctx.default_map or {}), **chosen}
    return path


def _plain(path: Path, name: str, value: Any) -> Any:
    """A value, or a list of values, of an option.

    Raises typer.BadParameter for tables, lists of lists, and what no option takes by its length.
    """
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, dict | list):
            raise typer.BadParameter(f"{path}: the setting '{name}' holds a table or a list of lists. Give a value.")
        if (isinstance(one, int) and one.bit_length() > MOST_BITS) or (isinstance(one, str) and len(one) > MOST_BYTES // 8):
            raise typer.BadParameter(f"{path}: the value of '{name}' is too long. Give another.")
    return value


def _known(path: Path, table: str, key: str, names: set[str]) -> str:
    name = key.replace("-", "_")
    if name not in names - NOT_IN_FILE:
        shown = [known.replace("_", "-") for known in names - NOT_IN_FILE]
        raise typer.BadParameter(f"{path}: unknown setting '{table}{key[:LONGEST]}'.{did_you_mean(key, shown)}")
    return name


def _options(command: Any) -> list[Any]:
    return [parameter for parameter in command.params if parameter.param_type_name == "option"]
