"""A bag through the real node, as demo and live evaluation play it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node
from rclpy.serialization import serialize_message
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from anomseg_ros.bags.read import open_bag
from anomseg_ros.bags.write import BagWriter
from anomseg_ros.core.progress import no_progress
from anomseg_ros.node.conversions import compressed_from_array
from anomseg_ros.replay.live import LABELS_TOPIC, SCORE_TOPIC, Recording, _LiveRecorder, play_and_record

TOPIC, KIND = "/front/jpeg_stream", "sensor_msgs/msg/CompressedImage"
FRAMES, INTERVAL_S = 4, 2
"""A frame that arrives before the node has taken the previous one replaces it. The interval is longer than pauses of
a busy machine."""


class Listener:
    """Stands for the node that listens; the test calls the recorder itself."""

    def create_subscription(self, *_: object, **__: object) -> None: ...


class Kept:
    """Stands for the bag of outputs."""

    def write_serialized(self, *_: object) -> None: ...


def report(**figures: object) -> DiagnosticArray:
    values = [KeyValue(key=key, value=str(value)) for key, value in figures.items()]
    return DiagnosticArray(status=[DiagnosticStatus(name="detector: frames", values=values)])


def test_ages_are_of_the_frames_and_outputs_of_the_nodes_own_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """From before a frame is sent to its last output, of the last minute: never shorter than the time in the node."""
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic_ns", lambda: int(now_s * 1e9))
    stamps_ns = {bag_time: bag_time for bag_time in range(1, 4)}
    recorder = _LiveRecorder(cast(Node, Listener()), cast(BagWriter, Kept()), stamps_ns, Recording())
    for stamp_ns, start_s, seconds in ((1, 100.0, 5.0), (2, 200.0, 0.09), (3, 201.0, 0.09)):
        now_s = start_s
        recorder.note_sent(stamp_ns)
        data = serialize_message(Image(header=Header(stamp=Time(nanosec=stamp_ns))))
        for topic, part in ((SCORE_TOPIC, 0.5), (LABELS_TOPIC, 1.0)):
            now_s = start_s + seconds * part
            recorder._on_output(topic, data)
    recorder._on_diagnostics(report(published=3, processing_ms_p50="85.0"))
    run = recorder.result(1.0)
    assert (run.processing_ms["p50"], run.age_ms["p50"]) == (85.0, pytest.approx(90.0))
    assert (recorder.sent, run.answered) == (3, 3)


@pytest.mark.slow
def test_compressed_topic_with_any_name_is_played_completely(tmp_path: Path, tiny_bundle: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (FRAMES, 64, 128, 3), dtype=np.uint8)
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection(TOPIC, KIND, typestore=get_typestore(Stores.ROS2_JAZZY))
        for index, frame in enumerate(frames):
            header = Header(stamp=Time(sec=1 + index * INTERVAL_S), frame_id="front")
            message = serialize_message(compressed_from_array(frame, header, "png"))
            writer.write(connection, (1 + index * INTERVAL_S) * 1_000_000_000, message)
    run = play_and_record(
        tmp_path / "bag",
        TOPIC,
        tmp_path / "outputs",
        ["--bundle", str(tiny_bundle)],
        1.0,
        tmp_path / "node.log",
        no_progress,
    )
    assert (run.frames, run.lost, run.bad, run.answered + run.dropped) == (FRAMES, 0, 0, FRAMES)
    with open_bag(tmp_path / "outputs") as outputs:
        assert outputs.counts[SCORE_TOPIC] == outputs.counts[LABELS_TOPIC] == run.answered > 0
