"""Publish a bag through rclpy, message by message as it was recorded: the serialized bytes are never unpacked."""

from __future__ import annotations

import importlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rosbags.interfaces import ConnectionExtRosbag2, QosDurability
from rosgraph_msgs.msg import Clock

from anomseg_ros.bags.read import RawRecord, open_bag
from anomseg_ros.errors import BagError, unknown_name

RELIABILITIES = {"reliable": ReliabilityPolicy.RELIABLE, "best_effort": ReliabilityPolicy.BEST_EFFORT}

QUEUE_DEPTH = 10

# A publisher sees its subscriber a little before the subscriber sees the publisher; what is sent in between is lost.
SETTLE_S = 0.2
# How long the last messages of a reliable publisher may take to be acknowledged before it is torn down.
ACKNOWLEDGE_S = 2.0


@dataclass(frozen=True)
class PlayOptions:
    """How a bag is played.

    rate: speed, 1 is the bag's own. loop: begin again at the end, until stopped; stamps begin again as well.
    clock_hz: publish the bag's time on /clock, for nodes with use_sim_time, this often per second of wall time and
    before each message; 0: not.
    topics: only these (None: all). remap: bag topic -> topic to publish. wait_s: how long to wait for a first
    subscriber of any topic before playing anyway. reliability: reliable (sensor-data subscribers can hear it too) or
    best_effort.
    """

    rate: float = 1.0
    loop: bool = False
    clock_hz: float = 0.0
    topics: Sequence[str] | None = None
    remap: Mapping[str, str] = field(default_factory=dict)
    wait_s: float = 2.0
    reliability: str = "reliable"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise BagError(f"got a rate of {self.rate!r}; expected a number above 0, 1 is the bag's own speed")
        if not (math.isfinite(self.clock_hz) and self.clock_hz >= 0):
            raise BagError(f"got a clock of {self.clock_hz!r} Hz; expected 0 (no clock) or more")
        if not self.wait_s >= 0:
            raise BagError(f"got a wait of {self.wait_s!r} s; expected 0 or more")
        if self.reliability not in RELIABILITIES:
            raise BagError(unknown_name("reliability", self.reliability, RELIABILITIES))


@dataclass(frozen=True)
class PlayProgress:
    """Where the player is: messages published and there to publish in this pass, and the bag's time since its start."""

    published: int
    total: int
    bag_time_s: float
    duration_s: float
    passes: int


@dataclass(frozen=True)
class PlayReport:
    """What was played.

    counts: published topic -> messages. skipped: bag topic -> why it was not published. passes: times the bag was
    begun.
    found_subscriber: whether one was there before the first message. stopped: whether play was told to stop.
    latest_s: the most that a message was behind its time.
    """

    counts: dict[str, int]
    skipped: dict[str, str]
    passes: int
    found_subscriber: bool
    stopped: bool
    latest_s: float


