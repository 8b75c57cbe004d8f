"""Frames from image files, folders of them, and videos."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path

from anomseg_ros.core.delivered import Delivered
from anomseg_ros.core.image_files import image_files, read_image
from anomseg_ros.core.types import RgbImage
from anomseg_ros.core.video import Video, is_video
from anomseg_ros.errors import FrameError


class FrameSource:
    """Named frames of images, folders and videos, in the order given; may be iterated more than once.

    on_error: called for a file that cannot be read; the file is left out. Without it the error is raised.
    differences: videos that state another number of frames than they have, without a loss.
    """

    def __init__(self, inputs: Sequence[Path], on_error: Callable[[FrameError], None] | None = None) -> None:
        self._on_error = on_error
        self.differences: list[Delivered] = []
        self._items: list[Path] = []
        for path in inputs:
            self._items += image_files(path) if path.is_dir() else [_checked(path)]

    @property
    def count(self) -> int | None:
        """Number of frames, or None if a video does not say."""
        counts = [_video_length(path) if is_video(path) else 1 for path in self._items]
        return None if any(count is None for count in counts) else sum(count or 0 for count in counts)

    def __iter__(self) -> Iterator[tuple[str, RgbImage]]:
        """Yield (name, uint8 (H, W, 3) RGB); names are unique, frames of a video are numbered."""
        used: set[str] = set()
        for path in self._items:
            try:
                for name, frame in self._video_frames(path) if is_video(path) else [(path.stem, read_image(path))]:
                    unique = next(one for one in _numbered(name) if one not in used)
                    used.add(unique)
                    yield unique, frame
            except FrameError as error:
                if self._on_error is None:
                    raise
                self._on_error(error)

    def _video_frames(self, path: Path) -> Iterator[tuple[str, RgbImage]]:
        for index, frame in enumerate(Video(path, self.differences.append)):
            yield f"{path.stem}_{index:06d}", frame


def _numbered(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}-{number}" for number in count(2))


def _checked(path: Path) -> Path:
    if not path.exists() and not path.is_symlink():
        raise FrameError(f"{path} does not exist; give images, a folder of images or a video")
    return path


def _video_length(path: Path) -> int | None:
    try:
        return Video(path).frame_count
    except FrameError:  # raised when its frames are read
        return None
