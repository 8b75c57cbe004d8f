"""Frames from image files, folders of them, and videos."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from anomseg_ros.core.image_files import image_files, read_image
from anomseg_ros.core.types import RgbImage
from anomseg_ros.core.video import Video, is_video
from anomseg_ros.errors import FrameError


class FrameSource:
    """Named frames of images, folders and videos, in the order given; may be iterated more than once.

    on_error: is told of a file that cannot be read, which is then left out; without it the error is raised.
    """

    def __init__(self, inputs: Sequence[Path], on_error: Callable[[FrameError], None] | None = None) -> None:
        self._on_error = on_error
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
        used: dict[str, int] = {}
        for path in self._items:
            try:
                for name, frame in _video_frames(path) if is_video(path) else [(path.stem, read_image(path))]:
                    used[name] = used.get(name, 0) + 1
                    yield (name if used[name] == 1 else f"{name}-{used[name]}"), frame
            except FrameError as error:
                if self._on_error is None:
                    raise
                self._on_error(error)


def _checked(path: Path) -> Path:
    if not path.is_file():
        raise FrameError(f"{path} does not exist; give images, a folder of images or a video")
    return path


def _video_length(path: Path) -> int | None:
    try:
        return Video(path).frame_count
    except FrameError:  # said when its turn comes
        return None


def _video_frames(path: Path) -> Iterator[tuple[str, RgbImage]]:
    for index, frame in enumerate(Video(path)):
        yield f"{path.stem}_{index:06d}", frame
