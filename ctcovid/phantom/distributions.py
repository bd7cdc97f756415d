"""How CC-CCII's scans are distributed: slices per scan, scans per patient, kinds of file.

Measured on 2,073 scans of 1,437 patients in the listing of HKBU-HPML/HKBU_HPML_COVID-19 (1,750 of them png). The three classes are
pooled: in the real data length of a scan and kind of file alone predict the class, and here they must not.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np

Kind = TypeVar("Kind", int, str)

# Slices of a scan, at these percentiles of all scans. CC-CCII has 5 mm scans of about 60 slices and thin ones of 120 and more.
PERCENTILES = (0, 1, 2, 5, 10, 15, 20, 25, 30, 40, 50, 60, 70, 75, 80, 85, 90, 95, 98, 99, 100)
SLICES = (16, 19, 20, 23, 31, 39, 46, 51, 54, 60, 65, 74, 98, 126, 139, 155, 182, 226, 287, 311, 664)
# Patients by number of scans.
SCANS_OF_A_PATIENT = {1: 982, 2: 373, 3: 46, 4: 19, 5: 4, 6: 6, 7: 1, 8: 2, 12: 2, 14: 2}
# Scans by ending of their files, as spelt.
EXTENSIONS = {"png": 1750, "jpg": 234, "JPG": 49, "tif": 19, "bmp": 10, "BMP": 8, "Jpg": 2, "jpeg": 1}


def draw_slices(generator: np.random.Generator, limits: tuple[int, int] | None) -> int:
    """Slices of a scan: as in CC-CCII, or anything within `limits`, both included."""
    if limits is not None:
        return int(generator.integers(limits[0], limits[1] + 1))
    return round(float(np.interp(generator.uniform(0, 100), PERCENTILES, SLICES)))


def draw_scans(generator: np.random.Generator, most: int) -> int:
    """Scans of a patient, no more than `most`."""
    return min(_draw(generator, SCANS_OF_A_PATIENT), most)


def draw_extension(generator: np.random.Generator) -> str:
    """The ending of a scan's files."""
    return _draw(generator, EXTENSIONS)


def _draw(generator: np.random.Generator, counts: dict[Kind, int]) -> Kind:
    weights = np.array(list(counts.values()), float)
    return list(counts)[generator.choice(len(weights), p=weights / weights.sum())]
