"""Faults of camera, engine and outputs over real ROS 2: the diagnostics of the node, and its recovery.

One node runs in this process, with short windows; test_health.py checks the times of the default windows."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import faulty_backend
import numpy as np
import pytest
import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus
from faulty_backend import FaultyBackend
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from ros_harness import RELIABLE, Client
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from anomseg_ros.backends import BACKENDS
from anomseg_ros.errors import ConfigError
from anomseg_ros.node import activation, detector_node, vision
from anomseg_ros.node.conversions import compressed_from_array, image_from_array
from anomseg_ros.node.detector_node import DetectorNode
from anomseg_ros.replay.process import free_domain_id, local_environment

CAMERA = "/camera/image"
FRAME = np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)
PARAMETERS = {"health_window_s": 0.5, "output_timeout_s": 0.4, "camera_timeout_s": 0.4, "max_processing_ms": 0.0}
TOPICS = {"labels": Image, "overlay": Image, "overlay/compressed": CompressedImage, "camera_info": CameraInfo}
FAST = 10
"""Frames per second."""


PATIENCE = 3


class Harness:
    """The node, which spins in a thread, and a client."""

    def __init__(self, bundle: Path) -> None:
        domain = free_domain_id()
        self.client = Client(domain, TOPICS)
        self.context = rclpy.Context()
        self.context.init(domain_id=domain)
        words = ["--ros-args", "-r", f"image:={CAMERA}", "-r", "camera_info:=/camera/camera_info"]
        values = {**PARAMETERS, "bundle": str(bundle)}
        values |= {
            f"qos_overrides.{CAMERA}.subscription.{key}": v for key, v in (("reliability", "reliable"), ("depth", 100))
        }
        for name, value in values.items():
            words += ["-p", f"{name}:={value}"]
        self.node = DetectorNode(context=self.context, cli_args=words, use_global_arguments=False)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        assert self.node.trigger_configure() == self.node.trigger_activate() == TransitionCallbackReturn.SUCCESS
        self.thread = threading.Thread(target=self.executor.spin, daemon=True)
        self.thread.start()
        self.client.wait_for_node()

    def send(self, stamp: Time | None = None, frame: np.ndarray = FRAME, **fields: Any) -> None:
        header = Header(stamp=stamp or self.now(), frame_id="front")
        message = image_from_array(frame, "rgb8", header)
        for name, value in fields.items():
            setattr(message, name, value)
        self.client.publish(CAMERA, message)

    def now(self, ahead_s: int = 0) -> Time:
        seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        return Time(sec=seconds + ahead_s, nanosec=nanoseconds)

    @property
    def frames(self) -> DiagnosticStatus:
        return self.client.diagnostics[-1].status[0]

    @property
    def values(self) -> dict[str, str]:
        return {pair.key: pair.value for pair in self.frames.values}

    @property
    def states(self) -> set[str]:
        return {self.values["state"], *(key.removeprefix("state_") for key in self.values if key.startswith("state_"))}

    def feed_until(self, condition: Callable[[], bool], send: Callable[[], None] | None, within_s: float) -> None:
        """Send frames until the condition holds of the diagnostics; fail if that takes too long.

        On a busy machine node and test are late, so the limits here are generous; test_health.py checks the 5 and 10 s.
        """
        before, deadline = len(self.client.diagnostics), time.monotonic() + PATIENCE * within_s
        while len(self.client.diagnostics) <= before + 1 or not condition():
            assert time.monotonic() < deadline, f"still {self.frames.message!r}, {self.states}"
            if send is not None:
                send()
            self.client.spin_for(1 / FAST)
            self.require_balance()

    def require_balance(self) -> None:
        """Check that every report counts each received frame exactly once."""
        for report in self.client.diagnostics[-2:]:
            values = {pair.key: pair.value for pair in report.status[0].values}
            ends = ("published", "dropped", "bad", "idle", "in_work")
            assert int(values["received"]) == sum(int(values[name]) for name in ends)
            assert 0 <= int(values["in_work"]) <= 2

    def is_error(self, name: str) -> Callable[[], bool]:
        return lambda: name in self.states and self.frames.level == DiagnosticStatus.ERROR

    def recover(self) -> None:
        self.feed_until(lambda: self.frames.level == DiagnosticStatus.OK, self.send, within_s=10.0)

    def close(self) -> None:
        self.executor.shutdown(5.0)
        self.thread.join(5.0)
        self.node.trigger_shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()
        self.client.close()


@pytest.fixture(scope="module")
def run(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKENDS, "onnxruntime", faulty_backend.TABLE_ENTRY)
        patch.setattr(detector_node, "DIAGNOSTICS_PERIOD_S", 0.1)
        patch.setattr(activation, "WORKER_STOP_S", 0.5)
        bundle = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("bundle") / "tiny"))
        harness = Harness(bundle)
        yield harness
        FaultyBackend.released.set()
        harness.close()


@pytest.mark.slow
def test_zero_past_and_future_stamps_are_errors(run: Harness) -> None:
    def send_stamped(stamp: Callable[[], Time]) -> None:
        run.send(stamp())

    run.recover()
    for name, stamp in (
        ("unstamped", Time),
        ("past", partial(run.now, -3600)),
        ("future", partial(run.now, 3600)),
    ):
        run.feed_until(run.is_error(name), partial(send_stamped, stamp), within_s=5.0)
    run.feed_until(run.is_error("past"), lambda: run.send(Time(sec=-5)), within_s=5.0)
    run.recover()
    run.client.spin_for(0.5)
    # Stamps are a matter of health: the frames themselves are answered, and counted as answered.
    counts = run.client.counts()
    assert counts["bad"] == 0 and counts["published"] == len(run.client.messages["labels"])
    # The median is that of most frames of the last minute again, once most of them have good stamps.
    for _ in range(counts["published"] + 10):
        run.send()
        run.client.spin_for(1 / FAST)
    run.client.spin_for(1.5)
    assert float(run.values["latency_ms_p50"]) < 60e3


def test_hanging_inference_is_error_until_released(run: Harness) -> None:
    run.recover()
    FaultyBackend.released.clear()
    run.feed_until(run.is_error("stuck"), run.send, within_s=5.0)
    assert "restart the node" in run.frames.message
    FaultyBackend.released.set()
    run.recover()
    run.client.spin_for(0.5)
    assert run.client.counts()["published"] == len(run.client.messages["labels"])


def test_unusable_frames_after_good_ones_are_error(run: Harness) -> None:
    run.recover()
    run.feed_until(run.is_error("unusable"), lambda: run.send(step=10), within_s=5.0)
    run.recover()


def test_silent_camera_is_error(run: Harness) -> None:
    run.recover()  # whichever test came before, there is a publisher
    run.feed_until(run.is_error("silent"), None, within_s=5.0)
    assert "the image topic has a publisher" in run.frames.message
    run.recover()


def test_rate_below_min_rate_hz_is_error(run: Harness) -> None:
    assert run.client.set_parameter("min_rate_hz", 200.0).successful
    run.feed_until(run.is_error("rate"), run.send, within_s=5.0)
    assert run.client.set_parameter("min_rate_hz", 0.0).successful
    run.recover()


def test_failing_opencv_encoder_is_output_error(run: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(cv2, "imencode", lambda *_: (False, None))
        run.feed_until(run.is_error("output"), run.send, within_s=5.0)
        assert "~/overlay/compressed: OpenCV could not encode" in run.frames.message
        before = [len(run.client.messages[name]) for name in ("labels", "overlay", "overlay/compressed")]
        run.send()
        assert run.client.spin_until(lambda: len(run.client.messages["overlay"]) > before[1])
        assert len(run.client.messages["overlay/compressed"]) == before[2]
    run.recover()
    assert int(run.values["failed"]) > 0 and int(run.values["bad"]) == run.client.counts()["bad"]


def test_camera_info_is_paired_by_stamp_and_mismatch_reported(run: Harness) -> None:
    received = run.client.messages["camera_info"]

    def send(width: int, height: int = 90) -> None:
        stamp = run.now()
        k = [80.0, 0, 79.5, 0, 80.0, 44.5, 0, 0, 1.0]
        info = CameraInfo(header=Header(stamp=stamp, frame_id="front"), width=width, height=height, k=k)
        run.client.publish("/camera/camera_info", info)
        run.send(stamp)

    def message_contains(word: str) -> bool:
        return word in run.frames.message

    run.feed_until(lambda: bool(received), lambda: send(160), within_s=10.0)
    assert (received[-1].width, received[-1].k[0]) == (128, 64.0)
    for size, word in (((320, 90), "CameraInfo is for 320x90"), ((0, 0), "its size is 0x0")):
        run.feed_until(run.is_error("output"), partial(send, *size), within_s=5.0)
        run.feed_until(partial(message_contains, word), partial(send, *size), within_s=5.0)
    labels = len(run.client.messages["labels"])
    run.feed_until(lambda: run.frames.level == DiagnosticStatus.OK, lambda: send(160), within_s=10.0)
    assert len(run.client.messages["labels"]) > labels
    run.node._camera_infos.clear()  # what follows has none


@pytest.mark.slow
def test_alternating_sizes_and_two_publishers_are_logged_once(run: Harness, capfd: pytest.CaptureFixture[str]) -> None:
    assert run.client.set_parameter("health_window_s", 2.0).successful
    run.recover()
    sizes = iter([FRAME, FRAME[:40, :100].copy()] * 200)
    run.feed_until(lambda: "sizes" in run.states, lambda: run.send(frame=next(sizes)), within_s=5.0)
    for _ in range(10):
        run.send(frame=next(sizes))
        run.client.spin_for(0.05)
    run.recover()
    second = run.client.node.create_publisher(Image, CAMERA, RELIABLE)
    run.feed_until(lambda: "publishers" in run.states, run.send, within_s=10.0)
    run.client.node.destroy_publisher(second)
    run.recover()
    assert run.client.set_parameter("health_window_s", 0.5).successful
    log = capfd.readouterr().err
    assert log.count("sizes within") == 1 and log.count("publishers send on") == 1


def test_hardware_id_parameter_is_used_in_diagnostics(run: Harness) -> None:
    run.recover()
    assert {status.hardware_id for status in run.client.diagnostics[-1].status} == {"front"}
    assert run.client.set_parameter("hardware_id", "roof camera").successful
    run.client.status("frames", after=2)
    assert {status.hardware_id for status in run.client.diagnostics[-1].status} == {"roof camera"}
    assert run.client.set_parameter("hardware_id", "").successful


def test_compressed_topic_with_any_name_is_accepted(run: Harness) -> None:
    run.recover()  # raw at first, whatever test came before
    run.client.node.destroy_publisher(run.client.publishers.pop(CAMERA))
    labels = len(run.client.messages["labels"])

    def send() -> None:
        run.client.publish(CAMERA, compressed_from_array(FRAME, Header(stamp=run.now(), frame_id="front"), "png"))

    run.feed_until(lambda: len(run.client.messages["labels"]) > labels, send, within_s=10.0)
    run.client.node.destroy_publisher(run.client.publishers.pop(CAMERA))
    run.recover()  # and raw again


def test_label_info_follows_the_threshold(run: Harness) -> None:
    vision_msgs = pytest.importorskip("vision_msgs.msg")
    infos: list[Any] = []
    run.client.node.create_subscription(
        vision_msgs.LabelInfo, "/detector/label_info", infos.append, detector_node.LATCHED_QOS
    )
    assert run.client.spin_until(lambda: bool(infos))
    for name, value in (("threshold", 0.25), ("threshold", 0.75), ("score", "msp"), ("score", "")):
        infos.clear()
        assert run.client.set_parameter(name, value).successful
        assert run.client.spin_until(lambda: bool(infos)) and infos[-1].threshold in (0.25, 0.75)
        assert infos[-1].threshold == run.node._pipeline.settings.threshold.value
    assert run.client.set_parameter("threshold", float("nan")).successful


def test_threshold_changes_publish_label_info(run: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without vision_msgs: a publisher that keeps what it is given stands in for that of ~/label_info."""
    published: list[float] = []
    monkeypatch.setattr(vision, "label_info_message", lambda classes, header, threshold: threshold)
    monkeypatch.setattr(run.node, "_label_info_publisher", SimpleNamespace(publish=published.append))
    for name, value in (("threshold", 0.25), ("threshold", 0.75), ("score", "msp"), ("score", "")):
        assert run.client.set_parameter(name, value).successful
    assert published == [0.25, 0.75, 0.75, 0.75]
    assert run.client.set_parameter("threshold", float("nan")).successful
    assert published[4:] == [run.node._pipeline.settings.threshold.value]

    def refuse(classes: object, header: Header, threshold: float) -> float:
        raise ConfigError("train ids are not unique")

    # One that cannot be made costs itself alone, and is named.
    monkeypatch.setattr(vision, "label_info_message", refuse)
    monkeypatch.setattr(run.node, "_label_info_error", "")
    assert run.client.set_parameter("threshold", 0.5).successful
    status = run.client.status("detector", after=2)
    assert status.level == DiagnosticStatus.ERROR
    assert status.message == "~/label_info cannot be published: train ids are not unique"
    # The error ends with the next message that is published.
    monkeypatch.setattr(vision, "label_info_message", lambda classes, header, threshold: threshold)
    assert run.client.set_parameter("threshold", 0.25).successful
    assert run.client.status("detector", after=2).level == DiagnosticStatus.OK
    run.recover()
    assert run.client.set_parameter("threshold", float("nan")).successful


