"""Complete and segmented CT, on real scans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ctcovid.scans.kind import COMPLETE, SEGMENTED, image_kind, is_masked

REAL = [
    ("ccccii/NCP/16/1164", False),
    ("ccccii/NCP/920/2462", False),
    ("ccccii/CP/1068/3107", False),
    ("ccccii/Normal/2316/771", False),
    ("ccccii-segmented/NCP/96/1328", True),
    ("ccccii-segmented/Normal/1995/500", True),
]


@pytest.mark.parametrize("size", [512, 128, 64])
@pytest.mark.parametrize(("scan", "masked"), REAL, ids=[scan for scan, _ in REAL])
def test_real_slices_are_told_apart_from_end_to_end_of_the_chest(scan: str, masked: bool, size: int, sample_data: Path) -> None:
    wrong = []
    for path in sorted((sample_data / scan).iterdir())[::12]:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L").resize((size, size), Image.Resampling.BILINEAR))
        if is_masked(pixels) != masked:
            wrong.append(path.name)
    assert wrong == []


def test_scan_is_segmented_where_more_than_half_of_its_slices_are_masked() -> None:
    assert [image_kind(masked, 10) for masked in (0, 5, 6, 10)] == [COMPLETE, COMPLETE, SEGMENTED, SEGMENTED]
    assert (image_kind(0, 1), image_kind(1, 1)) == ("complete", "segmented")


def test_complete_slice_in_a_wide_black_frame_is_still_complete(sample_data: Path) -> None:
    """Black alone does not make a masked slice: the white of the chest wall is missing there too."""
    with Image.open(sample_data / "ccccii/NCP/16/1164/0070.png") as image:
        framed = np.pad(np.asarray(image), 124)
    assert np.mean(framed == 0) > 0.5
    assert not is_masked(framed)
