"""The node as a user has it: a process of its own, spoken to over real ROS 2 (rclpy over Fast DDS)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
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
from anomseg_ros.core.bundle import Bundle, change_bundle
from anomseg_ros.core.thresholds import AlarmThreshold, ThresholdTable
from anomseg_ros.node.conversions import compressed_from_array, image_from_array
from anomseg_ros.replay.process import NodeProcess, free_domain_id

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


def test_node_outputs_equal_detector_bit_for_bit(running: Running, frame: np.ndarray, tiny_bundle: Path) -> None:
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


def test_each_frame_is_published_or_counted_as_dropped_or_bad(running: Running, frame: np.ndarray) -> None:
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


BAD_FRAMES: dict[str, tuple[dict[str, Any], str]] = {
    "truncated data": ({"data": [1, 2, 3]}, "data"),
    "wrong step": ({"step": 10}, "step"),
    "zero size": ({"width": 0}, "width"),
    "unknown encoding": ({"encoding": "rgb9"}, "rgb9"),
}


@pytest.mark.slow
def test_bad_frames_are_counted_and_node_continues(running: Running, frame: np.ndarray) -> None:
    for index, (fields, word) in enumerate(BAD_FRAMES.values(), start=1):
        running.send(frame, **fields)
        values: dict[str, str] = {}
        for _ in range(5):
            values = {pair.key: pair.value for pair in running.client.status("frames").values}
            if values["bad"] == str(index):
                break
        assert values["bad"] == str(index) and word in values["last_error"]
    assert running.client.status("frames").level == DiagnosticStatus.ERROR  # nothing but bad frames
    assert not running.client.messages["labels"]
    running.send(frame)
    running.send(frame[:40, :100].copy())  # another size in the middle of the stream
    running.wait_for("labels", 1)
    running.client.spin_for(0.5)
    counts = running.client.counts()
    assert counts["bad"] == 4 and counts["published"] + counts["dropped"] == 2
    assert "frame skipped:" in running.node.log


def test_big_endian_mono16_frame_is_processed(running: Running, tiny_bundle: Path) -> None:
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


def test_corrupt_jpeg_is_counted_as_bad_and_next_frame_published(
    tmp_path: Path, tiny_bundle: Path, frame: np.ndarray
) -> None:
    run = Running(tmp_path, tiny_bundle, "--image-transport", "compressed")
    try:
        run.client.wait_for_node()
        good = compressed_from_array(frame, Header(stamp=Time(sec=7), frame_id="front"), quality=95)
        corrupt = CompressedImage(header=good.header, format="jpeg", data=bytes(good.data)[: len(good.data) // 2])
        for message in (corrupt, good):
            run.client.publish(f"{CAMERA}/compressed", message)
            run.client.spin_for(0.7)
        (labels,) = run.wait_for("labels", 1)
        pixels = cv2.imdecode(np.frombuffer(good.data, np.uint8), cv2.IMREAD_COLOR)
        decoded = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), np.uint8)
        assert bytes(labels.data) == open_detector(tiny_bundle).detect(decoded).labels.tobytes()
        assert run.client.counts()["bad"] == 1
    finally:
        run.close()


@pytest.mark.slow
def test_outputs_without_subscriber_are_not_computed(tmp_path: Path, tiny_bundle: Path, frame: np.ndarray) -> None:
    run = Running(tmp_path, tiny_bundle, *RELIABLE_INPUT, topics={})
    try:
        assert run.client.spin_until(lambda: run.client.node.count_publishers("/detector/labels") > 0)
        run.send(frame)
        run.client.spin_for(1.0)
        assert run.client.counts() | {"received": 1, "idle": 1, "published": 0} == run.client.counts()
    finally:
        run.close()


@pytest.mark.slow
def test_live_parameters_apply_to_next_frame(running: Running, frame: np.ndarray) -> None:
    assert running.client.set_parameter("threshold", -1.0).successful
    running.send(frame)
    assert set(running.wait_for("anomaly/mask", 1)[0].data) == {255}
    assert running.client.set_parameter("score", "msp").successful
    assert running.client.set_parameter("score_encoding", "mono8").successful
    running.send(frame)
    assert running.wait_for("anomaly/score", 2)[1].encoding == "mono8"
    assert {pair.key: pair.value for pair in running.client.status("detector").values}["score"] == "msp"


@pytest.mark.slow
def test_temporal_filter_is_live_and_resets_on_activation(running: Running) -> None:
    client, dark, bright = running.client, *(np.full((90, 160, 3), value, np.uint8) for value in (20, 230))

    def scores(count: int) -> np.ndarray:
        return np.frombuffer(running.wait_for("anomaly/score", count)[-1].data, np.float32)

    assert client.set_parameter("filter_time_constant_s", 1.0).successful
    assert client.set_parameter("temporal_filter", "exponential").successful
    running.send(dark)
    first = scores(1)
    running.send(bright)  # a nanosecond later: nothing of it is through yet
    assert scores(2) == pytest.approx(first, abs=1e-6)
    assert client.change_state("deactivate") and client.change_state("activate")
    assert client.spin_until(lambda: client.publishers[CAMERA].get_subscription_count() == 1)
    client.spin_for(0.5)
    running.send(bright)
    after = scores(3)
    assert np.abs(after - first).max() > 1e-5
    assert client.set_parameter("temporal_filter", "none").successful
    running.send(bright)
    assert (scores(4) == after).all()


@pytest.mark.slow
def test_road_region_limits_mask_and_warns_without_road(tmp_path: Path, painted: Bundle) -> None:
    # The stamps are of long ago and the machine may be busy: either would be told first.
    words = [*RELIABLE_INPUT, "-p", "max_image_age_s:=0.0", "-p", "max_processing_ms:=0.0"]
    words += ["-p", "camera_timeout_s:=0.0", "-p", "health_window_s:=20.0"]
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


def test_road_region_is_rejected_for_bundle_without_road_class(tmp_path: Path, painted: Bundle) -> None:
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
        ("target_alarms_per_minute", -1.0, "out of range"),
        ("target_alarms_per_minute", 1.0, "has no such threshold of"),
        ("jpeg_quality", 0, "out of range"),
        ("score", "mps", "known: msp"),
        ("region_of_interest", [0.9, 0.0, 0.1, 1.0], "left < right"),
        ("road_region", "lane", "known: none"),
        ("temporal_filter", "kalman", "known: "),
        ("alarm_frames_n", 2, "alarm_frames_n is 2, alarm_frames_m 1; expected n of m"),
        ("bundle", "other", "read-only"),
        ("camera_timeout_s", "long", "type"),
    ],
)
def test_rejected_parameter_gives_reason(shared_node: Running, name: str, value: object, reason: str) -> None:
    result = shared_node.client.set_parameter(name, value)
    assert not result.successful and reason in result.reason


@pytest.mark.slow
def test_alarms_per_minute_select_the_threshold_live(tmp_path: Path, painted: Bundle) -> None:
    table = ThresholdTable("camvid", {0.01: 0.5}).with_alarms({1.0: AlarmThreshold(0.8, "my drive")})
    change_bundle(painted, partial(replace, thresholds={"void": table}), tmp_path / "calibrated")
    run = Running(tmp_path, tmp_path / "calibrated", "--target-alarms-per-minute", "2", topics={"labels": Image})
    try:
        run.client.wait_for_node()
        by_alarms, by_rate = (2.0, "0.8", "target_alarms_per_minute 1 on my drive"), (0.0, "0.5", "target_fpr 0.01")
        for target, threshold, source in (by_alarms, by_rate):
            assert run.client.set_parameter("target_alarms_per_minute", target).successful
            values = {pair.key: pair.value for pair in run.client.status("detector", after=2).values}
            assert values["threshold"] == threshold and values["threshold_source"].startswith(source)
    finally:
        run.close()


@pytest.fixture(scope="module")
def shared_node(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Iterator[Running]:
    run = Running(tmp_path_factory.mktemp("node"), tiny_bundle)
    run.client.wait_for_node()
    yield run
    run.close()


@pytest.mark.slow
def test_lifecycle_deactivate_cleanup_and_reactivate(running: Running, frame: np.ndarray) -> None:
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


@pytest.mark.slow
def test_missing_provider_is_reported_as_error(tmp_path: Path, tiny_bundle: Path) -> None:
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
def test_clock_jump_back_is_counted(tmp_path: Path, tiny_bundle: Path, frame: np.ndarray) -> None:
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bundle", "nowhere"], "'nowhere' is neither a bundle directory nor a shipped bundle"),
        (
            ["--backend", "tensorflow"],
            "unknown value of parameter 'backend': 'tensorflow'; known: tensorrt, torch, onnxruntime",
        ),
        (["--score", "mps"], "'mps'; known: msp"),
        (["--ros-args", "-p", "precision:=int8"], "asks for int8, bundle 'tiny' is fp32"),
        (["--ros-args", "-p", "jpeg_quality:=101"], "parameter 'jpeg_quality'"),
        (["--ros-args", "-p", "ego_mask:=/nowhere.png"], "'/nowhere.png' cannot be read"),
    ],
)
def test_failed_start_gives_one_line_error(
    tmp_path: Path, tiny_bundle: Path, arguments: list[str], message: str
) -> None:
    words = arguments if "--bundle" in arguments else ["--bundle", str(tiny_bundle), *arguments]
    node = NodeProcess(free_domain_id(), tmp_path / "node.log", words)
    assert node.process.wait(120) == 1
    assert message in node.log
    assert "Traceback" not in node.log
    (line,) = [line for line in node.log.splitlines() if message in line]
    assert "error" in line.lower()


def test_damaged_bundle_prevents_start(tmp_path: Path, tiny_bundle: Path) -> None:
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    with (copy / "model.onnx").open("ab") as stream:
        stream.write(b"x")
    node = NodeProcess(free_domain_id(), tmp_path / "node.log", ["--bundle", str(copy)])
    assert node.process.wait(120) == 1
    assert "model.onnx does not match its digest" in node.log
