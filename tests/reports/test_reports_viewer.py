"""The viewer is one file that works by wheel, keys, finger, slider, class and strip, asks for nothing, and stays small."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, find_browser
from PIL import Image

from ctcovid.reports import viewer
from ctcovid.reports.overlays import COLOURS, FAINTEST, OPACITY
from ctcovid.reports.viewer import Viewed, page, save_viewer

CLASSES = ["NCP", "CP", "Normal"]


def viewed(slices: int = 12, size: int = 64) -> Viewed:
    """A bright square on grey in each slice; the map of class k is bright in quarter k."""
    pixels = np.full((slices, size, size), 100, np.uint8)
    pixels[:, size // 4 : size // 2, size // 4 : size // 2] = 220
    maps = np.zeros((slices, 3, 32, 32))
    maps[:, 0, :16, :16], maps[:, 1, :16, 16:], maps[:, 2, 16:, :16] = 1, 1, 1
    shares = np.random.default_rng(0).dirichlet([2, 1, 1], slices // 4)
    shares = shares[np.argsort(-shares[:, 0])]
    return Viewed(
        scan="NCP/16/1164",
        method="Smooth Grad-CAM++, layer layer3",
        slices=pixels,
        maps=maps,
        names=[f"{number:04d}.png" for number in range(slices)],
        classes=CLASSES,
        chosen=0,
        depth=4,
        volumes=shares,
        probabilities=shares.mean(0),
        card={"name": "r3d18-d4-b32", "architecture": "r3d18"},
        flags=["The scan is black outside the lungs."],
        measured={"deletion": "0.21"},
        caution="Not whether the model is medically right.",
    )


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if find_browser() is None:
        pytest.skip("no Chromium or Chrome is installed here")
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture
def shown(browser: Browser, tmp_path: Path) -> Iterator[Browser]:
    """The page of twelve slices in a window of a laptop; whatever a test does, the page must not complain or ask for anything."""
    save_viewer(tmp_path / "viewer.html", viewed())
    browser.problems.clear()
    browser.requests.clear()
    browser.size(1280, 800)
    address = (tmp_path / "viewer.html").as_uri()
    browser.ask("Page.navigate", url=address)
    browser.wait_for("document.body && document.body.dataset.drawn === '0/0'")
    yield browser
    assert browser.problems == []
    assert [url for url in browser.requests if not url.startswith("data:")] == [address]


def at(browser: Browser) -> int:
    return int(browser.run("document.body.dataset.slice"))


def test_the_wheel_scrolls_slice_by_slice(shown: Browser) -> None:
    for expected in (1, 2):
        shown.wheel("#picture", 100)
        shown.wait_for(f"document.body.dataset.drawn === '{expected}/0'")
    shown.wheel("#picture", -100)
    shown.wait_for("document.body.dataset.drawn === '1/0'")
    assert shown.run("document.querySelector('#where').textContent") == "slice 2 / 12 · volume 1 · 0001.png"


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["ArrowDown", "ArrowRight"], 2),
        (["ArrowUp"], 0),
        (["End"], 11),
        (["End", "ArrowLeft", "PageUp"], 4),
        (["PageDown", "PageDown"], 8),
        (["End", "Home"], 0),
    ],
)
def test_keys_alone_go_through_the_scan(shown: Browser, keys: list[str], expected: int) -> None:
    for key in keys:
        shown.key(key)
    assert at(shown) == expected


def test_a_finger_on_the_picture_draws_through_the_slices(shown: Browser) -> None:
    shown.size(390, 844, phone=True)
    shown.drag("#picture", 60)
    assert at(shown) > 0
    shown.drag("#picture", -300)
    assert at(shown) == 0


def test_every_control_is_reached_by_tab_and_says_what_it_is(shown: Browser) -> None:
    reached = []
    for _ in range(7):
        shown.key("Tab")
        reached.append(shown.run("document.activeElement.id || document.activeElement.name || document.activeElement.tagName"))
    assert [name for name in reached if name in ("position", "strip", "class", "opacity")] == ["position", "strip", "class", "opacity"]
    assert reached.count("SUMMARY") == 3
    # On the strip, arrows go from volume to volume.
    shown.run("document.querySelector('#strip').focus()")
    shown.key("ArrowRight")
    assert at(shown) == 4
    assert shown.run("document.querySelector('#strip').getAttribute('aria-valuetext')").startswith("volume 2: NCP")


def pixel(browser: Browser, x: float, y: float) -> list[int]:
    """The overlay's colour and opacity at a place, as shares of its sides."""
    canvas = "document.querySelector('#overlay')"
    code = f"[...{canvas}.getContext('2d').getImageData({x} * {canvas}.width, {y} * {canvas}.height, 1, 1).data]"
    return list(browser.run(code))


