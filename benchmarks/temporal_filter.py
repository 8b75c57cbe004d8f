"""Cost and benefit of the temporal filter, on drives with ground truth for every pixel.

The network runs once on every frame. Each filter then processes the same scores, and the same figures are measured on
its output. Filters: none, exponential, warped (by dense flow, as in the node) and, for comparison, warped by a
homography (sparse Lucas-Kanade and RANSAC), each with several time constants. Drives: the shipped drive with objects
pasted onto its road, synthetic scenes, and clips of Cityscapes without anomalies if ANOMSEG_DATA has them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from common import DATA, camera_frames, write_result

from anomseg_ros.backends import open_detector
from anomseg_ros.core.bundle import load_bundle
from anomseg_ros.core.connected_components import find_components, numbered_components
from anomseg_ros.core.image_files import image_files, read_image
from anomseg_ros.core.preprocess import resized_scores
from anomseg_ros.core.resources import find_bundle, share_file
from anomseg_ros.core.temporal_filter import (
    EXPONENTIAL,
    NO_FILTER,
    UNFILTERED,
    WARPED,
    FilterSpec,
    FrameFlow,
    ScoreFilter,
)
from anomseg_ros.core.tracks import AlarmRule, Tracker
from anomseg_ros.core.types import Outputs, RgbImage, ScoreMap
from anomseg_ros.core.video import Video
from anomseg_ros.datasets.road_drive import load_road_scene, paste_on_road
from anomseg_ros.evaluation.consistency import ConsistencyObserver
from anomseg_ros.evaluation.drive import DriveSpec
from anomseg_ros.evaluation.measures import TimedOutputs
from anomseg_ros.evaluation.observers import SeenFrame
from anomseg_ros.evaluation.views import View
from anomseg_ros.metrics.protocols import protocol
from anomseg_ros.scenes.sequence import SyntheticConfig, SyntheticSequence
from anomseg_ros.scores import threshold_of

CLIPS, CLIP_RATE_HZ, BONNET_ROW = ("seq0000", "seq0003"), 17.0, 844
SCENES = (1_000_105, 1_000_106)
MIN_ALARM_PX = 50
PROTOCOL = "fishyscapes"
CORNERS_WIDTH_PX = 320
HOMOGRAPHY, SEVERAL_FRAMES = "homography", "n of m frames"
FILTERS = (NO_FILTER, EXPONENTIAL, WARPED, HOMOGRAPHY, SEVERAL_FRAMES)
RULES = ((2, 3), (3, 5))
CLIP_SIZE_PX = 1024, 512
DRIVES = ("shipped", "drawn", "clips")


@dataclass(frozen=True)
class Shot:
    """One frame with its ground truth (0, 1, 255) and the scores at the network's size."""

    stamp_ns: int
    image: RgbImage
    anomaly: npt.NDArray[np.uint8]
    scores: ScoreMap


class HomographyFlow(FrameFlow):
    """Moves maps by the homography of the plane that fits most corners."""

    def between(self, before: Any, now: Any) -> Any:
        """Return the homography from maps of `now` to maps of `before`, as a field of positions."""
        corners = cv2.goodFeaturesToTrack(now, 200, 0.01, 7)
        if corners is None or len(corners) < 8:
            return self._grid
        there, found, _ = cv2.calcOpticalFlowPyrLK(now, before, corners, None, winSize=(15, 15), maxLevel=3)
        tracked = found.ravel() == 1
        if tracked.sum() < 8:
            return self._grid
        matrix, _ = cv2.findHomography(corners[tracked] * self._factor, there[tracked] * self._factor, cv2.RANSAC, 4.0)
        return self._grid if matrix is None else cv2.perspectiveTransform(self._grid, matrix)


class HomographyFilter(ScoreFilter):
    """The warped filter with a homography instead of dense flow."""

    def _small(self, frame: RgbImage, shape: tuple[int, ...]) -> Any:
        if self._flow is None or self._flow.shape != shape:
            self._flow = HomographyFlow(shape[0], shape[1], CORNERS_WIDTH_PX)
        return self._flow.small(frame)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--bundle", default="bisenet_lite-world-int8", help="bundle for real drives")
    parser.add_argument("--drawn-bundle", default="enet-synthetic", help="bundle for synthetic scenes")
    parser.add_argument("--frames", type=int, default=60, help="maximum number of frames per drive")
    parser.add_argument("--constants", type=float, nargs="+", default=[0.1, 0.3], help="time constants, seconds")
    parser.add_argument("--drives", nargs="+", choices=DRIVES, default=DRIVES, help="drives to measure")
    parser.add_argument("--filters", nargs="+", choices=FILTERS, default=FILTERS, help="filters to measure")
    parser.add_argument("--only-costs", action="store_true", help="measure only the costs")
    args = parser.parse_args()
    result: dict[str, Any] = {"protocol": PROTOCOL, "costs_ms": costs()}
    print(result["costs_ms"])
    for name, bundle, drives in () if args.only_costs else all_drives(args):
        result[name] = measure(name, bundle, [list(islice(drive, args.frames)) for drive in drives], args)
    if not args.only_costs:
        parts = [*(args.drives if args.drives != DRIVES else ()), *(args.filters if args.filters != FILTERS else ())]
        print(write_result("_".join(["temporal_filter", *parts]), result))


