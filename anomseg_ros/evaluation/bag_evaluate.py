"""Evaluate bags with ground truth: the figures of `anomseg evaluate` on the same frames, and those of a drive.

Every bag is a task of its own; what is counted in them is pooled, the same whichever process or machine counts it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from anomseg_ros.backends import open_detector
from anomseg_ros.backends.options import BackendOptions
from anomseg_ros.core.bundle import Bundle, Contract, InputSpec
from anomseg_ros.datasets.base import Dataset
from anomseg_ros.errors import AnomsegError, BagError, ConfigError, DatasetError, MetricError
from anomseg_ros.evaluation.bag import BagDataset
from anomseg_ros.evaluation.bag_drive import MIN_ALARM_PX
from anomseg_ros.evaluation.bag_measure import (
    BagMeasured,
    BagSource,
    BagTask,
    DriveSpec,
    ModelSource,
    RecordedSource,
    measure_bag,
    part_task,
    pooled_drive,
)
from anomseg_ros.evaluation.component_pass import (
    ComponentTask,
    component_sums,
    component_thresholds,
    components_of,
    merged_sums,
)
from anomseg_ros.evaluation.measures import Key, Measures, MeasureSpec, road_of
from anomseg_ros.evaluation.readout import Identity, read_results
from anomseg_ros.evaluation.results import Components, Drive, Result
from anomseg_ros.evaluation.workers import Workers, run_parts
from anomseg_ros.metrics.protocols import protocol

RECORDED = "recorded"
"""Name of a score, and of a bundle, that a recorded bag does not state."""

NAMED_BAGS = 3
"""As many bags are named in the results' dataset; more are counted."""

Progress = Callable[[str, int, int], None]
"""Called with (bag, frames done, frames in all)."""


