"""Listens to a running detector: keeps sets of outputs that belong to one frame, and its newest diagnostics."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from anomseg_ros.node.detector_node import NODE_NAME

LABELS, SCORE, MASK = "labels", "anomaly/score", "anomaly/mask"
QUEUE_DEPTH = 10


@dataclass
class FrameOutputs:
    """The outputs of one frame, by topic below the node's name; labels and mask uint8 (H, W), score float32 (H, W)."""

    stamp_ns: int
    arrays: dict[str, npt.NDArray[Any]] = field(default_factory=dict)


class OutputRecorder:
    """Subscribes to labels, score and mask of /detector, and to /diagnostics.

    `every_ns`: keep the outputs of one frame per this much of stamp time, so that a long drive fits in memory.
    """

    def __init__(self, node: Node, every_ns: int) -> None:
        self.status: dict[str, DiagnosticStatus] = {}
        self.reports = 0
        self._every_ns = every_ns
        self._kept: dict[int, FrameOutputs] = {}
        self._last_kept_ns: int | None = None
        qos = QoSProfile(depth=QUEUE_DEPTH, reliability=ReliabilityPolicy.RELIABLE)
        for name in (LABELS, SCORE, MASK):
            node.create_subscription(Image, f"/{NODE_NAME}/{name}", functools.partial(self._on_output, name), qos)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, QUEUE_DEPTH)

    @property
    def complete(self) -> list[FrameOutputs]:
        """Kept frames of which labels, score and mask all came, in order of their stamps."""
        return [outputs for _, outputs in sorted(self._kept.items()) if len(outputs.arrays) == 3]

    def values(self, suffix: str) -> Mapping[str, str]:
        """Return the newest key-value pairs of the status whose name ends with `suffix`; empty before the first."""
        found = next((status for name, status in self.status.items() if name.endswith(suffix)), None)
        return {} if found is None else {pair.key: pair.value for pair in found.values}

    def _on_diagnostics(self, report: DiagnosticArray) -> None:
        self.reports += 1
        self.status |= {status.name: status for status in report.status}

    def _on_output(self, name: str, msg: Image) -> None:
        stamp_ns = msg.header.stamp.sec * 1_000_000_000 + msg.header.stamp.nanosec
        if stamp_ns not in self._kept:
            if self._last_kept_ns is not None and stamp_ns < self._last_kept_ns + self._every_ns:
                return
            self._last_kept_ns = stamp_ns
            self._kept[stamp_ns] = FrameOutputs(stamp_ns)
        dtype = np.float32 if msg.encoding == "32FC1" else np.uint8
        self._kept[stamp_ns].arrays[name] = np.frombuffer(msg.data, dtype).reshape(msg.height, msg.width)
