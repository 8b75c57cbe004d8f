"""`anomseg run`: labels, scores and overlays of images, folders and videos, as files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from rich.console import Console

from anomseg_ros.backends import open_detector
from anomseg_ros.commands import options
from anomseg_ros.core.detector import Detector
from anomseg_ros.core.frames import FrameSource
from anomseg_ros.core.labels import palette
from anomseg_ros.core.overlay import anomaly_mask, lowest_score, overlay
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.core.road_region import NO_REGION, limited_scores, road_region
from anomseg_ros.core.types import Outputs, RgbImage
from anomseg_ros.errors import AnomsegError


def main(argv: list[str]) -> int:
    """Parse the arguments and run the detector over every frame."""
    parser = options.parser(
        "run", "Write NAME_labels.png, NAME_<score>.npy (float32) and NAME_overlay.png for every frame."
    )
    parser.add_argument("bundle", help="bundle directory or name of a shipped bundle")
    parser.add_argument("inputs", nargs="+", type=Path, help="images, folders of images, videos")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument(
        "--scores", type=options.names, default=(), help="scores to write, comma separated (default: all)"
    )
    parser.add_argument(
        "--target-fpr", type=float, default=0.01, help="false-positive rate that picks the mask's threshold"
    )
    parser.add_argument(
        "--threshold", type=float, help="score threshold of the mask (default: the bundle's for --target-fpr)"
    )
    options.add_road_region(
        parser, "limit alarms (overlay and scores) to the road (and sidewalk) and what stands there, where it is found"
    )
    parser.add_argument("--source-size", action="store_true", help="outputs at the frame's size, not the network's")
    parser.add_argument("--no-overlay", action="store_true", help="leave the overlays out")
    options.add_backend_options(parser)
    args = parser.parse_args(argv)

    detector = open_detector(find_bundle(args.bundle), args.backend, options.backend_options(args))
    failures: list[AnomsegError] = []
    source = FrameSource(args.inputs, failures.append)
    scores = tuple(map(detector.bundle.check_score, args.scores)) or detector.bundle.contract.score_names
    threshold = mask_threshold(detector, scores[0], args.threshold, args.target_fpr)
    road = road_region(args.road_region or NO_REGION, detector.bundle.contract)
    args.output.mkdir(parents=True, exist_ok=True)
    written = roadless = 0
    console = Console(stderr=True)
    with options.progress_bar() as progress:
        task = progress.add_task(detector.bundle.contract.name, total=source.count)
        for name, frame in source:
            try:
                outputs = detector.detect(frame, scores, source_size=args.source_size, road=road)
                write_outputs(args.output, name, frame, outputs, detector, scores[0], threshold, not args.no_overlay)
                written += 1
                roadless += road is not None and outputs.region is None
            except AnomsegError as error:
                failures.append(error)
            progress.advance(task)
    for failure in failures:
        console.print(f"failed: {failure}", style="red", soft_wrap=True, markup=False)
    if roadless:
        told = f"no road was found in {roadless} of {written} frames: there, alarms are everywhere"
        console.print(f"warning: {told}", style="yellow", soft_wrap=True, markup=False)
    summary = f"{written} frames written to {args.output}, {len(failures)} failed; backend {detector.backend.actual}"
    console.print(summary, soft_wrap=True)
    return 1 if failures or not written else 0


def mask_threshold(detector: Detector, score: str, given: float | None, target_fpr: float) -> float | None:
    """Return the threshold that was given, or the bundle's; None if the bundle has none for this score."""
    if given is not None:
        return given
    found = detector.bundle.threshold(score, target_fpr)
    return None if found is None else found.value


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
    """Write one frame's files; the overlay marks pixels whose `score` is above the threshold.

    Where the outputs have a region, scores outside it are the lowest of their range and nothing is marked.
    """
    assert outputs.labels is not None
    cv2.imwrite(str(folder / f"{name}_labels.png"), outputs.labels)
    for score_name, values in outputs.scores.items():
        np.save(folder / f"{name}_{score_name}.npy", limited_scores(values, outputs.region, lowest_score(score_name)))
    if with_overlay:
        mask = None
        if threshold is not None:
            mask = anomaly_mask(limited_scores(outputs.scores[score], outputs.region, -np.inf), threshold)
        picture = overlay(frame, outputs.labels, mask, palette(detector.bundle.contract.classes))
        cv2.imwrite(str(folder / f"{name}_overlay.png"), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
