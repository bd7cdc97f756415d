"""Files that are whole or absent: temporary name, fsync, rename."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ctcovid.base.errors import InputError, OutputExistsError
from ctcovid.base.faults import MachineFaultError, raise_machine_fault
from ctcovid.base.temporaries import clear_dead, temporary

RUN_CARD = "run.json"
MOST_RUN_CARD = 64 << 20
# Folders of the system, in which names are not files of a user.
SYSTEM = ("/dev", "/proc", "/sys")
MOST_LINKS = 40
# Bytes of file names that are not UTF-8, as Python has them, and these with everything else that does not belong on a terminal.
BYTES = re.compile("[\udc80-\udcff]")
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\udc80-\udcff]")


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which replaces `path` when the block ends without an exception.

    It is beside `path`. If this is a link, it is beside the link's target, which is replaced.

    Raises InputError if the folder cannot be written to.
    """
    target = behind_links(path)
    beside = temporary(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        clear_dead(target)
        yield beside
        _sync(beside)
        beside.replace(target)
        _sync(target.parent)
    except PermissionError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}. Choose another folder or fix the permissions.") from error
    finally:
        beside.unlink(missing_ok=True)


def behind_links(path: Path) -> Path:
    """The target of a link, whether it exists or not; any other path unchanged."""
    return path.resolve() if os.path.islink(path) else path  # noqa: PTH114 - False, too, for a name that no file system takes


def resolved(path: Path) -> Path:
    """The path without links, also where these lead in a circle."""
    return Path(os.path.realpath(path))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all; file names in it as `printable` makes them."""
    with atomic(path) as temporary:
        temporary.write_text(printable(text), encoding="utf-8")


def read_small(path: Path, most: int) -> bytes:
    """The content of a file.

    Raises ValueError if it is larger than `most` bytes, or OSError.
    """
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"larger than {most / 1e6:,.0f} MB")
    return content


def printable(text: str) -> str:
    """`text` as valid UTF-8 without what would control a terminal, except line feeds and tabs.

    Control characters, and bytes of file names in another encoding, become escapes such as ``\\x1b``; signs that turn the direction of
    writing become ``\\u202e``.
    """
    return UNPRINTABLE.sub(_escaped, text)


def _valid(text: str) -> str:
    """`text` with only the bytes of file names in another encoding replaced: JSON has escapes for the rest."""
    return text if text.isascii() else BYTES.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0]) - 0xDC00 if found[0] >= "\udc80" else ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def write_json(path: Path, document: Any) -> None:
    """Write `document` as indented JSON, whole or not at all. NaN and Inf become null, as JSON has neither."""
    write_text(path, json_text(document) + "\n")


def json_text(document: Any, ascii_only: bool = False) -> str:
    """`document` as indented, strictly valid JSON."""
    return _without_controls(json.dumps(_strict(document), indent=2, ensure_ascii=ascii_only, allow_nan=False))


def json_line(document: Any, ascii_only: bool = False) -> str:
    """`document`, of plain types, as JSON in one line."""
    return _without_controls(json.dumps(document, ensure_ascii=ascii_only, allow_nan=False))


def _without_controls(text: str) -> str:
    """JSON with those signs escaped that `printable` replaces; it escapes some of them itself."""
    return UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {_valid(str(key)): _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    if isinstance(value, Path | str):
        return _valid(str(value))
    if hasattr(value, "item"):
        value = value.item()
    if (isinstance(value, float) and value in (float("inf"), float("-inf"))) or value != value:
        return None
    return value


def require_there(path: Path, what: str = "file or folder") -> None:
    """Raises InputError if nothing exists at `path`; `what` names what is expected, for the user."""
    try:
        path.stat()
    except OSError as error:
        raise_machine_fault(error, path)
        if isinstance(error, PermissionError):
            raise InputError(f"{path} cannot be read: {error.strerror}. Fix its permissions.") from error
        if os.path.islink(path):  # noqa: PTH114
            where = "is a link that leads to itself" if error.errno == errno.ELOOP else f"links to {path.readlink()}, which is not there"
            raise InputError(f"{path} {where}. Fetch what it links to, as with datalad get, or fix the link.") from error
        file = next((str(parent) for parent in path.parents if parent.is_file()), "") if error.errno == errno.ENOTDIR else ""
        why = f": {file} is a file, not a folder" if file else ": the name is too long" if error.errno == errno.ENAMETOOLONG else ""
        raise InputError(f"No such {what}: {path}{why}. Check the path.") from error


def require_named(path: Path) -> None:
    """`require_there` for a scan among others: a link to what is absent, or a fault of the machine, concerns that scan only."""
    if not path.is_symlink():
        with contextlib.suppress(MachineFaultError):
            require_there(path)


def claim_file(path: Path, overwrite: bool) -> None:
    """Check that a file may be written at `path`, without touching anything.

    Raises OutputExistsError if there is one and `overwrite` is off, InputError if none can be written.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder. Name a file to write.")
    if (path.exists() and not path.is_file()) or _is_system_path(path):
        raise InputError(f"{path} is a device, not a file. Name a file to write; ctcovid predict writes to stdout with -o -.")
    _require_writable_parent(path)
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} exists already. Name another output, or pass --overwrite to replace it.")


def _is_system_path(path: Path) -> bool:
    """Whether a path, or a link on the way to its target, is the system's, as /dev/stdout is even if redirected into a file."""
    for _ in range(MOST_LINKS):
        path = path.parent.resolve() / path.name
        if any(path.is_relative_to(folder) for folder in SYSTEM) and not path.is_relative_to("/dev/shm"):
            return True
        if not path.is_symlink():
            break
        path = path.parent / path.readlink()
    return False


def claim_folder(path: Path, overwrite: bool, command: str) -> None:
    """Check that a folder may be written at `path`, without touching anything.

    Raises OutputExistsError if there is one that is not empty, unless `overwrite` is on and its run card says that the same command
    made it: other files are not ours to remove. Raises InputError if no folder can be written.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file. Name a folder to write into.")
    _require_writable_parent(path)
    if path.is_dir() and any(path.iterdir()):
        if not made_by(path, command):
            raise OutputExistsError(f"{path} exists already and ctcovid {command} did not make it. Name another output.")
        if not overwrite:
            raise OutputExistsError(f"{path} exists already. Name another output, or pass --overwrite to replace it.")


def made_by(folder: Path, command: str) -> bool:
    """Whether the run card in `folder` says that `command` made it."""
    try:
        card = json.loads(read_small(folder / RUN_CARD, MOST_RUN_CARD))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(card, dict) and card.get("command") == command


def _require_writable_parent(path: Path) -> None:
    """Raises InputError unless there is a folder to write into, or one can be made."""
    parent = path.resolve().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{path} cannot be written: {parent} is not a writable folder. Choose another folder.")


@contextlib.contextmanager
def fresh_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill, which replaces `path` when the block ends without an exception; `path` must be claimed before."""
    path = path.resolve()
    beside, old = temporary(path), temporary(path, "old")
    for left in (beside, old):
        shutil.rmtree(left, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        clear_dead(path)
        yield beside
        for file in beside.rglob("*"):
            if file.is_file():
                _sync(file)
        # Removed under another name: a kill in between must not leave half of it under its own.
        with contextlib.suppress(FileNotFoundError):
            path.replace(old)
        try:
            beside.replace(path)
        except OSError:
            if old.exists():
                old.replace(path)
            raise
        _sync(path.parent)
    finally:
        for left in (beside, old):
            shutil.rmtree(left, ignore_errors=True)
