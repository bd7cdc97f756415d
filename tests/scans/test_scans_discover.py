"""Find scans on disk, and order their slices."""

from __future__ import annotations

import csv
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st

from ctcovid.base.errors import InputError
from ctcovid.scans.classes import class_order, positive_class
from ctcovid.scans.contents import natural_key
from ctcovid.scans.discover import find_dataset, find_scans
from ctcovid.scans.findings import WARNING


def touch(folder: Path, *names: str) -> Path:
    """A folder of empty files: finding does not open them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def write_volumes(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        values = np.random.default_rng(len(name)).normal(-700, 60, (9, 24, 20)).astype(np.int16)
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), str(folder / f"{name}.nii.gz"))


def names(slices: tuple[Path, ...]) -> list[str]:
    return [path.name for path in slices]


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 10**6), unique=True, max_size=20),
    st.sampled_from(["{}", "IM{}", "0920_CT-{}", "scan 2 slice {}"]),
    st.randoms(),
)
def test_unpadded_numbers_come_in_the_order_of_numbers(numbers: list[int], pattern: str, shuffler: random.Random) -> None:
    mixed = [pattern.format(number) + ".png" for number in numbers]
    shuffler.shuffle(mixed)
    assert sorted(mixed, key=natural_key) == [pattern.format(number) + ".png" for number in sorted(numbers)]


@settings(deadline=None)
@given(st.lists(st.integers(0, 9999), unique=True))
def test_padded_numbers_keep_their_plain_order(numbers: list[int]) -> None:
    padded = [f"{number:04d}.png" for number in numbers]
    assert sorted(padded, key=natural_key) == sorted(padded)


@settings(deadline=None)
@given(st.lists(st.text(max_size=8), unique=True, max_size=8), st.randoms())
def test_order_of_any_names_does_not_depend_on_the_order_they_were_listed_in(texts: list[str], shuffler: random.Random) -> None:
    mixed = list(texts)
    shuffler.shuffle(mixed)
    assert sorted(mixed, key=natural_key) == sorted(texts, key=natural_key)


def test_capitals_do_not_part_the_slices_of_a_scan() -> None:
    assert sorted(["im10.png", "IM2.png", "Im1.PNG", "im03.png"], key=natural_key) == ["Im1.PNG", "IM2.png", "im03.png", "im10.png"]


@pytest.mark.parametrize("extension", ["png", "PNG", "jpg", "JPG", "Jpg", "jpeg", "JPEG", "tif", "TIFF", "bmp", "BMP"])
def test_slices_are_found_by_extension_in_any_case(extension: str, tmp_path: Path) -> None:
    touch(tmp_path / "NCP" / "0" / "1", f"10.{extension}", f"9.{extension}")
    (scan,), problems = find_dataset(tmp_path)
    assert names(scan.slices) == [f"9.{extension}", f"10.{extension}"]
    assert problems == []


def test_what_is_no_slice_is_passed_over(tmp_path: Path) -> None:
    touch(tmp_path / "NCP" / "16" / "1164", "0000.png", ".0001.png", "._0000.png", ".DS_Store", "Thumbs.db", "notes.txt", "png")
    (tmp_path / "NCP" / "16" / "1164" / "0002.png").mkdir()
    touch(tmp_path / "NCP" / "16" / ".hidden", "0000.png")
    touch(tmp_path / "__MACOSX" / "16" / "1164", "0000.png")
    touch(tmp_path, "metadata.csv", "unzip_filenames.csv")
    (scan,), problems = find_dataset(tmp_path)
    assert names(scan.slices) == ["0000.png"]
    assert problems == []


def test_scan_knows_its_class_patient_id_and_folder(tmp_path: Path) -> None:
    touch(tmp_path / "NCP" / "16" / "1164", "0000.png")
    (scan,), _ = find_dataset(tmp_path)
    assert (scan.label, scan.patient, scan.id, scan.source) == ("NCP", "16", "1164", "NCP/16/1164")
    assert scan.folder == tmp_path / "NCP" / "16" / "1164"


def test_patients_and_scans_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for source in ("NCP/10/2", "NCP/9/11", "NCP/9/2", "NCP/0/1"):
        touch(tmp_path / source, "0.png")
    assert [scan.source for scan in find_dataset(tmp_path)[0]] == ["NCP/0/1", "NCP/9/2", "NCP/9/11", "NCP/10/2"]


def test_whole_cc_ccii_listing_is_found_as_it_stands(sample_data: Path, tmp_path: Path) -> None:
    """The first and last names of every fortieth of 2,073 real scans, in their own extensions."""
    with (sample_data / "ccccii-scan-listing.csv").open() as file:
        rows = list(csv.DictReader(file))[::40]
    expected = {}
    for row in rows:
        source = f"{row['class']}/{row['patient_id']}/{row['scan_id']}"
        slices = [f"{number:04d}.{row['ext']}" for number in dict.fromkeys((int(row["first"]), int(row["last"])))]
        touch(tmp_path / source, *reversed(slices))
        expected[source] = slices
    scans, problems = find_dataset(tmp_path)
    assert {scan.source: names(scan.slices) for scan in scans} == expected
    assert class_order(scan.label for scan in scans) == ["NCP", "CP", "Normal"]
    assert problems == []


def test_real_scans_are_found_whole_and_in_order(sample_data: Path) -> None:
    scans, problems = find_dataset(sample_data / "ccccii")
    found = {scan.source: (names(scan.slices)[0], names(scan.slices)[-1], len(scan.slices)) for scan in scans}
    assert found == {
        "CP/1068/3107": ("0000.jpg", "0167.jpg", 168),
        "NCP/16/1164": ("0000.png", "0147.png", 148),
        "NCP/920/2462": ("0000.JPG", "0049.JPG", 50),
        "Normal/2316/771": ("0000.tif", "0153.tif", 154),
    }
    assert problems == []


def test_classes_come_as_ncp_cp_normal_and_others_after_them(tmp_path: Path) -> None:
    for label in ("Normal", "abscess", "CP", "Tumour", "NCP"):
        touch(tmp_path / label / "1" / "1", "0.png")
    scans, _ = find_dataset(tmp_path)
    assert class_order(scan.label for scan in scans) == ["NCP", "CP", "Normal", "abscess", "Tumour"]
    assert class_order(["Normal", "CP"]) == ["CP", "Normal"]


def test_positive_class_is_the_first_or_the_one_asked_for() -> None:
    assert positive_class(["NCP", "CP", "Normal"], None) == "NCP"
    assert positive_class(["NCP", "CP", "Normal"], "Normal") == "Normal"
    with pytest.raises(InputError, match=r"--positive normal: .*NCP, CP, Normal.*Did you mean 'Normal'"):
        positive_class(["NCP", "CP", "Normal"], "normal")


def test_missing_folder_is_named(tmp_path: Path) -> None:
    for find in (find_dataset, lambda path: find_scans([path])):
        with pytest.raises(InputError, match=f"No such file or folder: {tmp_path}/absent. Check the path"):
            find(tmp_path / "absent")


def test_file_in_place_of_a_folder_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "CC-CCII.zip")
    for find in (find_dataset, lambda path: find_scans([path])):
        with pytest.raises(InputError, match=r"CC-CCII\.zip is a file. Give the folder"):
            find(tmp_path / "CC-CCII.zip")


def test_empty_folder_is_called_empty(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"No scans under {tmp_path}. It is empty.*CLASS/patient/scan/slices"):
        find_dataset(tmp_path)
    with pytest.raises(InputError, match=f"No slices under {tmp_path}. Give a folder with PNG"):
        find_scans([tmp_path])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("NCP", "Its folders are patients"),
        ("NCP/16", "Its folders are scans"),
        ("NCP/16/1164", "It holds slices directly"),
    ],
)
def test_folder_given_at_the_wrong_level_is_told_which_level_it_is(given: str, said: str, tmp_path: Path) -> None:
    touch(tmp_path / "NCP" / "16" / "1164", "0000.png")
    with pytest.raises(InputError) as caught:
        find_dataset(tmp_path / given)
    assert f"No scans under {tmp_path / given}. {said}" in str(caught.value)
    assert "give the folder that holds the class folders" in str(caught.value)


@pytest.mark.parametrize("below", ["NCP/16/1164", "NCP/1164", "NCP"])
def test_folders_of_parts_are_not_taken_for_classes_and_the_list_is_named(below: str, tmp_path: Path) -> None:
    for part in ("train", "Test"):
        touch(tmp_path / part / below, "0000.png", "0001.png")
    with pytest.raises(InputError, match=r"Test, train: names of parts.*Test/NCP/16/1164,NCP,16,test.*path,label,patient,split"):
        find_dataset(tmp_path)


def test_pictures_outside_of_scans_are_named(tmp_path: Path) -> None:
    touch(tmp_path / "NCP" / "16" / "1164", "0000.png")
    touch(tmp_path / "NCP", "0000.png")
    touch(tmp_path / "CP", "0000.png", "0001.png")
    scans, problems = find_dataset(tmp_path)
    assert [scan.source for scan in scans] == ["NCP/16/1164"]
    assert [problem.split(" directly")[0] for problem in problems] == [f"{tmp_path / 'CP'}: 2 pictures", f"{tmp_path / 'NCP'}: 1 picture"]


def test_folder_above_the_data_set_is_told_what_is_there(tmp_path: Path) -> None:
    touch(tmp_path / "CC-CCII" / "NCP" / "16" / "1164", "0000.png")
    with pytest.raises(InputError, match=r"(?s)Class folders are missing; there is\n  CC-CCII\n.*give the folder that holds the class"):
        find_dataset(tmp_path)


def test_what_looks_wrong_beside_sound_scans_is_reported_and_not_fatal(tmp_path: Path) -> None:
    touch(tmp_path / "NCP" / "16" / "1164", "0000.png")
    touch(tmp_path / "NCP" / "17" / "2000")
    touch(tmp_path / "NCP" / "18", "0000.png")
    touch(tmp_path / "documents", "readme.txt")
    scans, problems = find_dataset(tmp_path)
    assert [scan.source for scan in scans] == ["NCP/16/1164"]
    assert [problem.split(":")[0] for problem in problems] == [str(tmp_path / name) for name in ("documents", "NCP/17/2000", "NCP/18")]
    assert all("move" in problem or "remove" in problem for problem in problems)


def test_single_scan_bears_its_folders_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "scan_dir", "2.png", "10.png", "1.png")
    monkeypatch.chdir(tmp_path / "scan_dir")
    for path in (tmp_path / "scan_dir", Path()):
        (scan,) = find_scans([path])
        assert scan.id == "scan_dir"
        assert names(scan.slices) == ["1.png", "2.png", "10.png"]


def test_tree_of_scans_is_searched_at_every_depth(tmp_path: Path) -> None:
    for source in ("b/10", "b/9", "a", "c/d/e"):
        touch(tmp_path / source, "0.png")
    touch(tmp_path / "c" / ".cache", "0.png")
    assert [scan.id for scan in find_scans([tmp_path])] == ["a", "b/9", "b/10", "c/d/e"]


def test_scans_of_several_trees_have_different_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "one" / "1", "0.png")
    touch(tmp_path / "two" / "1", "0.png")
    monkeypatch.chdir(tmp_path)
    assert [scan.id for scan in find_scans([Path("one"), Path("two")])] == ["one/1", "two/1"]


def test_scan_given_twice_is_one_scan(tmp_path: Path) -> None:
    touch(tmp_path / "one", "0.png")
    (tmp_path / "link").symlink_to(tmp_path / "one")
    assert len(find_scans([tmp_path / "one", tmp_path, tmp_path / "link"])) == 1


def test_no_two_scans_share_a_name_whatever_lies_beside_what(make_scan: Callable[..., Path], tmp_path: Path) -> None:
    make_scan(tmp_path / "d" / "p1")
    touch(tmp_path / "d", "p1.nii.gz", "p1.mha", "p2.nii", "p1.mha#2.nrrd")
    expected = ["p1", "p1.mha", "p1.mha#2", "p1.nii.gz", "p2"]
    assert sorted(scan.id for scan in find_scans([tmp_path / "d"])) == expected
    several = find_scans([tmp_path / "d", make_scan(tmp_path / "other")])
    assert sorted(scan.id for scan in several) == sorted([f"{tmp_path}/d/{name}" for name in expected] + [f"{tmp_path}/other"])


def test_no_two_scans_of_a_list_share_a_name(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        touch(tmp_path / name / "ct", "0.png")
    (tmp_path / "one.csv").write_text("path,label,patient,scan\na/ct,NCP,p,\nb/ct,CP,p,\nc/ct,CP,q,\n")
    (tmp_path / "two.csv").write_text("path,patient,scan\nd/ct,q,\n")
    assert [scan.id for scan in find_scans([tmp_path / "one.csv"])] == ["p/a/ct", "p/b/ct", "q"]
    found = find_scans([tmp_path / "one.csv", tmp_path / "two.csv"])
    assert [scan.id for scan in found] == ["p/a/ct", "p/b/ct", "q", "q#2"]


def test_no_sign_in_a_path_parts_a_line_of_a_list(tmp_path: Path) -> None:
    for name in ("a\u2028b", "c\x85d"):
        touch(tmp_path / name, "0.png")
    (tmp_path / "one.csv").write_bytes("path\r\na\u2028b\r\nc\x85d\r\n".encode())
    assert [scan.id for scan in find_scans([tmp_path / "one.csv"])] == [r"a\u2028b", r"c\x85d"]


def test_a_patients_folder_and_file_of_one_name_are_two_scans(make_scan: Callable[..., Path], tmp_path: Path) -> None:
    make_scan(tmp_path / "NCP" / "16" / "1164")
    touch(tmp_path / "NCP" / "16", "1164.nii.gz")
    touch(tmp_path / "NCP" / "17" / "1164", "0.png")
    found, _ = find_dataset(tmp_path)
    assert [(scan.patient, scan.id) for scan in found] == [("16", "1164"), ("16", "1164.nii.gz"), ("17", "1164")]


def test_real_tree_is_found_scan_by_scan(sample_data: Path, make_scan: Callable[..., Path], tmp_path: Path) -> None:
    found = find_scans([sample_data / "ccccii-segmented"])
    assert [(scan.id, len(scan.slices)) for scan in found] == [("NCP/96/1328", 124), ("Normal/1995/500", 117)]


def test_previews_beside_a_scan_are_no_scan_and_a_mask_beside_pictures_is_none(
    write_series: Callable[..., list[Path]], chest: np.ndarray, make_scan: Callable[..., Path], tmp_path: Path
) -> None:
    write_series(tmp_path / "dicom", chest[:2])
    touch(tmp_path / "dicom", "preview1.png", "preview2.png", "preview3.jpg", "VERSION", "readme.txt")
    touch(tmp_path / "volume", "scan.nii", "preview.png")
    make_scan(tmp_path / "pictures", slices=8)
    touch(tmp_path / "pictures", "mask.nii.gz", "IM.dcm")
    found = {scan.id: {path.suffix for path in scan.slices} or scan.folder.suffix for scan in find_scans([tmp_path])}
    assert found == {"dicom": {""}, "volume/scan": ".nii", "pictures": {".png"}}


def test_volumes_beside_dicom_are_scans_of_their_own(write_series: Callable[..., list[Path]], chest: np.ndarray, tmp_path: Path) -> None:
    write_series(tmp_path / "NCP" / "16" / "1164", chest)
    write_volumes(tmp_path / "NCP" / "16" / "1164", "a", "b")
    found = {scan.source: len(scan.slices) for scan in find_scans([tmp_path])}
    assert found == {"NCP/16/1164": 9, "NCP/16/1164/a.nii.gz": 9, "NCP/16/1164/b.nii.gz": 9}
    scans, problems = find_dataset(tmp_path)
    assert {scan.source: len(scan.slices) for scan in scans} == found and problems == []
    assert len({scan.id for scan in scans}) == 3
    (tmp_path / "NCP" / "16" / "1164").rename(tmp_path / "a")
    assert {scan.id for scan in find_scans([tmp_path / "a"])} == {"a", "a.nii.gz", "b"}


def test_file_that_is_dicom_by_its_name_alone_costs_no_neighbour(
    write_series: Callable[..., list[Path]], make_scan: Callable[..., Path], chest: np.ndarray, tmp_path: Path
) -> None:
    write_volumes(tmp_path / "volumes", "a", "b")
    make_scan(tmp_path / "pictures", slices=3)
    write_series(tmp_path / "dicom", chest[:5])
    for folder in ("volumes", "pictures", "dicom"):
        for name in ("report", "summary", "letter"):
            (tmp_path / folder / f"{name}.dcm").write_text("Thorax: unauffällig.\n" * 20)
    found = {scan.source: scan for scan in find_scans([tmp_path])}
    slices = {"volumes/a.nii.gz": 9, "volumes/b.nii.gz": 9, "volumes": 0, "pictures": 3, "dicom": 5}
    assert {source: len(scan.slices) for source, scan in found.items()} == slices
    assert [one.code for one in found["volumes"].findings] == ["not-dicom"]
    assert [(one.code, one.action) for one in found["dicom"].findings] == [("unreadable-file", "kept")]
    with pytest.raises(InputError, match=r"volumes: 3 files named as DICOM, but not DICOM\. Rename or remove files that are not DICOM\.$"):
        found["volumes"].require_slices()


def test_slice_whose_content_was_lost_is_no_stray(write_series: Callable[..., list[Path]], chest: np.ndarray, tmp_path: Path) -> None:
    for path in write_series(tmp_path, chest)[2:6]:
        path.rename(path.with_suffix(".dcm")).write_bytes(bytes(1000))
    (scan,) = find_scans([tmp_path])
    assert scan.slices == () and [one.code for one in scan.findings] == ["unreadable-slice"]


def test_series_that_is_asked_for_of_what_has_none_is_a_warning(
    write_series: Callable[..., list[Path]], make_scan: Callable[..., Path], chest: np.ndarray, tmp_path: Path
) -> None:
    data = tmp_path / "NCP" / "1"
    write_series(data / "dicom", chest, number=3)
    write_volumes(data / "volume", "a")
    make_scan(data / "pictures")
    expected = {"dicom": [], "volume": ["series-ignored"], "pictures": ["series-ignored"]}
    for scans in (find_scans([tmp_path], "3"), find_dataset(tmp_path, "3")[0]):
        found = {scan.source.split("/")[2]: [one.code for one in scan.findings if one.severity == WARNING] for scan in scans}
        assert {name: [code for code in codes if code == "series-ignored"] for name, codes in found.items()} == expected
    (scan,) = find_scans([data / "volume" / "a.nii.gz"], "3")
    assert "--series 3 does not apply" in " ".join(one.message for one in scan.findings)
    assert not any(one.code == "series-ignored" for scan in find_scans([tmp_path]) for one in scan.findings)


def test_series_that_is_not_there_is_no_reason_to_mend_the_scan(
    write_series: Callable[..., list[Path]], chest: np.ndarray, tmp_path: Path
) -> None:
    write_series(tmp_path, chest)
    with pytest.raises(InputError, match=r"no series 99 in the study; .*\. Name another --series, or none\.$"):
        find_scans([tmp_path], "99")[0].require_slices()


def test_links_that_lead_in_a_circle_are_followed_once(make_scan: Callable[..., Path], tmp_path: Path) -> None:
    make_scan(tmp_path / "NCP" / "1" / "1")
    for name in ("NCP/1/again", "NCP/again", "NCP/1/1/again"):
        (tmp_path / name).symlink_to(tmp_path / "NCP")
    (tmp_path / "NCP" / "1" / "self").symlink_to("self")
    assert [scan.id for scan in find_scans([tmp_path]) if scan.slices] == ["NCP/1/1"]
    assert "NCP/1/1" in [scan.source for scan in find_dataset(tmp_path)[0]]


def test_names_that_are_not_utf_8_or_control_a_terminal_are_escaped_in_a_data_set(make_scan: Callable[..., Path], tmp_path: Path) -> None:
    try:
        make_scan(tmp_path / "NCP" / os.fsdecode(b"caf\xe9") / "\x1b[31m")
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    (scan,), _ = find_dataset(tmp_path)
    assert (scan.patient, scan.id, scan.source) == (r"caf\xe9", r"\x1b[31m", r"NCP/caf\xe9/\x1b[31m")
    assert len(scan.slices) == 8 and scan.folder.is_dir()
