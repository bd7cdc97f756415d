"""Files as strangers may send them: sound ones of each kind, damaged at random, and the readers that must refuse them in a sentence.

python tests/strangers/damage.py 3600 [KIND]   # for so many seconds; what a reader does not refuse properly is kept beside, and named
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctcovid.base.errors import CtcovidError

# Of one file: seconds of CPU time, and bytes of memory beyond what the process has.
SECONDS, MEMORY = 10, 2 << 30
NUMBERS = (b"\xff" * 8, b"\0" * 8, (1 << 40).to_bytes(8, "little"), (1 << 62).to_bytes(8, "little"), b"\x7f\xff\xff\xff", b"9" * 5000)
PIECES = (
    b"NaN",
    b"-1",
    b"1e999",
    b"null",
    b"[" * 3000,
    b'{"a":' * 3000,
    b"\x1b[31m",
    b"\xff\xfe",
    b"\0",
    b'"',
    b",",
    b"\n",
    b"../../etc/passwd",
    b"=",
)


@dataclass(frozen=True)
class Kind:
    """One kind of file: how a sound one is made at a path, the place of what is damaged, and who reads it."""

    make: Callable[[Path], None]
    read: Callable[[Path], object]
    name: str


def damaged(content: bytes, seed: int) -> bytes:
    """The content with one to four changes: bytes, numbers, pieces put in or taken out, or the end cut off."""
    chance, found = random.Random(seed), bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 4))):
        # Most of a file is padding or pixels; what matters stands where bytes differ from their neighbours.
        at = chance.randrange(len(found) + 1) if len(found) else 0
        for _ in range(20):
            if found[max(at - 8, 0) : at + 8].strip(b"\0"):
                break
            at = chance.randrange(len(found) + 1)
        how = chance.randrange(6)
        if how == 0:
            found[at : at + 1] = bytes([chance.randrange(256)])
        elif how == 1:
            found[at : at + 8] = chance.choice(NUMBERS)
        elif how == 2:
            found[at:at] = chance.choice(PIECES)
        elif how == 3:
            found[at : at + chance.randrange(1, 40)] = b""
        elif how == 4:
            found[at:at] = found[at : at + chance.randrange(1, 400)]
        elif chance.random() < 0.3:
            del found[at:]
    return bytes(found)


def outcome(kind: Kind, path: Path) -> str:
    """What comes of reading a file in a process of its own: ``read``, ``refused``, or what should not have happened."""
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        said = "ended"
        try:
            has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (has + MEMORY, resource.RLIM_INFINITY))
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            kind.read(path)
            said = "read"
        except CtcovidError as error:
            said = "refused" if error.exit_code in (2, 3, 6) else f"exit code {error.exit_code}: {error}"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        finally:
            os.write(writing, said.encode("utf-8", "replace")[:2000])
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answers:
        said = answers.read().decode("utf-8", "replace")
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return said if not status else f"ended by {signal.Signals(-status).name}"


# --- the kinds


def _volumes(path: Path) -> None:
    from ctcovid.volumes.chunk import chunk_bytes
    from ctcovid.volumes.encode import Chunk
    from ctcovid.volumes.layout import FileInfo, ScanRow
    from ctcovid.volumes.writer import VolumesWriter

    path.unlink(missing_ok=True)
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    chunk = Chunk(chunk_bytes(pixels), 0, None)  # type: ignore[arg-type]
    with VolumesWriter(path, FileInfo(2, 16, ["NCP", "CP"], "NCP", {"window": [-600, 1500], "seed": 1})) as writer:
        for number, (label, part) in enumerate((("NCP", "train"), ("CP", "test"), ("NCP", "valid"))):
            row = ScanRow("1", f"p{number}", label, part, 0, 4, "complete", f"{label}/p{number}/1", '{"bits": 8, "findings": []}', 0)
            writer.add(row, [chunk] * 4)
        writer.finish()


def _read_volumes(path: Path) -> object:
    from ctcovid.volumes.reader import VolumesFile

    file = VolumesFile(path)
    return [file.read(row.first_slice, row.slice_count) for row in file.rows]


def _card(path: Path) -> None:
    digest = "0" * 64
    card = {"format_version": 1, "architecture": "r3d18", "classes": ["NCP", "CP"], "positive": "NCP", "depth": 4, "size": 32}
    card |= {"scaling": {"offset": 0.0}, "data": {"path": "v.h5", "fingerprint": "x"}, "created": "2021-07-23T00:00:00+00:00"}
    card |= {"calibration": {"temperature": 1.5}, "features": {"threshold": 1.0, "sha256": digest}, "slice_spacing": [1, 2.5]}
    card |= {"recipe": {"epochs": 2, "batch": 8}, "kept": {"epoch": 1, "valid_accuracy": 0.5}, "split": {"train": ["1"], "test": []}}
    path.write_text(json.dumps(card | {"weights_sha256": digest, "window": [-600, 1500]}, indent=1))


def _read_card(path: Path) -> object:
    from ctcovid.models.saved_model import read_card
    from ctcovid.reports.card import model_card
    from ctcovid.reports.checklists import Known

    card = read_card(path.parent)
    return model_card("x", card, [], [], Known(False, False, False, False, False, False))


def _state() -> object:
    import torch

    from ctcovid.training.checkpoint import TrainingState

    class Network:
        module = torch.nn.Linear(3, 2)

    return TrainingState(Network(), torch.optim.Adam(Network.module.parameters()))  # type: ignore[arg-type]


def _checkpoint(path: Path) -> None:
    import torch

    from ctcovid.training.checkpoint import save_checkpoint

    state = _state()
    state.network.module(torch.ones(1, 3)).sum().backward()  # type: ignore[attr-defined]
    state.optimiser.step()  # type: ignore[attr-defined]
    save_checkpoint(path, state, {"arch": "r3d18", "data": "x", "ranks": 1, "pretrained": None})  # type: ignore[arg-type]


def _read_checkpoint(path: Path) -> object:
    from ctcovid.training.checkpoint import read_checkpoint, restore

    return restore(read_checkpoint(path), _state(), 10)  # type: ignore[arg-type]


def _predictions(path: Path) -> None:
    path.write_text("patient,scan,volume,label,p_NCP,p_CP\n" + "".join(f"{n},s,{n},NCP,0.{n},{1 - n / 10}\n" for n in range(1, 9)))


def _read_predictions(path: Path) -> object:
    from ctcovid.evaluation.predictions import read_predictions

    return read_predictions(path)


def _lists(path: Path) -> None:
    path.write_text("label,patient,scan,slices,split,imgpath\n" + "".join(f"NCP,{n},{n},40,train,NCP/{n}/{n}/0.png\n" for n in range(9)))


def _read_lists(path: Path) -> object:
    from ctcovid.volumes.listing import read_exclusions, read_lesions, read_plan
    from ctcovid.volumes.split import read_split_file

    refused = None
    for read in (
        read_exclusions,
        read_lesions,
        lambda one: read_plan(one, None),
        lambda one: read_split_file(one, {str(n): None for n in range(9)}),
    ):
        try:
            read(path)
        except CtcovidError as error:
            refused = error
            if error.exit_code not in (2, 3):
                raise
    return refused


def _history(path: Path) -> None:
    from ctcovid.training.history import EpochRow, write_history

    write_history(path, [EpochRow(n, 0.1, 0.5, 0.5, 0.5, 0.5) for n in range(1, 6)])


def _read_history(path: Path) -> object:
    from ctcovid.reports.plots import history_plots
    from ctcovid.training.history import read_history

    return history_plots("x", read_history(path))


def _settings(path: Path) -> None:
    path.write_text('epochs = 3\nseed = 1\n[train]\narch = "r3d18"\nlearning-rate = 1e-3\naugment = true\n[prepare]\nsplit = "80/10/10"\n')


def _read_settings(path: Path) -> object:
    import contextlib

    import typer

    from ctcovid import cli

    command = typer.main.get_command(cli.app)
    with contextlib.suppress(typer.BadParameter, SystemExit):
        try:
            command(["train", "--config", str(path), "--data", "/nosuch.h5"], standalone_mode=False, prog_name="ctcovid")
        except Exception as error:
            # Those of the click that typer carries are of other classes, by version.
            if type(error).__name__ not in ("BadParameter", "Exit", "UsageError", "NoSuchOption"):
                raise
    return None


def _dicom(path: Path) -> None:
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    header = pydicom.Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SOPClassUID, header.SOPInstanceUID, header.Modality = CTImageStorage, "1.2.3.4", "CT"
    header.StudyInstanceUID, header.SeriesInstanceUID, header.SeriesNumber, header.InstanceNumber = "1.2", "1.2.3", 1, 1
    header.ImagePositionPatient, header.ImageOrientationPatient, header.PixelSpacing = [0, 0, 0], [1, 0, 0, 0, 1, 0], [1, 1]
    header.Rows, header.Columns, header.SamplesPerPixel, header.PhotometricInterpretation = 16, 16, 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 12, 11, 0
    header.RescaleSlope, header.RescaleIntercept = 1, -1024
    header.PixelData = np.arange(256, dtype="<u2").tobytes()
    header.save_as(path, enforce_file_format=True)


def _nifti(path: Path) -> None:
    import nibabel

    nibabel.save(nibabel.Nifti1Image(np.arange(16 * 16 * 6, dtype=np.int16).reshape(16, 16, 6) - 1000, np.diag([1, 1, 2, 1])), path)


def _mask(path: Path) -> None:
    import nibabel

    values = np.zeros((16, 16, 6), np.uint8)
    values[3:6, 4:9, 2:4] = 1
    nibabel.save(nibabel.Nifti1Image(values, np.diag([1, 1, 2, 1])), path)


def _picture(path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(path)


def _metaimage(path: Path) -> None:
    import SimpleITK

    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.arange(16 * 16 * 6, dtype=np.int16).reshape(6, 16, 16)), str(path))


def _read_scan(path: Path) -> object:
    from ctcovid.scans.discover import find_scans
    from ctcovid.scans.scale import GREY
    from ctcovid.scans.window import LUNG
    from ctcovid.volumes.encode import Job, encode_slices, probe_scan

    where = path.parent if path.suffix == ".png" else path
    return [(probe_scan(scan), encode_slices(Job(scan, GREY, 32, LUNG))) for scan in find_scans([where]) if scan.slices]


def _read_mask(path: Path) -> object:
    from ctcovid.scans.masks import read_mask
    from ctcovid.scans.scan import Scan

    names = tuple(path.parent / f"{number:04d}.png" for number in range(6))
    return read_mask(path, Scan("1", "1", "NCP", path.parent, names, "1"), 16, (16, 16))


KINDS = {
    "volumes": Kind(_volumes, _read_volumes, "volumes.h5"),
    "model card": Kind(_card, _read_card, "model.json"),
    "checkpoint": Kind(_checkpoint, _read_checkpoint, "last.pt"),
    "predictions": Kind(_predictions, _read_predictions, "predictions.csv"),
    "lists": Kind(_lists, _read_lists, "scans.csv"),
    "history": Kind(_history, _read_history, "metrics.csv"),
    "settings": Kind(_settings, _read_settings, "settings.toml"),
    "DICOM": Kind(_dicom, _read_scan, "slice.dcm"),
    "NIfTI": Kind(_nifti, _read_scan, "scan.nii"),
    "MetaImage": Kind(_metaimage, _read_scan, "scan.mha"),
    "NRRD": Kind(_metaimage, _read_scan, "scan.nrrd"),
    "picture": Kind(_picture, _read_scan, "0.png"),
    "mask": Kind(_mask, _read_mask, "mask.nii"),
}


def main(seconds: float, names: list[str]) -> int:
    """Damage files until the time is over. Returns how many had an outcome that should not be."""
    folder, first, bad = Path(tempfile.mkdtemp(prefix="ctcovid-damage-")), random.randrange(1 << 30), 0
    print(f"Files that matter are kept in {folder}; the first seed is {first}.", flush=True)
    for name in names or KINDS:
        kind, end, count = KINDS[name], time.monotonic() + seconds / len(names or KINDS), 0
        path = folder / kind.name
        kind.make(path)
        sound = path.read_bytes()
        # In this process, so that what it imports is there for all.
        kind.read(path)
        while time.monotonic() < end:
            count += 1
            path.write_bytes(damaged(sound, first + count))
            said = outcome(kind, path)
            if said not in ("read", "refused"):
                bad += 1
                kept = folder / f"{first + count}-{kind.name}"
                path.rename(kept)
                print(f"{name}: {kept.name}: {said[:300]}", flush=True)
        print(f"{name}: {count} files", flush=True)
        path.unlink(missing_ok=True)
    return bad


if __name__ == "__main__":
    sys.exit(bool(main(float(sys.argv[1]), sys.argv[2:])))
