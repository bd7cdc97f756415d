"""Files that are whole or absent: temporary name, fsync, rename."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ctcovid.base.errors import InputError, OutputExistsError


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the place of `path` when the block ends without an exception.

    Raises InputError where the folder cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except PermissionError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}. Choose another place or mend the permissions.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, document: Any) -> None:
    """Write `document` as indented JSON, whole or not at all. Not-a-number becomes null, which JSON can say."""
    write_text(path, json_text(document) + "\n")


def json_text(document: Any) -> str:
    """`document` as indented, strictly valid JSON."""
    return json.dumps(_strict(document), indent=2, ensure_ascii=False, allow_nan=False)


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        value = value.item()
    if (isinstance(value, float) and value in (float("inf"), float("-inf"))) or value != value:
        return None
    return value


def claim(path: Path, overwrite: bool) -> None:
    """Make sure that `path` may be written: absent, or `overwrite`.

    Raises OutputExistsError, and removes nothing; the atomic writers replace what is there when the new result is complete.
    """
    if not overwrite and (path.is_file() or (path.is_dir() and any(path.iterdir()))):
        raise OutputExistsError(f"{path} exists already. Name another output, or pass --overwrite to replace it.")


@contextlib.contextmanager
def fresh_folder(path: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside `path` to fill; it takes the place of `path` when the block ends without an exception."""
    claim(path, overwrite)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _sync(file)
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
        _sync(path.parent)
    except PermissionError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}. Choose another place or mend the permissions.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
