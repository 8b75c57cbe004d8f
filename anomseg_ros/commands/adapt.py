"""`anomseg adapt`: a better bundle for the road of an unlabelled drive."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from anomseg_ros.adaptation.float_bundles import require_float
from anomseg_ros.commands import options
from anomseg_ros.commands.calibrate_drive import add_drive_options, open_request_drive, percent
from anomseg_ros.commands.progress_lines import ProgressLines
from anomseg_ros.core.bundle import load_bundle
from anomseg_ros.core.resources import find_bundle, own_checkpoint
from anomseg_ros.core.road_region import NO_REGION, road_region
from anomseg_ros.datasets import open_named
from anomseg_ros.errors import CheckpointError
from anomseg_ros.evaluation.drive import MIN_ALARM_PX

if TYPE_CHECKING:  # torch takes seconds to import
    from anomseg_ros.adaptation.adapt import Adapted
    from anomseg_ros.adaptation.request import AdaptRequest
    from anomseg_ros.adaptation.self_training import Teacher
    from anomseg_ros.adaptation.work import Stage

NOT_BETTER = 3
"""Exit status where no stage made the bundle better; it is written with thresholds of the drive."""

ALL_STAGES, LEVELS = ("bn", "self", "all"), ("quick", "full")


def main(argv: Sequence[str] | None = None) -> int:
    """Adapt, print what each stage did on the frames held back; return 0, or 3 if no stage made the bundle better."""
    args = argument_parser().parse_args(argv)
    with ProgressLines() as lines:
        lines.tell("reading the bundle and the drive")
        request = _request(args, argv)
        if args.dry_run:
            lines.tell(_plan(request))
            return 0
        from anomseg_ros.adaptation.adapt import Reports, adapt

        reports = Reports(
            lines, lambda status: lines.training("self-training", status), lambda one: lines.tell(_said(one))
        )
        adapted = adapt(request, reports)
    _print(adapted, request)
    return 0 if adapted.is_better else NOT_BETTER


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of `anomseg adapt`."""
    parser = options.parser(
        "adapt",
        "Adapt a float bundle to the road of an unlabelled drive in which nothing is strange, and calibrate it there. "
        "A third of the drive is held back: a stage is kept only if it has fewer false alarms there at equal detection "
        "of pasted objects. The same command continues an interrupted call.",
    )
    parser.add_argument("bundle", help="float bundle: directory or name of a shipped bundle")
    frames_help = "the drive: folders of pictures, videos or bags, one after another"
    parser.add_argument(
        "--frames", nargs="+", action="extend", type=Path, required=True, metavar="PATH", help=frames_help
    )
    parser.add_argument("--output", type=options.output_folder, required=True, help="directory of the new bundle")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle and unfinished work")
    parser.add_argument("--checkpoint", type=Path, help=options.CHECKPOINT_HELP)
    stages_help = "bn: statistics of batch normalisation; self: self-training"
    parser.add_argument("--stages", choices=ALL_STAGES, default="all", help=stages_help)
    level_help = "quick: minutes; full: up to an hour on two cores, two rounds of self-training on more frames"
    parser.add_argument("--level", choices=LEVELS, default="quick", help=level_help)
    labels_help = "labelled frames of that road with the bundle's classes, if there are any; a third is held back"
    parser.add_argument("--labels", metavar="NAME=PATH", help=labels_help)
    teacher_help = "a larger network of the same classes: NETWORK=CHECKPOINT, or a bundle that has its checkpoint"
    parser.add_argument("--teacher", metavar="TEACHER", help=teacher_help)
    objects_help = "what is pasted: procedural, or folders of cut-out objects, whose part val judges"
    parser.add_argument("--objects", nargs="+", default=["procedural"], metavar="FOLDER", help=objects_help)
    fpr_help = "false-positive rate of the threshold at which bundles are compared"
    parser.add_argument("--target-fpr", type=options.number, default=0.01, metavar="RATE", help=fpr_help)
    parser.add_argument("--seed", type=int, default=0, help="seed of objects, samples and batches")
    parser.add_argument("--threads", type=int, default=0, help="processor threads; 0 = one per core")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    add_drive_options(parser.add_argument_group("the drive"))
    return parser


