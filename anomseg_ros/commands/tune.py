"""`anomseg tune`: measure candidates on this machine and write the one that keeps a latency or an accuracy."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from anomseg_ros.backends import BACKENDS
from anomseg_ros.backends.options import BackendOptions
from anomseg_ros.bench.accuracy import mean_accuracy
from anomseg_ros.bench.candidates import (
    PROGRAM_FILES,
    Candidate,
    candidates_of,
    core_count,
    left_out,
    thread_counts,
)
from anomseg_ros.bench.chart import Goal, pareto_chart
from anomseg_ros.bench.choice import TuneGoal, choose, nearest
from anomseg_ros.bench.measure import (
    DRAWN_FRAMES,
    DRAWN_SEED,
    Extras,
    Measured,
    entry_of,
    read_frames,
    surprises,
)
from anomseg_ros.bench.results import Accuracy, BenchReport, Entry
from anomseg_ros.bench.rounds import MIN_ROUNDS
from anomseg_ros.bench.tune_state import LeftOut, TuneState, label_agreement, measure_together
from anomseg_ros.commands import options
from anomseg_ros.commands.bench import backends, cost_counter, report_of
from anomseg_ros.commands.bench_output import print_report
from anomseg_ros.commands.evaluate import ProgressLines
from anomseg_ros.commands.tune_candidates import Maker, add_making_options, check_making, usable_backends
from anomseg_ros.commands.tune_output import EVIDENCE, PROTOCOL, print_choice, write_evidence, write_tuned
from anomseg_ros.core.bundle import GRAPH_FILE, Bundle, check_target, load_bundle
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.core.types import RgbImage
from anomseg_ros.datasets import open_named
from anomseg_ros.datasets.base import Dataset
from anomseg_ros.datasets.synthetic import SyntheticSequence
from anomseg_ros.errors import BundleError, ConfigError, DatasetError, MetricError
from anomseg_ros.evaluation.evaluate import Request, evaluate
from anomseg_ros.evaluation.machine import describe_machine, package_versions

MANY = 24
"""Candidates that are many to have in memory together, some 100 MiB each."""


@dataclass(frozen=True)
class Plan:
    """How to measure and by what to judge. metric: auprc, miou, or label_agreement where there is no dataset.

    frames: to time on; judged: to compare labels on; uint8 (H, W, 3) RGB.
    """

    goal: TuneGoal
    source: Bundle
    bundles: tuple[Path, ...]
    backends: tuple[str, ...]
    threads: tuple[int, ...]
    score: str
    provider: str
    frames: tuple[RgbImage, ...]
    judged: tuple[RgbImage, ...]
    datasets: tuple[Dataset, ...]
    metric: str
    rounds: int
    memory: bool
    allow_partial: bool
    warnings: tuple[str, ...]
    left_out: tuple[LeftOut, ...]

    def candidates(self, made: Sequence[Path]) -> list[Candidate]:
        """Return every bundle, those given and those made, on every backend that runs it, with all threads given."""
        bundles = [*self.bundles, *made]
        return candidates_of(bundles, self.backends, self.threads, score=self.score, provider=self.provider)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, choose, write the bundle with its evidence; returns 0, or raises ConfigError where nothing fits."""
    args = _parser().parse_args(argv)
    plan, maker = _plan(args)
    folder = _state_folder(args)
    state = TuneState(folder, _settings(plan))
    state.save()
    # Pruning and quantizing show their own progress.
    made = _made(plan, maker, state)
    with ProgressLines() as lines:
        candidates, failed = _measured(plan, made, state, lines)
        accuracy = _accuracies(plan, candidates, state, lines)
        entries = _entries(plan, candidates, state, accuracy, lines)
    chosen = choose(entries, plan.goal)
    left_out = [*plan.left_out, *maker.left_out, *failed]
    command = shlex.join(["anomseg", "tune", *(argv or [])])
    report = _report(plan, candidates, entries, state, left_out, chosen, command)
    print_report(Console(), report)
    title = None if chosen is None else chosen.title
    svg = pareto_chart(report, Goal(plan.goal.max_latency_ms, plan.goal.min_auprc, title, plan.goal.latency))
    if chosen is None:
        write_evidence(report, svg, {name: state.claim(name) for name in EVIDENCE})
        raise ConfigError(f"{nearest(entries, plan.goal)}. The evidence is in {folder}, and nothing is lost there")
    candidate = next(one for one in candidates if one.title == chosen.title)
    bundle = load_bundle(candidate.bundle)
    written = write_tuned(bundle, plan.goal, chosen, report, svg, args.output, args.overwrite)
    state.remove()
    print_choice(Console(), written, chosen, plan.goal)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = options.parser(
        "tune",
        "Measure candidates on this machine (backends, threads, int8, pruned networks, input sizes, other bundles), "
        "and write the best bundle with the evidence.",
    )
    parser.add_argument("bundle", help="bundle directory, or name of a shipped bundle; it is not changed")
    goal = parser.add_argument_group("goal, one of both")
    goal.add_argument(
        "--max-latency-ms", type=float, metavar="N", help="take the most accurate that is at most so slow"
    )
    goal.add_argument("--min-auprc", type=float, metavar="X", help="take the fastest with at least this AuPRC, 0 to 1")
    goal.add_argument("--percentile", type=int, default=95, help="of the latency that counts: 50, 95 or 99")
    parser.add_argument("--candidates", nargs="+", default=[], metavar="BUNDLE", help="other bundles: int8, pruned, …")
    add_making_options(parser)
    dataset_help = "what accuracy is measured on (default: label agreement with BUNDLE on the frames)"
    parser.add_argument("--dataset", nargs="+", action="extend", default=[], metavar="NAME=PATH", help=dataset_help)
    metric_help = "accuracy, the mean over the datasets (default: auprc where they have anomalies, else miou)"
    parser.add_argument("--metric", choices=("auprc", "miou"), help=metric_help)
    parser.add_argument("--allow-partial", action="store_true", help="accept fewer or more frames than published")
    _add_measuring_options(parser)
    parser.add_argument("--output", required=True, type=Path, help="where to write the bundle")
    parser.add_argument("--overwrite", action="store_true", help="replace a bundle that is there")
    state_help = (
        "folder that a killed run goes on from, a new one or that of a tune; what tune puts there is deleted when the "
        "bundle is written (default: OUTPUT.tune)"
    )
    parser.add_argument("--state", type=Path, metavar="DIR", help=state_help)
    return parser


