"""The node with the backend tensorrt, on fakes of NVIDIA's libraries: it builds in configure, and says what it does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_tensorrt_runtime
import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticStatus
from fake_tensorrt_runtime import FakeRuntime
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from ros_harness import Client

from anomseg_ros.core.bundle import Bundle
from anomseg_ros.node.detector_node import DetectorNode
from anomseg_ros.replay.process import free_domain_id


class Harness:
    """An unconfigured node with these parameters, and a client that hears its diagnostics."""

    def __init__(self, bundle: Bundle, **parameters: str) -> None:
        domain = free_domain_id()
        self.client = Client(domain, {})
        self.context = rclpy.Context()
        self.context.init(domain_id=domain)
        words = ["--ros-args", "-p", f"bundle:={bundle.directory}", "-p", "backend:=tensorrt"]
        for name, value in parameters.items():
            words += ["-p", f"{name}:={value}"]
        self.node = DetectorNode(context=self.context, cli_args=words, use_global_arguments=False)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        assert self.client.spin_until(lambda: bool(self.node._diagnostics_publisher.get_subscription_count()))

    def messages(self, level: bytes) -> list[str]:
        """Return what statuses of a level have said by the next report of the timer."""
        self.node._publish_diagnostics()
        self.client.spin_for(1.0)
        statuses = [status for report in self.client.diagnostics for status in report.status]
        return [status.message for status in statuses if status.level == level]

    def close(self) -> None:
        self.executor.shutdown(5.0)
        self.node.trigger_shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()
        self.client.close()


@pytest.fixture()
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeRuntime:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return fake_tensorrt_runtime.install(monkeypatch)


@pytest.fixture()
def started(painted: Bundle) -> Iterator[type]:
    harnesses: list[Harness] = []

    class Started(Harness):
        def __init__(self, **parameters: str) -> None:
            super().__init__(painted, **parameters)
            harnesses.append(self)

    yield Started
    for harness in harnesses:
        harness.close()


@pytest.mark.slow
def test_building_is_shown_while_configure_lasts(fake: FakeRuntime, started: type) -> None:
    run = started(build_engine="configure")
    assert run.node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    told = run.messages(DiagnosticStatus.WARN)
    assert any(message.startswith("building the engine, per cent: ") for message in told), told
    assert run.messages(DiagnosticStatus.ERROR) == []
    assert len(fake.module.builds) == 2
    values = {pair.key: pair.value for pair in run.client.diagnostics[-1].status[1].values}
    assert values["backend"] == "tensorrt:gpu" and values["backend_engine"].startswith("built now")


def configured_with_other_score(started: type) -> tuple[Any, str, str]:
    """Return a configured node, its score and one that its engine lacks."""
    run = started(build_engine="configure")
    assert run.node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    score = run.node._pipeline.settings.score
    (other,) = {"max_logit", "void"} - {score}
    return run, score, other


def test_a_score_without_an_engine_is_rejected_and_frames_go_on(
    fake: FakeRuntime, started: type, tmp_path: Path
) -> None:
    run, score, other = configured_with_other_score(started)
    for facts in tmp_path.rglob("engine.json"):
        if f'"{other}"' in facts.read_text():
            facts.unlink()
    (answer,) = run.node.set_parameters([Parameter("score", value=other)])
    assert not answer.successful and "has no engine for this computer" in answer.reason
    assert "anomseg build" in answer.reason and run.node._pipeline.settings.score == score
    requested = run.node._share._engine.requested_outputs.values()
    assert [set(outputs) for outputs in requested] == [{"labels", score}]
    pixels = np.zeros((128, 256, 3), np.uint8)
    assert run.node._pipeline.detector.detect(pixels, (score,)).labels.shape == (128, 256)


def test_a_score_with_an_engine_is_prepared_before_a_frame_needs_it(fake: FakeRuntime, started: type) -> None:
    run, _, other = configured_with_other_score(started)
    assert run.node._share.facts()["engines"] == "labels"
    (answer,) = run.node.set_parameters([Parameter("score", value=other)])
    assert answer.successful and run.node._share.facts()["engines"] == "labels, all"


def test_without_an_engine_configure_fails_and_says_how_to_build_one(fake: FakeRuntime, started: type) -> None:
    run = started()
    assert run.node.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert any("anomseg build" in message for message in run.messages(DiagnosticStatus.ERROR))
    assert fake.module.builds == []


def test_a_fallback_serves_and_stays_an_error(fake: FakeRuntime, started: type) -> None:
    run = started(fallback_backend="onnxruntime")
    fake.cudart.fail["cudaGetDeviceCount"] = 35
    assert run.node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    told = run.messages(DiagnosticStatus.ERROR)
    assert any("onnxruntime:cpu is in use" in each and "cudaErrorInsufficientDriver" in each for each in told), told
