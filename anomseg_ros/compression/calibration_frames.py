"""Frames for calibration and other frames for measuring. The two never overlap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from anomseg_ros.core.image_files import image_files, read_image
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.core.types import RgbImage
from anomseg_ros.datasets import DATASETS, open_named
from anomseg_ros.datasets.dataset import Dataset
from anomseg_ros.datasets.drive_inputs import is_recording
from anomseg_ros.datasets.unlabelled_drive import open_drive
from anomseg_ros.errors import CompressionError

FEWEST_CALIBRATION = 8
"""Ranges from fewer frames fit one scene only. Measured: eight frames of different streets are the least that works."""
FEWEST_HELD_OUT = 2


@dataclass(frozen=True)
class FrameSource:
    """A frame that is not read yet. origin: identifies the same picture in other sources; see Dataset.origin."""

    name: str
    origin: str
    read: Callable[[], RgbImage]


@dataclass(frozen=True)
class FrameSplit:
    """uint8 (H, W, 3) RGB frames of any size for calibration and others for measuring."""

    calibration: tuple[RgbImage, ...]
    held_out: tuple[RgbImage, ...]
    calibration_names: tuple[str, ...]


def draw_split(
    sources: Sequence[str],
    calibration: int,
    held_out: int,
    *,
    seed: int = 0,
    allow_few: bool = False,
    measured: Sequence[str] = (),
) -> tuple[list[FrameSource], list[FrameSource]]:
    """Return the frames for calibration and the frames for measuring, unread; the same seed draws the same frames.

    Args:
        sources: folders, image files, videos, bags and NAME=PATH datasets.
        calibration: frames for calibration, at most.
        held_out: frames for measuring, at most. Where there are too few frames, a quarter of them is held out.
        seed: decides which frames are drawn.
        allow_few: accept fewer calibration frames than FEWEST_CALIBRATION.
        measured: NAME=PATH datasets whose frames must not be used for calibration.

    Raises:
        CompressionError: there are too few frames, or a measured dataset holds calibration frames.
        FrameError, DatasetError: a source does not exist.
    """
    frames = _find_frames(sources)
    calibration, held_out = _share_out(sources, len(frames), calibration, held_out, allow_few)
    drawn = _draw(frames, calibration + held_out, seed)
    _require_apart(drawn[:calibration], measured)
    return drawn[:calibration], drawn[calibration:]


def read_split(
    drawn: tuple[Sequence[FrameSource], Sequence[FrameSource]], progress: Progress = no_progress
) -> FrameSplit:
    """Read the frames that draw_split returned. Raises FrameError or DatasetError for one that cannot be read."""
    calibration, held_out = drawn
    frames = _read([*calibration, *held_out], progress)
    return FrameSplit(
        tuple(frames[: len(calibration)]),
        tuple(frames[len(calibration) :]),
        tuple(frame.name for frame in calibration),
    )


def drawn_frames(
    sources: Sequence[str], count: int, *, seed: int = 0, progress: Progress = no_progress
) -> list[RgbImage]:
    """Return up to `count` frames for measuring where nothing is calibrated. Raises the errors of draw_split."""
    frames = _find_frames(sources)
    if count < 1 or not frames:
        raise CompressionError(f"{', '.join(sources)}: {len(frames)} frame(s), of which {count} to measure on; give 1")
    return _read(_draw(frames, count, seed), progress)


def _require_apart(calibration: Sequence[FrameSource], measured: Sequence[str]) -> None:
    """Raise CompressionError where a measured dataset holds calibration frames."""
    origins = {frame.origin for frame in calibration}
    for source in measured:
        dataset = open_named(source)
        shared = sum(dataset.origin(index) in origins for index in range(len(dataset)))
        if shared:
            raise CompressionError(
                f"dataset {source} holds {shared} of the {len(calibration)} frames to calibrate on, so that its "
                "figures would not be those of unseen frames; calibrate on others (`frames`), such as another split: "
                "NAME=PATH:SPLIT"
            )


def _draw(frames: Sequence[FrameSource], count: int, seed: int) -> list[FrameSource]:
    return [frames[index] for index in np.random.default_rng(seed).permutation(len(frames))[:count]]


def _read(sources: Sequence[FrameSource], progress: Progress) -> list[RgbImage]:
    frames: dict[int, RgbImage] = {}
    for index in sorted(range(len(sources)), key=lambda index: sources[index].name):  # a video is read in order
        frames[index] = sources[index].read()
        progress("reading frames", len(frames), len(sources))
    return [frames[index] for index in range(len(sources))]


def _find_frames(sources: Sequence[str]) -> list[FrameSource]:
    """Return every frame of the sources once."""
    frames: dict[str, FrameSource] = {}
    for source in sources:
        name, equals, _ = source.partition("=")
        if equals and (name.strip() in DATASETS or not Path(source).exists()):
            frames |= _frames_of(source, open_named(source))
            continue
        path = Path(source).expanduser()
        if is_recording(path):
            frames |= _frames_of(source, open_drive([path]))
            continue
        for file in [path] if path.is_file() else image_files(path):
            frames[str(file)] = FrameSource(str(file), str(file.resolve()), partial(read_image, file))
    return list(frames.values())


def _frames_of(source: str, dataset: Dataset) -> dict[str, FrameSource]:
    """Return name -> frame of a dataset."""
    named = {f"{source}/{dataset.frame_id(index)}": index for index in range(len(dataset))}
    return {
        name: FrameSource(name, dataset.origin(index), partial(_image_of, dataset, index))
        for name, index in named.items()
    }


def _image_of(dataset: Dataset, index: int) -> RgbImage:
    return dataset.load(index).image


def _share_out(sources: Sequence[str], total: int, calibration: int, held_out: int, allow_few: bool) -> tuple[int, int]:
    """Return how many of `total` frames are for calibration and how many for measuring."""
    if calibration < 1 or held_out < 1:
        raise CompressionError(
            f"{calibration} frames to calibrate on and {held_out} to measure on: both must be at least 1"
        )
    if total < calibration + held_out:
        held_out = min(held_out, max(FEWEST_HELD_OUT, total // 4))
        calibration = min(calibration, total - held_out)
    given = f"{', '.join(sources)}: {total} frame(s)"
    if calibration < 1 or held_out < 1:
        raise CompressionError(f"{given}; at least 2 are needed, one to calibrate on and one to measure on")
    if calibration < FEWEST_CALIBRATION and not allow_few:
        raise CompressionError(
            f"{given}, of which {calibration} to calibrate on; ranges found on fewer than {FEWEST_CALIBRATION} do not "
            f"hold: give at least {FEWEST_CALIBRATION + FEWEST_HELD_OUT} of the camera's usual scenes, or pass "
            "`allow_few`"
        )
    return calibration, held_out
