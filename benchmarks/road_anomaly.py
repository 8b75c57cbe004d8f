"""Accuracy and speed of every detector on all anomaly sets, in benchmarks/road_anomaly.md.

Each bundle is measured with one score and one threshold rule on all sets. Bundles are those in models/ and --bundle,
and every published checkpoint in ANOMSEG_WEIGHTS that loads, in float and in 8 bits (the int8 bundle made from it if
there is one, else one quantized on CamVid's training frames). Sets are those in ANOMSEG_DATA or --dataset.

Accuracy is measured in ONNX Runtime: AuPRC and FPR95 with protocol `seeds`, component F1 with `smiyc`, false-positive
rate at the bundle's threshold, mIoU on CamVid's validation frames. Times are those of 720x1280 frames on this machine,
per backend; the precisions and backends of a model take turns in one run. The papers' rows are listed for comparison.

Finished parts stay in --work under the digest of their bundle's contract, so that a killed run resumes and a later run
measures only new parts. Delete the folder to measure everything again, or give --retime to repeat only the timing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from common import DATA, WEIGHTS, camera_frames, ensure_bundle, parse_size, write_result
from road_anomaly_table import CAMVID, SETS, as_markdown, chart

from anomseg_ros.backends import check_usable
from anomseg_ros.bench.candidates import candidates_of
from anomseg_ros.bench.figures import FORMAT_VERSION, BenchReport, load_report, save_report
from anomseg_ros.bench.measure import MAX_FRAMES, Extras, measure
from anomseg_ros.bench.rounds import Stop
from anomseg_ros.commands.evaluate import evaluation_of
from anomseg_ros.commands.papers import MODELS as PUBLISHED
from anomseg_ros.commands.progress_lines import ProgressLines
from anomseg_ros.compression.cost import graph_cost
from anomseg_ros.core.bundle import CONTRACT_FILE, Bundle, load_bundle, sha256_of
from anomseg_ros.core.resources import find_bundle, shipped_bundles
from anomseg_ros.errors import AnomsegError, BackendError
from anomseg_ros.evaluation.evaluate import Request, evaluate
from anomseg_ros.evaluation.machine import describe_machine, package_versions
from anomseg_ros.evaluation.results import Result, load_evaluation, save_evaluation
from anomseg_ros.export import ExportConfig, export_checkpoint

TABLE = Path(__file__).resolve().parent / "road_anomaly.md"
PICTURE = TABLE.with_suffix(".svg")
BACKENDS = ("onnxruntime", "openvino")
OUTPUTS, VOID_CLASS = 20, 19
KNOWN_SCORES = ("max_logit", "msp", "max_entropy")
TARGET_FPR = 0.01

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint with 20 outputs, the last of which is the void class. scores: the default one first."""

    title: str
    network: str
    file: str
    scores: tuple[str, ...] = ("void", *KNOWN_SCORES)


CHECKPOINTS = (
    *(Checkpoint(model.title, model.network, model.checkpoint) for model in PUBLISHED.values()),
    Checkpoint("ENet (560 epochs)", "enet", "enet_560_epochs.pth", KNOWN_SCORES),
    Checkpoint("ESPNetv2 s 1.0", "espnetv2", "espnetv2/espnetv2_s_1.0_city_1024x512.pth", (*KNOWN_SCORES, "void")),
    Checkpoint("ESPNetv2 s 2.0", "espnetv2", "espnetv2/espnetv2_s_2.0_city_1024x512.pth", (*KNOWN_SCORES, "void")),
)


@dataclass(frozen=True)
class Model:
    """A detector. bundles: float first, then those in 8 bits; source: `ours` or `published checkpoint`."""

    title: str
    source: str
    bundles: tuple[Bundle, ...]


@dataclass(frozen=True)
class Timing:
    """Settings of the timing. rounds: 0 for no timing; again: whether to repeat an earlier timing."""

    rounds: int
    threads: int
    size: tuple[int, int]
    again: bool


