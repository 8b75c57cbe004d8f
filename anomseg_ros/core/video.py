"""Videos: stated properties and frames. A video with fewer frames than it states is refused."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from anomseg_ros.core.delivered import Delivered
from anomseg_ros.core.file_kinds import foreign_file
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import FrameError

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")

# Matroska states a duration and no number of frames. OpenCV derives a number from it, which is wrong by rounding and
# by sound that is longer than the pictures.
_STATE_DURATION_ONLY = frozenset({".mkv", ".webm"})
_MISCOUNTED_FRAMES = 2
"""So many frames of a whole file may be stated that no decoder shows: before its first key frame, cut by an edit."""


class Video:
    """A video file; may be iterated more than once.

    rate_hz: frames per second as stated, 0 where the file does not say. frame_count: number of frames as stated, None
    where it does not say. on_difference: is told, after the last frame, where the file has not as many as it states and
    nothing is lost by that.

    Raises:
        FrameError: no such file, or none that OpenCV can open as a video.
    """

    def __init__(self, path: Path, on_difference: Callable[[Delivered], None] | None = None) -> None:
        self.path = path
        self._on_difference = on_difference
        if not path.is_file():
            raise FrameError(f"video {str(path)!r} does not exist; give a file ending in {', '.join(VIDEO_SUFFIXES)}")
        capture = self._open()
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.rate_hz = float(capture.get(cv2.CAP_PROP_FPS))
        self.frame_count = count if count > 0 else None
        capture.release()

    def __iter__(self) -> Iterator[RgbImage]:
        """Yield the frames as stored, not turned by the video's display matrix, uint8 (H, W, 3) RGB.

        Raises:
            FrameError: after the last frame that can be read, if the file states more.
        """
        delivered = 0
        capture = self._open()
        try:
            while True:
                grabbed, bgr = capture.read()
                if not grabbed:
                    break
                delivered += 1
                yield np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
        finally:
            capture.release()
        self._compare(delivered)

    def _open(self) -> cv2.VideoCapture:
        capture = _captured(self.path)
        if not capture.isOpened():
            kind = foreign_file(self.path, "a video")
            reason = f": it {kind}" if kind else "; is it damaged or of an unsupported codec?"
            raise FrameError(f"{str(self.path)!r} cannot be opened as a video{reason}")
        # Pictures are not turned either, see image_files.decode_stored.
        capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)
        return capture

    def _compare(self, delivered: int) -> None:
        rounded = self.path.suffix.lower() in _STATE_DURATION_ONLY
        remedy = "it is cut short or damaged: copy it again"
        slack = max(_MISCOUNTED_FRAMES, round(self.rate_hz)) if rounded else _MISCOUNTED_FRAMES
        source = f"video {str(self.path)!r}"
        if delivered == 0:
            stated = "an unknown number of" if self.frame_count is None else str(self.frame_count)
            raise FrameError(f"{source} states {stated} frames, 0 could be read; {remedy}")
        if self.frame_count is None:
            return
        compared = Delivered(source, "frames", self.frame_count, delivered, slack, remedy=remedy)
        if compared.is_loss:
            raise FrameError(str(compared))
        if not compared.agrees and not rounded and self._on_difference is not None:
            self._on_difference(compared)


def is_video(path: Path) -> bool:
    """Return whether a file's name is that of a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def _captured(path: Path) -> cv2.VideoCapture:
    """Open a video, also one whose name is not UTF-8: such a name makes OpenCV crash."""
    try:
        os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError:
        with tempfile.TemporaryDirectory(prefix="anomseg-") as folder:
            link = Path(folder) / f"video{path.suffix}"
            link.symlink_to(path.absolute())
            return cv2.VideoCapture(str(link))
    return cv2.VideoCapture(str(path))
