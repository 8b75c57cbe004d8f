"""Publish a bag through rclpy, message by message as recorded, without deserializing the bytes."""

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
from anomseg_ros.core.delivered import Delivered
from anomseg_ros.errors import BagError, unknown_name

RELIABILITIES = {"reliable": ReliabilityPolicy.RELIABLE, "best_effort": ReliabilityPolicy.BEST_EFFORT}

QUEUE_DEPTH = 10

SETTLE_S = 0.5
"""A publisher discovers its subscriber a little before the subscriber discovers it; messages in between are lost."""
ACKNOWLEDGE_S = 2.0
"""Longest wait for acknowledgements of the last messages before a reliable publisher is destroyed."""


@dataclass(frozen=True)
class PlayOptions:
    """How a bag is played.

    rate: speed; 1 is the bag's own speed. loop: start again at the end until stopped; stamps start again too.
    clock_hz: rate, in wall time, at which bag time is published on /clock for nodes with use_sim_time; it is also
    published before each message; 0: no clock.
    topics: topics to publish; None: all. remap: bag topic -> topic to publish on. wait_s: longest wait for a first
    subscriber of any topic; needs_subscriber: without one after this wait, nothing is played. reliability: reliable,
    which best-effort subscribers can receive too, or best_effort.
    """

    rate: float = 1.0
    loop: bool = False
    clock_hz: float = 0.0
    topics: Sequence[str] | None = None
    remap: Mapping[str, str] = field(default_factory=dict)
    wait_s: float = 2.0
    needs_subscriber: bool = False
    reliability: str = "reliable"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise BagError(f"got a rate of {self.rate!r}; expected a number above 0; 1 is the bag's own speed")
        if not (math.isfinite(self.clock_hz) and self.clock_hz >= 0):
            raise BagError(f"got a clock of {self.clock_hz!r} Hz; expected 0 (no clock) or more")
        if not self.wait_s >= 0:
            raise BagError(f"got a wait of {self.wait_s!r} s; expected 0 or more")
        if self.reliability not in RELIABILITIES:
            raise BagError(unknown_name("reliability", self.reliability, RELIABILITIES))


@dataclass(frozen=True)
class PlayProgress:
    """Progress of a pass: messages published and in total, time since the start of the bag, and number of passes."""

    published: int
    total: int
    bag_time_s: float
    duration_s: float
    passes: int


@dataclass(frozen=True)
class PlayReport:
    """Result of playing a bag.

    counts: published topic -> messages. skipped: bag topic -> why it was not published. passes: number of started
    passes. had_subscriber: whether a topic had a subscriber before the first message. stopped: whether the stop event
    was set. max_delay_s: largest delay of a message. differences: differences between the message counts that the bag
    states and the actual ones.
    """

    counts: dict[str, int]
    skipped: dict[str, str]
    passes: int
    had_subscriber: bool
    stopped: bool
    max_delay_s: float
    differences: tuple[Delivered, ...] = ()


