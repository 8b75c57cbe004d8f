"""Plan an evaluation of bags: which bags can be measured together, and what is measured on each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.core.bundle import Bundle
from anomseg_ros.core.delivered import deviations, losses
from anomseg_ros.core.ego_mask import read_ego_mask
from anomseg_ros.core.temporal_filter import UNFILTERED, FilterSpec
from anomseg_ros.core.tracks import check_alarm_frames
from anomseg_ros.datasets.bag import BagDataset
from anomseg_ros.errors import BagError, ConfigError, DatasetError, MetricError
from anomseg_ros.evaluation.bundle_fit import compared_classes
from anomseg_ros.evaluation.drive import MIN_ALARM_PX, DriveSpec
from anomseg_ros.evaluation.measures import MeasureSpec, road_of
from anomseg_ros.evaluation.passes import ModelSource, PassTask, model_source
from anomseg_ros.evaluation.recorded import RecordedSource
from anomseg_ros.evaluation.workers import Workers
from anomseg_ros.metrics.protocols import protocol
from anomseg_ros.scores import threshold_of

WITHOUT_TRUTH = "the bag has no ground truth: accuracy is not measured, and every alarm counts, right or wrong"

RECORDED = "recorded"
"""Name of the score and of the bundle of recorded outputs, which the bag does not state."""


@dataclass(frozen=True)
class BagSource:
    """A bag: the arguments of BagDataset. ego_mask: an image file."""

    path: str
    topic: str | None = None
    anomaly_topic: str | None = None
    labels_topic: str | None = None
    label_set: str | None = None
    known: bool = False
    ego_mask: str | None = None

    def open(self) -> BagDataset:
        """Open the bag and read its stamps. Raises BagError, and ConfigError for an ego mask that cannot be read."""
        return BagDataset(
            self.path,
            topic=self.topic,
            anomaly_topic=self.anomaly_topic,
            labels_topic=self.labels_topic,
            label_set_name=self.label_set,
            known=self.known,
            ego_mask=None if self.ego_mask is None else read_ego_mask(Path(self.ego_mask), "--ego-mask"),
        )


@dataclass(frozen=True)
class BagRequest:
    """What to measure on bags.

    bundle: the model; None is possible only with `recorded`. scores: empty for all scores of the bundle. The first
    score, by default that of the bundle, gives the mask of the drive. threshold: of this mask; None takes the
    threshold for target_fpr from the bundle or, where it is above 0, for target_alarms_per_minute. alarm_frames: n and
    m, see DriveTracker. filter: of scores over time. recorded: outputs in a bag that are evaluated instead of
    running the model. workers: processes that share the bags.
    """

    bags: tuple[BagSource, ...]
    bundle: Bundle | None
    scores: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ("seeds",)
    exact: bool = False
    target_fpr: float = 0.01
    target_alarms_per_minute: float = 0.0
    threshold: float | None = None
    min_alarm_px: int = MIN_ALARM_PX
    alarm_frames: tuple[int, int] = (1, 1)
    filter: FilterSpec = UNFILTERED
    recorded: RecordedSource | None = None
    backend: str = "onnxruntime"
    options: BackendOptions = field(default_factory=BackendOptions)
    workers: Workers = field(default_factory=Workers)

    def __post_init__(self) -> None:
        """Raise ConfigError for a request that cannot be measured."""
        if not self.bags:
            raise ConfigError("no bag to measure; give at least one")
        if self.bundle is None and self.recorded is None:
            raise ConfigError("no bundle to run; give one, or --recorded for the outputs in the bag")
        if self.min_alarm_px < 1:
            raise ConfigError(f"min_alarm_px is {self.min_alarm_px!r}; expected at least 1")
        check_alarm_frames(*self.alarm_frames)
        places = [Path(bag.path).expanduser().resolve() for bag in self.bags]
        for number, place in enumerate(places):
            if place in places[:number]:
                raise ConfigError(f"bag {self.bags[number].path!r} is given twice; give each bag once")
        if self.recorded is not None and self.recorded.path and len(self.bags) > 1:
            raise ConfigError(
                f"{len(self.bags)} bags with the recorded outputs of one, {self.recorded.path!r}; give one bag"
            )
        limited = [name for name in self.protocols if protocol(name).road_region is not None]
        if limited and self.recorded is not None:
            raise ConfigError(
                f"protocol {limited[0]!r} needs a model's labels to find the road; omit it, or --recorded"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the bags in results: without folders where that is unambiguous."""
        stems = [Path(bag.path).stem for bag in self.bags]
        return tuple(bag.path if stems.count(stem) > 1 else stem for bag, stem in zip(self.bags, stems, strict=True))


@dataclass(frozen=True)
class PlannedBag:
    """A bag that can be measured. Loading a frame opens its files. losses: errors about stated but missing messages."""

    name: str
    dataset: BagDataset
    task: PassTask
    notes: tuple[str, ...]
    losses: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Opened:
    """A bag whose stamps were read.

    num_classes: for mIoU, None if it is not measured; misfit: why not. notes: warnings about frames without a
    counterpart. losses: errors about stated but missing messages.
    """

    dataset: BagDataset
    num_classes: int | None
    misfit: str | None
    notes: tuple[str, ...]
    losses: tuple[str, ...]


