"""Detections and class names as vision_msgs messages, where vision_msgs is installed (version 4, Humble and later)."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from std_msgs.msg import Header

from anomseg_ros.core.labels import ClassInfo
from anomseg_ros.errors import ConfigError

if TYPE_CHECKING:
    from vision_msgs.msg import Detection2DArray, LabelInfo

ANOMALY_CLASS_ID = "anomaly"
"""class_id of every detection: a component of the anomaly mask has no class of its own."""


class Component(Protocol):
    """One connected component of the anomaly mask; x_px, y_px is the upper left pixel of its box, score its anomaly
    score."""

    @property
    def x_px(self) -> int: ...
    @property
    def y_px(self) -> int: ...
    @property
    def width_px(self) -> int: ...
    @property
    def height_px(self) -> int: ...
    @property
    def area_px(self) -> int: ...
    @property
    def score(self) -> float: ...


def available() -> bool:
    """Whether vision_msgs can be imported here."""
    return importlib.util.find_spec("vision_msgs") is not None


def detections_message(components: Iterable[Component], header: Header) -> Detection2DArray:
    """Return a vision_msgs/Detection2DArray with one detection per component, in the order given.

    Boxes are in pixels of the published image, pixel centres at integer coordinates, so a box of one pixel at (x, y)
    has its centre at (x, y). class_id is "anomaly", the score is the component's own, and id states its area
    ("area_px=123"): the message has no field for it.
    """
    from vision_msgs.msg import Detection2D, Detection2DArray, ObjectHypothesisWithPose

    message = Detection2DArray()
    message.header = header
    for component in components:
        hypothesis = ObjectHypothesisWithPose()
        hypothesis.hypothesis.class_id = ANOMALY_CLASS_ID
        hypothesis.hypothesis.score = float(component.score)
        detection = Detection2D()
        detection.header = header
        detection.id = f"area_px={int(component.area_px)}"
        detection.bbox.center.position.x = component.x_px + (component.width_px - 1) / 2
        detection.bbox.center.position.y = component.y_px + (component.height_px - 1) / 2
        detection.bbox.size_x = float(component.width_px)
        detection.bbox.size_y = float(component.height_px)
        detection.results.append(hypothesis)
        message.detections.append(detection)
    return message


def label_info_message(classes: Sequence[ClassInfo], header: Header, threshold: float) -> LabelInfo:
    """Return a vision_msgs/LabelInfo: the name of every value of the label image, and the score threshold of the mask.

    Raises:
        ConfigError: two classes with the same train id.
    """
    from vision_msgs.msg import LabelInfo, VisionClass

    ids = [info.train_id for info in classes]
    if len(set(ids)) != len(ids):
        raise ConfigError(f"train ids {ids} are not unique; give every class its own")
    message = LabelInfo()
    message.header = header
    message.threshold = float(threshold)
    for info in classes:
        entry = VisionClass()
        entry.class_id = info.train_id
        entry.class_name = info.name
        message.class_map.append(entry)
    return message
