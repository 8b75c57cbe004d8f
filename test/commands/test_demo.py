from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from anomseg_ros.commands.demo import default_bundle
from anomseg_ros.core.bundle import load_bundle
from anomseg_ros.core.resources import ROAD_BUNDLE, SYNTHETIC_BUNDLE, find_bundle

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "anomseg_ros.cli", "demo", *arguments], capture_output=True, text=True)


@pytest.fixture(scope="module")
def output(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    done = demo("--bundle", str(tiny_bundle), "--output", str(folder), "--frames", "30", "--pictures", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stamp to output" in done.stdout and "p99" in done.stdout
    return folder


def test_counts_add_up(output: Path) -> None:
    result = json.loads((output / "result.json").read_text())
    assert result["frames_in"] == 30
    assert result["published"] + result["dropped"] + result["lost"] + result["bad"] == 30
    assert result["published"] >= 5
    assert set(result["processing_ms"]) == {"p50", "p95", "p99"}
    assert 0 < result["processing_ms"]["p50"] <= result["processing_ms"]["p95"] <= result["processing_ms"]["p99"]


def test_pictures_are_four_tiles_of_one_frame(output: Path) -> None:
    pictures = sorted(output.glob("frame_*.png"))
    assert 3 <= len(pictures) <= 6
    for path in pictures:
        picture = cv2.imread(str(path))
        assert picture.shape == (1024, 2048, 3)
        tiles = [picture[:512, :1024], picture[:512, 1024:], picture[512:, :1024], picture[512:, 1024:]]
        assert all(tile.std() > 1 for tile in tiles)
        assert len({tile.tobytes() for tile in tiles}) == 4


def test_a_bag_is_shown_to_the_detector_for_roads() -> None:
    names = default_bundle(None), default_bundle(Path("drive"))
    assert names == (SYNTHETIC_BUNDLE, ROAD_BUNDLE)
    assert {load_bundle(find_bundle(name)).contract.name for name in names} == set(names)


def test_the_user_s_own_bag_in_sqlite3(tiny_bundle: Path, tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for index in range(8):
        cv2.imwrite(
            str(frames / f"{index}.jpg"), cv2.imread(str(ROOT / "docs" / "images" / "demo.jpg"))[index : 300 + index]
        )
    words = [
        "--images",
        str(frames),
        "--output",
        str(tmp_path / "drive"),
        "--storage",
        "sqlite3",
        "--compressed",
        "--rate",
        "5",
    ]
    subprocess.run([sys.executable, "-m", "anomseg_ros.cli", "bag", "write", *words], check=True, capture_output=True)
    done = demo(str(tmp_path / "drive"), "--bundle", str(tiny_bundle), "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["bag"] == "drive" and result["frames_in"] == 8 and result["published"] >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["nothing.mcap"], "there is no bag 'nothing.mcap'"), (["--bundle", "nothing"], "neither a bundle directory")],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, tiny_bundle: Path, tmp_path: Path) -> None:
    words = arguments if "--bundle" in arguments else [*arguments, "--bundle", str(tiny_bundle)]
    done = demo(*words, "--output", str(tmp_path))
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr


def test_the_page_in_a_real_browser(output: Path, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed")
    switches = "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-sync --no-first-run"
    shot = tmp_path / "page.png"
    words = [
        f"--user-data-dir={tmp_path}/profile",
        "--window-size=500,1600",
        "--enable-logging=stderr",
        f"--screenshot={shot}",
    ]
    page = (output / "index.html").as_uri()
    done = subprocess.run([chromium, *switches.split(), *words, page], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    picture = cv2.imread(str(shot))
    assert picture is not None and picture.shape[1] == 500 and picture.std() > 10
