"""Play a bag through the real node and keep the images it publishes, as bytes, in another bag."""

from __future__ import annotations

import functools
import os
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from anomseg_ros.bags.read import open_bag
from anomseg_ros.bags.write import BagWriter, namespace_of
from anomseg_ros.errors import BagError
from anomseg_ros.node.bag_player import BagPlayer, PlayOptions
from anomseg_ros.node.detector_node import NODE_NAME
from anomseg_ros.node.process import NodeProcess, free_domain_id
from anomseg_ros.node.transport import use_large_shared_memory

SCORE_TOPIC, LABELS_TOPIC, MASK_TOPIC = (f"/{NODE_NAME}/{end}" for end in ("anomaly/score", "labels", "anomaly/mask"))
CLOCK_HZ = 500.0
"""Latencies from stamp to output are read off this clock, so they come in steps of 2 ms."""
DRAIN_S = 10.0
QUEUE_DEPTH = 10
_IMAGE = "sensor_msgs/msg/Image"
PERCENTILES = (50, 95, 99)
_COUNTS = ("received", "published", "dropped", "bad")

Watch = Callable[[int, int], None]
"""Called with (frames the node has received, frames in the bag)."""


@dataclass(frozen=True)
class Recording:
    """What is kept of a live run.

    topics: images of the node, one of them the score. every_ns: keep one frame per this much of stamp time, so that a
    long drive fits on the disk; 0: all.
    """

    topics: Sequence[str] = (SCORE_TOPIC, LABELS_TOPIC)
    every_ns: int = 0


@dataclass(frozen=True)
class LiveRun:
    """What the node said of itself (see node.health for the counts), and how old its scores were on arrival.

    By percentile, in milliseconds of wall time whatever the rate. latency_ms: stamp to output, read off the simulated
    clock and so in steps of 2 ms. processing_ms: arrival to output. age_ms: from publishing a frame to a listener's
    having its score, both ways through ROS. detector: what the node says of backend, score and threshold.
    """

    frames: int
    answered: int
    received: int
    dropped: int
    bad: int
    latency_ms: Mapping[str, float]
    processing_ms: Mapping[str, float]
    age_ms: Mapping[str, float]
    detector: Mapping[str, str]

    @property
    def lost(self) -> int:
        """Frames that were played and did not reach the node."""
        return self.frames - self.received


def play_and_record(
    bag: Path,
    image_topic: str,
    output: Path,
    node_arguments: list[str],
    rate: float,
    log: Path,
    watch: Watch,
    recording: Recording | None = None,
) -> LiveRun:
    """Play the images (and camera_info) of a bag into a node of its own ROS domain; write its outputs to `output`.

    Args:
        bag: with images on image_topic.
        image_topic: of Image, or of CompressedImage where it ends with /compressed.
        output: bag to write.
        node_arguments: of `anomseg node`, without the image topic.
        rate: speed; 1 is the bag's own.
        log: file for the node's log.
        watch: is told how far it is.
        recording: what to keep (None: scores and labels of all frames).

    Raises:
        BagError: a damaged bag, or an output that exists. NodeProcessError: the node did not start, or ended.
    """
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    use_large_shared_memory()
    topics, stamps_ns = _topics(bag, image_topic)
    frames = len(stamps_ns)
    play = PlayOptions(rate=rate, clock_hz=CLOCK_HZ, topics=topics, wait_s=30.0)
    domain = free_domain_id()
    context = rclpy.Context()
    context.init(domain_id=domain)
    try:
        node: Any = rclpy.create_node("live_evaluation", context=context)
        with BagWriter(output) as writer:
            recorder = _LiveRecorder(node, writer, stamps_ns, recording or Recording())
            with NodeProcess(domain, log, [*_image_arguments(image_topic), *node_arguments]) as process:
                process.wait_for_log(" on ")
                with BagPlayer(node, bag, play) as player:
                    _play(player, node, context, recorder, frames, watch)
                process.require_running()
        node.destroy_node()
    finally:
        context.try_shutdown()
    return recorder.run(rate)


