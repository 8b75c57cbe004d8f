"""The live node over ROS 2, as `anomseg node` starts it: hostile messages, and good frames that must be answered.

Messages come in rounds: some hostile ones, among them serialized bytes that are damaged, then a good frame, whose
answer is waited for. A second camera of the same process, with the same engine, gets a good frame in each round and
must answer it. Image and CompressedImage take turns, each in a process of its own. The subscriptions are reliable, so
that nothing is lost on the way. At the end the counts of both nodes must add up to what was sent.
"""

from __future__ import annotations

import array
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import cv2
import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from rich.progress import Progress
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from anomseg_ros.node.conversions import image_from_array
from anomseg_ros.replay.process import NodeProcess, free_domain_id
from fuzzing.inputs import generator_of
from fuzzing.messages import NOISE_BYTES, odd_camera_info, odd_compressed, odd_image
from fuzzing.odd_values import damaged
from fuzzing.parameters import odd_parameter
from fuzzing.pictures import valid_pictures

FUZZED, NEIGHBOUR = "/fuzzed", "/neighbour"
"""Namespaces of the two cameras."""
TOPIC, DETECTOR = f"{FUZZED}/image", f"{FUZZED}/detector"
CAMERAS = f"""
cameras:
  - {{{{name: fuzzed, image_topic: {FUZZED}/image, bundle: {{bundle}}}}}}
  - {{{{name: neighbour, image_topic: {NEIGHBOUR}/image, bundle: {{bundle}}}}}}
"""
KINDS: dict[str, type] = {"image": Image, "compressed_image": CompressedImage}
ROUND = 5
"""Hostile messages before a good frame."""
DEPTH = 10 * ROUND
QOS = {"reliability": "reliable", "depth": DEPTH}
ANSWER_S = 20.0
START_S = 120.0
ENDS = ("published", "dropped", "bad", "idle", "in_work")
LIVE = ("threshold", "output_size", "region_of_interest", "score_encoding", "min_component_px", "jpeg_quality")
"""Parameters that are set now and then, to values of any type."""
OUTPUTS = {
    "anomaly/score": Image,
    "anomaly/mask": Image,
    "overlay/compressed": CompressedImage,
    "camera_info": CameraInfo,
}


@dataclass
class Counts:
    """What was sent and what came back. damaged_bytes: those of the hostile messages that may be no message at all."""

    hostile: int = 0
    damaged_bytes: int = 0
    camera_infos: int = 0
    parameters: int = 0
    good: int = 0
    answered: int = 0
    neighbour_good: int = 0
    neighbour_answered: int = 0
    faults: list[str] = field(default_factory=list)


