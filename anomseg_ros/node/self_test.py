"""One image through ROS 2's middleware, and the image topics that are published: what `anomseg doctor` asks."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.utilities import get_rmw_implementation_identifier
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from anomseg_ros.node.conversions import image_from_array
from anomseg_ros.node.transport import use_large_shared_memory

IMAGE_TYPES = {"sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"}
TOPIC = "anomseg_doctor/image"


def middleware() -> str:
    """Return the name of the middleware, and whether the profile for large frames is in use."""
    profile = "with the profile for large frames" if use_large_shared_memory() else "with the user's or default profile"
    return f"{get_rmw_implementation_identifier()}, {profile}"


def round_trip_ms(timeout_s: float = 5.0) -> float | None:
    """Return how long an image of 512x1024 takes from publication to a subscriber, ms; None if it does not arrive."""
    arrived: list[float] = []
    with _Participant("anomseg_doctor") as (node, spin_until):
        qos = QoSProfile(depth=1)
        node.create_subscription(Image, TOPIC, lambda _: arrived.append(time.perf_counter()), qos)
        publisher = node.create_publisher(Image, TOPIC, qos)
        message = image_from_array(np.zeros((512, 1024, 3), np.uint8), "rgb8", Header(frame_id="camera"))
        if not spin_until(lambda: publisher.get_subscription_count() > 0, timeout_s):
            return None
        started = time.perf_counter()
        publisher.publish(message)
        return (arrived[0] - started) * 1e3 if spin_until(lambda: bool(arrived), timeout_s) else None


def image_topics(wait_s: float = 2.0) -> list[str]:
    """Return the topics of images, raw or compressed, that have a publisher, after `wait_s` of discovery."""
    with _Participant("anomseg_doctor") as (node, spin_until):
        spin_until(lambda: False, wait_s)
        named = node.get_topic_names_and_types()
        return sorted(name for name, types in named if IMAGE_TYPES & set(types) and node.count_publishers(name))


class _Participant:
    """A node in a context of its own; gives the node and a function that spins it until a condition holds."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> tuple[Node, Callable[[Callable[[], bool], float], bool]]:
        self._context = Context()
        rclpy.init(args=[], context=self._context)
        self._node = rclpy.create_node(self._name, context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        return self._node, self._spin_until

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)

    def _spin_until(self, holds: Callable[[], bool], timeout_s: float) -> bool:
        ends = time.monotonic() + timeout_s
        while not holds():
            if time.monotonic() >= ends:
                return False
            self._executor.spin_once(timeout_sec=0.05)
        return True
