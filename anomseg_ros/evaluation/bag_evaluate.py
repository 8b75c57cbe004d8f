"""Evaluate a bag with ground truth: the figures of `anomseg evaluate` on the same frames, and those of a drive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from anomseg_ros.backends import open_detector
from anomseg_ros.backends.options import BackendOptions
from anomseg_ros.core.bundle import GRAPH_FILE, Bundle, Contract, InputSpec
from anomseg_ros.datasets.base import Dataset
from anomseg_ros.errors import ConfigError, MetricError
from anomseg_ros.evaluation.bag import BagDataset
from anomseg_ros.evaluation.bag_drive import MIN_ALARM_PX
from anomseg_ros.evaluation.bag_measure import (
    BagMeasured,
    BagSource,
    BagTask,
    DriveSpec,
    ModelSource,
    RecordedSource,
    Watch,
    measure_bag,
    part_task,
)
from anomseg_ros.evaluation.component_pass import ComponentTask, component_sums, components_of
from anomseg_ros.evaluation.measures import MeasureSpec
from anomseg_ros.evaluation.readout import Identity, read_results
from anomseg_ros.evaluation.results import Components, Result
from anomseg_ros.metrics.protocols import protocol

RECORDED = "recorded"
"""Name of a score, and of a bundle, that a recorded bag does not state."""


@dataclass(frozen=True)
class BagRequest:
    """What to measure on a bag.

    bundle: the model, None only with `recorded`. scores: empty for all that the bundle has; the first one, or else the
    bundle's default, makes the mask of the drive. target_fpr: picks its threshold from the bundle's table; threshold:
    states it. recorded: outputs in a bag, evaluated instead of running the model.
    """

    bag: BagSource
    bundle: Bundle | None
    scores: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ("seeds",)
    exact: bool = False
    target_fpr: float = 0.01
    threshold: float | None = None
    min_alarm_px: int = MIN_ALARM_PX
    recorded: RecordedSource | None = None
    backend: str = "onnxruntime"
    options: BackendOptions = field(default_factory=BackendOptions)

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        if self.bundle is None and self.recorded is None:
            raise ConfigError("no bundle to run; give one, or --recorded for the outputs in the bag")
        if self.min_alarm_px < 1:
            raise ConfigError(f"min_alarm_px is {self.min_alarm_px!r}; expected at least 1")
        for name in self.protocols:
            protocol(name)


@dataclass(frozen=True)
class BagOutcome:
    """Results by score and protocol, the drive in each of its score's; failure: why the bag was left early, or None."""

    results: tuple[Result, ...]
    failure: str | None = None


def evaluate_bag(request: BagRequest, watch: Watch = lambda done, total: None) -> BagOutcome:
    """Measure a bag. Raises the package's errors for what is wrong with the request, the bundle or the bag."""
    with request.bag.open() as dataset:
        task, notes = _plan(request, dataset)
        measured = measure_bag(task, watch)
        if not measured.measures.done:
            reason = measured.failure or "; ".join(measured.notes)
            raise MetricError(f"bag {dataset.path!r}: nothing could be measured: {reason}")
        components = {} if measured.failure else _components(task, dataset, measured)
        identity = _identity(request, task, dataset)
    notes = (*notes, *measured.notes, *([measured.failure] if measured.failure else []))
    results = read_results(measured.measures, identity, components, notes)
    return BagOutcome(tuple(_completed(result, request, task, measured) for result in results), measured.failure)


def differences(live: Result, complete: Result) -> Mapping[str, float]:
    """Return figure -> live minus complete, of the figures that both have; fractions, and alarms per minute."""
    pairs = {name: (getattr(live, name), getattr(complete, name)) for name in ("auprc", "fpr95", "auroc", "miou")}
    if live.drive is not None and complete.drive is not None:
        pairs["alarms_per_minute"] = (live.drive.alarms_per_minute, complete.drive.alarms_per_minute)
        pairs["objects_detected"] = (live.drive.objects_detected, complete.drive.objects_detected)
    return {name: float(a - b) for name, (a, b) in pairs.items() if a is not None and b is not None}


