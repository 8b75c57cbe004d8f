"""Measure bundles on datasets: every (bundle, dataset) is one job, whose frames the detector sees once per view."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from anomseg_ros.backends import open_detector
from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.core.bundle import Bundle, load_bundle
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.datasets import DATASETS, dataset_type, open_named
from anomseg_ros.datasets.cached import keep_frames
from anomseg_ros.datasets.check import check
from anomseg_ros.datasets.corruptions import Corruption, corrupt_dataset, library_version
from anomseg_ros.datasets.dataset import Dataset
from anomseg_ros.errors import AnomsegError, ConfigError, MetricError
from anomseg_ros.evaluation.bundle_fit import calibrated_thresholds, compared_classes
from anomseg_ros.evaluation.component_pass import component_thresholds, measure_components
from anomseg_ros.evaluation.measures import Key, Measures, MeasureSpec, road_of
from anomseg_ros.evaluation.passes import Passed, PassTask, measured, model_source
from anomseg_ros.evaluation.pictures import PictureKey, draw_worst
from anomseg_ros.evaluation.readout import Identity, read_results
from anomseg_ros.evaluation.results import Components, Curves, Result, Robustness
from anomseg_ros.evaluation.robustness import robustness_of
from anomseg_ros.evaluation.saved_state import JobState
from anomseg_ros.evaluation.workers import Workers, run_parts
from anomseg_ros.metrics.protocols import protocol

PARTS_PER_WORKER = 4
MAX_PART_FRAMES = 32
KEPT_BYTES = 768 * 2**20
"""A part is what is lost when a worker dies, and what a worker's start-up cost is spread over."""


@dataclass(frozen=True)
class Request:
    """What to measure. bundles: directories; datasets: NAME=PATH, or opened ones; scores: empty for all a bundle has.

    state: folder for what is measured so far, None for none; save_every_s: how often that is written. pictures: draw
    overlays of the worst frames. network_only: time the network alone, measure nothing else. require_miou: a bundle
    whose classes cannot be compared with those of a labelled dataset is an error instead of a note. target_fpr: picks
    the bundle's threshold whose real rates are measured. corruptions: measure everything under each of these too.
    """

    bundles: tuple[Path, ...]
    datasets: tuple[str | Dataset, ...]
    scores: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ("seeds",)
    exact: bool = False
    allow_partial: bool = False
    network_only: bool = False
    require_miou: bool = False
    target_fpr: float = 0.01
    pictures: bool = False
    corruptions: tuple[Corruption, ...] = ()
    backend: str = "onnxruntime"
    options: BackendOptions = field(default_factory=BackendOptions)
    workers: Workers = field(default_factory=Workers)
    state: Path | None = None
    save_every_s: float = 15.0


@dataclass(frozen=True)
class Outcome:
    """Results of the jobs that were finished, errors of those that were not, warnings, and overlays by frame."""

    results: tuple[Result, ...]
    errors: tuple[str, ...]
    warnings: tuple[str, ...]
    settings: dict[str, Any]
    pictures: dict[PictureKey, bytes] = field(default_factory=dict)
    robustness: tuple[Robustness, ...] = ()


@dataclass(frozen=True)
class _Job:
    """One bundle on one dataset, with the names they have in the results.

    corruption: None for frames as they are. backend: the one really in use, None where that is not known yet.
    """

    bundle_name: str
    bundle: Bundle
    dataset_name: str
    dataset: Dataset
    spec: MeasureSpec
    notes: tuple[str, ...]
    corruption: Corruption | None = None
    backend: str | None = None

    @property
    def title(self) -> str:
        return f"{self.bundle_name} on {self.dataset_name}"

    def under(self, corruption: Corruption, backend: str | None) -> _Job:
        dataset = corrupt_dataset(self.dataset, corruption)
        return replace(self, dataset=dataset, corruption=corruption, backend=backend)


def evaluate(request: Request, progress: Progress = no_progress) -> Outcome:
    """Measure every bundle on every dataset.

    A failing job is reported in `errors` and does not stop the others. Raises the package's errors for a wrong request,
    bundle or dataset before any work starts.
    """
    if request.corruptions:
        _require_corruptible(request)
    bundles = _open_bundles(request)
    datasets, warnings = _open_checked_datasets(request, progress)
    results: list[Result] = []
    errors: list[str] = []
    pictures: dict[PictureKey, bytes] = {}
    robustness: list[Robustness] = []
    jobs = []
    for (bundle_name, bundle), (dataset_name, dataset) in product(bundles, datasets):
        try:
            job = _plan(request, bundle_name, bundle, dataset_name, dataset)
            jobs.append(job)
            measured = _run(request, job, progress)
            results += measured
            if request.pictures:
                pictures |= _draw(request, job, measured, progress)
            if request.corruptions:
                under = [job.under(corruption, measured[0].backend) for corruption in request.corruptions]
                jobs += under
                robustness += _run_corrupted(request, measured, under, progress)
        except AnomsegError as error:
            errors.append(f"{bundle_name} on {dataset_name}: {error}")
    if not errors:
        for job in jobs:
            _state(request, job).remove()
        _remove_if_empty(request.state)
    warnings += [f"{result.bundle} on {result.dataset}: {note}" for result in results for note in result.notes]
    settings, distinct = _settings(request, bundles, datasets), tuple(dict.fromkeys(warnings))
    return Outcome(tuple(results), tuple(errors), distinct, settings, pictures, tuple(robustness))


