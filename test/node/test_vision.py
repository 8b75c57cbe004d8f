from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("std_msgs.msg", reason="needs the ROS message packages: pip install '.[ros]'")

from std_msgs.msg import Header

from anomseg_ros.core.connected_components import Component
from anomseg_ros.core.labels import CITYSCAPES, VOID
from anomseg_ros.core.tracks import Alarm
from anomseg_ros.errors import ConfigError
from anomseg_ros.node import vision

COMPONENT = Component(10, 20, 5, 1, 4, 0.75)


def test_available_matches_import_of_vision_msgs() -> None:
    try:
        import vision_msgs.msg  # noqa: F401
    except ImportError:
        assert not vision.available()
    else:
        assert vision.available()


def test_detections_hold_box_score_and_track_number() -> None:
    pytest.importorskip("vision_msgs")
    header = Header(frame_id="camera")
    alarms = [Alarm(17, COMPONENT), Alarm(3, replace(COMPONENT, x_px=0, score=0.5))]
    message = vision.detections_message(alarms, header)
    assert message.header == header and len(message.detections) == 2
    first = message.detections[0]
    assert (first.bbox.center.position.x, first.bbox.center.position.y) == (12.0, 20.0)
    assert (first.bbox.size_x, first.bbox.size_y) == (5.0, 1.0)
    assert first.results[0].hypothesis.class_id == "anomaly" and first.results[0].hypothesis.score == 0.75
    assert [detection.id for detection in message.detections] == ["17", "3"]
    assert message.detections[1].bbox.center.position.x == 2.0


def test_label_info_names_every_label_value() -> None:
    pytest.importorskip("vision_msgs")
    message = vision.label_info_message([*CITYSCAPES, VOID], Header(frame_id="camera"), 0.5)
    assert message.threshold == 0.5
    assert {entry.class_id: entry.class_name for entry in message.class_map}[13] == "car"
    assert message.class_map[-1].class_id == 255
    with pytest.raises(ConfigError, match="unique"):
        vision.label_info_message([VOID, VOID], Header(), 0.5)
