"""`anomseg quantize`: quantize a float bundle to 8 bits; the loss is measured before the bundle is written."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from anomseg_ros.backends import BACKENDS
from anomseg_ros.commands import options
from anomseg_ros.commands.drift_options import ALLOW_FEW_HELP, add_guard, guard_of, print_compressed, refusal_shown
from anomseg_ros.commands.progress_lines import ProgressLines
from anomseg_ros.compression.drift import Tolerance
from anomseg_ros.compression.quantize import QuantizeRequest, quantize_bundle
from anomseg_ros.compression.quantize_onnx import TARGETS, WEIGHT_BITS, QuantizeConfig, default_ranges
from anomseg_ros.compression.ranges import METHODS, RangeConfig
from anomseg_ros.compression.sensitivity import AUTO, NONE
from anomseg_ros.core.bundle import load_bundle
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.errors import ConfigError

if TYPE_CHECKING:
    from anomseg_ros.compression.quantize_torch import TorchQuantizeConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Quantize, measure, and write the bundle if it is close enough to its parent; return 0."""
    request = _request(argument_parser().parse_args(argv))
    with refusal_shown("float", "int8"), ProgressLines() as lines:
        bundle = quantize_bundle(request, lines)
    print_compressed(bundle, "float", "int8")
    return 0


def _request(args: argparse.Namespace) -> QuantizeRequest:
    if args.fine_tune_steps < 0:
        raise ConfigError(f"--fine-tune-steps {args.fine_tune_steps}: expected a number of steps, 0 for none")
    fine_tune = None
    if args.fine_tune_steps:
        from anomseg_ros.compression.qat import FineTuneConfig  # torch takes seconds to import

        fine_tune = FineTuneConfig(steps=args.fine_tune_steps, learning_rate=args.learning_rate, seed=args.seed)
    return options.request_of(
        QuantizeRequest,
        args,
        bundle=load_bundle(find_bundle(args.bundle)),
        config=_torch_config(args) if args.backend == "torch" else _onnx_config(args),
        provider="eager" if args.no_compile else "cpu",
        fine_tune=fine_tune,
        guard=guard_of(args),
    )


def _onnx_config(args: argparse.Namespace) -> QuantizeConfig:
    if args.no_compile or args.torch_method != "pt2e":
        raise ConfigError("--no-compile and --torch-method are for --backend torch")
    float_layers = args.keep_float
    return QuantizeConfig(
        target=args.target,
        ranges=RangeConfig(
            args.calibration or default_ranges(args.target), args.percentile, symmetric=args.target == "tensorrt"
        ),
        equalize=not args.no_equalize,
        compensate=not args.no_compensate,
        keep_float=float_layers if float_layers in (AUTO, NONE) else options.names(float_layers),
        label_agreement=args.label_agreement,
        rank_correlation=args.rank_correlation,
        weight_bits=args.weight_bits,
    )


def _torch_config(args: argparse.Namespace) -> TorchQuantizeConfig:
    from anomseg_ros.compression.quantize_torch import RANGE_METHODS, TorchQuantizeConfig

    defaults = QuantizeConfig()
    calibration = args.calibration or default_ranges(defaults.target)
    is_unsupported = {
        "--target": args.target != defaults.target,
        "--weight-bits": args.weight_bits is not None,
        "--percentile": args.percentile != defaults.ranges.percentile,
        "--no-equalize": args.no_equalize,
        "--no-compensate": args.no_compensate,
        f"--calibration {args.calibration}": calibration not in RANGE_METHODS,
    }
    unsupported = [option for option, value in is_unsupported.items() if value]
    if unsupported:
        raise ConfigError(f"{', '.join(unsupported)}: only for --backend onnxruntime; omit it for torch")
    float_layers = () if args.keep_float in (AUTO, NONE) else options.names(args.keep_float)
    return TorchQuantizeConfig(args.torch_method, calibration, float_layers)


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of `anomseg quantize`."""
    defaults = QuantizeConfig()
    parser = options.parser(
        "quantize",
        "Quantize a float bundle to 8 bits. The new bundle is calibrated on some frames, compared with its parent on "
        "other frames, and written only if it is close enough.",
        {"--fine-tune": "--fine-tune-steps"},
    )
    parser.add_argument("bundle", help="bundle directory or name of a shipped bundle")
    frames_help = "camera frames: folders of images, videos, bags, or datasets as NAME=PATH"
    parser.add_argument("--frames", nargs="+", required=True, metavar="PATH|NAME=PATH", help=frames_help)
    parser.add_argument("--output", type=options.output_folder, required=True, help="directory of the new bundle")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    parser.add_argument("--backend", choices=tuple(BACKENDS), default="onnxruntime", help="engine to quantize for")
    _add_checkpoint_options(parser)
    parser.add_argument("--target", choices=TARGETS, default=defaults.target, help="engine family that runs the bundle")
    by_target = ", ".join(f"{default_ranges(target)} for {target}" for target in TARGETS)
    calibration_help = f"method to determine ranges of values; torch supports error and minmax (default: {by_target})"
    parser.add_argument("--calibration", choices=METHODS, help=calibration_help)
    percentile_help = "for --calibration percentile: percentage of the values in the range"
    parser.add_argument("--percentile", type=options.number, default=defaults.ranges.percentile, help=percentile_help)
    bits_help = "of integer weights; 8 are exact and fast only on processors with VNNI (default: 7, for tensorrt 8)"
    parser.add_argument("--weight-bits", type=int, choices=WEIGHT_BITS, help=bits_help)
    keep_help = "layers that stay in float besides the classifier: auto (selected by measurement), none, or names"
    parser.add_argument("--keep-float", default=defaults.keep_float, metavar="auto|none|NAME,…", help=keep_help)
    parser.add_argument("--no-equalize", action="store_true", help="do not scale channels to similar ranges")
    parser.add_argument("--no-compensate", action="store_true", help="round each weight to the nearest value")
    calibration_frames_help = "largest number of frames to calibrate on"
    parser.add_argument("--calibration-frames", type=int, default=16, help=calibration_frames_help)
    parser.add_argument("--held-out-frames", type=int, default=16, help="largest number of other frames to measure on")
    parser.add_argument("--allow-few", action="store_true", help=ALLOW_FEW_HELP)
    parser.add_argument("--seed", type=int, default=0, help="seed for the selection of frames")
    add_guard(
        parser, Tolerance(), "Limits for the loss relative to the parent; if one is exceeded, nothing is written."
    )
    parser.add_argument("--threads", type=int, default=0, help="processor threads for measuring; 0 = one per core")
    return parser


def _add_checkpoint_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("with the checkpoint", "options that need the weights")
    group.add_argument("--checkpoint", type=Path, help="file that the bundle was exported from")
    steps_help = "steps of quantization-aware fine-tuning on the calibration frames; 0 = none"
    group.add_argument("--fine-tune-steps", type=int, default=0, metavar="STEPS", help=steps_help)
    group.add_argument("--learning-rate", type=options.number, default=3e-5, help="learning rate of fine-tuning")
    method_help = "quantization method of --backend torch"
    group.add_argument("--torch-method", choices=("pt2e", "fx"), default="pt2e", help=method_help)
    compile_help = "measure --backend torch without compilation, which is slower"
    group.add_argument("--no-compile", action="store_true", help=compile_help)
