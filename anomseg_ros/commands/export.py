"""`anomseg export`: export a checkpoint as a bundle and compare the two."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from rich.console import Console

from anomseg_ros.commands import options
from anomseg_ros.core.bundle import RESIZE_RULES, TARGETS
from anomseg_ros.core.class_table import LABEL_SET_HELP, find_label_set
from anomseg_ros.core.image_files import image_files
from anomseg_ros.export import ExportConfig, export_checkpoint
from anomseg_ros.networks import NETWORKS
from anomseg_ros.networks.argmax_form import ARGMAX_FORMS
from anomseg_ros.scores import SCORES, default_scores


def main(argv: list[str]) -> int:
    """Export the checkpoint and print the result of the comparison; return 0."""
    args = argument_parser().parse_args(argv)
    name = args.name or args.output.resolve().name
    height_px, width_px = args.size
    label_set, known = find_label_set(args.label_set)
    classes = {"label_set": label_set, "known_classes": known}
    given = {"name": name, "target": args.processor, "height_px": height_px, "width_px": width_px}
    config = options.request_of(ExportConfig, args, **given, **classes)
    console = Console(stderr=True)
    with console.status(f"exporting {args.network} at {width_px}x{height_px} and checking it"):
        bundle, parity = export_checkpoint(
            args.network,
            args.checkpoint,
            config,
            args.output,
            adapter=args.adapter,
            command=shlex.join(["anomseg", "export", *argv]),
            frames=options.read_frames(image_files(args.frames)) if args.frames else (),
            overwrite=args.overwrite,
        )
    console.print(
        f"{bundle.directory}: scores {', '.join(bundle.contract.score_names)}; on {parity.frames} frames the graph "
        f"differs from the torch network by at most {parity.max_score_difference:.2g} in a score and in "
        f"{parity.label_disagreement:.4%} of the labels (only where logits are nearly equal)",
        soft_wrap=True,
    )
    return 0


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of `anomseg export`."""
    defaults = ExportConfig("", 0)
    parser = options.parser(
        "export",
        "Export a checkpoint as a bundle: one graph from camera pixels to labels and scores.",
        {"--scores": "--score", "--target": "--processor"},
    )
    parser.add_argument("--network", required=True, choices=sorted(NETWORKS), help="network of the checkpoint")
    parser.add_argument("--checkpoint", required=True, type=Path, help=options.CHECKPOINT_FILE_HELP)
    adapter_help = "adapter of a run with LoRA, *.adapter.safetensors, for which --checkpoint is the base"
    parser.add_argument("--adapter", type=Path, help=adapter_help)
    parser.add_argument("--num-classes", required=True, type=int, help=options.NUM_CLASSES_HELP)
    parser.add_argument("--output", required=True, type=options.output_folder, help="directory of the bundle")
    parser.add_argument("--void-class", type=int, help=options.VOID_CLASS_HELP)
    parser.add_argument("--label-set", default=defaults.label_set, help=LABEL_SET_HELP)
    options.add_input_size(parser, (defaults.height_px, defaults.width_px))
    parser.add_argument("--resize", default=defaults.resize, choices=RESIZE_RULES, help="method for resizing frames")
    score_help = f"scores in the graph, the default score first, from {', '.join(SCORES)} "
    score_help += f"(default: {', '.join(default_scores(with_void=True))}; without a void class, those that need none)"
    parser.add_argument("--score", dest="scores", type=options.names, default=(), help=score_help)
    parser.add_argument("--temperature", type=options.number, default=defaults.temperature, help="T of softmax(z / T)")
    processor_help = "processor that the graph is written for"
    parser.add_argument("--processor", default=defaults.target, choices=TARGETS, help=processor_help)
    argmax_help = "form of the labels in the graph: ArgMax, or a chain of comparisons that gives the same labels"
    parser.add_argument("--argmax", default=defaults.argmax, choices=ARGMAX_FORMS, help=argmax_help)
    program_help = "also write model.pt2, the program that the backend torch runs, on a GPU as well"
    parser.add_argument("--torch-program", action="store_true", help=program_help)
    deform_help = "write deformable convolutions as ONNX's DeformConv, which TensorRT lacks, not as grid sampling"
    parser.add_argument("--deform-conv", action="store_true", help=deform_help)
    parser.add_argument("--name", help="name of the bundle (default: the name of --output)")
    parser.add_argument("--frames", type=Path, help="folder of frames for the comparison, besides random ones")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    return parser
