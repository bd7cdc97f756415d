"""Faults of the machine, such as a full disk or a network disk that is gone: told apart from damage in a file, with a remedy for each."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ctcovid.base.errors import EXIT_UNEXPECTED, CtcovidError, InputError

DISK_FULL = (
    "no space is left on the disk of {where}",
    "Free some space; temporary files are in {temporary}, and TMPDIR names another folder for them",
)
QUOTA = "the quota of the disk of {where} is used up", "Remove files, ask for more, or set TMPDIR if temporary files fill it"
FILE_SIZE = "{where} has reached the file-size limit", "Raise the limit (ulimit -f), or use a disk that allows larger files"
OPEN_FILES = "too many files are open, at {where}", "Raise the limit (ulimit -n), or pass fewer --workers"
SYSTEM_FILES = "the system has too many open files, at {where}", "End other programs, or ask the administrator to raise the limit"
MEMORY = "out of memory, at {where}", "Ask for more memory, or pass fewer --workers"
NETWORK = "the network file system of {where} does not answer ({said})", "Check that it is mounted, then run the same command again"
DEVICE = "the disk of {where} has an input/output error ({said})", "Check the disk and its connection, then run the same command again"
READ_ONLY = "{where} is on a read-only file system", "Choose another folder, or mount it for writing"
BUSY = "{where} is in use ({said})", "Run the same command again later"
# By the names of errors, as no system has all of them.
KINDS: dict[tuple[str, str], str] = {
    DISK_FULL: "ENOSPC",
    QUOTA: "EDQUOT",
    FILE_SIZE: "EFBIG",
    OPEN_FILES: "EMFILE",
    SYSTEM_FILES: "ENFILE",
    MEMORY: "ENOMEM",
    NETWORK: "ESTALE ETIMEDOUT ETIME EHOSTDOWN EHOSTUNREACH ECONNRESET ECONNREFUSED ECONNABORTED ENOTCONN ENETDOWN ENETUNREACH ENETRESET "
    "ENOLINK ECOMM EREMOTE EPROTO EKEYEXPIRED ENOKEY",
    DEVICE: "EIO ENXIO ENODEV EREMOTEIO ENOMEDIUM EUCLEAN EBADMSG",
    READ_ONLY: "EROFS",
    BUSY: "EBUSY EDEADLK EINTR",
}
FAULTS = {getattr(errno, name): kind for kind, names in KINDS.items() for name in names.split() if hasattr(errno, name)}
ABSENT = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG)
IMPOSSIBLE = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EILSEQ)
# As HDF5 writes it, and what C++ libraries say instead of an errno.
ERRNO_IN_TEXT = re.compile(r"errno = (\d+)")
NO_MEMORY = re.compile(r"bad.alloc|allocate memory|out of memory", re.IGNORECASE)
# These are no faults where they stand in the text of a library only.
SAID = {os.strerror(code): code for code, kind in FAULTS.items() if kind is not BUSY}
# Of a path in a message.
LONGEST_PATH = 300
# Not empty once the process is to end without what is done at exit.
_leaving: list[object] = []


class MachineFaultError(InputError):
    """The machine failed, not the input: the same command may succeed later."""

    exit_code = EXIT_UNEXPECTED


@dataclass(frozen=True)
class Fault:
    """A fault of the machine: its errno, and the path in which it arose, if that is known."""

    code: int
    path: str = ""

    @property
    def is_memory(self) -> bool:
        return self.code == errno.ENOMEM

    def told(self, name: str | Path = "") -> str:
        """A sentence with the remedy. `name` is what was read or written, and precedes the path that the system names."""
        what, remedy = FAULTS[self.code]
        where = str(name) or self.path or "a file of this run"
        # A library wrote a file of its own.
        if name and self.path.startswith(tempfile.gettempdir() + os.sep) and not str(name).startswith(tempfile.gettempdir()):
            where = f"{tempfile.gettempdir()}, where temporary files are (for {name})"
        words = {"where": where, "said": os.strerror(self.code), "temporary": tempfile.gettempdir()}
        return f"{what.format(**words)}. {remedy.format(**words)}."


def machine_fault(error: BaseException) -> Fault | None:
    """The fault of the machine from which an error came, also through a library; None if it came from the input or from the program."""
    for one in _chain(error):
        if isinstance(one, MemoryError):
            return Fault(errno.ENOMEM)
        if isinstance(one, OSError) and one.errno is not None and one.errno in FAULTS:
            return Fault(one.errno, os.fsdecode(one.filename) if isinstance(one.filename, str | bytes) else "")
        if isinstance(one, OSError | RuntimeError | ValueError):
            text = str(one)
            said = [int(found) for found in ERRNO_IN_TEXT.findall(text)] + [code for words, code in SAID.items() if words in text]
            if code := next((code for code in said if code in FAULTS), errno.ENOMEM if NO_MEMORY.search(text) else 0):
                return Fault(code)
    return None


def told(error: Exception) -> str:
    """What to tell a user of an error. If the machine failed while an input was read, that says more than that it is unusable."""
    fault = None if isinstance(error, MachineFaultError) else machine_fault(error)
    if isinstance(error, CtcovidError):
        return f"{fault.told()} {error}" if fault else str(error)
    return _sentence(fault.told()) if fault else f"unexpected {type(error).__name__}: {error}"


def is_absent(error: BaseException) -> bool:
    """Whether an error came from a file that is not there, or that may not be read."""
    return any(isinstance(one, OSError) and one.errno in ABSENT for one in _chain(error))


def absence(path: Path, error: OSError) -> str:
    """What an error of `ABSENT` says of a file that a folder or a list names: a clause without its name, with what to do."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return "without permission to read; fix its permissions"
    if error.errno == errno.ELOOP:
        return "linked to itself; fix the link"
    if error.errno == errno.ENAMETOOLONG:
        return "named too long; shorten the name"
    if os.path.islink(path):  # noqa: PTH114
        return "linked to a file that is not there; fetch it, as with datalad get"
    return "removed since the folder was listed; run the same command again"


