"""A dataset that keeps decoded frames in memory, up to a limit, for later reads."""

from __future__ import annotations

import threading
from typing import Any, cast

from anomseg_ros.datasets.dataset import Dataset, LabelledFrame
from anomseg_ros.datasets.wrapped import WrappedDataset


def keep_frames(dataset: Dataset, limit_bytes: int) -> Dataset:
    """Return the same dataset, which reads each frame once while the frames fit into `limit_bytes`.

    A copy that is sent to another process keeps no frames. Frames are shared: do not write to their arrays.
    """
    return cast(Dataset, _KeptFrames(dataset, limit_bytes))


class _KeptFrames(WrappedDataset):
    def __init__(self, dataset: Dataset, limit_bytes: int) -> None:
        super().__init__(dataset)
        self._left_bytes = limit_bytes
        self._frames: dict[int, LabelledFrame] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _KeptFrames, (self._dataset, 0)

    def load(self, index: int) -> LabelledFrame:
        """Return one frame, from memory if it was kept; see Dataset.load."""
        frame = self._frames.get(index)
        if frame is None:
            frame = self._dataset.load(index)
            self._keep(index, frame)
        return frame

    def _keep(self, index: int, frame: LabelledFrame) -> None:
        size = sum(array.nbytes for array in (frame.image, frame.labels, frame.anomaly) if array is not None)
        with self._lock:
            if index not in self._frames and size <= self._left_bytes:
                self._frames[index] = frame
                self._left_bytes -= size
