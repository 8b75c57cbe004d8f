"""A bag through the real node, as demo and live evaluation play it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from rclpy.serialization import serialize_message
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from std_msgs.msg import Header

from anomseg_ros.bags.read import open_bag
from anomseg_ros.core.progress import no_progress
from anomseg_ros.node.conversions import compressed_from_array
from anomseg_ros.replay.live import LABELS_TOPIC, SCORE_TOPIC, play_and_record

TOPIC, KIND, FRAMES = "/front/jpeg_stream", "sensor_msgs/msg/CompressedImage", 6


@pytest.mark.slow
def test_compressed_topic_with_any_name_is_played_completely(tmp_path: Path, tiny_bundle: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (FRAMES, 64, 128, 3), dtype=np.uint8)
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection(TOPIC, KIND, typestore=get_typestore(Stores.ROS2_JAZZY))
        for index, frame in enumerate(frames):
            header = Header(stamp=Time(sec=1 + index // 2, nanosec=index % 2 * 500_000_000), frame_id="front")
            message = serialize_message(compressed_from_array(frame, header, "png"))
            writer.write(connection, 1_000_000_000 + index * 500_000_000, message)
    run = play_and_record(
        tmp_path / "bag",
        TOPIC,
        tmp_path / "outputs",
        ["--bundle", str(tiny_bundle)],
        1.0,  # a frame that comes before the node took the one before it would replace that
        tmp_path / "node.log",
        no_progress,
    )
    assert (run.frames, run.lost, run.bad, run.answered + run.dropped) == (FRAMES, 0, 0, FRAMES)
    with open_bag(tmp_path / "outputs") as outputs:
        assert outputs.counts[SCORE_TOPIC] == outputs.counts[LABELS_TOPIC] == run.answered > 0