def impossible_path(error: BaseException) -> str:
    """A sentence about a path that no file can have, or that the user may not use, if the error came from one; else empty."""
    try:
        Path.cwd()
    except OSError:
        return "The working directory no longer exists. Change to another one."
    for one in _chain(error):
        name = one.filename if isinstance(one, OSError) else None
        if isinstance(one, OSError) and one.errno in (
            errno.ENAMETOOLONG,
            errno.ELOOP,
            errno.ENOTDIR,
            errno.EACCES,
            errno.EPERM,
            errno.EILSEQ,
        ):
            where = os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else "A path"
            shown = where if len(where) <= LONGEST_PATH else f"{where[: LONGEST_PATH // 2]}…{where[-LONGEST_PATH // 2 :]}"
            return f"{shown}: {one.strerror}. Give another path."
        if (isinstance(one, ValueError) and "null" in str(one)) or (isinstance(one, RuntimeError) and "Symlink loop" in str(one)):
            return f"A path cannot be used ({one}). Give another path."
    return ""


def raise_machine_fault(error: BaseException, name: str | Path = "") -> None:
    """Raises MachineFaultError if `error` came from the machine; `name` is what was read or written."""
    if fault := machine_fault(error):
        raise MachineFaultError(_sentence(fault.told(name))) from error


def second_look(path: Path, most: int | None = None) -> Exception | None:
    """What reading a file raises, to its end or `most` bytes: a library that failed does not tell faults of file and machine."""
    try:
        with path.open("rb") as file:
            while file.read(1 << 20) and (most is None or file.tell() < most):
                pass
    except (OSError, MemoryError) as error:
        return error
    return None


def leave_at_once(kept: object) -> None:
    """From now on the process ends without what libraries do at exit, or when `kept` is freed: HDF5 crashes then if a write has failed."""
    _leaving.append(kept)


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """Ends the process when the block exits, if `leave_at_once` was called."""
    try:
        yield
    except SystemExit as end:
        if _leaving:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code if isinstance(end.code, int) else EXIT_UNEXPECTED)
        raise


def is_folder(path: Path) -> bool:
    """Whether a path is a folder, or a link to one; False if it cannot be looked at."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError:
        return False


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] if text.split(" ")[0].isalpha() else text
