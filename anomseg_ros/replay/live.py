"""Play a bag through the real node and record the images that it publishes, as bytes, in another bag."""

from __future__ import annotations

import functools
import os
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from anomseg_ros.bags.read import OnDifference, open_bag
from anomseg_ros.bags.write import BagWriter, namespace_of
from anomseg_ros.core.delivered import Delivered
from anomseg_ros.core.progress import Progress
from anomseg_ros.errors import BagError
from anomseg_ros.node.detector_node import NODE_NAME
from anomseg_ros.node.health import HISTORY_S
from anomseg_ros.node.transport import use_large_shared_memory
from anomseg_ros.replay.player import BagPlayer, PlayOptions
from anomseg_ros.replay.process import NodeProcess, free_domain_id

SCORE_TOPIC, LABELS_TOPIC, MASK_TOPIC = (f"/{NODE_NAME}/{end}" for end in ("anomaly/score", "labels", "anomaly/mask"))
CLOCK_HZ = 500.0
"""Rate of /clock. Latencies from stamp to output are measured with this clock, so they are multiples of 2 ms."""
DRAIN_S = 10.0
"""Longest wait for the last outputs after the bag has been played."""
QUEUE_DEPTH = 10
_IMAGE = "sensor_msgs/msg/Image"
PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Recording:
    """Selects the outputs of a live run to record.

    topics: image topics of the node, including the score. every_ns: record one frame per interval of stamp time, so
    that the recording of a long drive fits on the disk; 0: all frames.
    """

    topics: Sequence[str] = (SCORE_TOPIC, LABELS_TOPIC)
    every_ns: int = 0