def test_each_class_shows_its_own_map_in_the_colours_of_the_overlays(shown: Browser) -> None:
    places = [(0.2, 0.2), (0.8, 0.2), (0.2, 0.8)]
    brightest = np.rint(255 * COLOURS(np.linspace(FAINTEST, 1, 256))[255][:3]).astype(int)
    for number, way in ((1, "click"), (2, "key"), (0, "key")):
        if way == "click":
            shown.click(f"#classes label:nth-child({number + 1})")
        else:
            shown.run("document.activeElement.blur()")
            shown.key(str(number + 1))
        shown.wait_for(f"document.body.dataset.drawn === '0/{number}'")
        for other, place in enumerate(places):
            *colour, opacity = pixel(shown, *place)
            assert opacity > 245 if other == number else opacity < 10
            if other == number:
                assert np.abs(np.array(colour) - brightest).max() <= 12
        assert CLASSES[number] in shown.run("document.querySelector('#name').textContent")


def test_the_slider_fades_the_overlay(shown: Browser) -> None:
    assert float(shown.run("document.querySelector('#overlay').style.opacity")) == pytest.approx(OPACITY)
    shown.run("(() => { const s = document.querySelector('#opacity'); s.value = 30; s.dispatchEvent(new Event('input')); })()")
    assert shown.run("document.querySelector('#overlay').style.opacity") == "0.3"
    shown.run("document.querySelector('#opacity').focus()")
    shown.key("ArrowRight")
    assert shown.run("document.querySelector('#overlay').style.opacity") == "0.35"
    shown.run("document.activeElement.blur()")
    shown.key("o")
    assert shown.run("document.querySelector('#overlay').style.opacity") == "0"


def test_a_click_on_the_strip_goes_to_that_volume(shown: Browser) -> None:
    shown.click("#strip div:nth-child(3)")
    shown.wait_for("document.body.dataset.drawn === '8/0'")
    assert shown.run("[...document.querySelectorAll('#strip div')].map(d => d.classList.contains('here'))") == [False, False, True]
    heights = shown.run("[...document.querySelectorAll('#strip div:nth-child(3) i')].map(i => parseFloat(i.style.height))")
    assert heights == pytest.approx((100 * viewed().volumes[2]).tolist(), abs=0.01)


def test_flags_card_figures_and_the_notice_are_on_the_page(shown: Browser) -> None:
    text = shown.run("document.body.textContent")
    for words in ("black outside the lungs", "r3d18-d4-b32", "medically right", "For research use only", "Not a medical device"):
        assert words in text


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_nothing_hangs_over_the_edge_of_a_laptop_or_a_phone(shown: Browser, width: int, height: int) -> None:
    shown.size(width, height, phone=width < 500)
    assert shown.run("document.documentElement.scrollWidth") <= width
    assert shown.run("document.querySelector('#picture').getBoundingClientRect().width") >= 0.85 * min(width, 500)


def test_the_page_opens_where_the_class_is_most_probable_and_most_salient(browser: Browser, tmp_path: Path) -> None:
    unlike = viewed()
    unlike.volumes[:, 0] = 0.2, 0.9, 0.6
    unlike.maps[:, 0] *= 0.5
    unlike.maps[[2, 6], 0] *= 2
    save_viewer(tmp_path / "viewer.html", unlike)
    browser.ask("Page.navigate", url=(tmp_path / "viewer.html").as_uri())
    browser.wait_for("document.body && document.body.dataset.drawn === '6/0'")