def _add_measuring_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how each bundle is measured")
    backend_help = f"engines, of {', '.join(sorted(BACKENDS))} (default: all that are installed and run a bundle)"
    group.add_argument("--backend", nargs="+", metavar="BACKEND", help=backend_help)
    group.add_argument("--provider", default=BackendOptions().provider, help=options.PROVIDER_HELP)
    threads_help = "processor threads; 0 = one per core; several: 1,2 (default: 1 and one per core)"
    threads = ["1", "0"] if core_count() > 1 else ["1"]
    group.add_argument("--threads", nargs="+", default=threads, metavar="N", help=threads_help)
    group.add_argument("--score", default="", help="score to compute beside the labels (default: the bundle's first)")
    frames_help = "camera frames to measure on, quantize by and prune by (default: drawn road scenes to measure on)"
    group.add_argument("--frames", type=Path, metavar="FOLDER", help=frames_help)
    group.add_argument("--rounds", type=int, default=30, help="how often each candidate runs")
    group.add_argument("--no-memory", action="store_true", help="do not start a process per candidate for its memory")


def _plan(args: argparse.Namespace) -> tuple[Plan, Maker]:
    """Check all that was given before anything is made or measured."""
    goal = TuneGoal(args.max_latency_ms, args.min_auprc, args.percentile)
    if args.rounds < MIN_ROUNDS:
        raise ConfigError(f"rounds is {args.rounds}; a percentile needs at least {MIN_ROUNDS}, better 30")
    bundles = [find_bundle(name) for name in (args.bundle, *args.candidates)]
    source = load_bundle(bundles[0])
    _check_output(args.output, bundles[0], args.overwrite)
    _check_apart(_state_folder(args), [*bundles, args.output])
    datasets = tuple(open_named(text) for text in args.dataset)
    metric, used, warnings = _judged_by(goal, args.metric, datasets)
    frames = read_frames(args.frames)
    threads, more = thread_counts(options.several(args.threads))
    check_making(args, source)
    maker = Maker(args, bundles[0], bundles)
    if args.backend is None:
        chosen, missing = usable_backends(bundles, maker.total > 0)
        lacking = left_out([], chosen, args.provider)  # which bundle has no file for which backend is no news here
    else:
        chosen, missing = backends(args.backend), []
        lacking = left_out(bundles, chosen, args.provider)
    plan = Plan(
        goal=goal,
        source=source,
        bundles=tuple(bundles),
        backends=chosen,
        threads=threads,
        score=args.score,
        provider=args.provider,
        frames=tuple(frames),
        judged=tuple((() if used else maker.unseen_frames()) or frames),
        datasets=used,
        metric=metric,
        rounds=args.rounds,
        memory=not args.no_memory,
        allow_partial=args.allow_partial,
        warnings=(*warnings, *more, *lacking),
        left_out=tuple(missing),
    )
    if not plan.candidates([]) and not maker.total:
        raise ConfigError(f"none of the bundles can run on {', '.join(chosen) or 'an installed backend'}")
    return plan, maker


