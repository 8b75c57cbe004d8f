"""The frame path: converts one image message to the requested output messages, without topics, threads or clocks."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from anomseg_ros.core.bundle import Bundle
from anomseg_ros.core.detector import Detector
from anomseg_ros.core.ego_mask import check_aspect_ratio, resized_ego_mask
from anomseg_ros.core.ego_mask import read_ego_mask as read_mask_file
from anomseg_ros.core.labels import palette
from anomseg_ros.core.overlay import anomaly_mask, overlay
from anomseg_ros.core.road_region import RoadRegion, road_region
from anomseg_ros.core.temporal_filter import ScoreFilter
from anomseg_ros.core.thresholds import Threshold
from anomseg_ros.core.tracks import Alarms, Tracker
from anomseg_ros.core.types import LabelImage, Mask, Outputs, RgbImage, ScoreMap
from anomseg_ros.errors import AnomsegError
from anomseg_ros.node import conversions, vision
from anomseg_ros.node.parameters import LiveParameters
from anomseg_ros.scores import find_score, scale_of, threshold_of

LABELS = "~/labels"
SCORE = "~/anomaly/score"
MASK = "~/anomaly/mask"
DETECTIONS = "~/anomaly/detections"
OVERLAY = "~/overlay"
OVERLAY_COMPRESSED = "~/overlay/compressed"
CAMERA_INFO = "~/camera_info"

OUTPUTS = (LABELS, SCORE, MASK, DETECTIONS, OVERLAY, OVERLAY_COMPRESSED, CAMERA_INFO)
NEEDS_LABELS = frozenset({LABELS, OVERLAY, OVERLAY_COMPRESSED})
NEEDS_MASK = frozenset({MASK, DETECTIONS, OVERLAY, OVERLAY_COMPRESSED})
NEEDS_SCORE = NEEDS_MASK | {SCORE}


@dataclass(frozen=True)
class Settings:
    """The live parameters resolved against a bundle. threshold, road: None if there is no threshold or no limit."""

    live: LiveParameters
    score: str
    threshold: Threshold | None
    road: RoadRegion | None = None


@dataclass(frozen=True)
class FrameOutputs:
    """The output messages of one frame by topic.

    network_ms: run time of the graph. frame_size: width and height, pixels. failed: topic -> why its message could not
    be created. roadless: alarms were not limited to the road, although requested, because the labels showed none.
    """

    messages: dict[str, Any]
    network_ms: float
    frame_size: tuple[int, int]
    failed: dict[str, str] = field(default_factory=dict)
    roadless: bool = False


@dataclass
class _Arrays:
    """The arrays of one frame from which its messages are created, all but the frame in the size of the outputs.

    excluded: non-zero where alarms are not allowed. Derived arrays are computed once, when an output first needs them.
    """

    header: Header
    frame: RgbImage
    settings: Settings
    labels: LabelImage | None
    network_scores: ScoreMap | None
    excluded: Mask | None
    filter: ScoreFilter
    tracker: Tracker

    @functools.cached_property
    def scores(self) -> ScoreMap | None:
        if self.network_scores is None:
            return None
        live, name, stamp_ns = self.settings.live, self.settings.score, conversions.stamp_ns_of(self.header)
        scores = self.filter.filtered(live.filter, name, stamp_ns, self.network_scores, self.frame)
        return scores if self.excluded is None else np.where(self.excluded, np.float32(find_score(name).lowest), scores)

    @property
    def mask(self) -> Mask | None:
        """The pixels of alarms: above the threshold or, if an alarm needs several frames, in confirmed tracks."""
        if self.settings.live.alarm_rule.is_immediate:
            return self._above_threshold
        return None if self.alarms is None else self.alarms.mask

    @functools.cached_property
    def alarms(self) -> Alarms | None:
        if self._above_threshold is None:
            return None
        stamp_ns = conversions.stamp_ns_of(self.header)
        rule = self.settings.live.alarm_rule
        return self.tracker.alarms(stamp_ns, self._above_threshold, _require(self.scores), rule)

    @functools.cached_property
    def _above_threshold(self) -> Mask | None:
        if self.scores is None or self.settings.threshold is None:
            return None
        mask = anomaly_mask(self.scores, self.settings.threshold.value)
        if self.excluded is not None:
            mask[self.excluded > 0] = 0
        return mask


def resolve(live: LiveParameters, bundle: Bundle) -> Settings:
    """Return the settings for a bundle. Raises ConfigError if it lacks the score, the target or the road class."""
    score = bundle.check_score(live.score)
    road = road_region(live.road_region, bundle.contract)
    if live.threshold is not None:
        return Settings(live, score, Threshold(live.threshold, "parameter threshold", False), road)
    threshold = threshold_of(bundle, score, live.target_fpr, live.target_alarms_per_minute)
    return Settings(live, score, threshold, road)


class FramePipeline:
    """Converts image messages to output messages with one detector. The settings can be replaced between frames."""

    def __init__(self, detector: Detector, settings: Settings, ego_mask: Mask | None = None) -> None:
        self.detector = detector
        self.settings = settings
        self._ego_mask = ego_mask
        self._filter, self._tracker = ScoreFilter(), Tracker()
        contract = detector.bundle.contract
        self._colors = palette(contract.classes)
        self._scale = functools.lru_cache(functools.partial(scale_of, contract))
        self._cached_ignored_pixels = functools.lru_cache(maxsize=4)(self._ignored_pixels)

    def forget_past(self) -> None:
        """Reset the temporal filter and the tracks, as before the first frame."""
        self._filter.reset()
        self._tracker.reset()

    def process(
        self, msg: Image | CompressedImage, topics: Collection[str], camera_infos: Iterable[CameraInfo] = ()
    ) -> FrameOutputs:
        """Return the output messages of one frame, each with the frame's stamp and frame_id.

        topics: the outputs to create. camera_infos: recent messages of camera_info, oldest first; the receiving thread
        may append to them. Raises FrameError for an unusable message and for an ego mask of another aspect ratio, and
        BackendError if the graph fails. An error in a single output is reported in `failed` and does not affect the
        others.
        """
        settings = self.settings
        frame = rgb_frame(msg)
        if self._ego_mask is not None:
            check_aspect_ratio(self._ego_mask, *frame.shape[:2])
        needs_score = bool(NEEDS_SCORE.intersection(topics))
        road = settings.road if needs_score else None
        outputs = self.detector.detect(
            frame,
            (settings.score,) if needs_score else (),
            labels=bool(NEEDS_LABELS.intersection(topics)),
            source_size=settings.live.source_size,
            road=road,
        )
        arrays = self._arrays(frame, outputs, settings, msg.header)
        messages: dict[str, Any] = {}
        failed: dict[str, str] = {}
        for topic in topics:
            try:
                message = self._message(topic, arrays, camera_infos)
            except Exception as error:  # from an encoder, OpenCV or the camera's calibration
                failed[topic] = error_reason(error)
                continue
            if message is not None:
                messages[topic] = message
        roadless = road is not None and outputs.region is None
        return FrameOutputs(messages, outputs.network_ms, (frame.shape[1], frame.shape[0]), failed, roadless)

    def _arrays(self, frame: RgbImage, outputs: Outputs, settings: Settings, header: Header) -> _Arrays:
        labels, scores = outputs.labels, outputs.scores.get(settings.score)
        size = next((array.shape for array in (labels, scores) if array is not None), frame.shape[:2])
        ignored = self._cached_ignored_pixels(size[0], size[1], settings.live.region_of_interest)
        if ignored is not None and labels is not None:
            labels = np.asarray(cv2.bitwise_or(labels, ignored), np.uint8)
        excluded = _union(ignored, None if outputs.region is None else np.bitwise_not(outputs.region))
        return _Arrays(header, frame, settings, labels, scores, excluded, self._filter, self._tracker)

    def _message(self, topic: str, arrays: _Arrays, camera_infos: Iterable[CameraInfo]) -> Any:
        if topic == CAMERA_INFO:
            return self._camera_info(arrays, camera_infos)
        if topic == DETECTIONS:
            return None if arrays.alarms is None else vision.detections_message(arrays.alarms.alarms, arrays.header)
        pixels, encoding = self._pixels(topic, arrays)
        if pixels is None:  # without a threshold there is no mask; the diagnostics report it
            return None
        if topic == OVERLAY_COMPRESSED:
            quality = arrays.settings.live.jpeg_quality
            return conversions.compressed_from_array(pixels, arrays.header, quality=quality)
        return conversions.image_from_array(pixels, encoding, arrays.header)

    def _pixels(self, topic: str, arrays: _Arrays) -> tuple[npt.NDArray[Any] | None, str]:
        """Return the array of an image topic and its encoding."""
        if topic == LABELS:
            return _require(arrays.labels), "mono8"
        if topic == MASK:
            return arrays.mask, "mono8"
        if topic == SCORE:
            scores, settings = _require(arrays.scores), arrays.settings
            if settings.live.score_encoding == "32FC1":
                return scores, "32FC1"
            return self._scale(settings.score).gray(scores), "mono8"
        labels = _require(arrays.labels)
        return overlay(_resized_frame(arrays.frame, labels.shape), labels, arrays.mask, self._colors), "rgb8"

    def _camera_info(self, arrays: _Arrays, camera_infos: Iterable[CameraInfo]) -> CameraInfo | None:
        height, width = arrays.frame.shape[:2]
        info = conversions.camera_info_of(arrays.header, (width, height), tuple(camera_infos))
        if info is None:
            return None
        spec = self.detector.bundle.contract.input
        size = (width, height) if arrays.settings.live.source_size else (spec.width_px, spec.height_px)
        scaled = conversions.scaled_camera_info(info, *size)
        scaled.header = arrays.header
        return scaled

    def _ignored_pixels(
        self, height: int, width: int, region: tuple[float, float, float, float]
    ) -> npt.NDArray[np.uint8] | None:
        """Return uint8 (height, width), 255 on the own vehicle and outside the region; None if no pixel is ignored."""
        if self._ego_mask is None and region == (0.0, 0.0, 1.0, 1.0):
            return None
        ignored = np.full((height, width), 255, np.uint8)
        left, top, right, bottom = region
        ignored[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = 0
        if self._ego_mask is not None:
            ignored[resized_ego_mask(self._ego_mask, height, width) > 0] = 255
        return ignored


def error_reason(error: Exception) -> str:
    """Return the message of an error on one line, with the type of an error that this package has not raised."""
    message = " ".join(str(error).split())
    return message if isinstance(error, AnomsegError) else f"unexpected {type(error).__name__}: {message}"


def read_ego_mask(path: str) -> Mask | None:
    """Return an image file as a uint8 (H, W) mask, None for an empty path. Raises ConfigError."""
    return read_mask_file(Path(path), "parameter 'ego_mask'") if path else None


def rgb_frame(msg: Image | CompressedImage) -> RgbImage:
    """Return the pixels of an image message, from ROS or from a bag, as uint8 (H, W, 3) RGB. Raises FrameError."""
    # Decided by the fields, because rosbags has message classes of its own.
    return conversions.rgb_from_compressed(msg) if hasattr(msg, "format") else conversions.rgb_from_image(msg)


def _union(one: Mask | None, other: Mask | None) -> Mask | None:
    if one is None or other is None:
        return one if other is None else other
    return np.asarray(cv2.bitwise_or(one, other), np.uint8)


def _resized_frame(frame: RgbImage, shape: tuple[int, ...]) -> RgbImage:
    if frame.shape[:2] == shape:
        return frame
    return np.asarray(cv2.resize(frame, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR), np.uint8)


def _require(array: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
    assert array is not None, "a requested output was not computed"
    return array