def all_drives(args: argparse.Namespace) -> Iterator[tuple[str, str, list[Iterator[Any]]]]:
    """Yield name, bundle and drives. A drive is an iterator of (seconds, image, anomaly)."""
    if "shipped" in args.drives:
        yield "shipped drive", args.bundle, [shipped()]
    if "drawn" in args.drives:
        yield "drawn scenes", args.drawn_bundle, [drawn(seed) for seed in SCENES]
    if "clips" in args.drives and (DATA / "cityscapes_clips").is_dir():
        yield "clips without anomalies", args.bundle, [clip(name) for name in CLIPS]


def shipped() -> Iterator[tuple[float, RgbImage, Any]]:
    video, scene = Video(share_file("demo/drive.mp4")), load_road_scene(share_file("demo/drive.yaml"))
    for index, frame in enumerate(paste_on_road(video, video.rate_hz, scene)):
        yield index / video.rate_hz, frame.image, frame.anomaly


def drawn(seed: int) -> Iterator[tuple[float, RgbImage, Any]]:
    sequence = SyntheticSequence(seed, SyntheticConfig(anomaly_probability=1.0, anomaly_size_m=(0.4, 2.0)))
    for frame in sequence.frames(1000):
        yield frame.time_s, frame.image, frame.anomaly


def clip(name: str) -> Iterator[tuple[float, RgbImage, Any]]:
    for index, path in enumerate(image_files(DATA / "cityscapes_clips" / "images" / name)):
        image = read_image(path)
        anomaly = np.zeros(image.shape[:2], np.uint8)
        anomaly[BONNET_ROW:] = 255
        small = np.asarray(cv2.resize(image, CLIP_SIZE_PX, interpolation=cv2.INTER_AREA), np.uint8)
        yield index / CLIP_RATE_HZ, small, cv2.resize(anomaly, CLIP_SIZE_PX, interpolation=cv2.INTER_NEAREST)


