"""One part of an evaluation: some frames of one dataset through one bundle. The same function in every process.

Frames are loaded ahead of inference in threads, and measured in another, so that the network never waits for either.
Several frames may be in inference at a time (lanes), with fewer threads each: two networks on one core each finish more
frames than one network on two cores, whose threads wait for each other after every layer.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from queue import SimpleQueue

import numpy as np

from anomseg_ros.backends import open_detector
from anomseg_ros.backends.options import BackendOptions
from anomseg_ros.core.detector import Detector
from anomseg_ros.datasets.base import Dataset
from anomseg_ros.errors import AnomsegError
from anomseg_ros.evaluation.measures import Measures, MeasureSpec, TimedOutputs
from anomseg_ros.evaluation.views import View, make_view

LOADERS = 2
FRAMES_AHEAD = 4
FRAMES_BEHIND = 2
"""Frames that may wait for inference, and for being measured: a dozen images in memory at most."""

WARM_UP_FRAMES = 2

Seen = tuple[View, TimedOutputs | None]
"""A frame at one size, and what the detector said of it, None where nobody needs that."""

Watch = Callable[[Measures], None]
"""Called with the measures so far after each frame, in the thread that measures."""


@dataclass(frozen=True)
class PartTask:
    """What a worker needs to know; paths must mean the same to it. bundle_sha256: the graph's digest.

    lanes: frames in inference at a time, each by a detector of its own. network_only: run one detector on frames loaded
    beforehand and measure nothing but time.
    """

    bundle: str
    bundle_sha256: str
    dataset: Dataset
    indices: tuple[int, ...]
    spec: MeasureSpec
    backend: str = "onnxruntime"
    options: BackendOptions = field(default_factory=BackendOptions)
    lanes: int = 1
    network_only: bool = False

    @property
    def with_labels(self) -> bool:
        """Whether the detector's labels are needed."""
        return self.spec.num_classes is not None


@dataclass(frozen=True)
class Loaded:
    """A frame read, at every size that is needed."""

    index: int
    frame_id: str
    views: tuple[View, ...]


def evaluate_part(task: PartTask, watch: Watch | None = None) -> Measures:
    """Return the measures of the task's frames. Raises the package's errors, naming the frame."""
    detectors = open_lanes(task)
    measures = Measures(task.spec)
    started = time.perf_counter()
    measuring = ThreadPoolExecutor(1, thread_name_prefix="measure")
    try:
        waiting: deque[Future[None]] = deque()
        for loaded, seen in detected_frames(task, detectors, measures):
            waiting.append(measuring.submit(_measure, task, measures, loaded, seen, watch, started))
            while len(waiting) > FRAMES_BEHIND:
                waiting.popleft().result()
        for future in waiting:
            future.result()
    finally:
        measuring.shutdown(cancel_futures=True)
    measures.seconds = time.perf_counter() - started
    return measures


def open_warm(task: PartTask) -> Detector:
    """Return a detector of a task, opened and warmed up once per process."""
    return open_lanes(task)[0]


def open_lanes(task: PartTask) -> tuple[Detector, ...]:
    """Return the detectors of a task, one per lane, opened and warmed up once per process."""
    named = (task.bundle, task.bundle_sha256, task.backend, task.options)
    return _opened(*named, task.spec.scores, task.with_labels, task.lanes)


@lru_cache(maxsize=1)
def _opened(
    bundle: str, sha256: str, backend: str, options: BackendOptions, scores: tuple[str, ...], labels: bool, lanes: int
) -> tuple[Detector, ...]:
    detectors = tuple(open_detector(bundle, backend, options) for _ in range(lanes))
    spec = detectors[0].bundle.contract.input
    grey = np.full((spec.height_px, spec.width_px, 3), 128, np.uint8)
    for detector in detectors:
        for _ in range(WARM_UP_FRAMES):
            detector.detect(grey, scores, labels=labels)
    return detectors


def detected_frames(
    task: PartTask, detectors: tuple[Detector, ...], measures: Measures
) -> Iterator[tuple[Loaded, list[Seen]]]:
    """Yield the frames in order with what a detector said of their views, as many at a time as there are detectors.

    measures: say which views are needed; nothing is added to them.
    """
    if len(detectors) == 1:
        for loaded in _loaded_ahead(task):
            yield loaded, _seen(detectors[0], task, loaded, measures)
        return
    free: SimpleQueue[Detector] = SimpleQueue()
    for detector in detectors:
        free.put(detector)

    def detect(loaded: Loaded) -> tuple[Loaded, list[Seen]]:
        detector = free.get()
        try:
            return loaded, _seen(detector, task, loaded, measures)
        finally:
            free.put(detector)

    detecting = ThreadPoolExecutor(len(detectors), thread_name_prefix="detect")
    try:
        ahead: deque[Future[tuple[Loaded, list[Seen]]]] = deque()
        for loaded in _loaded_ahead(task):
            ahead.append(detecting.submit(detect, loaded))
            if len(ahead) > len(detectors):
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        detecting.shutdown(cancel_futures=True)


def _seen(detector: Detector, task: PartTask, loaded: Loaded, measures: Measures) -> list[Seen]:
    return [(view, _detected(detector, task, loaded, view, measures)) for view in loaded.views]


def _loaded_ahead(task: PartTask) -> Iterator[Loaded]:
    if task.network_only:
        # Nothing may run beside the network while its own time is taken.
        yield from (_load(task, index) for index in task.indices)
        return
    loading = ThreadPoolExecutor(LOADERS, thread_name_prefix="load")
    try:
        ahead: deque[Future[Loaded]] = deque()
        for index in task.indices:
            ahead.append(loading.submit(_load, task, index))
            if len(ahead) > FRAMES_AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        loading.shutdown(cancel_futures=True)


def _load(task: PartTask, index: int) -> Loaded:
    frame = task.dataset.load(index)
    views = tuple(make_view(frame.image, frame.labels, frame.anomaly, size) for size in task.spec.sizes)
    return Loaded(index, frame.id, views)


def _detected(
    detector: Detector, task: PartTask, loaded: Loaded, view: View, measures: Measures
) -> TimedOutputs | None:
    if not measures.needs(view):
        return None
    started = time.perf_counter()
    try:
        outputs = detector.detect(view.image, task.spec.scores, labels=task.with_labels, road=task.spec.road)
    except AnomsegError as error:
        raise type(error)(f"{task.dataset.name} frame {loaded.frame_id!r}: {error}") from error
    return TimedOutputs(outputs, (time.perf_counter() - started) * 1e3)


def _measure(
    task: PartTask,
    measures: Measures,
    loaded: Loaded,
    seen: list[Seen],
    watch: Watch | None,
    started: float,
) -> None:
    if task.network_only:
        measures.add_times(loaded.index, loaded.frame_id, seen)
    else:
        try:
            measures.add(loaded.index, loaded.frame_id, seen)
        except AnomsegError as error:
            raise type(error)(f"{task.dataset.name} in {task.dataset.path!r}: {error}") from error
    if watch is not None:
        measures.seconds = time.perf_counter() - started
        watch(measures)
