"""One pass over frames of a dataset, through a bundle or recorded outputs. The same function in every process.

Frames are loaded ahead of inference in threads, and counted in another, so that the network never waits for either.
Several frames may be in inference at a time (lanes), with fewer threads each: two networks on one core each finish more
frames than one network on two cores, whose threads wait for each other after every layer.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from queue import SimpleQueue
from typing import TypeVar

from anomseg_ros.backends import open_detector
from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.core.bundle import Bundle
from anomseg_ros.core.detector import Detector
from anomseg_ros.core.temporal_filter import UNFILTERED, FilterSpec
from anomseg_ros.core.types import RgbImage
from anomseg_ros.datasets.bag import BagDataset
from anomseg_ros.datasets.dataset import Dataset
from anomseg_ros.errors import AnomsegError, MetricError
from anomseg_ros.evaluation.consistency import ConsistencyCounts, ConsistencyObserver
from anomseg_ros.evaluation.drive import DriveSpec
from anomseg_ros.evaluation.filtered import filtered_frames
from anomseg_ros.evaluation.measures import Measures, MeasureSpec, TimedOutputs
from anomseg_ros.evaluation.observers import DriveObserver, MeasuresObserver, Observer, Seen, SeenFrame
from anomseg_ros.evaluation.recorded import RecordedSource, Timeline
from anomseg_ros.evaluation.results import Drive
from anomseg_ros.evaluation.streaming import StreamingCounts, StreamingObserver
from anomseg_ros.evaluation.views import Size, make_view
from anomseg_ros.evaluation.workers import Workers

LOADERS = 2
FRAMES_AHEAD = 4
FRAMES_BEHIND = 2
"""Frames that may wait for inference, and for being counted: a dozen images in memory at most."""

WARM_UP_FRAMES = 2

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class ModelSource:
    """A bundle that is run on every frame, its path the same for every worker. sha256: its program's digest.

    lanes: frames in inference at a time, each by a detector of its own.
    """

    bundle: str
    sha256: str
    backend: str = "onnxruntime"
    options: BackendOptions = field(default_factory=BackendOptions)
    lanes: int = 1


def model_source(
    bundle: Bundle, backend: str, options: BackendOptions, workers: Workers, *, timed: bool = False
) -> ModelSource:
    """Return a bundle as a source whose networks together use the cores once.

    Threads that were asked for are kept. timed: the network's own time is taken, with all threads.
    """
    lanes = 1
    if options.threads == 0 and options.provider == "cpu" and not timed:
        options, lanes = replace(options, threads=workers.threads), workers.lanes
    return ModelSource(str(bundle.directory.resolve()), bundle.contract.program_sha256, backend, options, lanes)


@dataclass(frozen=True)
class PassTask:
    """What a worker needs to know.

    network_only: load frames beforehand and measure nothing but time. drive: follow alarms and objects, in frames of a
    bag. filter: of scores over time, in frames of a bag. Of several passes whose measures are merged, number tells them
    apart and first_index is the index of this dataset's first frame.
    """

    dataset: Dataset
    indices: tuple[int, ...]
    source: ModelSource | RecordedSource
    spec: MeasureSpec
    network_only: bool = False
    drive: DriveSpec | None = None
    filter: FilterSpec = UNFILTERED
    number: int = 0
    first_index: int = 0

    @property
    def with_labels(self) -> bool:
        """Whether the detector's labels are needed."""
        return self.spec.num_classes is not None

    @property
    def sizes(self) -> tuple[Size, ...]:
        """The views that are needed: a drive is judged at the frames' own size."""
        return tuple(dict.fromkeys((*self.spec.sizes, *(() if self.drive is None else (None,)))))


@dataclass
class Passed:
    """What a pass has gathered. frames: those taken, without an answer included. drive, road_drive: with all alarms,
    and with those on the road. consistency: of the drive's masks. streaming: where it is known when frames were shown
    and answered. failure: why it ended before its last frame; what came before is whole."""

    number: int
    measures: Measures
    frames: int = 0
    drive: Drive | None = None
    road_drive: Drive | None = None
    consistency: ConsistencyCounts | None = None
    streaming: StreamingCounts | None = None
    failure: AnomsegError | None = None


Watch = Callable[[Passed], None]
"""Called with what is gathered so far after each frame, in the thread that counts."""


