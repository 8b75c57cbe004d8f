from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from chromium import chromium

from anomseg_ros.bags.read import open_bag
from anomseg_ros.commands.demo import DemoResult, fitting_rate
from anomseg_ros.commands.demo_drive import open_drive, synthetic_drive
from anomseg_ros.commands.demo_frames import ShownDrive, ShownFrame, count_alarms
from anomseg_ros.commands.demo_page import is_too_slow, pace, write_page
from anomseg_ros.core.bundle import load_bundle
from anomseg_ros.core.labels import ClassInfo
from anomseg_ros.core.resources import (
    DEMO_BUNDLE,
    ROAD_BUNDLE,
    SYNTHETIC_BUNDLE,
    find_bundle,
    share_file,
    shipped_bundles,
)
from anomseg_ros.core.score_scale import score_scale

ROOT = Path(__file__).resolve().parents[2]
FRAMES = 24

WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "onnx", "onnxscript", "safetensors", "lightning_fabric", "torchao"}:
            raise ModuleNotFoundError(f"hidden {name}", name=name)
sys.meta_path.insert(0, Refuse())
"""


def demo(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the demo; path: a folder that comes first in Python's path, of the node's process as well."""
    folders = [str(folder) for folder in (path, os.environ.get("PYTHONPATH")) if folder]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    command = [sys.executable, "-m", "anomseg_ros.cli", "demo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


@pytest.fixture(scope="module")
def output(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the demo makes of the shipped drive on a machine that has no torch."""
    pytest.importorskip("rclpy", reason="needs ROS 2: pip install '.[ros]'")
    folder = tmp_path_factory.mktemp("demo")
    (folder / "sitecustomize.py").write_text(WITHOUT_TORCH)
    words = ["--bundle", str(tiny_bundle), "--max-frames", str(FRAMES), "--threads", "1"]
    done = demo(*words, "--output", str(folder / "out"), path=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "frame to listener" in done.stdout and "p99" in done.stdout
    return folder / "out"


def result_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "result.json").read_text()))


def shown_frames(folder: Path) -> list[dict[str, Any]]:
    data = re.search(r'id="frames">(.*?)</script>', (folder / "index.html").read_text(), re.S)
    assert data is not None
    return list(json.loads(data[1]))


@pytest.mark.slow
def test_result_counts_sum_to_frames(output: Path) -> None:
    result = result_of(output)
    assert result["frames_in"] == FRAMES
    assert sum(result[name] for name in ("published", "dropped", "lost", "bad")) == FRAMES
    assert result["published"] >= 5 and 0.25 <= result["rate"] <= 1
    for name in ("processing_ms", "age_ms"):
        times = result[name]
        assert 0 < times["p50"] <= times["p95"] <= times["p99"]
    assert result["anomalies"] >= 1 and 0 <= result["found"] <= result["anomalies"]


@pytest.mark.slow
def test_page_shows_every_published_frame(output: Path) -> None:
    frames = shown_frames(output)
    assert len(frames) == result_of(output)["published"]
    times = [frame["t"] for frame in frames]
    assert times == sorted(set(times)) and times[-1] <= FRAMES / 12.5
    for frame in frames:
        camera, overlay, score = (cv2.imread(str(output / name)) for name in frame["files"])
        assert camera.shape == overlay.shape == score.shape == (360, 640, 3)
        assert camera.std() > 10 and len({picture.tobytes() for picture in (camera, overlay, score)}) == 3
    assert len(list((output / "frames").iterdir())) == 3 * len(frames)


@pytest.mark.slow
def test_page_says_what_is_real_and_what_is_pasted(output: Path) -> None:
    page = (output / "index.html").read_text()
    assert "Road, light and traffic are real" in page and "CarND-LaneLines-P1" in page
    assert "A chair, an animal, a cart and a tyre are drawn and pasted onto the road" in page
    assert "Anomalies found" in page and not re.search(r"https?:", page)


@pytest.mark.slow
def test_bag_holds_ground_truth_of_every_frame(output: Path) -> None:
    with open_bag(output / "drive_bag") as bag:
        assert bag.counts["/camera/image/compressed"] == bag.counts["/camera/ground_truth/anomaly"] == FRAMES
        stamps = [stamp for _, stamp, _ in bag.read_stamped(["/camera/image/compressed"])]
    assert np.diff(stamps).tolist() == [80_000_000] * (FRAMES - 1)


@pytest.mark.slow
@pytest.mark.parametrize("width_px", [400, 1300])
def test_page_works_in_real_browser(width_px: int, output: Path, tmp_path: Path) -> None:
    with chromium() as browser:
        browser.open(output / "index.html", width_px, dark=width_px == 400)
        assert browser.js("document.documentElement.scrollWidth <= innerWidth")
        widths = browser.js("[...document.querySelectorAll('.film img')].map((image) => image.naturalWidth)")
        assert widths == [640] * 3
        count = len(shown_frames(output))
        # It plays by itself; a pause and the slider stop it.
        assert browser.js("new Promise((told) => setTimeout(() => told(Number(frame.value)), 1500))") > 0
        browser.js(f"frame.value = {count - 1}; frame.dispatchEvent(new Event('input'))")
        number = shown_frames(output)[-1]["number"]
        assert browser.js("truth.textContent").startswith(f"Frame {number} of {FRAMES} · truth: ")
        assert browser.js("document.getElementById('camera').src").endswith(f"{count - 1:04d}_camera.jpg")
        browser.screenshot(tmp_path / "page.png")
        assert browser.complaints == []
    picture = cv2.imread(str(tmp_path / "page.png"))
    assert picture is not None and picture.std() > 10


@pytest.mark.slow
def test_user_bag_in_sqlite3_is_played(tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("rclpy", reason="needs ROS 2: pip install '.[ros]'")
    frames = tmp_path / "frames"
    frames.mkdir()
    for index in range(8):
        picture = cv2.imread(str(ROOT / "docs" / "images" / "demo.jpg"))[index : 300 + index]
        cv2.imwrite(str(frames / f"{index}.jpg"), picture)
    words = ["--images", str(frames), "--output", str(tmp_path / "drive"), "--storage", "sqlite3", "--compressed"]
    command = [sys.executable, "-m", "anomseg_ros.cli", "bag", "write", *words, "--fps", "5"]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    place = tmp_path / "out"
    done = demo(str(tmp_path / "drive"), "--bundle", str(tiny_bundle), "--output", str(place), "--pictures", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    result = result_of(place)
    assert result["drive"] == "drive" and result["frames_in"] == 8 and result["published"] >= 1 and result["rate"] == 1
    # Nobody knows what is anomalous in it.
    assert result["anomalies"] is None and "Anomalies found" not in (place / "index.html").read_text()
    assert 1 <= len(shown_frames(place)) <= 4


def test_each_drive_selects_shipped_bundle(tmp_path: Path) -> None:
    shipped = open_drive(None, tmp_path / "shipped", None, 1)
    synthetic = synthetic_drive(tmp_path / "synthetic", 2)
    recorded = open_drive(shipped.bag, tmp_path / "unused", None, None)
    assert (shipped.bundle, synthetic.bundle, recorded.bundle) == (DEMO_BUNDLE, SYNTHETIC_BUNDLE, ROAD_BUNDLE)
    assert {shipped.bundle, synthetic.bundle, recorded.bundle} <= set(shipped_bundles())
    assert not (tmp_path / "unused").exists()
    assert synthetic.frames == 2 and synthetic.period_s == pytest.approx(0.1) and synthetic.truth_topic is not None
    assert synthetic.first.shape == (512, 1024, 3) and "drawn" in synthetic.about[0]


def test_video_is_converted_to_drive(tmp_path: Path) -> None:
    drive = open_drive(share_file("demo/drive.mp4"), tmp_path / "bag", None, 3)
    assert (drive.name, drive.frames, drive.truth_topic) == ("drive.mp4", 3, None)
    assert drive.period_s == pytest.approx(1 / 12.5) and drive.first.shape == (540, 960, 3)
    assert drive.about == ("3 frames of a video, at 12.5 Hz.",)


def test_replay_is_slowed_only_for_slow_network(tiny_bundle: Path, tmp_path: Path) -> None:
    drive, bundle = open_drive(None, tmp_path / "bag", None, 2), load_bundle(find_bundle(tiny_bundle))
    assert fitting_rate(replace(drive, period_s=60.0), bundle, 1) == 1.0
    assert fitting_rate(replace(drive, period_s=0.001), bundle, 1) == 0.25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.mcap"], "there is no bag 'nothing.mcap'"),
        (["nothing.mp4"], "video 'nothing.mp4' does not exist"),
        (["CUT"], r"cut.mp4' states 111 frames, \d+ could be read; it is cut short or damaged"),
        (["BROKEN"], "broken.avi' cannot be opened as a video"),
        (
            ["docs/images"],
            "'docs/images' is not a bag: .*`anomseg bag write --images PATH --output BAG` makes a bag",
        ),
        (["README.md"], "'README.md' is neither a bag nor a video; expected a bag directory, a file ending in .mcap"),
        (["docs/images/demo.jpg"], "neither a bag nor a video.*write images as a bag first: `anomseg bag write`"),
        (["drive.mcap", "--synthetic"], "got the drive 'drive.mcap' and --synthetic; give one of them"),
        (["--image-topic", "/camera/image"], "is for a bag; the shipped drive has no topics"),
        (["--max-frames", "0"], "got --max-frames 0; expected at least 1"),
        (["--pictures", "-1"], "got --pictures -1; expected at least 1"),
        (["--bundle", "nothing"], "neither a bundle directory"),
    ],
)
def test_wrong_arguments_give_one_line_error(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from anomseg_ros.cli import main

    video = share_file("demo/drive.mp4").read_bytes()
    files = {"CUT": ("cut.mp4", video[: len(video) // 3]), "BROKEN": ("broken.avi", b"nothing" * 100)}
    for name, data in files.values():
        (tmp_path / name).write_bytes(data)
    words = [str(tmp_path / files[word][0]) if word in files else word for word in arguments]
    monkeypatch.chdir(ROOT)
    assert main(["demo", *words, "--output", str(tmp_path / "out")]) == 1
    assert re.search(message, capsys.readouterr().err.replace("\n", " "))
    assert not (tmp_path / "out" / "drive_bag").exists()


def test_alarms_are_classified_by_location() -> None:
    labels = np.zeros((60, 100), np.uint8)
    labels[30:] = 3  # road
    labels[2:8, 2:8] = 3  # a mistake: not its largest part
    mask, anomaly = np.zeros_like(labels), np.zeros((120, 200), np.uint8)
    mask[40:50, 10:20] = mask[20:45, 40:50] = 255  # on the road; the second reaches above it
    labels[mask > 0] = 255
    mask[5:25, 40:90] = 255  # beside it, and one with the second
    mask[55:58, 80:90] = 255  # too small
    anomaly[80:84, 90:96] = 1  # touches the second
    assert count_alarms(mask, labels, 3, anomaly) == (2, 1, 1)
    assert count_alarms(mask, labels, 3) == (2, 0, 1)
    assert count_alarms(mask, labels, None) == count_alarms(mask, np.zeros_like(labels), 3) == (0, 0, 2)
    assert count_alarms(None, labels, 3) == (0, 0, 0)


RESULT = DemoResult("drive", "tiny", "cpu", 1.0, 80.0, 100, 100, 0, 0, 0, {"p50": 50.0}, {"p50": 55.0})


def test_pace_text_matches_result() -> None:
    assert pace(RESULT) == "No frame was dropped. The drive was played in real time, a frame every 80 ms."
    slowed = replace(RESULT, rate=0.5, period_ms=160.0, processing_ms={"p50": 120.0})
    assert "at 0.5 times its speed" in pace(slowed) and "takes about 120 ms a frame" in pace(slowed)
    hiccup = replace(RESULT, published=98, dropped=2)
    assert pace(hiccup).startswith("2 frames were dropped for a newer one. The drive") and not is_too_slow(hiccup)
    slow = replace(RESULT, published=40, dropped=60, processing_ms={"p50": 200.0})
    assert f"smaller bundle, such as {DEMO_BUNDLE}, or a lower --rate" in pace(slow)
    assert pace(replace(slow, bundle=DEMO_BUNDLE)).endswith("With a lower --rate, all frames are shown.")
    assert is_too_slow(slow) and "too slow for this drive" in pace(slow) and "60 of 100 were dropped" in pace(slow)


def test_page_escapes_names_and_reports_missing_frames(tmp_path: Path) -> None:
    evil = "</script><script>x</script>"
    frame = ShownFrame(3, 0.0, (f"{evil}1", f"{evil}2", f"{evil}3"), 0, 0, 0)
    shown = ShownDrive((frame,), score_scale({0.01: 0.3}, (0.0, 1.0), bounded=True), None, (), (0, 255, 255))
    hostile = replace(RESULT, drive=evil, bundle=evil, backend=evil, about=(evil,))
    page = write_page(tmp_path / "page.html", hostile, shown, {"score": evil, "threshold_source": evil}).read_text()
    assert "<script>x" not in page and "&lt;script&gt;x" in page
    empty = write_page(tmp_path / "empty.html", RESULT, replace(shown, frames=()), {}).read_text()
    assert "answered no frame" in empty and "<script" not in empty
    assert "no known class" not in page
    unknown = replace(shown, classes=(ClassInfo("void", (0, 0, 0), 255),))
    assert "no known class" in write_page(tmp_path / "page.html", RESULT, unknown, {}).read_text()


def test_page_has_frame_number_truth_and_the_scale_s_thresholds(tmp_path: Path) -> None:
    files = ("1.jpg", "2.jpg", "3.jpg")
    frames = tuple(ShownFrame(5 + 2 * k, 0.1 * k, files, 1, 1, 0, known) for k, known in enumerate((0, 1, 2, None)))
    scale = score_scale({0.05: 0.1, 0.01: 0.3}, (0.0, 1.0), bounded=True)
    shown = ShownDrive(frames, scale, 0.3, (ClassInfo("road", (128, 64, 128), 0),), (0, 255, 255), 2, 1)
    page = write_page(tmp_path / "page.html", RESULT, shown, {"score": "void"})
    text = page.read_text()
    assert text.count("5 %</span>") == text.count("1 %</span>") == 1 and "share of usual pixels above" in text
    choose = "const s = document.getElementById('frame'); s.value = {}; s.dispatchEvent(new Event('input'));"
    with chromium() as browser:
        browser.open(page, 1000)
        captions = [
            browser.js(f"(() => {{ {choose.format(index)} return document.getElementById('truth').textContent }})()")
            for index in range(len(frames))
        ]
    assert captions == [
        "Frame 5 of 100 · truth: no anomaly",
        "Frame 7 of 100 · truth: 1 anomaly",
        "Frame 9 of 100 · truth: 2 anomalies",
        "Frame 11 of 100",
    ]
