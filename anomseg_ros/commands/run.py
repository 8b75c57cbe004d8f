"""`anomseg run`: write labels, scores and overlays of images, folders, videos and bags as files."""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console

from anomseg_ros.api.detection import Detector
from anomseg_ros.backends import open_requested_backend
from anomseg_ros.bags.bag_paths import is_bag
from anomseg_ros.commands import options
from anomseg_ros.commands.progress_lines import ProgressLines
from anomseg_ros.core.bundle import load_bundle
from anomseg_ros.core.delivered import deviations
from anomseg_ros.core.frames import FrameSource, NamedFrames
from anomseg_ros.core.output_files import make_output_folder, write_file, write_image
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.core.road_region import NO_REGION, limited_scores, road_region
from anomseg_ros.core.staging import remove_leftovers
from anomseg_ros.core.types import Outputs, RgbImage, ScoreMap
from anomseg_ros.errors import AnomsegError, ConfigError
from anomseg_ros.scores import find_score

ENDINGS = ("_labels.png", "_mask.png", "_overlay.png", "_score.png", ".npy", ".npz")
"""Endings of the files that are written."""
SCORE_FILES = NPY, NPZ, NO_SCORES = "npy", "npz", "none"


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of `anomseg run`."""
    parser = options.parser(
        "run",
        "Detect anomalies: write NAME_labels.png, NAME_mask.png (255 where the first score is above its threshold) and "
        "NAME_<score>.npy (float32) of each frame, and two pictures with legends: NAME_overlay.png (classes and "
        "anomalies) and NAME_score.png (the first score in colours).",
        {"--scores": "--score"},
    )
    parser.add_argument("bundle", help="bundle directory or name of a shipped bundle")
    parser.add_argument("inputs", nargs="+", type=Path, help="images, folders of images, videos, bags")
    parser.add_argument("--output", type=options.output_folder, required=True, help="folder for the results")
    parser.add_argument("--image-topic", help="image topic of the bags (default: the only one in colour)")
    parser.add_argument(
        "--score", type=options.names, default=(), help="scores to write, comma separated (default: all)"
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
    parser.add_argument(
        "--no-overlay", action="store_true", help="write no pictures: no NAME_overlay.png, no NAME_score.png"
    )
    files_help = "how scores are written: npy; npz, compressed, slower and little smaller; none"
    parser.add_argument("--score-files", choices=SCORE_FILES, default=SCORE_FILES[0], help=files_help)
    options.add_backend_options(parser)
    return parser


def main(argv: list[str]) -> int:
    """Run the detector on every frame and write its outputs; return 0 if all frames were written, else 1."""
    args = argument_parser().parse_args(argv)
    bundle = load_bundle(find_bundle(args.bundle))
    detector = Detector(bundle, open_requested_backend(args.backend, bundle, options.backend_options(args)))
    failures: list[AnomsegError] = []
    source = FrameSource(_inputs(args.inputs, args.image_topic), failures.append)
    scores = tuple(map(detector.bundle.check_score, args.score)) or detector.bundle.contract.score_names
    threshold = detector.threshold(scores[0], args.target_fpr) if args.threshold is None else args.threshold
    files = FrameFiles(args.output, detector, scores[0], threshold, args.score_files, not args.no_overlay)
    if args.score_files == NO_SCORES:
        scores = scores[:1]  # for the mask
    road = road_region(args.road_region or NO_REGION, detector.bundle.contract)
    make_output_folder(args.output)
    remove_leftovers(args.output, ".")
    earlier = {path.name for path in args.output.iterdir() if path.name.endswith(ENDINGS)}
    written = without_road = 0
    with ProgressLines() as progress:
        task = progress.bars.add_task(detector.bundle.contract.name, total=source.count)
        for name, frame in source:
            try:
                outputs = detector.detect(frame, scores, source_size=args.source_size, road=road)
                files.write(name, frame, outputs)
                written += 1
                without_road += road is not None and outputs.region is None
            except AnomsegError as error:
                failures.append(error)
            progress.bars.advance(task)
    warnings = list(deviations(source.differences))
    if without_road:
        warnings.append(f"no road was found in {without_road} of {written} frames; alarms in them are not limited")
    if earlier:
        replaced = earlier & files.names
        warnings.append(
            f"{args.output} had results of an earlier run: {len(replaced)} of its files were replaced, "
            f"{len(earlier - replaced)} are still there"
        )
    _print_messages(warnings, failures)
    summary = f"{written} frames written to {args.output}, {len(failures)} failed; backend {detector.backend.actual}"
    Console(stderr=True).print(summary, soft_wrap=True)
    return 1 if failures or not written else 0


def _inputs(paths: Sequence[Path], topic: str | None) -> list[Path | NamedFrames]:
    """Return the paths, bags among them opened."""
    if topic is not None and not any(map(is_bag, paths)):
        raise ConfigError(f"--image-topic {topic} is for bags, and none is given; leave it out")
    return [_open_bag(path, topic) if is_bag(path) else path for path in paths]


def _open_bag(path: Path, topic: str | None) -> NamedFrames:
    from anomseg_ros.datasets.drive_inputs import open_input  # needs the rosbags library, which pictures do not

    return open_input(path, topic)


def _print_messages(warnings: Sequence[str], failures: Sequence[AnomsegError]) -> None:
    console = Console(stderr=True)
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow", soft_wrap=True, markup=False, highlight=False)
    for failure in failures:
        console.print(f"failed: {failure}", style="red", soft_wrap=True, markup=False)


@dataclass(frozen=True)
class FrameFiles:
    """The files that are written of each frame.

    score, threshold: of the mask and of the score's picture; threshold None: no mask is written, and the overlay marks
    nothing. score_files: of SCORE_FILES. overlay: write the pictures. names: of the files that are written.
    """

    folder: Path
    detector: Detector
    score: str
    threshold: float | None
    score_files: str
    overlay: bool
    names: set[str] = field(default_factory=set)

    def write(self, name: str, frame: RgbImage, outputs: Outputs) -> None:
        """Write the files of one frame, uint8 (H, W, 3) RGB; their names begin with `name`. Raises OutputError.

        If the outputs have a road region, scores outside it are set to their lowest value, and nothing is marked there.
        """
        assert outputs.labels is not None
        self._write_image(f"{name}_labels.png", outputs.labels)
        mask = None
        if self.threshold is not None:
            mask = self.detector.mask(outputs, self.score, threshold=self.threshold)
            self._write_image(f"{name}_mask.png", mask)
        for score, values in outputs.scores.items():
            self._write_scores(name, score, limited_scores(values, outputs.region, find_score(score).lowest))
        if self.overlay:
            self._write_image(f"{name}_overlay.png", self.detector.overlay(frame, outputs, mask, legend=True))
            self._write_image(f"{name}_score.png", self._score_picture(frame, outputs))

    def _score_picture(self, frame: RgbImage, outputs: Outputs) -> RgbImage:
        return self.detector.score_picture(frame, outputs, self.score, legend=True, threshold=self.threshold)

    def _write_image(self, file: str, pixels: npt.NDArray[np.uint8]) -> None:
        write_image(self.folder / file, pixels)
        self.names.add(file)

    def _write_scores(self, name: str, score: str, values: ScoreMap) -> None:
        buffer = io.BytesIO()
        if self.score_files == NPY:
            np.save(buffer, values)
        elif self.score_files == NPZ:
            np.savez_compressed(buffer, allow_pickle=False, **{score: values})
        if buffer.tell():
            file = f"{name}_{score}.{self.score_files}"
            write_file(self.folder / file, buffer.getvalue())
            self.names.add(file)
