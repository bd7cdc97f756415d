"""ctcovid prepare: scans on disk to volumes.h5, in one go or in several, with what is damaged left out and named."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import forked
import h5py
import numpy as np
import pytest
from PIL import Image

from ctcovid.base.console import Console
from ctcovid.base.errors import CtcovidError, InputError, OutputExistsError, StoppedError, UsageError
from ctcovid.commands import prepare as module
from ctcovid.commands.prepare import Options, Summary
from ctcovid.phantom.chest import ScanKey, slices_of_chest
from ctcovid.volumes.encode import Job
from ctcovid.volumes.writer import VolumesWriter

SIZE = 32


class OneProcess:
    """In place of `Workers` where processes are not what the test is about: starting them takes a second."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __enter__(self) -> OneProcess:
        return self

    def __exit__(self, *failure: object) -> None:
        pass

    def map(self, work: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        return map(work, tasks)


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Workers", OneProcess)


def prepare(dataset: Path, output: Path, quiet: bool = True, **options: Any) -> Summary:
    return module.run(Options(dataset, output=output, **{"size": SIZE, "workers": 1, **options}), Console(quiet=quiet, results=False))


def ctcovid(cwd: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return forked.run(*arguments, cwd=cwd, environment={**os.environ, **environment})


def content(path: Path) -> dict[str, Any]:
    """All that any HDF5 tool sees in the file."""
    with h5py.File(path, "r") as file:
        found: dict[str, Any] = {}
        file.visititems(lambda name, item: found.update({name: item[...].tolist()}) if isinstance(item, h5py.Dataset) else None)
        return found | {f"@{name}": np.asarray(value).tolist() for name, value in file.attrs.items()}


def sources(path: Path) -> list[str]:
    with h5py.File(path, "r") as file:
        return file["scans/source"].asstr()[...].tolist()


def pixels(path: Path) -> dict[str, np.ndarray]:
    """The slices of each scan."""
    with h5py.File(path, "r") as file:
        rows = zip(sources(path), file["scans/first_slice"][...], file["scans/slice_count"][...], strict=True)
        return {source: file["slices"][first : first + count] for source, first, count in rows}


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def card(output: Path) -> dict[str, Any]:
    return json.loads(output.with_suffix(".run.json").read_text())


def cut_short(path: Path) -> Path:
    """Damage that only decoding finds: the header is whole."""
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    return path


def leave_after(monkeypatch: pytest.MonkeyPatch, count: int, leave: Callable[[], object]) -> None:
    """Let a run leave when it has packed `count` scans."""
    add = VolumesWriter.add

    def adding(self: VolumesWriter, *arguments: Any) -> None:
        if len(self.rows) == count and count == 0:
            leave()
        add(self, *arguments)
        if len(self.rows) == count:
            leave()

    monkeypatch.setattr(VolumesWriter, "add", adding)


def fail() -> None:
    raise ZeroDivisionError


@pytest.fixture
def dataset(make_dataset: Callable[..., Path], tmp_path: Path) -> Path:
    """Fifteen patients in three classes, one scan of 8 to 10 slices each."""
    return make_dataset(tmp_path / "CC-CCII")


@pytest.fixture
def undisturbed(dataset: Path, tmp_path: Path, one_process: None) -> dict[str, Any]:
    prepare(dataset, tmp_path / "undisturbed" / "volumes.h5")
    return content(tmp_path / "undisturbed" / "volumes.h5")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out" / "volumes.h5"


# --- what is written


def test_slices_are_those_on_disk_and_no_half_file_is_left(dataset: Path, output: Path, one_process: None) -> None:
    summary = prepare(dataset, output)
    assert summary.failed == []
    expected = [np.asarray(Image.open(path)) for source in sources(output) for path in sorted((dataset / source).iterdir())]
    with h5py.File(output, "r") as file:
        assert np.array_equal(file["slices"][...], np.stack(expected))
    assert sorted(path.name for path in output.parent.iterdir()) == ["quality.csv", "volumes.h5", "volumes.run.json", "volumes.table.csv"]


def test_several_processes_write_the_same_as_one(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    """Scans of 31 to 33 slices: one task, or two, or two and one slice."""
    root = make_dataset(tmp_path / "CC-CCII", patients=3, slices=31)
    cut_short(root / "CP" / "101" / "1" / "0020.png")
    for workers in (1, 3):
        assert len(prepare(root, tmp_path / f"{workers}.h5", on_problem="drop", workers=workers).failed) == 1
    assert content(tmp_path / "1.h5") == content(tmp_path / "3.h5")


def test_table_adds_up_and_agrees_with_the_disk(dataset: Path, output: Path, one_process: None) -> None:
    prepare(dataset, output, depth=3)
    with output.with_suffix(".table.csv").open() as file:
        rows = {(row.pop("class"), row.pop("split")): {name: int(count) for name, count in row.items()} for row in csv.DictReader(file)}
    assert len(rows) == 16
    for name in ("patients", "scans", "slices", "volumes"):
        for label in ("NCP", "CP", "Normal", "all"):
            assert rows[label, "all"][name] == sum(rows[label, part][name] for part in ("train", "valid", "test"))
        for part in ("train", "valid", "test", "all"):
            assert rows["all", part][name] == sum(rows[label, part][name] for label in ("NCP", "CP", "Normal"))
    for label in ("NCP", "CP", "Normal"):
        lengths = [len(list(scan.iterdir())) for scan in (dataset / label).glob("*/*")]
        expected = {"patients": 5, "scans": 5, "slices": sum(lengths), "volumes": sum(length // 3 for length in lengths)}
        assert rows[label, "all"] == expected
        assert [rows[label, part]["patients"] for part in ("train", "valid", "test")] == [3, 1, 1]


def test_dropped_tails_are_counted(dataset: Path, output: Path, one_process: None, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(dataset, output, quiet=False, depth=3)
    tails = sum(len(list(scan.iterdir())) % 3 for scan in dataset.glob("*/*/*"))
    assert f"{tails} slices at the ends of scans, too few for a volume of depth 3" in capsys.readouterr().err
    with h5py.File(output, "r") as file:
        assert len(file["slices"]) - 3 * len(file["volumes"]) == tails > 0


def test_scan_shorter_than_a_volume_is_kept_for_other_depths_and_named(
    dataset: Path, make_scan: Callable[..., Path], output: Path, one_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    make_scan(dataset / "CP" / "100" / "2", slices=3)
    summary = prepare(dataset, output)
    said = capsys.readouterr().err
    assert "CP/100/2: 3 slices" in said and "depth of 4" in said
    assert summary.failed == []
    assert "CP/100/2" in sources(output)


def test_all_scans_of_a_patient_stay_together_across_classes(
    dataset: Path, make_scan: Callable[..., Path], output: Path, one_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for source in ("NCP/0/2", "NCP/0/3", "CP/0/1", "Normal/0/9"):
        make_scan(dataset / source)
    for seed in range(4):
        prepare(dataset, output, seed=seed, overwrite=True)
        assert "1 patient id occurs in several classes (0)" in capsys.readouterr().err
        with h5py.File(output, "r") as file:
            parts = dict(zip(sources(output), file["scans/split"].asstr()[...].tolist(), strict=True))
        assert len({parts[source] for source in ("NCP/0/1", "NCP/0/2", "NCP/0/3", "CP/0/1", "Normal/0/9")}) == 1


def test_split_file_is_obeyed(dataset: Path, output: Path, tmp_path: Path, one_process: None) -> None:
    patients = sorted(folder.name for folder in dataset.glob("*/*"))
    wanted = {patient: ("test", "valid", "train", "train")[position % 4] for position, patient in enumerate(patients)}
    lines = ["patient,split", *(f"{patient},{part}" for patient, part in wanted.items())]
    (tmp_path / "split.csv").write_text("\n".join(lines))
    prepare(dataset, output, split_file=tmp_path / "split.csv")
    with h5py.File(output, "r") as file:
        assert dict(zip(file["scans/patient"].asstr()[...], file["scans/split"].asstr()[...], strict=True)) == wanted


def test_all_that_is_wrong_in_the_split_file_is_said_before_a_slice_is_packed(
    dataset: Path, output: Path, tmp_path: Path, one_process: None
) -> None:
    (tmp_path / "split.csv").write_text("patient,split\n0,train\n1,training\n")
    with pytest.raises(InputError, match=r"(?s)patient 1: split 'training'.*patient 2: not in the file"):
        prepare(dataset, output, split_file=tmp_path / "split.csv")
    assert not output.exists() and not output.with_name("volumes.h5.partial").exists()


def test_part_without_a_class_is_named(
    make_dataset: Callable[..., Path], tmp_path: Path, output: Path, one_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(make_dataset(tmp_path / "small", patients=2), output)
    found = capsys.readouterr().err
    assert "the valid part is empty" in found and "--split-file" in found
    assert "the test part" not in found


def test_segmented_scans_among_real_ones_are_counted_by_class(
    sample_data: Path, tmp_path: Path, output: Path, one_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for origin in ("ccccii/NCP/16/1164", "ccccii/CP/1068/3107", "ccccii-segmented/NCP/96/1328", "ccccii-segmented/Normal/1995/500"):
        folder = tmp_path / "real" / origin.split("/", 1)[1]
        folder.mkdir(parents=True)
        for path in sorted((sample_data / origin).iterdir())[60:65]:
            (folder / path.name).symlink_to(path)
    prepare(tmp_path / "real", output, images="all")
    assert "segmented scans (black outside the lungs) among the scans: NCP 1 of 2, CP 0 of 1, Normal 1 of 1." in capsys.readouterr().err


# --- runs that end early


@pytest.mark.parametrize("count", [0, 1, 7, 15])
def test_run_that_broke_off_after_some_scans_is_continued_to_the_same_file(
    count: int,
    dataset: Path,
    undisturbed: dict[str, Any],
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        leave_after(patch, count, fail)
        prepare(dataset, output)
    assert not output.exists()
    assert card(output)["status"] == "failed"
    decoded = set()
    encode = module.encode_slices

    def noting(job: Job) -> object:
        decoded.add(job.scan.folder)
        return encode(job)

    monkeypatch.setattr(module, "encode_slices", noting)
    prepare(dataset, output, quiet=False)
    assert content(output) == undisturbed
    # What is there already is not decoded again.
    assert len(decoded) == 15 - count
    assert (f", which has {count} of 15 scans" in capsys.readouterr().err) == (count > 0)
    assert not output.with_name("volumes.h5.partial").exists()
    assert card(output)["status"] == "done"


def test_run_that_broke_off_within_a_scan_is_continued_to_the_same_file(
    dataset: Path, undisturbed: dict[str, Any], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        add = VolumesWriter.add

        def adding(self: VolumesWriter, row: Any, chunks: list[Any]) -> None:
            broken = ((fail() if index == 3 else chunk) for index, chunk in enumerate(chunks))
            add(self, row, broken if len(self.rows) == 6 else chunks)

        patch.setattr(VolumesWriter, "add", adding)
        prepare(dataset, output)
    prepare(dataset, output)
    assert content(output) == undisturbed


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_signal_stops_after_the_scan_in_hand_and_the_same_command_resumes(
    number: signal.Signals, code: int, dataset: Path, undisturbed: dict[str, Any], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        monkeypatch.context() as patch,
        pytest.raises(StoppedError, match=r"4 scans packed\. Run the same command again") as caught,
    ):
        leave_after(patch, 4, lambda: signal.raise_signal(number))
        prepare(dataset, output)
    assert caught.value.exit_code == code
    assert card(output)["status"] == "stopped"
    assert len(sources(output.with_name("volumes.h5.partial"))) == 4
    prepare(dataset, output)
    assert content(output) == undisturbed


def end_midway(
    dataset: Path, size: int, written: tuple[int, int], folder: Path, end: Callable[[subprocess.Popen[str]], object]
) -> tuple[Path, int, str]:
    """Run the command and end it at some moment when it has written so many bytes; the output, the exit status and stderr.

    Every process has ended when this returns, since each of them holds the pipe whose end is waited for.
    """
    for attempt in range(10):
        output = folder / str(attempt) / "volumes.h5"
        partial = output.with_name("volumes.h5.partial")
        enough = random.uniform(*written)
        line = [sys.executable, "-m", "ctcovid", "prepare", dataset, "--size", size, "--workers", 1, "--output", output]
        process = subprocess.Popen(
            list(map(str, line)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        while process.poll() is None:
            if partial.exists() and partial.stat().st_size > enough:
                end(process)
                break
            time.sleep(0.0005)
        messages = process.communicate(timeout=60)[1]
        if not output.exists():
            return output, process.returncode, messages
    pytest.fail("the command was ready before it could be ended, ten times")


def test_killed_run_is_continued_to_the_same_file_and_leaves_no_process(tmp_path: Path, one_process: None) -> None:
    """24 scans of 20 slices, which take long enough to pack."""
    generator = np.random.default_rng(0)
    for number in range(24):
        folder = tmp_path / "CC-CCII" / ("NCP", "CP", "Normal")[number % 3] / str(number) / "1"
        folder.mkdir(parents=True)
        for position in range(20):
            Image.fromarray(generator.integers(0, 256, (48, 48), dtype=np.uint8)).save(folder / f"{position:04d}.png")
    prepare(tmp_path / "CC-CCII", tmp_path / "undisturbed.h5", size=48)
    output, status, _ = end_midway(tmp_path / "CC-CCII", 48, (100_000, 600_000), tmp_path, subprocess.Popen.kill)
    assert status == -signal.SIGKILL
    assert card(output)["status"] == "running"
    prepare(tmp_path / "CC-CCII", output, size=48)
    assert content(output) == content(tmp_path / "undisturbed.h5")


def test_sigterm_to_the_whole_process_group_stops_in_order_with_status_75(tmp_path: Path) -> None:
    """What SLURM does: the worker hears the signal too, in the midst of decoding what the command waits for."""
    generator = np.random.default_rng(0)
    for position, item in enumerate(slices_of_chest("NCP", 16, 64, ScanKey())):
        pixels = np.clip(np.kron(item.pixels, np.ones((16, 16))) + generator.normal(0, 10, (1024, 1024)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{position}.png")
    for number in range(6):
        folder = tmp_path / "CC-CCII" / "NCP" / str(number) / "1"
        folder.mkdir(parents=True)
        for position in range(16):
            (folder / f"{position:04d}.png").symlink_to(tmp_path / f"{position}.png")

    def end(process: subprocess.Popen[str]) -> None:
        # The first scan is in the file, and decoding the second takes longer than this.
        time.sleep(0.05)
        os.killpg(process.pid, signal.SIGTERM)

    output, status, messages = end_midway(tmp_path / "CC-CCII", 128, (100_000, 200_000), tmp_path, end)
    assert status == 75, messages
    assert "Stopped by SIGTERM." in messages and "Run the same command again to resume" in messages and "Traceback" not in messages
    assert card(output)["status"] == "stopped"
    packed = sources(output.with_name("volumes.h5.partial"))
    assert packed == [f"NCP/{number}/1" for number in range(len(packed))] and len(packed) >= 1


@pytest.mark.parametrize("garbage", [b"", b"not HDF5 at all" * 1000, b"\x89HDF\r\n\x1a\n" + bytes(range(256)) * 50])
def test_partial_file_of_garbage_is_begun_anew(garbage: bytes, dataset: Path, undisturbed: dict[str, Any], output: Path) -> None:
    output.parent.mkdir()
    output.with_name("volumes.h5.partial").write_bytes(garbage)
    prepare(dataset, output)
    assert content(output) == undisturbed


@pytest.mark.parametrize("changed", [{"seed": 1}, {"depth": 2}, {"size": 48}, {"split": "50/25/25"}], ids=str)
def test_other_settings_begin_anew(
    changed: dict[str, Any], dataset: Path, output: Path, one_process: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        leave_after(patch, 5, fail)
        prepare(dataset, output)
    prepare(dataset, output, **changed)
    prepare(dataset, tmp_path / "fresh.h5", **changed)
    assert content(output) == content(tmp_path / "fresh.h5")


def test_slice_that_changed_since_begins_anew(
    dataset: Path, make_scan: Callable[..., Path], output: Path, one_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a BMP, whose size does not tell."""
    make_scan(dataset / "CP" / "99" / "1", extension="bmp")
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        leave_after(patch, 5, fail)
        prepare(dataset, output)
    assert sources(output.with_name("volumes.h5.partial"))[0] == "CP/99/1"
    Image.fromarray(np.eye(SIZE, dtype=np.uint8)).save(dataset / "CP" / "99" / "1" / "0000.bmp")
    prepare(dataset, output)
    with h5py.File(output, "r") as file:
        assert np.array_equal(file["slices"][0], np.eye(SIZE))


def test_label_that_changed_since_begins_anew(dataset: Path, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a list, whose paths and files stay as they were."""
    rows = [(folder.relative_to(tmp_path), folder.parts[-3], folder.parts[-2]) for folder in sorted(dataset.glob("*/*/*"))]

    def write(rows: list[tuple[Path, str, str]]) -> Path:
        (tmp_path / "scans.csv").write_text(
            "path,label,patient\n" + "".join(f"{path},{label},{patient}\n" for path, label, patient in rows)
        )
        return tmp_path / "scans.csv"

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        leave_after(patch, 5, fail)
        prepare(write(rows), output)
    (path, label, _), *others = rows
    prepare(write([(path, label, "renamed"), *others]), output)
    with h5py.File(output, "r") as file:
        assert file["scans/patient"].asstr()[0] == "renamed"


def test_damaged_scan_stays_left_out_and_named_when_the_run_continues(
    dataset: Path, output: Path, one_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = cut_short(dataset / "CP" / "101" / "1" / "0004.png")
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        leave_after(patch, 5, fail)
        prepare(dataset, output, on_problem="drop")
    summary = prepare(dataset, output, on_problem="drop")
    (failed,) = summary.failed
    assert str(damaged) in failed
    assert len(sources(output)) == 14 and "CP/101/1" not in sources(output)


# --- what cannot be used


def test_damaged_scans_are_left_out_and_named_and_the_others_are_written(
    dataset: Path, output: Path, tmp_path: Path, one_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(dataset, tmp_path / "whole.h5")
    before = pixels(tmp_path / "whole.h5")
    late = cut_short(dataset / "CP" / "101" / "1" / "0004.png")
    early = dataset / "NCP" / "3" / "1" / "0002.png"
    early.write_bytes(b"")
    text = dataset / "Normal" / "200" / "1" / "0000.png"
    text.write_text("not a picture")
    summary = prepare(dataset, output, on_problem="drop")
    assert len(summary.failed) == 3
    messages = capsys.readouterr().err
    for path in (late, early, text):
        assert sum(str(path) in failed for failed in summary.failed) == 1
        assert str(path) in messages
    # The others are what they are without the damage.
    found = pixels(output)
    assert found.keys() == before.keys() - {"CP/101/1", "NCP/3/1", "Normal/200/1"}
    assert all(np.array_equal(found[source], before[source]) for source in found)


def test_line_ends_with_4_where_some_scans_failed_and_its_json_names_them(dataset: Path, tmp_path: Path) -> None:
    damaged = cut_short(dataset / "CP" / "101" / "1" / "0004.png")
    (dataset / "NCP" / "77" / "1").mkdir(parents=True)
    done = ctcovid(tmp_path, "prepare", dataset, "--size", SIZE, "--workers", 1, "--on-problem", "drop", "--json")
    assert done.returncode == 4
    document = json.loads(done.stdout)
    assert document["output"] == "volumes.h5"
    assert [str(path) in failed for path, failed in zip((dataset / "NCP" / "77" / "1", damaged), document["failed"], strict=True)] == [
        True
    ] * 2
    assert {"class": "all", "split": "all", "patients": 14, "scans": 14, "slices": 123, "volumes": 28} in document["table"]
    assert str(damaged) in done.stderr and "Traceback" not in done.stderr
    assert len(sources(tmp_path / "volumes.h5")) == 14


def test_line_ends_with_3_where_no_scan_can_be_used_and_writes_no_volumes(dataset: Path, tmp_path: Path) -> None:
    for path in dataset.rglob("0001.png"):
        path.write_bytes(b"")
    done = ctcovid(tmp_path, "prepare", dataset, "--size", SIZE, "--workers", 1, "--on-problem", "drop")
    assert done.returncode == 3
    assert done.stdout == ""
    assert f"No scan under {dataset} can be used" in done.stderr and "0001.png: the file is empty" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "volumes.h5").exists()
    assert card(tmp_path / "volumes.h5")["status"] == "failed"


def test_data_set_whose_scans_all_fail_to_decode_is_an_input_error(dataset: Path, output: Path, one_process: None) -> None:
    for path in dataset.rglob("0001.png"):
        cut_short(path)
    with pytest.raises(InputError, match=r"(?s)No scan under .* can be used:.*0001\.png: damaged"):
        prepare(dataset, output, on_problem="drop")
    assert not output.exists()


def test_all_that_is_wrong_with_the_line_is_found_before_anything_is_written(
    dataset: Path, output: Path, tmp_path: Path, one_process: None
) -> None:
    (tmp_path / "split.csv").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="--split 60/40"):
        prepare(dataset, output, split="60/40")
    with pytest.raises(UsageError, match="--split and --split-file exclude each other"):
        prepare(dataset, output, split_file=tmp_path / "split.csv", sources={"split": "option"})
    with pytest.raises(InputError, match="--positive COVID: no such class"):
        prepare(dataset, output, positive="COVID")
    with pytest.raises(InputError, match="No such file or folder"):
        prepare(tmp_path / "absent", output)
    with pytest.raises(InputError, match="It is empty"):
        prepare(tmp_path / "empty", output)
    assert not output.parent.exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_in_the_outputs_place_is_found_before_the_work(overwrite: bool, dataset: Path, output: Path, one_process: None) -> None:
    output.mkdir(parents=True)
    with pytest.raises(CtcovidError) as caught:
        prepare(dataset, output, overwrite=overwrite)
    assert caught.value.exit_code in (2, 3, 5) and str(output) in str(caught.value)
    assert list(output.parent.iterdir()) == [output]


def test_file_in_the_place_of_the_outputs_folder_is_an_input_error(dataset: Path, tmp_path: Path, one_process: None) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CtcovidError) as caught:
        prepare(dataset, tmp_path / "file" / "volumes.h5")
    assert caught.value.exit_code in (2, 3) and str(tmp_path / "file") in str(caught.value)


# --- the line as a user types it


def test_shortest_line_writes_volumes_h5_here_and_the_next_one_touches_nothing(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    done = ctcovid(tmp_path / "here", "prepare", dataset, "--size", SIZE, CTCOVID_WORKERS="1")
    assert done.returncode == 0
    assert done.stdout.startswith("| class  | split | patients | scans | slices | volumes |")
    assert "Wrote volumes.h5, volumes.table.csv and quality.csv." in done.stderr
    before = snapshot(tmp_path)
    again = ctcovid(tmp_path / "here", "prepare", dataset, "--size", SIZE)
    assert again.returncode == 5
    assert again.stdout == ""
    assert again.stderr == "Error: volumes.h5 exists already. Name another output, or pass --overwrite to replace it.\n"
    assert snapshot(tmp_path) == before


def test_existing_output_is_replaced_only_with_overwrite_and_only_when_the_new_one_is_complete(
    dataset: Path, output: Path, one_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(dataset, output)
    before = output.read_bytes()
    with pytest.raises(OutputExistsError):
        prepare(dataset, output, seed=1)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        leave_after(patch, 14, fail)
        prepare(dataset, output, seed=1, overwrite=True)
    assert output.read_bytes() == before
    prepare(dataset, output, seed=1, overwrite=True)
    assert json.loads(content(output)["@settings"])["seed"] == 1


def test_settings_come_from_option_environment_file_and_default_in_this_order(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text('seed = 11\nsize = 48\n[prepare]\ndepth = 2\nsplit = "80/10/10"\n')
    line = ("prepare", dataset, "--size", SIZE, "--workers", 1, "--config", "settings.toml", "--quiet")
    done = ctcovid(tmp_path, *line, CTCOVID_SEED="3", CTCOVID_SIZE="64")
    assert done.returncode == 0
    settings = card(tmp_path / "volumes.h5")["settings"]
    assert {name: tuple(settings[name].values()) for name in ("size", "seed", "depth", "split", "positive")} == {
        "size": (SIZE, "option"),
        "seed": (3, "environment"),
        "depth": (2, "file"),
        "split": ("80/10/10", "file"),
        "positive": (None, "default"),
    }
    with h5py.File(tmp_path / "volumes.h5", "r") as file:
        assert file["volumes"].shape[1:] == (2, SIZE, SIZE)
    # --quiet: the table, and no messages.
    assert done.stdout.startswith("| class") and done.stderr == ""


def test_run_card_names_input_output_and_seed(dataset: Path, output: Path, one_process: None) -> None:
    prepare(dataset, output, seed=5)
    found = card(output)
    assert (found["command"], found["status"], found["seed"]) == ("prepare", "done", 5)
    assert found["outputs"] == [str(output.with_name("quality.csv")), str(output), str(output.with_suffix(".table.csv"))]
    assert found["inputs"][0]["path"] == str(dataset.resolve())
    first = found["inputs"][0]["hash"]
    Image.fromarray(np.eye(SIZE, dtype=np.uint8)).save(dataset / "CP" / "100" / "1" / "0000.png")
    prepare(dataset, output, seed=5, overwrite=True)
    assert card(output)["inputs"][0]["hash"] != first
