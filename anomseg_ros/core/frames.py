"""Frames from image files, folders of them, and videos."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import FrameError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm"})
VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v"})


def natural_order(path: Path) -> list[tuple[int, int | str]]:
    """Sort key under which frame 2 comes before frame 10."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts if part]


def image_files(folder: Path) -> list[Path]:
    """Return the image files directly in a folder, in natural order. Raises FrameError if there is none."""
    files = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise FrameError(f"{folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return sorted(files, key=natural_order)


def read_image(path: Path) -> RgbImage:
    """Read an image file as uint8 (H, W, 3) RGB; 16-bit files keep their upper 8 bits. Raises FrameError naming it."""
    bgr = (
        cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR) if path.is_file() and path.stat().st_size else None
    )
    if bgr is None:
        raise FrameError(f"{path} cannot be read as an image; is it missing, empty or damaged?")
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


class FrameSource:
    """Named frames of images, folders and videos, in the order given. Iterate it once or more; `count` may be None."""

    def __init__(self, inputs: Sequence[Path]) -> None:
        self._items: list[Path] = []
        for path in inputs:
            self._items += image_files(path) if path.is_dir() else [_checked(path)]

    @property
    def count(self) -> int | None:
        """Number of frames, or None if a video does not say."""
        counts = [_video_length(path) if _is_video(path) else 1 for path in self._items]
        return None if any(count is None for count in counts) else sum(count or 0 for count in counts)

    def __iter__(self) -> Iterator[tuple[str, RgbImage]]:
        """Yield (name, uint8 (H, W, 3) RGB); names are unique, frames of a video are numbered."""
        used: dict[str, int] = {}
        for path in self._items:
            frames = _video_frames(path) if _is_video(path) else [(path.stem, read_image(path))]
            for name, frame in frames:
                used[name] = used.get(name, 0) + 1
                yield (name if used[name] == 1 else f"{name}-{used[name]}"), frame


def _checked(path: Path) -> Path:
    if not path.is_file():
        raise FrameError(f"{path} does not exist; give images, a folder of images or a video")
    return path


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def _video_length(path: Path) -> int | None:
    capture = cv2.VideoCapture(str(path))
    length = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    capture.release()
    return length if length > 0 else None


def _video_frames(path: Path) -> Iterator[tuple[str, RgbImage]]:
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened():
            raise FrameError(f"{path} cannot be opened as a video; is it damaged or of an unsupported codec?")
        index = 0
        while True:
            grabbed, bgr = capture.read()
            if not grabbed:
                return
            yield f"{path.stem}_{index:06d}", np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
            index += 1
    finally:
        capture.release()