def measure(name: str, bundle_name: str, drives: list[Iterable[Any]], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row of figures per filter."""
    detector = open_detector(load_bundle(find_bundle(bundle_name)))
    score = detector.bundle.check_score("")
    threshold = threshold_of(detector.bundle, score, 0.01)
    assert threshold is not None
    spec = DriveSpec(score, threshold.value, threshold.source)
    shots = [
        [
            Shot(round(seconds * 1e9) + 1, image, anomaly, detector.detect(image, (score,), labels=False).scores[score])
            for seconds, image, anomaly in drive
        ]
        for drive in drives
    ]
    detector.close()
    filters = [UNFILTERED, *(FilterSpec(kind, of) for kind in (EXPONENTIAL, WARPED) for of in args.constants)]
    cases = [(spec, one.kind, one) for one in filters]
    cases += [(spec, HOMOGRAPHY, FilterSpec(WARPED, args.constants[0]))]
    cases += [(replace(spec, alarm_frames=rule), SEVERAL_FRAMES, UNFILTERED) for rule in RULES]
    rows = []
    for rule, kind, one in cases:
        if kind not in args.filters:
            continue
        measured = figures([list(filtered(of, kind, one)) for of in shots], rule)
        settings = {"filter": kind, "time_constant_s": one.time_constant_s if one.is_on else None}
        rows.append({"drive": name, "bundle": bundle_name, "score": score, **settings, **measured})
        print(rows[-1], flush=True)
    return rows


def figures(drives: list[list[Shot]], spec: DriveSpec) -> dict[str, Any]:
    """Return the figures of the scores of all drives together."""
    curves, chosen = protocol(PROTOCOL).new_accumulator(), protocol(PROTOCOL)
    above = known = false_regions = 0
    results, consistent, frames = [], [], sum(map(len, drives))
    for shots in drives:
        consistency = ConsistencyObserver(spec, [shot.stamp_ns for shot in shots])
        tracker = spec.tracker()
        for index, shot in enumerate(shots):
            native = resized_scores(shot.scores, *shot.anomaly.shape)
            chosen.add(curves, native, shot.anomaly)
            mask = (native > np.float32(spec.threshold)) & (shot.anomaly != 255)
            above += int(np.count_nonzero(mask & (shot.anomaly == 0)))
            known += int(np.count_nonzero(shot.anomaly == 0))
            false_regions += count_false(mask, native, shot.anomaly)
            tracker.add(shot.stamp_ns, native, shot.anomaly)
            view = View(None, shot.image, None, shot.anomaly)
            answer = TimedOutputs(Outputs(None, {spec.score: shot.scores}), 0.0)
            consistency.add(SeenFrame(index, str(index), (view,), ((view, answer),)))
        results.append(tracker.result())
        consistent.append(consistency.counts)
    same = consistent[0]
    for one in consistent[1:]:
        same = same.plus(one)
    read = chosen.read(curves) if curves.anomaly_px else None
    delays = [
        seen.seconds_to_detection for one in results for seen in one.objects if seen.seconds_to_detection is not None
    ]
    return {
        "alarm_frames": spec.alarm_frames,
        "frames": frames,
        "auprc": None if read is None else round(read.auprc, 4),
        "fpr95": None if read is None else round(read.fpr95, 4),
        "fpr_at_threshold": round(above / known, 6),
        "false_regions_per_frame": round(false_regions / frames, 3),
        "alarms": sum(one.alarms for one in results),
        "seconds": round(sum(one.duration_s for one in results), 2),
        "objects_detected": f"{len(delays)} of {sum(len(one.objects) for one in results)}",
        "mean_seconds_to_detection": round(statistics.mean(delays), 3) if delays else None,
        "consistency_iou": None if same.predicted.iou is None else round(same.predicted.iou, 4),
        "truth_iou": None if same.true.iou is None else round(same.true.iou, 4),
    }


def filtered(shots: list[Shot], kind: str, spec: FilterSpec) -> Iterator[Shot]:
    """Yield the frames of a drive with filtered scores. kind: HOMOGRAPHY replaces the filter of `spec`."""
    running = HomographyFilter() if kind == HOMOGRAPHY else ScoreFilter()
    for shot in shots:
        yield replace(shot, scores=running.filtered(spec, "score", shot.stamp_ns, shot.scores, shot.image))


def count_false(mask: Any, scores: ScoreMap, anomaly: Any) -> int:
    """Return the number of regions of the mask that touch no anomaly."""
    ids, numbered = numbered_components(mask.view(np.uint8), scores, MIN_ALARM_PX)
    touching = set(np.unique(ids[anomaly == 1]).tolist())
    return sum(number not in touching for number, _ in numbered)


def costs(rounds: int = 41) -> dict[str, float]:
    """Return name -> median processor time on one core, milliseconds, for frames of 720x1280 and scores of 512x1024."""
    cv2.setNumThreads(1)  # all work then runs in this thread, whose processor time is measured
    frames, _ = camera_frames(8, 720, 1280)
    scores = [np.random.default_rng(number).random((512, 1024), dtype=np.float32) for number in range(len(frames))]
    calls: dict[str, Any] = {}
    for name, running in (
        (EXPONENTIAL, ScoreFilter()),
        (WARPED, ScoreFilter()),
        (HOMOGRAPHY, HomographyFilter()),
    ):
        spec = FilterSpec(EXPONENTIAL if name == EXPONENTIAL else WARPED, 0.2)
        calls[name] = lambda n, running=running, spec=spec: running.filtered(
            spec, "score", (n + 1) * 50_000_000, scores[n % len(scores)], frames[n % len(frames)]
        )
    mask = np.zeros((512, 1024), np.uint8)
    for number in range(20):
        mask[20 * number : 20 * number + 12, 40 * number : 40 * number + 25] = 255
    followed, confirmed = Tracker(), Tracker()
    calls["components, 20"] = lambda n: find_components(mask, scores[0], MIN_ALARM_PX)
    calls["components and tracks, 20"] = lambda n: followed.alarms(
        n * 50_000_000, mask, scores[0], AlarmRule(MIN_ALARM_PX)
    )
    calls["the same, 3 of 5"] = lambda n: confirmed.alarms(
        n * 50_000_000, mask, scores[0], AlarmRule(MIN_ALARM_PX, 3, 5)
    )
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name, call in calls.items():  # in turns, so that the load of the machine is the same for all
            started = time.thread_time()
            call(number)
            times[name].append((time.thread_time() - started) * 1e3)
    cv2.setNumThreads(-1)
    return {name: round(statistics.median(taken[2:]), 2) for name, taken in times.items()}


if __name__ == "__main__":
    main()
