#!/usr/bin/env python3
"""Draw the pictures of README, docs and model cards that show a detector's outputs again, all or those that are named.

python scripts/draw_pictures.py
python scripts/draw_pictures.py road models/erfnet-camvid

`road` is docs/images/road.jpg, a frame of the shipped drive with one of its pasted objects; `demo` is
docs/images/demo.jpg, a synthetic scene. The others are the folders of bundles with a scenes.jpg. Nothing but shipped
files is needed.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import cv2
from pictures import SCENES, draw_panel, draw_scenes
from ship_bundle import TARGET_FPR

from anomseg_ros.core.bundle import load_bundle
from anomseg_ros.core.resources import SYNTHETIC_BUNDLE
from anomseg_ros.core.types import RgbImage
from anomseg_ros.core.video import Video
from anomseg_ros.datasets.road_drive import load_road_scene, paste_on_road
from anomseg_ros.scenes.sequence import SyntheticConfig, SyntheticSequence

ROOT = Path(__file__).resolve().parents[1]
ROAD_BUNDLE = "bisenet_lite-world"
ROAD_FRAME = 60
"""Number of a frame of the shipped drive: the animal is some 20 m away."""
ROAD_WIDTH_PX, SYNTHETIC_WIDTH_PX = 560, 700
"""Width of one of the four pictures."""


def main() -> None:
    known = {"road": draw_road, "demo": draw_demo}
    folders = sorted(path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("models/*/scenes.jpg"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"pictures to draw: {', '.join([*known, *folders])} (default: all)")
    names = parser.parse_args().names or [*known, *folders]
    unknown = [name for name in names if name not in (*known, *folders)]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; choose from {', '.join([*known, *folders])}")
    for name in names:
        if name in known:
            known[name]()
        else:
            draw_scenes(ROOT / name / "scenes.jpg", load_bundle(ROOT / name), TARGET_FPR)


def draw_road() -> None:
    """Draw the road of README: a real motorway, one drawn animal on it."""
    _write("road.jpg", road_panel())


def road_panel() -> RgbImage:
    """Return the picture of `draw_road`, uint8 (h, w, 3) RGB."""
    video, scene = Video(ROOT / "demo" / "drive.mp4"), load_road_scene(ROOT / "demo" / "drive.yaml")
    frame = next(islice(paste_on_road(video, video.rate_hz, scene), ROAD_FRAME, None)).image
    return draw_panel(load_bundle(ROOT / "models" / ROAD_BUNDLE), frame, ROAD_WIDTH_PX, TARGET_FPR)


def draw_demo() -> None:
    """Draw a synthetic scene with the outputs of the network that was trained on such scenes."""
    seed, index = SCENES[1]
    frame = SyntheticSequence(seed, SyntheticConfig(anomaly_probability=1.0)).frame(index).image
    bundle = load_bundle(ROOT / "models" / SYNTHETIC_BUNDLE)
    _write("demo.jpg", draw_panel(bundle, frame, SYNTHETIC_WIDTH_PX, TARGET_FPR))


def _write(name: str, picture: RgbImage) -> None:
    options = [cv2.IMWRITE_JPEG_QUALITY, 85, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    cv2.imwrite(str(ROOT / "docs" / "images" / name), picture[:, :, ::-1], options)


if __name__ == "__main__":
    main()