@dataclass(frozen=True)
class BagRequest:
    """What to measure on bags.

    bundle: the model, None only with `recorded`. scores: empty for all that the bundle has; the first one, or else the
    bundle's default, makes the mask of the drive. target_fpr: picks its threshold from the bundle's table; threshold:
    states it. recorded: outputs in a bag, evaluated instead of running the model. workers: share the bags.
    """

    bags: tuple[BagSource, ...]
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
    workers: Workers = field(default_factory=Workers)

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        if not self.bags:
            raise ConfigError("no bag to measure; give at least one")
        if self.bundle is None and self.recorded is None:
            raise ConfigError("no bundle to run; give one, or --recorded for the outputs in the bag")
        if self.min_alarm_px < 1:
            raise ConfigError(f"min_alarm_px is {self.min_alarm_px!r}; expected at least 1")
        places = [Path(bag.path).expanduser().resolve() for bag in self.bags]
        for number, place in enumerate(places):
            if place in places[:number]:
                raise ConfigError(f"bag {self.bags[number].path!r} was given before; give each bag once")
        if self.recorded is not None and self.recorded.path and len(self.bags) > 1:
            raise ConfigError(f"recorded outputs of one bag, {self.recorded.path!r}, for {len(self.bags)} bags")
        limited = [name for name in self.protocols if protocol(name).road_region is not None]
        if limited and self.recorded is not None:
            raise ConfigError(
                f"protocol {limited[0]!r} needs a model's labels to find the road, and recorded outputs are taken as "
                "they are; leave the road region out, or --recorded"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The bags' names in results: without folders, where those differ."""
        stems = [Path(bag.path).stem for bag in self.bags]
        return tuple(bag.path if stems.count(stem) > 1 else stem for bag, stem in zip(self.bags, stems, strict=True))


@dataclass(frozen=True)
class BagPart:
    """What one bag contributed: its name, frames counted and drive, also with alarms limited to the road where that was
    asked for; failure: why not all of its frames, or None."""

    name: str
    source: BagSource
    frames: int = 0
    drive: Drive | None = None
    road_drive: Drive | None = None
    failure: str | None = None


@dataclass(frozen=True)
class BagOutcome:
    """Results over all bags by score and protocol, the drive in each of its score's; what each bag contributed."""

    results: tuple[Result, ...]
    bags: tuple[BagPart, ...]

    @property
    def errors(self) -> tuple[str, ...]:
        """Why bags were left early or not measured at all; each names its bag where there are several."""
        return tuple(_named(part.name, part.failure, len(self.bags)) for part in self.bags if part.failure is not None)


@dataclass(frozen=True)
class _Planned:
    """A bag that can be measured; the dataset's files are closed until a frame is asked for."""

    name: str
    task: BagTask
    dataset: BagDataset
    notes: tuple[str, ...]


def evaluate_bags(request: BagRequest, progress: Progress = lambda what, done, total: None) -> BagOutcome:
    """Measure bags, pooled. A bag that fails keeps the others from nothing; BagOutcome.errors tells of it.

    Raises the package's errors for what is wrong with the request or the bundle, and where no bag could be measured.
    """
    planned, failures = _plan(request)
    measures, measured = _measured(request, planned, failures, progress)
    if not measures.done:
        raise MetricError(_nothing(request, measured, failures))
    components, missing = _components(request, planned, measures)
    names = request.names
    parts = tuple(_part(names[n], bag, measured.get(n), failures.get(n)) for n, bag in enumerate(request.bags))
    notes = [_named(bag.name, note, len(names)) for bag in planned for note in bag.notes]
    notes += [_named(names[n], note, len(names)) for n, one in sorted(measured.items()) for note in one.notes]
    identity = _identity(request, planned, [part.name for part in parts if part.frames])
    outcome = BagOutcome((), parts)
    results = read_results(measures, identity, components, tuple(dict.fromkeys([*notes, *missing, *outcome.errors])))
    drives = pooled_drive([part.drive for part in parts]), pooled_drive([part.road_drive for part in parts])
    return replace(outcome, results=tuple(_completed(result, request, planned[0].task, drives) for result in results))


def _named(bag: str, text: str, bags: int) -> str:
    return text if bags == 1 else f"bag {bag}: {text}"


def _nothing(request: BagRequest, measured: Mapping[int, BagMeasured], failures: Mapping[int, str]) -> str:
    reasons = {
        n: failures.get(n) or measured[n].failure or "; ".join(measured[n].notes) for n in {*failures, *measured}
    }
    if len(request.bags) == 1:
        return f"bag {request.bags[0].path!r}: nothing could be measured: {reasons.get(0)}"
    told = "; ".join(f"{request.names[n]}: {reason}" for n, reason in sorted(reasons.items()))
    return f"nothing could be measured in any of {len(request.bags)} bags: {told}"


def _part(name: str, source: BagSource, measured: BagMeasured | None, failure: str | None) -> BagPart:
    if measured is None:
        return BagPart(name, source, failure=failure)
    return BagPart(name, source, len(measured.measures.done), measured.drive, measured.road_drive, measured.failure)


def differences(live: Result, complete: Result) -> Mapping[str, float]:
    """Return figure -> live minus complete, of the figures that both have; fractions, and alarms per minute."""
    pairs = {name: (getattr(live, name), getattr(complete, name)) for name in ("auprc", "fpr95", "auroc", "miou")}
    if live.drive is not None and complete.drive is not None:
        pairs["alarms_per_minute"] = (live.drive.alarms_per_minute, complete.drive.alarms_per_minute)
        pairs["objects_detected"] = (live.drive.objects_detected, complete.drive.objects_detected)
    return {name: float(a - b) for name, (a, b) in pairs.items() if a is not None and b is not None}


def _plan(request: BagRequest) -> tuple[list[_Planned], dict[int, str]]:
    """Open every bag; return those that can be measured, and by number why the others cannot."""
    opened: dict[int, tuple[BagDataset, int | None, str | None]] = {}
    failures: dict[int, str] = {}
    for number, source in enumerate(request.bags):
        try:
            with source.open() as dataset:
                opened[number] = (dataset, *_num_classes(request, source, dataset))
        except (BagError, DatasetError, MetricError) as error:
            if len(request.bags) == 1:
                raise
            failures[number] = str(error)
    spec, misfit = _common_spec(request, list(opened.values()))
    planned: list[_Planned] = []
    first_index = 0
    for number, (dataset, _, own_misfit) in opened.items():
        if spec.num_classes is None and not dataset.has_anomalies:
            failures[number] = f"no anomaly masks, and {own_misfit or misfit}"
            continue
        drive, missing = _drive(request, spec.scores[0]) if dataset.has_anomalies else (None, None)
        name = request.names[number]
        prefix = f"{name}/" if len(request.bags) > 1 else ""
        outputs = _outputs(request, request.bags[number], spec.scores[0])
        task = BagTask(request.bags[number], outputs, spec, drive, number, first_index, prefix)
        notes = tuple(note for note in (own_misfit or misfit, missing) if note)
        planned.append(_Planned(name, task, dataset, notes))
        first_index += len(dataset)
    return planned, failures


def _common_spec(
    request: BagRequest, opened: Sequence[tuple[BagDataset, int | None, str | None]]
) -> tuple[MeasureSpec, str | None]:
    """Return what is measured on every bag: mIoU is pooled only over bags that all have the same classes, or none."""
    misfits = [misfit for _, _, misfit in opened if misfit is not None]
    kinds = {dataset.classes: number for dataset, number, _ in opened if number is not None}
    misfit = "mIoU is not measured: the labels of another bag cannot be compared" if misfits and kinds else None
    if len(kinds) > 1:
        misfit = "mIoU is not measured: the bags' ground truth has different classes"
    num_classes = next(iter(kinds.values())) if len(kinds) == 1 and not misfits else None
    anomalies = any(dataset.has_anomalies for dataset, _, _ in opened)
    road = None if request.bundle is None else road_of(request.bundle.contract, request.protocols)
    return MeasureSpec(_scores(request), request.protocols, num_classes, anomalies, request.exact, road), misfit


def _outputs(request: BagRequest, source: BagSource, score: str) -> ModelSource | RecordedSource:
    if request.recorded is not None:
        return _recorded(request.recorded, source, score)
    assert request.bundle is not None
    options = request.options
    # Threads that were asked for are kept; else the networks of all workers share the cores.
    if not request.workers.here and options.threads == 0 and options.provider == "cpu":
        options = replace(options, threads=request.workers.threads)
    sha256 = request.bundle.contract.program_sha256
    return ModelSource(str(request.bundle.directory.resolve()), sha256, request.backend, options)


def _recorded(recorded: RecordedSource, source: BagSource, score: str = RECORDED) -> RecordedSource:
    return replace(recorded, path=recorded.path or source.path, score_name=score)


def _measured(
    request: BagRequest, planned: Sequence[_Planned], failures: dict[int, str], progress: Progress
) -> tuple[Measures, dict[int, BagMeasured]]:
    """Measure the bags and pool the counts as they come; add to `failures` those that no worker could measure."""
    by_number = {bag.task.number: bag for bag in planned}
    if not planned:
        return Measures(MeasureSpec((), request.protocols)), {}
    measures = Measures(planned[0].task.spec)
    measured: dict[int, BagMeasured] = {}
    for one in _finished(request, planned, failures, progress):
        measures = measures.merge(one.measures)
        # Its counts are in the sum: of the bag only the list of its frames is kept.
        measured[one.number] = replace(one, measures=Measures(MeasureSpec((), ()), done=one.measures.done))
        bag = by_number[one.number]
        progress(bag.name, len(one.measures.done), len(bag.dataset))
    return measures, measured


def _finished(
    request: BagRequest, planned: Sequence[_Planned], failures: dict[int, str], progress: Progress
) -> Iterator[BagMeasured]:
    """Yield what was measured of each bag, once; a bag that cannot be measured goes to `failures`."""
    left = {bag.task.number: bag for bag in planned}
    try:
        for one in _run(request, planned, progress):
            del left[one.number]
            yield one
        return
    except AnomsegError:
        if len(planned) == 1 or (request.workers.here and len(left) == len(planned)):
            raise  # nothing to save, and no other bag to go on with
    # One bag that kills its workers takes those beside it along: alone, each shows whether it was the one.
    for number, bag in left.items():
        try:
            yield from _run(request, [bag], progress)
        except AnomsegError as error:
            failures[number] = f"not measured: {error}"


def _run(request: BagRequest, planned: Sequence[_Planned], progress: Progress) -> Iterator[BagMeasured]:
    tasks = [bag.task for bag in planned]
    if not request.workers.here:
        for bag in planned:
            progress(bag.name, 0, len(bag.dataset))
        return run_parts(measure_bag, tasks, request.workers)
    names = {bag.task.number: bag.name for bag in planned}
    return run_parts(lambda task: measure_bag(task, partial(progress, names[task.number])), tasks, request.workers)


def _scores(request: BagRequest) -> tuple[str, ...]:
    if request.bundle is None:
        return request.scores[:1] or (RECORDED,)
    named = tuple(dict.fromkeys(map(request.bundle.check_score, request.scores)))
    named = named or request.bundle.contract.score_names
    return named if request.recorded is None else named[:1]


def _num_classes(request: BagRequest, source: BagSource, dataset: BagDataset) -> tuple[int | None, str | None]:
    """Return the number of classes for mIoU, or None and why it is not measured; raise BagError without outputs."""
    recorded_labels = None
    if request.recorded is not None:
        recorded = _recorded(request.recorded, source).open()
        recorded.close()
        recorded_labels = recorded.labels_topic
    if dataset.labels_topic is None:
        return None, None
    if dataset.classes is None:
        return None, f"mIoU is not measured: the bag does not say what {dataset.labels_topic!r} means; give --label-set"
    if request.recorded is not None and recorded_labels is None:
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


def _components(
    request: BagRequest, planned: Sequence[_Planned], measures: Measures
) -> tuple[dict[Key, Components], list[str]]:
    """Measure SegmentMeIfYouCan's component metrics where its protocol was asked for and a model can look again."""
    thresholds = {} if request.recorded is not None else component_thresholds(measures)
    if not thresholds:
        return {}, []
    tasks = []
    for bag in planned:
        first = bag.task.first_index
        indices = tuple(n for n in range(len(bag.dataset)) if first + n in measures.done)
        if indices and bag.dataset.has_anomalies:
            tasks.append(ComponentTask(part_task(bag.task, bag.dataset, indices), thresholds))
    if not tasks:
        return {}, []
    try:
        return components_of(merged_sums(list(run_parts(component_sums, tasks, request.workers))), thresholds), []
    except AnomsegError as error:  # the pixel figures are there already
        return {}, [f"component metrics are not measured: {error}"]
    finally:
        for bag in planned:
            bag.dataset.close()


def _identity(request: BagRequest, planned: Sequence[_Planned], names: Sequence[str]) -> Identity:
    classes = next((bag.dataset.classes for bag in planned if bag.dataset.classes is not None), ())
    class_names = tuple(info.name for info in classes or ())
    contract = _stand_in() if request.bundle is None else request.bundle.contract
    name = "+".join(names) if len(names) <= NAMED_BAGS else f"{len(names)} bags"
    name = Path(name).stem if len(names) == 1 else name
    workers = min(request.workers.count, len(planned))
    if request.recorded is not None or request.bundle is None:
        return Identity(contract.name, name, contract, RECORDED, class_names, workers)
    detector = open_detector(request.bundle, request.backend, request.options)
    try:
        return Identity(contract.name, name, contract, detector.backend.actual, class_names, workers)
    finally:
        detector.close()


def _stand_in() -> Contract:
    """Return the contract of a detector of which only the outputs are known."""
    return Contract(1, RECORDED, RECORDED, RECORDED, (), InputSpec(1, 1), (), {})


def _completed(result: Result, request: BagRequest, task: BagTask, drives: Sequence[Drive | None]) -> Result:
    """Add the drive to the results of its score; take the clock's zeros, and what is unknown, from recorded ones.

    drives: with alarms everywhere, and with alarms limited to the road.
    """
    if result.score == task.spec.scores[0]:
        result = replace(result, drive=drives[protocol(result.protocol).road_region is not None])
    if isinstance(task.outputs, ModelSource):
        return result
    bare = tuple(replace(frame, inference_ms=None, network_ms=None) for frame in result.per_frame)
    result = replace(result, per_frame=bare, inference_ms=None, network_ms=None, wall_ms=None)
    return result if request.bundle else replace(result, network=None, precision=None)
