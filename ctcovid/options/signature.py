"""From the fields of an options class to the function that Typer calls and the tables of the manual."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import MISSING, Field, dataclass, fields
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

# Any, because type checkers do not follow types that are made at run time.
_ANNOTATED: Any = Annotated
Call = Callable[[typer.Context, dict[str, Any]], None]


@dataclass(frozen=True)
class Declared:
    """One argument or option of a command.

    `kind` is its type, `info` typer's metadata, and `default` its default, or inspect.Parameter.empty if it is required.
    """

    name: str
    kind: Any
    info: Any
    default: Any

    @property
    def is_argument(self) -> bool:
        return isinstance(self.info, type(typer.Argument()))

    @property
    def spellings(self) -> tuple[str, ...]:
        """Its forms on the command line, such as ``("--output", "-o")``; for an argument ``("SCANS",)``."""
        if self.is_argument:
            return (self.name.upper(),)
        # Typer keeps the first name in Annotated as the default.
        named = (*(() if self.info.default is ... else (self.info.default,)), *(self.info.param_decls or ()))
        return named or (f"--{self.name.replace('_', '-')}",)


def declared(options: type) -> Iterator[Declared]:
    """The arguments and options that a class declares, in its order, without `sources`."""
    hints = get_type_hints(options, include_extras=True)
    for field in fields(options):
        if get_origin(hints[field.name]) is Annotated:
            kind, info = get_args(hints[field.name])
            yield Declared(field.name, kind, info, _default(field))


def typer_function(command: str, classes: tuple[type, ...], call: Call) -> Callable[..., None]:
    """A function whose parameters are what `classes` declare. It passes their values by name to `call`.

    Every option can also be set by CTCOVID_<COMMAND>_<OPTION> or, for all commands, by CTCOVID_<OPTION>.
    """
    several = {one.name for options in classes for one in declared(options) if one.default == []}
    parameters = [inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)]
    for one in (each for options in classes for each in declared(options)):
        info = copy(one.info)
        # click would call a stale network handle a wrong value.
        info.readable = False
        if info.show_default is True:
            info.show_default = one.default not in (None, "", [])
        if not one.is_argument:
            # Without --no-…: what is off by default need not be switched off.
            info.default, info.param_decls = ..., one.spellings
            info.envvar, info.show_envvar = environment_names(command, one.name), False
        # click 8.1 refuses any default, even an empty list, for an argument with any number of values.
        default = None if one.default == [] else one.default
        parameters.append(
            inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=_ANNOTATED[one.kind, info])
        )

    def function(ctx: typer.Context, **values: Any) -> None:
        call(ctx, {name: [] if value is None and name in several else value for name, value in values.items()})

    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return function


def restore_help(command: Any, options: Mapping[str, type]) -> None:
    """Give the arguments of a group's commands their help again: click 8.5 takes away what typer before 0.26 sets."""
    for name, subcommand in command.commands.items():
        meanings = {one.name: one.info.help for one in declared(options[name])}
        for parameter in subcommand.params:
            if parameter.param_type_name == "argument" and not parameter.help:
                parameter.help = meanings[parameter.name]


def environment_names(command: str, option: str) -> list[str]:
    """The environment variables that set an option of a command, in order of precedence."""
    return [f"CTCOVID_{command}_{option}".upper(), f"CTCOVID_{option}".upper()]


def options_table(*classes: type) -> str:
    """The arguments and options that `classes` declare, as a Markdown table."""
    rows = [("option", "default", "meaning"), ("---", "---", "---")]
    for one in (each for options in classes for each in declared(options)):
        shown = one.info.show_default if isinstance(one.info.show_default, str) else _shown(one.default)
        choices = f" One of {', '.join(get_args(one.kind))}." if _is_choice(one.kind) else ""
        rows.append((", ".join(f"`{word}`" for word in one.spellings), shown, one.info.help + choices))
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)


def _default(field: Field[Any]) -> Any:
    if field.default is not MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not MISSING else inspect.Parameter.empty


def _is_choice(kind: Any) -> bool:
    return bool(get_args(kind)) and all(isinstance(word, str) for word in get_args(kind))


def _shown(default: Any) -> str:
    if default is inspect.Parameter.empty:
        return "required"
    if isinstance(default, bool):
        return "off"
    if default in (None, "", []):
        return ""
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"
