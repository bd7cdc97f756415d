"""One HTML file per scan, to look through its slices with the saliency maps over them; it needs no network and no installation."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ctcovid.base.files import write_text
from ctcovid.reports.overlays import COLOURS, FAINTEST, OPACITY

TEMPLATE = Path(__file__).with_name("viewer.html")
# Pixels per side of a map in the file; a browser enlarges it smoothly.
MAP_SIDE = 128
# Pictures are stored as well as they may be at so many characters for each slice, of which a third may be its maps, and in the whole page.
CHARACTERS, MOST, MAPS = 95_000, 14_900_000, 1 / 3
# Quality of JPEG, and the share of the sides; the last form that fits into the room is coarse, but it is a picture.
FORMS = [(quality, 1.0) for quality in (90, 80, 70, 55, 40, 25, 10)]
FORMS += [(quality, 0.5**halved) for halved in range(1, 7) for quality in (40, 25, 10)]
# Of many pictures so many say whether all will fit.
SAMPLE = 32


@dataclass(frozen=True)
class Viewed:
    """What there is to see.

    slices : uint8 (S, H, W)
    maps : float (S, K, h, w) in 0..1, a map of every class for each slice
    names : S captions
    classes : K names
    volumes : float (N, K), probabilities of each volume; slice s belongs to volume s // depth
    probabilities : float (K,) of the scan
    flags : sentences about what is wrong with the scan, or with predicting it
    card : what there is to say of the model, by name
    measured : figures about the maps, by name, with their caution
    sided : whether it is known that the patient's right is on the left
    """

    scan: str
    method: str
    slices: np.ndarray
    maps: np.ndarray
    names: list[str]
    classes: list[str]
    chosen: int
    depth: int
    volumes: np.ndarray
    probabilities: np.ndarray
    card: dict[str, str]
    flags: list[str] = field(default_factory=list)
    measured: dict[str, str] = field(default_factory=dict)
    caution: str = ""
    sided: bool = False


def save_viewer(path: Path, viewed: Viewed) -> None:
    """Write the page, whole or not at all."""
    write_text(path, page(viewed))


def page(viewed: Viewed) -> str:
    """The page as text: template, pictures and figures in one file."""
    template = TEMPLATE.read_text(encoding="utf-8")
    return template.replace("__DATA__", json.dumps(_data(viewed)).replace("<", "\\u003c"))


def _data(viewed: Viewed) -> dict[str, Any]:
    count, classes, height, width = viewed.maps.shape
    # The maps of all classes lie one below the other in one picture.
    sprites = np.rint(255 * np.clip(viewed.maps, 0, 1)).astype(np.uint8).reshape(count, classes * height, width)
    colours = np.rint(255 * COLOURS(np.linspace(FAINTEST, 1, 256))[:, :3]).astype(int)
    words = {
        "scan": viewed.scan,
        "method": viewed.method,
        "size": list(viewed.slices.shape[1:]),
        "names": viewed.names,
        "classes": viewed.classes,
        "chosen": viewed.chosen,
        "depth": viewed.depth,
        "start": _most_telling(viewed),
        "volumes": np.round(viewed.volumes, 4).tolist(),
        "probabilities": np.round(viewed.probabilities, 4).tolist(),
        "flags": viewed.flags,
        "card": viewed.card,
        "measured": viewed.measured,
        "caution": viewed.caution,
        "colours": colours.tolist(),
        "opacity": OPACITY,
        "sided": viewed.sided,
    }
    # Each picture stands in quotes, with a comma and a space behind them.
    room = min(CHARACTERS * count, MOST - TEMPLATE.stat().st_size - len(json.dumps(words)) - 8 * count)
    maps = pictures(sprites, int(MAPS * room), classes)
    return words | {"maps": maps, "slices": pictures(viewed.slices, room - sum(map(len, maps)))}


def _most_telling(viewed: Viewed) -> int:
    """The slice to begin with: where the class is most probable, and there the one with the most saliency."""
    first = int(viewed.volumes[:, viewed.chosen].argmax()) * viewed.depth
    return first + int(viewed.maps[first : first + viewed.depth, viewed.chosen].mean((1, 2)).argmax())


def pictures(pixels: np.ndarray, room: int, parts: int = 1) -> list[str]:
    """Grey pictures, uint8 (N, H, W), as JPEG in base64, the best form in which they take no more than `room` characters, if any does.

    They become coarser first, and then smaller too. Each holds `parts` pictures one below the other, which are made smaller one by one.
    """
    sample = pixels[:: -(-len(pixels) // SAMPLE)]
    for form in FORMS[:-1]:
        if sum(len(jpeg(one, *form, parts)) for one in sample) * len(pixels) <= room * len(sample):
            found = [jpeg(one, *form, parts) for one in pixels]
            if sum(map(len, found)) <= room:
                return found
    return [jpeg(one, *FORMS[-1], parts) for one in pixels]


def jpeg(pixels: np.ndarray, quality: int, share: float = 1, parts: int = 1) -> str:
    """A grey picture, uint8 (parts · H, W), as JPEG in base64 whose sides are a `share` of its own."""
    if share < 1:
        each = [Image.fromarray(part) for part in np.split(pixels, parts)]
        width, height = (max(1, round(share * side)) for side in each[0].size)
        pixels = np.concatenate([np.asarray(part.resize((width, height), Image.Resampling.BOX)) for part in each])
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=quality, optimize=True)
    return base64.b64encode(file.getvalue()).decode()
