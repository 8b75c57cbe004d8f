"""The page of a drive's frames: worst first, and a person can strike frames out."""

from __future__ import annotations

import base64
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from chromium import chromium
from dataset_trees import write
from painted_frames import BLUE, GREEN, HEIGHT_PX, OLIVE, WIDTH_PX, painted_bundle

from anomseg_ros.core.anomaly_marks import PREFERRED_COLOR
from anomseg_ros.core.image_files import decode_rgb
from anomseg_ros.datasets.unlabelled_drive import open_drive
from anomseg_ros.evaluation import drive_page
from anomseg_ros.evaluation.drive_thresholds import DriveRequest, calibrate_on_drive

FRAMES = 24


class Page(HTMLParser):
    """The frames of a page: names of the stretch, and bytes of the picture; all text."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.stretches: list[list[str]] = []
        self.pictures: list[bytes] = []
        self.words = ""
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if values.get("data-names"):
            self.stretches.append(str(values["data-names"]).split("\n"))
        if tag == "img":
            self.pictures.append(base64.b64decode(str(values["src"]).partition("base64,")[2]))

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> DriveRequest:
    """A drive of plain frames with a small olive patch; frame 17 has a large green one, and its name is hostile."""
    folder = tmp_path_factory.mktemp("page")
    for number in range(FRAMES):
        frame = np.full((HEIGHT_PX, WIDTH_PX, 3), BLUE, np.uint8)
        frame[4:12, 8:16] = OLIVE
        if number == 17:
            frame[64:, 128:] = GREEN
        write(folder / "street" / (f"{number}.png" if number != 17 else "17<b>&.png"), frame)
    bundle = painted_bundle(folder / "painted")
    return DriveRequest(bundle, open_drive([folder / "street"]), ("void",), (0.5, 0.02))


def test_every_frame_is_shown_worst_first(request_: DriveRequest) -> None:
    page = Page(drive_page.drive_page(request_, calibrate_on_drive(request_)))
    assert page.stretches[0] == ["17<b>&"] and len(page.stretches) == FRAMES
    assert {name for (name,) in page.stretches} == {request_.drive.frame_id(index) for index in range(FRAMES)}
    assert "25.20 %" in page.words  # 8192 and 64 of 32768 pixels
    assert "void above" in page.words and "target_fpr 0.02" in page.words
    worst = decode_rgb(np.frombuffer(page.pictures[0], np.uint8), "worst")
    assert worst.shape == (200, 400, 3)
    cyan, black = (
        (np.linalg.norm(worst - np.array(color, float), axis=2) < 90) for color in (PREFERRED_COLOR, (0, 0, 0))
    )
    hatched, plain = np.s_[110:190, 220:380], np.s_[110:190, 20:180]
    assert cyan[hatched].mean() > 0.05 and black[hatched].mean() > 0.05
    assert not cyan[plain].any() and not black[plain].any()


def test_long_drive_is_shown_by_the_worst_frame_of_each_stretch(
    request_: DriveRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drive_page, "MAX_THUMBNAILS", 5)
    page = Page(drive_page.drive_page(request_, calibrate_on_drive(request_)))
    assert len(page.stretches) == 5 and page.stretches[0] == ["14", "15", "16", "17<b>&", "18"]
    assert sorted(name for names in page.stretches for name in names) == sorted(
        request_.drive.frame_id(index) for index in range(FRAMES)
    )
    assert "17<b>&" in page.words and "and 4 more" in page.words


def test_frames_left_out_are_not_shown(request_: DriveRequest) -> None:
    rest = replace(request_, drive=request_.drive.without(["17<b>&"]))
    page = Page(drive_page.drive_page(rest, calibrate_on_drive(rest)))
    assert len(page.stretches) == FRAMES - 1 and "17<b>&" not in page.words


def test_frames_are_struck_out_in_a_browser(request_: DriveRequest, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(drive_page.drive_page(request_, calibrate_on_drive(request_)), encoding="utf-8")
    with chromium() as browser:
        for width_px in (360, 1280):
            browser.open(path, width_px)
            assert browser.js("document.documentElement.scrollWidth") <= width_px
            assert browser.js("document.getElementById('copy').disabled")
            for number in (0, 3, 5, 3):  # the second click on a frame takes it back
                browser.js(f"document.querySelectorAll('.frames button')[{number}].click()")
            names = [line for line in browser.js("document.getElementById('names').value").split("\n") if line]
            assert names[0] == "17<b>&" and len(names) == 2
            assert browser.js("document.getElementById('told').textContent") == "2 frames are struck out"
        assert not browser.complaints and all(url.startswith(("file:", "data:")) for url in browser.requests)