def main() -> None:
    args = parse_arguments()
    datasets = available_sets(args.dataset)
    timing = Timing(args.rounds, args.threads, args.size, args.retime)
    models, missing = models_to_measure(args)
    rows: list[dict[str, Any]] = []
    reports = []
    for model in models:
        with ProgressLines() as progress:
            report = bench_report(model, args.work, timing, progress) if timing.rounds else None
            reports += [] if report is None else [report]
            rows += [measure_row(model, bundle, datasets, args.work, report, progress) for bundle in model.bundles]
    result = {"target_fpr": TARGET_FPR, "sets": list(datasets), "frames_timed": args.size, "threads": args.threads}
    result |= {"missing": missing, "rows": rows}
    print(write_result("road_anomaly", result))
    TABLE.write_text(as_markdown(result, describe_machine()))
    if reports:
        PICTURE.write_text(chart(rows, reports))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--bundle", nargs="*", default=[], metavar="DIR", help="bundles in addition to those in models/"
    )
    parser.add_argument(
        "--dataset", nargs="*", default=[], metavar="NAME=PATH", help=f"sets in other folders: {set_names()}"
    )
    parser.add_argument("--only", nargs="*", metavar="NAME", help="models to measure, by title (default: all)")
    parser.add_argument("--no-published", action="store_true", help="omit the published checkpoints")
    parser.add_argument("--no-int8", action="store_true", help="do not quantize; existing int8 bundles are measured")
    parser.add_argument("--work", type=Path, default=Path("road_anomaly_work"), help="folder for finished parts")
    parser.add_argument("--rounds", type=int, default=100, help="frames timed per bundle; 0: no times (default: 100)")
    parser.add_argument("--threads", type=int, default=0, help="threads of each engine; 0 = one per core (default: 0)")
    size_help = "height x width of the timed frames (default: 720x1280)"
    parser.add_argument("--size", type=parse_size, default=(720, 1280), metavar="HxW", help=size_help)
    parser.add_argument("--retime", action="store_true", help="repeat the timing of an earlier run")
    return parser.parse_args()


def set_names() -> str:
    return ", ".join((*SETS, CAMVID))


def available_sets(given: Sequence[str]) -> dict[str, str]:
    """Return name -> NAME=PATH of the available sets. Given sets replace those in ANOMSEG_DATA."""
    found = {name: f"{name}={DATA / folder}" for name, folder in SETS.items() if (DATA / folder).is_dir()}
    if (DATA / "CamVid").is_dir():
        found[CAMVID] = f"{CAMVID}={DATA / 'CamVid'}:val"
    for text in given:
        name = text.partition("=")[0]
        if name not in (*SETS, CAMVID):
            raise SystemExit(f"--dataset {text!r}: expected NAME=PATH with a name of {set_names()}")
        found[name] = text
    return found


def models_to_measure(args: argparse.Namespace) -> tuple[list[Model], dict[str, str]]:
    """Return the models to measure, ours first, and title -> reason of those that cannot be measured."""
    models = our_models([*shipped_bundles().values(), *(find_bundle(name) for name in args.bundle)])
    checkpoints = {} if args.no_published else {checkpoint.title: checkpoint for checkpoint in CHECKPOINTS}
    known = [*(model.title for model in models), *checkpoints]
    wanted = known if args.only is None else args.only
    if not set(wanted) <= set(known):
        raise SystemExit(f"--only {wanted}: some of these models do not exist; known: {known}")
    models = [model for model in models if model.title in wanted]
    missing: dict[str, str] = {}
    for title in (title for title in checkpoints if title in wanted):
        try:
            models.append(published_model(checkpoints[title], args.work))
        except AnomsegError as error:
            missing[title] = " ".join(str(error).split())
    return [model if args.no_int8 else with_int8(model, args.work) for model in models], missing


