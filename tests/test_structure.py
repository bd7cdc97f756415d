"""The house: rooms import downwards only, and what must answer at once imports no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ctcovid

PACKAGE = Path(ctcovid.__file__).parent
# From top to bottom. Rooms on one line stand beside each other and do not see each other.
ROOMS = [
    {"cli"},
    {"commands"},
    {"experiments"},
    {"reports"},
    {"training", "evaluation", "explanation"},
    {"inference"},
    # Below training, which takes its recipe from there, and above the catalogue, whose names it offers.
    {"options"},
    {"distributed"},
    {"models"},
    {"kernels"},
    {"volumes"},
    {"phantom"},
    {"scans"},
    {"base"},
]
CLI_MAY_SEE = {"ctcovid.__version__", "ctcovid.base", "ctcovid.options"}
# Torch belongs to the networks and to what hands them volumes.
WITHOUT_TORCH = ("cli.py", "options", "base", "scans", "phantom", "evaluation", "reports")


# What takes a second or more to import, or half of one.
IMPORTED = """
import sys; sys.argv = ['ctcovid', *sys.argv[1:]]
import ctcovid.cli
try: ctcovid.cli.main()
except SystemExit as end: code = end.code
print(code, 'imported', sorted({'torch', 'scipy.stats', 'pandas', 'matplotlib'} & set(sys.modules)))
"""


def _imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _level(room: str) -> int:
    return next(level for level, rooms in enumerate(ROOMS) if room in rooms)


def test_rooms_import_only_from_rooms_below() -> None:
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        here = _room(path)
        if here in ("__init__", "__main__"):
            continue
        for name in _imports(path):
            parts = name.split(".")
            there = parts[1] if parts[0] == "ctcovid" and len(parts) > 1 else here
            if any(there in rooms for rooms in ROOMS) and there != here and _level(there) <= _level(here):
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert wrong == []


def test_command_line_sees_only_base_and_options() -> None:
    ours = {name for name in _imports(PACKAGE / "cli.py") if name.startswith("ctcovid.")}
    assert ours and all(any(name.startswith(allowed) for allowed in CLI_MAY_SEE) for name in ours)


def test_only_models_and_batches_and_what_stands_above_know_torch() -> None:
    knowing = {
        path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if any(n.split(".")[0] == "torch" for n in _imports(path))
    }
    assert not [path for path in knowing if path.startswith(WITHOUT_TORCH)]
    assert sorted(path for path in knowing if path.startswith("volumes")) == ["volumes/batches.py", "volumes/resident.py"]


def _imported_by(arguments: list[str], folder: Path) -> tuple[set[str], str]:
    """The packages that a command line imports, and what it says on stderr."""
    code = (
        "import sys; sys.argv = ['ctcovid', *sys.argv[1:]]\n"
        "import ctcovid.cli\n"
        "try: ctcovid.cli.main()\n"
        "except SystemExit: pass\n"
        "print('\\nimported', *{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:]), done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"]])
def test_help_imports_neither_torch_nor_arrays(arguments: list[str], tmp_path: Path) -> None:
    imported, _ = _imported_by(arguments, tmp_path)
    assert not {"torch", "numpy", "h5py", "pandas", "matplotlib", "scipy", "PIL"} & imported


@pytest.mark.parametrize("name", ["nosuch", "absent.csv"])
def test_evaluate_refuses_what_is_absent_before_it_imports_anything_that_takes_long(name: str, tmp_path: Path) -> None:
    imported, said = _imported_by(["evaluate", name], tmp_path)
    assert said.startswith("Error: No") and name in said
    assert not {"torch", "h5py", "pandas", "matplotlib", "scipy", "sklearn", "safetensors", "PIL"} & imported


def test_evaluate_of_predictions_in_a_csv_imports_neither_torch_nor_scipy(tmp_path: Path) -> None:
    rows = [
        f"{number},s,0,{label},{p},{1 - p}" for number, (label, p) in enumerate([("NCP", 0.75), ("NCP", 0.5), ("CP", 0.625), ("CP", 0.25)])
    ]
    (tmp_path / "mine.csv").write_text("\n".join(["patient,scan,volume,label,p_NCP,p_CP", *rows]))
    imported, said = _imported_by(["evaluate", "mine.csv", "--bootstrap", "10"], tmp_path)
    assert (tmp_path / "evaluation-mine" / "report.html").is_file(), said
    assert "matplotlib" in imported
    assert not {"torch", "h5py", "pandas", "scipy", "sklearn", "safetensors"} & imported


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["train", "--data", "nosuch.h5"], 3),
        (["train", "--arch", "r3d19"], 2),
        (["train", "--warmup", "20"], 2),
        (["predict", "nosuch"], 3),
        (["predict", "."], 3),
        (["predict", ".", "--shard", "0/3"], 2),
        (["explain", "nosuch"], 3),
        (["explain", ".", "--mask", "nosuch"], 3),
        (["evaluate", "nosuch"], 3),
        (["evaluate", "nosuch.csv"], 3),
        (["prepare", "nosuch", "--split", "60/20/30"], 2),
    ],
)
def test_what_is_refused_at_once_waits_for_no_torch(tmp_path: Path, arguments: list[str], code: int) -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTED, *arguments], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stderr.startswith(("Error:", "Usage:")), done.stderr
    assert done.stdout == f"{code} imported []\n"


def test_no_file_is_longer_than_400_lines() -> None:
    assert [path.name for path in PACKAGE.rglob("*.py") if len(path.read_text().splitlines()) > 400] == []
