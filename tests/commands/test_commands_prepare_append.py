"""ctcovid prepare --append: scans join a file, and nothing of what is in it is read again or moved."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image
from test_commands_prepare import OneProcess, content, ctcovid, cut_short, fail, leave_after, pixels, prepare, snapshot, sources

from ctcovid.base.console import Console
from ctcovid.base.errors import InputError, UsageError
from ctcovid.commands import prepare as module
from ctcovid.commands.prepare import Options
from ctcovid.volumes.encode import Job
from ctcovid.volumes.reader import VolumesFile


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Workers", OneProcess)


@pytest.fixture
def dataset(make_dataset: Callable[..., Path], tmp_path: Path) -> Path:
    """Fifteen patients in three classes, one scan of 8 to 10 slices each."""
    return make_dataset(tmp_path / "CC-CCII")


@pytest.fixture
def output(dataset: Path, tmp_path: Path) -> Path:
    prepare(dataset, tmp_path / "out" / "volumes.h5")
    return tmp_path / "out" / "volumes.h5"


def sources_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sources of the scans whose slices are decoded from now on, once for each job."""
    read: list[str] = []
    encode = module.encode_slices

    def noting(job: Job) -> object:
        read.append(job.scan.source)
        return encode(job)

    monkeypatch.setattr(module, "encode_slices", noting)
    return read


def append(dataset: Path, output: Path, **options: Any) -> Any:
    """As from the command line, where what is not given has no source."""
    quiet = Console(quiet=True, results=False)
    return module.run(Options(dataset, output=output, append=True, workers=1, **options, sources=dict.fromkeys(options, "option")), quiet)


def parts(path: Path) -> dict[str, str]:
    return {row.patient: row.split for row in VolumesFile(path).rows}


def grow(dataset: Path, make_scan: Callable[..., Path]) -> list[str]:
    """A second scan of every third patient, and ten new patients of each class; the sources of the new scans."""
    new = [f"{folder.parent.name}/{folder.name}/2" for folder in sorted(dataset.glob("*/*"))[::3]]
    new += [f"{label}/{name}{number}/1" for label, name in (("NCP", "n"), ("CP", "c"), ("Normal", "h")) for number in range(10)]
    for number, source in enumerate(new):
        make_scan(dataset / source, level=40 + 3 * number)
    return new


