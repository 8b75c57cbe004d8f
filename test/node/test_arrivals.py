"""What arrives on the image topic: its type, and gaps in the numbers of a publisher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from ros_harness import RELIABLE, Client
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header, String

from anomseg_ros.node.arrivals import SequenceGaps, image_source
from anomseg_ros.node.conversions import image_from_array
from anomseg_ros.replay.process import NodeProcess, free_domain_id

CAMERA = "/camera/image"
FRAME = np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)


def numbered(number: int | None) -> dict[str, Any]:
    return {"publication_sequence_number": number}


@pytest.mark.parametrize(
    ("numbers", "gaps"),
    [
        ([7, 8, 9], [0, 0, 0]),
        ([7, 9, 14], [0, 1, 4]),
        ([7, 1, 3], [0, 0, 1]),  # the publisher was started again
        ([7, None, 9], [0, 0, 0]),
    ],
)
def test_gaps_are_counted(numbers: list[int | None], gaps: list[int]) -> None:
    sequence = SequenceGaps()
    assert [sequence.before(numbered(number)) for number in numbers] == gaps


def test_gaps_of_several_publishers_are_unknown() -> None:
    sequence = SequenceGaps()
    assert sequence.before(numbered(5)) == 0
    sequence.has_one_publisher = False
    assert [sequence.before(numbered(number)) for number in (1000, 6, 1001)] == [0, 0, 0]
    sequence.has_one_publisher = True
    assert [sequence.before(numbered(number)) for number in (9, 11)] == [0, 1]
    assert sequence.before(None) == 0


@pytest.mark.slow
def test_camera_topic_of_another_type_is_named(tmp_path: Path, tiny_bundle: Path) -> None:
    domain = free_domain_id()
    words = ["--bundle", str(tiny_bundle), "--image-topic", CAMERA]
    client = Client(domain, {})
    try:
        client.node.create_publisher(String, CAMERA, RELIABLE)
        with NodeProcess(domain, tmp_path / "node.log", words):
            assert client.spin_until(lambda: bool(client.diagnostics), 60.0)
            client.spin_for(4.0)
            assert "the image topic carries std_msgs/msg/String" in client.status("frames").message
    finally:
        client.close()


@pytest.mark.slow
def test_frames_replaced_in_the_queue_of_the_middleware_are_counted_as_lost(tmp_path: Path, tiny_bundle: Path) -> None:
    domain, frames = free_domain_id(), 300
    client = Client(domain, {"labels": Image})
    try:
        with NodeProcess(domain, tmp_path / "node.log", ["--bundle", str(tiny_bundle), "--image-topic", CAMERA]):
            client.wait_for_node()
            # The numbers are known from the first frame on. The last one shows how many were missing before it.
            for burst in (1, frames - 2, 1):
                for _ in range(burst):  # faster than they are received
                    client.publish(CAMERA, image_from_array(FRAME, "rgb8", Header(stamp=Time(sec=1))))
                client.spin_for(1.0)
            counts = client.counts()
            assert counts["lost"] > 0 and counts["received"] + counts["lost"] == frames
            assert counts["published"] == len(client.messages["labels"])
    finally:
        client.close()


@pytest.mark.parametrize(
    ("transport", "types", "expected"),
    [
        ("raw", [], (Image, "image")),
        ("compressed", [], (CompressedImage, "image/compressed")),
        ("raw", ["sensor_msgs/msg/CompressedImage"], (CompressedImage, "image")),
        ("compressed", ["sensor_msgs/msg/CompressedImage"], (CompressedImage, "image")),
        ("compressed", ["sensor_msgs/msg/Image"], (CompressedImage, "image/compressed")),
        ("raw", ["sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"], (Image, "image")),
    ],
)
def test_transport_is_chosen_from_topic_type(transport: str, types: list[str], expected: tuple[type, str]) -> None:
    assert image_source(transport, types) == expected
