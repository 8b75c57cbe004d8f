"""Convert detections and class names to vision_msgs messages; vision_msgs is optional (version 4, Humble or later)."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from std_msgs.msg import Header

from anomseg_ros.core.labels import ClassInfo
from anomseg_ros.core.tracks import Alarm
from anomseg_ros.errors import ConfigError

if TYPE_CHECKING:
    from vision_msgs.msg import Detection2DArray, LabelInfo

ANOMALY_CLASS_ID = "anomaly"
"""class_id of every detection; the detector does not classify anomalies."""


def available() -> bool:
    """Return whether vision_msgs can be imported."""
    try:
        importlib.import_module("vision_msgs.msg")
    except ImportError:
        return False
    return True


def detections_message(alarms: Iterable[Alarm], header: Header) -> Detection2DArray:
    """Return a vision_msgs/Detection2DArray with one detection per alarm, in the same order.

    Boxes are in pixels of the published image. Pixel centres are at integer coordinates, so a box of one pixel at
    (x, y) has its centre at (x, y). class_id is "anomaly", the score is the highest score of the component, and id is
    the number of its track, which stays the same from frame to frame.
    """
    from vision_msgs.msg import Detection2D, Detection2DArray, ObjectHypothesisWithPose

    message = Detection2DArray()
    message.header = header
    for alarm in alarms:
        component = alarm.component
        hypothesis = ObjectHypothesisWithPose()
        hypothesis.hypothesis.class_id = ANOMALY_CLASS_ID
        hypothesis.hypothesis.score = float(component.score)
        detection = Detection2D()
        detection.header = header
        detection.id = str(alarm.track_id)
        detection.bbox.center.position.x = component.x_px + (component.width_px - 1) / 2
        detection.bbox.center.position.y = component.y_px + (component.height_px - 1) / 2
        detection.bbox.size_x = float(component.width_px)
        detection.bbox.size_y = float(component.height_px)
        detection.results.append(hypothesis)
        message.detections.append(detection)
    return message


def label_info_message(classes: Sequence[ClassInfo], header: Header, threshold: float) -> LabelInfo:
    """Return a vision_msgs/LabelInfo with the name of every label value and the score threshold of the mask.

    Raises ConfigError if two classes have the same train id.
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
