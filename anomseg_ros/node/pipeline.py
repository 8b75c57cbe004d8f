"""The frame path: one image message in, the messages that somebody wants out. No topics, threads or clocks here."""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from anomseg_ros.core.bundle import Bundle
from anomseg_ros.core.components import find_components
from anomseg_ros.core.detector import Detector
from anomseg_ros.core.labels import palette
from anomseg_ros.core.overlay import anomaly_mask, gray_scores, overlay, score_range
from anomseg_ros.core.road_region import RoadRegion, road_region
from anomseg_ros.core.thresholds import Threshold
from anomseg_ros.core.types import LabelImage, Mask, Outputs, RgbImage, ScoreMap
from anomseg_ros.errors import ConfigError
from anomseg_ros.node import conversions, vision
from anomseg_ros.node.parameters import Live

LABELS = "~/labels"
SCORE = "~/anomaly/score"
MASK = "~/anomaly/mask"
DETECTIONS = "~/anomaly/detections"
OVERLAY = "~/overlay"
OVERLAY_COMPRESSED = "~/overlay/compressed"
CAMERA_INFO = "~/camera_info"

NEEDS_LABELS = frozenset({LABELS, OVERLAY, OVERLAY_COMPRESSED})
NEEDS_MASK = frozenset({MASK, DETECTIONS, OVERLAY, OVERLAY_COMPRESSED})
NEEDS_SCORE = NEEDS_MASK | {SCORE}


@dataclass(frozen=True)
class Settings:
    """The live parameters resolved against the bundle: which score, and which threshold and road, if there is one."""

    live: Live
    score: str
    threshold: Threshold | None
    road: RoadRegion | None = None


@dataclass(frozen=True)
class Published:
    """Messages by topic, the time the graph took, and the size of the frame, in pixels.

    roadless: alarms were to be limited to the road, and the labels showed none, so that they are everywhere.
    """

    messages: dict[str, Any]
    network_ms: float
    frame_size: tuple[int, int]
    roadless: bool = False


@dataclass
class _Arrays:
    """One frame's arrays on their way into messages, all of the output's size; mask is made only once."""

    frame: RgbImage
    outputs: Outputs
    settings: Settings
    labels: LabelImage | None
    scores: ScoreMap | None
    mask: Mask | None = field(default=None)
    roadless: bool = False


def resolve(live: Live, bundle: Bundle) -> Settings:
    """Return the settings for a bundle. Raises ConfigError if it lacks the score, the calibrated rate or the road."""
    score = bundle.check_score(live.score)
    road = road_region(live.road_region, bundle.contract)
    if live.threshold is not None:
        return Settings(live, score, Threshold(live.threshold, "parameter threshold", False), road)
    return Settings(live, score, bundle.threshold(score, live.target_fpr), road)


