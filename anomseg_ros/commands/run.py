"""`anomseg run`: write labels, scores and overlays of images, folders and videos as files."""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from anomseg_ros.backends import open_detector
from anomseg_ros.commands import options
from anomseg_ros.commands.progress_lines import ProgressLines
from anomseg_ros.core.delivered import deviations
from anomseg_ros.core.detector import Detector
from anomseg_ros.core.frames import FrameSource
from anomseg_ros.core.labels import palette
from anomseg_ros.core.output_files import make_output_folder, write_file, write_image
from anomseg_ros.core.overlay import anomaly_mask, overlay
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.core.road_region import NO_REGION, limited_scores, road_region
from anomseg_ros.core.staging import remove_leftovers
from anomseg_ros.core.types import Outputs, RgbImage
from anomseg_ros.errors import AnomsegError
from anomseg_ros.scores import find_score, threshold_of


def _parser() -> argparse.ArgumentParser:
    parser = options.parser(
        "run", "Detect anomalies: write NAME_labels.png, NAME_<score>.npy (float32) and NAME_overlay.png of each frame."
    )
    parser.add_argument("bundle", help="bundle directory or name of a shipped bundle")
    parser.add_argument("inputs", nargs="+", type=Path, help="images, folders of images, videos")
    parser.add_argument("--output", type=options.output_folder, required=True, help="folder for the results")
    parser.add_argument(
        "--scores", type=options.names, default=(), help="scores to write, comma separated (default: all)"
    )
    parser.add_argument(
        "--target-fpr",
        type=options.fraction,
        default=0.01,
        help="false-positive rate that selects the mask's threshold",
    )
    parser.add_argument(
        "--threshold", type=options.number, help="score threshold of the mask (default: the bundle's for --target-fpr)"
    )
    road_help = "limit anomalies, in overlays and scores, to the road (and sidewalk) and objects on it, if it is found"
    options.add_road_region(parser, road_help)
    parser.add_argument("--source-size", action="store_true", help="outputs at the frame's size, not the network's")
    parser.add_argument("--no-overlay", action="store_true", help="write no overlays")
    options.add_backend_options(parser)
    return parser


def main(argv: list[str]) -> int:
    """Run the detector on every frame and write its outputs; return 0 if all frames were written, else 1."""
    args = _parser().parse_args(argv)
    detector = open_detector(find_bundle(args.bundle), args.backend, options.backend_options(args))
    failures: list[AnomsegError] = []
    source = FrameSource(args.inputs, failures.append)
    scores = tuple(map(detector.bundle.check_score, args.scores)) or detector.bundle.contract.score_names
    threshold = mask_threshold(detector, scores[0], args.threshold, args.target_fpr)
    road = road_region(args.road_region or NO_REGION, detector.bundle.contract)
    make_output_folder(args.output)
    remove_leftovers(args.output, ".")
    written = without_road = 0
    with ProgressLines() as progress:
        task = progress.bars.add_task(detector.bundle.contract.name, total=source.count)
        for name, frame in source:
            try:
                outputs = detector.detect(frame, scores, source_size=args.source_size, road=road)
                write_outputs(args.output, name, frame, outputs, detector, scores[0], threshold, not args.no_overlay)
                written += 1
                without_road += road is not None and outputs.region is None
            except AnomsegError as error:
                failures.append(error)
            progress.bars.advance(task)
    warnings = list(deviations(source.differences))
    if without_road:
        warnings.append(f"no road was found in {without_road} of {written} frames; alarms in them are not limited")
    _print_messages(warnings, failures)
    summary = f"{written} frames written to {args.output}, {len(failures)} failed; backend {detector.backend.actual}"
    Console(stderr=True).print(summary, soft_wrap=True)
    return 1 if failures or not written else 0


def _print_messages(warnings: Sequence[str], failures: Sequence[AnomsegError]) -> None:
    console = Console(stderr=True)
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow", soft_wrap=True, markup=False, highlight=False)
    for failure in failures:
        console.print(f"failed: {failure}", style="red", soft_wrap=True, markup=False)


def mask_threshold(detector: Detector, score: str, threshold: float | None, target_fpr: float) -> float | None:
    """Return the threshold of the mask, or None if the bundle has none for this score.

    Args:
        detector: the detector with its bundle.
        score: score of the mask.
        threshold: the user's threshold; None: that of the bundle.
        target_fpr: false-positive rate that selects a threshold of the bundle.
    """
    if threshold is not None:
        return threshold
    bundle_threshold = threshold_of(detector.bundle, score, target_fpr)
    return None if bundle_threshold is None else bundle_threshold.value


def write_outputs(
    folder: Path,
    name: str,
    frame: RgbImage,
    outputs: Outputs,
    detector: Detector,
    score: str,
    threshold: float | None,
    with_overlay: bool,
) -> None:
    """Write the files of one frame.

    If the outputs have a road region, scores outside it are set to their lowest value, and the overlay marks no pixels
    there.

    Args:
        folder: folder of the files.
        name: prefix of the file names.
        frame: uint8 (H, W, 3) RGB.
        outputs: labels and scores of the frame.
        detector: the detector that computed them.
        score: the score of the mask.
        threshold: score above which the overlay marks a pixel; None: it marks none.
        with_overlay: whether to write the overlay.

    Raises:
        OutputError: a file cannot be written.
    """
    assert outputs.labels is not None
    write_image(folder / f"{name}_labels.png", outputs.labels)
    for score_name, values in outputs.scores.items():
        buffer = io.BytesIO()
        np.save(buffer, limited_scores(values, outputs.region, find_score(score_name).lowest))
        write_file(folder / f"{name}_{score_name}.npy", buffer.getvalue())
    if with_overlay:
        mask = None
        if threshold is not None:
            mask = anomaly_mask(limited_scores(outputs.scores[score], outputs.region, -np.inf), threshold)
        picture = overlay(frame, outputs.labels, mask, palette(detector.bundle.contract.classes))
        write_image(folder / f"{name}_overlay.png", picture)
