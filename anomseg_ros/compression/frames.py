"""Frames to calibrate on, and others to measure on: never the same ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anomseg_ros.core.image_files import image_files, read_image
from anomseg_ros.core.types import RgbImage
from anomseg_ros.datasets import DATASETS, open_named
from anomseg_ros.errors import CompressionError

FEWEST_CALIBRATION = 8
"""With fewer frames a range is that of one scene; measured, eight of different streets are the least that holds."""
FEWEST_HELD_OUT = 2

Progress = Callable[[str, int, int], None]
"""Called with (what, frames done, frames in all)."""


@dataclass(frozen=True)
class FrameSplit:
    """uint8 (H, W, 3) RGB frames of any size to calibrate on, others to measure on, and the names of both."""

    calibration: tuple[RgbImage, ...]
    held_out: tuple[RgbImage, ...]
    calibration_names: tuple[str, ...]
    held_out_names: tuple[str, ...]


def split_frames(
    sources: Sequence[str],
    calibration: int,
    held_out: int,
    *,
    seed: int = 0,
    allow_few: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> FrameSplit:
    """Draw frames from folders, image files and NAME=PATH datasets, the same ones for the same seed.

    Where there are fewer than asked for, a quarter of them is held out. Raises CompressionError for too few frames,
    FrameError and DatasetError for a source or a frame that cannot be read.
    """
    if calibration < 1 or held_out < 1:
        raise CompressionError(
            f"{calibration} frames to calibrate on and {held_out} to measure on: both must be at least 1"
        )
    listed = _listed(sources)
    if len(listed) < calibration + held_out:
        held_out = min(held_out, max(FEWEST_HELD_OUT, len(listed) // 4))
        calibration = min(calibration, len(listed) - held_out)
    _require_enough(sources, len(listed), calibration, held_out, allow_few)
    order = np.random.default_rng(seed).permutation(len(listed))[: calibration + held_out]
    frames = []
    for done, index in enumerate(order):
        frames.append(listed[index][1]())
        progress("reading frames", done + 1, len(order))
    names = tuple(listed[index][0] for index in order)
    return FrameSplit(
        tuple(frames[:calibration]), tuple(frames[calibration:]), names[:calibration], names[calibration:]
    )


def calibration_frames(sources: Sequence[str], count: int, *, seed: int = 0, allow_few: bool = False) -> list[RgbImage]:
    """Return up to `count` frames to calibrate on; see split_frames, whose held-out frames are others."""
    return list(split_frames(sources, count, FEWEST_HELD_OUT, seed=seed, allow_few=allow_few).calibration)


def drawn_frames(
    sources: Sequence[str], count: int, *, seed: int = 0, progress: Progress = lambda what, done, total: None
) -> list[RgbImage]:
    """Return up to `count` frames to measure on, where nothing is calibrated. Raises what split_frames does."""
    listed = _listed(sources)
    if count < 1 or not listed:
        raise CompressionError(f"{', '.join(sources)}: {len(listed)} frame(s), of which {count} to measure on; give 1")
    order = np.random.default_rng(seed).permutation(len(listed))[:count]
    frames = []
    for done, index in enumerate(order):
        frames.append(listed[index][1]())
        progress("reading frames", done + 1, len(order))
    return frames


def _listed(sources: Sequence[str]) -> list[tuple[str, Callable[[], RgbImage]]]:
    """Return the name of every frame and what reads it."""
    found: dict[str, Callable[[], RgbImage]] = {}
    for source in sources:
        name, equals, _ = source.partition("=")
        if equals and (name.strip() in DATASETS or not Path(source).exists()):
            dataset = open_named(source)
            for index in range(len(dataset)):
                found[f"{source}/{dataset.frame_id(index)}"] = lambda of=dataset, at=index: of.load(at).image  # type: ignore[misc]
            continue
        path = Path(source).expanduser()
        for file in [path] if path.is_file() else image_files(path):
            found[str(file)] = lambda of=file: read_image(of)  # type: ignore[misc]
    return list(found.items())


def _require_enough(sources: Sequence[str], found: int, calibration: int, held_out: int, allow_few: bool) -> None:
    needed = FEWEST_CALIBRATION + FEWEST_HELD_OUT
    if calibration < 1 or held_out < 1:
        raise CompressionError(
            f"{', '.join(sources)}: {found} frame(s); at least 2 are needed, one to calibrate on and one to measure on"
        )
    if calibration < FEWEST_CALIBRATION and not allow_few:
        raise CompressionError(
            f"{', '.join(sources)}: {found} frame(s), of which {calibration} to calibrate on; ranges found on fewer "
            f"than {FEWEST_CALIBRATION} do not hold: give at least {needed} of the camera's usual scenes, or pass "
            "--allow-few"
        )
