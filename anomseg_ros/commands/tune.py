"""`anomseg tune`: measure candidates on this machine and write the one that keeps a latency or an accuracy."""

from __future__ import annotations

import argparse
import hashlib
import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from anomseg_ros.backends.options import BackendOptions
from anomseg_ros.bench.accuracy import mean_accuracy
from anomseg_ros.bench.candidates import Candidate, candidates_of, left_out, thread_counts
from anomseg_ros.bench.chart import Goal, pareto_chart
from anomseg_ros.bench.choice import TuneGoal, choose, nearest
from anomseg_ros.bench.measure import DRAWN_FRAMES, DRAWN_SEED, Extras, Measured, entry_of, read_frames
from anomseg_ros.bench.results import Accuracy, BenchReport, Entry, save_report
from anomseg_ros.bench.rounds import MIN_ROUNDS
from anomseg_ros.bench.tune_state import TuneState, label_agreement, measure_missing
from anomseg_ros.commands import options
from anomseg_ros.commands.bench import add_measuring_options, backends, cost_counter, report_of, resized, size_of
from anomseg_ros.commands.bench_output import print_report, write_picture
from anomseg_ros.commands.evaluate import ProgressLines
from anomseg_ros.core.bundle import CONTRACT_FILE, Bundle, Contract, load_bundle, save_bundle, sha256_of
from anomseg_ros.core.image_files import image_files
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.core.types import RgbImage
from anomseg_ros.datasets import open_named
from anomseg_ros.datasets.base import Dataset
from anomseg_ros.datasets.synthetic import SyntheticSequence
from anomseg_ros.errors import BundleError, CompressionError, ConfigError, DatasetError, MetricError
from anomseg_ros.evaluation.evaluate import Request, evaluate
from anomseg_ros.evaluation.machine import describe_machine, package_versions

PROTOCOL = "seeds"
EVIDENCE = ("evidence.json", "evidence.svg")


