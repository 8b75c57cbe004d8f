"""The demo's view of a drive: three pictures per frame, the alarms, and the detected anomalies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.bags.pixels import frame_from_message, labels_from_message, scores_from_message
from anomseg_ros.bags.read import open_bag
from anomseg_ros.bags.stamped_topics import StampedTopics
from anomseg_ros.commands.demo_drive import DemoDrive
from anomseg_ros.core.anomaly_marks import anomaly_color
from anomseg_ros.core.bundle import Bundle
from anomseg_ros.core.delivered import Delivered
from anomseg_ros.core.labels import ClassInfo, palette
from anomseg_ros.core.output_files import make_output_folder, write_image
from anomseg_ros.core.overlay import overlay
from anomseg_ros.core.preprocess import resized_labels, resized_scores
from anomseg_ros.core.score_scale import ScoreScale, score_scale
from anomseg_ros.core.types import LabelImage, Mask, RgbImage, ScoreMap
from anomseg_ros.evaluation.drive import MIN_ALARM_PX, DriveTracker
from anomseg_ros.evaluation.pictures import outline_truth
from anomseg_ros.scores import scale_of

PICTURES = ("camera", "overlay", "score")
MIN_COVERAGE = 0.5
"""An anomaly counts as found if the mask covers at least this share of it."""

_WIDTH_PX = 640
_JPEG_QUALITY = 88
_ROAD = "road"
# The range of the colour scale is computed from so many frames, using every fourth row and column.
_RANGE_FRAMES, _RANGE_STEP = 24, 4
_RANGE_PERCENTILES = (2.0, 99.9)


@dataclass(frozen=True)
class ShownFrame:
    """One frame. number: its place in the drive, from 1. files: paths of the PICTURES, relative to the page.

    An alarm is a region of the mask with at least MIN_ALARM_PX pixels. road_alarms: alarms on the road. on_anomaly:
    those of them that touch a known anomaly. other_alarms: alarms beside the road. known_anomalies: anomalies in the
    ground truth of at least MIN_ALARM_PX pixels in the frame; None without ground truth.
    """

    number: int
    time_s: float
    files: tuple[str, ...]
    road_alarms: int
    on_anomaly: int
    other_alarms: int
    known_anomalies: int | None = None


@dataclass(frozen=True)
class ShownDrive:
    """The content of the page. scale: the colours of the score. classes: classes that occur. color: of anomalies.

    anomalies, anomalies_found: numbers of known and of found anomalies; None without ground truth or threshold.
    """

    frames: tuple[ShownFrame, ...]
    scale: ScoreScale
    threshold: float | None
    classes: tuple[ClassInfo, ...]
    color: tuple[int, int, int]
    anomalies: int | None = None
    anomalies_found: int | None = None


@dataclass(frozen=True, eq=False)
class _FrameOutputs:
    """The node's outputs for one frame, at the network's size; mask is None if the node has no threshold."""

    labels: LabelImage
    scores: ScoreMap
    mask: Mask | None


def show_drive(
    drive: DemoDrive, outputs_bag: Path, bundle: Bundle, detector: Mapping[str, str], folder: Path
) -> ShownDrive:
    """Draw the frames for which the node published outputs, and count the alarms and the found anomalies.

    Args:
        drive: the drive that was played.
        outputs_bag: bag of the node's outputs.
        bundle: bundle of the node.
        detector: the node's detector status in the diagnostics.
        folder: the pictures are written to its subfolder frames.

    Raises:
        BagError, FrameError: a damaged bag or image.
    """
    outputs = _NodeOutputs(outputs_bag)
    try:
        threshold = None if detector.get("threshold", "none") == "none" else float(detector["threshold"])
        scale = _scale(outputs, bundle, detector.get("score", ""), threshold)
        tracker = DriveTracker(threshold or 0.0, detector.get("threshold_source", ""), min_coverage=MIN_COVERAGE)
        painter = _Painter(folder, bundle, scale)
        frames: list[ShownFrame] = []
        start_ns = None
        for number, (stamp_ns, image, anomaly) in enumerate(_frames(drive, outputs.stamps_ns), 1):
            start_ns = stamp_ns if start_ns is None else start_ns
            frame_outputs = None if image is None else outputs.read(stamp_ns)
            if image is not None and frame_outputs is not None:
                files = painter.paint(len(frames), image, frame_outputs, anomaly)
                counts = count_alarms(frame_outputs.mask, frame_outputs.labels, painter.road_id, anomaly)
                known = None if anomaly is None else len(_regions((anomaly == 1).astype(np.uint8)))
                frames.append(ShownFrame(number, (stamp_ns - start_ns) / 1e9, files, *counts, known))
            if anomaly is not None:
                scores = None if frame_outputs is None else resized_scores(frame_outputs.scores, *anomaly.shape)
                tracker.add(stamp_ns, scores, anomaly)
    finally:
        outputs.close()
    shown = ShownDrive(tuple(frames), scale, threshold, painter.seen_classes, painter.anomaly_color)
    if not tracker.stamps_ns or threshold is None:
        return shown
    # Smaller objects are remnants of one or two pixels that scaling separates from an object.
    objects = [one for one in tracker.result().objects if one.largest_px >= MIN_ALARM_PX]
    found = sum(one.frames_detected > 0 for one in objects)
    return replace(shown, anomalies=len(objects), anomalies_found=found)


def count_alarms(
    mask: Mask | None, labels: LabelImage, road_id: int | None, anomaly: Mask | None = None
) -> tuple[int, int, int]:
    """Return the numbers of alarms on the road, of those that touch an anomaly, and of alarms beside the road.

    The mask is cut along the outline of the road. Otherwise, an alarm that extends above the road could be connected
    with the background.

    Args:
        mask: uint8 (H, W), not 0 = anomalous; None: no alarms.
        labels: uint8 (H, W) train ids.
        road_id: train id of the road; None: there is no road.
        anomaly: uint8 ground truth of any size, 1 = anomaly.
    """
    if mask is None:
        return 0, 0, 0
    road = road_outline(labels, road_id)
    road_regions = _regions(np.where(road > 0, mask, 0).astype(np.uint8))
    other_regions = _regions(np.where(road > 0, 0, mask).astype(np.uint8))
    truth = np.zeros_like(mask) if anomaly is None else resized_labels(anomaly, *mask.shape)
    on_anomaly = sum(bool((truth[region] == 1).any()) for region in road_regions)
    return len(road_regions), on_anomaly, len(other_regions)


def road_outline(labels: LabelImage, road_id: int | None) -> Mask:
    """Return uint8 (H, W), 255 on the road and objects on it: the convex hull of the largest part of the road."""
    outline: Mask = np.zeros(labels.shape, np.uint8)
    if road_id is None:
        return outline
    parts, _ = cv2.findContours((labels == road_id).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if parts:
        cv2.fillConvexPoly(outline, cv2.convexHull(max(parts, key=cv2.contourArea)), 255)
    return outline


def _regions(mask: Mask) -> list[tuple[npt.NDArray[np.intp], ...]]:
    """Return the pixel indices of each region that is large enough for an alarm."""
    count, ids, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    large = [number for number in range(1, count) if stats[number, cv2.CC_STAT_AREA] >= MIN_ALARM_PX]
    return [np.nonzero(ids == number) for number in large]


class _NodeOutputs:
    """The node's outputs by stamp, read on demand."""

    def __init__(self, path: Path) -> None:
        from anomseg_ros.replay.live import LABELS_TOPIC, MASK_TOPIC, SCORE_TOPIC

        self._score, self._labels, self._mask = SCORE_TOPIC, LABELS_TOPIC, MASK_TOPIC
        self._stamped = StampedTopics(path)
        topics = self._stamped.bag().topics
        self._stamped.index([topic for topic in (SCORE_TOPIC, LABELS_TOPIC, MASK_TOPIC) if topic in topics])

    @property
    def stamps_ns(self) -> frozenset[int]:
        """Stamps of the frames with all outputs."""
        topics = [times.keys() for times in self._stamped.times.values()]
        return frozenset(topics[0]).intersection(*topics[1:]) if topics else frozenset()

    def read(self, stamp_ns: int) -> _FrameOutputs:
        messages = self._stamped.messages(stamp_ns)
        mask = messages.get(self._mask)
        return _FrameOutputs(
            labels_from_message(messages[self._labels]),
            scores_from_message(messages[self._score]),
            None if mask is None else labels_from_message(mask),
        )

    def close(self) -> None:
        self._stamped.close()


