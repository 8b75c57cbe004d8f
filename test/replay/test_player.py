"""The player over real ROS 2: what a subscriber in the same domain receives is what the bag holds."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: pip install '.[ros]'")
pytest.importorskip("rosbags", reason="needs the rosbags library: pip install '.[bags]'")

import rclpy
from mcap_files import Topic, write_mcap
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from rclpy.serialization import deserialize_message, serialize_message
from rosbags.rosbag2 import Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image

from anomseg_ros.bags.read import open_bag
from anomseg_ros.bags.write import BagWriter
from anomseg_ros.errors import BagError
from anomseg_ros.node import transport
from anomseg_ros.replay.player import BagPlayer, PlayOptions, PlayProgress
from anomseg_ros.replay.process import free_domain_id

FRAMES = 6
RATE_HZ = 10
START_NS = 1_600_000_000_000_000_000


@pytest.fixture
def domain(monkeypatch: pytest.MonkeyPatch) -> int:
    number = free_domain_id()
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    monkeypatch.setenv("ROS_DOMAIN_ID", str(number))
    return number


class Listener(Node):
    """Keeps the serialized messages of some topics, in order of arrival."""

    def __init__(self, topics: dict[str, type], context: rclpy.Context, qos: QoSProfile | int = 50) -> None:
        super().__init__("listener", context=context)
        self.received: list[tuple[str, bytes]] = []
        for topic, kind in topics.items():
            self.create_subscription(kind, topic, self._keeper(topic), qos, raw=True)

    def _keeper(self, topic: str) -> Callable[[bytes], None]:
        return lambda data: self.received.append((topic, data))

    def of(self, topic: str) -> list[bytes]:
        return [bytes(data) for name, data in list(self.received) if name == topic]

    def wait_for(self, topic: str, last: bytes, timeout_s: float = 5.0) -> None:
        deadline = time.monotonic() + timeout_s
        while self.of(topic)[-1:] != [last] and time.monotonic() < deadline:
            time.sleep(0.01)


@pytest.fixture
def context(domain: int) -> Iterator[rclpy.Context]:
    made = rclpy.Context()
    rclpy.init(context=made)
    yield made
    made.try_shutdown()


@pytest.fixture
def listen(context: rclpy.Context) -> Iterator[Callable[..., Listener]]:
    """Makes listeners that are spun in the background."""
    executor = SingleThreadedExecutor(context=context)
    nodes: list[Listener] = []

    def make(topics: dict[str, type], **options: Any) -> Listener:
        nodes.append(Listener(topics, context, **options))
        executor.add_node(nodes[-1])
        return nodes[-1]

    thread = threading.Thread(target=executor.spin, daemon=True)
    thread.start()
    yield make
    executor.shutdown()
    thread.join(5)
    for node in nodes:
        node.destroy_node()


@pytest.fixture
def node(context: rclpy.Context) -> Iterator[Node]:
    made = Node("player", context=context)
    yield made
    made.destroy_node()


def make_bag(path: Path, storage: str = "mcap", frames: int = FRAMES) -> Path:
    random = np.random.default_rng(1)
    with BagWriter(path, storage=storage) as writer:
        for index in range(frames):
            stamp_ns = START_NS + index * 1_000_000_000 // RATE_HZ
            writer.write_frame(stamp_ns, random.integers(0, 256, (48, 64, 3), np.uint8))
    return path


def stored(path: Path, topic: str) -> list[bytes]:
    with open_bag(path) as bag:
        return [bytes(record.data) for record in bag.raw_messages([topic])]


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_received_messages_equal_bag_messages(
    tmp_path: Path, node: Node, listen: Callable[..., Listener], storage: str
) -> None:
    path = make_bag(tmp_path / "bag", storage)
    listener = listen({"/camera/image": Image, "/camera/camera_info": CameraInfo})
    seen: list[int] = []
    with BagPlayer(node, path, PlayOptions(rate=5, wait_s=10)) as player:
        report = player.play(progress=lambda progress: seen.append(progress.published))
    for topic in report.counts:
        listener.wait_for(topic, stored(path, topic)[-1])
    assert report.counts == {"/camera/image": FRAMES, "/camera/camera_info": FRAMES}
    assert report.had_subscriber and not report.stopped and report.passes == 1 and report.skipped == {}
    assert seen == list(range(1, 2 * FRAMES + 1))
    for topic in report.counts:
        assert listener.of(topic) == stored(path, topic)
    stamps = [deserialize_message(data, Image).header.stamp for data in listener.of("/camera/image")]
    assert [stamp.sec * 1_000_000_000 + stamp.nanosec for stamp in stamps] == [
        START_NS + index * 1_000_000_000 // RATE_HZ for index in range(FRAMES)
    ]


def test_play_duration_follows_rate(tmp_path: Path, node: Node, listen: Callable[..., Listener]) -> None:
    path = make_bag(tmp_path / "bag", frames=26)
    listener = listen({"/camera/image": Image}, qos=qos_profile_sensor_data)
    times: list[float] = []
    with BagPlayer(node, path, PlayOptions(rate=5, topics=["camera/image"], wait_s=10)) as player:
        player.play(progress=lambda _: times.append(time.monotonic()))
    # 25 intervals of 0.1 s at five times the speed. Each message is on time in itself: delays do not add up.
    assert times[-1] - times[0] == pytest.approx(0.5, abs=0.1)
    listener.wait_for("/camera/image", stored(path, "/camera/image")[-1])
    assert len(listener.received) == 26


def test_best_effort_remap_and_topic_filter_options(
    tmp_path: Path, node: Node, listen: Callable[..., Listener]
) -> None:
    path = make_bag(tmp_path / "bag")
    listener = listen({"/front": Image, "/camera/image": Image}, qos=qos_profile_sensor_data)
    options = PlayOptions(
        rate=5, topics=["/camera/image"], remap={"camera/image": "front"}, reliability="best_effort", wait_s=10
    )
    with BagPlayer(node, path, options) as player:
        assert player.total == FRAMES
        assert player.play().counts == {"/front": FRAMES}
    listener.wait_for("/front", stored(path, "/camera/image")[-1])
    assert listener.of("/front") == stored(path, "/camera/image")
    assert listener.of("/camera/image") == []


def test_clock_follows_bag_time_and_is_not_behind_messages(
    tmp_path: Path, node: Node, listen: Callable[..., Listener]
) -> None:
    path = make_bag(tmp_path / "bag")
    listener = listen({"/clock": Clock, "/camera/image": Image})
    with BagPlayer(node, path, PlayOptions(rate=1, clock_hz=100, wait_s=10)) as player:
        player.play()
    last_ns = START_NS + (FRAMES - 1) * 1_000_000_000 // RATE_HZ
    last = Clock()
    last.clock.sec, last.clock.nanosec = divmod(last_ns, 1_000_000_000)
    listener.wait_for("/clock", bytes(serialize_message(last)))
    ticks = [deserialize_message(data, Clock).clock for data in listener.of("/clock")]
    times = [tick.sec * 1_000_000_000 + tick.nanosec for tick in ticks]
    assert times == sorted(times) and times[0] == START_NS
    assert times[-1] == last_ns
    # Half a second of bag time at 100 Hz, with ample room for a busy machine.
    assert len(set(times)) > 20
    for index in range(FRAMES):
        assert START_NS + index * 1_000_000_000 // RATE_HZ in times


def test_loop_repeats_until_stopped(tmp_path: Path, node: Node) -> None:
    path = make_bag(tmp_path / "bag", frames=3)
    stop, stopped_at = threading.Event(), 0.0

    def progress(state: PlayProgress) -> None:
        nonlocal stopped_at
        if state.passes == 3:
            stopped_at = time.monotonic()
            stop.set()

    with BagPlayer(node, path, PlayOptions(rate=20, loop=True, wait_s=0)) as player:
        report = player.play(stop, progress)
    assert time.monotonic() - stopped_at < 0.5
    assert report.stopped and report.passes == 3 and not report.had_subscriber
    assert report.counts["/camera/image"] in (6, 7)


def test_bag_that_nobody_wants_is_not_played_if_somebody_has_to(tmp_path: Path, node: Node) -> None:
    path = make_bag(tmp_path / "bag", frames=3)
    with BagPlayer(node, path, PlayOptions(rate=20, wait_s=0.2, needs_subscriber=True)) as player:
        with pytest.raises(
            BagError, match=r"no subscriber appeared within 0.2 s on a topic of the bag \(/camera/camera_info"
        ):
            player.play(progress=lambda _: pytest.fail("a message was played"))
        stop = threading.Event()
        stop.set()
        assert player.play(stop).stopped  # Ctrl-C during the wait is no error


def test_stop_interrupts_long_gap(tmp_path: Path, node: Node) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        for stamp_ns in (0, 3_600_000_000_000):
            writer.write_frame(stamp_ns, np.zeros((4, 4, 3), np.uint8))
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    started = time.monotonic()
    with BagPlayer(node, tmp_path / "bag", PlayOptions(wait_s=0)) as player:
        assert player.play(stop).counts["/camera/image"] == 1
    assert time.monotonic() - started < 2


def test_types_not_installed_are_skipped_and_reported(tmp_path: Path, node: Node) -> None:
    types = get_typestore(Stores.ROS2_JAZZY)
    types.register(get_types_from_msg("int32 value", "absent_msgs/msg/Count"))
    with Writer(tmp_path / "bag", version=9) as writer:
        for topic, kind, message in [
            ("/count", "absent_msgs/msg/Count", types.types["absent_msgs/msg/Count"](value=3)),
            ("/text", "std_msgs/msg/String", types.types["std_msgs/msg/String"](data="hello")),
        ]:
            connection = writer.add_connection(topic, kind, typestore=types)
            writer.write(connection, 1, types.serialize_cdr(message, kind))
    with BagPlayer(node, tmp_path / "bag", PlayOptions(wait_s=0)) as player:
        report = player.play()
    assert report.counts == {"/text": 1}
    assert list(report.skipped) == ["/count"] and "absent_msgs/msg/Count" in report.skipped["/count"]
    with pytest.raises(BagError, match=r"nothing that can be published.*absent_msgs/msg/Count"):
        BagPlayer(node, tmp_path / "bag", PlayOptions(topics=["/count"]))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rate": 0.0}, r"rate of 0\.0"),
        ({"rate": float("inf")}, "rate of inf"),
        ({"clock_hz": -1.0}, r"clock of -1\.0"),
        ({"wait_s": float("nan")}, "wait of nan"),
        ({"reliability": "best"}, "unknown reliability 'best'; known: best_effort"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(BagError, match=text):
        PlayOptions(**options)


def test_topics_missing_from_bag_are_refused(tmp_path: Path, node: Node) -> None:
    path = make_bag(tmp_path / "bag", frames=1)
    for options in (PlayOptions(topics=["/image"]), PlayOptions(remap={"/image": "/camera/image"})):
        with pytest.raises(BagError, match=r"no topic '/image'; it has /camera/image"):
            BagPlayer(node, path, options)


SIGNAL_AT_START = """
import os, signal, sys, rclpy
start = rclpy.init