class FramePipeline:
    """Turns image messages into output messages with one detector; settings may be replaced between frames."""

    def __init__(self, detector: Detector, settings: Settings, ego_mask: Mask | None = None) -> None:
        self.detector = detector
        self.settings = settings
        self._ego_mask = ego_mask
        contract = detector.bundle.contract
        self._colors = palette(contract.classes)
        self._known_classes = contract.known_count
        self._ignored_pixels = functools.lru_cache(maxsize=4)(self._make_ignored_pixels)

    def process(
        self, msg: Image | CompressedImage, wanted: Collection[str], camera_info: CameraInfo | None = None
    ) -> Published:
        """Return the wanted messages of one frame, each with the frame's stamp and frame_id.

        Raises FrameError for an unusable message, BackendError if the graph fails.
        """
        settings = self.settings
        frame = frame_of(msg)
        arrays = self._detect(frame, frozenset(wanted), settings)
        messages = {topic: self._message(topic, arrays, msg.header) for topic in wanted if topic != CAMERA_INFO}
        if CAMERA_INFO in wanted and camera_info is not None:
            messages[CAMERA_INFO] = self._camera_info(camera_info, frame, settings, msg.header)
        messages = {topic: message for topic, message in messages.items() if message is not None}
        return Published(messages, arrays.outputs.network_ms, (frame.shape[1], frame.shape[0]), arrays.roadless)

    def _detect(self, frame: RgbImage, wanted: frozenset[str], settings: Settings) -> _Arrays:
        road = settings.road if wanted & NEEDS_SCORE else None
        outputs = self.detector.detect(
            frame,
            (settings.score,) if wanted & NEEDS_SCORE else (),
            labels=bool(wanted & NEEDS_LABELS),
            source_size=settings.live.source_size,
            road=road,
        )
        labels, scores = outputs.labels, outputs.scores.get(settings.score)
        size = next((array.shape for array in (labels, scores) if array is not None), frame.shape[:2])
        ignored = self._ignored_pixels(size[0], size[1], settings.live.region_of_interest)
        if ignored is not None:
            labels = None if labels is None else np.asarray(cv2.bitwise_or(labels, ignored), np.uint8)
        silent = _united(ignored, None if outputs.region is None else np.bitwise_not(outputs.region))
        if silent is not None:
            scores = None if scores is None else np.where(silent, np.float32(self._range(settings)[0]), scores)
        arrays = _Arrays(frame, outputs, settings, labels, scores, roadless=road is not None and outputs.region is None)
        if scores is not None and settings.threshold is not None and wanted & NEEDS_MASK:
            arrays.mask = anomaly_mask(scores, settings.threshold.value)
            if silent is not None:
                arrays.mask[silent > 0] = 0
        return arrays

    def _message(self, topic: str, arrays: _Arrays, header: Header) -> Any:
        if topic == LABELS:
            return conversions.image_from_array(_present(arrays.labels), "mono8", header)
        if topic == SCORE:
            return self._score_message(arrays, header)
        if topic in (OVERLAY, OVERLAY_COMPRESSED):
            return self._overlay_message(topic, arrays, header)
        if arrays.mask is None:  # no threshold: the diagnostics say so
            return None
        if topic == MASK:
            return conversions.image_from_array(arrays.mask, "mono8", header)
        components = find_components(arrays.mask, _present(arrays.scores), arrays.settings.live.min_component_px)
        return vision.detections_message(components, header)

    def _score_message(self, arrays: _Arrays, header: Header) -> Image:
        scores = _present(arrays.scores)
        if arrays.settings.live.score_encoding == "32FC1":
            return conversions.image_from_array(scores, "32FC1", header)
        return conversions.image_from_array(gray_scores(scores, *self._range(arrays.settings)), "mono8", header)

    def _overlay_message(self, topic: str, arrays: _Arrays, header: Header) -> Image | CompressedImage:
        labels = _present(arrays.labels)
        picture = overlay(_resized_frame(arrays.frame, labels.shape), labels, arrays.mask, self._colors)
        if topic == OVERLAY:
            return conversions.image_from_array(picture, "rgb8", header)
        return conversions.compressed_from_array(picture, header, quality=arrays.settings.live.jpeg_quality)

    def _camera_info(self, info: CameraInfo, frame: RgbImage, settings: Settings, header: Header) -> CameraInfo:
        spec = self.detector.bundle.contract.input
        height, width = frame.shape[:2] if settings.live.source_size else (spec.height_px, spec.width_px)
        scaled = conversions.scaled_camera_info(info, width, height)
        scaled.header = header
        return scaled

    def _range(self, settings: Settings) -> tuple[float, float]:
        return score_range(settings.score, self._known_classes)

    def _make_ignored_pixels(
        self, height: int, width: int, region: tuple[float, float, float, float]
    ) -> npt.NDArray[np.uint8] | None:
        """Return uint8 (height, width), 255 on the own vehicle and outside the region of interest; None if nowhere."""
        if self._ego_mask is None and region == (0.0, 0.0, 1.0, 1.0):
            return None
        ignored = np.full((height, width), 255, np.uint8)
        left, top, right, bottom = region
        ignored[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = 0
        if self._ego_mask is not None:
            ego = cv2.resize(self._ego_mask, (width, height), interpolation=cv2.INTER_NEAREST)
            ignored[ego > 0] = 255
        return ignored


def read_ego_mask(path: str) -> Mask | None:
    """Return the uint8 (H, W) mask in an image file, None for an empty path. Raises ConfigError."""
    if not path:
        return None
    mask = cv2.imread(path, cv2.IMREAD_GRAYSCALE)
    if mask is None:
        raise ConfigError(f"parameter 'ego_mask': {path!r} cannot be read as an image")
    return np.asarray(mask, np.uint8)


def frame_of(msg: Image | CompressedImage) -> RgbImage:
    """Return the uint8 (H, W, 3) RGB frame of an image message, from ROS or read from a bag. Raises FrameError."""
    # By its fields, not its class: a message that rosbags read has the fields, but a class of its own.
    return conversions.rgb_from_compressed(msg) if hasattr(msg, "format") else conversions.rgb_from_image(msg)


def _united(ignored: Mask | None, off_road: Mask | None) -> Mask | None:
    if ignored is None or off_road is None:
        return ignored if off_road is None else off_road
    return np.asarray(cv2.bitwise_or(ignored, off_road), np.uint8)


def _resized_frame(frame: RgbImage, shape: tuple[int, ...]) -> RgbImage:
    if frame.shape[:2] == shape:
        return frame
    return np.asarray(cv2.resize(frame, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR), np.uint8)


def _present(array: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
    assert array is not None, "an output was wanted but not computed"
    return array