@dataclass(frozen=True)
class Plan:
    """What to measure and by what to judge it. metric: auprc, miou, or label_agreement where there is no dataset."""

    goal: TuneGoal
    source: Bundle
    candidates: tuple[Candidate, ...]
    frames: tuple[RgbImage, ...]
    datasets: tuple[Dataset, ...]
    metric: str
    rounds: int
    allow_partial: bool
    folder: Path
    warnings: tuple[str, ...] = field(default=())


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, choose, write the bundle with its evidence; returns 0, or raises ConfigError where nothing fits."""
    args = _parser().parse_args(argv)
    # Exporting and quantizing show their own progress.
    plan = _plan(args)
    with ProgressLines() as lines:
        state = TuneState(plan.folder / "state.json", _settings(plan))
        actual, surprising = measure_missing(plan.candidates, plan.frames, plan.rounds, state, lines)
        accuracy = _accuracies(plan, state, lines)
        entries = _entries(plan, state, actual, accuracy, not args.no_memory, lines)
    chosen = choose(entries, plan.goal)
    report = _report(plan, entries, surprising, chosen, shlex.join(["anomseg", "tune", *(argv or [])]))
    print_report(Console(), report)
    title = None if chosen is None else chosen.title
    drawing = Goal(plan.goal.max_latency_ms, plan.goal.min_auprc, title, plan.goal.latency)
    svg = pareto_chart(report, drawing)
    if chosen is None:
        _write_evidence(report, svg, plan.folder)
        raise ConfigError(f"{nearest(entries, plan.goal)}. The evidence is in {plan.folder}, and nothing is lost there")
    written = _write_bundle(plan, report, svg, chosen, args.output, args.overwrite)
    shutil.rmtree(plan.folder, ignore_errors=True)
    _say(Console(), written, chosen, plan)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = options.parser(
        "tune",
        "Measure candidates (bundles, input sizes, backends, threads) on this machine, and write the best bundle with "
        "the evidence.",
    )
    parser.add_argument("bundle", help="bundle directory, or name of a shipped bundle; it is not changed")
    goal = parser.add_argument_group("goal, one of both")
    goal.add_argument(
        "--max-latency-ms", type=float, metavar="N", help="take the most accurate that is at most so slow"
    )
    goal.add_argument("--min-auprc", type=float, metavar="X", help="take the fastest with at least this AuPRC, 0 to 1")
    goal.add_argument("--percentile", type=int, default=95, help="of the latency that counts: 50, 95 or 99")
    parser.add_argument("--candidates", nargs="+", default=[], metavar="BUNDLE", help="other bundles: int8, pruned, …")
    parser.add_argument("--checkpoint", type=Path, help="checkpoint of BUNDLE, to export it at other sizes")
    parser.add_argument("--size", nargs="+", default=[], type=size_of, metavar="HxW", help="those sizes")
    quantize_help = "also int8 of every float bundle, calibrated on --frames (needs anomseg_ros[offline])"
    parser.add_argument("--quantize", action="store_true", help=quantize_help)
    accept_help = "measure int8 bundles too that `anomseg quantize` would refuse for what they lose"
    parser.add_argument("--accept-drift", action="store_true", help=accept_help)
    dataset_help = "what accuracy is measured on (default: label agreement with BUNDLE on the frames)"
    parser.add_argument("--dataset", nargs="+", action="extend", default=[], metavar="NAME=PATH", help=dataset_help)
    metric_help = "accuracy, the mean over the datasets (default: auprc where they have anomalies, else miou)"
    parser.add_argument("--metric", choices=("auprc", "miou"), help=metric_help)
    parser.add_argument("--allow-partial", action="store_true", help="accept fewer or more frames than published")
    add_measuring_options(parser)
    parser.add_argument("--rounds", type=int, default=30, help="how often each candidate runs")
    parser.add_argument("--no-memory", action="store_true", help="do not start a process per candidate for its memory")
    parser.add_argument("--output", required=True, type=Path, help="where to write the bundle")
    parser.add_argument("--overwrite", action="store_true", help="replace a bundle that is there")
    state_help = "folder that a killed run goes on from (default: OUTPUT.tune)"
    parser.add_argument("--state", type=Path, metavar="DIR", help=state_help)
    return parser


def _plan(args: argparse.Namespace) -> Plan:
    """Check all that was given before anything is measured, and make the sizes and precisions."""
    goal = TuneGoal(args.max_latency_ms, args.min_auprc, args.percentile)
    if args.rounds < MIN_ROUNDS:
        raise ConfigError(f"rounds is {args.rounds}; a percentile needs at least {MIN_ROUNDS}, better 30")
    directory = find_bundle(args.bundle)
    source = load_bundle(directory)
    _check_output(args.output, directory, args.overwrite)
    datasets = tuple(open_named(text) for text in args.dataset)
    metric, used, warnings = _judged_by(goal, args.metric, datasets)
    frames = read_frames(args.frames)
    threads, more = thread_counts(options.several(args.threads))
    folder = args.state or args.output.with_name(args.output.name + ".tune")
    bundles = [directory, *map(find_bundle, args.candidates)]
    sizes = args.size
    if sizes and args.checkpoint is None:
        raise ConfigError(
            "--size needs --checkpoint: a bundle has one input size, another is exported from the weights"
        )
    if args.checkpoint is not None and not sizes:
        raise ConfigError("--checkpoint is for exporting at other sizes; give them as --size HxW")
    if args.quantize and args.frames is None:
        raise ConfigError("--quantize needs --frames: ranges are calibrated on camera frames")
    if sizes:
        bundles += resized([directory], {directory: args.checkpoint}, sizes, folder / "bundles")
    refused: list[str] = []
    if args.quantize:
        made, refused = _quantized(bundles, args.frames, folder / "bundles", args.accept_drift)
        bundles += made
    candidates = candidates_of(bundles, backends(args.backend), threads, score=args.score, provider=args.provider)
    if not candidates:
        raise ConfigError(f"none of the bundles can run on {', '.join(options.several(args.backend))}")
    return Plan(
        goal,
        source,
        tuple(candidates),
        tuple(frames),
        used,
        metric,
        args.rounds,
        args.allow_partial,
        folder,
        (*warnings, *more, *refused, *left_out(bundles, backends(args.backend), args.provider)),
    )


def _quantized(bundles: Sequence[Path], frames: Path, folder: Path, accept_drift: bool) -> tuple[list[Path], list[str]]:
    """Return the int8 bundle of every float one, and why there is none of some: they would lose too much."""
    from anomseg_ros.commands import quantize
    from anomseg_ros.compression.frames import FEWEST_CALIBRATION, FEWEST_HELD_OUT

    files, needed = image_files(frames), FEWEST_CALIBRATION + FEWEST_HELD_OUT
    if len(files) < needed:
        raise CompressionError(f"{frames} holds {len(files)} frame(s); --quantize needs at least {needed}, better 32")
    made, refused = [], []
    for bundle in map(load_bundle, bundles):
        if bundle.contract.precision != "fp32":
            continue
        output = folder / f"{bundle.contract.name}-int8-{_digest(bundle, files)}"
        try:
            # A whole one is from an earlier run: bundles are written beside and renamed.
            if not output.is_dir():
                words = [str(bundle.directory), "--frames", str(frames), "--output", str(output)]
                quantize.main([*words, "--accept-drift"] if accept_drift else words)
            made.append(output)
        except CompressionError as error:
            refused.append(f"{bundle.contract.name}: no int8 candidate: {error}")
    return made, refused


def _digest(bundle: Bundle, files: Sequence[Path]) -> str:
    """Return what an int8 bundle depends on, shortened: its parent and the frames."""
    digests = [bundle.contract.program_sha256, *map(sha256_of, files)]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()[:8]


def _check_output(output: Path, source: Path, overwrite: bool) -> None:
    if output.exists() and output.resolve() == source.resolve():
        raise BundleError(f"--output {output} is the bundle itself, which is not changed; give another folder")
    if output.exists() and not overwrite:
        raise BundleError(f"{output} exists; choose another output or pass --overwrite")
    if output.exists() and not (output / CONTRACT_FILE).is_file():
        raise BundleError(f"{output} exists and is not a bundle: not overwriting it")


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
        "source": dict(plan.source.contract.files),
        "machine": describe_machine(),
        "versions": package_versions(),
    }


def _accuracies(plan: Plan, state: TuneState, lines: ProgressLines) -> dict[str, Accuracy]:
    """Return title -> accuracy of the candidates that are fast enough to matter, each bundle measured once."""
    found = {}
    for candidate in plan.candidates:
        if not plan.goal.fits_latency(_timed(candidate, state)):
            continue
        accuracy = state.accuracy(candidate)
        if accuracy is None:
            accuracy = _measure_accuracy(plan, candidate, lines)
            state.add_accuracy(candidate, accuracy)
        found[candidate.title] = accuracy
    return found


def _timed(candidate: Candidate, state: TuneState) -> Entry:
    times = {candidate.title: state.times(candidate)}
    return entry_of(candidate, "", times, Extras(memory=False))


def _measure_accuracy(plan: Plan, candidate: Candidate, lines: ProgressLines) -> Accuracy:
    if plan.metric == "label_agreement":
        frames = plan.frames or [frame.image for frame in SyntheticSequence(DRAWN_SEED).frames(DRAWN_FRAMES)]
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
        state=plan.folder / "evaluation",
    )
    outcome = evaluate(request, lines)
    accuracy = mean_accuracy(outcome.results, plan.metric, candidate.score)
    if outcome.errors or accuracy is None:
        said = "; ".join((*outcome.errors, *outcome.warnings)) or f"no {plan.metric} came out"
        raise MetricError(f"the accuracy of {candidate.title} could not be measured: {said}")
    return accuracy


def _entries(
    plan: Plan,
    state: TuneState,
    actual: Mapping[str, str],
    accuracy: Mapping[str, Accuracy],
    memory: bool,
    lines: ProgressLines,
) -> list[Entry]:
    times = {candidate.title: state.times(candidate)[: plan.rounds] for candidate in plan.candidates}
    extras = Extras(memory, cost_counter(), accuracy)
    entries = []
    for index, candidate in enumerate(plan.candidates):
        # Of what an earlier run measured, the engine in use is what it was then: the same versions are in the state.
        engine = actual.get(candidate.title, f"{candidate.backend}:{candidate.provider}")
        own = {candidate.title: times[candidate.title]}
        first = plan.candidates[0].title
        entries.append(entry_of(candidate, engine, {first: times[first], **own}, extras))
        lines("memory and size", index + 1, len(plan.candidates))
    return entries


def _report(
    plan: Plan, entries: Sequence[Entry], surprising: Sequence[str], chosen: Entry | None, command: str
) -> BenchReport:
    settings = {
        "asked": plan.goal.words,
        **asdict(plan.goal),
        "chosen": None if chosen is None else chosen.title,
        "metric": plan.metric,
        "datasets": [one.name for one in plan.datasets],
        "protocol": PROTOCOL if plan.datasets else None,
    }
    return report_of(Measured(tuple(entries), (), ()), [*plan.warnings, *surprising], command, settings)


def _write_evidence(report: BenchReport, svg: str, folder: Path) -> dict[str, Path]:
    files = {name: folder / name for name in EVIDENCE}
    save_report(report, files["evidence.json"])
    write_picture(svg, files["evidence.svg"])
    return files


def _write_bundle(plan: Plan, report: BenchReport, svg: str, chosen: Entry, output: Path, overwrite: bool) -> Bundle:
    candidate = next(one for one in plan.candidates if one.title == chosen.title)
    bundle = load_bundle(candidate.bundle)
    contract = tuned_contract(bundle.contract, plan.goal, chosen, report)
    with tempfile.TemporaryDirectory(prefix="anomseg-") as folder:
        files = {name: bundle.directory / name for name in bundle.contract.files}
        files |= _write_evidence(report, svg, Path(folder))
        return save_bundle(contract, files, output, overwrite=overwrite)


def tuned_contract(contract: Contract, goal: TuneGoal, chosen: Entry, report: BenchReport) -> Contract:
    """Return the contract with what was asked and measured, under `compression: tuned`, and the measured quality."""
    assert chosen.accuracy is not None
    tuned = {
        "asked": goal.words,
        "backend": chosen.backend,
        "actual": chosen.actual,
        "threads": chosen.threads,
        "latency_ms": {name: round(value, 3) for name, value in chosen.latency_ms.items()},
        "rounds": chosen.rounds,
        "accuracy": {**asdict(chosen.accuracy), "value": round(chosen.accuracy.value, 6)},
        "candidates": len(report.entries),
        "machine": dict(report.machine),
        "created": report.created,
    }
    quality = dict(contract.quality)
    if chosen.accuracy.metric != "label_agreement":
        figures = {chosen.accuracy.metric: round(chosen.accuracy.value, 6), "protocol": PROTOCOL, "score": chosen.score}
        quality[chosen.accuracy.dataset] = figures
    return replace(contract, quality=quality, compression={**contract.compression, "tuned": tuned})


def _say(console: Console, written: Bundle, chosen: Entry, plan: Plan) -> None:
    assert chosen.accuracy is not None
    threads = "all threads (0)" if chosen.threads == 0 else f"{chosen.threads} thread(s)"
    console.print(
        f"{plan.goal.words}: {chosen.title}, {plan.goal.latency} {chosen.latency_ms[plan.goal.latency]:.1f} ms, "
        f"{chosen.accuracy.metric} {100 * chosen.accuracy.value:.2f} %; written to {written.directory}; "
        f"run it on {chosen.backend} with {threads}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
