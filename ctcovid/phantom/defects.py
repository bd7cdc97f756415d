"""The known defects of CC-CCII, made on purpose: repeated, shuffled, reversed, masked and damaged scans, and odd sizes."""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Defects:
    """The share of scans, 0 to 1, that has each defect. A scan has at most one, so that the shares sum to at most 1.

    Attributes
    ----------
    repeated : the stack, or half of it, is in the folder twice
    shuffled : blocks of slices are swapped
    reversed : feet first
    masked : everything outside the lungs is black, and slices without lung are missing (segmented CT, Li et al. 2021, Fig. 1)
    corrupt : one file is cut short, empty, or not a picture
    odd_size : not square: 1024×944 where others have 512×512
    """

    repeated: float = 0.0
    shuffled: float = 0.0
    reversed: float = 0.0
    masked: float = 0.0
    corrupt: float = 0.0
    odd_size: float = 0.0

    def __post_init__(self) -> None:
        shares = astuple(self)
        if min(shares) < 0 or sum(shares) > 1 + 1e-9:
            raise ValueError(f"shares of defects {shares}: each at least 0, together at most 1")

    def assign(self, scans: int, generator: np.random.Generator) -> list[str]:
        """The defect of each scan, "" for most."""
        kinds = [field.name for field in fields(self) for _ in range(round(getattr(self, field.name) * scans))][:scans]
        kinds += [""] * (scans - len(kinds))
        return [kinds[index] for index in generator.permutation(scans)]


def order_of(kind: str, slices: int, generator: np.random.Generator) -> tuple[list[int], str]:
    """The slice at each position in the folder, and the defect in words."""
    stack = list(range(slices))
    if kind == "reversed":
        return stack[::-1], "feet first"
    if kind == "repeated":
        first = 0 if generator.random() < 0.7 else slices // 2
        return stack + stack[first:], f"slices {first}-{slices - 1} again at {slices}-{2 * slices - first - 1}"
    if kind == "shuffled":
        # Blocks as in the real ones: "15-20+0-14", or several.
        cuts = np.sort(generator.choice(np.arange(1, slices), min(int(generator.integers(1, 5)), slices - 1), replace=False)).tolist()
        blocks = [stack[a:b] for a, b in zip([0, *cuts], [*cuts, slices], strict=True)]
        shuffled = generator.permutation(len(blocks))
        if (shuffled == np.arange(len(blocks))).all():
            shuffled = shuffled[::-1]
        words = "+".join(f"{blocks[index][0]}-{blocks[index][-1]}" for index in shuffled)
        return [number for index in shuffled for number in blocks[index]], f"slices lie as {words}"
    return stack, ""


def odd_size(picture: Image.Image) -> Image.Image:
    """Twice as wide and 944/1024 as high as wide, cut off above and below."""
    width, height = 2 * picture.width, round(2 * picture.height * 944 / 1024)
    cut = (picture.height - height / 2) / 2
    how = Image.Resampling.NEAREST if picture.mode == "1" else Image.Resampling.BILINEAR
    return picture.resize((width, height), how, box=(0, cut, picture.width, picture.height - cut))


def damage(path: Path, generator: np.random.Generator) -> str:
    """Damage a file; returns how, in words."""
    how = ("cut short", "empty", "a text")[int(generator.integers(3))]
    content = path.read_bytes()
    path.write_bytes({"cut short": content[: len(content) // 3], "empty": b"", "a text": b"503 Service Unavailable\n"}[how])
    return f"{path.name} is {how}"
