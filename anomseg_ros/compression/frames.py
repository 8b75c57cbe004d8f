"""Frames to calibrate on, and others to measure on: never the same ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from anomseg_ros.core.image_files import image_files, read_image
from anomseg_ros.core.types import RgbImage
from anomseg_ros.datasets import DATASETS, open_named
from anomseg_ros.datasets.base import Dataset
from anomseg_ros.errors import CompressionError

FEWEST_CALIBRATION = 8
"""With fewer frames a range is that of one scene; measured, eight of different streets are the least that holds."""
FEWEST_HELD_OUT = 2

Progress = Callable[[str, int, int], None]
"""Called with (what, frames done, frames in all)."""


@dataclass(frozen=True)
class Listed:
    """A frame that was found. origin: what tells the same picture in another source; see Dataset.origin."""

    name: str
    origin: str
    read: Callable[[], RgbImage]


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
    measured: Sequence[str] = (),
    progress: Progress = lambda what, done, total: None,
) -> FrameSplit:
    """Draw frames from folders, image files and NAME=PATH datasets, the same ones for the same seed.

    Where there are fewer than asked for, a quarter of them is held out. measured: NAME=PATH datasets that nothing may
    be calibrated on. Raises CompressionError for too few frames and for such ones, FrameError and DatasetError for a
    source or a frame that cannot be read.
    """
    ours, others = draw_split(sources, calibration, held_out, seed=seed, allow_few=allow_few, measured=measured)
    frames = _read([*ours, *others], progress)
    return FrameSplit(
        tuple(frames[: len(ours)]),
        tuple(frames[len(ours) :]),
        tuple(frame.name for frame in ours),
        tuple(frame.name for frame in others),
    )


def draw_split(
    sources: Sequence[str],
    calibration: int,
    held_out: int,
    *,
    seed: int = 0,
    allow_few: bool = False,
    measured: Sequence[str] = (),
) -> tuple[list[Listed], list[Listed]]:
    """Return the frames of split_frames, to calibrate on and to measure on, without reading any; raise what it does
    for too few of them and for the wrong ones."""
    listed = _listed(sources)
    calibration, held_out = _shares(sources, len(listed), calibration, held_out, allow_few)
    drawn = _drawn(listed, calibration + held_out, seed)
    _require_apart(drawn[:calibration], measured)
    return drawn[:calibration], drawn[calibration:]


def _require_apart(calibration: Sequence[Listed], measured: Sequence[str]) -> None:
    """Raise CompressionError where a dataset to measure on, NAME=PATH, holds frames that are calibrated on."""
    taken = {frame.origin for frame in calibration}
    for source in measured:
        dataset = open_named(source)
        shared = sum(dataset.origin(index) in taken for index in range(len(dataset)))
        if shared:
            raise CompressionError(
                f"--dataset {source} holds {shared} of the {len(calibration)} frames to calibrate on, so that its "
                "figures would not be those of unseen frames; calibrate on others (--frames), such as another split: "
                "NAME=PATH:SPLIT"
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
    return _read(_drawn(listed, count, seed), progress)


def _drawn(listed: Sequence[Listed], count: int, seed: int) -> list[Listed]:
    return [listed[index] for index in np.random.default_rng(seed).permutation(len(listed))[:count]]


def _read(listed: Sequence[Listed], progress: Progress) -> list[RgbImage]:
    frames = []
    for done, frame in enumerate(listed):
        frames.append(frame.read())
        progress("reading frames", done + 1, len(listed))
    return frames


def _listed(sources: Sequence[str]) -> list[Listed]:
    """Return every frame once."""
    found: dict[str, Listed] = {}
    for source in sources:
        name, equals, _ = source.partition("=")
        if equals and (name.strip() in DATASETS or not Path(source).exists()):
            dataset = open_named(source)
            for index in range(len(dataset)):
                name = f"{source}/{dataset.frame_id(index)}"
                read = partial(_picture, dataset, index)
                found[name] = Listed(name, dataset.origin(index), read)
            continue
        path = Path(source).expanduser()
        for file in [path] if path.is_file() else image_files(path):
            found[str(file)] = Listed(str(file), str(file.resolve()), partial(read_image, file))
    return list(found.values())


def _picture(dataset: Dataset, index: int) -> RgbImage:
    return dataset.load(index).image


def _shares(sources: Sequence[str], found: int, calibration: int, held_out: int, allow_few: bool) -> tuple[int, int]:
    """Return how many of the frames found to calibrate on and how many to measure on."""
    if calibration < 1 or held_out < 1:
        raise CompressionError(
            f"{calibration} frames to calibrate on and {held_out} to measure on: both must be at least 1"
        )
    if found < calibration + held_out:
        held_out = min(held_out, max(FEWEST_HELD_OUT, found // 4))
        calibration = min(calibration, found - held_out)
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
    return calibration, held_out
