"""The parts of an unlabelled drive: a folder of pictures, a video, or a bag; frames by index, from several threads."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from anomseg_ros.bags.bag_paths import BAG_SUFFIXES, is_bag
from anomseg_ros.bags.pixels import frame_from_message
from anomseg_ros.bags.read import camera_topic
from anomseg_ros.bags.stamped_topics import StampedTopics, seconds
from anomseg_ros.core.delivered import Delivered
from anomseg_ros.core.image_files import image_files
from anomseg_ros.core.pixel_files import read_picture
from anomseg_ros.core.problems import FrameProblem
from anomseg_ros.core.types import RgbImage
from anomseg_ros.core.video import VIDEO_SUFFIXES, Video, is_video
from anomseg_ros.errors import DatasetError, FrameError

_KEPT_FRAMES = 8
"""Threads ask for the frames of a video slightly out of order; so many of the last ones stay in memory."""

_UNSURE_FRAMES = 2
"""A whole video may state so many frames more than it shows (core/video.py); a drive does without the last ones."""


class DriveInput(ABC):
    """Frames by index. name: of the drive. frame_names: unique in it.

    stamps_ns: time of each frame, increasing; None where nothing states it.
    """

    name: str
    path: Path
    frame_names: Sequence[str]
    stamps_ns: Sequence[int] | None = None

    @abstractmethod
    def load(self, index: int) -> RgbImage:
        """Return one frame, uint8 (H, W, 3) RGB. Raises AnomsegError that names its file."""

    @property
    def differences(self) -> Sequence[Delivered]:
        """Where the input has another number of frames than it states."""
        return ()


class PictureFolder(DriveInput):
    """Picture files of a folder, in natural order of their names."""

    def __init__(self, path: Path) -> None:
        self.name, self.path = path.resolve().name, path
        try:
            self._files = image_files(path)
        except FrameError as error:
            raise DatasetError(str(error)) from None
        self.frame_names = [file.stem for file in self._files]
        if len(set(self.frame_names)) < len(self._files):
            raise DatasetError(f"{str(path)!r} has pictures whose names differ only by their file ending; rename them")

    def load(self, index: int) -> RgbImage:
        """Read one picture."""
        return read_picture(self._files[index])


class VideoFrames(DriveInput):
    """The frames of a video. Reading them in order is fast; going back starts again at the beginning."""

    def __init__(self, path: Path) -> None:
        self.name, self.path = path.stem, path
        self._video = Video(path)
        stated = self._video.frame_count
        # Files that state a duration only are counted: their number is derived, and wrong by rounding and sound.
        sure = stated is not None and path.suffix.lower() not in (".mkv", ".webm")
        count = max(0, (stated or 0) - _UNSURE_FRAMES) if sure else sum(1 for _ in self._video)
        self.frame_names = [f"{path.stem}_{number:06d}" for number in range(count)]
        if self._video.rate_hz > 0:
            self.stamps_ns = [round(number * 1e9 / self._video.rate_hz) for number in range(count)]
        self._lock = threading.Lock()
        self._rewind()

    def load(self, index: int) -> RgbImage:
        """Decode up to a frame."""
        with self._lock:
            if index < self._next - len(self._last):
                self._rewind()
            while self._next <= index:
                frame = next(self._frames, None)
                if frame is None:
                    raise FrameProblem(
                        "unreadable", self.path, f"it has {self._next} frames, {index + 1} were expected"
                    )
                self._last.append(frame)
                self._next += 1
            return self._last[index - self._next]

    def _rewind(self) -> None:
        self._frames: Iterator[RgbImage] = iter(self._video)
        self._last: deque[RgbImage] = deque(maxlen=_KEPT_FRAMES)
        self._next = 0


class BagImages(DriveInput):
    """The images of a topic of a bag, in the order of their stamps; None: the only colour topic."""

    def __init__(self, path: Path, topic: str | None = None) -> None:
        self.name, self.path = path.resolve().stem, path
        self._stamped = StampedTopics(path)
        bag = self._stamped.bag()
        self.topic = camera_topic(bag) if topic is None else topic
        self._stamped.index([self.topic])
        self.stamps_ns = sorted(self._stamped.times[self.topic])
        self.frame_names = [seconds(stamp_ns) for stamp_ns in self.stamps_ns]

    @property
    def differences(self) -> Sequence[Delivered]:
        """Topics whose stated number of messages differs from the number read."""
        return self._stamped.differences

    def load(self, index: int) -> RgbImage:
        """Read one image."""
        assert self.stamps_ns is not None
        stamp_ns = self.stamps_ns[index]
        try:
            return frame_from_message(self._stamped.messages(stamp_ns)[self.topic])
        except FrameError as error:
            raise FrameProblem("unreadable", self._stamped.place(self.topic, stamp_ns), str(error)) from None


def open_input(path: Path, topic: str | None = None, rate_hz: float | None = None) -> DriveInput:
    """Open a folder of pictures, a video or a bag, which is told from its name and content; no frame is decoded yet.

    rate_hz: frames per second where nothing states the time of the frames. Raises AnomsegError: no such file, no frame
    in it, damaged, of another kind, or a rate that is not above 0.
    """
    if rate_hz is not None and not rate_hz > 0:
        raise DatasetError(f"the rate is {rate_hz!r} Hz; expected a number above 0")
    if not path.exists():
        raise DatasetError(f"{str(path)!r} does not exist; give a folder of pictures, a video or a bag")
    opener = _opener(path, topic)
    opened = opener(path)
    if not opened.frame_names:
        raise DatasetError(f"{str(path)!r} holds no frame")
    if opened.stamps_ns is None and rate_hz is not None:
        opened.stamps_ns = [round(index * 1e9 / rate_hz) for index in range(len(opened.frame_names))]
    return opened


def is_recording(path: Path) -> bool:
    """Return whether a path is a video or a bag, by its name or, of a folder, by what is in it."""
    return is_bag(path) or is_video(path)


def _opener(path: Path, topic: str | None) -> Callable[[Path], DriveInput]:
    if is_bag(path):
        return lambda bag: BagImages(bag, topic)
    if topic is not None:
        raise DatasetError(f"topic {topic!r} was given, but {str(path)!r} is not a bag; leave the topic out")
    if path.is_dir():
        return PictureFolder
    if is_video(path):
        return VideoFrames
    raise DatasetError(
        f"{str(path)!r} is no drive; give a folder of pictures, a video ({', '.join(VIDEO_SUFFIXES)}) or a bag "
        f"({', '.join(BAG_SUFFIXES)})"
    )
