"""`anomseg quantize`: an 8-bit bundle of a float one, and what that cost, measured before it is written."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import onnx
from rich.console import Console
from rich.table import Table

from anomseg_ros.backends.options import BackendOptions
from anomseg_ros.commands import options
from anomseg_ros.commands.evaluate import ProgressLines
from anomseg_ros.compression.calibration import METHODS, Calibration
from anomseg_ros.compression.drift import Tolerance, compressed_contract, measure_drift, require
from anomseg_ros.compression.frames import split_frames
from anomseg_ros.compression.quantize_onnx import AUTO, NONE, TARGETS, QuantizeConfig, quantize
from anomseg_ros.core.bundle import GRAPH_FILE, Bundle, load_bundle, refuse_existing, save_bundle
from anomseg_ros.core.preprocess import tensor_from_frame
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.errors import CompressionError, ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Quantize, measure, and write the bundle if it is close enough to its parent; returns 0."""
    args = _parser().parse_args(argv)
    parent = load_bundle(find_bundle(args.bundle))
    _check(args, parent)
    bundle = quantize_bundle(args, parent)
    _print(bundle)
    return 0


def quantize_bundle(args: argparse.Namespace, parent: Bundle) -> Bundle:
    """Return the written bundle. Raises CompressionError if it is too far from its parent."""
    config, tolerance = _config(args), _tolerance(args)
    with ProgressLines() as lines, tempfile.TemporaryDirectory(prefix="anomseg-") as folder:
        frames = split_frames(
            args.frames,
            args.calibration_frames,
            args.held_out_frames,
            seed=args.seed,
            allow_few=args.allow_few,
            progress=lines,
        )
        tensors = [tensor_from_frame(frame, parent.contract.input) for frame in frames.calibration]
        made = quantize(onnx.load(parent.graph_path), tensors, config, lines)
        graph = Path(folder) / GRAPH_FILE
        onnx.save(made.model, graph)
        draft = save_bundle(replace(parent.contract, precision="int8"), {GRAPH_FILE: graph}, Path(folder) / "draft")
        drift = require(
            measure_drift(
                parent,
                draft,
                frames.held_out,
                args.dataset,
                tolerance,
                calibration_frames=len(frames.calibration),
                allow_partial=args.allow_partial,
                options=BackendOptions(threads=args.threads),
                progress=lines,
            ),
            args.accept_drift,
        )
        settings = {
            **asdict(config),
            "seed": args.seed,
            "calibration_frames": list(frames.calibration_names),
            "float_layers": list(made.float_layers),
            "noise_db": dict(made.noise_db),
        }
        method = (
            f"int8 static, QDQ, {args.target}, {args.calibration}, "
            f"{len(made.float_layers)} of {made.layers} layers in float"
        )
        contract = compressed_contract(parent, "int8", method, settings, drift)
        return save_bundle(contract, {GRAPH_FILE: graph}, args.output, overwrite=args.overwrite)


def _parser() -> argparse.ArgumentParser:
    defaults = QuantizeConfig()
    parser = options.parser(
        "quantize",
        "Turn a float bundle into an 8-bit one: calibrated on frames, compared with its parent on others, and written "
        "only if it is close enough.",
    )
    parser.add_argument("bundle", help="bundle directory or name of a shipped bundle")
    frames_help = "what the camera sees: folders of images, or datasets as NAME=PATH"
    parser.add_argument("--frames", nargs="+", required=True, metavar="FOLDER|NAME=PATH", help=frames_help)
    parser.add_argument("--output", type=Path, required=True, help="directory of the new bundle")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    parser.add_argument("--target", choices=TARGETS, default=defaults.target, help="who is to run it")
    parser.add_argument(
        "--calibration", choices=METHODS, default=defaults.calibration.method, help="how ranges are found"
    )
    percentile = Calibration().percentile
    parser.add_argument("--percentile", type=float, default=percentile, help="of the values in range, per cent")
    keep_help = "layers left in float: auto (found by measuring), none, or names; the classifier always is"
    parser.add_argument("--keep-float", default=defaults.keep_float, metavar="auto|none|NAME,…", help=keep_help)
    parser.add_argument("--no-equalize", action="store_true", help="leave the channels' ranges as they are")
    parser.add_argument("--no-compensate", action="store_true", help="round each weight to the nearest")
    parser.add_argument("--calibration-frames", type=int, default=16, help="frames to calibrate on, at most")
    parser.add_argument("--held-out-frames", type=int, default=16, help="other frames to measure on, at most")
    parser.add_argument("--allow-few", action="store_true", help="accept fewer frames than hold")
    parser.add_argument("--seed", type=int, default=0, help="which frames are drawn")
    _add_guard(parser)
    parser.add_argument("--threads", type=int, default=0, help="processor threads for measuring; 0 = one per core")
    return parser


