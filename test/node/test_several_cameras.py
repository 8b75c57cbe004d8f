"""Several cameras in one process over real ROS 2: own answers, own states and parameters, one engine."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faulty_backend
import numpy as np
import pytest
import rclpy
import yaml
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus
from faulty_backend import FaultyBackend
from painted_frames import BLUE, HEIGHT_PX, RED, WIDTH_PX
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from ros_harness import Client
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from anomseg_ros.backends import BACKENDS
from anomseg_ros.core.bundle import GRAPH_FILE, Bundle
from anomseg_ros.node import activation, detector_node
from anomseg_ros.node.cameras import Camera
from anomseg_ros.node.conversions import image_from_array
from anomseg_ros.node.detector_node import DetectorNode
from anomseg_ros.node.engines import Engines
from anomseg_ros.replay.process import NodeProcess, free_domain_id

STRIPE_PX = 6
ROAD, BUILDING = 0, 2
COLORS = {"red": (RED, ROAD), "blue": (BLUE, BUILDING)}


def striped(name: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return frame `number` of a camera, of its colour with a stripe of the other's, and the labels it has."""
    (color, label), (other, other_label) = COLORS[name], COLORS["blue" if name == "red" else "red"]
    frame, labels = np.full((HEIGHT_PX, WIDTH_PX, 3), color, np.uint8), np.full((HEIGHT_PX, WIDTH_PX), label, np.uint8)
    columns = slice(number * STRIPE_PX, (number + 1) * STRIPE_PX)
    frame[:, columns], labels[:, columns] = other, other_label
    return frame, labels


def send(client: Client, topic: str, frame: np.ndarray, stamp: Time) -> None:
    client.publish(topic, image_from_array(frame, "rgb8", Header(stamp=stamp, frame_id=topic)))


@pytest.mark.slow
def test_each_camera_runs_as_separate_node(tmp_path: Path, painted: Bundle, tiny_bundle: Path) -> None:
    broken = Path(shutil.copytree(painted.directory, tmp_path / "broken"))
    (broken / GRAPH_FILE).write_bytes(b"")
    cameras = [
        {
            "name": name,
            "image_topic": f"/{name}/image",
            "bundle": str(bundle),
            "score": score,
            "parameters": reliable(name),
        }
        for name, bundle, score in (
            ("red", painted.directory, "void"),
            ("blue", painted.directory, "max_logit"),
            ("broken", broken, "void"),
        )
    ]
    (tmp_path / "cameras.yaml").write_text(yaml.safe_dump({"cameras": cameras}))
    domain = free_domain_id()
    clients = {name: Client(domain, {"labels": Image}, f"/{name}/detector") for name in ("red", "blue", "broken")}
    node = NodeProcess(domain, tmp_path / "node.log", ["--cameras", str(tmp_path / "cameras.yaml")])
    try:
        clients["red"].wait_for_node()
        clients["blue"].wait_for_node()
        assert "shared by 2 cameras" in node.log
        assert_own_answers(clients)
        assert_one_changes_its_bundle(clients, tiny_bundle)
        # The camera that could not be configured stays, says why, and leaves the others alone.
        status = clients["broken"].status("detector: detector")
        assert status.level == DiagnosticStatus.ERROR and "cannot configure" in status.message
        assert {status.hardware_id for status in clients["broken"].diagnostics[-1].status} == {"/broken/image"}
        started = time.monotonic()
        assert node.stop() == 1
        assert time.monotonic() - started < 10
        assert "not started: /broken/detector; see their error messages" in node.log and "Traceback" not in node.log
    finally:
        node.stop()
        for client in clients.values():
            client.close()


@pytest.mark.slow
def test_process_exits_when_no_camera_can_be_configured(tmp_path: Path, painted: Bundle) -> None:
    entries = [
        {"name": name, "image_topic": f"/{name}", "bundle": str(painted.directory), "score": "msp"} for name in COLORS
    ]
    (tmp_path / "cameras.yaml").write_text(yaml.safe_dump({"cameras": entries}))
    node = NodeProcess(free_domain_id(), tmp_path / "node.log", ["--cameras", str(tmp_path / "cameras.yaml")])
    assert node.process.wait(120) == 1
    assert "not started: /red/detector, /blue/detector" in node.log and "Traceback" not in node.log