class BagPlayer:
    """Plays one bag through publishers of a node; the node need not be spun.

    skipped: bag topic -> why it is not published. total: messages that one pass publishes.

    Raises:
        BagError: not a bag, a ROS 1 bag, a topic that the bag does not have, or nothing that can be published.
    """

    def __init__(self, node: Node, path: Path | str, options: PlayOptions | None = None) -> None:
        self.node = node
        self.options = options or PlayOptions()
        self.bag = open_bag(path)
        self._publishers: dict[str, Publisher] = {}
        self.skipped: dict[str, str] = {}
        self._clock: Publisher | None = None
        try:
            self._create_publishers()
            counts = self.bag.counts
            self.total = sum(counts[topic] for topic in self._publishers)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> BagPlayer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the bag and take the publishers from the node."""
        self.bag.close()
        publishers = [*self._publishers.values(), *([self._clock] if self._clock else [])]
        self._publishers, self._clock = {}, None
        for publisher in publishers:
            self.node.destroy_publisher(publisher)

    def play(
        self, stop: threading.Event | None = None, progress: Callable[[PlayProgress], None] | None = None
    ) -> PlayReport:
        """Play the bag; returns at its end, with `loop` only when `stop` is set, and then within milliseconds.

        progress is called after each message.

        Raises:
            BagError: the bag turns out to be damaged. What came before the damage has been published.
        """
        stop = stop or threading.Event()
        found_subscriber = self._wait_for_subscriber(stop)
        counts = dict.fromkeys((publisher.topic_name for publisher in self._publishers.values()), 0)
        passes, latest_s = 0, 0.0
        while not stop.is_set():
            passes += 1
            for record, late_s, published in self._paced(stop):
                publisher = self._publishers[record.topic]
                publisher.publish(record.data)
                counts[publisher.topic_name] += 1
                latest_s = max(latest_s, late_s)
                if progress is not None:
                    progress(self._progress(record, published, passes))
            if not self.options.loop or stop.wait(self._pause_s()):
                break
        self._wait_until_acknowledged(stop)
        return PlayReport(counts, dict(self.skipped), passes, found_subscriber, stop.is_set(), latest_s)

    def _create_publishers(self) -> None:
        if not self.bag.is_ros2:
            raise BagError(f"{str(self.bag.path)!r} is a ROS 1 bag; convert it first: rosbags-convert --src A --dst B")
        remap = {_absolute(old): _absolute(new) for old, new in self.options.remap.items()}
        topics = dict.fromkeys(_absolute(topic) for topic in self.options.topics or self.bag.topics)
        for topic in [*topics, *remap]:
            self.bag.require_topic(topic)
        for topic in topics:
            kind = self.bag.topics[topic]
            message_class = _message_class(kind)
            if message_class is None:
                self.skipped[topic] = f"its type {kind} is not installed here"
            else:
                name = remap.get(topic, topic)
                self._publishers[topic] = self.node.create_publisher(message_class, name, self._qos(topic))
        if not self._publishers:
            reasons = "; ".join(f"{topic}: {why}" for topic, why in self.skipped.items()) or "it has no topics"
            raise BagError(f"bag {str(self.bag.path)!r} has nothing that can be published ({reasons})")
        if self.options.clock_hz:
            self._clock = self.node.create_publisher(Clock, "/clock", QUEUE_DEPTH)

    def _qos(self, topic: str) -> QoSProfile:
        # Latched topics (label info, static transforms) must stay latched for nodes that come later.
        latched = any(
            isinstance(connection.ext, ConnectionExtRosbag2)
            and any(qos.durability == QosDurability.TRANSIENT_LOCAL for qos in connection.ext.offered_qos_profiles)
            for connection in self.bag.connections
            if connection.topic == topic
        )
        profile: Callable[..., QoSProfile] = QoSProfile  # its constructor carries no annotations
        return profile(
            history=HistoryPolicy.KEEP_LAST,
            depth=QUEUE_DEPTH,
            reliability=RELIABILITIES[self.options.reliability],
            durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
        )

    def _wait_for_subscriber(self, stop: threading.Event) -> bool:
        deadline = time.monotonic() + self.options.wait_s
        while not any(publisher.get_subscription_count() for publisher in self._publishers.values()):
            # Nodes on the bag's time need a clock from the beginning: their timers stand still without one.
            self._publish_clock(self.bag.start_ns)
            if time.monotonic() >= deadline or stop.wait(0.02):
                return False
        stop.wait(SETTLE_S)
        return True

    def _paced(self, stop: threading.Event) -> Iterator[tuple[RawRecord, float, int]]:
        """Yield each message when its time has come, with how late that is in seconds and the running number."""
        start_ns, rate = self.bag.start_ns, self.options.rate
        started = time.monotonic()
        tick_s = 1.0 / self.options.clock_hz if self.options.clock_hz else math.inf
        for published, record in enumerate(self.bag.raw_messages(list(self._publishers)), start=1):
            due = started + (record.time_ns - start_ns) / 1e9 / rate
            while (left_s := due - time.monotonic()) > 0 and not stop.wait(min(left_s, tick_s)):
                if left_s > tick_s:
                    # A wait that took too long must not carry the clock past the message: it would jump back.
                    now_ns = start_ns + round((time.monotonic() - started) * rate * 1e9)
                    self._publish_clock(min(now_ns, record.time_ns))
            if stop.is_set():
                return
            # The clock is never behind the message that is being published.
            self._publish_clock(record.time_ns)
            yield record, time.monotonic() - due, published

    def _pause_s(self) -> float:
        """Wall time between the last message of a pass and the first of the next: that between two frames."""
        busiest = max(self.bag.counts[topic] for topic in self._publishers)
        duration_s = (self.bag.end_ns - self.bag.start_ns) / 1e9
        return duration_s / (busiest - 1) / self.options.rate if busiest > 1 else 1.0

    def _publish_clock(self, time_ns: int) -> None:
        if self._clock is not None:
            message = Clock()
            message.clock.sec, message.clock.nanosec = divmod(time_ns, 1_000_000_000)
            self._clock.publish(message)

    def _wait_until_acknowledged(self, stop: threading.Event) -> None:
        if self.options.reliability != "reliable":
            return
        deadline = time.monotonic() + ACKNOWLEDGE_S
        for publisher in [*self._publishers.values(), *([self._clock] if self._clock else [])]:
            # In slices, so that a stop is obeyed while a dead subscriber keeps its acknowledgement back.
            while not stop.is_set() and time.monotonic() < deadline:
                if publisher.wait_for_all_acked(Duration(seconds=0.1)):
                    break

    def _progress(self, record: RawRecord, published: int, passes: int) -> PlayProgress:
        start_ns, end_ns = self.bag.start_ns, self.bag.end_ns
        return PlayProgress(published, self.total, (record.time_ns - start_ns) / 1e9, (end_ns - start_ns) / 1e9, passes)


def _message_class(kind: str) -> Any | None:
    """Return the Python class of a type such as sensor_msgs/msg/Image, or None where it is not installed."""
    package, folder, name = kind.split("/")
    try:
        return getattr(importlib.import_module(f"{package}.{folder}"), name)
    except (ImportError, AttributeError):
        return None


def _absolute(topic: str) -> str:
    return topic if topic.startswith("/") else f"/{topic}"
