"""What the demo shows of a drive: three pictures per frame, the alarms in it, and which anomalies were found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.bags.pixels import frame_from_message, labels_from_message, scores_from_message
from anomseg_ros.bags.read import open_bag
from anomseg_ros.commands.demo_drive import DemoDrive
from anomseg_ros.core.bundle import Bundle
from anomseg_ros.core.labels import ClassInfo, palette
from anomseg_ros.core.overlay import heat_map, overlay
from anomseg_ros.core.preprocess import resized_labels, resized_scores
from anomseg_ros.core.types import LabelImage, Mask, RgbImage, ScoreMap
from anomseg_ros.evaluation.bag_drive import MIN_ALARM_PX, DriveTracker
from anomseg_ros.evaluation.bag_topics import StampedTopics

PICTURES = ("camera", "overlay", "score")
MIN_COVERAGE = 0.5
"""Share of an anomaly that the mask must cover for it to count as found."""

_WIDTH_PX = 640
_JPEG_QUALITY = 88
_ROAD = "road"
# The range of colours is read off this many frames, every fourth pixel of them.
_RANGE_FRAMES, _RANGE_STEP = 24, 4
_RANGE_PERCENTILES = (2.0, 99.9)


@dataclass(frozen=True)
class ShownFrame:
    """One frame. files: of PICTURES, relative to the page. Alarms are regions of the mask, at least MIN_ALARM_PX.

    road_alarms: on the road, of which on_anomaly touch a known anomaly. other_alarms: beside it.
    """

    time_s: float
    files: tuple[str, ...]
    road_alarms: int
    on_anomaly: int
    other_alarms: int


@dataclass(frozen=True)
class ShownDrive:
    """What is shown. found: known anomalies that were found, and all of them; None without any, or
    without a threshold.

    drawn_range: scores drawn as the first and the last colour. classes: those that occur.
    """

    frames: tuple[ShownFrame, ...]
    found: tuple[int, int] | None
    drawn_range: tuple[float, float]
    threshold: float | None
    classes: tuple[ClassInfo, ...]


@dataclass(frozen=True, eq=False)
class _Answer:
    """What the node published for one frame, of the network's size; mask is None where it has no threshold."""

    labels: LabelImage
    scores: ScoreMap
    mask: Mask | None


def show_drive(
    drive: DemoDrive, published: Path, bundle: Bundle, detector: Mapping[str, str], folder: Path
) -> ShownDrive:
    """Draw the frames that the node answered into `folder`/frames and count what it marked.

    published: bag of the node's outputs. detector: its diagnostics. Raises BagError, FrameError.
    """
    answers = _Answers(published)
    try:
        threshold = None if detector.get("threshold", "none") == "none" else float(detector["threshold"])
        drawn_range = _drawn_range(answers, threshold)
        tracker = DriveTracker(threshold or 0.0, detector.get("threshold_source", ""), min_coverage=MIN_COVERAGE)
        painter = _Painter(folder, bundle, drawn_range)
        shown: list[ShownFrame] = []
        start_ns = None
        for stamp_ns, image, anomaly in _frames(drive, answers.stamps_ns):
            start_ns = stamp_ns if start_ns is None else start_ns
            answer = None if image is None else answers.read(stamp_ns)
            if image is not None and answer is not None:
                files = painter.paint(len(shown), image, answer, anomaly)
                counts = count_alarms(answer.mask, answer.labels, painter.road_id, anomaly)
                shown.append(ShownFrame((stamp_ns - start_ns) / 1e9, files, *counts))
            if anomaly is not None:
                scores = None if answer is None else resized_scores(answer.scores, *anomaly.shape)
                tracker.add(stamp_ns, scores, anomaly)
    finally:
        answers.close()
    found = _found(tracker) if tracker.stamps_ns and threshold is not None else None
    return ShownDrive(tuple(shown), found, drawn_range, threshold, painter.seen_classes)


def _found(tracker: DriveTracker) -> tuple[int, int]:
    # A pixel or two that scaling cut off an object is none.
    objects = [seen for seen in tracker.result().objects if seen.largest_px >= MIN_ALARM_PX]
    return sum(seen.frames_detected > 0 for seen in objects), len(objects)


def count_alarms(
    mask: Mask | None, labels: LabelImage, road_id: int | None, anomaly: Mask | None = None
) -> tuple[int, int, int]:
    """Return how many regions of a mask are on the road, how many of those touch an anomaly, and how many are beside.

    mask: uint8 (H, W), not 0 = marked. labels: uint8 (H, W). road_id: train id of the road; None: nothing is on it.
    anomaly: uint8, 1 = anomaly, of any size. The mask is cut along the outline of the road: what stands on the road and
    reaches above it would else be one with the hills behind.
    """
    if mask is None:
        return 0, 0, 0
    road = road_outline(labels, road_id)
    on_road = _regions(np.where(road > 0, mask, 0).astype(np.uint8))
    known = np.zeros_like(mask) if anomaly is None else resized_labels(anomaly, *mask.shape)
    on_anomaly = sum(bool((known[own] == 1).any()) for own in on_road)
    return len(on_road), on_anomaly, len(_regions(np.where(road > 0, 0, mask).astype(np.uint8)))


def road_outline(labels: LabelImage, road_id: int | None) -> Mask:
    """Return uint8 (H, W), 255 on the road and on what stands on it: the convex hull of its largest part."""
    outline: Mask = np.zeros(labels.shape, np.uint8)
    if road_id is None:
        return outline
    parts, _ = cv2.findContours((labels == road_id).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if parts:
        cv2.fillConvexPoly(outline, cv2.convexHull(max(parts, key=cv2.contourArea)), 255)
    return outline


def _regions(mask: Mask) -> list[tuple[npt.NDArray[np.intp], ...]]:
    """Return the pixels of each region of a mask that is large enough for an alarm."""
    count, ids, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    large = [number for number in range(1, count) if stats[number, cv2.CC_STAT_AREA] >= MIN_ALARM_PX]
    return [np.nonzero(ids == number) for number in large]


class _Answers:
    """The node's outputs by stamp, read when they are asked for."""

    def __init__(self, path: Path) -> None:
        from anomseg_ros.node.live import LABELS_TOPIC, MASK_TOPIC, SCORE_TOPIC

        self._score, self._labels, self._mask = SCORE_TOPIC, LABELS_TOPIC, MASK_TOPIC
        self._stamped = StampedTopics(path)
        there = self._stamped.bag().topics
        self._stamped.index([topic for topic in (SCORE_TOPIC, LABELS_TOPIC, MASK_TOPIC) if topic in there])

    @property
    def stamps_ns(self) -> frozenset[int]:
        """Stamps of the frames whose outputs all came."""
        topics = [times.keys() for times in self._stamped.times.values()]
        return frozenset(topics[0]).intersection(*topics[1:]) if topics else frozenset()

    def read(self, stamp_ns: int) -> _Answer:
        messages = self._stamped.messages(stamp_ns)
        mask = messages.get(self._mask)
        return _Answer(
            labels_from_message(messages[self._labels]),
            scores_from_message(messages[self._score]),
            None if mask is None else labels_from_message(mask),
        )

    def close(self) -> None:
        self._stamped.close()


class _Painter:
    """Draws the pictures of a drive, all in the same colours."""

    def __init__(self, folder: Path, bundle: Bundle, drawn_range: tuple[float, float]) -> None:
        self._folder, self._classes, self._range = folder, bundle.contract.classes, drawn_range
        self._colors = palette(self._classes)
        self._seen = np.zeros(256, bool)
        self.road_id = next((known.train_id for known in self._classes if known.name == _ROAD), None)
        (folder / "frames").mkdir(exist_ok=True)
        for old in (folder / "frames").glob("*.jpg"):
            old.unlink()

    @property
    def seen_classes(self) -> tuple[ClassInfo, ...]:
        """Classes that some frame had, in the bundle's order."""
        return tuple(known for known in self._classes if self._seen[known.train_id])

    def paint(self, number: int, image: RgbImage, answer: _Answer, anomaly: Mask | None) -> tuple[str, ...]:
        """Write the pictures of a frame and return their names relative to the page."""
        self._seen[np.unique(answer.labels)] = True
        width = min(image.shape[1], _WIDTH_PX)
        height = round(image.shape[0] * width / image.shape[1])
        small = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
        score = heat_map(resized_scores(answer.scores, height, width), *self._range)
        if anomaly is not None:
            outlines, _ = cv2.findContours(
                (resized_labels(anomaly, height, width) == 1).astype(np.uint8),
                cv2.RETR_EXTERNAL,
                cv2.CHAIN_APPROX_NONE,
            )
            cv2.drawContours(score, outlines, -1, (255, 255, 255), 1)
        pictures = (small, overlay(small, answer.labels, answer.mask, self._colors), score)
        names = tuple(f"frames/{number:04d}_{kind}.jpg" for kind in PICTURES)
        for name, picture in zip(names, pictures, strict=True):
            bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
            cv2.imwrite(str(self._folder / name), bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        return names


def _frames(drive: DemoDrive, answered_ns: frozenset[int]) -> Iterator[tuple[int, RgbImage | None, Mask | None]]:
    """Yield stamp, frame (None if the node did not answer it) and known anomalies of a drive, in order."""
    with open_bag(drive.bag) as truths, open_bag(drive.bag) as opened:
        known = iter(()) if drive.truth_topic is None else truths.read_stamped([drive.truth_topic])
        truth = next(known, None)
        for _, stamp_ns, message in opened.read_stamped([drive.topic]):
            while truth is not None and truth[1] < stamp_ns:
                truth = next(known, None)
            anomaly = labels_from_message(truth[2]) if truth is not None and truth[1] == stamp_ns else None
            yield stamp_ns, frame_from_message(message) if stamp_ns in answered_ns else None, anomaly


def _drawn_range(answers: _Answers, threshold: float | None) -> tuple[float, float]:
    """Return the scores of the first and the last colour, the same for all frames; the threshold lies between."""
    stamps_ns = sorted(answers.stamps_ns)
    chosen = stamps_ns[:: max(1, len(stamps_ns) // _RANGE_FRAMES)]
    if not chosen:
        return 0.0, 1.0
    values = np.concatenate([answers.read(stamp).scores[::_RANGE_STEP, ::_RANGE_STEP].reshape(-1) for stamp in chosen])
    low, high = map(float, np.percentile(values, _RANGE_PERCENTILES))
    bounds = (low, high) if threshold is None else (min(low, threshold), max(high, threshold))
    return bounds if bounds[0] < bounds[1] else (bounds[0], bounds[0] + 1.0)