@dataclass(frozen=True)
class LiveRun:
    """The last diagnostics of the node (for the counts see node.health), and the ages of its outputs on arrival.

    Percentiles are in milliseconds of wall time at any rate. latency_ms: stamp to output, a multiple of 2 ms of the
    simulated clock. processing_ms: arrival of a frame to its last output. age_ms: from before a frame is sent until its
    last recorded output is received, including both ways through ROS. Both are of the frames of the node's last
    HISTORY_S seconds. detector: the node's status, with backend, score and threshold. published: scores that the
    node published; answered: scores that were received here. sent_ns, score_received_ns: stamp -> time on one monotonic
    clock. bag_differences: differences between the message counts that the bag states and the actual ones.
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
    published: int
    sent_ns: Mapping[int, int]
    score_received_ns: Mapping[int, int]
    bag_differences: tuple[Delivered, ...] = ()

    @property
    def differences(self) -> tuple[Delivered, ...]:
        """bag_differences, and the comparison of the scores that the node published with those received."""
        return (*self.bag_differences, Delivered("the node", "published frames", self.published, self.answered))

    @property
    def lost(self) -> int:
        """Number of frames that were played but did not reach the node."""
        return self.frames - self.received


def play_and_record(
    bag: Path,
    image_topic: str,
    output: Path,
    node_arguments: list[str],
    rate: float,
    log: Path,
    progress: Progress,
    recording: Recording | None = None,
) -> LiveRun:
    """Play the images (and camera_info) of a bag into a node in its own ROS domain; write its outputs to `output`.

    Args:
        bag: bag with images on image_topic.
        image_topic: topic of Image or CompressedImage, with any name.
        output: bag to write.
        node_arguments: arguments of `anomseg node`, without the image topic and without --ros-args.
        rate: playback speed; 1 is the bag's own speed.
        log: file for the node's log.
        progress: called repeatedly with the number of frames that were sent.
        recording: the outputs to record; None: scores and labels of all frames.

    Raises:
        BagError: a damaged bag, or an output that exists.
        NodeProcessError: the node did not start, or it ended.
    """
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    use_large_shared_memory()
    bag_differences: list[Delivered] = []
    topics, stamps_ns = _read_topics(bag, image_topic, bag_differences.append)
    frames = len(stamps_ns)
    arguments = [*node_arguments, *_image_arguments(topics)]
    play_options = PlayOptions(rate=rate, clock_hz=CLOCK_HZ, topics=list(topics), wait_s=30.0)
    domain = free_domain_id()
    context = rclpy.Context()
    context.init(domain_id=domain)
    try:
        node: Any = rclpy.create_node("live_evaluation", context=context)
        with BagWriter(output) as writer:
            recorder = _LiveRecorder(node, writer, stamps_ns, recording or Recording())
            with NodeProcess(domain, log, arguments) as process:
                process.wait_for_log(" on ")  # of the line `bundle NAME (NETWORK, SIZE) on BACKEND`
                with BagPlayer(node, bag, play_options) as player:
                    _play(player, node, context, recorder, frames, progress)
                process.require_running()
        node.destroy_node()
    finally:
        context.try_shutdown()
    return replace(recorder.result(rate), bag_differences=tuple(bag_differences))


class _LiveRecorder:
    """Writes the node's serialized outputs to a bag and stores its newest diagnostics.

    stamps_ns: bag time -> stamp of the frames that are played.
    """

    def __init__(self, node: Node, writer: BagWriter, stamps_ns: Mapping[int, int], recording: Recording) -> None:
        self.answered = 0
        self.report_count = 0
        self._writer = writer
        self._stamps_ns = stamps_ns
        self._sent_ns: dict[int, int] = {}
        self._score_received_ns: dict[int, int] = {}
        self._last_received_ns: dict[int, int] = {}
        self._reported_ns = 0
        self._frame_status: dict[str, str] = {}
        self._detector_status: dict[str, str] = {}
        self._every_ns = recording.every_ns
        self._recorded_stamps_ns: list[int] = []
        qos = QoSProfile(depth=QUEUE_DEPTH, reliability=ReliabilityPolicy.RELIABLE)
        for topic in recording.topics:
            node.create_subscription(Image, topic, functools.partial(self._on_output, topic), qos, raw=True)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, QUEUE_DEPTH)

    def count(self, name: str) -> int:
        """Return one of the node's frame counts, 0 before its first report."""
        return int(self._frame_status.get(name, 0))

    @property
    def is_settled(self) -> bool:
        """Whether the node has processed every frame that it received, and all its scores have arrived."""
        return not self.count("in_work") and self.answered >= self.count("published")

    @property
    def sent(self) -> int:
        """Number of frames that were sent."""
        return len(self._sent_ns)

    def note_sent(self, bag_time_ns: int) -> None:
        """Store the time at which the messages of a bag time are sent; called by the playing thread before it sends."""
        if bag_time_ns in self._stamps_ns:
            self._sent_ns.setdefault(self._stamps_ns[bag_time_ns], time.monotonic_ns())

    def result(self, rate: float) -> LiveRun:
        """Return the node's last report and the ages of its outputs."""
        if not self._frame_status:
            raise BagError("the node published no diagnostics while the bag was played; see its log")
        # The node measures stamp to output with the clock of the bag, which runs `rate` times as fast.
        latency_ms = {name: value / rate for name, value in self._percentiles("latency_ms").items()}
        return LiveRun(
            frames=len(self._stamps_ns),
            answered=self.answered,
            received=self.count("received"),
            dropped=self.count("dropped"),
            bad=self.count("bad"),
            latency_ms=latency_ms,
            processing_ms=self._percentiles("processing_ms"),
            age_ms=self._age_percentiles(),
            detector=self._detector_status,
            published=self.count("published"),
            sent_ns=self._sent_ns,
            score_received_ns=self._score_received_ns,
        )

    def _percentiles(self, figure: str) -> dict[str, float]:
        """Return the percentiles of a figure in the node's last report."""
        keys = {f"p{percentile}": f"{figure}_p{percentile}" for percentile in PERCENTILES}
        return {name: float(self._frame_status[key]) for name, key in keys.items() if key in self._frame_status}

    def _age_percentiles(self) -> dict[str, float]:
        # The node's own percentiles are of as many seconds before its last report.
        since_ns = self._reported_ns - HISTORY_S * 1e9
        ages_ms = [
            (received_ns - self._sent_ns[stamp_ns]) / 1e6
            for stamp_ns, received_ns in self._last_received_ns.items()
            if stamp_ns in self._sent_ns and received_ns >= since_ns
        ]
        if not ages_ms:
            return {}
        values = np.percentile(ages_ms, PERCENTILES).tolist()
        return {f"p{percentile}": value for percentile, value in zip(PERCENTILES, values, strict=True)}

    def _on_output(self, topic: str, data: bytes) -> None:
        now_ns, stamp_ns = time.monotonic_ns(), _stamp_ns(data)
        if self._is_recorded(stamp_ns):
            self._writer.write_serialized(time.time_ns(), topic, _IMAGE, data)
        self._last_received_ns[stamp_ns] = now_ns
        if topic == SCORE_TOPIC:
            self.answered += 1
            self._score_received_ns.setdefault(stamp_ns, now_ns)

    def _is_recorded(self, stamp_ns: int) -> bool:
        """Return whether to record the outputs of a frame: all of them or none."""
        if stamp_ns in self._recorded_stamps_ns[-QUEUE_DEPTH:]:
            return True
        if self._recorded_stamps_ns and stamp_ns < self._recorded_stamps_ns[-1] + self._every_ns:
            return False
        self._recorded_stamps_ns.append(stamp_ns)
        return True

    def _on_diagnostics(self, report: DiagnosticArray) -> None:
        self.report_count += 1
        for status in report.status:
            if status.name.endswith("frames"):
                self._reported_ns = time.monotonic_ns()
                self._frame_status = {pair.key: pair.value for pair in status.values}
            elif status.name.endswith("detector"):
                self._detector_status = {pair.key: pair.value for pair in status.values}