@pytest.mark.parametrize("sided", [False, True])
def test_the_sides_are_marked_where_they_are_known(browser: Browser, tmp_path: Path, sided: bool) -> None:
    save_viewer(tmp_path / "viewer.html", replace(viewed(), sided=sided))
    browser.ask("Page.navigate", url=(tmp_path / "viewer.html").as_uri())
    browser.wait_for("document.body && document.body.dataset.drawn === '0/0'")
    shown = browser.run("[...document.querySelectorAll('.side')].filter(mark => mark.offsetWidth).map(mark => mark.textContent)")
    assert shown == (["R", "L"] if sided else [])


def test_150_slices_of_512_pixels_stay_under_15_megabytes() -> None:
    """Of noise as well, which takes more than any scan."""
    pixels = np.random.default_rng(0).integers(0, 256, (512, 512), dtype=np.uint8)
    some = replace(viewed(12), slices=np.broadcast_to(pixels, (12, 512, 512)), maps=np.random.default_rng(0).random((12, 3, 128, 128)))
    assert len(page(some)) * 150 / 12 < 15e6


@pytest.mark.parametrize(("slices", "name"), [(664, "0000.png"), (2000, "a" * 250 + ".png")])
def test_any_number_of_slices_stays_under_15_megabytes(slices: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of noise as well; all pictures are one, which is compressed once."""
    usual, known = viewer.jpeg, {}

    def once(pixels: np.ndarray, *how: object) -> str:
        key = (pixels.shape, how)
        if key not in known:
            known[key] = usual(pixels, *how)
        return known[key]

    monkeypatch.setattr(viewer, "jpeg", once)
    random = np.random.default_rng(0)
    pixels = np.broadcast_to(random.integers(0, 256, (512, 512), dtype=np.uint8), (slices, 512, 512))
    maps = np.broadcast_to(random.random((3, 64, 64), dtype=np.float32), (slices, 3, 64, 64))
    text = page(replace(viewed(slices), slices=pixels, maps=maps, names=[name] * slices))
    assert 5e6 < len(text) < 15e6
    found = re.search(r'id="data">(.*?)</script>', text, re.S)
    data = json.loads(found[1]) if found else {}
    # Smaller pictures are drawn as large as ever, and all parts of the map's picture are of one height.
    assert data["size"] == [512, 512] and len(data["slices"]) == len(data["maps"]) == slices
    picture, sprite = (Image.open(io.BytesIO(base64.b64decode(data[part][0]))) for part in ("slices", "maps"))
    assert picture.size[0] == picture.size[1] <= 512 and sprite.size[1] == 3 * sprite.size[0]


def test_pictures_are_coarser_before_they_are_smaller() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 96, 96), dtype=np.uint8)
    forms = []
    for room in (1_000_000, 30_000, 16_000, 8_000, 4_000):
        found = viewer.pictures(pixels, room)
        assert sum(map(len, found)) <= room
        picture = Image.open(io.BytesIO(base64.b64decode(found[0])))
        forms.append((picture.size[0], -sum(map(sum, picture.quantization.values()))))  # type: ignore[attr-defined]
    assert [side for side, _ in forms] == sorted((side for side, _ in forms), reverse=True)
    assert forms[0][0] == forms[1][0] == 96 and forms[0][1] > forms[1][1] and forms[-1][0] < 96


def test_a_smaller_picture_of_maps_mixes_no_classes() -> None:
    maps = np.repeat(np.array([0, 255, 100], np.uint8), 9)[:, None].repeat(9, 1)
    for side in (4, 2, 1):
        small = np.asarray(Image.open(io.BytesIO(base64.b64decode(viewer.jpeg(maps, 90, side / 9, 3)))))
        assert small.shape == (3 * side, side)
        assert [int(part.mean().round(-1)) for part in np.split(small, 3)] == pytest.approx([0, 255, 100], abs=10)


def test_a_name_cannot_break_out_of_the_page() -> None:
    text = page(replace(viewed(), scan="</script><script>alert(1)</script>"))
    assert "<script>alert" not in text
    found = re.search(r'id="data">(.*?)</script>', text, re.S)
    assert found and json.loads(found[1])["scan"] == "</script><script>alert(1)</script>"