def _state_folder(args: argparse.Namespace) -> Path:
    folder: Path = args.state or args.output.with_name(args.output.name + ".tune")
    return folder


def _check_apart(folder: Path, kept: Sequence[Path]) -> None:
    """Refuse a state folder with what must outlive it inside, and one inside a bundle."""
    for path in kept:
        if folder.resolve() in (path.resolve(), *path.resolve().parents):
            raise ConfigError(
                f"{path} lies in {folder}, where this tune keeps what it deletes at the end; give another --state"
            )
        if path.resolve() in folder.resolve().parents:
            raise ConfigError(f"--state {folder} lies in the bundle {path}, where nothing is put; give another folder")


def _made(plan: Plan, maker: Maker, state: TuneState) -> list[Path]:
    """Say how much there is to do, and make the bundles."""
    engines = sum(PROGRAM_FILES.get(backend, GRAPH_FILE) == GRAPH_FILE for backend in plan.backends)
    given, more = len(plan.candidates([])), maker.total * engines * len(plan.threads)
    _tell(
        f"up to {given + more} candidates: {len(plan.bundles)} bundle(s) and {maker.total} to be made or found in the "
        f"state, on {', '.join(plan.backends)}, threads {', '.join(map(str, plan.threads))} (0: one per core)"
    )
    return maker.make(state.claim)


def _measured(
    plan: Plan, made: Sequence[Path], state: TuneState, lines: ProgressLines
) -> tuple[list[Candidate], list[LeftOut]]:
    """Measure all candidates in turns; return those that can run, and the others with the reason."""
    candidates = plan.candidates(made)
    fewer = "; all are in memory together: fewer by --backend and --threads" if len(candidates) > MANY else ""
    _tell(f"{len(candidates)} candidates, {plan.rounds} rounds in which they take turns{fewer}")
    usable, failed = measure_together(candidates, plan.frames, plan.rounds, state, lines)
    if not usable:
        reasons = "; ".join(f"{one.what}: {one.reason}" for one in failed)
        raise ConfigError(f"none of {len(candidates)} candidates can run: {reasons}")
    return usable, failed


def _tell(text: str) -> None:
    Console(stderr=True).print(text, soft_wrap=True, highlight=False, markup=False)


def _check_output(output: Path, source: Path, overwrite: bool) -> None:
    if output.exists() and output.resolve() == source.resolve():
        raise BundleError(f"--output {output} is the bundle itself, which is not changed; give another folder")
    check_target(output, overwrite)


def _judged_by(
    goal: TuneGoal, metric: str | None, datasets: tuple[Dataset, ...]
) -> tuple[str, tuple[Dataset, ...], list[str]]:
    """Return the metric, the datasets that have it, and a warning about each that has not."""
    if goal.min_auprc is not None and metric == "miou":
        raise ConfigError("--min-auprc asks for AuPRC, --metric for miou; leave --metric out")
    if not datasets:
        if goal.min_auprc is not None or metric is not None:
            raise ConfigError("an accuracy is measured on labelled frames; give --dataset NAME=PATH")
        return "label_agreement", (), []
    with_anomalies = tuple(dataset for dataset in datasets if dataset.has_anomalies)
    if metric == "miou" or not with_anomalies:
        if goal.min_auprc is not None or metric == "auprc":
            names = ", ".join(f"{dataset.name} in {dataset.path!r}" for dataset in datasets)
            raise DatasetError(f"{names}: no anomaly masks, so no AuPRC; give a dataset with anomalies")
        return "miou", datasets, []
    left_out = [dataset for dataset in datasets if not dataset.has_anomalies]
    said = [f"{dataset.name} has no anomalies and does not enter the AuPRC" for dataset in left_out]
    return "auprc", with_anomalies, said