def our_models(directories: Sequence[Path]) -> list[Model]:
    """Return our models: float bundles with the int8 bundles made from them, and int8 bundles without a parent."""
    bundles = [load_bundle(directory) for directory in dict.fromkeys(path.resolve() for path in directories)]
    by_parent: dict[str, list[Bundle]] = {}
    for bundle in bundles:
        parent = str(bundle.contract.compression.get("parent", {}).get("sha256", ""))
        by_parent.setdefault(parent, []).append(bundle)
    digests = {bundle.contract.program_sha256 for bundle in bundles}
    heads = [bundle for parent, own in by_parent.items() if parent not in digests for bundle in own]
    return [
        Model(head.contract.name, "ours", (head, *by_parent.get(head.contract.program_sha256, ()))) for head in heads
    ]


def published_model(checkpoint: Checkpoint, work: Path) -> Model:
    """Return the model of a published checkpoint; export it if needed. Raises the errors of export."""
    path = WEIGHTS / checkpoint.file
    if not path.is_file():
        raise BackendError(f"{checkpoint.file} is not in ANOMSEG_WEIGHTS")
    output = work / f"{path.stem}-{sha256_of(path)[:12]}" / "float"
    if not (output / CONTRACT_FILE).is_file():
        print(f"exporting {checkpoint.title}", flush=True)
        config = ExportConfig(path.stem, OUTPUTS, VOID_CLASS, scores=checkpoint.scores)
        export_checkpoint(checkpoint.network, path, config, output)
    return Model(checkpoint.title, "published checkpoint", (load_bundle(output),))


def with_int8(model: Model, work: Path) -> Model:
    """Return the model with an int8 bundle: its own, else one calibrated on CamVid's training frames if available.

    Calibration never uses an anomaly set. The loss of accuracy is measured, but not limited.
    """
    whole = model.bundles[0]
    if any(bundle.contract.precision == "int8" for bundle in model.bundles) or not (DATA / "CamVid").is_dir():
        return model
    output = work / folder_name(whole) / "int8"
    words = ["quantize", str(whole.directory), "--frames", f"camvid={DATA / 'CamVid'}:train", "--output", str(output)]
    return replace(model, bundles=(*model.bundles, load_bundle(ensure_bundle(output, [*words, "--accept-drift"]))))


def measure_row(
    model: Model,
    bundle: Bundle,
    datasets: dict[str, str],
    work: Path,
    report: BenchReport | None,
    progress: Progress,
) -> dict[str, Any]:
    """Return all figures of one bundle as plain data; fractions and milliseconds."""
    contract = bundle.contract
    cost = graph_cost(bundle.graph_path)
    row: dict[str, Any] = {
        "model": model.title,
        "source": model.source,
        "precision": contract.precision,
        "network": contract.network,
        "input": f"{contract.input.height_px}x{contract.input.width_px}",
        "score": contract.score_names[0],
        "sha256": contract.program_sha256,
        "parameters": cost.parameters,
        "multiply_adds": cost.multiply_adds,
        "file_bytes": bundle.graph_path.stat().st_size,
        "sets": {},
        "other_scores": {},
        "errors": [],
    }
    for name in datasets:
        try:
            add_figures(row, bundle, name, datasets[name], work / folder_name(bundle), progress)
        except AnomsegError as error:
            row["errors"].append(f"{name}: {error}")
    row["times"] = {} if report is None else times_of(report, contract.program_sha256)
    return row


def add_figures(row: dict[str, Any], bundle: Bundle, name: str, dataset: str, folder: Path, progress: Progress) -> None:
    """Measure a bundle on one set and add the figures to the row."""
    default = bundle.contract.score_names[:1]
    if name == CAMVID:
        (native,) = cached_results(bundle, dataset, default, "fishyscapes", folder, progress)
        row["miou"], row["iou"] = native.miou, native.iou
        row["sets"][name] = threshold_figures(native)
        return
    for result in cached_results(bundle, dataset, bundle.contract.score_names, "seeds", folder, progress):
        figures = {"auprc": result.auprc, "fpr95": result.fpr95}
        if result.score == row["score"]:
            row["sets"][name] = figures
        else:
            row["other_scores"].setdefault(result.score, {})[name] = figures
    (native,) = cached_results(bundle, dataset, default, "smiyc", folder, progress)
    row["sets"][name] |= {"f1": None if native.components is None else native.components.f1}
    row["sets"][name] |= threshold_figures(native)


