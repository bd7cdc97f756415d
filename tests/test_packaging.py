"""What is installed is complete, and pyproject.toml says of it what is true."""

from __future__ import annotations

import importlib.resources
import re
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

import ctcovid

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PACKAGE = Path(ctcovid.__file__).parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# Compiled when ctcovid is installed, or shown by the README alone, so not themselves part of what is installed.
PICTURES = {f"ctcovid/manual/pictures/{path.name}" for path in (PACKAGE / "manual" / "pictures").glob("*.png")}
SOURCES = PICTURES | {
    "ctcovid/" + source.removeprefix("ctcovid/")
    for module in PROJECT["tool"]["setuptools"]["ext-modules"]
    for source in (*module["sources"], *module["depends"])
}


def _data_files() -> list[Path]:
    """Everything in the package that is not Python, nor made by compiling."""
    made = (".py", ".pyc", ".so", ".pyd")
    return [path for path in sorted(PACKAGE.rglob("*")) if path.is_file() and path.suffix not in made]


def _package_data() -> list[tuple[Path, str]]:
    listed = PROJECT["tool"]["setuptools"]["package-data"]
    return [(PACKAGE.joinpath(*package.split(".")[1:]), pattern) for package, patterns in listed.items() for pattern in patterns]


def test_every_data_file_of_the_package_is_installed() -> None:
    forgotten = [
        path.relative_to(PACKAGE.parent).as_posix()
        for path in _data_files()
        if not any(
            path.is_relative_to(folder) and fnmatch(path.relative_to(folder).as_posix(), pattern) for folder, pattern in _package_data()
        )
    ]
    assert sorted(set(forgotten) - SOURCES) == [], "add them to package-data in pyproject.toml"


def test_package_data_names_no_file_that_is_not_there() -> None:
    assert [f"{folder}/{pattern}" for folder, pattern in _package_data() if not list(folder.glob(pattern))] == []


@pytest.mark.parametrize(
    "name",
    [
        "py.typed",
        "completions/_ctcovid",
        "completions/ctcovid.bash",
        "completions/ctcovid.fish",
        "reports/viewer.html",
        "manual/predict.md",
        "experiments/published.csv",
    ],
)
def test_what_is_read_at_run_time_is_read_from_the_package(name: str) -> None:
    assert importlib.resources.files("ctcovid").joinpath(*name.split("/")).is_file()


def test_completions_of_a_clone_are_those_of_the_package() -> None:
    """Users of a clone source `completions/`, which is a link: there is one text."""
    ours = {file.name: file.read_text() for file in (importlib.resources.files("ctcovid") / "completions").iterdir()}
    assert ours == {path.name: path.read_text() for path in (ROOT / "completions").iterdir()}


def test_classifiers_name_the_pythons_of_the_matrix() -> None:
    named = {name.rpartition(" ")[2] for name in PROJECT["project"]["classifiers"] if re.search(r":: 3\.\d+$", name)}
    lowest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert min(named, key=lambda version: int(version.partition(".")[2])) == lowest
    matrix = ROOT / ".ci" / "matrix"
    if not matrix.is_file():
        pytest.skip("the matrix is in a checkout only")
    assert set(re.findall(r'Row\("([\d.]+)"', matrix.read_text())) == named


def test_every_upper_bound_has_its_reason_above_it() -> None:
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    bounded = [number for number, line in enumerate(lines) if re.search(r'"[\w.-]+[^"]*<[^"]*"', line) and "python_version" not in line]
    without = []
    for number in bounded:
        above = number - 1
        # One comment may stand for several bounds beneath it.
        while above in bounded:
            above -= 1
        if not lines[above].lstrip().startswith("#"):
            without.append(lines[number].strip())
    assert without == []
