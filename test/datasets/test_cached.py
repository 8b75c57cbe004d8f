from __future__ import annotations

import pickle

import numpy as np

from anomseg_ros.datasets import open_named
from anomseg_ros.datasets.cached import keep_frames
from anomseg_ros.datasets.dataset import LabelledFrame


class CountingDataset:
    """A dataset that counts how often each frame is read."""

    name = "counting"

    def __init__(self) -> None:
        self.reads: list[int] = []

    def __len__(self) -> int:
        return 4

    def load(self, index: int) -> LabelledFrame:
        self.reads.append(index)
        return LabelledFrame(str(index), np.full((4, 5, 3), index, np.uint8), None, np.zeros((4, 5), np.uint8))


FRAME_BYTES = 80


def test_frames_within_the_limit_are_read_once() -> None:
    counting = CountingDataset()
    kept = keep_frames(counting, 2 * FRAME_BYTES)  # type: ignore[arg-type]
    first = [kept.load(index) for index in range(4)]
    again = [kept.load(index) for index in range(4)]
    assert counting.reads == [0, 1, 2, 3, 2, 3]
    assert all((one.image == other.image).all() for one, other in zip(first, again, strict=True))
    assert len(kept) == 4 and kept.name == "counting"


def test_pickled_dataset_has_no_cached_frames() -> None:
    kept = keep_frames(open_named("synthetic=1000001:2"), 10**9)
    image = kept.load(0).image
    sent = pickle.dumps(kept)
    assert len(sent) < 20_000
    copy = pickle.loads(sent)
    assert len(copy) == 2 and (copy.load(0).image == image).all()
