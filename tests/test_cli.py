"""The command line: help, settings, completions, exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import forked
import pytest
import typer

from ctcovid.cli import app
from ctcovid.options.commands import COMMANDS as DECLARED
from ctcovid.options.messages import Messages
from ctcovid.options.signature import declared

ROOT = Path(__file__).parent.parent
COMMAND = typer.main.get_command(app)
COMMANDS = sorted(COMMAND.commands)  # type: ignore[attr-defined]


def ctcovid(*arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return forked.run(*arguments, cwd=cwd, environment={**os.environ, **environment})


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_and_an_example(name: str) -> None:
    command = COMMAND.commands[name]  # type: ignore[attr-defined]
    assert command.help
    assert command.epilog.startswith(f"Example: ctcovid {name}")
    # What is declared: typer before 0.26 loses the help of arguments beside click 8.5.
    assert all(one.info.help for options in (DECLARED[name].options, Messages) for one in declared(options))


@pytest.mark.parametrize(("shell", "file"), [("bash", "ctcovid.bash"), ("zsh", "_ctcovid"), ("fish", "ctcovid.fish")])
def test_completions_are_what_the_program_prints(shell: str, file: str) -> None:
    code = "import sys; sys.argv[0] = 'ctcovid'; from ctcovid.cli import main; main()"
    line = [sys.executable, "-c", code, "--show-completion", shell]
    printed = subprocess.run(
        line, capture_output=True, text=True, check=True, env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    )
    assert printed.stdout == (ROOT / "completions" / file).read_text()


def test_tab_completes_architectures() -> None:
    done = ctcovid(_CTCOVID_COMPLETE="complete_bash", COMP_WORDS="ctcovid train --arch r2plus1d", COMP_CWORD="3")
    assert done.stdout.split() == ["r2plus1d18", "r2plus1d34", "r2plus1d50"]


def test_option_goes_before_environment_before_file_before_default(tmp_path: Path) -> None:
    config = tmp_path / "settings.toml"
    config.write_text("seed = 1\n[models]\nruns = 'from-file'\n")
    asked = ["models", "--config", config]
    assert "from-file/" in ctcovid(*asked, cwd=tmp_path).stderr
    assert "from-all/" in ctcovid(*asked, cwd=tmp_path, CTCOVID_RUNS="from-all").stderr
    assert "from-own/" in ctcovid(*asked, cwd=tmp_path, CTCOVID_RUNS="from-all", CTCOVID_MODELS_RUNS="from-own").stderr
    assert "from-line/" in ctcovid(*asked, "--runs", "from-line", cwd=tmp_path, CTCOVID_RUNS="from-all").stderr
    assert "No trained model in runs/" in ctcovid("models", cwd=tmp_path).stderr


def test_a_misspelt_environment_variable_is_reported(tmp_path: Path) -> None:
    done = ctcovid("models", cwd=tmp_path, CTCOVID_TRAIN_MICROBATCH="8", CTCOVID_TRAIN_MICRO_BATCH="8")
    assert done.stderr.splitlines()[0] == (
        "Warning: The environment variable CTCOVID_TRAIN_MICROBATCH is not a setting and is ignored. "
        "Did you mean 'CTCOVID_TRAIN_MICRO_BATCH'?"
    )
    assert done.stderr.count("Warning") == 1


def test_an_empty_argument_is_not_the_current_folder(tmp_path: Path) -> None:
    for line in (["predict", ""], ["prepare", ""], ["predict", "scan", "--model", ""]):
        done = ctcovid(*line, cwd=tmp_path)
        assert done.returncode == 2 and done.stderr.startswith("Error: An argument is empty; perhaps a variable"), done.stderr


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("[trian]\nepochs = 1", "train"),
        ("epochz = 1", "epochs"),
        ("[train]\nsamples = 1", "samples"),
        ("= 1", "TOML"),
        ("[models]\njson = 'maybe'", "json"),
    ],
)
def test_wrong_settings_file_is_a_usage_error(tmp_path: Path, content: str, complaint: str) -> None:
    config = tmp_path / "settings.toml"
    config.write_text(content)
    done = ctcovid("models", "--config", config, cwd=tmp_path)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_every_option_can_be_set_by_environment() -> None:
    for name, command in COMMAND.commands.items():  # type: ignore[attr-defined]
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.name != "help":
                assert parameter.envvar == [f"CTCOVID_{name}_{parameter.name}".upper(), f"CTCOVID_{parameter.name}".upper()]


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        (["prepare", "absent"], 3, "absent"),
        (["prepare", "."], 3, "empty"),
        (["train"], 3, "ctcovid prepare"),
        (["train", "--arch", "r3d19"], 2, "r3d18"),
        (["train", "--epochs", "-1"], 2, "epochs"),
        (["train", "--warmup", "20"], 2, "--warmup 20"),
        (["train", "--depth", "99999999999999999999"], 2, "depth"),
        (["prepare", ".", "--depth", "99999999999999999999"], 2, "depth"),
        (["models", "--cost", "r3d18", "--depth", "99999999999999999999"], 2, "depth"),
        (["models", "--cost", "tv_s3d"], 2, "--depth 16"),
        (["evaluate"], 3, "ctcovid train"),
        (["evaluate", "absent.csv"], 3, "absent.csv"),
        (["predict", "."], 3, "ctcovid train"),
        (["explain", "absent"], 3, "absent"),
        (["predict"], 2, "scans"),
        (["explode"], 2, "explode"),
    ],
)
def test_what_cannot_be_done_gets_one_sentence_and_the_documented_code(tmp_path: Path, line: list[str], code: int, said: str) -> None:
    done = ctcovid(*line, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert said.lower() in done.stderr.lower()
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unexpected_error_is_exit_1_and_verbose_shows_the_traceback(tmp_path: Path, make_scan: Callable[..., Path]) -> None:
    # A folder where a file should be replaced is not expected by any command.
    make_scan(tmp_path / "data" / "NCP" / "0" / "0")
    (tmp_path / "volumes.table.csv").mkdir()
    done = ctcovid("prepare", "data", "--size", 32, cwd=tmp_path)
    assert done.returncode == 1
    assert "--verbose" in done.stderr and "Traceback" not in done.stderr
    assert "Traceback" in ctcovid("prepare", "data", "--size", 32, "--overwrite", "--verbose", cwd=tmp_path).stderr


def test_help_says_what_arguments_mean(tmp_path: Path) -> None:
    """With typer before 0.26 and click 8.5 it would not by itself; .ci/typer-versions runs this with both."""
    assert "Folders of slices" in ctcovid("predict", "--help", cwd=tmp_path, COLUMNS="200").stdout
