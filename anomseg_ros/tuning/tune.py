"""Tuning: candidates are made and measured on this machine, and the best one within a limit is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.bench.accuracy import mean_accuracy
from anomseg_ros.bench.candidate_runs import Engine, LeftOut, require_some
from anomseg_ros.bench.candidates import (
    PROGRAM_FILES,
    Candidate,
    candidates_of,
    known_backends,
    left_out,
    thread_numbers,
    thread_warnings,
)
from anomseg_ros.bench.chart import Goal, pareto_chart
from anomseg_ros.bench.figures import Accuracy, BenchReport, Entry
from anomseg_ros.bench.measure import (
    DRAWN_FRAMES,
    DRAWN_SEED,
    Extras,
    Measured,
    entry_of,
    read_frames,
    sentences,
    surprises,
)
from anomseg_ros.bench.rounds import MIN_ROUNDS
from anomseg_ros.core.bundle import GRAPH_FILE, Bundle, check_target, load_bundle
from anomseg_ros.core.types import RgbImage
from anomseg_ros.datasets import open_named
from anomseg_ros.datasets.dataset import Dataset
from anomseg_ros.errors import BundleError, ConfigError, DatasetError, MetricError
from anomseg_ros.evaluation.evaluate import Request, evaluate
from anomseg_ros.evaluation.machine import describe_machine, package_versions
from anomseg_ros.scenes.sequence import SyntheticSequence
from anomseg_ros.tuning.bench import cost_counter, report_of
from anomseg_ros.tuning.choice import TuneGoal, choose, nearest
from anomseg_ros.tuning.evidence import EVIDENCE, PROTOCOL, write_evidence, write_tuned
from anomseg_ros.tuning.making import Maker, check_making, usable_backends
from anomseg_ros.tuning.missing_engines import build_missing
from anomseg_ros.tuning.request import Listener, TuneRequest
from anomseg_ros.tuning.tune_state import TuneState, label_agreement, measure_together

MANY = 24
"""Number of candidates above which the user is told that all are in memory together, some 100 MiB each."""


@dataclass(frozen=True)
class _Plan:
    """A checked request. metric: auprc, miou, or label_agreement without datasets.

    frames, judged: uint8 (H, W, 3) RGB, to time on and to compare labels on.
    """

    request: TuneRequest
    source: Bundle
    backends: tuple[str, ...]
    frames: tuple[RgbImage, ...]
    judged: tuple[RgbImage, ...]
    datasets: tuple[Dataset, ...]
    metric: str
    warnings: tuple[str, ...]
    left_out: tuple[LeftOut, ...]

    def candidates(self, made: Sequence[Path]) -> list[Candidate]:
        """Return all bundles, given and made, on each backend that runs them, with each number of threads."""
        request = self.request
        bundles = [*request.bundles, *made]
        return candidates_of(bundles, self.backends, request.threads, score=request.score, provider=request.provider)


@dataclass(frozen=True)
class TuneOutcome:
    """The report, and the chosen entry and the written bundle: None if no candidate meets the goal.

    nearest: without a choice, a text about the nearest candidate and what to do.
    """

    report: BenchReport
    chosen: Entry | None
    bundle: Bundle | None
    nearest: str


def tune(request: TuneRequest, listener: Listener) -> TuneOutcome:
    """Measure, choose, and write the bundle with its evidence. A killed tune continues from its state.

    Raises ConfigError and the errors of bundles, datasets and frames before anything is made.
    """
    plan, maker = _plan(request)
    state = TuneState(request.state_folder, _settings(plan))
    state.save()
    return _Run(plan, state, listener).result(maker)


def _plan(request: TuneRequest) -> tuple[_Plan, Maker]:
    """Check the request before anything is made or measured."""
    if request.rounds < MIN_ROUNDS:
        raise ConfigError(f"rounds is {request.rounds}; a percentile needs at least {MIN_ROUNDS}, better 30")
    bundles, source = request.bundles, load_bundle(request.bundle)
    _check_output(request.output, request.bundle, request.overwrite)
    _check_apart(request.state_folder, [*bundles, request.output])
    datasets = tuple(open_named(text) for text in request.datasets)
    metric, used, warnings = _judged_by(request.goal, request.metric, datasets)
    frames = read_frames(request.frames)
    if request.backends is not None:
        known_backends(request.backends)
    check_making(request, source)
    maker = Maker(request)
    missing: list[LeftOut] = []
    if request.backends is None:
        chosen, missing = usable_backends(bundles, maker.total > 0)
        lacking = left_out([], chosen, request.provider)  # bundles without a file for a backend are left out silently
    else:
        chosen = request.backends
        lacking = left_out(bundles, chosen, request.provider)
    plan = _Plan(
        request=request,
        source=source,
        backends=chosen,
        frames=tuple(frames),
        judged=tuple((() if used else maker.unseen_frames()) or frames),
        datasets=used,
        metric=metric,
        warnings=(*warnings, *thread_warnings(request.threads), *lacking),
        left_out=tuple(missing),
    )
    if not plan.candidates([]) and not maker.total:
        raise ConfigError(f"none of the bundles can run on {', '.join(chosen) or 'an installed backend'}")
    return plan, maker


def _check_apart(folder: Path, others: Sequence[Path]) -> None:
    """Raise ConfigError if the state folder, which is deleted at the end, contains a bundle or lies in one."""
    for path in others:
        if folder.resolve() in (path.resolve(), *path.resolve().parents):
            raise ConfigError(
                f"{path} lies in {folder}, where this tune keeps what it deletes at the end; give another `state`"
            )
        if path.resolve() in folder.resolve().parents:
            raise ConfigError(f"`state` {folder} lies in the bundle {path}, where nothing is put; give another folder")


def _check_output(output: Path, source: Path, overwrite: bool) -> None:
    if output.exists() and output.resolve() == source.resolve():
        raise BundleError(f"`output` {output} is the bundle itself, which is not changed; give another folder")
    check_target(output, overwrite)


def _judged_by(
    goal: TuneGoal, metric: str | None, datasets: tuple[Dataset, ...]
) -> tuple[str, tuple[Dataset, ...], list[str]]:
    """Return the metric, the datasets that have it, and warnings about the others."""
    if goal.min_auprc is not None and metric == "miou":
        raise ConfigError("`min_auprc` asks for AuPRC, the metric is miou; leave the metric out")
    if not datasets:
        if goal.min_auprc is not None or metric is not None:
            raise ConfigError("an accuracy is measured on labelled frames; give a dataset as NAME=PATH")
        return "label_agreement", (), []
    with_anomalies = tuple(dataset for dataset in datasets if dataset.has_anomalies)
    if metric == "miou" or not with_anomalies:
        if goal.min_auprc is not None or metric == "auprc":
            names = ", ".join(f"{dataset.name} in {dataset.path!r}" for dataset in datasets)
            raise DatasetError(f"{names}: no anomaly masks, so no AuPRC; give a dataset with anomalies")
        return "miou", datasets, []
    others = [dataset for dataset in datasets if not dataset.has_anomalies]
    warnings = [f"{dataset.name} has no anomalies and does not enter the AuPRC" for dataset in others]
    return "auprc", with_anomalies, warnings


def _settings(plan: _Plan) -> dict[str, Any]:
    """Return the facts beside the candidates that times and accuracies depend on. The goal may change."""
    return {
        "datasets": [[one.name, one.split, one.path, len(one)] for one in plan.datasets],
        "metric": plan.metric,
        "frames": [[*frame.shape, int(frame.sum())] for frame in plan.frames],
        "judged": [[*frame.shape, int(frame.sum())] for frame in plan.judged],
        "source": dict(plan.source.contract.files),
        "machine": describe_machine(),
        "versions": package_versions(),
    }


@dataclass(frozen=True)
class _Run:
    """The execution of a plan."""

    plan: _Plan
    state: TuneState
    listener: Listener

    def result(self, maker: Maker) -> TuneOutcome:
        """Make, measure, choose and write."""
        request, state = self.plan.request, self.state
        candidates, failed = self._measured(self._made(maker))
        entries = self._entries(candidates, self._accuracies(candidates))
        chosen, goal = choose(entries, request.goal), request.goal
        report = self._report(candidates, entries, [*self.plan.left_out, *maker.left_out, *failed], chosen)
        title = None if chosen is None else chosen.title
        svg = pareto_chart(report, Goal(goal.max_latency_ms, goal.min_auprc, title, goal.latency))
        if chosen is None:
            write_evidence(report, svg, {name: state.claim(name) for name in EVIDENCE})
            return TuneOutcome(report, None, None, nearest(entries, goal))
        bundle = load_bundle(next(one.bundle for one in candidates if one.title == chosen.title))
        written = write_tuned(bundle, goal, chosen, report, svg, request.output, request.overwrite)
        state.remove()
        return TuneOutcome(report, chosen, written, "")

    def _made(self, maker: Maker) -> list[Path]:
        """Tell the amount of work, and make the bundles."""
        run_graphs = [name for name in self.plan.backends if PROGRAM_FILES.get(name, GRAPH_FILE) == GRAPH_FILE]
        of_each = sum(len(thread_numbers(name, self.plan.request.threads)) for name in run_graphs)
        count = len(self.plan.candidates([])) + maker.total * of_each
        threads, bundles = ", ".join(map(str, self.plan.request.threads)), len(self.plan.request.bundles)
        self.listener.tell(
            f"up to {count} candidates: {bundles} bundle(s) and {maker.total} to be made or found in the state, "
            f"on {', '.join(self.plan.backends)}, threads {threads} (0: one per core)"
        )
        return maker.make(self.state.claim, self.listener)

    def _measured(self, made: Sequence[Path]) -> tuple[list[Candidate], list[LeftOut]]:
        """Measure all candidates in turns. Return those that can run, and the others with the reason."""
        request, rounds = self.plan.request, self.plan.request.rounds
        candidates, unbuilt = self.plan.candidates(made), list[LeftOut]()
        if request.build_engine:
            candidates, unbuilt = build_missing(candidates, request.frames, self.listener)
        fewer = "; all are in memory together: fewer backends or threads need less" if len(candidates) > MANY else ""
        self.listener.tell(f"{len(candidates)} candidates, {rounds} rounds in which they take turns{fewer}")
        usable, failed = measure_together(
            candidates, self.plan.frames, rounds, self.state, self.listener, request.power
        )
        require_some(usable, [*unbuilt, *failed])
        return usable, [*unbuilt, *failed]

    def _accuracies(self, candidates: Sequence[Candidate]) -> dict[str, Accuracy]:
        """Return title -> accuracy of the candidates that are fast enough. Each bundle is measured once."""
        accuracies = {}
        for candidate, times in self._times(candidates).items():
            entry = entry_of(candidate, Engine("", ""), {candidate.title: times}, Extras(memory=False))
            if not self.plan.request.goal.fits_latency(entry):
                continue
            accuracy = self.state.accuracy(candidate)
            if accuracy is None:
                accuracy = self._measure_accuracy(candidate)
                self.state.add_accuracy(candidate, accuracy)
            accuracies[candidate.title] = accuracy
        return accuracies

    def _times(self, candidates: Sequence[Candidate]) -> dict[Candidate, tuple[float, ...]]:
        """Return the milliseconds of each candidate in the rounds in which all candidates took turns."""
        columns = zip(*self.state.rounds_of(candidates)[: self.plan.request.rounds], strict=True)
        return dict(zip(candidates, columns, strict=True))

    def _measure_accuracy(self, candidate: Candidate) -> Accuracy:
        if self.plan.metric == "label_agreement":
            frames = self.plan.judged or [frame.image for frame in SyntheticSequence(DRAWN_SEED).frames(DRAWN_FRAMES)]
            return label_agreement(self.plan.source, candidate, frames)
        request = Request(
            bundles=(Path(candidate.bundle),),
            datasets=self.plan.datasets,
            scores=(candidate.score,),
            protocols=(PROTOCOL,),
            allow_partial=self.plan.request.allow_partial,
            require_miou=self.plan.metric == "miou",
            backend=candidate.backend,
            options=BackendOptions(provider=candidate.provider),
            state=self.state.claim("evaluation"),
        )
        outcome = evaluate(request, self.listener)
        accuracy = mean_accuracy(outcome.results, self.plan.metric, candidate.score)
        if outcome.errors or accuracy is None:
            cause = "; ".join((*outcome.errors, *outcome.warnings)) or f"no {self.plan.metric} came out"
            raise MetricError(f"the accuracy of {candidate.title} could not be measured: {cause}")
        return accuracy

    def _entries(self, candidates: Sequence[Candidate], accuracy: Mapping[str, Accuracy]) -> list[Entry]:
        times = {candidate.title: times_ms for candidate, times_ms in self._times(candidates).items()}
        extras = Extras(memory=self.plan.request.memory, cost_of=cost_counter(), accuracy=accuracy)
        entries = []
        for index, (candidate, engine) in enumerate(zip(candidates, self.state.engines(candidates), strict=True)):
            entries.append(entry_of(candidate, engine, times, extras))
            self.listener("memory and size", index + 1, len(candidates))
        return entries

    def _report(
        self, candidates: Sequence[Candidate], entries: Sequence[Entry], out: Sequence[LeftOut], chosen: Entry | None
    ) -> BenchReport:
        settings = {
            "asked": self.plan.request.goal.words,
            **asdict(self.plan.request.goal),
            "chosen": None if chosen is None else chosen.title,
            "metric": self.plan.metric,
            "datasets": [one.name for one in self.plan.datasets],
            "protocol": PROTOCOL if self.plan.datasets else None,
            "left_out": [asdict(one) for one in out],
        }
        rounds = self.state.rounds_of(candidates)[: self.plan.request.rounds]
        warnings = [*self.plan.warnings, *sentences(out)]
        warnings += surprises(candidates, self.state.engines(candidates))
        measured = Measured(tuple(entries), tuple(map(tuple, rounds)), ())
        return report_of(measured, warnings, self.plan.request.command, settings)
