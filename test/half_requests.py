"""Requests to convert a bundle, with frames to measure on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
from small_bundles import street_frames

from anomseg_ros.compression.half_bundle import HalfRequest
from anomseg_ros.core.bundle import load_bundle


def request_of(bundle: Path, folder: Path, **given: Any) -> HalfRequest:
    for index, frame in enumerate(street_frames(2)):
        (folder / "frames").mkdir(exist_ok=True)
        cv2.imwrite(str(folder / "frames" / f"{index}.png"), frame)
    values = {"bundle": load_bundle(bundle), "output": folder / "half", "frames": (str(folder / "frames"),), **given}
    return HalfRequest(**values)
