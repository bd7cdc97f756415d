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
# Pictures are stored as well as they may be at so many characters for each slice, its maps included: less than 15 MB for 150 slices.
CHARACTERS, CHARACTERS_OF_MAPS = 95_000, 30_000
QUALITIES = (90, 80, 70, 55, 40, 25, 10)


@dataclass(frozen=True)
class Viewed:
    """What there is to see.

    slices : uint8 (S, H, W)
    maps : float (S, K, h, w) in 0..1, a map of every class for each slice
    names : S captions
    classes : K names
    volumes : float (N, K), probabilities of each volume; slice s belongs to volume s // depth
    probabilities : float (K,) of the scan
    flags : sentences about what is wrong with the scan, or with judging it
    card : what there is to say of the model, by name
    measured : figures about the maps, by name, with their caution
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
    maps = _pictures(sprites, CHARACTERS_OF_MAPS * count)
    colours = np.rint(255 * COLOURS(np.linspace(FAINTEST, 1, 256))[:, :3]).astype(int)
    return {
        "scan": viewed.scan,
        "method": viewed.method,
        "slices": _pictures(viewed.slices, CHARACTERS * count - sum(map(len, maps))),
        "size": list(viewed.slices.shape[1:]),
        "maps": maps,
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
    }


def _most_telling(viewed: Viewed) -> int:
    """The slice to begin with: where the class is most probable, and there the one with the most saliency."""
    first = int(viewed.volumes[:, viewed.chosen].argmax()) * viewed.depth
    return first + int(viewed.maps[first : first + viewed.depth, viewed.chosen].mean((1, 2)).argmax())


def _pictures(pixels: np.ndarray, room: int) -> list[str]:
    """Grey pictures, uint8 (N, H, W), as JPEG of the best quality in which they take no more than `room` characters, if any does."""
    found: list[str] = []
    for quality in QUALITIES:
        found = [_jpeg(one, quality) for one in pixels]
        if sum(map(len, found)) <= room:
            break
    return found


def _jpeg(pixels: np.ndarray, quality: int) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=quality, optimize=True)
    return base64.b64encode(file.getvalue()).decode()