def plan_bags(request: BagRequest) -> tuple[list[PlannedBag], dict[int, str]]:
    """Open every bag. Returns the bags that can be measured, and number -> reason for those that cannot."""
    opened: dict[int, _Opened] = {}
    failures: dict[int, str] = {}
    for number, source in enumerate(request.bags):
        try:
            opened[number] = _open(request, source)
        except (BagError, DatasetError, MetricError) as error:
            if len(request.bags) == 1:
                raise
            failures[number] = str(error)
    spec, misfit = _common_spec(request, list(opened.values()))
    planned: list[PlannedBag] = []
    first_index = 0
    for number, bag in opened.items():
        unmeasured = bag.misfit or misfit
        if spec.num_classes is None and not bag.dataset.has_anomalies:
            failures[number] = f"no anomaly masks, and {unmeasured}"
            continue
        drive, missing = _drive_spec(request, spec.scores[0]) if bag.dataset.has_anomalies else (None, None)
        if bag.dataset.known and missing is not None:
            failures[number] = missing
            continue
        if len(request.bags) > 1:
            bag.dataset.prefix = f"{request.names[number]}/"
        task = PassTask(
            bag.dataset,
            tuple(range(len(bag.dataset))),
            _source(request, request.bags[number], spec.scores[0]),
            spec,
            drive=drive,
            filter=request.filter,
            number=number,
            first_index=first_index,
        )
        notes = tuple(note for note in (unmeasured, missing, *bag.notes) if note)
        planned.append(PlannedBag(request.names[number], bag.dataset, task, notes, bag.losses))
        first_index += len(bag.dataset)
    return planned, failures


def _open(request: BagRequest, source: BagSource) -> _Opened:
    """Read the stamps of a bag and of its recorded outputs, then close it. Raises BagError if either are missing."""
    with source.open() as dataset:
        if request.recorded is None:
            told = (WITHOUT_TRUTH,) if dataset.known else dataset.unmatched
            notes = (*told, *deviations(dataset.differences))
            return _Opened(dataset, *_num_classes(request, dataset, True), notes, losses(dataset.differences))
        recorded = _recorded(request.recorded, source).open()
        recorded.close()
        differences = (*dataset.differences, *recorded.differences)
        missing = len(set(dataset.stamps_ns) - recorded.stamps_ns)
        kind = "frames" if dataset.known else "labelled frames"
        note = f"{missing} of {len(dataset)} {kind} have no recorded output and are not counted"
        told = (WITHOUT_TRUTH,) if dataset.known else dataset.unmatched
        notes = (*told, *((note,) if missing else ()), *deviations(differences))
        classes = _num_classes(request, dataset, recorded.labels_topic is not None)
        return _Opened(dataset, *classes, notes, losses(differences))


def _common_spec(request: BagRequest, opened: Sequence[_Opened]) -> tuple[MeasureSpec, str | None]:
    """Return what is measured on every bag, and why mIoU is not, or None. mIoU needs the same classes in all bags."""
    misfits = [bag.misfit for bag in opened if bag.misfit is not None]
    kinds = {bag.dataset.classes: bag.num_classes for bag in opened if bag.num_classes is not None}
    misfit = "mIoU is not measured: the labels of another bag cannot be compared" if misfits and kinds else None
    if len(kinds) > 1:
        misfit = "mIoU is not measured: the bags' ground truth has different classes"
    num_classes = next(iter(kinds.values())) if len(kinds) == 1 and not misfits else None
    anomalies = any(bag.dataset.has_anomalies and not bag.dataset.known for bag in opened)
    road = None if request.bundle is None else road_of(request.bundle.contract, request.protocols)
    return MeasureSpec(scores_of(request), request.protocols, num_classes, anomalies, request.exact, road), misfit


def _source(request: BagRequest, source: BagSource, score: str) -> ModelSource | RecordedSource:
    if request.recorded is not None:
        return _recorded(request.recorded, source, score)
    assert request.bundle is not None
    return model_source(request.bundle, request.backend, request.options, request.workers)


def _recorded(recorded: RecordedSource, source: BagSource, score: str = RECORDED) -> RecordedSource:
    return replace(recorded, path=recorded.path or source.path, score_name=score)


def scores_of(request: BagRequest) -> tuple[str, ...]:
    """Return the scores to measure. The first gives the mask of the drive."""
    if request.bundle is None:
        return request.scores[:1] or (RECORDED,)
    scores = tuple(dict.fromkeys(map(request.bundle.check_score, request.scores)))
    scores = scores or request.bundle.contract.score_names
    return scores if request.recorded is None else scores[:1]


def _num_classes(request: BagRequest, dataset: BagDataset, has_predictions: bool) -> tuple[int | None, str | None]:
    """Return the number of classes for mIoU and None, or None and why mIoU is not measured.

    has_predictions: whether the model or the recording gives labels.
    """
    if dataset.labels_topic is None:
        return None, None
    if dataset.classes is None:
        return None, f"mIoU is not measured: the bag does not say what {dataset.labels_topic!r} means; give --label-set"
    if not has_predictions:
        return None, "mIoU is not measured: the bag has recorded scores, but no labels"
    if request.bundle is not None:
        fit = compared_classes(request.bundle, dataset)
        if fit.count is None or fit.label_map is not None:
            return None, "mIoU is not measured: the bundle's classes are not those of the bag's ground truth"
    return len(dataset.classes), None


def _drive_spec(request: BagRequest, score: str) -> tuple[DriveSpec | None, str | None]:
    if request.threshold is not None:
        return DriveSpec(score, request.threshold, "as stated", request.min_alarm_px, request.alarm_frames), None
    targets = request.target_fpr, request.target_alarms_per_minute
    found = None if request.bundle is None else threshold_of(request.bundle, score, *targets)
    if found is None:
        return None, (
            f"alarms and detections are not measured: score {score!r} has no threshold; give --threshold, or "
            "calibrate the bundle with `anomseg calibrate threshold`"
        )
    return DriveSpec(score, found.value, found.source, request.min_alarm_px, request.alarm_frames), None