def test_removed_model_is_error_and_makes_configure_fail(run: Harness) -> None:
    run.recover()
    assert run.client.change_state("deactivate")
    run.client.status("frames", after=2)
    assert (run.frames.level, run.frames.message) == (DiagnosticStatus.OK, "not active")
    model = run.node._pipeline.detector.bundle.graph_path
    model.rename(model.with_suffix(".away"))
    run.feed_until(lambda: run.frames.level == DiagnosticStatus.ERROR, None, within_s=5.0)
    assert "model.onnx of bundle" in run.frames.message and "is missing" in run.client.status("detector").message
    assert run.client.change_state("cleanup") and not run.client.change_state("configure")
    run.client.status("frames", after=2)
    assert run.frames.level == DiagnosticStatus.ERROR and "cannot configure" in run.frames.message
    assert "cannot configure" in run.client.status("detector").message
    model.with_suffix(".away").rename(model)
    assert run.client.change_state("configure") and run.client.change_state("activate")
    run.recover()


@pytest.mark.slow
def test_stuck_engine_is_abandoned_at_deactivation_and_reloaded(run: Harness) -> None:
    run.recover()
    FaultyBackend.released.clear()
    run.feed_until(run.is_error("stuck"), run.send, within_s=5.0)
    started = time.monotonic()
    run.client.change_state("deactivate")
    assert time.monotonic() - started < 5.0
    run.client.status("frames", after=2)
    assert run.frames.level == DiagnosticStatus.ERROR and "is stuck, so its engine is abandoned" in run.frames.message
    answered = len(run.client.messages["labels"])
    FaultyBackend.released.set()
    run.client.spin_for(0.5)
    assert len(run.client.messages["labels"]) == answered  # the abandoned frame is not published
    assert run.client.change_state("configure") and run.client.change_state("activate")
    run.recover()


@pytest.mark.slow
def test_stuck_worker_does_not_delay_sigterm(tmp_path: Path, tiny_bundle: Path) -> None:
    domain = free_domain_id()
    words = ["--bundle", str(tiny_bundle), "--image-topic", CAMERA]
    with (tmp_path / "node.log").open("w") as log:
        node = subprocess.Popen(
            [sys.executable, faulty_backend.__file__, *words], env=local_environment(domain), stdout=log, stderr=log
        )
    client = Client(domain, {"labels": Image})

    def is_stuck() -> bool:
        """Publish until the worker hangs: it starts when the node has discovered the subscription."""
        client.publish(CAMERA, image_from_array(FRAME, "rgb8", Header()))
        return "stuck" in client.status("frames").message

    try:
        client.wait_for_node()
        assert client.spin_until(is_stuck)
        started = time.monotonic()
        node.send_signal(signal.SIGTERM)
        assert node.wait(20) == 0
        assert time.monotonic() - started < 5.0
        assert "Traceback" not in (tmp_path / "node.log").read_text()
    finally:
        node.kill()
        client.close()
