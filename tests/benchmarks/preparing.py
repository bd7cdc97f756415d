"""How fast prepare is as a whole, for each format, against the bound: what the decoders take alone.

    python tests/benchmarks/preparing.py                    # a synthetic chest of 512 pixels, written in each format
    python tests/benchmarks/preparing.py --pictures FOLDER  # a folder of slices of your own, written in each format

CPU time of all processes of ``ctcovid prepare`` together, so that other work on the machine counts little: finding, probing, decoding,
judging, packing and writing. It is run on few scans and on many, alternately, and the difference is divided by the slices in between, so
that starting Python counts nothing, as it does in a data set of 137,256 slices (Table 1). Decoder and deflating alone get as many slices as
the difference, since a machine that others use is fast for moments that a long run cannot catch; all are the best of several rounds. The
second share is of decoding and deflating together, without which there is no such file. "Size" is the file's growth against what zlib's
level 1 would have made of the same slices.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from isal import isal_zlib
from reading import FORMATS, asked, rate

from ctcovid.scans.discover import find_scans
from ctcovid.volumes.chunk import LEVEL
from ctcovid.volumes.reader import VolumesFile

# Slices of the paper's Table 1, and the cores and minutes that they may take.
PAPER, CORES = 137_256, 2
FEW = 2


def dataset(root: Path, greys: np.ndarray, write: Callable[[Path, np.ndarray], None], scans: int) -> Path:
    """A data set of patients who all have the same scan, once on the disk."""
    first = root / "NCP" / "0" / "1"
    first.mkdir(parents=True)
    write(first, greys)
    for number in range(1, scans):
        folder = root / "NCP" / str(number) / "1"
        folder.mkdir(parents=True)
        for path in first.iterdir():
            os.link(path, folder / path.name)
    return root


def cpu_seconds(data: Path, output: Path, size: int, workers: int) -> float:
    """CPU time of `ctcovid prepare` and of all its processes."""
    line = [sys.executable, "-m", "ctcovid", "prepare", data, "--output", output, "--size", size, "--workers", workers, "--overwrite"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([str(word) for word in line], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(
    folder: Path,
    greys: np.ndarray,
    write: Callable[[Path, np.ndarray], None],
    decoder: Callable[[Path], object],
    scans: int,
    rounds: int,
    workers: int = 1,
) -> tuple[float, float, float, float]:
    """Slices per second of CPU time of the decoder, of ISA-L and of the whole, and the size of the file against that of gzip alone."""
    few, many = (dataset(folder / str(count), greys, write, count) for count in (FEW, FEW + scans))
    (scan,) = find_scans([few / "NCP" / "0" / "1"])
    files, slices = dict.fromkeys(scan.slices), scans * len(greys)

    def decode() -> None:
        for _ in range(scans):
            for path in files:
                decoder(path)

    def deflate() -> None:
        for _ in range(scans):
            for pixels in greys:
                isal_zlib.compress(pixels, LEVEL)

    decoded, deflated, took = 0.0, 0.0, {few: float("inf"), many: float("inf")}
    for _ in range(rounds):
        decoded, deflated = max(decoded, rate(decode, slices, 1)), max(deflated, rate(deflate, slices, 1))
        for data in took:
            took[data] = min(took[data], cpu_seconds(data, folder / f"{data.name}.h5", greys.shape[1], workers))
    file = VolumesFile(folder / f"{many.name}.h5")
    kept = sum(row.slice_count for row in file.rows)
    pixels = [file.read(number, 1).tobytes() for number in range(file.rows[0].slice_count)]
    gzip = sum(len(zlib.compress(one, 1)) for one in pixels) * kept / len(pixels)
    return decoded, deflated, slices / (took[many] - took[few]), file.path.stat().st_size / gzip


def main() -> None:
    options, greys = asked(__doc__, scans=40)
    headings = "decoder, slices/s", "ISA-L, slices/s", "prepare, slices/s", "share", "of both", "size"
    print(f"| format | {' | '.join(headings)} | {PAPER:,} slices on {CORES} cores, minutes |")
    print("| --- |" + " ---: |" * (len(headings) + 1))
    for name in options.format or FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            decoded, deflated, prepared, size = measure(Path(folder), greys, *FORMATS[name], options.scans, options.rounds)
        minutes, both = PAPER / prepared / CORES / 60, 1 / (1 / decoded + 1 / deflated)
        shares = f"{prepared / decoded:.0%} | {prepared / both:.0%}"
        print(f"| {name} | {decoded:.0f} | {deflated:.0f} | {prepared:.0f} | {shares} | {size - 1:+.1%} | {minutes:.1f} |", flush=True)


if __name__ == "__main__":
    main()
