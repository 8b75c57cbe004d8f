"""Shared parts of the benchmarks: folders, camera frames, description of the machine, results in benchmarks/results."""

from __future__ import annotations

import datetime
import json
import os
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from anomseg_ros.cli import main as anomseg
from anomseg_ros.core.image_files import image_files, read_image
from anomseg_ros.core.types import RgbImage
from anomseg_ros.evaluation.machine import describe_machine, package_versions
from anomseg_ros.scenes.sequence import SyntheticSequence

SHARED = Path(__file__).resolve().parents[2] / "shared"
DATA = Path(os.environ.get("ANOMSEG_DATA", SHARED / "data"))
WEIGHTS = Path(os.environ.get("ANOMSEG_WEIGHTS", SHARED / "weights"))
DRIVE = DATA / "driving_video" / "images"
"""Frames of a real drive; may be absent."""
SYNTHETIC_SEED = 20
RESULTS = Path(__file__).resolve().parent / "results"


def machine_description() -> dict[str, Any]:
    """Return the processor, cores, memory, system, Python and package versions; no host names, users or paths."""
    return {**describe_machine(), "packages": package_versions()}


def camera_frames(count: int, height_px: int, width_px: int) -> tuple[list[RgbImage], str]:
    """Return at most `count` road frames, uint8 (height_px, width_px, 3) RGB, and a description of them.

    They are real frames if ANOMSEG_DATA has any, else synthetic ones.
    """
    if DRIVE.is_dir():
        images, origin = [read_image(path) for path in image_files(DRIVE)[:count]], "real road frames"
    else:
        images, origin = [frame.image for frame in SyntheticSequence(SYNTHETIC_SEED).frames(count)], "drawn road scenes"
    return [np.asarray(cv2.resize(image, (width_px, height_px)), np.uint8) for image in images], origin


def parse_size(text: str) -> tuple[int, int]:
    """Parse HEIGHTxWIDTH in pixels; a type for argparse."""
    height, _, width = text.partition("x")
    return int(height), int(width)


def ensure_bundle(output: Path, words: list[str]) -> Path:
    """Return the bundle `output`; write it with the command `words` if it is missing."""
    if not (output / "bundle.yaml").is_file():
        run(words)
    return output


def run(words: list[str], accepted: tuple[int, ...] = (0,)) -> None:
    """Run a command of `anomseg`. Raises SystemExit if its status is not accepted."""
    print("anomseg", *words, flush=True)
    status = anomseg(words)
    if status not in accepted:
        raise SystemExit(status)


def write_result(name: str, result: dict[str, Any], path: Path | None = None) -> Path:
    """Write benchmarks/results/NAME.json, or `path`, and return it. Machine, command and date are added."""
    arguments = [Path(part).name if os.path.isabs(part) else part for part in sys.argv[1:]]
    document = {
        "benchmark": name,
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments]),
        "machine": machine_description(),
        **result,
    }
    path = path or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".json.part")
    part.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    part.replace(path)
    return path