def _require_corruptible(request: Request) -> None:
    library_version()
    if request.network_only:
        raise ConfigError("corruptions do not change the network's time; leave out either them or network_only")


def _open_bundles(request: Request) -> list[tuple[str, Bundle]]:
    if not request.bundles or not request.datasets:
        raise ConfigError("nothing to measure; give at least one bundle and one --dataset NAME=PATH")
    opened = [load_bundle(path) for path in request.bundles]
    names = [bundle.contract.name for bundle in opened]
    # Two exports of one network often share a name; their folders differ.
    unique = [str(b.directory) if names.count(name) > 1 else name for b, name in zip(opened, names, strict=True)]
    for name in request.protocols:
        protocol(name)
    return list(zip(unique, opened, strict=True))


def _open_checked_datasets(request: Request, progress: Progress) -> tuple[list[tuple[str, Dataset]], list[str]]:
    opened = [open_named(given) if isinstance(given, str) else given for given in request.datasets]
    if request.workers.here:
        # The check and every bundle read every frame. Frames that fit in memory are decoded once.
        opened = [keep_frames(dataset, KEPT_BYTES // len(opened)) for dataset in opened]
    names = [_dataset_name(dataset) for dataset in opened]
    named = [
        (f"{name}={dataset.path}" if names.count(name) > 1 else name, dataset)
        for name, dataset in zip(names, opened, strict=True)
    ]
    warnings = []
    for name, dataset in named:
        report = check(dataset, progress=progress)
        report.require(request.allow_partial)
        warnings += [f"{name}: {text}" for text in report.warnings]
    return named, warnings


def _dataset_name(dataset: Dataset) -> str:
    default = dataset_type(dataset.name).default_split if dataset.name in DATASETS else ""
    return dataset.name if dataset.split in ("", default) else f"{dataset.name}:{dataset.split}"


def _plan(request: Request, bundle_name: str, bundle: Bundle, dataset_name: str, dataset: Dataset) -> _Job:
    scores = tuple(dict.fromkeys(map(bundle.check_score, request.scores))) or bundle.contract.score_names
    classes = compared_classes(bundle, dataset)
    if dataset.classes is not None and classes.count is None and request.require_miou:
        raise ConfigError(f"{dataset.path!r}: {classes.note}")
    thresholds = calibrated_thresholds(bundle, scores, request.target_fpr)
    spec = MeasureSpec(
        scores=scores,
        protocols=request.protocols,
        num_classes=classes.count,
        label_map=classes.label_map,
        anomalies=dataset.has_anomalies,
        exact=request.exact,
        road=road_of(bundle.contract, request.protocols),
        thresholds=tuple((score, found.value) for score, found in thresholds.items()),
    )
    if classes.count is None and not dataset.has_anomalies:
        raise MetricError(
            f"nothing can be measured in {dataset.path!r}: there are no anomaly masks, and "
            f"{classes.note or 'no semantic labels either'}"
        )
    return _Job(bundle_name, bundle, dataset_name, dataset, spec, (classes.note,) if classes.note else ())


def _run(request: Request, job: _Job, progress: Progress) -> tuple[Result, ...]:
    """Measure a job from where its state left off, and read the results."""
    state = _state(request, job)
    measures = state.load(job.spec)
    remaining = [index for index in range(len(job.dataset)) if index not in measures.done]
    for gathered in _gathered(request, job, remaining, measures, state, progress):
        measures = gathered
        progress(job.title, len(measures.done), len(job.dataset))
    if remaining:
        state.save(measures)
    components, notes = _components(request, job, measures, progress)
    detector_backend = job.backend or backend_in_use(job.bundle, request.backend, request.options)
    names = tuple(info.name for info in job.dataset.classes or ())
    workers = max(1, request.workers.count)
    thresholds = calibrated_thresholds(job.bundle, job.spec.scores, request.target_fpr)
    identity = Identity(
        job.bundle_name, job.dataset_name, job.bundle.contract, detector_backend, names, workers, thresholds
    )
    results = read_results(measures, identity, components, (*job.notes, *notes, *state.notes))
    if not request.network_only and all(result.auprc is None and result.miou is None for result in results):
        reasons = "; ".join(dict.fromkeys(note for result in results for note in result.notes))
        raise MetricError(f"nothing could be measured in {job.dataset.path!r}: {reasons}")
    return results


def _run_corrupted(
    request: Request, clean: Sequence[Result], jobs: Sequence[_Job], progress: Progress
) -> tuple[Robustness, ...]:
    """Measure one job's frames under every corruption."""
    measured: dict[Corruption, tuple[Result, ...]] = {}
    for number, job in enumerate(jobs):
        assert job.corruption is not None

        def count(what: str, done: int, total: int | None, before: int = number) -> None:
            frames = total or 0
            progress(f"{what} under corruptions", before * frames + done, len(jobs) * frames)

        state = _state(request, job)
        try:
            results = state.finished() or _run(request, job, count)
        except AnomsegError as error:
            raise type(error)(f"{job.corruption}: {error}") from error
        # There can be a hundred jobs, so only their figures stay in memory and on disk.
        measured[job.corruption] = tuple(replace(result, curves=Curves(), per_frame=()) for result in results)
        state.finish(measured[job.corruption])
        count(job.title, len(job.dataset), len(job.dataset))
    return robustness_of(clean, measured)


def _gathered(
    request: Request, job: _Job, remaining: list[int], before: Measures, state: JobState, progress: Progress
) -> Iterator[Measures]:
    """Yield the measures after each part, those before included."""
    measures = before
    if request.workers.here and remaining:

        def watch(now: Passed) -> None:
            progress(job.title, len(before.done) + now.frames, len(job.dataset))
            if state.due:
                state.save(before.merge(now.measures))

        yield before.merge(measured(_task(request, job, remaining), watch))
        return
    tasks = [_task(request, job, part) for part in _parts(remaining, request.workers.count)]
    for part in run_parts(measured, tasks, request.workers):
        measures = measures.merge(part)
        if state.due:
            state.save(measures)
        yield measures


def _parts(indices: Sequence[int], workers: int) -> list[list[int]]:
    size = max(1, min(MAX_PART_FRAMES, -(-len(indices) // (workers * PARTS_PER_WORKER))))
    return [list(indices[start : start + size]) for start in range(0, len(indices), size)]


def _task(request: Request, job: _Job, indices: Sequence[int]) -> PassTask:
    source = model_source(job.bundle, request.backend, request.options, request.workers, timed=request.network_only)
    return PassTask(job.dataset, tuple(indices), source, job.spec, request.network_only)


def _components(
    request: Request, job: _Job, measures: Measures, progress: Progress
) -> tuple[dict[Key, Components], list[str]]:
    """Measure SegmentMeIfYouCan's component metrics where its protocol is asked for and has a threshold."""
    if request.network_only or job.corruption is not None:
        return {}, []
    thresholds = component_thresholds(measures)
    if not thresholds:
        return {}, []
    frames = range(len(job.dataset))
    parts = [frames] if request.workers.here else _parts(frames, request.workers.count)
    title = f"components of {job.title}"
    progress(title, 0, len(frames))
    found = measure_components([_task(request, job, part) for part in parts], thresholds, request.workers)
    progress(title, len(frames), len(frames))
    return found


def backend_in_use(bundle: Bundle, backend: str, options: BackendOptions) -> str:
    """Return the backend that really runs a bundle. Raises the package's errors where none does."""
    detector = open_detector(bundle, backend, options)
    try:
        return detector.backend.actual
    finally:
        detector.close()


def _draw(request: Request, job: _Job, results: Sequence[Result], progress: Progress) -> dict[PictureKey, bytes]:
    detector = open_detector(job.bundle, request.backend, request.options)
    try:
        progress(f"pictures of {job.title}", 0, 1)
        return draw_worst(detector, job.dataset, results)
    finally:
        progress(f"pictures of {job.title}", 1, 1)
        detector.close()


def _state(request: Request, job: _Job) -> JobState:
    identity: dict[str, Any] = {
        "bundle": dict(job.bundle.contract.files),
        "input": asdict(job.bundle.contract.input),
        "dataset": [job.dataset.name, job.dataset.split, str(Path(job.dataset.path).expanduser().absolute())],
        "frames": [job.dataset.frame_id(index) for index in range(len(job.dataset))],
        "spec": asdict(job.spec),
        "backend": [request.backend, request.options.provider],
        "network_only": request.network_only,
    }
    if job.corruption is not None:
        identity["corruption"] = [job.corruption.kind, job.corruption.severity, library_version()]
    return JobState(request.state, identity, request.save_every_s)


def _remove_if_empty(folder: Path | None) -> None:
    if folder is not None and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _settings(
    request: Request, bundles: Sequence[tuple[str, Bundle]], datasets: Sequence[tuple[str, Dataset]]
) -> dict[str, Any]:
    return {
        "bundles": {
            name: {"files": dict(bundle.contract.files), "temperature": bundle.contract.temperature}
            for name, bundle in bundles
        },
        "datasets": {
            name: {"path": dataset.path, "split": dataset.split, "layout": dataset.layout, "frames": len(dataset)}
            for name, dataset in datasets
        },
        "scores": list(request.scores),
        "protocols": list(request.protocols),
        "exact": request.exact,
        "network_only": request.network_only,
        "corruptions": [str(corruption) for corruption in request.corruptions],
        "target_fpr": request.target_fpr,
        "backend": request.backend,
        "options": asdict(request.options),
        "workers": asdict(request.workers),
    }