def _plan(request: BagRequest, dataset: BagDataset) -> tuple[BagTask, tuple[str, ...]]:
    scores = _scores(request)
    num_classes, misfit = _num_classes(request, dataset)
    spec = MeasureSpec(scores, request.protocols, num_classes, dataset.has_anomalies, request.exact)
    if num_classes is None and not dataset.has_anomalies:
        raise MetricError(f"bag {dataset.path!r}: nothing can be measured: no anomaly masks, and {misfit}")
    drive, missing = _drive(request, scores[0]) if dataset.has_anomalies else (None, None)
    outputs: ModelSource | RecordedSource
    if request.recorded is not None:
        outputs = replace(request.recorded, score_name=scores[0])
    else:
        assert request.bundle is not None
        bundle = request.bundle
        sha256 = bundle.contract.files[GRAPH_FILE]
        outputs = ModelSource(str(bundle.directory.resolve()), sha256, request.backend, request.options)
    return BagTask(request.bag, outputs, spec, drive), tuple(note for note in (misfit, missing) if note)


def _scores(request: BagRequest) -> tuple[str, ...]:
    if request.bundle is None:
        return request.scores[:1] or (RECORDED,)
    named = tuple(dict.fromkeys(map(request.bundle.check_score, request.scores)))
    named = named or request.bundle.contract.score_names
    return named if request.recorded is None else named[:1]


def _num_classes(request: BagRequest, dataset: BagDataset) -> tuple[int | None, str | None]:
    """Return the number of classes for mIoU, or None and why it is not measured."""
    if dataset.labels_topic is None:
        return None, None
    if dataset.classes is None:
        return None, f"mIoU is not measured: the bag does not say what {dataset.labels_topic!r} means; give --label-set"
    if request.recorded is not None:
        with_labels = request.recorded.open()
        with_labels.close()
        if with_labels.labels_topic is None:
            return None, "mIoU is not measured: no labels were recorded beside the scores"
    if request.bundle is not None and not _classes_fit(request.bundle.contract, dataset):
        return None, "mIoU is not measured: the bundle's classes are not those of the bag's ground truth"
    return len(dataset.classes), None


def _classes_fit(contract: Contract, dataset: Dataset) -> bool:
    known = [info for index, info in enumerate(contract.classes) if index != contract.void_class]
    theirs = dataset.classes or ()
    return {(info.train_id, info.name) for info in known} == {(info.train_id, info.name) for info in theirs}


def _drive(request: BagRequest, score: str) -> tuple[DriveSpec | None, str | None]:
    if request.threshold is not None:
        return DriveSpec(score, request.threshold, "as stated", request.min_alarm_px), None
    found = None if request.bundle is None else request.bundle.threshold(score, request.target_fpr)
    if found is None:
        return None, (
            f"alarms and detections are not measured: score {score!r} has no threshold; state --threshold, or "
            "calibrate the bundle with `anomseg calibrate threshold`"
        )
    return DriveSpec(score, found.value, found.source, request.min_alarm_px), None


def _components(task: BagTask, dataset: BagDataset, measured: BagMeasured) -> dict[str, Components]:
    """Measure SegmentMeIfYouCan's component metrics where its protocol was asked for and a model can look again."""
    if "smiyc" not in task.spec.protocols or not isinstance(task.outputs, ModelSource):
        return {}
    chosen = protocol("smiyc")
    thresholds = {
        score: chosen.read(accumulator).best_f1_threshold
        for (score, name), accumulator in measured.measures.curves.items()
        if name == "smiyc" and accumulator.anomaly_px and accumulator.known_px
    }
    if not thresholds:
        return {}
    return components_of(component_sums(ComponentTask(part_task(task, dataset), thresholds)), thresholds)


def _identity(request: BagRequest, task: BagTask, dataset: BagDataset) -> Identity:
    names = tuple(info.name for info in dataset.classes or ())
    contract = _stand_in() if request.bundle is None else request.bundle.contract
    name = Path(dataset.path).stem
    if isinstance(task.outputs, RecordedSource) or request.bundle is None:
        return Identity(contract.name, name, contract, RECORDED, names)
    detector = open_detector(request.bundle, request.backend, request.options)
    try:
        return Identity(contract.name, name, contract, detector.backend.actual, names)
    finally:
        detector.close()


def _stand_in() -> Contract:
    """Return the contract of a detector of which only the outputs are known."""
    return Contract(1, RECORDED, RECORDED, RECORDED, (), InputSpec(1, 1), (), {})


def _completed(result: Result, request: BagRequest, task: BagTask, measured: BagMeasured) -> Result:
    """Add the drive to the results of its score; take the clock's zeros, and what is unknown, from recorded ones."""
    if task.drive is not None and result.score == task.drive.score:
        result = replace(result, drive=measured.drive)
    if isinstance(task.outputs, ModelSource):
        return result
    bare = tuple(replace(frame, inference_ms=None, network_ms=None) for frame in result.per_frame)
    result = replace(result, per_frame=bare, inference_ms=None, network_ms=None, wall_ms=None)
    return result if request.bundle else replace(result, network=None, precision=None)
