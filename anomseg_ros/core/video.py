"""Videos: what a file states of itself, and its frames; one that ends before what it states is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import FrameError

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")

# Matroska states a duration and no number of frames; OpenCV makes one of it, which rounding and sound that goes on
# after the picture put off.
_STATE_DURATION_ONLY = frozenset({".mkv", ".webm"})


class Video:
    """A video file; may be iterated more than once.

    rate_hz: frames per second as stated, 0 where the file does not say. frame_count: number of frames as stated, None
    where it does not say.

    Raises:
        FrameError: no such file, or none that OpenCV can open as a video.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise FrameError(f"video {str(path)!r} does not exist; give a file ending in {', '.join(VIDEO_SUFFIXES)}")
        capture = self._open()
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.rate_hz = float(capture.get(cv2.CAP_PROP_FPS))
        self.frame_count = count if count > 0 else None
        capture.release()

    def __iter__(self) -> Iterator[RgbImage]:
        """Yield the frames, uint8 (H, W, 3) RGB.

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
        self._require_all(delivered)

    def _open(self) -> cv2.VideoCapture:
        capture = cv2.VideoCapture(str(self.path))
        if not capture.isOpened():
            raise FrameError(
                f"{str(self.path)!r} cannot be opened as a video; is it damaged or of an unsupported codec?"
            )
        return capture

    def _require_all(self, delivered: int) -> None:
        slack = max(1, round(self.rate_hz)) if self.path.suffix.lower() in _STATE_DURATION_ONLY else 0
        if delivered == 0 or delivered + slack < (self.frame_count or 0):
            stated = "an unknown number of" if self.frame_count is None else str(self.frame_count)
            raise FrameError(
                f"video {str(self.path)!r} states {stated} frames, {delivered} could be read; it is cut short or "
                "damaged: copy it again"
            )


def is_video(path: Path) -> bool:
    """Return whether a file's name is that of a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES
