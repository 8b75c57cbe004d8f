"""A ROS client for tests: publishes camera frames to a node in another process and collects its messages."""

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
# A client that publishes a burst does not read meanwhile: its queues hold the answers to all frames of a test.
COLLECTING = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)


class Client:
    """Publishes frames to a node and stores its messages by topic, without the prefix of the node."""

    def __init__(self, domain: int, topics: dict[str, type] | None = None, name: str = NODE) -> None:
        self.name = name
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
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._keep_report, 10)
        self.publishers: dict[str, Any] = {}
        self.clients: dict[str, Any] = {}

    def _keep_report(self, report: DiagnosticArray) -> None:
        if report.status[0].name.startswith(f"{self.name}:"):
            self.diagnostics.append(report)

    def subscribe(self, name: str, kind: type) -> None:
        """Collect the messages of a topic of the node."""
        self.messages[name] = []
        self.subscriptions[name] = self.node.create_subscription(
            kind, f"{self.name}/{name}", self.messages[name].append, COLLECTING
        )

    def publish(self, topic: str, message: Any) -> None:
        """Publish on a topic, waiting for its first subscriber."""
        if topic not in self.publishers:
            self.publishers[topic] = self.node.create_publisher(type(message), topic, RELIABLE)
            assert self.spin_until(lambda: self.publishers[topic].get_subscription_count() > 0), (
                f"nobody listens to {topic}"
            )
            # The subscriber may match a little later, and best effort does not repeat messages.
            self.spin_for(0.3)
        self.publishers[topic].publish(message)

    def wait_for_node(self) -> None:
        """Wait until the node publishes every subscribed topic. A process starts slowly on a busy machine."""
        names = [f"{self.name}/{name}" for name in self.subscriptions]
        assert self.spin_until(lambda: all(self.node.count_publishers(name) for name in names), 120.0), (
            f"no publisher for {names}"
        )

    def spin_until(self, condition: Callable[[], bool], timeout_s: float = 30.0) -> bool:
        """Process messages until the condition holds or the time is over; return whether it holds."""
        deadline = time.monotonic() + timeout_s
        while not condition() and time.monotonic() < deadline:
            self.executor.spin_once(timeout_sec=0.02)
        return condition()

    def spin_for(self, duration_s: float) -> None:
        """Process messages for a fixed time."""
        self.spin_until(lambda: False, duration_s)

    def call(self, kind: type, service: str, request: Any, timeout_s: float = 30.0) -> Any:
        """Call a service of the node and return its response."""
        if service not in self.clients:
            self.clients[service] = self.node.create_client(kind, f"{self.name}/{service}")
            assert self.spin_until(self.clients[service].service_is_ready), f"no service {service}"
            self._wait_to_be_discovered()
        future = self.clients[service].call_async(request)
        assert self.spin_until(future.done, timeout_s), f"service {service} did not answer"
        return future.result()

    def _wait_to_be_discovered(self) -> None:
        """Wait until the node knows all clients there are: it cannot answer requests of those that it does not know.

        Endpoints are announced in the order in which they were made. So the node knows the older ones once it answers
        a new one, which may be asked as often as that takes.
        """
        from lifecycle_msgs.srv import GetState

        probe = self.node.create_client(GetState, f"{self.name}/get_state")
        answers: list[Any] = []

        def is_answered() -> bool:
            answers.append(probe.call_async(GetState.Request()))
            return self.spin_until(lambda: any(answer.done() for answer in answers), 1.0)

        assert self.spin_until(is_answered, 60.0), f"{self.name} does not answer"
        self.node.destroy_client(probe)

    def set_parameter(self, name: str, value: Any) -> Any:
        """Set a parameter of the node; return the SetParametersResult."""
        from rcl_interfaces.srv import SetParameters

        request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
        return self.call(SetParameters, "set_parameters", request).results[0]

    def change_state(self, transition: str) -> bool:
        """Request a lifecycle transition by name; return whether it succeeded."""
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
        names = ("received", "published", "dropped", "bad", "idle", "in_work", "lost", "late", "failed", "clock_jumps")
        return {name: int(values[name]) for name in names}

    def close(self) -> None:
        """Shut down the client."""
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()