def threshold_figures(result: Result) -> dict[str, float | None]:
    """Return the rates at the bundle's threshold at the frames' own size; empty if it is not calibrated."""
    found = result.at_threshold
    return {} if found is None else {"threshold": found.threshold, "fpr": found.fpr, "tpr": found.tpr}


def cached_results(
    bundle: Bundle, dataset: str, scores: Sequence[str], protocol: str, folder: Path, progress: Progress
) -> list[Result]:
    """Return the results of one bundle on one set with one protocol. Measure and store them unless `folder` has them.

    Raises the package's errors.
    """
    name = dataset.partition("=")[0]
    path = folder / f"{name}.{protocol}.json"
    if not path.is_file():
        request = Request(
            (bundle.directory,),
            (dataset,),
            tuple(scores),
            (protocol,),
            allow_partial=True,
            target_fpr=TARGET_FPR,
            state=path.with_suffix(".state"),
        )
        outcome = evaluate(request, progress)
        if outcome.errors:
            raise BackendError("; ".join(outcome.errors))
        save_evaluation(evaluation_of(outcome, "benchmarks/road_anomaly.py"), path)
    return list(load_evaluation(path).results)


def bench_report(model: Model, work: Path, timing: Timing, progress: Progress) -> BenchReport:
    """Return the times of a model's bundles on every installed backend. Measure them unless `work` has them."""
    bundles = model.bundles
    programs = "-".join(bundle.contract.program_sha256[:6] for bundle in bundles)
    height, width = timing.size
    path = work / folder_name(bundles[0]) / f"times-{programs}-{timing.threads}-{timing.rounds}-{height}x{width}.json"
    if path.is_file() and not timing.again:
        return load_report(path)
    engines = [name for name in BACKENDS if is_installed(name)]
    frames, origin = camera_frames(MAX_FRAMES, height, width)
    candidates = candidates_of([bundle.directory for bundle in bundles], engines, [timing.threads])
    extras = Extras(memory=False, cost_of=graph_cost)
    measured = measure(candidates, frames, Stop(timing.rounds), extras, progress)
    report = BenchReport(
        FORMAT_VERSION,
        measured.entries,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        machine=describe_machine(),
        versions=package_versions(),
        settings={"frames": f"{origin}, {height}x{width}", "threads": timing.threads},
        times_ms=measured.times_ms,
        warnings=measured.warnings,
    )
    save_report(report, path)
    return report


def times_of(report: BenchReport, program_sha256: str) -> dict[str, Any]:
    """Return backend -> latency percentiles, milliseconds, and frames per second of one program."""
    own = [entry for entry in report.entries if entry.sha256 == program_sha256]
    return {
        entry.backend: {
            **{name: entry.latency_ms[name] for name in ("p50", "p95", "p99")},
            "frames_per_second": entry.frames_per_second,
            "rounds": entry.rounds,
            "created": report.created,
        }
        for entry in own
    }


def is_installed(backend: str) -> bool:
    """Return whether a backend is usable on this machine."""
    try:
        check_usable(backend)
    except BackendError:
        return False
    return True


def folder_name(bundle: Bundle) -> str:
    """Return the folder name of a bundle's results: name and digest of the contract.

    The digest covers files, scores and thresholds.
    """
    return f"{bundle.contract.name}-{sha256_of(bundle.directory / CONTRACT_FILE)[:12]}"


if __name__ == "__main__":
    main()
