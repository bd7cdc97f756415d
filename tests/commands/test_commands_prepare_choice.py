"""ctcovid prepare: what is wrong with scans, and which of them are taken."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image
from test_commands_prepare import OneProcess, content, ctcovid, cut_short, fail, leave_after, pixels, snapshot, sources

from ctcovid.base.console import Console
from ctcovid.base.errors import InputError, OutputExistsError, UsageError
from ctcovid.commands import prepare as module
from ctcovid.commands.prepare import Options, Summary
from ctcovid.phantom.chest import ScanKey, slices_of_chest
from ctcovid.volumes.reader import VolumesFile
from ctcovid.volumes.selection import slices_by_part
from ctcovid.volumes.writer import VolumesWriter

SIZE = 64


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Workers", OneProcess)


def prepare(dataset: Path, output: Path, quiet: bool = True, **options: Any) -> Summary:
    return module.run(Options(dataset, output=output, **{"size": SIZE, "workers": 1, **options}), Console(quiet=quiet, results=False))


def write_scan(folder: Path, volume: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for index, slice_ in enumerate(volume):
        Image.fromarray(slice_).save(folder / f"{index:04d}.png", compress_level=1)


def quality(path: Path) -> list[tuple[str, str, str, str]]:
    with path.open(newline="") as file:
        return [(row["scan"], row["code"], row["action"], row["slices"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def chest() -> np.ndarray:
    """A synthetic chest, uint8 (24, 64, 64)."""
    return np.stack([item.pixels for item in slices_of_chest("NCP", 24, SIZE, ScanKey(3, 1))])


@pytest.fixture(scope="module")
def lungs() -> np.ndarray:
    """The same, black outside the lungs; the slices that have any."""
    return np.stack([item.pixels * item.lung for item in slices_of_chest("NCP", 24, SIZE, ScanKey(3, 1)) if item.lung.sum() > 100])


@pytest.fixture
def archive(chest: np.ndarray, lungs: np.ndarray, tmp_path: Path) -> Path:
    """Eight scans, six of them with something wrong."""
    root = tmp_path / "CC-CCII"
    write_scan(root / "NCP" / "1" / "10", chest)
    write_scan(root / "NCP" / "2" / "20", chest[::-1])
    write_scan(root / "NCP" / "3" / "30", np.concatenate([chest, chest]))
    write_scan(root / "CP" / "4" / "40", chest[[*range(9, 24), *range(9)]])
    write_scan(root / "CP" / "5" / "50", np.random.default_rng(0).integers(0, 256, (9, SIZE, SIZE), dtype=np.uint8))
    write_scan(root / "Normal" / "6" / "60", lungs)
    write_scan(root / "Normal" / "7" / "70", chest)
    cut_short(root / "Normal" / "7" / "70" / "0012.png")
    write_scan(root / "Normal" / "8" / "80", chest)
    return root


FOUND = [
    ("CP/4/40", "shuffled", "repaired", "0-23"),
    ("CP/5/50", "not-a-chest", "scan dropped", ""),
    ("NCP/2/20", "feet-first", "repaired", ""),
    ("NCP/3/30", "repeated-stack", "slice dropped", "24-47"),
    ("Normal/6/60", "segmented", "scan dropped", ""),
    ("Normal/7/70", "truncated", "slice dropped", "12"),
]


def test_what_is_wrong_is_repaired_in_the_file_and_written_down(archive: Path, chest: np.ndarray, tmp_path: Path) -> None:
    summary = prepare(archive, tmp_path / "volumes.h5")
    assert quality(tmp_path / "quality.csv") == FOUND
    found = pixels(tmp_path / "volumes.h5")
    assert found.keys() == {"CP/4/40", "NCP/1/10", "NCP/2/20", "NCP/3/30", "Normal/7/70", "Normal/8/80"}
    for source, slices in found.items():
        assert np.array_equal(slices, np.delete(chest, 12, axis=0) if source == "Normal/7/70" else chest)
    # A scan of the other kind has not failed.
    assert len(summary.failed) == 1 and "CP/5/50" in summary.failed[0]
    counts = {(row[0], row[2]): row[3] for row in summary.quality.rows}
    assert counts["not-a-chest", "scan dropped"] == counts["feet-first", "repaired"] == 1


def test_check_finds_the_same_and_writes_nothing_else(archive: Path, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    summary = prepare(archive, tmp_path / "out" / "volumes.h5", check=True)
    after = snapshot(tmp_path)
    assert after.keys() - before.keys() == {str(tmp_path / "out" / "quality.csv")} and before.items() <= after.items()
    assert quality(tmp_path / "out" / "quality.csv") == FOUND
    assert summary.output is None and len(summary.failed) == 1


def test_check_leaves_the_findings_of_a_prepared_file_and_needs_no_scan_that_can_be_used(archive: Path, tmp_path: Path) -> None:
    prepare(archive, tmp_path / "volumes.h5")
    before = snapshot(tmp_path)
    with pytest.raises(OutputExistsError, match=r"quality\.csv"):
        prepare(archive, tmp_path / "volumes.h5", check=True)
    assert snapshot(tmp_path) == before
    summary = prepare(archive, tmp_path / "out" / "volumes.h5", check=True, depth=500)
    assert summary.quality.rows


def test_scans_that_need_repair_are_dropped_or_stop_the_run_on_request(archive: Path, tmp_path: Path) -> None:
    prepare(archive, tmp_path / "dropped.h5", on_problem="drop")
    assert sources(tmp_path / "dropped.h5") == ["NCP/1/10", "Normal/8/80"]
    assert {action for _, _, action, _ in quality(tmp_path / "dropped.quality.csv")} == {"scan dropped"}
    with pytest.raises(InputError, match=r"CP.4.40: shuffled: .*--exclude"):
        prepare(archive, tmp_path / "stopped.h5", on_problem="stop")
    assert not (tmp_path / "stopped.h5").exists()


@pytest.mark.parametrize("count", [0, 3, 5, 8])
def test_run_that_broke_off_is_continued_to_the_same_file_and_the_same_findings(
    count: int, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(archive, tmp_path / "undisturbed" / "volumes.h5", balance=True)
    output = tmp_path / "out" / "volumes.h5"
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        leave_after(patch, count, fail)
        prepare(archive, output, balance=True)
    prepare(archive, output, balance=True)
    assert content(output) == content(tmp_path / "undisturbed" / "volumes.h5")
    assert quality(output.with_name("quality.csv")) == FOUND


@pytest.mark.parametrize(("images", "expected"), [("complete", 6), ("segmented", 1), ("all", 7)])
def test_images_of_the_other_kind_are_left_out_and_counted(
    images: str, expected: int, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(archive, tmp_path / "volumes.h5", quiet=False, images=images)
    assert len(sources(tmp_path / "volumes.h5")) == expected
    said = capsys.readouterr().err
    assert ("Left out 1 segmented scan;" in said) == (images == "complete")
    assert ("Left out 6 complete scans" in said) == (images == "segmented")


@pytest.fixture
def uneven(make_scan: Callable[..., Path], tmp_path: Path) -> Path:
    """Ten patients of NCP, seven of CP, five normal, of 8 to 11 slices."""
    for label, count in (("NCP", 10), ("CP", 7), ("Normal", 5)):
        for number in range(count):
            make_scan(tmp_path / "uneven" / label / f"{label}{number}" / "1", slices=8 + number % 4, level=60 + 10 * number)
    return tmp_path / "uneven"


def test_balanced_file_holds_the_chosen_slices_alone(uneven: Path, tmp_path: Path) -> None:
    summary = prepare(uneven, tmp_path / "volumes.h5", size=32, balance=True)
    prepare(uneven, tmp_path / "all.h5", size=32)
    whole, found = pixels(tmp_path / "all.h5"), pixels(tmp_path / "volumes.h5")
    assert len(found) < len(whole) == 22
    assert all(np.array_equal(found[source], whole[source]) for source in found)
    file = VolumesFile(tmp_path / "volumes.h5")
    counts = {row[0]: row[4] for row in summary.table.rows if row[1] == "all"}
    assert max(counts[label] for label in file.classes) - min(counts[label] for label in file.classes) <= 11
    with h5py.File(tmp_path / "volumes.h5") as opened:
        assert len(opened["slices"]) == sum(row.slice_count for row in file.rows) == counts["all"]
        rows = opened["volume_scan"][...]
        assert np.array_equal(opened["volumes"][0], opened["slices"][file.rows[rows[0]].first_slice :][:4])


@pytest.mark.parametrize("step", ["_begin", "_append", "_add_volumes"])
def test_run_that_broke_off_while_it_leaves_scans_out_is_continued_without_decoding(
    step: str, uneven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(uneven, tmp_path / "undisturbed" / "volumes.h5", size=32, balance=True)
    output = tmp_path / "out" / "volumes.h5"
    keep = VolumesWriter._keep

    def breaking(self: VolumesWriter, chosen: list[Any]) -> None:
        assert len(chosen) < len(self.rows)
        monkeypatch.setattr(VolumesWriter, step, lambda *given: fail())
        keep(self, chosen)

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        whole = getattr(VolumesWriter, step)
        patch.setattr(VolumesWriter, "_keep", breaking)
        prepare(uneven, output, size=32, balance=True)
    monkeypatch.setattr(VolumesWriter, step, whole)
    decoded: list[object] = []
    with monkeypatch.context() as patch:
        patch.setattr(module, "encode_slices", lambda job: decoded.append(job))
        prepare(uneven, output, size=32, balance=True)
    assert decoded == []
    assert content(output) == content(tmp_path / "undisturbed" / "volumes.h5")
    assert not [path.name for path in output.parent.iterdir() if "partial" in path.name]


def test_same_as_takes_as_many_slices_of_each_class_and_part(uneven: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = tmp_path / "small"
    for source in ("NCP/NCP0/1", "NCP/NCP1/1", "NCP/NCP2/1", "CP/CP3/1", "Normal/Normal1/1", "Normal/Normal2/1"):
        shutil.copytree(uneven / source, small / source)
    prepare(small, tmp_path / "small.h5", size=32)
    prepare(uneven, tmp_path / "volumes.h5", size=32, same_as=tmp_path / "small.h5", seed=4)
    wanted = slices_by_part(VolumesFile(tmp_path / "small.h5").rows)
    assert slices_by_part(VolumesFile(tmp_path / "volumes.h5").rows) == wanted
    # The other way round there is too little, and that is said.
    capsys.readouterr()
    prepare(small, tmp_path / "short.h5", size=32, same_as=tmp_path / "volumes.h5", split="60/20/20")
    prepare(small, tmp_path / "shorter.h5", size=32, same_as=_whole(uneven, tmp_path))
    assert "fewer slices than --same-as requests" in capsys.readouterr().err


def _whole(dataset: Path, folder: Path) -> Path:
    prepare(dataset, folder / "whole.h5", size=32)
    return folder / "whole.h5"


def test_of_diseased_classes_listed_slices_alone_are_kept(uneven: Path, tmp_path: Path) -> None:
    listed = tmp_path / "lesions_slices.csv"
    listed.write_text("imgpath\n" + "\n".join(f"NCP/NCP{patient}/1/{index:04d}.png" for patient in (0, 1, 2) for index in range(2, 7)))
    prepare(uneven, tmp_path / "volumes.h5", size=32, lesions=listed)
    found, whole = pixels(tmp_path / "volumes.h5"), pixels(_whole(uneven, tmp_path))
    assert {source for source in found if source.startswith("NCP")} == {f"NCP/NCP{patient}/1" for patient in (0, 1, 2)}
    assert all(np.array_equal(found[f"NCP/NCP{patient}/1"], whole[f"NCP/NCP{patient}/1"][2:7]) for patient in (0, 1, 2))
    assert all(np.array_equal(found[source], whole[source]) for source in whole if not source.startswith("NCP"))
    unlisted = {source for source in whole if source.startswith("NCP")} - set(found)
    noted = [scan for scan, code, action, _ in quality(tmp_path / "quality.csv") if (code, action) == ("no-lesions", "scan dropped")]
    assert unlisted and set(noted) == unlisted


def test_excluded_scans_are_left_out_and_those_that_are_not_there_are_counted(
    uneven: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.txt").write_text("NCP/NCP3/1\nCP0/1\nNCP/999/1\n")
    prepare(uneven, tmp_path / "volumes.h5", size=32, quiet=False, exclude=tmp_path / "bad.txt")
    assert len(sources(tmp_path / "volumes.h5")) == 20
    assert not {"NCP/NCP3/1", "CP/CP0/1"} & set(sources(tmp_path / "volumes.h5"))
    said = capsys.readouterr().err
    assert "Left out 2 scans" in said and "1 more that it lists is not here" in said
    (tmp_path / "bad.txt").write_text("NCP/999/1\n")
    prepare(uneven, tmp_path / "all.h5", size=32, exclude=tmp_path / "bad.txt")
    assert "none of the scans here is listed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"balance": True, "same_as": Path("a.h5")}, "--balance and --same-as"),
        ({"balance": True, "split_file": Path("a.csv")}, "--balance and --split-file"),
        ({"same_as": Path("a.h5"), "split_file": Path("a.csv")}, "--split-file and --same-as"),
        ({"check": True, "plan": True}, "--check and --plan"),
        ({"defects": Path("a.csv")}, "--defects needs --plan"),
    ],
)
def test_options_that_exclude_each_other_are_usage_errors(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        prepare(tmp_path, tmp_path / "volumes.h5", **options)


def test_plan_prints_the_table_of_a_list_and_writes_nothing(tmp_path: Path) -> None:
    lines = [f"{label},{label}{patient},1,{40 + patient}" for label in ("NCP", "CP", "Normal") for patient in range(20)]
    (tmp_path / "list.csv").write_text("label,patient_id,scan_id,n_slice\n" + "\n".join(lines))
    (tmp_path / "defects.csv").write_text("cls,pid,scan_id,is_seg\n" + "\n".join(f"Normal,Normal{patient},1,1" for patient in range(10)))
    before = snapshot(tmp_path)
    done = ctcovid(tmp_path, "prepare", "list.csv", "--plan", "--defects", "defects.csv", "--balance", "--json")
    assert done.returncode == 0, done.stderr
    rows = {(row["class"], row["split"]): row["slices"] for row in json.loads(done.stdout)["table"]}
    # Ten normal scans remain, of 545 slices.
    assert all(abs(rows[label, "all"] - 545) < 40 for label in ("NCP", "CP", "Normal"))
    assert snapshot(tmp_path) == before


def test_line_for_a_check_ends_with_4_where_a_scan_cannot_be_used(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    done = ctcovid(tmp_path / "here", "prepare", archive, "--check", "--workers", 1)
    assert done.returncode == 4, done.stderr
    assert done.stdout.startswith("| finding") and "CP/5/50" in done.stderr and "Wrote quality.csv." in done.stderr
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["quality.csv"]