def measured(task: PassTask, watch: Watch | None = None) -> Measures:
    """Return the measures of all frames of a task. Raises the package's errors, naming the frame."""
    passed = run_pass(task, watch)
    if isinstance(passed.failure, MetricError):
        raise MetricError(f"{task.dataset.name} in {task.dataset.path!r}: {passed.failure}") from passed.failure
    if passed.failure is not None:
        raise passed.failure
    return passed.measures


def run_pass(task: PassTask, watch: Watch | None = None) -> Passed:
    """Show the frames of a task to its observers, in order; the first that cannot be read or counted ends the pass.

    Raises the package's errors for a model or recorded outputs that cannot be opened.
    """
    passed = Passed(task.number, Measures(task.spec))
    drive = consistency = streaming = None
    with _opened_source(task) as answers:
        if task.drive is not None:
            drive = DriveObserver(task.drive, task.spec.road, _bag(task).stamps_ns)
            consistency = ConsistencyObserver(task.drive, _bag(task).stamps_ns)
        if isinstance(answers, _Recording) and answers.timeline is not None and task.spec.anomalies:
            stamps_ns = _bag(task).stamps_ns
            streaming = StreamingObserver(task.spec, answers.timeline, answers.recorded, stamps_ns)
        measures = MeasuresObserver(passed.measures, task.first_index, times_only=task.network_only)
        observers = [one for one in (measures, drive, consistency, streaming) if one is not None]
        _show(task, answers, passed, observers, watch)
    if drive is not None and consistency is not None:
        passed.drive, passed.road_drive = drive.drives
        passed.consistency = consistency.counts
    passed.streaming = None if streaming is None else streaming.counts
    return passed


def _show(task: PassTask, answers: Answers, passed: Passed, observers: Sequence[Observer], watch: Watch | None) -> None:
    started = time.perf_counter()

    def take(frame: SeenFrame) -> None:
        if passed.failure is not None:  # this frame was under way already
            return
        try:
            for observer in observers:
                observer.check(frame)
            for observer in observers:
                observer.add(frame)
        except AnomsegError as error:
            passed.failure = error
            return
        passed.frames += 1
        passed.measures.seconds = time.perf_counter() - started
        if watch is not None:
            watch(passed)

    unread = None
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="count") as counting:
        try:
            for frame in _seen_frames(task, answers, passed.measures):
                waiting.append(counting.submit(take, frame))
                while len(waiting) > FRAMES_BEHIND:
                    waiting.popleft().result()
                if passed.failure is not None:
                    break
        except AnomsegError as error:
            unread = error
    for future in waiting:
        future.result()
    passed.measures.seconds = time.perf_counter() - started
    # Frames are read ahead, so the one that could not be counted is the earlier of the two.
    passed.failure = passed.failure or unread


def seen_frames(task: PassTask) -> Iterator[SeenFrame]:
    """Yield the frames of a task in order, with outputs of those views that its measures need."""
    with _opened_source(task) as answers:
        yield from _seen_frames(task, answers, Measures(task.spec))


class Answers:
    """What is said of frames, by a model or in a recording. lanes: frames that may be asked about at a time."""

    lanes = 1

    def has(self, index: int) -> bool:
        """Return whether there is an answer to a frame."""
        return True

    def of(self, frame: SeenFrame, image: RgbImage) -> TimedOutputs:
        """Return what is said of an image, which is some view of a frame. Raises the package's errors."""
        raise NotImplementedError


class _Model(Answers):
    def __init__(self, task: PassTask, source: ModelSource) -> None:
        self._task, self.lanes = task, source.lanes
        self._free: SimpleQueue[Detector] = SimpleQueue()
        for detector in _warm_detectors(source, task.spec.scores, task.with_labels):
            self._free.put(detector)

    def of(self, frame: SeenFrame, image: RgbImage) -> TimedOutputs:
        spec, detector = self._task.spec, self._free.get()
        started = time.perf_counter()
        try:
            outputs = detector.detect(image, spec.scores, labels=self._task.with_labels, road=spec.road)
        except AnomsegError as error:
            raise type(error)(f"{self._task.dataset.name} frame {frame.frame_id!r}: {error}") from error
        finally:
            self._free.put(detector)
        return TimedOutputs(outputs, (time.perf_counter() - started) * 1e3)


