"""The node with rclpy of ROS 2 Humble, of which a stand-in has the two names that differ."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("rclpy")

from anomseg_ros.node.ros_distributions import call_after_parameters_are_set

ROOT = Path(__file__).resolve().parents[2]
HUMBLE = """
import sys, types
sys.modules["rclpy"] = types.ModuleType("rclpy")
sys.modules["rclpy.event_handler"] = None
sys.modules["rclpy.qos_event"] = types.SimpleNamespace(SubscriptionEventCallbacks="of Humble")
from anomseg_ros.node.ros_distributions import SubscriptionEventCallbacks
print(SubscriptionEventCallbacks)
"""


def test_events_of_subscriptions_are_found_in_humble() -> None:
    done = subprocess.run([sys.executable, "-c", HUMBLE], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "of Humble\n", done.stderr


class HumbleNode:
    """Sets parameters as rclpy 3.3 does: every method ends in _set_parameters_atomically."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def set_parameters(self, parameters: list[Any]) -> list[Any]:
        return [self._set_parameters_atomically([parameter], None, allow_not_set_type=True) for parameter in parameters]

    def _set_parameters_atomically(
        self, parameters: list[Any], descriptors: Any = None, allow_not_set_type: bool = False
    ) -> Any:
        if any(parameter.value is None for parameter in parameters):
            return SimpleNamespace(successful=False)
        self.values |= {parameter.name: parameter.value for parameter in parameters}
        return SimpleNamespace(successful=True)


def test_parameters_of_humble_are_applied_once_they_are_set() -> None:
    node, seen = HumbleNode(), []
    call_after_parameters_are_set(node, lambda parameters: seen.append((parameters[0].name, dict(node.values))))
    results = node.set_parameters([SimpleNamespace(name="a", value=1), SimpleNamespace(name="b", value=None)])
    assert [result.successful for result in results] == [True, False]
    assert seen == [("a", {"a": 1})]
