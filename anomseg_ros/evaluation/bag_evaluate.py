"""Evaluate bags with ground truth: the figures of `anomseg evaluate` on the same frames, and the figures of a drive.

Each bag is one task. The counts of all bags are pooled; the result does not depend on which process counts which bag.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from anomseg_ros.core.bundle import Bundle, Contract, InputSpec
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.datasets.bag import BagDataset
from anomseg_ros.errors import AnomsegError, BagError, MetricError
from anomseg_ros.evaluation.bag_plan import RECORDED, BagRequest, BagSource, PlannedBag, plan_bags, scores_of
from anomseg_ros.evaluation.component_pass import component_thresholds, measure_components
from anomseg_ros.evaluation.consistency import pooled_consistency
from anomseg_ros.evaluation.drive import pooled_drive
from anomseg_ros.evaluation.evaluate import backend_in_use
from anomseg_ros.evaluation.measures import Key, Measures, MeasureSpec
from anomseg_ros.evaluation.passes import Passed, PassTask, Watch, run_pass
from anomseg_ros.evaluation.readout import Identity, read_results
from anomseg_ros.evaluation.results import Components, Consistency, Drive, Result, Streaming
from anomseg_ros.evaluation.streaming import pooled_streaming
from anomseg_ros.evaluation.workers import run_parts
from anomseg_ros.metrics.protocols import protocol

NAMED_BAGS = 3
"""The dataset name of a result lists at most this many bags; of more bags it gives the number."""


@dataclass(frozen=True)
class BagPart:
    """Contribution of one bag to the results.

    frames: number of frames counted. road_drive: the drive with alarms limited to the road, None if not requested.
    failure: why frames are missing, None if all were counted.
    """

    name: str
    source: BagSource
    frames: int = 0
    drive: Drive | None = None
    road_drive: Drive | None = None
    failure: str | None = None


@dataclass(frozen=True)
class BagOutcome:
    """Results over all bags, one per score and protocol, and the contribution of each bag."""

    results: tuple[Result, ...]
    bags: tuple[BagPart, ...]

    @property
    def errors(self) -> tuple[str, ...]:
        """Why bags were measured in part or not at all. Each text names its bag if there are several."""
        return tuple(
            _with_bag_name(part.name, part.failure, len(self.bags)) for part in self.bags if part.failure is not None
        )


def evaluate_bags(request: BagRequest, progress: Progress = no_progress) -> BagOutcome:
    """Measure bags and pool the counts. A failing bag does not stop the others; it is reported in BagOutcome.errors.

    Raises the package's errors for an invalid request or bundle, and if no bag can be measured.
    """
    planned, failures = plan_bags(request)
    measures, passed = _measure_all(request, planned, failures, progress)
    if not measures.done:
        raise MetricError(
            _no_result_text(request, {bag.task.number: "; ".join(bag.notes) for bag in planned} | failures)
        )
    for bag in planned:
        if bag.losses:
            failure = failures.get(bag.task.number)
            failures[bag.task.number] = "; ".join((*bag.losses, *([failure] if failure else [])))
    components, missing = _measure_components(request, planned, measures)
    names = request.names
    parts = tuple(
        BagPart(name, bag, failure=failures.get(number), **_part_figures(passed.get(number)))
        for number, (name, bag) in enumerate(zip(names, request.bags, strict=True))
    )
    outcome = BagOutcome((), parts)
    notes = [_with_bag_name(bag.name, note, len(names)) for bag in planned for note in bag.notes]
    identity = _identity(request, planned, [part.name for part in parts if part.frames])
    results = read_results(measures, identity, components, tuple(dict.fromkeys([*notes, *missing, *outcome.errors])))
    pooled = _pool_drives(parts, [passed[number] for number in sorted(passed)])
    return replace(outcome, results=tuple(_with_drive(result, request, pooled) for result in results))


def _with_bag_name(bag: str, text: str, bags: int) -> str:
    return text if bags == 1 else f"bag {bag}: {text}"


def _no_result_text(request: BagRequest, reasons: Mapping[int, str]) -> str:
    if len(request.bags) == 1:
        return f"bag {request.bags[0].path!r}: nothing could be measured: {reasons.get(0)}"
    texts = "; ".join(f"{request.names[n]}: {reason}" for n, reason in sorted(reasons.items()))
    return f"nothing could be measured in any of {len(request.bags)} bags: {texts}"


def _part_figures(passed: Passed | None) -> dict[str, Any]:
    if passed is None:
        return {}
    return {"frames": len(passed.measures.done), "drive": passed.drive, "road_drive": passed.road_drive}


def differences(live: Result, complete: Result) -> Mapping[str, float]:
    """Return figure -> live minus complete, of the figures that both results have; fractions and alarms per minute."""
    pairs = {name: (getattr(live, name), getattr(complete, name)) for name in ("auprc", "fpr95", "auroc", "miou")}
    if live.drive is not None and complete.drive is not None:
        pairs["alarms_per_minute"] = (live.drive.alarms_per_minute, complete.drive.alarms_per_minute)
        pairs["objects_detected"] = (live.drive.objects_detected, complete.drive.objects_detected)
    return {name: float(a - b) for name, (a, b) in pairs.items() if a is not None and b is not None}


def _measure_all(
    request: BagRequest, planned: Sequence[PlannedBag], failures: dict[int, str], progress: Progress
) -> tuple[Measures, dict[int, Passed]]:
    """Measure the bags and pool the counts as they arrive; add to `failures` why a bag is incomplete or missing."""
    by_number = {bag.task.number: bag for bag in planned}
    measures = Measures(planned[0].task.spec if planned else MeasureSpec((), request.protocols))
    passed: dict[int, Passed] = {}
    for one in _passes(request, planned, failures, progress):
        measures = measures.merge(one.measures)
        bag, done = by_number[one.number], one.measures.done
        if one.failure is not None:
            failures[one.number] = f"{one.frames} of {len(bag.dataset)} frames were measured, then: {one.failure}"
        # The counts are in the sum; only the list of frames is kept per bag.
        passed[one.number] = replace(one, measures=Measures(MeasureSpec((), ()), done=done))
        progress(bag.name, len(done), len(bag.dataset))
    return measures, passed


def _passes(
    request: BagRequest, planned: Sequence[PlannedBag], failures: dict[int, str], progress: Progress
) -> Iterator[Passed]:
    """Yield the pass over each bag once; add to `failures` why a bag cannot be measured."""
    left = {bag.task.number: bag for bag in planned}
    try:
        for one in _run(request, planned, progress):
            del left[one.number]
            yield one
        return
    except AnomsegError:
        if len(planned) == 1 or (request.workers.here and len(left) == len(planned)):
            raise  # there are no results to save and no other bags to measure
    # A bag that kills its workers also stops the bags measured beside it. Measured alone, only the faulty bag fails.
    for number, bag in left.items():
        try:
            yield from _run(request, [bag], progress)
        except AnomsegError as error:
            failures[number] = f"not measured: {error}"


def _run(request: BagRequest, planned: Sequence[PlannedBag], progress: Progress) -> Iterator[Passed]:
    tasks = [bag.task for bag in planned]
    if not request.workers.here:
        for bag in planned:
            progress(bag.name, 0, len(bag.dataset))
        return run_parts(measure_bag, tasks, request.workers)
    bags = {bag.task.number: bag for bag in planned}

    def watch(state: Passed) -> None:
        progress(bags[state.number].name, state.frames, len(bags[state.number].dataset))

    return run_parts(partial(measure_bag, watch=watch), tasks, request.workers)


def measure_bag(task: PassTask, watch: Watch | None = None) -> Passed:
    """Measure a bag. A bag whose recorded outputs are missing returns a failure, so that the other bags are measured.

    Raises the package's errors if the model cannot be run, because every bag needs it.
    """
    try:
        return run_pass(task, watch)
    except BagError as error:
        return Passed(task.number, Measures(task.spec), failure=error)
    finally:
        if isinstance(task.dataset, BagDataset):
            task.dataset.close()


def _measure_components(
    request: BagRequest, planned: Sequence[PlannedBag], measures: Measures
) -> tuple[dict[Key, Components], list[str]]:
    """Measure SegmentMeIfYouCan's component metrics if its protocol was requested and a model can run a second pass.

    Returns the components by score and protocol, and why they are missing.
    """
    thresholds = {} if request.recorded is not None else component_thresholds(measures)
    tasks = []
    for bag in planned if thresholds else ():
        indices = tuple(n for n in bag.task.indices if bag.task.first_index + n in measures.done)
        if indices and bag.dataset.has_anomalies:
            tasks.append(replace(bag.task, indices=indices))
    if not tasks:
        return {}, []
    try:
        return measure_components(tasks, thresholds, request.workers)
    except AnomsegError as error:  # the pixel figures are already measured
        return {}, [f"component metrics are not measured: {error}"]
    finally:
        for bag in planned:
            bag.dataset.close()


def _identity(request: BagRequest, planned: Sequence[PlannedBag], names: Sequence[str]) -> Identity:
    classes = next((bag.dataset.classes for bag in planned if bag.dataset.classes is not None), ())
    class_names = tuple(info.name for info in classes or ())
    contract = _contract_of_recorded() if request.bundle is None else request.bundle.contract
    name = "+".join(names) if len(names) <= NAMED_BAGS else f"{len(names)} bags"
    name = Path(name).stem if len(names) == 1 else name
    backend = RECORDED
    if request.bundle is not None and request.recorded is None:
        backend = backend_in_use(request.bundle, request.backend, request.options)
    return Identity(
        name_of(request.bundle), name, contract, backend, class_names, min(request.workers.count, len(planned))
    )


def name_of(bundle: Bundle | None) -> str:
    """Return the name of a bundle's directory, `recorded` for None. Contracts of a bundle's copies have one name."""
    return RECORDED if bundle is None else bundle.directory.resolve().name


def _contract_of_recorded() -> Contract:
    """Return a placeholder contract for a detector of which only the outputs are known."""
    return Contract(1, RECORDED, RECORDED, RECORDED, (), InputSpec(1, 1), (), {})


@dataclass(frozen=True)
class _DriveFigures:
    """Figures of all bags as drives. road_drive: with alarms limited to the road; streaming: by protocol."""

    drive: Drive | None
    road_drive: Drive | None
    consistency: Consistency | None
    streaming: Mapping[str, Streaming]


def _pool_drives(parts: Sequence[BagPart], passed: Sequence[Passed]) -> _DriveFigures:
    return _DriveFigures(
        pooled_drive([part.drive for part in parts]),
        pooled_drive([part.road_drive for part in parts]),
        pooled_consistency([one.consistency for one in passed]),
        pooled_streaming([one.streaming for one in passed]),
    )


def _with_drive(result: Result, request: BagRequest, figures: _DriveFigures) -> Result:
    """Add the drive figures to the results of the drive's score.

    Remove times and unknown properties from results of recorded outputs.
    """
    if result.score == scores_of(request)[0] and protocol(result.protocol).road_region is not None:
        result = replace(result, drive=figures.road_drive)
    elif result.score == scores_of(request)[0]:
        streaming = figures.streaming.get(result.protocol)
        result = replace(result, drive=figures.drive, consistency=figures.consistency, streaming=streaming)
    if request.recorded is None:
        return result
    untimed = tuple(replace(frame, inference_ms=None, network_ms=None) for frame in result.per_frame)
    result = replace(result, per_frame=untimed, inference_ms=None, network_ms=None, wall_ms=None)
    return result if request.bundle else replace(result, network=None, precision=None)
