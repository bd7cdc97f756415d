"""One lock per output: of two commands that would write the same file or folder, the second ends and says who is writing."""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from ctcovid.base.errors import InputError, OutputBusyError
from ctcovid.base.faults import raise_machine_fault
from ctcovid.base.files import behind_links
from ctcovid.base.names import shortened
from ctcovid.base.temporaries import is_dead_here, realm

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None  # type: ignore[assignment]

# What systems say of locks that they do not have.
WITHOUT_LOCKS = {getattr(errno, name) for name in ("ENOLCK", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EINVAL") if hasattr(errno, name)}
# Bytes of the longest record that a lock file is read for.
LONGEST = 4096
# Seconds between two looks at a lock that another process holds.
ASK_AGAIN = 0.5


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock: where, since when, and the `system` within which its id is unique."""

    host: str
    process: int
    since: str
    system: str

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, since {self.since}"


class OutputLock:
    """Context manager that locks an output against other processes until the block ends, or the process does.

    The lock is a file beside the output, ``.NAME.lock``, which names its holder and is removed with the lock. On file systems without
    locks the file itself is the lock; then that of a killed process on another host has to be removed by hand.

    Parameters
    ----------
    output : the file or folder that will be written; missing folders above it are made
    say : takes the sentence that the file system gives no locks
    """

    def __init__(self, output: Path, say: Callable[[str], None]) -> None:
        target = behind_links(output)
        self.output, self.say = output, say
        self.path = target.with_name(f".{shortened(target.name)}.lock")
        self._handle = -1
        self._made: list[Path] = []

    def __enter__(self) -> OutputLock:
        """Raises OutputBusyError if another process holds the lock, InputError if no file can be made beside the output."""
        try:
            self._make_folders()
            while self._handle < 0:
                self._handle = self._tried()
            holder = Holder(platform.node(), os.getpid(), datetime.datetime.now().astimezone().isoformat(timespec="seconds"), realm())
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, json.dumps(asdict(holder)).encode(), 0)
        except OSError as error:
            self._release()
            raise_machine_fault(error, self.path)
            raise InputError(f"{self.output} cannot be written: {error.strerror} ({self.path}). Choose another folder.") from error
        except OutputBusyError:
            self._remove_folders()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._release()

    def require_free(self) -> None:
        """Raises OutputBusyError if another process holds the lock now. A file that a killed process left is removed."""
        if self.path.exists():
            with self:
                pass

    def _tried(self) -> int:
        """The handle of the lock file, once it is locked; -1 to try again."""
        try:
            handle, made = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
        except FileExistsError:
            try:
                handle, made = os.open(self.path, os.O_RDWR), False
            except FileNotFoundError:
                return -1
        if self._locked(handle):
            # A holder that ends removes the file, after which a lock on it excludes nobody.
            if _is_same(handle, self.path):
                return handle
        elif made:
            self.say(f"The file system of {self.output} gives no locks. {self.path} marks that it is being written.")
            return handle
        else:
            self._remove_dead(handle)
        os.close(handle)
        return -1

    def _locked(self, handle: int) -> bool:
        """Lock an open file. False if there are no locks here.

        Raises OutputBusyError if another process has locked it.
        """
        if fcntl is None:
            return False
        try:
            # Not flock, whose lock worker processes inherit; they may outlive a killed process by seconds.
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in WITHOUT_LOCKS:
                return False
            busy = error.errno in (errno.EACCES, errno.EAGAIN)
            message = self._busy(_holder(handle)) if busy else ""
            os.close(handle)
            if busy:
                raise OutputBusyError(message) from error
            raise
        return True

    def _busy(self, holder: Holder | None, remedy: str = "") -> str:
        who = f" ({holder})" if holder else ""
        return f"{self.output} is being written by another ctcovid{who}. Wait for it, or choose another output.{remedy}"

    def _remove_dead(self, handle: int) -> None:
        """Without locks: remove the file of a holder that has ended.

        Raises OutputBusyError if that is not certain.
        """
        holder = _holder(handle)
        if holder is None or holder.system != realm() or not is_dead_here(holder.process):
            os.close(handle)
            raise OutputBusyError(self._busy(holder, f" If that process has ended, remove {self.path}."))
        # Renamed first: of two processes that find the same file, only one may remove it.
        aside = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):
            self.path.rename(aside)
            if not _is_same(handle, aside):
                aside.rename(self.path)
                return
            aside.unlink()

    def _release(self) -> None:
        if self._handle >= 0:
            with contextlib.suppress(OSError):
                if _is_same(self._handle, self.path):
                    self.path.unlink()
            os.close(self._handle)
            self._handle = -1
        self._remove_folders()

    def _make_folders(self) -> None:
        missing = [folder for folder in self.path.parents if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            self._made.append(folder)

    def _remove_folders(self) -> None:
        """Remove the folders that were made for the lock, if they are still empty."""
        with contextlib.suppress(OSError):
            while self._made:
                self._made.pop().rmdir()


@contextlib.contextmanager
def alone_at(output: Path, say: Callable[[str], None], claim: Callable[[], None]) -> Iterator[None]:
    """Lock an output while the block runs, once `claim` has checked that it may be written; another process may have made it meanwhile."""
    claim()
    with OutputLock(output, say):
        claim()
        yield


@contextlib.contextmanager
def in_turn(output: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Lock an output while the block runs, after waiting for as long as another process holds the lock, which is said once."""
    with contextlib.ExitStack() as locked:
        waiting = False
        while True:
            try:
                locked.enter_context(OutputLock(output, say))
                break
            except OutputBusyError as error:
                if not waiting:
                    say(f"Waiting: {error}")
                waiting = True
                time.sleep(ASK_AGAIN)
        yield


class LockedInTurn:
    """Context manager for many outputs that are written one after the other, and of which only two are locked at a time.

    File handles are few. As the next output is locked before the last one is free, another process that would write the same outputs
    always finds one of them locked.
    """

    def __init__(self, outputs: Sequence[Path], say: Callable[[str], None]) -> None:
        self.outputs, self.say = outputs, say
        self._held, self._locked = contextlib.ExitStack(), Path()

    def __enter__(self) -> LockedInTurn:
        """Raises OutputBusyError if another process is writing one of the outputs."""
        for output in self.outputs:
            OutputLock(output, self.say).require_free()
        self.turn_to(self.outputs[0])
        return self

    def turn_to(self, output: Path) -> None:
        """Lock `output` in place of the one before.

        Raises OutputBusyError if another process has locked it.
        """
        if output == self._locked:
            return
        before = self._held
        with contextlib.ExitStack() as held:
            held.enter_context(OutputLock(output, self.say))
            self._held, self._locked = held.pop_all(), output
        before.close()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._held.close()


def _is_same(handle: int, path: Path) -> bool:
    """Whether an open file is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _holder(handle: int) -> Holder | None:
    """The record in a lock file; None if its process has not written it yet."""
    try:
        found = json.loads(os.pread(handle, LONGEST, 0))
        return Holder(str(found["host"])[:80], int(found["process"]), str(found["since"])[:40], str(found["system"]))
    except (ValueError, TypeError, KeyError):
        return None