def interrupted_start(**options):
    os.kill(os.getpid(), signal.SIGINT)
    start(**options)

rclpy.init = interrupted_start
from anomseg_ros.cli import main
sys.exit(main(["bag", "play", sys.argv[1]]))
"""


def test_command_exits_cleanly_on_signal_while_ros_starts(tmp_path: Path, domain: int) -> None:
    path = make_bag(tmp_path / "bag", frames=3)
    done = subprocess.run([sys.executable, "-c", SIGNAL_AT_START, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "stopped before the end" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_command_exits_cleanly_on_signal(tmp_path: Path, domain: int, number: int) -> None:
    path = make_bag(tmp_path / "bag", frames=3)
    code = "import sys; from anomseg_ros.commands.bag_play import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path), "--loop", "--wait", "0", "--clock"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    context = rclpy.Context()
    rclpy.init(context=context)
    listener = Listener({"/camera/image": Image}, context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(listener)
    deadline = time.monotonic() + 15
    while not listener.received and time.monotonic() < deadline:
        executor.spin_once(timeout_sec=0.1)
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    executor.shutdown()
    listener.destroy_node()
    context.try_shutdown()
    assert listener.received, err
    assert process.returncode == 0, err
    assert "/camera/image: " in out and "stopped before the end" in out
    assert "Traceback" not in err


@pytest.mark.slow
def test_command_delivers_large_frames_to_best_effort_subscriber(
    tmp_path: Path, listen: Callable[..., Listener], no_transport_chosen: None
) -> None:
    shared_memory = Path("/dev/shm")
    if not shared_memory.is_dir() or shutil.disk_usage(shared_memory).free < transport.SHARED_MEMORY_BYTES:
        pytest.skip("needs more shared memory, such as docker run --shm-size=1g")
    with BagWriter(tmp_path / "bag") as writer:
        for index in range(10):
            writer.write_frame(index * 100_000_000, np.full((512, 1024, 3), index, np.uint8))
    listener = listen({"/camera/image": Image}, qos=qos_profile_sensor_data)
    code = "import sys; from anomseg_ros.commands.bag_play import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, str(tmp_path / "bag"), "--wait", "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    listener.wait_for("/camera/image", stored(tmp_path / "bag", "/camera/image")[-1])
    assert listener.of("/camera/image") == stored(tmp_path / "bag", "/camera/image")


def test_missing_messages_are_reported_and_others_played(
    tmp_path: Path, node: Node, listen: Callable[..., Listener]
) -> None:
    path = make_bag(tmp_path / "bag", frames=3)
    metadata = path / "metadata.yaml"
    metadata.write_text(metadata.read_text().replace("message_count: 3", "message_count: 4"))
    listener = listen({"/camera/image": Image})
    with BagPlayer(node, path, PlayOptions(rate=20, wait_s=10)) as player:
        report = player.play()
    listener.wait_for("/camera/image", stored_anyway(path)[-1])
    assert report.counts == {"/camera/camera_info": 3, "/camera/image": 3} and len(listener.of("/camera/image")) == 3
    assert sorted(str(one).partition("; ")[0].partition("states ")[2] for one in report.differences) == [
        "4 messages of '/camera/camera_info', 3 could be read",
        "4 messages of '/camera/image', 3 could be read",
    ]


def stored_anyway(path: Path) -> list[bytes]:
    with open_bag(path, lambda _: None) as bag:
        return [bytes(record.data) for record in bag.raw_messages(["/camera/image"])]


def test_unplayable_channels_are_reported_with_reason(tmp_path: Path, node: Node) -> None:
    images = Topic("/camera/image", "sensor_msgs/msg/Image", ((START_NS, b"\0\1\0\0"),))
    others = [Topic("/log", "demo.Log", ((START_NS, b"{}"),), "json", "jsonschema", b"{}")]
    others.append(Topic("/odd", "Odd", ((START_NS, b"\0\1\0\0"),)))
    with BagPlayer(node, write_mcap(tmp_path / "bag.mcap", [images, *others]), PlayOptions(wait_s=0)) as player:
        report = player.play()
    assert report.counts == {"/camera/image": 1}
    assert report.skipped == {"/log": "its encoding is 'json', not CDR", "/odd": "its type Odd is not installed"}
