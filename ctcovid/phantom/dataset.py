"""A synthetic data set in the CC-CCII layout, with its irregularities and side files, and known lesions and defects."""

from __future__ import annotations

import csv
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from isal import isal_zlib
from PIL import Image

from ctcovid.base.errors import counted
from ctcovid.base.workers import Workers
from ctcovid.phantom import distributions
from ctcovid.phantom.chest import ScanKey, slices_of_chest
from ctcovid.phantom.defects import Defects, damage, odd_size, order_of
from ctcovid.phantom.lesions import DIFFICULTY
from ctcovid.scans.classes import CLASS_ORDER
from ctcovid.scans.discover import TRUTH

# As in CC-CCII.
MOST_SCANS = 14
SCANS, LESIONS, DEFECTS = "unzip_filenames.csv", "lesions_slices.csv", "defects.csv"


@dataclass(frozen=True)
class Parameters:
    """Parameters of a synthetic data set.

    Attributes
    ----------
    patients : of each class
    size : pixels per side
    difficulty : of the lesions, 0 (large and dense) to 1 (small and faint)
    slices : fewest and most slices of a scan, or None for CC-CCII's own distribution (16 to 664)
    scans : most scans of a patient
    extension : for all files, or None for CC-CCII's mix
    """

    patients: int
    size: int = 512
    seed: int = 0
    difficulty: float = DIFFICULTY
    slices: tuple[int, int] | None = None
    scans: int = MOST_SCANS
    extension: str | None = None
    defects: Defects = field(default_factory=Defects)

    def __post_init__(self) -> None:
        if not 0 <= self.difficulty <= 1:
            raise ValueError(f"difficulty {self.difficulty}: from 0 to 1")
        if self.slices is not None and not 2 <= self.slices[0] <= self.slices[1]:
            raise ValueError(f"slices {self.slices}: fewest and most, at least 2")


@dataclass(frozen=True)
class PlannedScan:
    """One scan to be written; `number` counts the scans of its patient."""

    label: str
    patient: int
    scan: int
    number: int
    slices: int
    extension: str
    defect: str

    def folder(self, root: Path) -> Path:
        return root / self.label / str(self.patient) / str(self.scan)


@dataclass(frozen=True)
class WrittenScan:
    """What the side files say about a scan: its files, those with a lesion, and its defect in words."""

    files: int
    lesions: list[str]
    detail: str


