"""How many planted defects are found and repaired, and how many sound scans are suspected: a table, on real scans.

Run: CTCOVID_SAMPLE_DATA=… python tests/scans/defect_rates.py [seeds]

Each defect is planted into each real scan, of which a random stretch and step is taken, at a random size from 96 to 512, with mild
noise or another JPEG compression in two cases of three. Beside detection it counts repairs: the right slices in the right order.
The second table, of kind_rates.py, is about kinds of scans instead: what must be found, and what must not be said of them or done.
"""

from __future__ import annotations

import io
import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from ctcovid.scans.discover import find_scans
from ctcovid.scans.quality import Unusable, Verdict, check
from ctcovid.scans.read import read_picture, square
from ctcovid.scans.slice_summary import summarise

SCANS = (
    *("ccccii/NCP/16/1164", "ccccii/NCP/920/2462", "ccccii/CP/1068/3107", "ccccii/Normal/2316/771"),
    *("ccccii-segmented/NCP/96/1328", "ccccii-segmented/Normal/1995/500"),
)


def scans(folder: Path) -> dict[str, np.ndarray]:
    """The real scans, uint8 (S, 512, 512), head to feet."""
    return {name: np.stack([read_picture(path).pixels for path in find_scans([folder / name])[0].slices]) for name in SCANS}


