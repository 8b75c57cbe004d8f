"""Frames from image files, folders of them, videos, and sources of named frames such as bags."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Protocol

from anomseg_ros.core.delivered import Delivered
from anomseg_ros.core.image_files import image_files, read_image
from anomseg_ros.core.types import RgbImage
from anomseg_ros.core.video import Video, is_video
from anomseg_ros.errors import AnomsegError, FrameError


class NamedFrames(Protocol):
    """Frames by index, such as a bag's; see datasets.drive_inputs.DriveInput."""

    @property
    def frame_names(self) -> Sequence[str]: ...

    @property
    def differences(self) -> Sequence[Delivered]: ...

    def load(self, index: int) -> RgbImage:
        """Return one frame, uint8 (H, W, 3) RGB. Raises AnomsegError."""
        ...


class FrameSource:
    """Named frames of images, folders, videos and NamedFrames, in the order given; may be iterated more than once.

    on_error: called for a file or frame that cannot be read, which is left out. Without it the error is raised.
    differences: videos and NamedFrames that state another number of frames than they have, without a loss.
    """

    def __init__(
        self, inputs: Sequence[Path | NamedFrames], on_error: Callable[[AnomsegError], None] | None = None
    ) -> None:
        self._on_error = on_error
        self.differences: list[Delivered] = []
        self._items: list[Path | NamedFrames] = []
        for given in inputs:
            if isinstance(given, Path):
                self._items += image_files(given) if given.is_dir() else [_checked(given)]
            else:
                self._items.append(given)

    @property
    def count(self) -> int | None:
        """Number of frames, or None if a video does not say."""
        counts = [_length(item) for item in self._items]
        return None if any(count is None for count in counts) else sum(count or 0 for count in counts)

    def __iter__(self) -> Iterator[tuple[str, RgbImage]]:
        """Yield (name, uint8 (H, W, 3) RGB); names are unique, frames of a video are numbered."""
        used: set[str] = set()
        for item in self._items:
            for name, frame in self._file_frames(item) if isinstance(item, Path) else self._named_frames(item):
                unique = next(one for one in _numbered(name) if one not in used)
                used.add(unique)
                yield unique, frame

    def _file_frames(self, path: Path) -> Iterator[tuple[str, RgbImage]]:
        try:
            yield from self._video_frames(path) if is_video(path) else [(path.stem, read_image(path))]
        except FrameError as error:
            self._report(error)

    def _named_frames(self, frames: NamedFrames) -> Iterator[tuple[str, RgbImage]]:
        for index, name in enumerate(frames.frame_names):
            try:
                frame = frames.load(index)
            except AnomsegError as error:
                self._report(error)
                continue
            yield name, frame
        self.differences += frames.differences

    def _report(self, error: AnomsegError) -> None:
        if self._on_error is None:
            raise error
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


def _length(item: Path | NamedFrames) -> int | None:
    if not isinstance(item, Path):
        return len(item.frame_names)
    if not is_video(item):
        return 1
    try:
        return Video(item).frame_count
    except FrameError:  # raised when its frames are read
        return None