def plan(parameters: Parameters) -> list[PlannedScan]:
    """All scans of a data set, by class and patient. Each patient has one class and a number without padding; one of them is 0."""
    generator = np.random.default_rng([parameters.seed, 5])
    count = parameters.patients * len(CLASS_ORDER)
    numbers = generator.permutation(np.append(0, 1 + generator.choice(4 * count, count - 1, replace=False)))
    scans = []
    # Scans are numbered across patients as in the archive, with gaps.
    scan = int(generator.integers(90, 400))
    for index, patient in enumerate(numbers.tolist()):
        label = CLASS_ORDER[index // parameters.patients]
        for number in range(distributions.draw_scans(generator, parameters.scans)):
            slices = distributions.draw_slices(generator, parameters.slices)
            extension = parameters.extension or distributions.draw_extension(generator)
            scans.append(PlannedScan(label, patient, scan, number, slices, extension, ""))
            scan += int(generator.integers(1, 4))
    kinds = parameters.defects.assign(len(scans), generator)
    return [PlannedScan(**{**vars(item), "defect": kind}) for item, kind in zip(scans, kinds, strict=True)]


def write_dataset(root: Path, parameters: Parameters, workers: int = 1, advance: Callable[[int], None] | None = None) -> list[PlannedScan]:
    """Write a data set as CLASS/patient/scan/0000.png and so on, and the side files; `advance(1)` is called after each scan.

    Beside the class folders are `unzip_filenames.csv` and `lesions_slices.csv` as in CC-CCII, and `defects.csv` (kind, class,
    patient, scan, detail). Lesions are in `truth` as CLASS/patient/scan/0000.png, white on black, of the
    same size as the slices. Returns the scans. The same arguments write the same bytes with any number of `workers`.
    """
    scans = plan(parameters)
    write = partial(_write_scan, root, parameters)
    written: dict[int, WrittenScan] = {}
    # The longest first: begun last, a scan of 664 slices would keep all but one of the workers waiting for it.
    order = sorted(range(len(scans)), key=lambda number: -scans[number].slices)
    for number, one in zip(order, _each(write, [scans[number] for number in order], workers), strict=True):
        written[number] = one
        if advance is not None:
            advance(1)
    both = [(scan, written[number]) for number, scan in enumerate(scans)]
    rows = [(f"{scan.label}-1.zip", scan.label, scan.patient, scan.scan, one.files) for scan, one in both]
    _write_csv(root / SCANS, ("zip_file", "label", "patient_id", "scan_id", "n_slice"), rows)
    _write_csv(root / LESIONS, ("imgpath",), [(name,) for _, one in both for name in one.lesions])
    found = [(scan.defect, scan.label, scan.patient, scan.scan, one.detail) for scan, one in both if scan.defect]
    _write_csv(root / DEFECTS, ("kind", "class", "patient", "scan", "detail"), found)
    return scans


def _each(write: Callable[[PlannedScan], WrittenScan], scans: list[PlannedScan], workers: int) -> Iterator[WrittenScan]:
    if workers <= 1:
        yield from map(write, scans)
        return
    with Workers(workers) as pool:
        yield from pool.map(write, scans)


def _write_scan(root: Path, parameters: Parameters, scan: PlannedScan) -> WrittenScan:
    generator = np.random.default_rng([parameters.seed, scan.patient, 4, scan.number])
    order, detail = order_of(scan.defect, scan.slices, generator)
    positions: dict[int, list[int]] = {}
    for position, number in enumerate(order):
        positions.setdefault(number, []).append(position)
    # Some scans come as colour pictures with three equal channels.
    colour = scan.extension.lower() in ("jpg", "jpeg") and bool(generator.random() < 0.5)
    folder, masks = scan.folder(root), scan.folder(root / TRUTH)
    folder.mkdir(parents=True)
    masks.mkdir(parents=True)
    files, lesions = 0, []
    key = ScanKey(parameters.seed, scan.patient, scan.number)
    drawn = slices_of_chest(scan.label, scan.slices, parameters.size, key, parameters.difficulty)
    for number, item in enumerate(drawn):
        pixels = item.pixels
        if scan.defect == "masked":
            if not item.lung.any():
                continue
            pixels, positions[number] = pixels * item.lung, [files]
        picture, mask = Image.fromarray(pixels), Image.fromarray(item.lesion)
        if scan.defect == "odd_size":
            picture, mask = odd_size(picture), odd_size(mask)
        if colour:
            picture = picture.convert("RGB")
        for position in positions[number]:
            path = folder / f"{position:04d}.{scan.extension}"
            _save(picture, path)
            mask.save(masks / f"{position:04d}.png", compress_level=1)
            files += 1
            if item.lesion.any():
                lesions.append(path.relative_to(root).as_posix())
    if scan.defect == "corrupt":
        chosen = f"{int(generator.integers(files)):04d}.{scan.extension}"
        detail = damage(folder / chosen, generator)
    elif scan.defect == "masked":
        detail = f"{counted(scan.slices - files, 'slice')} without lung left out"
    elif scan.defect == "odd_size":
        detail = f"{picture.width}×{picture.height}"
    return WrittenScan(files, sorted(lesions), detail)


def _save(picture: Image.Image, path: Path) -> None:
    kind = path.suffix.lower()
    if kind in (".jpg", ".jpeg"):
        picture.save(path, "JPEG", quality=92)
    elif kind == ".png":
        path.write_bytes(_png(np.asarray(picture)))
    elif kind == ".tif":
        picture.save(path, "TIFF", compression="tiff_adobe_deflate")
    else:
        picture.save(path)


def _png(pixels: np.ndarray) -> bytes:
    """A PNG of uint8 (H, W). Pillow would take ten times as long for a file of the same size, a quarter of the time for a slice.

    Portable Network Graphics (PNG) Specification, third edition: one byte a row names its filter, 1 for the difference to the left.
    """
    height, width = pixels.shape
    rows = np.empty((height, width + 1), np.uint8)
    rows[:, 0], rows[:, 1] = 1, pixels[:, 0]
    np.subtract(pixels[:, 1:], pixels[:, :-1], out=rows[:, 2:])
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", isal_zlib.compress(rows, 1)), (b"IEND", b""))
    packed = (struct.pack(">I", len(data)) + name + data + struct.pack(">I", isal_zlib.crc32(name + data)) for name, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def _write_csv(path: Path, header: tuple[str, ...], rows: Iterable[tuple]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(header)
        table.writerows(rows)
