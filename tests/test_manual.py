"""README and manual: they know every command, option, room and dependency, and are written in plain English."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from rich.console import Console
from rich.markdown import Markdown

from ctcovid.cli import app
from ctcovid.commands.manual import OPTIONS, with_tables
from ctcovid.models.architectures import ARCHITECTURES
from ctcovid.options.commands import COMMANDS
from ctcovid.options.manual import pages
from ctcovid.options.messages import Messages
from ctcovid.options.signature import Declared, declared

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ctcovid"
README = ROOT / "README.md"
PAGES = pages()
TEXTS = {"README": README.read_text(encoding="utf-8"), **PAGES}
EVERYTHING = "\n".join(TEXTS.values())
MOST_LINES = 200
# Of all pictures together, in bytes.
MOST_PICTURES = 600_000
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
# A call of ctcovid, up to a comment, a pipe, or the end of the line.
CALL = re.compile(r"(?<![\w./'\[-])ctcovid +([a-z-][^#|>&;\n]*)")
WITHOUT_COMMAND = {"--help", "--version", "--install-completion", "--show-completion"}
# Options of SLURM.
OF_OTHERS = {"--nodes", "--ntasks-per-node"}

# Where plain English is wanted: files, or folders with all files of these endings.
PLACES = (README, PACKAGE)
ENDINGS = (".md", ".py", ".html", ".sh")
# What needs a second reading, and what to write in its place.
PHRASES = {
    r"\bmend(s|ed|ing)?\b": "fix, repair",
    r"\bleav(e|es|ing) [^.|]{1,40} away\b|\bleft away\b": "omit",
    r"\b(is|are|was|were) no (DICOM|UTF-8|number|numbers|PNG|NIfTI|safetensors|directory|file)\b": "is not …; NaN or Inf",
    r"\bwhat is no number\b": "NaN or Inf",
    r"\bwant of (memory|space|scans)\b": "out of memory, no space left",
    r"\bthe place in the code\b": "traceback",
    r"\btalk (goes |is )?(to|on) stderr\b": "messages",
    r"\bthe (same )?line again\b|\bthe same line\b": "the same command again",
    r"\beach time anew\b": "overwritten on every run",
    r"\bnothing is left to validate\b": "if the validation split is empty",
    r"\bby chance it were\b": "chance level",
    r"\bmakes? of the scan\b": "its features",
    r"\bmake a scan or patient\b": "how volume probabilities are aggregated",
    r"\ba tenth of it every\b": "divided by 10 every",
    r"\bgo(es)? on past\b": "continues",
    r"\bjudg(e|es|ed|ing|ement|ements)\b": "check (quality), predict",
}


def calls(text: str) -> Iterator[str]:
    """Command lines of ctcovid in a text, without the name of the program."""
    blocks = [block for language, block in FENCE.findall(text) if language in ("", "sh", "console")]
    blocks += [span for span in re.findall(r"`([^`\n]+)`", FENCE.sub("", text)) if span.startswith("ctcovid ")]
    for block in blocks:
        yield from CALL.findall(block.replace("\\\n", " "))


def options_of(command: str) -> list[Declared]:
    """What a command declares."""
    return [one for options in (COMMANDS[command].options, Messages) for one in declared(options)]


def complaint(line: str) -> str:
    """What is wrong with a command line, or nothing."""
    words = shlex.split(line)
    if words[0] in WITHOUT_COMMAND:
        return ""
    if words[0] not in COMMANDS:
        return f"no command {words[0]}"
    known = {word: one for one in options_of(words[0]) for word in one.spellings}
    for place, word in enumerate(words[1:], start=1):
        name = word.partition("=")[0]
        if not re.match(r"--?[a-z]", name) or name in ("-h", "--help"):
            continue
        if name not in known:
            return f"no option {name}"
        choices = [choice for choice in get_args(known[name].kind) if isinstance(choice, str)]
        if choices and (place + 1 >= len(words) or words[place + 1] not in choices):
            return f"{name} is one of {choices}"
    return ""


def test_every_command_has_a_page_with_its_options_an_example_and_a_place_in_the_readme() -> None:
    for name, command in COMMANDS.items():
        if name == "manual":
            continue
        assert OPTIONS.findall(PAGES[name]) == [name]
        assert f"\nctcovid {name}" in PAGES[name], f"{name}.md has no example"
        assert f"ctcovid {name}" in TEXTS["README"], f"README does not name {name}"
        assert command.help
    assert app.registered_commands


@pytest.mark.parametrize("topic", PAGES)
def test_every_page_is_a_title_and_reads_well_at_80_columns(topic: str) -> None:
    assert PAGES[topic].startswith(f"# {topic}: ")
    console = Console(width=80, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(Markdown(with_tables(PAGES[topic])))
    printed = capture.get()
    assert max(map(len, printed.splitlines())) <= 80
    assert "<!--" not in printed
    assert [line for line in printed.splitlines() if re.match(r"\s*\|.*\|\s*$", line)] == [], "a table that is not one"


def test_marks_become_the_tables_of_the_options_that_are_declared() -> None:
    for name in set(PAGES) & set(COMMANDS):
        page = with_tables(PAGES[name])
        assert "<!-- options" not in page and "prints the table of options here" not in page
        missing = [one.name for one in options_of(name) if f"`{one.spellings[0]}`" not in page]
        assert missing == []


@pytest.mark.parametrize("place", TEXTS)
def test_every_command_line_that_is_shown_has_options_that_exist(place: str) -> None:
    lines = list(calls(TEXTS[place]))
    assert lines
    assert {line: wrong for line in lines if (wrong := complaint(line))} == {}


@pytest.mark.parametrize("place", TEXTS)
def test_every_option_that_is_named_exists_in_some_command(place: str) -> None:
    known = {word for command in COMMANDS for one in options_of(command) for word in one.spellings} | WITHOUT_COMMAND | OF_OTHERS
    named = [word for span in re.findall(r"`(--[^`\n]+)`", FENCE.sub("", TEXTS[place])) for word in re.findall(r"(--[a-z-]+)", span)]
    assert [word for word in named if word not in known] == []


def test_the_check_of_command_lines_finds_what_is_wrong() -> None:
    assert complaint("train --epochs 5 --arch r3d18") == ""
    assert complaint("explain scan --check") == "no option --check"
    assert complaint("prepare x --images both").startswith("--images is one of")
    assert complaint("explode x") == "no command explode"


def test_tables_have_three_columns_at_most() -> None:
    rows = [(place, line) for place, text in PAGES.items() for line in text.splitlines() if line.startswith("|")]
    wide = [row for row in rows if row[1].replace("\\|", "").count("|") > 4]
    assert wide == []


def test_commands_fit_a_terminal_of_80_columns() -> None:
    lines = [(place, line) for place, text in PAGES.items() for _, block in FENCE.findall(text) for line in block.splitlines()]
    assert lines and [line for line in lines if len(line[1]) > 78] == []


def test_readme_is_short_and_shows_a_picture_in_its_first_screen() -> None:
    lines = TEXTS["README"].splitlines()
    assert len(lines) <= MOST_LINES
    assert any(line.startswith("![") for line in lines[:20])
    pictures = [path for path in (PACKAGE / "manual").rglob("*") if path.suffix in (".png", ".svg", ".jpg")]
    assert pictures and sum(path.stat().st_size for path in pictures) < MOST_PICTURES


def test_links_of_the_readme_lead_to_files_and_name_the_page_of_the_manual_too() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", TEXTS["README"])
    assert links and [link for link in links if not (ROOT / link).is_file()] == []
    topics = {Path(link).stem for link in links if link.startswith("ctcovid/manual/") and link.endswith(".md")}
    assert topics and [topic for topic in topics if f"`ctcovid manual {topic}`" not in TEXTS["README"]] == []
    assert set(PAGES) <= topics, "a page that the README does not name"


def test_readme_keeps_the_line_that_runs_the_tests() -> None:
    found = re.search(r"<!-- test command -->\n\n```sh\n(.+)\n```", TEXTS["README"])
    assert found and "pip install -e '.[test]'" in found[1] and "pytest" in found[1]


def test_every_architecture_dependency_and_room_is_named() -> None:
    assert set(ARCHITECTURES) <= set(re.findall(r"\w+", PAGES["models"]))
    project = (ROOT / "pyproject.toml").read_text()
    dependencies = re.findall(r'^    "([a-z0-9-]+)[><=]', project.partition("[project.optional-dependencies]")[0], re.M)
    assert dependencies and [name for name in dependencies if name not in PAGES["internals"]] == []
    rooms = [path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()]
    assert rooms and [room for room in rooms if f"| `{room}/` |" not in PAGES["internals"]] == []


def plain_texts() -> list[Path]:
    files = [file for place in PLACES for file in (place.rglob("*") if place.is_dir() else [place])]
    return [file for file in files if file.suffix in ENDINGS]


@pytest.mark.parametrize("path", plain_texts(), ids=lambda path: path.name)
def test_no_phrase_needs_a_second_reading(path: Path) -> None:
    # Phrases may stand across the end of a line.
    text = re.sub(r"\s+", " ", path.read_text(encoding="utf-8"))
    found = [f"{one[0]!r}: write {better}" for phrase, better in PHRASES.items() for one in re.finditer(phrase, text, re.I)]
    assert found == []
