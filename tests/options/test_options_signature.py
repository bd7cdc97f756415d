"""Every option is declared once: what the command line, settings and the manual know of it comes from its field."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from ctcovid.cli import app
from ctcovid.options import shared, train
from ctcovid.options.commands import COMMANDS
from ctcovid.options.messages import Messages
from ctcovid.options.settings import sources
from ctcovid.options.signature import declared, options_table, typer_function

# Names whose help differs by command, for the same meaning; what is written, or how thick and large volumes are, depends on the command.
SAID_DIFFERENTLY = {"data", "depth", "epochs", "size", "output", "model", "positive", "resume"}


@dataclass(frozen=True)
class Options(shared.Options):
    """Try things."""

    path: Annotated[Path, typer.Argument(help="A path.")]
    others: Annotated[list[Path], typer.Argument(help="More paths.")] = field(default_factory=list)
    many: Annotated[list[Path], typer.Option("--many", "-m", help="Paths.")] = field(default_factory=list)
    count: Annotated[int | None, typer.Option(min=1, help="A number.")] = None
    later: Annotated[bool, typer.Option(help="Do it later.")] = False


@pytest.fixture
def called() -> tuple[typer.Typer, list[dict[str, Any]]]:
    """An app of one command of its own beside the real ones, and the values and sources that it was called with."""
    seen: list[dict[str, Any]] = []
    made = typer.Typer()
    # With a single command, Typer would omit its name.
    made.command("other")(lambda: None)

    def call(ctx: typer.Context, values: dict[str, Any]) -> None:
        seen.append({"values": values, "sources": sources(ctx, values)})

    made.command("attempt")(typer_function("attempt", (Options, Messages), call))
    return made, seen


def test_values_come_as_the_types_of_the_fields_and_their_sources_are_known(
    called: tuple[typer.Typer, list[dict[str, Any]]], tmp_path: Path
) -> None:
    made, seen = called
    file = tmp_path / "settings.toml"
    file.write_text("[attempt]\nlater = true\n")
    line = ["attempt", "x/y", "-m", "a", "--many", "b", "--config", str(file)]
    done = CliRunner().invoke(made, line, env={"CTCOVID_ATTEMPT_COUNT": "3", "CTCOVID_COUNT": "4"})
    assert done.exit_code == 0, done.output
    values, found = seen[0]["values"], seen[0]["sources"]
    assert values["others"] == []
    assert values["path"] == Path("x/y") and values["many"] == [Path("a"), Path("b")]
    assert values["count"] == 3 and values["later"] is True
    assert {name: found[name] for name in ("path", "many", "count", "later", "json")} == {
        "path": "option",
        "many": "option",
        "count": "environment",
        "later": "file",
        "json": "default",
    }


def test_limits_hold_and_a_flag_has_no_opposite(called: tuple[typer.Typer, list[dict[str, Any]]]) -> None:
    made, seen = called
    for line in (["attempt", "x", "--count", "0"], ["attempt", "x", "--no-later"], ["attempt"]):
        assert CliRunner().invoke(made, line).exit_code == 2
    assert seen == []


def test_a_field_that_is_added_is_in_help_and_in_the_manual() -> None:
    added = ("gusto", Annotated[int, typer.Option(min=1, max=9, help="How much of it.")], 3)
    more = make_dataclass("Options", [added], bases=(train.Options,), frozen=True)
    made = typer.Typer()
    made.command("other")(lambda: None)
    made.command("train")(typer_function("train", (more, Messages), lambda ctx, values: print(values["gusto"])))
    runner = CliRunner()
    assert "--gusto" in runner.invoke(made, ["train", "--help"], env={"COLUMNS": "200"}).output
    assert runner.invoke(made, ["train"], env={"CTCOVID_TRAIN_GUSTO": "7"}).output == "7\n"
    assert "| `--gusto` | `3` | How much of it. |" in options_table(more)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_line_has_exactly_what_is_declared(name: str) -> None:
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    expected = [one.name for options in (COMMANDS[name].options, Messages) for one in declared(options)]
    assert sorted(parameter.name for parameter in command.params if parameter.name != "help") == sorted(expected)


def test_every_field_of_options_is_declared_as_an_argument_or_option() -> None:
    for command in COMMANDS.values():
        assert {field.name for field in fields(command.options)} - {one.name for one in declared(command.options)} == {"sources", "config"}


def test_one_option_name_has_one_meaning_in_all_commands() -> None:
    meanings: dict[str, dict[tuple[Any, str], list[str]]] = {}
    for name, command in COMMANDS.items():
        for one in declared(command.options):
            if not one.is_argument and one.name not in SAID_DIFFERENTLY:
                meanings.setdefault(one.name, {}).setdefault((one.kind, one.info.help), []).append(name)
    assert {name: list(found.values()) for name, found in meanings.items() if len(found) > 1} == {}


def test_what_is_wrong_with_a_path_is_told_by_ctcovid_and_not_by_click() -> None:
    """Click calls a stale network handle a wrong value, with exit code 2."""
    for name, command in COMMANDS.items():
        function = typer_function(name, (command.options, Messages), lambda ctx, values: None)
        kinds = [kind for kind in function.__annotations__.values() if kind is not typer.Context]
        assert kinds and not any(info.readable for kind in kinds for info in kind.__metadata__)
