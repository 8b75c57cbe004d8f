"""The node as a user has it: a process of its own, spoken to over real ROS 2 (rclpy over Fast DDS)."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus
from painted_frames import street, without_road
from ros_harness import Client
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from anomseg_ros.backends import open_detector
from anomseg_ros.core.bundle import Bundle
from anomseg_ros.node.conversions import compressed_from_array, image_from_array
from anomseg_ros.node.process import NodeProcess, free_domain_id

CAMERA = "/camera/image"
# Reliable, so that every frame arrives and counts can be held equal; a camera's own default is best effort.
RELIABLE_INPUT = ["--ros-args", "-p", f"qos_overrides.{CAMERA}.subscription.reliability:=reliable"]
RELIABLE_INPUT += ["-p", f"qos_overrides.{CAMERA}.subscription.depth:=100"]


class Running:
    """A node and its client."""

    def __init__(self, tmp_path: Path, bundle: Path, *arguments: str, topics: dict[str, type] | None = None) -> None:
        self.domain = free_domain_id()
        words = ["--bundle", str(bundle), "--image-topic", CAMERA, *arguments]
        self.node = NodeProcess(self.domain, tmp_path / "node.log", words)
        self.client = Client(self.domain, topics)
        self.stamp = 0

    def send(self, frame: np.ndarray, **fields: Any) -> Image:
        self.stamp += 1
        header = Header(stamp=Time(sec=1000, nanosec=self.stamp), frame_id="front")
        message = image_from_array(frame, "rgb8", header)
        for name, value in fields.items():
            setattr(message, name, value)
        self.client.publish(CAMERA, message)
        return message

    def wait_for(self, name: str, count: int) -> list[Any]:
        received = self.client.messages[name]
        assert self.client.spin_until(lambda: len(received) >= count), (
            f"{len(received)} of {count} on {name}:\n{self.node.log}"
        )
        return received

    def close(self) -> None:
        self.client.close()
        self.node.stop()


@pytest.fixture()
def running(tmp_path: Path, tiny_bundle: Path) -> Iterator[Running]:
    run = Running(tmp_path, tiny_bundle, *RELIABLE_INPUT)
    run.client.wait_for_node()
    yield run
    run.close()


@pytest.fixture()
def frame() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)


def test_outputs_equal_the_detector_bit_for_bit(running: Running, frame: np.ndarray, tiny_bundle: Path) -> None:
    running.client.publish(
        "/camera/camera_info", CameraInfo(width=160, height=90, k=[80.0, 0, 79.5, 0, 80.0, 44.5, 0, 0, 1.0])
    )
    running.client.spin_for(0.3)
    running.send(frame)
    for name in ("labels", "anomaly/score", "anomaly/mask", "overlay", "camera_info"):
        (message,) = running.wait_for(name, 1)
        assert (message.header.stamp.sec, message.header.stamp.nanosec, message.header.frame_id) == (1000, 1, "front")
        assert (message.width, message.height) == (128, 64)
    outputs = open_detector(tiny_bundle).detect(frame)
    score = np.frombuffer(running.client.messages["anomaly/score"][0].data, np.float32).reshape(64, 128)
    assert (score == outputs.scores["void"]).all()
    assert bytes(running.client.messages["labels"][0].data) == outputs.labels.tobytes()
    assert running.node.stop() == 0
    assert "Traceback" not in running.node.log


def test_every_frame_is_published_or_counted(running: Running, frame: np.ndarray) -> None:
    for index in range(60):
        running.send(np.roll(frame, index, axis=1))
    running.wait_for("labels", 1)
    running.client.spin_for(1.0)
    counts = running.client.counts()
    assert counts["received"] == 60
    assert counts["published"] + counts["dropped"] + counts["bad"] == 60
    assert (
        counts["published"] == len(running.client.messages["labels"]) == len(running.client.messages["anomaly/score"])
    )
    # The newest frame wins: whatever was dropped, the last one was not.
    assert running.client.messages["labels"][-1].header.stamp.nanosec == 60
    stamps = [message.header.stamp.nanosec for message in running.client.messages["labels"]]
    assert stamps == sorted(stamps)


BAD_FRAMES = {
    "truncated data": ({"data": [1, 2, 3]}, "data"),
    "wrong step": ({"step": 10}, "step"),
    "zero size": ({"width": 0}, "width"),
    "unknown encoding": ({"encoding": "rgb9"}, "rgb9"),
}


def test_bad_frames_are_skipped_and_the_node_goes_on(running: Running, frame: np.ndarray) -> None:
    for index, (fields, word) in enumerate(BAD_FRAMES.values(), start=1):
        running.send(frame, **fields)
        values: dict[str, str] = {}
        for _ in range(5):
            values = {pair.key: pair.value for pair in running.client.status("frames").values}
            if values["bad"] == str(index):
                break
        assert values["bad"] == str(index) and word in values["last_error"]
    assert running.client.status("frames").level == DiagnosticStatus.ERROR  # nothing but bad frames so far
    assert not running.client.messages["labels"]
    running.send(frame)
    running.send(frame[:40, :100].copy())  # another size in the middle of the stream
    running.wait_for("labels", 1)
    running.client.spin_for(0.5)
    counts = running.client.counts()
    assert counts["bad"] == 4 and counts["published"] + counts["dropped"] == 2
    assert running.client.status("frames").level == DiagnosticStatus.WARN
    assert "frame skipped:" in running.node.log


def test_big_endian_mono16(running: Running, tiny_bundle: Path) -> None:
    gray = np.random.default_rng(3).integers(0, 256, (64, 128), dtype=np.uint8)
    big = (gray.astype(np.uint16) << 8 | 0x55).astype(">u2")
    header = Header(stamp=Time(sec=5), frame_id="front")
    message = Image(
        header=header, width=128, height=64, encoding="mono16", step=256, is_bigendian=1, data=big.tobytes()
    )
    running.client.publish(CAMERA, message)
    (labels,) = running.wait_for("labels", 1)
    expected = open_detector(tiny_bundle).detect(np.repeat(gray[:, :, None], 3, axis=2)).labels
    assert bytes(labels.data) == expected.tobytes()


def test_compressed_input_with_a_corrupt_jpeg(tmp_path: Path, tiny_bundle: Path, frame: np.ndarray) -> None:
    run = Running(tmp_path, tiny_bundle, "--image-transport", "compressed")
    try:
        run.client.wait_for_node()
        good = compressed_from_array(frame, Header(stamp=Time(sec=7), frame_id="front"), quality=95)
        corrupt = CompressedImage(header=good.header, format="jpeg", data=bytes(good.data)[: len(good.data) // 2])
        for message in (corrupt, good):
            run.client.publish(f"{CAMERA}/compressed", message)
            run.client.spin_for(0.7)
        (labels,) = run.wait_for("labels", 1)
        decoded = cv2.cvtColor(cv2.imdecode(np.frombuffer(good.data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        assert bytes(labels.data) == open_detector(tiny_bundle).detect(decoded).labels.tobytes()
        assert run.client.counts()["bad"] == 1
    finally:
        run.close()


@pytest.mark.slow
def test_only_what_has_a_subscriber_is_computed(tmp_path: Path, tiny_bundle: Path, frame: np.ndarray) -> None:
    run = Running(tmp_path, tiny_bundle, *RELIABLE_INPUT, topics={})
    try:
        assert run.client.spin_until(lambda: run.client.node.count_publishers("/detector/labels") > 0)
        run.send(frame)
        run.client.spin_for(1.0)
        assert run.client.counts() | {"received": 1, "idle": 1, "published": 0} == run.client.counts()
    finally:
        run.close()


def test_live_parameters(running: Running, frame: np.ndarray) -> None:
    assert running.client.set_parameter("threshold", -1.0).successful
    running.send(frame)
    assert set(running.wait_for("anomaly/mask", 1)[0].data) == {255}
    assert running.client.set_parameter("score", "msp").successful
    assert running.client.set_parameter("score_encoding", "mono8").successful
    running.send(frame)
    assert running.wait_for("anomaly/score", 2)[1].encoding == "mono8"
    assert {pair.key: pair.value for pair in running.client.status("detector").values}["score"] == "msp"


def test_the_road_as_region_of_interest(tmp_path: Path, painted: Bundle) -> None:
    # The stamps are of long ago and the machine may be busy: either would be warned of first.
    words = [*RELIABLE_INPUT, "-p", "max_image_age_s:=0.0", "-p", "max_processing_ms:=0.0"]
    run = Running(tmp_path, painted.directory, *words, topics={"anomaly/mask": Image})
    try:
        run.client.wait_for_node()
        for count, (region, road) in enumerate((("none", True), ("road", True), ("road", False)), start=1):
            assert run.client.set_parameter("road_region", region).successful
            run.send(street(road=road)[0])
            run.wait_for("anomaly/mask", count)
        masks = [np.frombuffer(mask.data, np.uint8).reshape(128, 256) for mask in run.client.messages["anomaly/mask"]]
        assert [mask[25, 35] for mask in masks] == [255, 0, 255]  # the patch above the horizon
        assert [mask[95, 125] for mask in masks] == [255, 255, 255]  # the obstacle on the road
        frames = run.client.status("frames", after=2)
        assert frames.level == DiagnosticStatus.WARN and "no road found in" in frames.message
        assert {pair.key: pair.value for pair in frames.values}["roadless"] == "1"
        values = {pair.key: pair.value for pair in run.client.status("detector").values}
        assert values["road_region"] == "road"
    finally:
        run.close()


def test_a_road_region_of_a_bundle_without_roads_is_rejected(tmp_path: Path, painted: Bundle) -> None:
    run = Running(tmp_path, without_road(painted, tmp_path / "lawn"), topics={"labels": Image})
    try:
        run.client.wait_for_node()
        result = run.client.set_parameter("road_region", "road")
        assert not result.successful and "bundle 'painted' has no class 'road'" in result.reason
    finally:
        run.close()


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("target_fpr", 1.5, "out of range"),
        ("jpeg_quality", 0, "out of range"),
        ("score", "mps", "known: msp"),
        ("region_of_interest", [0.9, 0.0, 0.1, 1.0], "left < right"),
        ("road_region", "lane", "known: none"),
        ("bundle", "other", "read-only"),
        ("camera_timeout_s", "long", "type"),
    ],
)
def test_a_rejected_parameter_says_why(shared_node: Running, name: str, value: object, reason: str) -> None:
    result = shared_node.client.set_parameter(name, value)
    assert not result.successful and reason in result.reason


@pytest.fixture(scope="module")
def shared_node(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Iterator[Running]:
    run = Running(tmp_path_factory.mktemp("node"), tiny_bundle)
    run.client.wait_for_node()
    yield run
    run.close()


def test_lifecycle(running: Running, frame: np.ndarray) -> None:
    client = running.client
    running.send(frame)
    running.wait_for("labels", 1)
    assert client.change_state("deactivate")
    assert client.spin_until(lambda: client.publishers[CAMERA].get_subscription_count() == 0)
    assert client.status("frames", after=2).message == "not active"
    assert client.change_state("cleanup") and client.change_state("configure") and client.change_state("activate")
    assert client.spin_until(lambda: client.publishers[CAMERA].get_subscription_count() == 1)
    client.wait_for_node()
    running.send(frame)
    running.wait_for("labels", 2)
    assert client.counts()["received"] == 1  # counted anew since activation


def test_a_silent_camera_is_an_error(tmp_path: Path, tiny_bundle: Path) -> None:
    run = Running(tmp_path, tiny_bundle, "--ros-args", "-p", "camera_timeout_s:=0.5")
    try:
        assert run.client.spin_until(
            lambda: bool(run.client.diagnostics) and "camera silent" in run.client.diagnostics[-1].status[0].message
        )
        assert run.client.diagnostics[-1].status[0].level == DiagnosticStatus.ERROR
    finally:
        run.close()


def test_a_backend_that_is_not_the_one_asked_for_is_an_error(tmp_path: Path, tiny_bundle: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    run = Running(tmp_path, tiny_bundle, "--provider", "cuda")
    try:
        run.client.wait_for_node()
        status = run.client.status("detector")
        assert status.level == DiagnosticStatus.ERROR
        assert status.message == "onnxruntime:cuda was asked for, onnxruntime:cpu is in use"
    finally:
        run.close()


@pytest.mark.slow
def test_a_clock_that_jumps_back(tmp_path: Path, tiny_bundle: Path, frame: np.ndarray) -> None:
    from rosgraph_msgs.msg import Clock

    run = Running(tmp_path, tiny_bundle, "--use-sim-time", *RELIABLE_INPUT)
    try:
        run.client.wait_for_node()
        for seconds in (1000, 1001, 900):
            run.client.publish("/clock", Clock(clock=Time(sec=seconds)))
            run.client.spin_for(0.3)
            run.send(frame)
            run.client.spin_for(0.5)
        run.wait_for("labels", 3)
        counts = run.client.counts()
        assert counts["clock_jumps"] == 1 and counts["published"] == 3 and counts["bad"] == 0
        assert "the clock jumped back" in run.node.log
    finally:
        run.close()


# How it stops


def test_one_and_two_interrupts(tmp_path: Path, tiny_bundle: Path) -> None:
    for count in (1, 2):
        node = NodeProcess(free_domain_id(), tmp_path / f"{count}.log", ["--bundle", str(tiny_bundle)])
        node.wait_for_log("bundle tiny")
        for _ in range(count):
            node.process.send_signal(signal.SIGINT)
        assert node.process.wait(20) == 0, node.log
        assert "Traceback" not in node.log


def test_sigterm_during_configure(tmp_path: Path, tiny_bundle: Path) -> None:
    node = NodeProcess(free_domain_id(), tmp_path / "node.log", ["--bundle", str(tiny_bundle)])
    node.wait_for_log("loading bundle")
    node.process.send_signal(signal.SIGTERM)
    assert node.process.wait(20) == 0, node.log
    assert "Traceback" not in node.log


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bundle", "nowhere"], "'nowhere' is neither a bundle directory nor a shipped bundle"),
        (["--backend", "tensorflow"], "unknown value of parameter 'backend': 'tensorflow'; known: torch, onnxruntime"),
        (["--score", "mps"], "'mps'; known: msp"),
        (["--ros-args", "-p", "precision:=int8"], "asks for int8, bundle 'tiny' is fp32"),
        (["--ros-args", "-p", "jpeg_quality:=101"], "parameter 'jpeg_quality'"),
        (["--ros-args", "-p", "ego_mask:=/nowhere.png"], "'/nowhere.png' cannot be read"),
    ],
)
def test_what_cannot_start_says_why_in_one_line(
    tmp_path: Path, tiny_bundle: Path, arguments: list[str], message: str
) -> None:
    words = arguments if "--bundle" in arguments else ["--bundle", str(tiny_bundle), *arguments]
    node = NodeProcess(free_domain_id(), tmp_path / "node.log", words)
    assert node.process.wait(30) == 1
    assert message in node.log
    assert "Traceback" not in node.log
    (line,) = [line for line in node.log.splitlines() if message in line]
    assert "error" in line.lower()


def test_a_damaged_bundle_does_not_start(tmp_path: Path, tiny_bundle: Path) -> None:
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    with (copy / "model.onnx").open("ab") as stream:
        stream.write(b"x")
    node = NodeProcess(free_domain_id(), tmp_path / "node.log", ["--bundle", str(copy)])
    assert node.process.wait(30) == 1
    assert "model.onnx does not match its digest" in node.log
