"""How fast scans of each format are read, against the bound: what their decoder takes alone.

    python tests/benchmarks/reading.py                    # a synthetic chest of 512 pixels, written in each format
    python tests/benchmarks/reading.py --pictures FOLDER  # a folder of slices of your own, written in each format

Times are CPU time of one process, so that other work on the machine counts little; each is the best of several rounds. "Decoder" is the
library that reads the file, from the file to an array of its own values; "read" is what ctcovid makes of it, oriented grey slices of 512
pixels; "packed" has them compressed for volumes.h5 as well. Where a whole scan lies in one file, a slice takes its share.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from ctcovid.phantom.chest import ScanKey, slices_of_chest
from ctcovid.scans.discover import find_scans
from ctcovid.scans.read import read_slices, scan_format, square
from ctcovid.scans.scan import Scan
from ctcovid.scans.window import LUNG
from ctcovid.volumes.encode import BATCH, Job, encode_slices

SIZE, SLICES = 512, 24
SEED = 6
BLACK = -1350


def write_pictures(folder: Path, greys: np.ndarray, ending: str) -> None:
    for number, pixels in enumerate(greys):
        Image.fromarray(pixels).save(
            folder / f"{number:04d}.{ending}", **({"compression": "tiff_adobe_deflate"} if ending == "tif" else {})
        )


def write_volume(folder: Path, greys: np.ndarray, name: str) -> None:
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(hounsfield(greys)[::-1]), str(folder / name), useCompression=True)


def write_dicom(folder: Path, greys: np.ndarray, syntax: str) -> None:
    for number, values in enumerate(hounsfield(greys)):
        header = pydicom.Dataset()
        header.file_meta = FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.SOPClassUID, header.SOPInstanceUID, header.Modality = CTImageStorage, f"1.2.3.{number}", "CT"
        header.StudyInstanceUID, header.SeriesInstanceUID, header.SeriesNumber = "1.2", "1.2.3", 1
        header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        header.ImagePositionPatient, header.ImageOrientationPatient = [0, 0, -float(number)], [1, 0, 0, 0, 1, 0]
        header.PixelSpacing, header.RescaleSlope, header.RescaleIntercept = [0.7, 0.7], 1, BLACK
        header.Rows, header.Columns, header.SamplesPerPixel, header.PhotometricInterpretation = *values.shape, 1, "MONOCHROME2"
        header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 12, 11, 0
        stored = np.clip(values - BLACK, 0, 4095).astype(np.uint16)
        header.PixelData = stored.tobytes()
        if syntax == RLELossless:
            header.compress(RLELossless, generate_instance_uid=False)
        elif syntax == JPEG2000Lossless:
            picture = io.BytesIO()
            Image.fromarray(stored).save(picture, "JPEG2000", irreversible=False, no_jp2=True)
            header.PixelData = encapsulate([picture.getvalue()])
            header["PixelData"].VR = "OB"
            header.file_meta.TransferSyntaxUID = JPEG2000Lossless
        header.save_as(folder / f"{number}.dcm", enforce_file_format=True)


def hounsfield(greys: np.ndarray) -> np.ndarray:
    return np.rint(greys * (LUNG.width / 255) + LUNG.level - LUNG.width / 2).astype(np.int16)


def by_pillow(path: Path) -> object:
    with Image.open(path) as image:
        return np.asarray(image)


def by_itk(path: Path) -> object:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))


FORMATS: dict[str, tuple[Callable[[Path, np.ndarray], None], Callable[[Path], object]]] = {
    "PNG": (lambda folder, greys: write_pictures(folder, greys, "png"), by_pillow),
    "JPEG": (lambda folder, greys: write_pictures(folder, greys, "jpg"), by_pillow),
    "TIFF, deflate": (lambda folder, greys: write_pictures(folder, greys, "tif"), by_pillow),
    "BMP": (lambda folder, greys: write_pictures(folder, greys, "bmp"), by_pillow),
    "DICOM": (lambda folder, greys: write_dicom(folder, greys, ExplicitVRLittleEndian), by_itk),
    "DICOM, RLE": (lambda folder, greys: write_dicom(folder, greys, RLELossless), by_itk),
    "DICOM, JPEG 2000": (lambda folder, greys: write_dicom(folder, greys, JPEG2000Lossless), by_itk),
    "NIfTI, gzip": (lambda folder, greys: write_volume(folder, greys, "scan.nii.gz"), by_itk),
    "NRRD, gzip": (lambda folder, greys: write_volume(folder, greys, "scan.nrrd"), by_itk),
    "MetaImage, zlib": (lambda folder, greys: write_volume(folder, greys, "scan.mha"), by_itk),
}


def rate(work: Callable[[], object], slices: int, rounds: int) -> float:
    """Slices per second of CPU time, in the best of several rounds."""
    times = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return slices / min(times)


def whole(scan: Scan) -> np.ndarray:
    """All slices of a scan, uint8 (S, SIZE, SIZE)."""
    scale = scan_format(scan).scale
    return np.stack([square(one.pixels, SIZE) for piece in scan.pieces(1) for one in read_slices(piece, scale)])


def measure(folder: Path, decoder: Callable[[Path], object], rounds: int) -> tuple[float, float, float]:
    """Slices per second of the decoder alone, read, and packed."""
    (scan,) = find_scans([folder])
    scale, files = scan_format(scan).scale, dict.fromkeys(scan.slices)
    decoded = rate(lambda: [decoder(path) for path in files], len(scan.slices), rounds)
    read = rate(lambda: whole(scan), len(scan.slices), rounds)
    packed = rate(lambda: [encode_slices(Job(part, scale, SIZE, LUNG)) for part in scan.pieces(BATCH)], len(scan.slices), rounds)
    return decoded, read, packed


def asked(description: str | None, scans: int = 0) -> tuple[argparse.Namespace, np.ndarray]:
    """The options of a benchmark over formats, with --scans where there are some by default, and a scan's slices, uint8 (S, 512, 512)."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, help="folder of slices to write in each format")
    parser.add_argument("--slices", type=int, default=SLICES)
    if scans:
        parser.add_argument("--scans", type=int, default=scans)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--format", action="append", choices=list(FORMATS), help="only this one; may be given several times")
    options = parser.parse_args()
    if options.pictures:
        return options, whole(find_scans([options.pictures])[0])[: options.slices]
    return options, np.stack([drawn.pixels for drawn in slices_of_chest("NCP", options.slices, SIZE, ScanKey(SEED, 0))])


def main() -> None:
    options, greys = asked(__doc__)
    print("| format | decoder, slices/s | read, slices/s | share | packed, slices/s |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name in options.format or FORMATS:
        write, decoder = FORMATS[name]
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), greys)
            decoded, read, packed = measure(Path(folder), decoder, options.rounds)
        print(f"| {name} | {decoded:.0f} | {read:.0f} | {read / decoded:.0%} | {packed:.0f} |", flush=True)


if __name__ == "__main__":
    main()
