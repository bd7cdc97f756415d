"""The command line: one function per command, made from its options, and the exit codes. Each command is one lazy import and one call."""

from __future__ import annotations

import importlib
import traceback
from typing import Annotated, Any

import typer

from ctcovid import __version__
from ctcovid.base.console import Console, tell
from ctcovid.base.errors import EXIT_INTERRUPTED, EXIT_PARTIAL, EXIT_UNEXPECTED, CtcovidError, InputError, StoppedError, ToldError
from ctcovid.base.faults import MachineFaultError, impossible_path, leaving, machine_fault, told
from ctcovid.base.memory import require_address_space
from ctcovid.base.process_info import process_info, require_alone, working_alone
from ctcovid.base.signals import raise_when_stopped
from ctcovid.base.streams import abandon_stdout, settle_streams
from ctcovid.options.commands import COMMANDS
from ctcovid.options.settings import unknown_settings
from ctcovid.options.signature import restore_help
from ctcovid.options.words import add_commands, split_off_messages

EPILOG = "Research use only, not a medical device. Settings: option > environment (CTCOVID_…) > --config file > default."
REPORT = "This is a fault of ctcovid. Please report it as an issue of its repository, with {how} (ctcovid manual security)."
# Of what an unforeseen error says.
MOST_SHOWN = 500

app = typer.Typer(
    name="ctcovid",
    help="Classify chest CT as COVID-19, common pneumonia or normal with 3D convolutional networks (Li, Pei and Guo 2021).",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"ctcovid {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_version)] = False,
) -> None:
    """Options before the name of a command."""


def _run(name: str, ctx: typer.Context, values: dict[str, Any]) -> None:
    """Run a command with the values that Typer has converted, and exit with the documented code.

    A summary of None is that of a process that is not the first of several; it is done.
    """
    messages, options = split_off_messages(name, ctx, values)
    console = Console(messages.quiet, messages.verbose, messages.json)
    if messages.verbose:
        console.detailed()
    try:
        raise_when_stopped()
        require_alone(name, getattr(options, "executor", None))
        for sentence in (*unknown_settings(ctx), *working_alone(name)) if process_info().rank == 0 else ():
            console.warn(sentence)
        if process_info().size == 1:
            # If there are several processes, the command itself tells all of them.
            options.require_sense()
        if name not in ("prepare", "manual", "models"):
            require_address_space()
        # Imported here, so that help, completion and refusals never wait for torch.
        summary = importlib.import_module(f"ctcovid.commands.{name}").run(options, console)
    except ToldError as error:
        raise typer.Exit(error.exit_code) from error
    except StoppedError as error:
        tell(f"Error: {error}")
        raise typer.Exit(error.exit_code) from error
    except CtcovidError as error:
        raise _refused(error) from error
    except KeyboardInterrupt as error:
        tell("Stopped by Ctrl-C.")
        raise typer.Exit(EXIT_INTERRUPTED) from error
    except BrokenPipeError as error:
        # The reader of a pipe, such as head, has ended.
        raise typer.Exit(EXIT_UNEXPECTED) from error
    except Exception as error:
        raise _unexpected(error, console.verbose) from error
    if getattr(summary, "failed", None):
        raise typer.Exit(EXIT_PARTIAL)


def _refused(error: CtcovidError) -> typer.Exit:
    """Report an error that the user can fix, or a fault of the machine."""
    tell(f"Error: {told(error)}")
    fault = None if isinstance(error, MachineFaultError) else machine_fault(error)
    return typer.Exit(EXIT_UNEXPECTED if fault else error.exit_code)


def _unexpected(error: Exception, verbose: bool) -> typer.Exit:
    """Report an error that no part of the program has foreseen: of the machine, of a path that no file can have, or a fault of ours."""
    if verbose:
        traceback.print_exception(error)
    if fault := machine_fault(error):
        tell(f"Error: {fault.told()}")
        return typer.Exit(EXIT_UNEXPECTED)
    if sentence := impossible_path(error):
        tell(f"Error: {sentence}")
        return typer.Exit(InputError.exit_code)
    how = "what it printed" if verbose else "what the same command prints with --verbose"
    tell(f"Error: unexpected {type(error).__name__}: {str(error)[:MOST_SHOWN]}. {REPORT.format(how=how)}")
    return typer.Exit(EXIT_UNEXPECTED)


add_commands(app, _run)


def main() -> None:
    """Entry point of ``ctcovid``."""
    settle_streams()
    command = typer.main.get_command(app)
    restore_help(command, {name: one.options for name, one in COMMANDS.items()})
    with leaving():
        try:
            command(prog_name="ctcovid")
        finally:
            abandon_stdout()
