"""Faults of the machine: recognised through libraries, and told with the remedy."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import h5py
import pytest

from ctcovid.base.errors import EXIT_UNEXPECTED, InputError
from ctcovid.base.faults import FAULTS, MachineFaultError, is_absent, machine_fault, raise_machine_fault
from ctcovid.base.files import atomic, require_there
from ctcovid.base.temporaries import scratch_file, temporary


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.ENOSPC, "TMPDIR"),
        (errno.EDQUOT, "quota"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ESTALE, "network file system"),
        (errno.EIO, "Check the disk"),
        (errno.ENOMEM, "Ask for more memory"),
        (errno.EROFS, "read-only"),
    ],
)
def test_fault_names_the_path_and_the_limit_or_setting(code: int, remedy: str) -> None:
    fault = machine_fault(OSError(code, os.strerror(code), "/data/1.png"))
    assert fault is not None and "/data/1.png" in fault.told() and remedy in fault.told()


def test_every_fault_has_a_sentence_of_its_own() -> None:
    for code in FAULTS:
        fault = machine_fault(OSError(code, "x", "/data/1.png"))
        assert fault is not None and fault.told().endswith(".") and "{" not in fault.told()


def test_fault_is_recognised_behind_the_error_of_a_library() -> None:
    try:
        try:
            raise OSError(errno.ESTALE, "Stale file handle")
        except OSError as error:
            raise InputError("1.png: damaged") from error
    except InputError as error:
        fault = machine_fault(error)
    assert fault is not None and fault.code == errno.ESTALE


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("Can't write data (file write failed: time = 1, filename = 'v.h5', errno = 28, error message = 'x')", errno.ENOSPC),
        ("ITK ERROR: NiftiImageIO: could not open\nReason: Too many open files", errno.EMFILE),
        ("std::bad_alloc", errno.ENOMEM),
    ],
)
def test_fault_is_recognised_in_the_words_of_a_library(said: str, code: int) -> None:
    fault = machine_fault(RuntimeError(said))
    assert fault is not None and fault.code == code


def test_full_disk_is_recognised_where_hdf5_writes() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises((OSError, RuntimeError)) as raised, h5py.File("/dev/full", "w", locking=False) as file:
        file["values"] = list(range(1000))
    assert machine_fault(raised.value) is not None


@pytest.mark.parametrize("error", [ValueError("not a number"), OSError("image file is truncated"), OSError(errno.ENOENT, "No such file")])
def test_damage_and_absence_are_no_faults_of_the_machine(error: Exception) -> None:
    assert machine_fault(error) is None
    assert is_absent(error) == (getattr(error, "errno", None) == errno.ENOENT)


def test_fault_ends_a_command_with_1_and_not_with_that_of_unusable_input() -> None:
    with pytest.raises(MachineFaultError) as raised:
        raise_machine_fault(MemoryError(), "/data")
    assert raised.value.exit_code == EXIT_UNEXPECTED and "memory" in str(raised.value)


def test_link_to_an_absent_file_is_not_called_no_such_file(tmp_path: Path) -> None:
    (tmp_path / "scan.nii").symlink_to(tmp_path / ".git" / "annex" / "key")
    with pytest.raises(InputError, match=r"scan\.nii links to .*key, which is not there.*datalad get"):
        require_there(tmp_path / "scan.nii")


def test_longest_names_leave_room_for_those_of_temporaries(tmp_path: Path) -> None:
    for name in ("n" * 250 + ".csv", "é" * 125 + ".csv"):
        with atomic(tmp_path / name) as path:
            path.write_text("whole", encoding="utf-8")
        assert (tmp_path / name).read_text(encoding="utf-8") == "whole"
        assert len(os.fsencode(temporary(tmp_path / name).name)) < 255


def test_scratch_file_needs_no_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(os, "memfd_create"):
        pytest.skip("no files in memory here")
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    with scratch_file() as path:
        path.write_bytes(b"frame")
        assert path.read_bytes() == b"frame"