class _LiveRecorder:
    """Writes the node's outputs as they come, unopened, and keeps its newest diagnostics.

    stamps_ns: bag time -> stamp of the frames that are played.
    """

    def __init__(self, node: Node, writer: BagWriter, stamps_ns: Mapping[int, int], recording: Recording) -> None:
        self.answered = 0
        self.reports = 0
        self._writer = writer
        self._stamps_ns = stamps_ns
        self._sent_ns: dict[int, int] = {}
        self._ages_ms: list[float] = []
        self._frames: dict[str, str] = {}
        self._detector: dict[str, str] = {}
        self._every_ns = recording.every_ns
        self._chosen_ns: list[int] = []
        qos = QoSProfile(depth=QUEUE_DEPTH, reliability=ReliabilityPolicy.RELIABLE)
        for topic in recording.topics:
            node.create_subscription(Image, topic, functools.partial(self._on_output, topic), qos, raw=True)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, QUEUE_DEPTH)

    def count(self, name: str) -> int:
        """Return one of the node's frame counts, 0 before its first report."""
        return int(self._frames.get(name, 0))

    @property
    def settled(self) -> bool:
        """Whether the node has dealt with every frame it received, and each answer has arrived."""
        received, published, dropped, bad = map(self.count, _COUNTS)
        return received == published + dropped + bad and self.answered >= published

    def sent(self, bag_time_ns: int) -> None:
        """Note that the messages of a bag time are on their way; called by the thread that plays."""
        if bag_time_ns in self._stamps_ns:
            self._sent_ns.setdefault(self._stamps_ns[bag_time_ns], time.monotonic_ns())

    def run(self, rate: float) -> LiveRun:
        """Return what the node reported last, and the ages of its scores."""
        if not self._frames:
            raise BagError("the node published no diagnostics while the bag was played; see its log")
        latency, processing = (
            {f"p{p}": float(self._frames[f"{kind}_p{p}"]) for p in PERCENTILES if f"{kind}_p{p}" in self._frames}
            for kind in ("latency_ms", "processing_ms")
        )
        # The node reads stamp to output off the clock of the bag, which runs `rate` times as fast.
        latency = {name: value / rate for name, value in latency.items()}
        ages = np.percentile(self._ages_ms, PERCENTILES).tolist() if self._ages_ms else ()
        age = {f"p{p}": value for p, value in zip(PERCENTILES, ages, strict=bool(ages))}
        received, dropped, bad = (self.count(name) for name in ("received", "dropped", "bad"))
        frames = len(self._stamps_ns)
        return LiveRun(frames, self.answered, received, dropped, bad, latency, processing, age, self._detector)

    def _on_output(self, topic: str, data: bytes) -> None:
        now_ns, stamp_ns = time.monotonic_ns(), _stamp_ns(data)
        if self._is_chosen(stamp_ns):
            self._writer.write_serialized(time.time_ns(), topic, _IMAGE, data)
        if topic == SCORE_TOPIC:
            self.answered += 1
            sent_ns = self._sent_ns.get(stamp_ns)
            if sent_ns is not None:
                self._ages_ms.append((now_ns - sent_ns) / 1e6)

    def _is_chosen(self, stamp_ns: int) -> bool:
        """Whether the outputs of this frame are kept: all of them or none."""
        if stamp_ns in self._chosen_ns[-QUEUE_DEPTH:]:
            return True
        if self._chosen_ns and stamp_ns < self._chosen_ns[-1] + self._every_ns:
            return False
        self._chosen_ns.append(stamp_ns)
        return True

    def _on_diagnostics(self, report: DiagnosticArray) -> None:
        self.reports += 1
        for status in report.status:
            if status.name.endswith("frames"):
                self._frames = {pair.key: pair.value for pair in status.values}
            elif status.name.endswith("detector"):
                self._detector = {pair.key: pair.value for pair in status.values}


def _play(
    player: BagPlayer,
    node: Node,
    context: Any,
    recorder: _LiveRecorder,
    frames: int,
    watch: Watch,
) -> None:
    """Play in a thread while this one listens; then wait until the node has answered for every frame it received."""
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    failures: list[BaseException] = []
    start_ns = player.bag.start_ns

    def play() -> None:
        try:
            player.play(progress=lambda now: recorder.sent(start_ns + round(now.bag_time_s * 1e9)))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=play, daemon=True)
    thread.start()
    while thread.is_alive():
        executor.spin_once(timeout_sec=0.05)
        watch(recorder.count("received"), frames)
    # The counts of a report may be older than the last frame: wait for two.
    fresh, deadline = recorder.reports + 2, time.monotonic() + DRAIN_S
    while (recorder.reports < fresh or not recorder.settled) and time.monotonic() < deadline:
        executor.spin_once(timeout_sec=0.05)
    watch(recorder.count("received"), frames)
    executor.shutdown()
    if failures:
        raise failures[0]


def _topics(bag: Path, image_topic: str) -> tuple[list[str], dict[int, int]]:
    """Return the topics to play, and bag time -> stamp of the images."""
    with open_bag(bag) as opened:
        opened.require_topic(image_topic)
        beside = f"{namespace_of(image_topic)}/camera_info"
        stamps_ns = {record.time_ns: stamp_ns for record, stamp_ns, _ in opened.read_stamped([image_topic])}
        return [image_topic, *([beside] if beside in opened.topics else [])], stamps_ns


def _stamp_ns(data: bytes) -> int:
    """Return the stamp of a serialized message that begins with a header.

    CDR (DDSI-RTPS 2.5, 10.2): four bytes that state the byte order in the lowest bit of the second, then the fields.
    """
    sec, nanosec = struct.unpack_from("<iI" if data[1] & 1 else ">iI", data, 4)
    return int(sec) * 1_000_000_000 + int(nanosec)


def _image_arguments(image_topic: str) -> list[str]:
    topic = image_topic.removesuffix("/compressed")
    transport = "raw" if topic == image_topic else "compressed"
    return ["--image-topic", topic, "--image-transport", transport, "--use-sim-time"]