def _request(args: argparse.Namespace, argv: Sequence[str] | None) -> AdaptRequest:
    bundle = load_bundle(find_bundle(args.bundle))
    require_float(bundle.contract)
    road = road_region(args.road_region or NO_REGION, bundle.contract)
    labels = None if args.labels is None else open_named(args.labels)
    drive = open_request_drive(args)
    from anomseg_ros.adaptation.request import LEVELS as LEVEL_OF
    from anomseg_ros.adaptation.request import STAGES, AdaptRequest

    request = AdaptRequest(
        bundle,
        drive,
        args.output,
        args.checkpoint,
        STAGES if args.stages == "all" else (args.stages,),
        LEVEL_OF[args.level],
        labels,
        None if args.teacher is None else _teacher(args.teacher, len(bundle.contract.classes)),
        tuple(args.objects),
        road,
        args.target_fpr,
        MIN_ALARM_PX if args.min_alarm_px is None else args.min_alarm_px,
        args.seed,
        args.threads,
        args.overwrite,
        None if argv is None else shlex.join(["anomseg", "adapt", *argv]),
    )
    request.check()
    return request


def _teacher(text: str, outputs: int) -> Teacher:
    """Return the teacher of NETWORK=CHECKPOINT or a bundle. Raises the package's errors."""
    from anomseg_ros.adaptation.self_training import Teacher

    network, equals, path = text.partition("=")
    if equals:
        return find_teacher(network, Path(path).expanduser(), outputs)
    bundle = load_bundle(find_bundle(text))
    checkpoint = own_checkpoint(bundle)
    if checkpoint is None:
        raise CheckpointError(
            f"bundle {bundle.contract.name!r} has no checkpoint with it; give the teacher as NETWORK=CHECKPOINT"
        )
    return Teacher(bundle.contract.network, checkpoint, len(bundle.contract.classes))


def find_teacher(network: str, checkpoint: Path, outputs: int) -> Teacher:
    """Return the teacher of a file with as many outputs as given, or one more or less. Raises CheckpointError."""
    from anomseg_ros.adaptation.self_training import Teacher

    first: CheckpointError | None = None
    for count in (outputs, outputs - 1, outputs + 1):
        try:
            Teacher(network, checkpoint, count).load()
        except CheckpointError as error:
            first = first or error
        else:
            return Teacher(network, checkpoint, count)
    raise CheckpointError(f"{first}. A teacher has the bundle's classes, with or without a void class") from first


def _plan(request: AdaptRequest) -> str:
    split = request.split
    level, trained = request.level, min(len(split.adapted), request.level.frames)
    stages = {
        "bn": f"bn: {level.norms.steps} batches of {level.norms.batch_size} frames",
        "self": f"self: {level.rounds} x {level.training.steps} steps on {trained} frames",
    }
    return (
        f"{request.bundle.contract.name} would be adapted on {len(split.adapted)} frames, with thresholds of "
        f"{len(split.thresholds)} others, and judged on {len(split.held_back)} held back; "
        f"{'; '.join(stages[one] for one in request.stages)}; output {request.output}"
    )


def _alarms(stage: Stage) -> str:
    figures = stage.figures
    rate = figures.alarms_per_minute
    return f"{figures.alarms} in {figures.frames} frames" if rate is None else f"{rate:.1f}"


def _said(stage: Stage) -> str:
    figures = stage.figures
    verdict = "" if stage.name == "given" else ", kept" if stage.kept else ", not kept"
    return (
        f"{stage.name}: {figures.alarms} alarms and {percent(figures.pixel_rate)} of the pixels at "
        f"{figures.detected} of {figures.objects} objects detected{verdict}"
    )


def _print(adapted: Adapted, request: AdaptRequest) -> None:
    given = adapted.stages[0].figures
    timed = given.alarms_per_minute is not None
    title = (
        f"{request.output.name}: {given.frames} frames held back, thresholds at which {given.detected} of "
        f"{given.objects} pasted objects are detected"
    )
    table = Table(title=title, title_justify="left")
    labelled = any(stage.miou is not None for stage in adapted.stages)
    headings = ["stage", "alarms a minute" if timed else "alarms", "pixels above", "threshold", "same classes"]
    for heading in [*headings, *(["mIoU"] if labelled else []), "FPR held back", "of target", "kept"]:
        table.add_column(heading, justify="left" if heading in ("stage", "kept") else "right")
    for stage in adapted.stages:
        table.add_row(
            stage.name,
            _alarms(stage),
            percent(stage.figures.pixel_rate),
            f"{stage.figures.threshold:.6g}",
            f"{100 * stage.agreement:.1f} %",
            *([f"{100 * (stage.miou or 0):.1f} %"] if labelled else []),
            percent(stage.held_back_fpr),
            f"{stage.held_back_fpr / request.target_fpr:.2f} x",
            "yes" if stage.kept else "no",
        )
    options.print_whole(table)
    console = Console()
    if adapted.is_better:
        text = f"{request.output} holds stage {adapted.chosen}; adapted.jpg in it shows frames before and after"
    else:
        text = f"no stage made it better: {request.output} holds the given bundle with thresholds of the drive"
    console.print(text, soft_wrap=True, highlight=False, markup=False)