def _add_guard(parser: argparse.ArgumentParser) -> None:
    """Add the options of the drift guard."""
    limits = Tolerance()
    guard = parser.add_argument_group("drift guard", "what the bundle may lose; beyond it nothing is written")
    guard.add_argument(
        "--dataset", nargs="+", action="extend", default=[], metavar="NAME=PATH", help="labelled frames to measure on"
    )
    guard.add_argument("--allow-partial", action="store_true", help="accept fewer or more frames than published")
    guard.add_argument("--label-agreement", type=float, default=limits.label_agreement, help="least share of labels")
    guard.add_argument("--rank-correlation", type=float, default=limits.rank_correlation, help="least, of each score")
    for measure, default in (
        ("auprc", limits.auprc_points),
        ("fpr95", limits.fpr95_points),
        ("miou", limits.miou_points),
    ):
        guard.add_argument(f"--max-{measure}", type=float, default=default, metavar="POINTS", help="most points worse")
    guard.add_argument("--accept-drift", action="store_true", help="write the bundle in spite of it")


def _check(args: argparse.Namespace, parent: Bundle) -> None:
    """Refuse what cannot work before anything is computed."""
    if parent.contract.precision == "int8" or parent.contract.compression.get("method", "").startswith("int8"):
        raise CompressionError(
            f"bundle {parent.contract.name!r} is {parent.contract.precision} already; quantize the float bundle it was "
            "made from"
        )
    if args.output.resolve() == parent.directory.resolve():
        raise ConfigError(f"--output {str(args.output)!r} is the bundle itself, which is never changed; name another")
    if not 50 < args.percentile <= 100:
        raise ConfigError(f"--percentile {args.percentile:g}: expected more than 50 and at most 100")
    for name in ("label_agreement", "rank_correlation"):
        if not 0 <= getattr(args, name) <= 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(args, name):g}: expected 0 to 1")
    refuse_existing(args.output, args.overwrite)


def _config(args: argparse.Namespace) -> QuantizeConfig:
    kept = args.keep_float
    return QuantizeConfig(
        target=args.target,
        calibration=Calibration(args.calibration, args.percentile, symmetric=args.target == "tensorrt"),
        equalize=not args.no_equalize,
        compensate=not args.no_compensate,
        keep_float=kept if kept in (AUTO, NONE) else options.names(kept),
        label_agreement=args.label_agreement,
    )


def _tolerance(args: argparse.Namespace) -> Tolerance:
    return Tolerance(args.label_agreement, args.rank_correlation, args.max_auprc, args.max_fpr95, args.max_miou)


def _print(bundle: Bundle) -> None:
    compression = bundle.contract.compression
    drift = compression["drift"]
    table = Table(title=f"{bundle.contract.name}: {compression['method']}", title_justify="left")
    for heading in ("measure", "float", "int8"):
        table.add_column(heading, justify="left" if heading == "measure" else "right")
    table.add_row("labels that agree", "", f"{100 * drift['label_agreement']:.2f} %")
    for name, score in drift["scores"].items():
        table.add_row(f"rank correlation of {name}", "", f"{score['rank_correlation']:.4f}")
    for dataset, measures in drift["datasets"].items():
        for measure, (before, after) in measures.items():
            table.add_row(f"{measure} on {dataset}", f"{100 * before:.2f} %", f"{100 * after:.2f} %")
    console = Console()
    console.print(table)
    dropped = [name for name in drift["alarms"] if name not in bundle.contract.thresholds]
    if dropped:
        console.print(
            f"thresholds of {', '.join(dropped)} moved and were left out: `anomseg calibrate threshold` finds new ones",
            soft_wrap=True,
        )
    console.print(f"written to {bundle.directory}", soft_wrap=True, highlight=False)