def _play(
    player: BagPlayer,
    node: Node,
    context: Any,
    recorder: _LiveRecorder,
    frames: int,
    progress: Progress,
) -> None:
    """Play in a thread while this thread listens; then wait until the node has processed every received frame."""
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    failures: list[BaseException] = []

    def play() -> None:
        try:
            player.play(sending=recorder.note_sent)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=play, daemon=True)
    thread.start()
    while thread.is_alive():
        executor.spin_once(timeout_sec=0.05)
        progress("frames sent to the node", recorder.sent, frames)
    # The counts of the next report may be older than the last frame, so wait for two reports.
    needed_reports, deadline = recorder.report_count + 2, time.monotonic() + DRAIN_S
    while (recorder.report_count < needed_reports or not recorder.is_settled) and time.monotonic() < deadline:
        executor.spin_once(timeout_sec=0.05)
    progress("frames sent to the node", recorder.sent, frames)
    executor.shutdown()
    if failures:
        raise failures[0]


def _read_topics(path: Path, image_topic: str, on_difference: OnDifference) -> tuple[dict[str, str], dict[int, int]]:
    """Return the topics to play with their types, the image topic first, and bag time -> stamp of the images."""
    with open_bag(path, on_difference) as bag:
        bag.require_topic(image_topic)
        info_topic = f"{namespace_of(image_topic)}/camera_info"
        stamps_ns = {record.time_ns: stamp_ns for record, stamp_ns, _ in bag.read_stamped([image_topic])}
        return {topic: bag.topics[topic] for topic in (image_topic, info_topic) if topic in bag.topics}, stamps_ns


def _stamp_ns(data: bytes) -> int:
    """Return the stamp of a serialized message that begins with a header.

    CDR (DDSI-RTPS 2.5, 10.2): four bytes, with the byte order in the lowest bit of the second one, then the fields.
    """
    sec, nanosec = struct.unpack_from("<iI" if data[1] & 1 else ">iI", data, 4)
    return int(sec) * 1_000_000_000 + int(nanosec)


def _image_arguments(topics: Mapping[str, str]) -> list[str]:
    """Return the node's arguments for a camera's topics; the type, not the name, determines the transport."""
    image_topic, kind = next(iter(topics.items()))
    transport, name = ("raw", "image") if kind == _IMAGE else ("compressed", "image/compressed")
    remaps = {name: image_topic, "camera_info": f"{namespace_of(image_topic)}/camera_info"}
    remap_arguments = [argument for old, new in remaps.items() for argument in ("-r", f"{old}:={new}")]
    return ["--image-transport", transport, "--use-sim-time", "--ros-args", *remap_arguments]