def test_old_scans_are_not_read_again_and_no_patient_moves(
    dataset: Path, output: Path, make_scan: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, parts_before = pixels(output), parts(output)
    new = grow(dataset, make_scan)
    for path in dataset.glob("*/*/1/*.png"):
        if path.parent.relative_to(dataset).as_posix() in before:
            path.write_bytes(b"not to be opened again")
    read = sources_read(monkeypatch)
    summary = append(dataset, output)
    assert summary.failed == []
    assert sorted(set(read)) == sorted(new)
    after, parts_after = pixels(output), parts(output)
    assert all(np.array_equal(after[source], before[source]) for source in before)
    assert sources(output)[: len(before)] == list(before) and after.keys() == before.keys() | set(new)
    for source in new:
        assert np.array_equal(after[source], np.stack([np.asarray(Image.open(path)) for path in sorted((dataset / source).iterdir())]))
    assert all(parts_after[patient] == part for patient, part in parts_before.items())
    # Of 15 patients of each class 60/20/20 are 9, 3 and 3.
    for label in ("NCP", "CP", "Normal"):
        of_class = {row.patient: row.split for row in VolumesFile(output).rows if row.label == label}
        assert Counter(of_class.values()) == {"train": 9, "valid": 3, "test": 3}


def test_file_is_as_good_as_one_that_was_made_at_once(dataset: Path, output: Path, make_scan: Callable[..., Path], tmp_path: Path) -> None:
    """With the parts of the appended file as a list, a fresh one has the same scans, and /volumes the same volumes of each."""
    grow(dataset, make_scan)
    append(dataset, output)
    with (tmp_path / "parts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("patient", "split"), *parts(output).items()])
    prepare(dataset, tmp_path / "fresh.h5", split_file=tmp_path / "parts.csv")

    def volumes(path: Path) -> dict[str, Any]:
        with h5py.File(path, "r") as file:
            names = np.array(sources(path))[file["volume_scan"][...]]
            found: dict[str, Any] = {}
            for name, volume in zip(names, file["volumes"][...], strict=True):
                found.setdefault(str(name), []).append(volume.tolist())
            return found

    assert volumes(output) == volumes(tmp_path / "fresh.h5")
    assert parts(output) == parts(tmp_path / "fresh.h5")
    one, other = (VolumesFile(path).rows for path in (output, tmp_path / "fresh.h5"))
    assert sorted((row.source, row.checks, row.slice_count, row.image_kind) for row in one) == sorted(
        (row.source, row.checks, row.slice_count, row.image_kind) for row in other
    )


@pytest.mark.parametrize("count", [15, 16, 30, 50])
def test_killed_append_leaves_the_file_and_is_resumed_to_the_same(
    count: int, dataset: Path, output: Path, make_scan: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow(dataset, make_scan)
    shutil.copytree(output.parent, tmp_path / "undisturbed")
    append(dataset, tmp_path / "undisturbed" / "volumes.h5")
    before = output.read_bytes()
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        leave_after(patch, count, fail)
        if count == 15:
            patch.setattr(module, "_write_scans", lambda *given: fail())
        append(dataset, output)
    assert output.read_bytes() == before
    assert len(sources(output.with_name("volumes.h5.partial"))) == count
    read = sources_read(monkeypatch)
    append(dataset, output)
    assert len(set(read)) == 50 - count
    assert content(output) == content(tmp_path / "undisturbed" / "volumes.h5")
    assert not [path.name for path in output.parent.iterdir() if "partial" in path.name]


def test_append_again_and_again_keeps_every_patient_and_the_shares(
    dataset: Path, output: Path, make_scan: Callable[..., Path], tmp_path: Path
) -> None:
    for step in range(6):
        before = parts(output)
        more = tmp_path / f"more-{step}"
        for number in range(3):
            make_scan(more / "NCP" / f"{step}-{number}" / "1", level=50 + 9 * step + number)
        append(more, output)
        assert before.items() <= parts(output).items()
    of_class = {row.patient: row.split for row in VolumesFile(output).rows if row.label == "NCP"}
    assert {part: abs(list(of_class.values()).count(part) - share * len(of_class)) <= 1 for part, share in SHARES.items()} == dict.fromkeys(
        SHARES, True
    )


SHARES = {"train": 0.6, "valid": 0.2, "test": 0.2}


def test_scan_that_was_left_out_is_remembered_and_not_read_again(
    dataset: Path, make_scan: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out" / "volumes.h5"
    cut_short(dataset / "CP" / "101" / "1" / "0004.png")
    assert len(prepare(dataset, output, on_problem="drop").failed) == 1
    first = output.with_name("quality.csv").read_text()
    make_scan(dataset / "CP" / "new" / "1", level=99)
    read = sources_read(monkeypatch)
    summary = append(dataset, output)
    assert summary.failed == [] and set(read) == {"CP/new/1"}
    assert "CP/101/1" not in sources(output)
    assert [row.source for row in VolumesFile(output).left_out] == ["CP/101/1"]
    assert output.with_name("quality.csv").read_text() == first
    assert append(dataset, output).failed == []


def test_nothing_new_touches_nothing(dataset: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(output.parent)
    module.run(Options(dataset, output=output, append=True), Console(results=False))
    assert "There is nothing to add." in capsys.readouterr().err
    assert snapshot(output.parent) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 48}, "prepared with size 32: --size 48 does not fit"),
        ({"depth": 8}, "prepared with depth 4: --depth 8 does not fit"),
        ({"window": "40/400"}, "prepared with window -600/1500: --window 40/400 does not fit"),
        ({"split": "80/10/10"}, "prepared with split 60/20/20: --split 80/10/10 does not fit"),
        ({"seed": 3}, "prepared with seed 0: --seed 3 does not fit"),
        ({"images": "all"}, "prepared with images complete: --images all does not fit"),
        ({"on_problem": "drop"}, "prepared with on-problem repair: --on-problem drop does not fit"),
        ({"positive": "CP"}, "prepared with positive NCP: --positive CP does not fit"),
        ({"keep_ids": True}, "prepared with keep-ids False: --keep-ids does not fit"),
        ({"balance": True}, "--append and --balance exclude each other"),
        ({"overwrite": True}, "--append and --overwrite exclude each other"),
        ({"check": True}, "--append and --check exclude each other"),
    ],
    ids=str,
)
def test_other_settings_than_the_files_are_refused(
    options: dict[str, Any], said: str, dataset: Path, output: Path, make_scan: Callable[..., Path]
) -> None:
    make_scan(dataset / "CP" / "new" / "1", level=99)
    before = snapshot(output.parent)
    with pytest.raises(UsageError, match=said):
        append(dataset, output, **options)
    assert snapshot(output.parent) == before
    # The same settings may be said.
    append(dataset, output, size=32, depth=4, window="-600/1500", split="60/20/20", positive="NCP")
    assert "CP/new/1" in sources(output)


def test_new_class_is_refused_and_a_file_of_less_classes_joins(
    dataset: Path, output: Path, make_scan: Callable[..., Path], tmp_path: Path
) -> None:
    make_scan(tmp_path / "more" / "Normal" / "new" / "1", level=99)
    append(tmp_path / "more", output)
    assert VolumesFile(output).classes == ["NCP", "CP", "Normal"]
    make_scan(tmp_path / "more" / "Fibrosis" / "f" / "1", level=99)
    before = snapshot(output.parent)
    with pytest.raises(InputError, match=r"has the classes NCP, CP, Normal, and the new scans also Fibrosis\..*another --output"):
        append(tmp_path / "more", output)
    assert snapshot(output.parent) == before


def test_there_is_nothing_to_add_to(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no .*absent\.h5 to add to"):
        append(dataset, tmp_path / "absent.h5")


def test_balanced_file_takes_no_more_scans(dataset: Path, tmp_path: Path, make_scan: Callable[..., Path]) -> None:
    prepare(dataset, tmp_path / "volumes.h5", balance=True)
    make_scan(dataset / "CP" / "new" / "1", level=99)
    with pytest.raises(UsageError, match="prepared with --balance or --same-as"):
        append(dataset, tmp_path / "volumes.h5")


def test_list_of_parts_names_the_new_patients_and_moves_no_old_one(dataset: Path, tmp_path: Path, make_scan: Callable[..., Path]) -> None:
    output, listed = tmp_path / "volumes.h5", tmp_path / "parts.csv"
    patients = sorted(folder.name for folder in dataset.glob("*/*"))
    lines = [f"{patient},{('test', 'valid', 'train')[number % 3]}" for number, patient in enumerate(patients)]
    listed.write_text("\n".join(["patient,split", *lines]))
    prepare(dataset, output, split_file=listed)
    make_scan(dataset / "CP" / "new" / "1", level=99)
    make_scan(dataset / "CP" / "100" / "2", level=98)
    before = parts(output)
    with pytest.raises(UsageError, match="split by a list, so pass --split-file"):
        append(dataset, output)
    other = {"train": "test", "test": "valid", "valid": "train"}[before["100"]]
    listed.write_text(f"patient,split\nnew,valid\n100,{other}\n")
    with pytest.raises(InputError, match=f"patient 100: in {before['100']}, not in {other}"):
        append(dataset, output, split_file=listed)
    listed.write_text(f"patient,split\nnew,valid\n100,{before['100']}\n")
    append(dataset, output, split_file=listed)
    assert parts(output) == {**before, "new": "valid"}


def test_patients_whose_salt_is_gone_are_not_given_other_names(
    chest: np.ndarray, write_series: Callable[..., list[Path]], tmp_path: Path
) -> None:
    values = np.concatenate([chest] * 2)
    for number in range(3):
        write_series(tmp_path / "data" / "NCP" / f"{number}", values, study=f"1.2.{number}", PatientID=f"P-{number}")
        write_series(tmp_path / "data" / "CP" / f"{number}", values, study=f"1.3.{number}", PatientID=f"Q-{number}")
    output = tmp_path / "out" / "volumes.h5"
    prepare(tmp_path / "data", output, images="all")
    salt = output.with_name("volumes.h5.salt")
    write_series(tmp_path / "data" / "NCP" / "7", values, study="1.2.7", PatientID="P-7")
    before = parts(output)
    for damage in (lambda: salt.rename(tmp_path / "kept"), lambda: salt.write_bytes(bytes(32))):
        damage()
        with pytest.raises(InputError, match="is not the salt of the pseudonyms in"):
            append(tmp_path / "data", output)
        assert parts(output) == before
    shutil.copy(tmp_path / "kept", salt)
    append(tmp_path / "data", output)
    assert before.items() < parts(output).items() and len(parts(output)) == len(before) + 1


def test_line_as_a_user_types_it(dataset: Path, make_scan: Callable[..., Path], tmp_path: Path) -> None:
    assert ctcovid(tmp_path, "prepare", dataset, "--size", 32, "--workers", 1).returncode == 0
    make_scan(dataset / "CP" / "new" / "1", level=99)
    done = ctcovid(tmp_path, "prepare", dataset, "--append", "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert "volumes.h5 has 15 scans, among them 15 of the 16 here." in done.stderr
    assert VolumesFile(tmp_path / "volumes.h5").size == 32 and len(sources(tmp_path / "volumes.h5")) == 16