class _Painter:
    """Draws the pictures of a drive, all in the same colours."""

    def __init__(self, folder: Path, bundle: Bundle, scale: ScoreScale) -> None:
        self._folder, self._classes, self._scale = folder, bundle.contract.classes, scale
        self._colors = palette(self._classes)
        self.anomaly_color = anomaly_color(self._colors)
        self._seen = np.zeros(256, bool)
        self.road_id = next((info.train_id for info in self._classes if info.name == _ROAD), None)
        make_output_folder(folder / "frames")
        for old_picture in (folder / "frames").glob("*.jpg"):
            old_picture.unlink()

    @property
    def seen_classes(self) -> tuple[ClassInfo, ...]:
        """Classes that occur in the frames painted so far, in the bundle's order."""
        return tuple(info for info in self._classes if self._seen[info.train_id])

    def paint(self, number: int, image: RgbImage, outputs: _FrameOutputs, anomaly: Mask | None) -> tuple[str, ...]:
        """Write the pictures of a frame and return their paths relative to the page."""
        self._seen[outputs.labels] = True
        width = min(image.shape[1], _WIDTH_PX)
        height = round(image.shape[0] * width / image.shape[1])
        small = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
        score = self._scale.colored(resized_scores(outputs.scores, height, width))
        if anomaly is not None:
            outline_truth(score, resized_labels(anomaly, height, width) == 1)
        pictures = (small, overlay(small, outputs.labels, outputs.mask, self._colors), score)
        names = tuple(f"frames/{number:04d}_{kind}.jpg" for kind in PICTURES)
        for name, picture in zip(names, pictures, strict=True):
            write_image(self._folder / name, picture, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        return names


def _frames(drive: DemoDrive, answered_ns: frozenset[int]) -> Iterator[tuple[int, RgbImage | None, Mask | None]]:
    """Yield stamp, image (None without outputs of the node) and anomaly ground truth of each frame, in order."""
    # Differences between stated and actual message counts were reported during playback.
    with open_bag(drive.bag, _ignore) as truth_bag, open_bag(drive.bag, _ignore) as image_bag:
        truths = iter(()) if drive.truth_topic is None else truth_bag.read_stamped([drive.truth_topic])
        truth = next(truths, None)
        for _, stamp_ns, message in image_bag.read_stamped([drive.topic]):
            while truth is not None and truth[1] < stamp_ns:
                truth = next(truths, None)
            anomaly = labels_from_message(truth[2]) if truth is not None and truth[1] == stamp_ns else None
            yield stamp_ns, frame_from_message(message) if stamp_ns in answered_ns else None, anomaly


def _ignore(_: Delivered) -> None:
    """Ignore a difference."""


def _scale(outputs: _NodeOutputs, bundle: Bundle, score: str, threshold: float | None) -> ScoreScale:
    """Return the colours of the score: without calibrated thresholds, over the scores and the threshold in use."""
    scale = scale_of(bundle.contract, score)
    stamps_ns = sorted(outputs.stamps_ns)
    if scale.ticks or not stamps_ns:
        return scale
    sampled_ns = stamps_ns[:: max(1, len(stamps_ns) // _RANGE_FRAMES)]
    scores = (outputs.read(stamp_ns).scores[::_RANGE_STEP, ::_RANGE_STEP] for stamp_ns in sampled_ns)
    values = np.concatenate([values.reshape(-1) for values in scores])
    low, high = map(float, np.percentile(values, _RANGE_PERCENTILES))
    bounds = (low, high) if threshold is None else (min(low, threshold), max(high, threshold))
    return score_scale({}, bounds, bounded=False)