class _Recording(Answers):
    def __init__(self, task: PassTask, source: RecordedSource) -> None:
        dataset = _bag(task)
        self._stamps_ns = dataset.stamps_ns
        self.recorded = source.open()
        self._answered = self.recorded.stamps_ns
        self.timeline = source.timeline
        if self.timeline is None and self.recorded.path == dataset.path:
            self.timeline = Timeline(dataset.recorded_ns, self.recorded.recorded_ns)

    def has(self, index: int) -> bool:
        return self._stamps_ns[index] in self._answered

    def of(self, frame: SeenFrame, image: RgbImage) -> TimedOutputs:
        return TimedOutputs(self.recorded.outputs(self._stamps_ns[frame.index]), 0.0)

    def close(self) -> None:
        self.recorded.close()


def _bag(task: PassTask) -> BagDataset:
    if not isinstance(task.dataset, BagDataset):
        raise MetricError(f"frames of {task.dataset.name} have no stamps; expected those of a bag")
    return task.dataset


@contextmanager
def _opened_source(task: PassTask) -> Iterator[Answers]:
    if isinstance(task.source, ModelSource):
        yield _Model(task, task.source)
        return
    with closing(_Recording(task, task.source)) as recording:
        yield recording


@lru_cache(maxsize=1)
def _warm_detectors(source: ModelSource, scores: tuple[str, ...], labels: bool) -> tuple[Detector, ...]:
    """Return the detectors of a source, one per lane, opened and warmed up once per process."""
    detectors = tuple(open_detector(source.bundle, source.backend, source.options) for _ in range(source.lanes))
    for detector in detectors:
        for _ in range(WARM_UP_FRAMES):
            detector.warm_up(scores, labels=labels)
    return detectors


def _seen_frames(task: PassTask, answers: Answers, measures: Measures) -> Iterator[SeenFrame]:
    """Yield the frames in order, with filtered scores where that is asked for.

    measures: say which views are needed; nothing is added to them.
    """
    seen = _answered_frames(task, answers, measures)
    return filtered_frames(seen, task.filter, _bag(task).stamps_ns) if task.filter.is_on else seen


def _answered_frames(task: PassTask, answers: Answers, measures: Measures) -> Iterator[SeenFrame]:
    """Yield the frames in order, as many in inference at a time as there are lanes."""
    see = partial(_seen, task, answers, measures)
    if task.network_only:
        # Nothing may run beside the network while its own time is taken.
        yield from map(see, map(partial(_loaded, task), task.indices))
        return
    loaded = _ahead(partial(_loaded, task), task.indices, LOADERS, FRAMES_AHEAD)
    yield from map(see, loaded) if answers.lanes == 1 else _ahead(see, loaded, answers.lanes, answers.lanes)


def _ahead(work: Callable[[In], Out], given: Iterable[In], threads: int, ahead: int) -> Iterator[Out]:
    """Yield what `work` makes of each, in order, made in threads by up to `ahead` before it is asked for."""
    pool, waiting, source = ThreadPoolExecutor(threads), deque[Future[Out]](), iter(given)
    failure = None
    try:
        while True:
            try:
                waiting.append(pool.submit(work, next(source)))
            except StopIteration:
                break
            except AnomsegError as error:  # those before it are whole
                failure = error
                break
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
        if failure is not None:
            raise failure
    finally:
        pool.shutdown(cancel_futures=True)


def _loaded(task: PassTask, index: int) -> SeenFrame:
    frame = task.dataset.load(index)
    views = tuple(make_view(frame.image, frame.labels, frame.anomaly, size) for size in task.sizes)
    return SeenFrame(index, frame.id, views)


def _seen(task: PassTask, answers: Answers, measures: Measures, frame: SeenFrame) -> SeenFrame:
    if not answers.has(frame.index):
        return frame
    asked: dict[int, TimedOutputs] = {}
    seen: list[Seen] = []
    for view in frame.views:
        # A filter must have seen every frame, whatever is counted of it.
        followed = task.filter.is_on or (task.drive is not None and view.size_px is None)
        if not followed and not (view.size_px in task.spec.sizes and measures.needs(view)):
            seen.append((view, None))
            continue
        # A view of the frame's own size is the frame: one run serves both.
        if id(view.image) not in asked:
            asked[id(view.image)] = answers.of(frame, view.image)
        seen.append((view, asked[id(view.image)]))
    return replace(frame, seen=tuple(seen))
