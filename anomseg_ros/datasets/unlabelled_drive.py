"""An unlabelled drive as a dataset: every pixel is known, except the own vehicle.

Several folders, videos and bags follow each other as one drive. Frames that show something strange can be left out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from pathlib import Path

import numpy as np

from anomseg_ros.core.delivered import Delivered
from anomseg_ros.core.ego_mask import ego_mask_of_frame
from anomseg_ros.core.labels import ClassInfo
from anomseg_ros.core.problems import FrameProblem
from anomseg_ros.core.types import Mask
from anomseg_ros.datasets.dataset import KNOWN, VOID, LabelledFrame
from anomseg_ros.datasets.drive_inputs import DriveInput, open_input
from anomseg_ros.errors import DatasetError, closest_first, describe_os_error

Change = Callable[[int, LabelledFrame], LabelledFrame]
"""Given a frame's index and the frame, returns another one."""


class UnlabelledDrive:
    """The frames of one or more inputs, in their order; implements Dataset (dataset.py).

    A frame's name is the one that it has in its input, after `INPUT/` where there are several inputs.
    """

    name, split, layout = "drive", "", "unlabelled"
    label_set: str | None = None
    classes: tuple[ClassInfo, ...] | None = None
    has_anomalies = True
    published_count: int | None = None
    problems: tuple[FrameProblem, ...] = ()

    def __init__(self, inputs: Sequence[DriveInput], ego_mask: Mask | None = None, every: int = 1) -> None:
        """ego_mask: uint8 (H, W) of the frames' aspect ratio, non-zero on the own vehicle. every: step between frames
        that are taken. Raises DatasetError without an input, and for a step below 1."""
        if not inputs:
            raise DatasetError("no drive was given; give a folder of pictures, a video or a bag")
        if every < 1:
            raise DatasetError(f"every is {every!r}; expected a whole number of frames, at least 1")
        self.inputs = tuple(inputs)
        self.input_names = _unique(one.name for one in inputs)
        self.path = ", ".join(str(one.path) for one in inputs)
        self._ego_mask, self._every = ego_mask, every
        self._change: Change | None = None
        self._frames = [
            (number, index) for number, one in enumerate(inputs) for index in range(0, len(one.frame_names), every)
        ]
        self._all_names = {
            self._frame_name(number, index)
            for number, one in enumerate(inputs)
            for index in range(len(one.frame_names))
        }

    @property
    def differences(self) -> tuple[Delivered, ...]:
        """Inputs that have another number of frames than they state."""
        return tuple(difference for one in self.inputs for difference in one.differences)

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self._frames)

    def frame_id(self, index: int) -> str:
        """Return the name of a frame."""
        return self._frame_name(*self._frames[index])

    def origin(self, index: int) -> str:
        """Return the place of a frame; see Dataset.origin."""
        number, frame = self._frames[index]
        return f"{self.inputs[number].path.resolve()} {self.inputs[number].frame_names[frame]}"

    def stamp_ns(self, index: int) -> int:
        """Return the time of a frame in its input. Raises DatasetError where nothing states it."""
        number, frame = self._frames[index]
        stamps_ns = self.inputs[number].stamps_ns
        if stamps_ns is None:
            raise DatasetError(
                f"the frames of {str(self.inputs[number].path)!r} have no times, which alarms per minute need: give "
                "the rate at which they were taken, such as --fps 10"
            )
        return stamps_ns[frame]

    def follows(self, index: int) -> bool:
        """Return whether a frame comes next after the one before it, with no other frame or input between them."""
        if index == 0:
            return False
        (input_before, before), (number, frame) = self._frames[index - 1 : index + 1]
        return input_before == number and frame - before == self._every

    def load(self, index: int) -> LabelledFrame:
        """Read one frame. Raises AnomsegError that names its file."""
        number, frame = self._frames[index]
        image = self.inputs[number].load(frame)
        height, width = image.shape[:2]
        known = np.full((height, width), KNOWN, np.uint8)
        if self._ego_mask is not None:
            known[ego_mask_of_frame(self._ego_mask, height, width) > 0] = VOID
        loaded = LabelledFrame(self.frame_id(index), image, None, known)
        return loaded if self._change is None else self._change(index, loaded)

    def changed(self, change: Change) -> UnlabelledDrive:
        """Return the drive whose frames are what `change` makes of them; it may be called from several threads."""
        drive = copy.copy(self)
        drive._change = change
        return drive

    def without(self, names: Sequence[str]) -> UnlabelledDrive:
        """Return the drive without frames of these names. Raises DatasetError for a name of no frame."""
        if unknown := [name for name in names if name not in self._all_names]:
            near = ", ".join(closest_first(unknown[0], self._all_names)[:3])
            raise DatasetError(
                f"{len(unknown)} of {len(names)} frames to leave out are not in {self.path}, the first is "
                f"{unknown[0]!r}; the most similar names are {near}"
            )
        rest = copy.copy(self)
        left_out = set(names)
        rest._frames = [one for one in self._frames if self._frame_name(*one) not in left_out]
        return rest

    def _frame_name(self, number: int, index: int) -> str:
        name = self.inputs[number].frame_names[index]
        return name if len(self.inputs) == 1 else f"{self.input_names[number]}/{name}"


def open_drive(
    paths: Sequence[Path],
    *,
    topic: str | None = None,
    ego_mask: Mask | None = None,
    every: int = 1,
    rate_hz: float | None = None,
) -> UnlabelledDrive:
    """Open folders of pictures, videos and bags as one drive; no frame is decoded yet.

    topic: of the images, needed where a bag has several image topics. rate_hz: of pictures, and of videos that state
    none. Otherwise as for UnlabelledDrive. Raises AnomsegError.
    """
    return UnlabelledDrive([open_input(path, topic, rate_hz) for path in paths], ego_mask, every)


def read_frame_names(path: Path) -> tuple[str, ...]:
    """Return the frame names of a text file, one a line; empty lines and lines that begin with # do not count.

    Raises DatasetError for a file that cannot be read as text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DatasetError(f"{str(path)!r} is not a text file; expected one frame name per line") from None
    except OSError as error:
        raise DatasetError(f"the list of frames cannot be read: {describe_os_error(error, path)}") from error
    names = (line.strip() for line in lines)
    return tuple(dict.fromkeys(name for name in names if name and not name.startswith("#")))


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    used: list[str] = []
    for name in names:
        numbered = (f"{name}-{number}" for number in count(2))
        used.append(name if name not in used else next(one for one in numbered if one not in used))
    return tuple(used)