class BagPlayer:
    """Plays one bag through publishers of a node; the node need not be spun.

    skipped: bag topic -> why it is not published. total: number of messages in a pass.

    Raises:
        BagError: not a bag, a ROS 1 bag, a topic that the bag does not have, or no topic that can be published.
    """

    def __init__(self, node: Node, path: Path | str, options: PlayOptions | None = None) -> None:
        self.node = node
        self.options = options or PlayOptions()
        self._differences: dict[Delivered, None] = {}  # an ordered set: a looped bag reports a difference in every pass
        self.bag = open_bag(path, lambda difference: self._differences.update({difference: None}))
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
        """Close the bag and destroy the publishers."""
        self.bag.close()
        publishers = self._all_publishers()
        self._publishers, self._clock = {}, None
        for publisher in publishers:
            self.node.destroy_publisher(publisher)

    def play(
        self,
        stop: threading.Event | None = None,
        progress: Callable[[PlayProgress], None] | None = None,
        sending: Callable[[int], None] | None = None,
    ) -> PlayReport:
        """Play the bag until its end or, with `loop`, until `stop` is set; a stop takes effect within milliseconds.

        progress: called after each message. sending: called with the bag time of each message just before it is sent,
        nanoseconds.

        Raises:
            BagError: nobody subscribes, and somebody has to; or the bag is damaged. Messages before the damage have
                been published.
        """
        stop = stop or threading.Event()
        had_subscriber = self._wait_for_subscriber(stop)
        if self.options.needs_subscriber and not had_subscriber and not stop.is_set():
            topics = ", ".join(sorted(publisher.topic_name for publisher in self._publishers.values()))
            raise BagError(
                f"no subscriber appeared within {self.options.wait_s:g} s on a topic of the bag ({topics}); subscribe "
                "to one of them, or rename one with `anomseg bag play --remap`"
            )
        counts = dict.fromkeys((publisher.topic_name for publisher in self._publishers.values()), 0)
        passes, max_delay_s = 0, 0.0
        while not stop.is_set():
            passes += 1
            for record, delay_s, published in self._paced_records(stop):
                publisher = self._publishers[record.topic]
                if sending is not None:
                    sending(record.time_ns)
                publisher.publish(record.data)
                counts[publisher.topic_name] += 1
                max_delay_s = max(max_delay_s, delay_s)
                if progress is not None:
                    progress(self._progress(record, published, passes))
            if not self.options.loop or stop.wait(self._pause_s()):
                break
        self._wait_until_acknowledged(stop)
        absent = self.bag.absent_differences() if self.options.topics is None else []
        differences = tuple(dict.fromkeys((*self._differences, *absent)))
        return PlayReport(counts, dict(self.skipped), passes, had_subscriber, stop.is_set(), max_delay_s, differences)

    def _create_publishers(self) -> None:
        if not self.bag.is_ros2:
            raise BagError(f"{str(self.bag.path)!r} is a ROS 1 bag; convert it first: rosbags-convert --src A --dst B")
        remap = {_absolute(old): _absolute(new) for old, new in self.options.remap.items()}
        topics = dict.fromkeys(_absolute(topic) for topic in self.options.topics or self.bag.topics)
        for topic in [*topics, *remap]:
            self.bag.require_topic(topic)
        if self.options.topics is None:
            self.skipped |= self.bag.skipped
        for topic in topics:
            kind = self.bag.topics[topic]
            message_class = _message_class(kind)
            if message_class is None:
                self.skipped[topic] = f"its type {kind} is not installed"
            else:
                name = remap.get(topic, topic)
                self._publishers[topic] = self.node.create_publisher(message_class, name, self._qos(topic))
        if not self._publishers:
            reasons = "; ".join(f"{topic}: {reason}" for topic, reason in self.skipped.items()) or "it has no topics"
            raise BagError(f"bag {str(self.bag.path)!r} has nothing that can be published ({reasons})")
        if self.options.clock_hz:
            self._clock = self.node.create_publisher(Clock, "/clock", QUEUE_DEPTH)

    def _qos(self, topic: str) -> QoSProfile:
        # Latched topics (label info, static transforms) must stay latched for nodes that start later.
        latched = any(
            isinstance(connection.ext, ConnectionExtRosbag2)
            and any(qos.durability == QosDurability.TRANSIENT_LOCAL for qos in connection.ext.offered_qos_profiles)
            for connection in self.bag.connections
            if connection.topic == topic
        )
        profile: Callable[..., QoSProfile] = QoSProfile  # its constructor has no annotations
        return profile(
            history=HistoryPolicy.KEEP_LAST,
            depth=QUEUE_DEPTH,
            reliability=RELIABILITIES[self.options.reliability],
            durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
        )

    def _wait_for_subscriber(self, stop: threading.Event) -> bool:
        deadline = time.monotonic() + self.options.wait_s
        while not any(publisher.get_subscription_count() for publisher in self._publishers.values()):
            # The timers of nodes on simulated time do not run before the first clock message.
            self._publish_clock(self.bag.start_ns)
            if time.monotonic() >= deadline or stop.wait(0.02):
                return False
        stop.wait(SETTLE_S)
        return True

    def _paced_records(self, stop: threading.Event) -> Iterator[tuple[RawRecord, float, int]]:
        """Yield each message at its time, with its delay in seconds and its number in this pass, from 1."""
        start_ns, rate = self.bag.start_ns, self.options.rate
        start_s = time.monotonic()
        tick_s = 1.0 / self.options.clock_hz if self.options.clock_hz else math.inf
        for number, record in enumerate(self.bag.raw_messages(list(self._publishers)), start=1):
            due_s = start_s + (record.time_ns - start_ns) / 1e9 / rate
            while (left_s := due_s - time.monotonic()) > 0 and not stop.wait(min(left_s, tick_s)):
                if left_s > tick_s:
                    # After an overlong wait, limit the clock to the message's time: otherwise it would jump back.
                    now_ns = start_ns + round((time.monotonic() - start_s) * rate * 1e9)
                    self._publish_clock(min(now_ns, record.time_ns))
            if stop.is_set():
                return
            # The clock must not be behind the message that is published next.
            self._publish_clock(record.time_ns)
            yield record, time.monotonic() - due_s, number

    def _pause_s(self) -> float:
        """Return the wall time between two passes: the mean time between messages of the busiest topic."""
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
        for publisher in self._all_publishers():
            # Short waits, so that a stop takes effect while a dead subscriber sends no acknowledgement.
            while not stop.is_set() and time.monotonic() < deadline:
                if publisher.wait_for_all_acked(Duration(seconds=0.1)):
                    break

    def _all_publishers(self) -> list[Publisher]:
        return [*self._publishers.values(), *([self._clock] if self._clock else [])]

    def _progress(self, record: RawRecord, published: int, passes: int) -> PlayProgress:
        start_ns, end_ns = self.bag.start_ns, self.bag.end_ns
        return PlayProgress(published, self.total, (record.time_ns - start_ns) / 1e9, (end_ns - start_ns) / 1e9, passes)


def _message_class(kind: str) -> Any | None:
    """Return the Python class of a type such as sensor_msgs/msg/Image, or None if it is not installed."""
    try:
        package, folder, name = kind.split("/")
        return getattr(importlib.import_module(f"{package}.{folder}"), name)
    except (ImportError, AttributeError, ValueError):  # foreign names may not have three parts
        return None


def _absolute(topic: str) -> str:
    return topic if topic.startswith("/") else f"/{topic}"
