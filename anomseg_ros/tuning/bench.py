"""Measurement of bundles side by side, at other sizes and against their checkpoints in torch."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from anomseg_ros.bench.accuracy import Wanted, common_dataset, find_accuracy
from anomseg_ros.bench.candidate_runs import LeftOut, require_some
from anomseg_ros.bench.candidates import EAGER, Candidate, candidates_of, known_backends, left_out, thread_warnings
from anomseg_ros.bench.figures import FORMAT_VERSION, Accuracy, BenchReport
from anomseg_ros.bench.measure import CostOf, Extras, Measured, measure, read_frames, sentences
from anomseg_ros.bench.power import PowerRequest
from anomseg_ros.bench.rounds import Stop
from anomseg_ros.core.bundle import load_bundle, sha256_of
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.errors import BundleError, ConfigError
from anomseg_ros.evaluation.machine import describe_machine, package_versions
from anomseg_ros.evaluation.results import Evaluation
from anomseg_ros.tuning.missing_engines import build_missing

EAGER_RUNNER = "anomseg_ros.tuning.eager:EagerRunner"
"""Given by name, because only timing of checkpoints needs torch."""


@dataclass(frozen=True)
class BenchRequest:
    """What to measure side by side."""

    bundles: tuple[Path, ...]
    checkpoints: Mapping[Path, Path] = field(default_factory=dict)
    """Bundle directory -> checkpoint that is also timed in torch."""
    sizes: tuple[tuple[int, int], ...] = ()
    """(height, width) at which bundles with a checkpoint are also exported and measured."""
    backends: tuple[str, ...] = ("onnxruntime",)
    provider: str = "cpu"
    threads: tuple[int, ...] = (0,)
    score: str = ""  # empty for each bundle's first
    frames: Path | None = None  # folder, None for drawn road scenes
    stop: Stop = field(default_factory=Stop)
    memory: bool = True
    power: PowerRequest = field(default_factory=PowerRequest)
    build_engine: bool = False  # whether to build the engines that are missing
    evaluations: tuple[Evaluation, ...] = ()  # sources of accuracies
    metric: str | None = None  # of the accuracy to show; None for auprc if all have it, else miou
    dataset: str = ""  # of the accuracy to show; empty for a common one
    command: str = ""  # command line for the report

    @property
    def settings(self) -> dict[str, object]:
        """The settings that the report lists."""
        frames = "drawn road scenes" if self.frames is None else self.frames.name
        return {"rounds": self.stop.rounds, "seconds": self.stop.seconds, "frames": frames, "provider": self.provider}


def bench(request: BenchRequest, progress: Progress = no_progress) -> BenchReport:
    """Measure and return the report. Raises the errors of bundles, backends, checkpoints and frames."""
    backends = known_backends(request.backends)
    frames = read_frames(request.frames)
    checkpoints = dict(request.checkpoints)
    with tempfile.TemporaryDirectory(prefix="anomseg-") as folder:
        bundles = [*request.bundles, *resized(request.bundles, checkpoints, request.sizes, Path(folder))]
        candidates = candidates_of(bundles, backends, request.threads, score=request.score, provider=request.provider)
        eager = _eager_candidates(candidates, checkpoints, request.threads)
        missing = left_out(bundles, backends, request.provider)
        usable, failed = [*eager, *candidates], list[LeftOut]()
        if request.build_engine:
            usable, failed = build_missing(usable, request.frames, progress)
            require_some(usable, failed)
        accuracies, eager_of = _accuracies(usable, request), _eager_titles(candidates, eager)
        extras = Extras(request.memory, request.power, cost_counter(), accuracies, eager_of)
        measured = measure(usable, frames, request.stop, extras, progress)
    warnings = [*thread_warnings(request.threads), *missing, *sentences(failed), *measured.warnings]
    out = [asdict(one) for one in (*failed, *measured.left_out)]
    return report_of(measured, warnings, request.command, {**request.settings, "left_out": out})


def resized(
    bundles: Sequence[Path], checkpoints: dict[Path, Path], sizes: Sequence[tuple[int, int]], folder: Path
) -> list[Path]:
    """Export each bundle that has a checkpoint at each other size, and return the new bundles.

    `checkpoints` gets an entry per new bundle. A bundle of an earlier run in `folder` is reused.
    """
    if sizes and not checkpoints:
        raise ConfigError("a bundle has one input size: for others, give the checkpoint that it was exported from")
    exported: list[Path] = []
    for directory, checkpoint in list(checkpoints.items()):
        bundle = load_bundle(directory)
        for height_px, width_px in sizes:
            if (height_px, width_px) == (bundle.contract.input.height_px, bundle.contract.input.width_px):
                continue
            from anomseg_ros.compression.reexport import export_at_size

            output = folder / f"{bundle.contract.name}-{height_px}x{width_px}"
            if not _is_from(output, checkpoint):
                export_at_size(bundle, checkpoint, height_px, width_px, output)
            exported.append(output)
            checkpoints[output] = checkpoint
    return exported


def _is_from(output: Path, checkpoint: Path) -> bool:
    """Return whether `output` is a complete bundle of this checkpoint, from an earlier run."""
    if not checkpoint.is_file() or not output.is_dir():
        return False
    try:
        return load_bundle(output).contract.provenance.source_sha256 == sha256_of(checkpoint)
    except BundleError:
        return False


def cost_counter() -> CostOf | None:
    """Return the counter of parameters and multiply-adds; None if the onnx package is not installed."""
    try:
        from anomseg_ros.compression.cost import graph_cost
    except ModuleNotFoundError:
        return None
    return graph_cost


def report_of(measured: Measured, warnings: Sequence[str], command: str, settings: dict[str, object]) -> BenchReport:
    """Return the report: measurements, and the facts that are needed to repeat them."""
    return BenchReport(
        format_version=FORMAT_VERSION,
        entries=measured.entries,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=command,
        machine=describe_machine(),
        versions=package_versions(),
        settings=settings,
        times_ms=measured.times_ms,
        warnings=tuple(warnings),
    )


def _eager_candidates(
    candidates: Sequence[Candidate], checkpoints: dict[Path, Path], threads: Sequence[int]
) -> list[Candidate]:
    by_bundle = {Path(candidate.bundle): candidate for candidate in reversed(candidates)}
    eager: dict[str, Any] = {"backend": EAGER, "provider": "cpu", "precision": "fp32", "runner": EAGER_RUNNER}
    return [
        replace(by_bundle[directory], threads=number, checkpoint=str(path), **eager)
        for directory, path in checkpoints.items()
        if directory in by_bundle
        for number in threads
    ]


def _eager_titles(candidates: Sequence[Candidate], eager: Sequence[Candidate]) -> dict[str, str]:
    """Return title -> title of the candidate's float network in torch; both come from the same checkpoint."""
    digests = {one.checkpoint: sha256_of(Path(one.checkpoint)) for one in eager if one.checkpoint is not None}
    titles: dict[str, str] = {}
    for candidate in candidates:
        source = load_bundle(candidate.bundle).contract.provenance.source_sha256
        for one in eager:
            same_source = one.checkpoint is not None and digests[one.checkpoint] == source
            size = (candidate.height_px, candidate.width_px, candidate.threads)
            if (one.bundle == candidate.bundle or same_source) and size == (one.height_px, one.width_px, one.threads):
                titles.setdefault(candidate.title, one.title)
    return titles


def _accuracies(candidates: Sequence[Candidate], request: BenchRequest) -> dict[str, Accuracy]:
    """Return title -> accuracy by one metric on one dataset, for the candidates that have it."""
    contracts = {candidate.title: load_bundle(candidate.bundle).contract for candidate in candidates}
    measured, evaluations, metric = list(contracts.values()), request.evaluations, request.metric
    if metric is None:
        metric = "auprc" if common_dataset(measured, "auprc", evaluations) else "miou"
    wanted = Wanted(metric, request.dataset or common_dataset(measured, metric, evaluations), request.score)
    accuracies = {}
    for candidate in candidates:
        contract = contracts[candidate.title]
        # Torch runs the float weights, to which figures of an int8 bundle do not apply.
        if candidate.backend == EAGER and contract.precision != "fp32":
            continue
        if accuracy := find_accuracy(contract, wanted, evaluations):
            accuracies[candidate.title] = accuracy
    return accuracies