@pytest.mark.slow
def test_qos_on_the_command_line_may_be_that_of_one_camera(tmp_path: Path, painted: Bundle) -> None:
    entries = [{"name": name, "image_topic": f"/{name}", "bundle": str(painted.directory)} for name in COLORS]
    (tmp_path / "cameras.yaml").write_text(yaml.safe_dump({"cameras": entries}))
    words = ["--cameras", str(tmp_path / "cameras.yaml"), "--ros-args"]
    for name in COLORS:
        words += ["-p", f"qos_overrides./{name}.subscription.reliability:=reliable"]
    with NodeProcess(free_domain_id(), tmp_path / "node.log", words) as node:
        for name in COLORS:
            node.wait_for_log(f"waiting for images on /{name} (raw, reliable)")
    words += ["-p", "qos_overrides./green.subscription.reliability:=reliable"]
    refused = NodeProcess(free_domain_id(), tmp_path / "refused.log", words)
    assert refused.process.wait(60) == 1
    assert "unknown parameter 'qos_overrides./green.subscription.reliability'; known: " in refused.log


def reliable(name: str) -> dict[str, Any]:
    """Every frame is to arrive, so that counts can be held equal."""
    topic = f"qos_overrides./{name}/image.subscription"
    return {f"{topic}.reliability": "reliable", f"{topic}.depth": 100, "max_image_age_s": 0.0}


def assert_own_answers(clients: dict[str, Client]) -> None:
    """Send frames of both cameras faster than they are answered; each answer is of its own frame."""
    frames = {name: [striped(name, number) for number in range(40)] for name in COLORS}
    for number in range(40):
        for name in COLORS:
            send(clients[name], f"/{name}/image", frames[name][number][0], Time(sec=1000, nanosec=number))
    for name in COLORS:
        assert_answers_are_of(name, clients[name], [labels for _, labels in frames[name]])


def assert_answers_are_of(name: str, client: Client, expected: list[np.ndarray]) -> None:
    received, last = client.messages["labels"], len(expected) - 1
    assert client.spin_until(lambda: bool(received) and received[-1].header.stamp.nanosec == last)
    for labels in received:
        assert bytes(labels.data) == expected[labels.header.stamp.nanosec].tobytes()
        assert labels.header.frame_id == f"/{name}/image"
    client.status("frames", after=2)  # one that was made when all was answered
    counts = client.counts()
    assert counts["received"] == len(expected) == sum(counts[end] for end in ("published", "dropped", "idle"))
    assert 0 < len(received) <= counts["published"]  # a test that is kept waiting may miss some


def assert_one_changes_its_bundle(clients: dict[str, Client], bundle: Path) -> None:
    """One camera goes through cleanup to another bundle, and the other one keeps its engine and its parameters."""
    red, blue = clients["red"], clients["blue"]
    assert red.change_state("deactivate") and red.change_state("cleanup")
    frame = striped("blue", 1)[0]
    answered = len(blue.messages["labels"])
    send(blue, "/blue/image", frame, Time(sec=1001))
    assert blue.spin_until(lambda: len(blue.messages["labels"]) > answered)
    assert red.set_parameter("bundle", str(bundle)).successful
    assert not blue.set_parameter("bundle", str(bundle)).successful
    assert red.change_state("configure") and red.change_state("activate")
    red.messages["labels"].clear()
    for second in range(60):  # the new subscription is seen a little later than the old one is gone
        send(red, "/red/image", striped("red", 1)[0], Time(sec=1002 + second))
        if red.spin_until(lambda: bool(red.messages["labels"]), 0.5):
            break
    assert (red.messages["labels"][0].height, red.messages["labels"][0].width) == (64, 128)
    assert blue.set_parameter("threshold", 0.25).successful
    values = {pair.key: pair.value for pair in red.status("detector: detector", after=2).values}
    assert values["threshold"] != "0.25" and values["bundle"] == "tiny"
    assert {pair.key: pair.value for pair in blue.status("detector: detector").values}["threshold"] == "0.25"


