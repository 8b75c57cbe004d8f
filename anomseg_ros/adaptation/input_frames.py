"""Frames as the bundle's graph gets them: at its size, resized as it does, in its channel order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np

from anomseg_ros.core.bundle import Contract, InputSpec
from anomseg_ros.core.labels import ClassInfo
from anomseg_ros.core.preprocess import resized_labels, tensor_from_frame
from anomseg_ros.core.progress import Progress
from anomseg_ros.core.types import RgbImage
from anomseg_ros.datasets.dataset import Dataset, LabelledFrame
from anomseg_ros.datasets.unlabelled_drive import UnlabelledDrive
from anomseg_ros.datasets.wrapped import WrappedDataset
from anomseg_ros.training.frame_cache import Frames, cached_frames


class InputFrames(Sequence[RgbImage]):
    """Frames of a drive, uint8 (H, W, 3) in the channel order of the bundle; read whenever they are asked for."""

    def __init__(self, drive: UnlabelledDrive, indices: Sequence[int], spec: InputSpec) -> None:
        self._drive, self._indices, self._spec = drive, tuple(indices), spec

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> RgbImage: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[RgbImage]: ...

    def __getitem__(self, index: int | slice) -> RgbImage | Sequence[RgbImage]:
        """Read a frame; a slice gives the frames of these indices."""
        if isinstance(index, slice):
            return InputFrames(self._drive, self._indices[index], self._spec)
        frame: RgbImage = tensor_from_frame(self._drive.load(self._indices[index]).image, self._spec)[0]
        return frame


class AtInputSize(WrappedDataset):
    """Some frames of a labelled dataset, as the bundle's graph gets them: its size, resizing and channel order."""

    def __init__(self, dataset: Dataset, indices: Sequence[int], spec: InputSpec) -> None:
        super().__init__(dataset)
        self._indices, self._spec = tuple(indices), spec

    def __len__(self) -> int:
        """Return the number of chosen frames."""
        return len(self._indices)

    def frame_id(self, index: int) -> str:
        """Return the name of a frame."""
        return self._dataset.frame_id(self._indices[index])

    def load(self, index: int) -> LabelledFrame:
        """Return one frame at the bundle's size. Raises the package's errors."""
        frame = self._dataset.load(self._indices[index])
        assert frame.labels is not None
        image = tensor_from_frame(frame.image, self._spec)[0]
        labels = resized_labels(frame.labels, self._spec.height_px, self._spec.width_px)
        return LabelledFrame(frame.id, image, labels, None)


def known_classes(contract: Contract) -> tuple[ClassInfo, ...]:
    """Return the classes of a bundle without the void class."""
    return tuple(info for index, info in enumerate(contract.classes) if index != contract.void_class)


def decoded(datasets: Sequence[Dataset], contract: Contract, progress: Progress) -> Frames:
    """Return the frames of several datasets, decoded, one after another."""
    size_px = (contract.input.height_px, contract.input.width_px)
    classes = known_classes(contract)
    parts = [cached_frames(dataset, classes, size_px, None, True, progress) for dataset in datasets]
    if len(parts) == 1:
        return parts[0]
    images, labels = (np.concatenate(arrays) for arrays in ([p.images for p in parts], [p.labels for p in parts]))
    ids = tuple(name for part in parts for name in part.ids)
    return Frames(images, labels, ids, np.sum([part.counts for part in parts], axis=0), classes)


def first_frames(frames: Frames, count: int) -> Frames:
    """Return the first frames."""
    return Frames(frames.images[:count], frames.labels[:count], frames.ids[:count], frames.counts, frames.classes)


def spread(indices: Sequence[int], count: int) -> tuple[int, ...]:
    """Return at most `count` of the indices, evenly spread over them."""
    if len(indices) <= count:
        return tuple(indices)
    return tuple(indices[int(place)] for place in np.linspace(0, len(indices) - 1, count))
