"""`anomseg quantize`: an 8-bit bundle of a float one, and what that cost, measured before it is written."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx
from rich.table import Table

from anomseg_ros.backends import BACKENDS
from anomseg_ros.backends.options import BackendOptions
from anomseg_ros.commands import options
from anomseg_ros.commands.drift_options import add_guard, drift_rows, print_outcome, tolerance
from anomseg_ros.commands.evaluate import ProgressLines
from anomseg_ros.compression.calibration import METHODS, Calibration, Progress
from anomseg_ros.compression.drift import Tolerance, compressed_contract, measure_drift, require, with_original
from anomseg_ros.compression.frames import split_frames
from anomseg_ros.compression.quantize_onnx import AUTO, NONE, TARGETS, QuantizeConfig, quantize
from anomseg_ros.core.bundle import GRAPH_FILE, Bundle, Contract, Provenance, check_target, load_bundle, save_bundle
from anomseg_ros.core.preprocess import tensor_from_frame
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import CompressionError, ConfigError


def main(argv: Sequence[str] | None = None, original: Bundle | None = None) -> int:
    """Quantize, measure, and write the bundle if it is close enough to its parent; returns 0.

    original: what a step before made the parent from; the drift from it is kept, too.
    """
    args = _parser().parse_args(argv)
    parent = load_bundle(find_bundle(args.bundle))
    _check(args, parent)
    bundle = quantize_bundle(args, parent, original)
    _print(bundle)
    return 0


def quantize_bundle(args: argparse.Namespace, parent: Bundle, original: Bundle | None = None) -> Bundle:
    """Return the written bundle. Raises CompressionError if it is too far from its parent."""
    with ProgressLines() as lines, tempfile.TemporaryDirectory(prefix="anomseg-") as folder:
        frames = split_frames(
            args.frames,
            args.calibration_frames,
            args.held_out_frames,
            seed=args.seed,
            allow_few=args.allow_few,
            measured=args.dataset,
            progress=lines,
        )
        tensors = [tensor_from_frame(frame, parent.contract.input) for frame in frames.calibration]
        made = _made(args, parent, tensors, Path(folder), lines)

        def guarded(quantized: Bundle) -> Contract:
            drift_from = partial(
                measure_drift,
                child=quantized,
                frames=frames.held_out,
                tolerance=tolerance(args),
                calibration_frames=len(frames.calibration),
                child_backend=args.backend,
                allow_partial=args.allow_partial,
                options=BackendOptions(threads=args.threads),
                child_options=BackendOptions(threads=args.threads, provider="eager" if args.no_compile else "cpu"),
                progress=lines,
            )
            drift = require(drift_from(parent, datasets=args.dataset), args.accept_drift)
            settings = {**made.settings, "seed": args.seed, "calibration_frames": list(frames.calibration_names)}
            contract = compressed_contract(parent, "int8", made.method, settings, drift)
            contract = replace(contract, provenance=made.provenance)
            return contract if original is None else with_original(contract, original, drift_from(original))

        planned = replace(parent.contract, precision="int8")
        return save_bundle(planned, made.files, args.output, overwrite=args.overwrite, finish=guarded)


@dataclass(frozen=True)
class _Made:
    """The files of the new bundle, what was done in one line and in full, and where the weights are from."""

    files: Mapping[str, Path]
    method: str
    settings: Mapping[str, Any]
    provenance: Provenance


def _made(
    args: argparse.Namespace, parent: Bundle, tensors: Sequence[RgbImage], folder: Path, progress: Progress
) -> _Made:
    """Fine-tune where that was asked for, and quantize for the backend that was."""
    if not _needs_checkpoint(args):
        path, method, settings = _onnx_made(args, parent.require_program(GRAPH_FILE), tensors, folder, progress)
        return _Made({GRAPH_FILE: path}, method, settings, parent.contract.provenance)
    from anomseg_ros.commands import quantize_checkpoint as of_checkpoint  # torch takes seconds to import

    files, provenance = {}, parent.contract.provenance
    network, tuning = of_checkpoint.fine_tuned(args, parent, tensors, progress)
    if tuning:
        weights, provenance = of_checkpoint.write_checkpoint(network, parent, tuning, folder)
        files[weights.name] = weights
    if args.backend == "torch":
        path, method, settings = of_checkpoint.write_program(args, network, parent.contract, tensors, folder, progress)
    else:
        graph = of_checkpoint.export_float_graph(network, parent.contract, provenance, folder)
        path, method, settings = _onnx_made(args, graph, tensors, folder, progress)
    if tuning:
        method += f", fine-tuned {args.fine_tune} steps"
    return _Made({path.name: path, **files}, method, {**settings, **tuning}, provenance)


def _onnx_made(
    args: argparse.Namespace, graph: Path, tensors: Sequence[RgbImage], folder: Path, progress: Progress
) -> tuple[Path, str, dict[str, Any]]:
    """Quantize a float ONNX graph; return the new graph's file, the method in words and its settings."""
    config = _config(args)
    made = quantize(onnx.load(graph), tensors, config, progress)
    path = folder / GRAPH_FILE
    onnx.save(made.model, path)
    layers = f"{len(made.float_layers)} of {made.layers} layers in float"
    settings = {**asdict(config), "float_layers": list(made.float_layers), "noise_db": dict(made.noise_db)}
    return path, f"int8 static, QDQ, {args.target}, {args.calibration}, {layers}", settings


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
    parser.add_argument("--backend", choices=tuple(BACKENDS), default="onnxruntime", help="engine to quantize for")
    _add_checkpoint(parser)
    parser.add_argument("--target", choices=TARGETS, default=defaults.target, help="who is to run it")
    parser.add_argument(
        "--calibration",
        choices=METHODS,
        default=defaults.calibration.method,
        help="how ranges are found; torch knows error and minmax",
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
    add_guard(parser, Tolerance(), "what the bundle may lose; beyond it nothing is written")
    parser.add_argument("--threads", type=int, default=0, help="processor threads for measuring; 0 = one per core")
    return parser


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add the options of what is done to the weights in torch."""
    group = parser.add_argument_group("with the checkpoint", "what takes the weights, not the graph alone")
    group.add_argument("--checkpoint", type=Path, help="weights that the bundle was exported from")
    steps_help = "steps of quantization-aware fine-tuning on the calibration frames; 0 = none"
    group.add_argument("--fine-tune", type=int, default=0, metavar="STEPS", help=steps_help)
    group.add_argument("--learning-rate", type=float, default=3e-5, help="of fine-tuning")
    group.add_argument("--torch-method", choices=("pt2e", "fx"), default="pt2e", help="of --backend torch")
    group.add_argument("--no-compile", action="store_true", help="measure --backend torch without compiling: slower")


def _needs_checkpoint(args: argparse.Namespace) -> bool:
    return bool(args.backend == "torch" or args.fine_tune)


def _check(args: argparse.Namespace, parent: Bundle) -> None:
    """Refuse what cannot work before anything is computed."""
    require_float(parent)
    if args.output.resolve() == parent.directory.resolve():
        raise ConfigError(f"--output {str(args.output)!r} is the bundle itself, which is never changed; name another")
    if not 50 < args.percentile <= 100:
        raise ConfigError(f"--percentile {args.percentile:g}: expected more than 50 and at most 100")
    tolerance(args)
    check_target(args.output, args.overwrite)
    for_torch = args.no_compile or args.torch_method != "pt2e"
    if args.backend != "torch" and for_torch:
        raise ConfigError("--no-compile and --torch-method are for --backend torch")
    if _needs_checkpoint(args):
        from anomseg_ros.commands.quantize_checkpoint import check_options

        check_options(args, parent)


def require_float(parent: Bundle) -> None:
    """Raise CompressionError for a bundle that is quantized."""
    if parent.contract.precision == "int8":
        raise CompressionError(
            f"bundle {parent.contract.name!r} is {parent.contract.precision} already; quantize the float bundle it was "
            "made from"
        )


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


def _print(bundle: Bundle) -> None:
    compression = bundle.contract.compression
    table = Table(title=f"{bundle.contract.name}: {compression['method']}", title_justify="left")
    for heading in ("measure", "float", "int8"):
        table.add_column(heading, justify="left" if heading == "measure" else "right")
    for row in drift_rows(compression["drift"]):
        table.add_row(*row)
    print_outcome(bundle, table)
