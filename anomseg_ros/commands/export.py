"""`anomseg export`: a checkpoint to a bundle, with its parity check."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from rich.console import Console

from anomseg_ros.commands import options
from anomseg_ros.core.bundle import RESIZE_RULES
from anomseg_ros.core.image_files import image_files
from anomseg_ros.core.labels import LABEL_SETS
from anomseg_ros.core.scores import DEFAULT_SCORES, SCORE_NAMES
from anomseg_ros.export import ExportConfig, export_checkpoint
from anomseg_ros.networks import NETWORKS


def main(argv: list[str]) -> int:
    """Parse the arguments and export."""
    args = _parser().parse_args(argv)

    config = ExportConfig(
        name=args.name or args.output.resolve().name,
        num_classes=args.num_classes,
        void_class=args.void_class,
        label_set=args.label_set,
        height_px=args.height,
        width_px=args.width,
        resize=args.resize,
        scores=args.scores,
        temperature=args.temperature,
    )
    console = Console(stderr=True)
    with console.status(f"exporting {args.network} at {args.width}x{args.height} and checking it"):
        bundle, parity = export_checkpoint(
            args.network,
            args.checkpoint,
            config,
            args.output,
            command=shlex.join(["anomseg", "export", *argv]),
            frames=options.read_frames(image_files(args.frames)) if args.frames else (),
            overwrite=args.overwrite,
        )
    console.print(
        f"{bundle.directory}: scores {', '.join(bundle.contract.score_names)}; on {parity.frames} frames the graph "
        f"differs from the torch network by at most {parity.max_score_difference:.2g} in a score and in "
        f"{parity.label_disagreement:.4%} of labels (near ties only)",
        soft_wrap=True,
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    defaults = ExportConfig("", 0)
    parser = options.parser(
        "export", "Turn a checkpoint into a bundle: one graph from camera pixels to labels and scores."
    )
    parser.add_argument("--network", required=True, choices=sorted(NETWORKS), help="the checkpoint's network")
    parser.add_argument("--checkpoint", required=True, type=Path, help=".pth, .pt, .tar or .safetensors file")
    parser.add_argument(
        "--num-classes", required=True, type=int, help="outputs of the network, the void class included"
    )
    parser.add_argument("--output", required=True, type=Path, help="directory of the bundle to write")
    parser.add_argument("--void-class", type=int, help="index of the output that means anomaly, for void classifiers")
    parser.add_argument("--label-set", default=defaults.label_set, choices=sorted(LABEL_SETS), help="the known classes")
    parser.add_argument("--height", type=int, default=defaults.height_px, help="input height, pixels")
    parser.add_argument("--width", type=int, default=defaults.width_px, help="input width, pixels")
    parser.add_argument(
        "--resize", default=defaults.resize, choices=RESIZE_RULES, help="how frames are brought to that size"
    )
    score_help = f"scores in the graph, the default one first, of {', '.join(SCORE_NAMES)} "
    score_help += f"(default: {', '.join(DEFAULT_SCORES)}, behind void where there is a void class)"
    parser.add_argument("--scores", type=options.names, default=(), help=score_help)
    parser.add_argument("--temperature", type=float, default=defaults.temperature, help="T of softmax(z / T)")
    parser.add_argument("--name", help="name of the bundle (default: that of --output)")
    parser.add_argument("--frames", type=Path, help="folder of real frames to check parity on, besides random ones")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    return parser