class Sharing:
    """Two cameras in this process, each spinning in a thread, with an engine that can be made to hang."""

    def __init__(self, bundle: Path) -> None:
        domain, engines = free_domain_id(), Engines()
        self.context = rclpy.Context()
        self.context.init(domain_id=domain)
        self.clients, self.nodes, self.executors, self.threads = {}, {}, [], []
        parameters = {
            "health_window_s": 0.5,
            "output_timeout_s": 0.4,
            "camera_timeout_s": 0.0,
            "max_processing_ms": 0.0,
        }
        for name in COLORS:
            self.clients[name] = Client(domain, {"labels": Image}, f"/{name}/detector")
            options = Camera(name, f"/{name}/image", str(bundle), parameters=parameters).node_options()
            node = DetectorNode(engines, context=self.context, use_global_arguments=False, **options)
            assert node.trigger_configure() == node.trigger_activate() == TransitionCallbackReturn.SUCCESS
            executor = SingleThreadedExecutor(context=self.context)
            executor.add_node(node)
            self.nodes[name] = node
            self.executors.append(executor)
            self.threads.append(threading.Thread(target=executor.spin, daemon=True))
            self.threads[-1].start()

    def message(self, name: str) -> str:
        return str(self.clients[name].diagnostics[-1].status[0].message)

    def feed_until_told(self, words: dict[str, str]) -> None:
        """Send frames of the cameras until the diagnostics of each say its words."""
        deadline = time.monotonic() + 20.0
        for client in self.clients.values():
            client.diagnostics.clear()
        while not all(self.clients[n].diagnostics and word in self.message(n) for n, word in words.items()):
            assert time.monotonic() < deadline, [self.message(name) for name in words]
            for name in words:
                seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
                send(self.clients[name], f"/{name}/image", striped(name, 1)[0], Time(sec=seconds, nanosec=nanoseconds))
                self.clients[name].spin_for(0.05)

    def close(self) -> None:
        FaultyBackend.released.set()
        for executor, thread in zip(self.executors, self.threads, strict=True):
            executor.shutdown(5.0)
            thread.join(5.0)
        for node in self.nodes.values():
            node.trigger_shutdown()
            node.destroy_node()
        self.context.try_shutdown()
        for client in self.clients.values():
            client.close()


@pytest.fixture
def sharing(painted: Bundle, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sharing]:
    monkeypatch.setitem(BACKENDS, "onnxruntime", faulty_backend.TABLE_ENTRY)
    monkeypatch.setattr(detector_node, "DIAGNOSTICS_PERIOD_S", 0.1)
    monkeypatch.setattr(activation, "WORKER_STOP_S", 0.5)
    running = Sharing(painted.directory)
    yield running
    running.close()


@pytest.mark.slow
def test_stuck_engine_is_reported_by_all_cameras_and_replaced(sharing: Sharing) -> None:
    red, blue = sharing.clients.values()
    sharing.feed_until_told({"red": "running", "blue": "running"})
    FaultyBackend.released.clear()
    sharing.feed_until_told({"red": "stuck"})
    sharing.feed_until_told({"red": "stuck", "blue": "starved: frames arrive"})
    # Whose frame is not in the engine stops without giving it up; the other gives it up, and loads another.
    assert blue.change_state("deactivate")
    assert not red.change_state("deactivate")
    red.status("frames", after=2)
    assert "is stuck, so its engine is abandoned" in sharing.message("red")
    FaultyBackend.released.set()
    answered = len(red.messages["labels"])
    for client in (blue, red):
        assert client is red or client.change_state("cleanup")
        assert client.change_state("configure") and client.change_state("activate")
    sharing.feed_until_told({"red": "running", "blue": "running"})
    assert len(red.messages["labels"]) > answered
    assert sharing.nodes["red"]._share.turns is sharing.nodes["blue"]._share.turns
