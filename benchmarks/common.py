"""What all benchmarks share: folders, camera frames, the machine, and results kept as JSON in benchmarks/results."""

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
from anomseg_ros.datasets.synthetic import SyntheticSequence
from anomseg_ros.evaluation.machine import describe_machine, package_versions

SHARED = Path(__file__).resolve().parents[2] / "shared"
DATA = Path(os.environ.get("ANOMSEG_DATA", SHARED / "data"))
WEIGHTS = Path(os.environ.get("ANOMSEG_WEIGHTS", SHARED / "weights"))
DRIVE = DATA / "driving_video" / "images"
"""Frames of a real drive, which may be absent."""
DRAWN_SEED = 20
RESULTS = Path(__file__).resolve().parent / "results"


def machine_description() -> dict[str, Any]:
    """Return the processor, cores, memory, system, Python and package versions; no host names, users or paths."""
    return {**describe_machine(), "packages": package_versions()}


def camera_frames(count: int, height_px: int, width_px: int) -> tuple[list[RgbImage], str]:
    """Return road frames uint8 (height_px, width_px, 3) RGB, at most `count`, and what they are: real where there are
    any in ANOMSEG_DATA, else drawn."""
    if DRIVE.is_dir():
        images, said = [read_image(path) for path in image_files(DRIVE)[:count]], "real road frames"
    else:
        images, said = [frame.image for frame in SyntheticSequence(DRAWN_SEED).frames(count)], "drawn road scenes"
    return [np.asarray(cv2.resize(image, (width_px, height_px)), np.uint8) for image in images], said


def size_of(text: str) -> tuple[int, int]:
    """Argument type: HEIGHTxWIDTH in pixels."""
    height, _, width = text.partition("x")
    return int(height), int(width)


def finished(output: Path, words: list[str]) -> Path:
    """Return a bundle, made by the command unless it is there."""
    if not (output / "bundle.yaml").is_file():
        run(words)
    return output


def run(words: list[str]) -> None:
    """Run a command as a user would; stop where it fails."""
    print("anomseg", *words, flush=True)
    status = anomseg(words)
    if status:
        raise SystemExit(status)


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Write benchmarks/results/NAME.json: the result with the machine, the command and the date; return its path."""
    arguments = [Path(part).name if os.path.isabs(part) else part for part in sys.argv[1:]]
    document = {
        "benchmark": name,
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments]),
        "machine": machine_description(),
        **result,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    part = path.with_suffix(".json.part")
    part.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    part.replace(path)
    return path
