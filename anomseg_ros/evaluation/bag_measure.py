"""One pass over one bag: the measures of `anomseg evaluate` and the drive's, from a detector or from recorded outputs.

Views, accumulators and read-out are those of datasets, so the same frames give the same figures to the last digit.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from statistics import median

import numpy as np
import numpy.typing as npt

from anomseg_ros.backends import open_detector
from anomseg_ros.backends.options import BackendOptions
from anomseg_ros.core.preprocess import resized_scores
from anomseg_ros.core.road_region import limited_scores
from anomseg_ros.core.types import Outputs, RgbImage
from anomseg_ros.errors import AnomsegError, BagError, DatasetError, FrameError, MetricError
from anomseg_ros.evaluation.bag import BagDataset
from anomseg_ros.evaluation.bag_drive import MIN_ALARM_PX, DriveTracker
from anomseg_ros.evaluation.bag_recorded import SCORE_TOPIC, RecordedOutputs
from anomseg_ros.evaluation.measures import Measures, MeasureSpec, TimedOutputs, require_finite
from anomseg_ros.evaluation.part import PartTask
from anomseg_ros.evaluation.results import Drive
from anomseg_ros.evaluation.views import View, make_view

LOADERS = 2
FRAMES_AHEAD = 4
FRAMES_BEHIND = 2

Watch = Callable[[int, int], None]
"""Called with (frames done, frames in all), in the thread that measures."""


@dataclass(frozen=True)
class BagSource:
    """A bag with ground truth; the arguments of BagDataset."""

    path: str
    topic: str | None = None
    anomaly_topic: str | None = None
    labels_topic: str | None = None
    label_set: str | None = None

    def open(self) -> BagDataset:
        """Open it and read its stamps. Raises BagError."""
        return BagDataset(
            self.path,
            topic=self.topic,
            anomaly_topic=self.anomaly_topic,
            labels_topic=self.labels_topic,
            label_set_name=self.label_set,
        )


@dataclass(frozen=True)
class ModelSource:
    """A bundle that is run on every frame. sha256: of its graph."""

    bundle: str
    sha256: str
    backend: str = "onnxruntime"
    options: BackendOptions = field(default_factory=BackendOptions)


@dataclass(frozen=True)
class RecordedSource:
    """Outputs in a bag, the arguments of RecordedOutputs. path: empty for the bag that is measured."""

    path: str
    score_name: str
    score_topic: str = SCORE_TOPIC
    labels_topic: str | None = None

    def open(self) -> RecordedOutputs:
        """Open it and read its stamps. Raises BagError."""
        return RecordedOutputs(self.path, self.score_name, self.score_topic, self.labels_topic)


@dataclass(frozen=True)
class DriveSpec:
    """Which score makes the mask, above which value, and where that value is from."""

    score: str
    threshold: float
    threshold_source: str
    min_alarm_px: int = MIN_ALARM_PX


@dataclass(frozen=True)
class BagTask:
    """What a worker needs to measure one bag; drive: None leaves the drive's figures out.

    Of several bags, number tells them apart, first_index is that of its first frame among the frames of all, and
    prefix goes before the ids of its frames.
    """

    bag: BagSource
    outputs: ModelSource | RecordedSource
    spec: MeasureSpec
    drive: DriveSpec | None = None
    number: int = 0
    first_index: int = 0
    prefix: str = ""


@dataclass(frozen=True)
class BagMeasured:
    """What was measured of the bag of a task's number. road_drive: with alarms limited to the spec's road, if it has
    one. notes: what a reader must know. failure: why the bag was left before its end (without any frame, if it could
    not be opened), or None."""

    number: int
    measures: Measures
    drive: Drive | None
    road_drive: Drive | None = None
    notes: tuple[str, ...] = ()
    failure: str | None = None


def pooled_drive(of_bags: Sequence[Drive | None]) -> Drive | None:
    """Return the drives one after the other as one: times count on, counts add up. None without any."""
    drives = [drive for drive in of_bags if drive is not None]
    if len(drives) < 2:
        return drives[0] if drives else None
    starts_s = [sum(drive.duration_s for drive in drives[:number]) for number in range(len(drives))]
    timed = list(zip(starts_s, drives, strict=True))
    duration_s, alarms = sum(drive.duration_s for drive in drives), sum(drive.alarms for drive in drives)
    objects = [replace(seen, first_s=start_s + seen.first_s) for start_s, drive in timed for seen in drive.objects]
    delays = [seen.seconds_to_detection for seen in objects if seen.seconds_to_detection is not None]
    return replace(
        drives[0],
        frames=sum(drive.frames for drive in drives),
        duration_s=duration_s,
        alarms=alarms,
        alarms_per_minute=alarms * 60 / duration_s if duration_s else None,
        alarm_onsets_s=tuple(start_s + onset_s for start_s, drive in timed for onset_s in drive.alarm_onsets_s),
        objects=tuple(objects),
        objects_detected=len(delays),
        median_seconds_to_detection=median(delays) if delays else None,
        sizes=tuple(
            replace(same[0], frames=sum(size.frames for size in same), detected=sum(size.detected for size in same))
            for same in zip(*(drive.sizes for drive in drives), strict=True)
        ),
    )


Outputter = Callable[[RgbImage], TimedOutputs]
"""What the detector says of an image, which is some view of one frame."""


@dataclass(frozen=True)
class _Loaded:
    index: int
    frame_id: str
    image: RgbImage
    anomaly: npt.NDArray[np.uint8] | None
    views: tuple[View, ...]


def measure_bag(task: BagTask, watch: Watch = lambda done, total: None) -> BagMeasured:
    """Measure the frames of a bag that have ground truth (and recorded outputs, where those are the source).

    A frame that cannot be read or measured ends the pass; what was measured before it is returned with the reason. So
    it is for a bag that cannot be opened, lest it end the work on others. Raises BundleError, ConfigError and
    BackendError for a model that cannot be run, which no bag can do without.
    """
    try:
        with task.bag.open() as dataset:
            if isinstance(task.outputs, RecordedSource):
                return _measure_recorded(task, task.outputs, dataset, watch)
            return _measure_model(task, task.outputs, dataset, watch)
    except (BagError, DatasetError, FrameError, MetricError) as error:
        return BagMeasured(task.number, Measures(task.spec), None, failure=str(error))


def part_task(task: BagTask, dataset: BagDataset, indices: tuple[int, ...]) -> PartTask:
    """Return the task of `anomseg evaluate` for frames of the bag. Raises MetricError where no model is run."""
    if not isinstance(task.outputs, ModelSource):
        raise MetricError("recorded outputs have no model to run; give a bundle instead of --recorded")
    model = task.outputs
    return PartTask(model.bundle, model.sha256, dataset, indices, task.spec, model.backend, model.options)


def _measure_model(task: BagTask, model: ModelSource, dataset: BagDataset, watch: Watch) -> BagMeasured:
    detector = open_detector(model.bundle, model.backend, model.options)
    with_labels = task.spec.num_classes is not None

    def detect(image: RgbImage) -> TimedOutputs:
        started = time.perf_counter()
        outputs = detector.detect(image, task.spec.scores, labels=with_labels, road=task.spec.road)
        return TimedOutputs(outputs, (time.perf_counter() - started) * 1e3)

    try:
        detector.warm_up()
        return _pass(task, dataset, lambda _: detect, dataset.unmatched, watch)
    finally:
        detector.close()


def _measure_recorded(task: BagTask, recorded: RecordedSource, dataset: BagDataset, watch: Watch) -> BagMeasured:
    outputs = recorded.open()
    try:
        known = outputs.stamps_ns
        missing = sum(stamp_ns not in known for stamp_ns in dataset.stamps_ns)
        notes = dataset.unmatched
        if missing:
            notes += (f"{missing} of {len(dataset)} labelled frames have no recorded output and are not counted",)

        def of_frame(index: int) -> Outputter | None:
            if dataset.stamps_ns[index] not in known:
                return None
            timed = TimedOutputs(outputs.outputs(dataset.stamps_ns[index]), 0.0)
            return lambda _: timed

        return _pass(task, dataset, of_frame, notes, watch)
    finally:
        outputs.close()


def _pass(
    task: BagTask,
    dataset: BagDataset,
    outputter: Callable[[int], Outputter | None],
    notes: tuple[str, ...],
    watch: Watch,
) -> BagMeasured:
    """Load ahead, ask for outputs, and measure behind, each in threads of its own; in the order of the stamps.

    outputter: of a frame's index, None for a frame that was not answered: the drive has it, the measures do not.
    """
    gathering = _Gathering(task, dataset, watch)
    unread = None
    measuring = ThreadPoolExecutor(1, thread_name_prefix="measure")
    waiting: deque[Future[None]] = deque()
    started = time.perf_counter()
    try:
        for loaded in _loaded_ahead(task, dataset):
            asked = outputter(loaded.index)
            answer = None if asked is None else _answer(gathering.measures, loaded, asked, task.drive)
            waiting.append(measuring.submit(gathering.add, loaded, answer))
            while len(waiting) > FRAMES_BEHIND:
                waiting.popleft().result()
            if gathering.failure is not None:
                break
    except AnomsegError as error:
        unread = str(error)
    finally:
        measuring.shutdown()
    for future in waiting:
        future.result()
    gathering.measures.seconds = time.perf_counter() - started
    # Frames are read ahead, so the one that could not be measured is the earlier of the two.
    reason = gathering.failure or unread
    failure = reason and f"{gathering.frames} of {len(dataset)} frames were measured, then: {reason}"
    return BagMeasured(task.number, gathering.measures, *gathering.drives(), notes, failure)


@dataclass(frozen=True)
class _Answer:
    """The views with their outputs, and the outputs that the drive is judged by."""

    seen: list[tuple[View, TimedOutputs | None]]
    own: Outputs | None


class _Gathering:
    """Measures and drives of one pass; fed by one thread. failure: why a frame was refused; none is taken after it."""

    def __init__(self, task: BagTask, dataset: BagDataset, watch: Watch) -> None:
        self.measures = Measures(task.spec)
        self.frames = 0
        self.failure: str | None = None
        self._task, self._watch = task, watch
        self._stamps_ns = dataset.stamps_ns
        self._tracker, self._road_tracker = _tracker(task.drive), _tracker(task.drive if task.spec.road else None)

    def add(self, loaded: _Loaded, answer: _Answer | None) -> None:
        """Count a frame, or say why not; frames that were already under way after that one are left alone."""
        if self.failure is not None:
            return
        try:
            self._add(loaded, answer)
        except AnomsegError as error:
            self.failure = str(error)
            return
        self.frames += 1
        self._watch(self.frames, len(self._stamps_ns))

    def _add(self, loaded: _Loaded, answer: _Answer | None) -> None:
        frame_id = self._task.prefix + loaded.frame_id
        drive, own = self._task.drive, None if answer is None else answer.own
        scores = None if own is None or drive is None else own.scores[drive.score]
        if scores is not None and drive is not None:
            require_finite(frame_id, drive.score, scores)
        if answer is not None:
            self.measures.add(self._task.first_index + loaded.index, frame_id, answer.seen)
        if self._tracker is None or loaded.anomaly is None:
            return
        stamp_ns = self._stamps_ns[loaded.index]
        scores = None if scores is None else resized_scores(scores, *loaded.anomaly.shape)
        self._tracker.add(stamp_ns, scores, loaded.anomaly)
        if self._road_tracker is not None:
            limited = None if scores is None or own is None else limited_scores(scores, own.region, -np.inf)
            self._road_tracker.add(stamp_ns, limited, loaded.anomaly)

    def drives(self) -> tuple[Drive | None, Drive | None]:
        """Return what is told of the drive so far, and the same with alarms limited to the road."""
        read = [
            tracker.result() if tracker is not None and tracker.stamps_ns else None
            for tracker in (self._tracker, self._road_tracker)
        ]
        road = self._task.spec.road
        return read[0], None if read[1] is None or road is None else replace(read[1], road_region=road.name)


def _tracker(spec: DriveSpec | None) -> DriveTracker | None:
    return None if spec is None else DriveTracker(spec.threshold, spec.threshold_source, spec.min_alarm_px)


def _loaded_ahead(task: BagTask, dataset: BagDataset) -> Iterator[_Loaded]:
    def load(index: int) -> _Loaded:
        frame = dataset.load(index)
        views = tuple(make_view(frame.image, frame.labels, frame.anomaly, size) for size in task.spec.sizes)
        return _Loaded(index, frame.id, frame.image, frame.anomaly, views)

    loading = ThreadPoolExecutor(LOADERS, thread_name_prefix="load")
    try:
        ahead: deque[Future[_Loaded]] = deque()
        for index in range(len(dataset)):
            ahead.append(loading.submit(load, index))
            if len(ahead) > FRAMES_AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        loading.shutdown(cancel_futures=True)


def _answer(measures: Measures, loaded: _Loaded, outputter: Outputter, drive: DriveSpec | None) -> _Answer:
    known: dict[int, TimedOutputs] = {}

    def outputs_of(image: RgbImage) -> TimedOutputs:
        # A view of the frame's own size is the frame: one run serves both.
        if id(image) not in known:
            known[id(image)] = outputter(image)
        return known[id(image)]

    seen = [(view, outputs_of(view.image) if measures.needs(view) else None) for view in loaded.views]
    return _Answer(seen, None if drive is None else outputs_of(loaded.image).outputs)