def fuzz_node(
    bundle: Path, seed: int, first: int, count: int, until: float, kinds: Sequence[str] = tuple(KINDS)
) -> dict[str, Any]:
    """Send messages `first` to `count`, as many of each kind, and return what came of them as the result has it."""
    found: dict[str, Any] = {"inputs": 0, "faults": []}
    with Progress() as progress:
        task = progress.add_task("node", total=max(count - first, 0))
        for kind in kinds:
            if count <= first:
                break
            run = _Run(kind, seed, bundle, lambda done: progress.advance(task, done))
            counts, node = run.send(range(first // len(kinds), count // len(kinds)), until)
            found["inputs"] += counts.hostile + counts.good
            found["faults"] += [{"error": fault, "kind": kind, "seed": seed} for fault in counts.faults]
            for name, value in {**vars(counts), **{f"node_{key}": value for key, value in node.items()}}.items():
                if name != "faults":
                    found[f"{kind}_{name}"] = value
    return found


class _Run:
    """One node, its client, and messages of one kind."""

    def __init__(self, kind: str, seed: int, bundle: Path, told: Any) -> None:
        self.kind, self.seed, self.bundle, self.told = kind, seed, bundle, told
        self.counts = Counts()
        self.answers: dict[str, set[int]] = {FUZZED: set(), NEIGHBOUR: set()}
        self.reported: dict[str, dict[str, str]] = {FUZZED: {}, NEIGHBOUR: {}}
        self.reports = 0
        self.noise = np.random.default_rng(0).integers(0, 256, NOISE_BYTES, dtype=np.uint8).tobytes()
        self.pictures = valid_pictures()

    def send(self, numbers: range, until: float) -> tuple[Counts, dict[str, Any]]:
        """Send the messages in rounds; return what was counted here and by the node."""
        domain = free_domain_id()
        with tempfile.TemporaryDirectory() as folder:
            cameras = Path(folder) / "cameras.yaml"
            cameras.write_text(CAMERAS.format(bundle=self.bundle), encoding="utf-8")
            arguments = ["--cameras", str(cameras), "--threads", "1", "--threshold", "0.5", "--ros-args"]
            for topic, (key, value) in product((TOPIC, f"{NEIGHBOUR}/image"), QOS.items()):
                arguments += ["-p", f"qos_overrides.{topic}.subscription.{key}:={value}"]
            with NodeProcess(domain, Path(folder) / "node.log", arguments) as node:
                node.wait_for_log(" on ", START_S)
                self._connect(domain)
                try:
                    self._rounds(node, numbers, until)
                    self._settle(node)
                finally:
                    self._leave()
                self._check_log(node)
        numbers_of_node = {key: int(self.values[key]) for key in ("received", *ENDS, "lost", "failed")}
        numbers_of_node |= {f"neighbour_{key}": int(self.reported[NEIGHBOUR][key]) for key in ("received", *ENDS)}
        return self.counts, numbers_of_node

    def _connect(self, domain: int) -> None:
        self.context = rclpy.Context()
        self.context.init(domain_id=domain)
        self.client = rclpy.create_node("fuzz", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.client)
        reliable = QoSProfile(depth=DEPTH, reliability=ReliabilityPolicy.RELIABLE)
        self.publisher = self.client.create_publisher(KINDS[self.kind], TOPIC, reliable)
        self.neighbour = self.client.create_publisher(Image, f"{NEIGHBOUR}/image", reliable)
        self.camera_info = self.client.create_publisher(CameraInfo, f"{FUZZED}/camera_info", reliable)
        for camera in (FUZZED, NEIGHBOUR):
            topic = f"{camera}/detector/labels"
            self.client.create_subscription(Image, topic, partial(self._on_labels, camera), reliable)
        for name, message_type in OUTPUTS.items():
            self.client.create_subscription(message_type, f"{DETECTOR}/{name}", lambda message: None, reliable)
        self.client.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        publishers = (self.publisher, self.neighbour)
        self._spin_until(
            lambda: all(publisher.get_subscription_count() for publisher in publishers) and all(self.reported.values()),
            START_S,
        )
        self._spin_until(lambda: False, 1.0)  # the node may see this side a little later

    def _leave(self) -> None:
        self.executor.shutdown()
        self.client.destroy_node()
        self.context.try_shutdown()

    @property
    def values(self) -> dict[str, str]:
        """The latest report of the fuzzed camera's node."""
        return self.reported[FUZZED]

    def _on_labels(self, camera: str, message: Image) -> None:
        self.answers[camera].add(message.header.stamp.sec * 10**9 + message.header.stamp.nanosec)

    def _on_diagnostics(self, report: DiagnosticArray) -> None:
        for status in report.status:
            if status.name.endswith("frames"):
                camera = next(camera for camera in self.reported if status.name.startswith(f"{camera}/"))
                values = self.reported[camera] = {pair.key: pair.value for pair in status.values}
                self.reports += camera == FUZZED
                if int(values["received"]) != sum(int(values[end]) for end in ENDS):
                    self.counts.faults.append(f"counts of {camera} do not add up: {values}")

    def _rounds(self, node: NodeProcess, numbers: range, until: float) -> None:
        for number in numbers:
            if time.monotonic() >= until or self.counts.faults:
                return
            rng = generator_of(self.seed, f"node/{self.kind}", number)
            if number % (ROUND + 1) == ROUND:
                self._good_frame(node)
            else:
                self._hostile(rng)
            if number % (40 * ROUND) == 0:
                self._parameter(rng)
            self.told(1)

    def _hostile(self, rng: Random) -> None:
        if rng.random() < 0.1:
            self.camera_info.publish(odd_camera_info(rng, self._good_image()))
            self.counts.camera_infos += 1
        message = odd_image(rng, self.noise) if self.kind == "image" else odd_compressed(rng, self.pictures)
        if rng.random() < 0.1:
            # The four bytes before the message say how it is serialized; another way is another receiver's affair.
            content = bytes(serialize_message(message))
            self.publisher.publish(content[:4] + damaged(rng, content[4:], 3))
            self.counts.damaged_bytes += 1
        else:
            self.publisher.publish(message)
        self.counts.hostile += 1

    def _good_frame(self, node: NodeProcess) -> None:
        """Send a frame to each camera and wait for its labels: it is the newest, so no other may take its place."""
        stamp_ns = time.time_ns()
        header = Header(stamp=Time(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9), frame_id="good")
        image = self._good_image()
        if self.kind == "image":
            message: Any = image
        else:
            pixels = np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)
            message = CompressedImage(format="jpeg")
            message.data = array.array("B", cv2.imencode(".jpg", pixels)[1].tobytes())
        message.header = header
        self.publisher.publish(message)
        neighbours_message = self._good_image()
        neighbours_message.header = header
        self.neighbour.publish(neighbours_message)
        self._spin_until(lambda: all(stamp_ns in answers for answers in self.answers.values()), ANSWER_S)
        self.counts.good += 1
        self.counts.neighbour_good += 1
        self.counts.answered += stamp_ns in self.answers[FUZZED]
        self.counts.neighbour_answered += stamp_ns in self.answers[NEIGHBOUR]
        for camera, answers in self.answers.items():
            if stamp_ns not in answers:
                node.require_running()
                values = self.reported[camera]
                self.counts.faults.append(f"{camera}: a good frame was not answered within {ANSWER_S:g} s: {values}")
            answers.clear()

    def _good_image(self) -> Image:
        pixels = np.frombuffer(self.noise, np.uint8, 24 * 16 * 3).reshape(16, 24, 3)
        return image_from_array(pixels, "rgb8", Header(stamp=Time(sec=5, nanosec=6), frame_id="camera"))

    def _parameter(self, rng: Random) -> None:
        """Have the service set a parameter to anything; it must answer."""
        from rcl_interfaces.srv import SetParameters

        parameter = odd_parameter(rng, rng.choice(LIVE))
        service = self.client.create_client(SetParameters, f"{DETECTOR}/set_parameters")
        if not self._spin_until(service.service_is_ready, ANSWER_S):
            self.counts.faults.append("no service to set parameters")
            return
        request = SetParameters.Request(parameters=[parameter.to_parameter_msg()])
        future = service.call_async(request)
        if not self._spin_until(future.done, ANSWER_S):
            self.counts.faults.append(f"setting {parameter.name} to {parameter.value!r} was not answered")
        self.client.destroy_client(service)
        self.counts.parameters += 1

    def _settle(self, node: NodeProcess) -> None:
        """Wait for two reports in which nothing is in work, and compare what the node received with what was sent."""
        node.require_running()
        fresh = self.reports + 2
        self._spin_until(lambda: self.reports >= fresh and self.values["in_work"] == "0", ANSWER_S)
        received, sent = int(self.values["received"]), self.counts.hostile + self.counts.good
        if not sent - self.counts.damaged_bytes <= received <= sent:
            said = f"{sent} messages were sent, {self.counts.damaged_bytes} of them damaged; {received} were received"
            self.counts.faults.append(said)
        neighbour = self.reported[NEIGHBOUR]
        if not int(neighbour["received"]) == int(neighbour["published"]) == self.counts.neighbour_good:
            said = f"the neighbour was sent {self.counts.neighbour_good} good frames and reports {neighbour}"
            self.counts.faults.append(said)

    def _check_log(self, node: NodeProcess) -> None:
        if "Traceback" in node.log:
            self.counts.faults.append("traceback in the node's log: " + node.log.partition("Traceback")[2][:500])
        if status := node.stop():
            self.counts.faults.append(f"the node ended with status {status}")

    def _spin_until(self, condition: Any, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while not condition() and time.monotonic() < deadline:
            self.executor.spin_once(timeout_sec=0.02)
        return bool(condition())
