"""`anomseg convert`: make a bundle for engines on GPUs of a float one, in half precision or float32."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from anomseg_ros.commands import options
from anomseg_ros.commands.drift_options import add_guard, guard_of, print_compressed, refusal_shown
from anomseg_ros.commands.graph_form import tell_cpu_form
from anomseg_ros.commands.progress_lines import ProgressLines
from anomseg_ros.commands.prune import FRAMES_HELP
from anomseg_ros.compression.drift import TOLERANCES
from anomseg_ros.compression.half_bundle import FP32, PRECISIONS, HalfRequest, convert_bundle
from anomseg_ros.compression.sensitivity import AUTO, NONE
from anomseg_ros.core.bundle import load_bundle
from anomseg_ros.core.resources import find_bundle

GUARD_TEXT = "What the bundle may lose against its parent; beyond it nothing is written."


def main(argv: Sequence[str]) -> int:
    """Convert, measure, and write the bundle if it is close enough to its parent; returns 0."""
    args = argument_parser().parse_args(argv)
    request = options.request_of(
        HalfRequest,
        args,
        bundle=load_bundle(find_bundle(args.bundle)),
        keep_float=args.keep_float if args.keep_float in (AUTO, NONE) else options.names(args.keep_float),
        frames=tuple(args.frames),
        guard=guard_of(args, TOLERANCES[args.precision]),
    )
    if request.source is None:
        tell_cpu_form(request.bundle)
    with refusal_shown("float", args.precision), ProgressLines() as lines:
        bundle = convert_bundle(request, lines)
    if args.precision == FP32:
        Console(stderr=True).print(f"written to {bundle.directory}, in the form for GPUs", soft_wrap=True)
    else:
        print_compressed(bundle, "float", args.precision)
    return 0


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of `anomseg convert`."""
    parser = options.parser(
        "convert",
        "Turn a float bundle into one for engines on GPUs: in half precision, with the types in its graph, or in "
        "float32. A graph in the form for CPUs is exported in the form for GPUs first, from its checkpoint.",
    )
    parser.add_argument("bundle", help="float bundle: directory, or name of a shipped one")
    precision_help = "type of the numbers; with fp32 only the form of the graph changes, and nothing is measured"
    parser.add_argument("--precision", choices=PRECISIONS, default="fp16", help=precision_help)
    checkpoint_help = "checkpoint of a bundle in the form for CPUs (default: the bundle's own, if it has one)"
    parser.add_argument("--checkpoint", type=Path, help=checkpoint_help)
    frames_help = f"{FRAMES_HELP}; needed for half precision"
    parser.add_argument("--frames", nargs="+", default=[], metavar="PATH|NAME=PATH", help=frames_help)
    keep_help = "layers that stay in float32: auto (as many as the tolerance needs, at most a quarter), none, or names"
    parser.add_argument("--keep-float", default=AUTO, metavar="auto|none|NAME,…", help=keep_help)
    parser.add_argument("--output", type=options.output_folder, required=True, help="directory of the new bundle")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    parser.add_argument("--held-out-frames", type=int, default=16, help="frames to measure on, at most")
    parser.add_argument("--seed", type=int, default=0, help="which frames are drawn")
    parser.add_argument("--threads", type=int, default=0, help="processor threads for measuring; 0 = one per core")
    add_guard(parser, None, GUARD_TEXT)
    return parser
