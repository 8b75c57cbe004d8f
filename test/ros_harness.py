"""A ROS client for tests: publishes camera frames to a real node in its own process and collects what it publishes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image

from anomseg_ros.node.transport import use_large_shared_memory

NODE = "/detector"
TOPICS = {"labels": Image, "anomaly/score": Image, "anomaly/mask": Image, "overlay": Image, "camera_info": CameraInfo}
RELIABLE = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)


class Client:
    """Publishes frames to the node and keeps every message it publishes, by topic name without the node's prefix."""

    def __init__(self, domain: int, topics: dict[str, type] | None = None) -> None:
        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
        use_large_shared_memory()
        self.context = rclpy.Context()
        self.context.init(domain_id=domain)
        self.node = rclpy.create_node("test_client", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.messages: dict[str, list[Any]] = {}
        self.subscriptions: dict[str, Any] = {}
        for name, kind in (TOPICS if topics is None else topics).items():
            self.subscribe(name, kind)
        self.diagnostics: list[DiagnosticArray] = []
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self.diagnostics.append, 10)
        self.publishers: dict[str, Any] = {}

    def subscribe(self, name: str, kind: type) -> None:
        """Collect the messages of one of the node's topics."""
        self.messages[name] = []
        self.subscriptions[name] = self.node.create_subscription(
            kind, f"{NODE}/{name}", self.messages[name].append, RELIABLE
        )

    def publish(self, topic: str, message: Any) -> None:
        """Publish on a topic, waiting for its first subscriber."""
        if topic not in self.publishers:
            self.publishers[topic] = self.node.create_publisher(type(message), topic, RELIABLE)
            assert self.spin_until(lambda: self.publishers[topic].get_subscription_count() > 0), (
                f"nobody listens to {topic}"
            )
            # The subscriber may see this side a little later, and best effort does not repeat what it missed.
            self.spin_for(0.3)
        self.publishers[topic].publish(message)

    def wait_for_node(self) -> None:
        """Wait until the node offers every topic that was subscribed to."""
        names = [f"{NODE}/{name}" for name in self.subscriptions]
        assert self.spin_until(lambda: all(self.node.count_publishers(name) for name in names)), (
            f"no publisher for {names}"
        )

    def spin_until(self, condition: Callable[[], bool], timeout_s: float = 30.0) -> bool:
        """Handle messages until the condition holds; return whether it did in time."""
        deadline = time.monotonic() + timeout_s
        while not condition() and time.monotonic() < deadline:
            self.executor.spin_once(timeout_sec=0.02)
        return condition()

    def spin_for(self, duration_s: float) -> None:
        """Handle messages for a while."""
        self.spin_until(lambda: False, duration_s)

    def call(self, kind: type, service: str, request: Any, timeout_s: float = 30.0) -> Any:
        """Call one of the node's services and return its response."""
        client = self.node.create_client(kind, f"{NODE}/{service}")
        assert self.spin_until(client.service_is_ready), f"no service {service}"
        future = client.call_async(request)
        assert self.spin_until(future.done, timeout_s), f"service {service} did not answer"
        self.node.destroy_client(client)
        return future.result()

    def set_parameter(self, name: str, value: Any) -> Any:
        """Set one of the node's parameters; return the SetParametersResult."""
        from rcl_interfaces.srv import SetParameters

        request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
        return self.call(SetParameters, "set_parameters", request).results[0]

    def change_state(self, transition: str) -> bool:
        """Ask for a lifecycle transition by name; return whether it succeeded."""
        from lifecycle_msgs.msg import Transition
        from lifecycle_msgs.srv import ChangeState

        request = ChangeState.Request(
            transition=Transition(label=transition, id=getattr(Transition, f"TRANSITION_{transition.upper()}"))
        )
        return bool(self.call(ChangeState, "change_state", request, 60.0).success)

    def status(self, suffix: str, after: int = 1) -> Any:
        """Return the newest diagnostic status whose name ends with `suffix`, from at least `after` new reports."""
        seen = len(self.diagnostics)
        assert self.spin_until(lambda: len(self.diagnostics) >= seen + after, 15.0), "no diagnostics came"
        return next(status for status in self.diagnostics[-1].status if status.name.endswith(suffix))

    def counts(self) -> dict[str, int]:
        """Return the node's frame counts from its newest diagnostics."""
        values = {pair.key: pair.value for pair in self.status("frames").values}
        names = ("received", "published", "dropped", "bad", "idle", "lost", "late", "clock_jumps")
        return {name: int(values[name]) for name in names}

    def close(self) -> None:
        """Leave the ROS domain."""
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()