def variant(volume: np.ndarray, generator: np.random.Generator, fewest: int = 12) -> np.ndarray:
    """A part of a scan, at some size, perhaps with noise or compressed again."""
    step = int(generator.integers(1, max(2, min(4, len(volume) // 20)) + 1))
    length = int(generator.integers(max(fewest * step, len(volume) // 2), len(volume) + 1)) if len(volume) > 2 * fewest else len(volume)
    first = int(generator.integers(0, len(volume) - length + 1))
    size = int(generator.choice([96, 128, 192, 256, 384, 512]))
    how = int(generator.integers(3))
    return np.stack([spoiled(square(pixels, size), how, generator) for pixels in volume[first : first + length : step]])


def spoiled(pixels: np.ndarray, how: int, generator: np.random.Generator) -> np.ndarray:
    if how == 1:
        noisy = pixels + generator.normal(0, 3, pixels.shape) * (pixels > 0)
        return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
    return compressed(pixels, int(generator.integers(75, 96))) if how == 2 else pixels


def compressed(pixels: np.ndarray, quality: int) -> np.ndarray:
    memory = io.BytesIO()
    Image.fromarray(pixels).save(memory, "JPEG", quality=quality)
    return np.asarray(Image.open(memory))


def verdict(volume: np.ndarray, ordered: bool = False) -> Verdict:
    names = [f"{index:04d}.png" for index in range(len(volume))]
    return check(names, [summarise(pixels) for pixels in volume], ordered)


# Each defect: from a sound stack to (stack, stored place of each sound slice). A repair gives the sound stack back.
Planted = tuple[np.ndarray, list[int]]


def _stack(volume: np.ndarray, order: list[int]) -> Planted:
    return volume[order], order


def stack_twice(volume: np.ndarray, generator: np.random.Generator) -> Planted:
    return _stack(volume, [*range(len(volume))] * 2)


def stack_twice_compressed(volume: np.ndarray, generator: np.random.Generator) -> Planted:
    quality = int(generator.integers(80, 96))
    return np.concatenate([volume, [compressed(pixels, quality) for pixels in volume]]), [*range(len(volume))] * 2


def interleaved(volume: np.ndarray, generator: np.random.Generator) -> Planted:
    return _stack(volume, [index for index in range(len(volume)) for _ in range(2)])


def interleaved_compressed(volume: np.ndarray, generator: np.random.Generator) -> Planted:
    quality = int(generator.integers(80, 96))
    return np.stack([one for pixels in volume for one in (pixels, compressed(pixels, quality))]), [
        index for index in range(len(volume)) for _ in range(2)
    ]


def single_repeat(volume: np.ndarray, generator: np.random.Generator) -> Planted:
    index, to = int(generator.integers(len(volume))), int(generator.integers(len(volume) + 1))
    order = [*range(len(volume))]
    return _stack(volume, [*order[:to], index, *order[to:]])


def single_repeat_compressed(volume: np.ndarray, generator: np.random.Generator) -> Planted:
    stack, order = single_repeat(volume, generator)
    stack = stack.copy()
    index = next(i for i in range(len(order)) if order.count(order[i]) == 2)
    stack[index] = compressed(stack[index], int(generator.integers(80, 96)))
    return stack, order


def first_part_repeated(volume: np.ndarray, generator: np.random.Generator) -> Planted:
    cut = int(generator.integers(len(volume) // 5, len(volume) // 2))
    return _stack(volume, [*range(cut), *range(len(volume))])


def feet_first(volume: np.ndarray, generator: np.random.Generator) -> Planted:
    return _stack(volume, [*range(len(volume))][::-1])


def rotated(volume: np.ndarray, generator: np.random.Generator) -> Planted:
    cut = int(generator.integers(2, len(volume) - 1))
    return _stack(volume, [*range(cut, len(volume)), *range(cut)])


def blocks(volume: np.ndarray, generator: np.random.Generator) -> Planted:
    count = int(generator.integers(3, 6))
    cuts = sorted(generator.choice(np.arange(2, len(volume) - 1), count - 1, replace=False).tolist())
    pieces = np.split(np.arange(len(volume)), cuts)
    while True:
        indices = generator.permutation(count)
        if any(other != one + 1 for one, other in itertools.pairwise(indices)):
            return _stack(volume, np.concatenate([pieces[index] for index in indices]).tolist())


def every_eleventh_first(volume: np.ndarray, generator: np.random.Generator) -> Planted:
    """As 11 comes before 2 in names without padding."""
    return _stack(volume, sorted(range(len(volume)), key=str))


def one_misplaced(volume: np.ndarray, generator: np.random.Generator) -> Planted:
    index = int(generator.integers(len(volume)))
    rest = [other for other in range(len(volume)) if other != index]
    to = (index + int(generator.integers(len(volume) // 3, 2 * len(volume) // 3 + 1))) % len(volume)
    return _stack(volume, [*rest[:to], index, *rest[to:]])


def shuffled_wholly(volume: np.ndarray, generator: np.random.Generator) -> Planted:
    return _stack(volume, generator.permutation(len(volume)).tolist())


def sound(volume: np.ndarray, generator: np.random.Generator) -> Planted:
    return _stack(volume, [*range(len(volume))])


REPEATED = ("repeated-stack", "repeated-slices", "near-repeated-stack", "near-repeated-slices")
DEFECTS: dict[Callable[[np.ndarray, np.random.Generator], Planted], tuple[str, ...]] = {
    stack_twice: REPEATED,
    stack_twice_compressed: REPEATED,
    interleaved: REPEATED,
    interleaved_compressed: REPEATED,
    single_repeat: REPEATED,
    single_repeat_compressed: REPEATED,
    first_part_repeated: REPEATED,
    rotated: ("shuffled", "order-doubtful"),
    blocks: ("shuffled", "order-doubtful"),
    every_eleventh_first: ("shuffled", "order-doubtful"),
    one_misplaced: ("shuffled", "order-doubtful"),
    shuffled_wholly: ("shuffled", "order-doubtful"),
    feet_first: ("feet-first", "feet-first-doubtful"),
}
# Not defects.
HARMLESS = ("segmented", "not-square")


def measured(volumes: dict[str, np.ndarray], seeds: int) -> dict[str, tuple[int, int, int, int]]:
    """By defect: cases, detected, repaired to the sound stack, and repaired to something else."""
    table = {}
    for plant, codes in {sound: (), **DEFECTS}.items():
        cases = detected = right = wrong = 0
        for number, (name, volume) in enumerate(volumes.items()):
            for seed in range(seeds):
                generator = np.random.default_rng([seed, number, *plant.__name__.encode()])
                stack, order = plant(variant(volume, generator), generator)
                found = verdict(stack)
                seen = {finding.code for finding in found.findings} - set(HARMLESS)
                good = [order[index] for index in found.kept] == [*range(max(order) + 1)]
                hit = bool(seen & set(codes)) if codes else bool(seen)
                acted = any(finding.action != "kept" for finding in found.findings)
                cases, detected, right = cases + 1, detected + hit, right + good
                wrong += acted and not good
                if os.environ.get("SHOW") and (not good or (not codes and seen)):
                    print("  ", plant.__name__, name, seed, len(stack), stack.shape[1], seen, file=sys.stderr)
        table[plant.__name__] = (cases, detected, right, wrong)
    return table


# Defects of single slices, and stacks that are not a chest: codes, and a function that plants the defect in summaries and names.
def cut_short(summaries: list, names: list[str], generator: np.random.Generator) -> None:
    for index in generator.choice(len(summaries), max(1, len(summaries) // 20), replace=False):
        summaries[index] = Unusable("truncated", "cut short")


def odd_ones_out(summaries: list, names: list[str], generator: np.random.Generator) -> None:
    for index in generator.choice(len(summaries), max(1, len(summaries) // 20), replace=False):
        summaries[index] = summarise(np.pad(summaries[index].thumbnail, 1))


def blank(summaries: list, names: list[str], generator: np.random.Generator) -> None:
    for index in generator.choice(len(summaries), int(generator.integers(1, 4)), replace=False):
        summaries[index] = summarise(np.full((summaries[index].height, summaries[index].width), generator.integers(256), np.uint8))


def numbers_left_out(summaries: list, names: list[str], generator: np.random.Generator) -> None:
    index = int(generator.integers(1, len(summaries) - 1))
    del summaries[index], names[index]


def photographs(summaries: list, names: list[str], generator: np.random.Generator) -> None:
    from sklearn.datasets import load_sample_images

    pictures = [np.rint(picture.mean(2)).astype(np.uint8) for picture in load_sample_images().images]
    for index in range(len(summaries)):
        top, left = generator.integers(290), generator.integers(500)
        summaries[index] = summarise(pictures[generator.integers(2)][top : top + 128, left : left + 128])


SINGLE = {
    cut_short: "truncated",
    odd_ones_out: "mixed-sizes",
    blank: "constant",
    numbers_left_out: "numbering-gap",
    photographs: "not-a-chest",
}


def measured_slices(volumes: dict[str, np.ndarray], seeds: int) -> dict[str, tuple[int, int]]:
    """By defect of single slices: cases, and detected."""
    table = {}
    for plant, code in SINGLE.items():
        cases = detected = 0
        for number, (_, volume) in enumerate(volumes.items()):
            for seed in range(seeds):
                generator = np.random.default_rng([seed, number, *plant.__name__.encode()])
                summaries: list = [summarise(pixels) for pixels in variant(volume, generator)]
                names = [f"{index:04d}.png" for index in range(len(summaries))]
                plant(summaries, names, generator)
                seen = {finding.code for finding in check(names, summaries).findings} - set(HARMLESS)
                cases, detected = cases + 1, detected + (code in seen)
        table[plant.__name__] = (cases, detected)
    return table


def measured_abdomens(folder: Path, seeds: int) -> tuple[int, int]:
    """Parts of the real abdomen: cases, and known for no chest."""
    import SimpleITK

    image = SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(folder / "nifti" / "abdomen-not-chest.nii.gz")), "LPS")
    grey = np.clip((SimpleITK.GetArrayFromImage(image) + 1350.0) / 1500 * 255, 0, 255).astype(np.uint8)[::-1]
    found = [verdict(variant(grey, np.random.default_rng(seed))) for seed in range(seeds)]
    return seeds, sum(any(finding.code == "not-a-chest" for finding in one.findings) for one in found)


def kinds_right(volumes: dict[str, np.ndarray], seeds: int) -> tuple[int, int]:
    """Complete against segmented: cases, and told right."""
    found = [
        verdict(variant(volume, np.random.default_rng([seed, number]))).kind == ("segmented" if "segmented" in name else "complete")
        for number, (name, volume) in enumerate(volumes.items())
        for seed in range(seeds)
    ]
    return len(found), sum(found)


if __name__ == "__main__":
    folder = os.environ.get("CTCOVID_SAMPLE_DATA")
    if not folder:
        sys.exit("CTCOVID_SAMPLE_DATA is not set: no real CT here")
    count = int(sys.argv[1]) if sys.argv[1:] else 10
    real = scans(Path(folder))
    print(f"{'planted':28}{'cases':>8}{'detected':>10}{'as sound':>10}{'wrongly':>9}")
    for name, (cases, detected, right, wrong) in measured(real, count).items():
        print(f"{name.replace('_', ' '):28}{cases:8}{detected / cases:10.1%}{right / cases:10.1%}{wrong:9}")
    rest = {**measured_slices(real, count), "complete or segmented": kinds_right(real, count)}
    try:
        rest["abdomen"] = measured_abdomens(Path(folder), 6 * count)
    except ImportError:
        print("SimpleITK is not installed: no abdomen here", file=sys.stderr)
    for name, (cases, detected) in rest.items():
        print(f"{name.replace('_', ' '):28}{cases:8}{detected / cases:10.1%}")
    from kind_rates import measured_kinds

    print(f"\n{'kind':28}{'cases':>8}{'found':>10}{'nothing else':>14}")
    for name, outcomes in measured_kinds(real, Path(folder), max(1, count // 2)).items():
        found, clean = (sum(column) / len(outcomes) for column in zip(*outcomes, strict=True))
        print(f"{name:28}{len(outcomes):8}{found:10.1%}{clean:14.1%}")
