"""Commands of ctcovid in forked processes whose file operations fail, and what they leave: for the tests and for injected.py."""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SHIM = Path(__file__).with_name("shim.c")
# What fails with an error: see shim.c.
EVERYTHING, WRITES = "orwmlnstd", "own"
ERRORS = {
    "ESTALE": EVERYTHING,
    "EIO": EVERYTHING,
    "ENOSPC": WRITES,
    "EDQUOT": WRITES,
    "EFBIG": "w",
    "EMFILE": "od",
    "ENOMEM": "omd",
    "ETIMEDOUT": EVERYTHING,
    "EROFS": WRITES,
}


@dataclass(frozen=True)
class Injection:
    """A fault: from its `at`-th call on, `count` calls (0: all) on paths below one of `prefixes` end with the error."""

    name: str
    at: int
    count: int
    prefixes: tuple[Path, ...]

    def environment(self) -> dict[str, str]:
        return {
            "FAULT_PREFIX": ":".join(map(str, self.prefixes)),
            "FAULT_ERRNO": str(getattr(errno, self.name)),
            "FAULT_KINDS": ERRORS[self.name],
            "FAULT_AT": str(self.at),
            "FAULT_FOR": str(self.count),
        }


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, what it printed, and the number of calls that could have failed."""

    code: int
    stdout: str
    stderr: str
    calls: int


def compiled(folder: Path) -> Path | None:
    """The shim, compiled into `folder`; None without a C compiler, or where nothing can be preloaded."""
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None or not sys.platform.startswith("linux"):
        return None
    library = folder / "shim.so"
    subprocess.run([compiler, "-O1", "-w", "-shared", "-fPIC", "-o", library, SHIM, "-ldl"], check=True)
    return library


class OneProcess:
    """In place of worker processes, whose start takes seconds, and in which the shim would count anew."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __enter__(self) -> OneProcess:
        return self

    def __exit__(self, *failure: object) -> None:
        pass

    def map(self, work: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        return map(work, tasks)


def warmed() -> None:
    """Import all that the commands need, before the first fork."""
    import h5py
    import pydicom
    import SimpleITK
    import torch
    from PIL import Image

    from ctcovid.commands import explain, predict, prepare

    Image.init()
    torch.set_num_threads(1)
    assert h5py and pydicom and SimpleITK and explain and predict
    prepare.Workers = OneProcess  # type: ignore[assignment, misc]


def run(arguments: list[object], folder: Path, fault: Injection | None, seconds: int = 240) -> Ended:
    """A command line of ctcovid in a forked process in which the shim is preloaded."""
    out, told, counted = (folder / name for name in ("stdout.txt", "stderr.txt", "calls.txt"))
    for path in (out, told, counted):
        path.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        code = 70
        try:
            signal.alarm(seconds)
            for number, path in ((1, out), (2, told)):
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(handle, number)
                os.close(handle)
            count_file = os.open(counted, os.O_WRONLY | os.O_CREAT)
            code = _command([str(one) for one in arguments], fault, count_file)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    calls = int(counted.read_text() or 0) if counted.exists() else 0
    return Ended(code, out.read_text(errors="replace"), told.read_text(errors="replace"), calls)


def _command(arguments: list[str], fault: Injection | None, count_file: int) -> int:
    from ctcovid import cli

    shim = ctypes.CDLL(None)
    shim.fault_begin.restype = ctypes.c_long
    shim.fault_begin()
    os.environ.update(fault.environment() if fault else {"FAULT_KINDS": ""})
    sys.argv = ["ctcovid", *arguments]
    code = 0
    try:
        cli.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    os.environ["FAULT_KINDS"] = ""
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(count_file, str(shim.fault_begin()).encode())
    return code


def volumes_content(path: Path) -> dict[str, tuple[str, ...]]:
    """By source, what a volumes file holds of a scan: names, part, and a hash of its slices."""
    import h5py

    from ctcovid.volumes.reader import VolumesFile

    file = VolumesFile(path)
    content = {}
    with h5py.File(path, "r", locking=False) as opened:
        for row in file.rows:
            pixels = opened["slices"][row.first_slice : row.first_slice + row.slice_count]
            digest = hashlib.sha256(pixels.tobytes()).hexdigest()
            content[row.source] = (row.id, row.patient, row.label, row.split, row.image_kind, row.checks, digest)
    content |= {row.source: (row.id, row.patient, row.label, "left out", row.checks) for row in file.left_out}
    return content


def explained(folder: Path) -> dict[str, str]:
    """By name of an explanation, a hash of its maps."""
    content = {}
    for manifest in folder.glob("*/manifest.json"):
        with np.load(manifest.with_name("saliency.npz")) as maps:
            digest = hashlib.sha256(b"".join(maps[name].tobytes() for name in sorted(maps.files))).hexdigest()
        content[manifest.parent.name] = digest
    return content


def as_dicom(pictures: list[np.ndarray], folder: Path, number: int, compress: bool, ending: str = ".dcm") -> None:
    """Slices as a DICOM series whose lung window shows the same greys."""
    import pydicom
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless

    folder.mkdir(parents=True)
    for place, picture in enumerate(pictures):
        one = pydicom.Dataset()
        one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, f"1.2.{number}.{place + 1}"
        one.StudyInstanceUID, one.SeriesInstanceUID, one.SeriesNumber = f"1.2.{number}", f"1.2.{number}.0", 1
        one.Modality, one.PatientID, one.InstanceNumber = "CT", f"P{number}", place + 1
        one.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        one.ImagePositionPatient, one.ImageOrientationPatient = [0.0, 0.0, 500.0 - 10 * place], [1, 0, 0, 0, 1, 0]
        one.PixelSpacing, one.SliceThickness = [4.0, 4.0], 10.0
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.Rows, one.Columns = picture.shape
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
        one.RescaleSlope, one.RescaleIntercept, one.RescaleType = 1, 0, "HU"
        one.PixelData = (picture.astype(np.float64) * 1500 / 255 - 1350).round().astype("<i2").tobytes()
        one["PixelData"].VR = "OW"
        one.file_meta = pydicom.dataset.FileMetaDataset()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        if compress:
            one.compress(RLELossless, generate_instance_uid=False)
        pydicom.dcmwrite(folder / f"IM{place:04d}{ending}", one, enforce_file_format=True)


def make_data(root: Path, patients: int = 4, size: int = 64) -> Path:
    """A small data set of synthetic chests: per class a scan of pictures, of DICOM, of compressed DICOM without endings, and of NIfTI."""
    import SimpleITK
    from PIL import Image

    from ctcovid.phantom.dataset import Parameters, write_dataset

    write_dataset(root, Parameters(patients, size, seed=1, slices=(12, 13), scans=1, extension="png"))
    number = 0
    for label in sorted(path for path in root.iterdir() if path.is_dir() and path.name != "truth"):
        for kind, patient in enumerate(sorted(label.iterdir())):
            number += 1
            scan = next(path for path in patient.iterdir() if path.is_dir())
            pictures = [np.asarray(Image.open(path)) for path in sorted(scan.iterdir())]
            if kind % 4 in (1, 2):
                shutil.rmtree(scan)
                as_dicom(pictures, scan, number, compress=kind % 4 == 2, ending=".dcm" if kind % 4 == 1 else "")
            elif kind % 4 == 3:
                shutil.rmtree(scan)
                # Right, back, up, from the lowest slice on.
                image = SimpleITK.GetImageFromArray(np.stack(pictures)[::-1])
                image.SetSpacing((4.0, 4.0, 10.0))
                SimpleITK.WriteImage(image, str(patient / f"{scan.name}.nii.gz"))
    return root


def with_count(fault: Injection, at: int, count: int) -> Injection:
    return dataclasses.replace(fault, at=at, count=count)
