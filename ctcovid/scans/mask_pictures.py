"""Pictures of a lesion mask, of any mode: what is black is no lesion."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ctcovid.base.errors import InputError
from ctcovid.scans.absent import raise_if_absent
from ctcovid.scans.read import MOST_PAGES, UNDECODABLE, pillow_silenced
from ctcovid.scans.scan import MOST_PIXELS_PER_SIDE

# Formats, and compressions of TIFF, that change values: black does not stay 0.
LOSSY = frozenset({"JPEG", "MPO", "jpeg", "tiff_jpeg", "webp"})


def mask_values(path: Path) -> Iterator[tuple[np.ndarray, bool]]:
    """The pages of a picture: of each the values, (rows, columns), and whether they were compressed with loss.

    A pixel's value is that of its strongest colour, and 0 where it is transparent. If all of a picture is black, it is its opacity.

    Raises InputError if the file cannot be decoded.
    """
    try:
        with pillow_silenced(), Image.open(path) as image:
            pages = getattr(image, "n_frames", 1)
            if pages > MOST_PAGES or max(image.size) > MOST_PIXELS_PER_SIDE:
                raise InputError(f"{path}: {pages} pages of {image.width}×{image.height} pixels are too large for a mask.")
            for number in range(pages):
                image.seek(number)
                lossy = image.format in LOSSY or image.info.get("compression") in LOSSY
                yield _strongest(image), lossy
    except InputError:
        raise
    except UNDECODABLE as error:
        raise_if_absent(path, error)
        raise InputError(f"{path}: not a readable picture ({str(error).rstrip('.')}). Export the mask again, as PNG.") from error


def _strongest(image: Image.Image) -> np.ndarray:
    """(rows, columns), integers, or floats of a picture of floats."""
    if image.mode == "P" or "transparency" in image.info:
        image = image.convert("RGBA")
    elif image.mode not in ("1", "L", "LA", "La", "I", "F", "RGB", "RGBA", "RGBa") and not image.mode.startswith("I;"):
        image = image.convert("RGB")
    values = np.asarray(image)
    if values.dtype == bool:
        return values.astype(np.uint8)
    if values.ndim == 2:
        return values
    if image.mode == "RGB":
        return np.asarray(values.max(axis=2))
    colours, opacity = values[..., :-1].max(axis=2), values[..., -1]
    return np.asarray(np.where(opacity > 0, colours, 0) if colours[opacity > 0].any() or opacity.min() == opacity.max() else opacity)