def _settings(plan: Plan) -> dict[str, Any]:
    """Return all that times and accuracies depend on beside the candidates; not the goal, which may change."""
    return {
        "datasets": [[one.name, one.split, one.path, len(one)] for one in plan.datasets],
        "metric": plan.metric,
        "frames": [[*frame.shape, int(frame.sum())] for frame in plan.frames],
        "judged": [[*frame.shape, int(frame.sum())] for frame in plan.judged],
        "source": dict(plan.source.contract.files),
        "machine": describe_machine(),
        "versions": package_versions(),
    }


def _accuracies(
    plan: Plan, candidates: Sequence[Candidate], state: TuneState, lines: ProgressLines
) -> dict[str, Accuracy]:
    """Return title -> accuracy of the candidates that are fast enough to matter, each bundle measured once."""
    found = {}
    for candidate, times in _times(plan, candidates, state).items():
        entry = entry_of(candidate, "", {candidate.title: times}, Extras(memory=False))
        if not plan.goal.fits_latency(entry):
            continue
        accuracy = state.accuracy(candidate)
        if accuracy is None:
            accuracy = _measure_accuracy(plan, candidate, state, lines)
            state.add_accuracy(candidate, accuracy)
        found[candidate.title] = accuracy
    return found


def _times(plan: Plan, candidates: Sequence[Candidate], state: TuneState) -> dict[Candidate, tuple[float, ...]]:
    """Return the milliseconds of the rounds in which all candidates took turns: no others are compared."""
    columns = zip(*state.rounds_of(candidates)[: plan.rounds], strict=True)
    return dict(zip(candidates, columns, strict=True))


def _measure_accuracy(plan: Plan, candidate: Candidate, state: TuneState, lines: ProgressLines) -> Accuracy:
    if plan.metric == "label_agreement":
        frames = plan.judged or [frame.image for frame in SyntheticSequence(DRAWN_SEED).frames(DRAWN_FRAMES)]
        return label_agreement(plan.source, candidate, frames)
    request = Request(
        bundles=(Path(candidate.bundle),),
        datasets=plan.datasets,
        scores=(candidate.score,),
        protocols=(PROTOCOL,),
        allow_partial=plan.allow_partial,
        require_miou=plan.metric == "miou",
        backend=candidate.backend,
        options=BackendOptions(provider=candidate.provider),
        state=state.claim("evaluation"),
    )
    outcome = evaluate(request, lines)
    accuracy = mean_accuracy(outcome.results, plan.metric, candidate.score)
    if outcome.errors or accuracy is None:
        said = "; ".join((*outcome.errors, *outcome.warnings)) or f"no {plan.metric} came out"
        raise MetricError(f"the accuracy of {candidate.title} could not be measured: {said}")
    return accuracy


def _entries(
    plan: Plan,
    candidates: Sequence[Candidate],
    state: TuneState,
    accuracy: Mapping[str, Accuracy],
    lines: ProgressLines,
) -> list[Entry]:
    times = {candidate.title: own for candidate, own in _times(plan, candidates, state).items()}
    extras = Extras(plan.memory, cost_counter(), accuracy)
    entries = []
    for index, (candidate, engine) in enumerate(zip(candidates, state.engines(candidates), strict=True)):
        entries.append(entry_of(candidate, engine.actual, times, extras))
        lines("memory and size", index + 1, len(candidates))
    return entries


def _report(
    plan: Plan,
    candidates: Sequence[Candidate],
    entries: Sequence[Entry],
    state: TuneState,
    out: Sequence[LeftOut],
    chosen: Entry | None,
    command: str,
) -> BenchReport:
    settings = {
        "asked": plan.goal.words,
        **asdict(plan.goal),
        "chosen": None if chosen is None else chosen.title,
        "metric": plan.metric,
        "datasets": [one.name for one in plan.datasets],
        "protocol": PROTOCOL if plan.datasets else None,
        "left_out": [asdict(one) for one in out],
    }
    rounds = state.rounds_of(candidates)[: plan.rounds]
    said = [f"left out: {one.what}: {one.reason}" for one in out]
    surprising = surprises(candidates, state.engines(candidates))
    measured = Measured(tuple(entries), tuple(map(tuple, rounds)), ())
    return report_of(measured, [*plan.warnings, *said, *surprising], command, settings)
