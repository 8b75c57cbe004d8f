"""The process of the node: errors at the start, every lifecycle state, and an orderly end at any time."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from threading import Thread

import faulty_backend
import pytest
import rclpy
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.task import Future
from ros_harness import Client

from anomseg_ros.core.resources import share_file
from anomseg_ros.node import life
from anomseg_ros.node.parameters import PARAMETERS
from anomseg_ros.replay.process import NodeProcess, free_domain_id, local_environment, wait_until

ROOT = Path(__file__).resolve().parents[2]

# More by hand: ANOMSEG_STOPS=200 pytest test/node/test_life.py -k random
STOPS = int(os.environ.get("ANOMSEG_STOPS", "4"))

CONFIGURE, ACTIVATE = Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE
DEACTIVATE, CLEANUP = Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP
UNCONFIGURED_SHUTDOWN, ACTIVE_SHUTDOWN = (
    Transition.TRANSITION_UNCONFIGURED_SHUTDOWN,
    Transition.TRANSITION_ACTIVE_SHUTDOWN,
)
UNCONFIGURED, INACTIVE = State.PRIMARY_STATE_UNCONFIGURED, State.PRIMARY_STATE_INACTIVE
ACTIVE, FINALIZED = State.PRIMARY_STATE_ACTIVE, State.PRIMARY_STATE_FINALIZED


def change(client: Client, transition: int) -> bool:
    """As nav2_util::LifecycleServiceClient asks: by id, without a label."""
    request = ChangeState.Request(transition=Transition(id=transition))
    return bool(client.call(ChangeState, "change_state", request).success)


def state(client: Client) -> int:
    return int(client.call(GetState, "get_state", GetState.Request()).current_state.id)


def holds_signals(node: NodeProcess) -> bool:
    """Return whether the kernel holds SIGINT back; before that, the interpreter handles it."""
    status = Path(f"/proc/{node.process.pid}/status").read_text()
    blocked = next(line for line in status.splitlines() if line.startswith("SigBlk"))
    return bool(int(blocked.split()[1], 16) & 1 << (signal.SIGINT - 1))


def assert_ends_well(node: NodeProcess, *signals: signal.Signals, pause_s: float = 0.0) -> None:
    started = time.monotonic()
    for signum in signals:
        if node.running:
            node.process.send_signal(signum)
        time.sleep(pause_s)
    assert node.process.wait(30) == 0, node.log
    assert time.monotonic() - started < 10, node.log
    assert "Traceback" not in node.log


@pytest.mark.slow
def test_signals_at_random_moments_of_startup_stop_node(tmp_path: Path, tiny_bundle: Path) -> None:
    draw = random.Random(13)
    for index in range(STOPS):
        node = NodeProcess(free_domain_id(), tmp_path / f"{index}.log", ["--bundle", str(tiny_bundle)])
        assert wait_until(partial(holds_signals, node), 20)
        time.sleep(draw.uniform(0, 3))
        signals = draw.choices((signal.SIGINT, signal.SIGTERM), (3, 1), k=draw.choice((1, 2)))
        assert_ends_well(node, *signals, pause_s=draw.choice((0.0, draw.uniform(0, 0.5))))


def test_ros_executable_defers_signals_until_python_runs() -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [str(ROOT / "scripts" / "detector"), "--bundle", "enet-synthetic"]
    environment = {**local_environment(free_domain_id()), "PATH": path}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and b"Traceback" not in output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("transitions", "expected"),
    [
        ((), UNCONFIGURED),
        ((CONFIGURE,), INACTIVE),
        ((CONFIGURE, ACTIVATE), ACTIVE),
        ((CONFIGURE, ACTIVATE, ACTIVE_SHUTDOWN), FINALIZED),
    ],
)
def test_signals_stop_node_in_every_lifecycle_state(
    tmp_path: Path, tiny_bundle: Path, transitions: tuple[int, ...], expected: int
) -> None:
    domain = free_domain_id()
    words = ["--no-autostart", "--bundle", str(tiny_bundle)]
    node, client = NodeProcess(domain, tmp_path / "node.log", words), Client(domain, {})
    try:
        assert all(change(client, transition) for transition in transitions)
        assert state(client) == expected
        assert_ends_well(node, signal.SIGINT, signal.SIGINT, pause_s=0.02 * expected)
    finally:
        client.close()
        node.stop()


def private_segments(process: subprocess.Popen[bytes]) -> set[Path]:
    """Return the files of the process's own shared memory: it holds their locks. It only maps segments of others."""
    files = [Path(os.path.realpath(path)) for path in Path(f"/proc/{process.pid}/fd").iterdir()]
    locks = {path for path in files if path.name.startswith("fastrtps_") and "port" not in path.name}
    assert locks
    return locks | {path.with_name(path.name.removesuffix("_el")) for path in locks}


@pytest.mark.slow
def test_shared_memory_segments_are_removed_at_exit(tmp_path: Path, tiny_bundle: Path) -> None:
    """Fast DDS maps 64 MiB for each process; what stays in /dev/shm takes the vehicle's memory until it restarts."""
    node = NodeProcess(free_domain_id(), tmp_path / "node.log", ["--bundle", str(tiny_bundle)])
    node.wait_for_log("waiting for the first frame")
    segments = private_segments(node.process)
    assert_ends_well(node, signal.SIGINT)
    assert [path.name for path in segments if path.exists()] == [], node.log


def test_signal_during_bundle_loading_stops_node(tmp_path: Path, tiny_bundle: Path) -> None:
    node = NodeProcess(free_domain_id(), tmp_path / "node.log", ["--bundle", str(tiny_bundle)])
    node.wait_for_log("loading bundle")
    assert_ends_well(node, signal.SIGTERM, signal.SIGINT)


@pytest.mark.slow
def test_sigterm_during_hanging_startup_ends_node_after_3_s(tmp_path: Path, tiny_bundle: Path) -> None:
    log = tmp_path / "node.log"
    command = [sys.executable, faulty_backend.__file__, "--bundle", str(tiny_bundle)]
    with log.open("w") as stream:
        environment = {**local_environment(free_domain_id()), "GOOD_RUNS": "0", "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT)
    try:
        assert wait_until(lambda: "loading bundle" in log.read_text(), 60)
        time.sleep(1)
        segments = private_segments(process)
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
    assert 2.9 < time.monotonic() - started < 5
    assert "still busy 3 s after the signal" in log.read_text() and "Traceback" not in log.read_text()
    assert [path.name for path in segments if path.exists()] == []


@pytest.mark.slow
def test_nav2_lifecycle_manager_transitions_succeed(tmp_path: Path, tiny_bundle: Path) -> None:
    # nav2_lifecycle_manager of jazzy: after each change of the state it asks for the state (changeStateForNode).
    startup = [(CONFIGURE, INACTIVE), (ACTIVATE, ACTIVE)]
    pause, resume = [(DEACTIVATE, INACTIVE)], [(ACTIVATE, ACTIVE)]
    reset = [(DEACTIVATE, INACTIVE), (CLEANUP, UNCONFIGURED)]
    shutdown = [*reset, (UNCONFIGURED_SHUTDOWN, FINALIZED)]
    domain = free_domain_id()
    words = ["--no-autostart", "--bundle", str(tiny_bundle)]
    node, client = NodeProcess(domain, tmp_path / "node.log", words), Client(domain, {})
    try:
        for transition, expected in [*startup, *pause, *resume, *reset]:
            assert change(client, transition) and state(client) == expected
        # Its reset after a failure asks for both, whatever the state is; and configuring alone does not activate.
        assert not change(client, DEACTIVATE) and not change(client, CLEANUP)
        client.spin_for(0.5)
        assert state(client) == UNCONFIGURED
        assert change(client, CONFIGURE)
        client.spin_for(0.5)
        assert state(client) == INACTIVE
        for transition, expected in [(ACTIVATE, ACTIVE), *shutdown]:
            assert change(client, transition) and state(client) == expected
        assert "no such transition from the current state" in node.log
        assert_ends_well(node, signal.SIGINT)
    finally:
        client.close()
        node.stop()


def test_bundle_can_change_between_cleanup_and_configure(tmp_path: Path, tiny_bundle: Path) -> None:
    domain = free_domain_id()
    node, client = NodeProcess(domain, tmp_path / "node.log", ["--bundle", str(tiny_bundle)]), Client(domain, {})
    try:
        node.wait_for_log("bundle tiny")
        assert client.spin_until(lambda: state(client) == ACTIVE)
        assert client.set_parameter("bundle", str(tiny_bundle)).successful  # as `ros2 param load` of a dump does
        refused = client.set_parameter("bundle", "enet-synthetic")
        assert not refused.successful and "'bundle' is read-only while the node is configured" in refused.reason
        # `ros2 param load` makes text of the nan that `ros2 param dump` writes.
        for threshold in ("nan", float("nan"), 0.5, 1):
            assert client.set_parameter("threshold", threshold).successful
        refused = client.set_parameter("threshold", "high")
        assert not refused.successful and "'threshold' is 'high'; give a finite score" in refused.reason
        assert change(client, DEACTIVATE) and change(client, CLEANUP)
        assert client.set_parameter("bundle", "enet-synthetic").successful
        assert change(client, CONFIGURE)
        assert "bundle enet-synthetic (" in node.log
    finally:
        client.close()
        node.stop()


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("a: [b\n  c: {", "ROS 2 did not start: failed to initialize rcl: Couldn't parse params file"),
        (None, "Error opening YAML file"),
        ("/**:\n  ros__parameters:\n    bundel: x\n", "unknown parameter 'bundel'; known: bundle"),
        ("/**:\n  ros__parameters:\n    bundle: 7\n", "parameter 'bundle'"),
        (
            "detektor:\n  ros__parameters:\n    bundle: x\n",
            "has parameters for '/detektor', not for this node, '/detector'",
        ),
        ("", "has parameters for no node"),
        (
            "/**:\n  ros__parameters:\n    qos_overrides: {/image: {subscription: {reliabilty: reliable}}}\n",
            "'reliabilty'; known: reliability",
        ),
        (
            "/**:\n  ros__parameters:\n    qos_overrides: {/imag: {subscription: {reliability: reliable}}}\n",
            "known: qos_overrides./image.subscription.reliability",
        ),
    ],
)
def test_wrong_parameter_file_gives_one_line_error(tmp_path: Path, file: str | None, message: str) -> None:
    path = tmp_path / "parameters.yaml"
    if file is not None:
        path.write_text(file)
    node = NodeProcess(free_domain_id(), tmp_path / "node.log", ["--params-file", str(path)])
    assert node.process.wait(120) == 1
    (line,) = [line for line in node.log.splitlines() if line.startswith("anomseg node: error: ")]
    assert message in line and "Traceback" not in node.log


def test_option_overrides_parameter_file(tmp_path: Path, tiny_bundle: Path) -> None:
    # The shipped file has `autostart: false` and another bundle.
    words = ["--params-file", str(share_file("config/detector.yaml")), "--bundle", str(tiny_bundle)]
    node = NodeProcess(free_domain_id(), tmp_path / "node.log", words)
    node.wait_for_log("bundle tiny")
    assert_ends_well(node, signal.SIGINT)


@pytest.mark.parametrize(
    ("variables", "remedy"),
    [
        ({"ROS_LOG_DIR": f"{__file__}/log"}, "set ROS_LOG_DIR to a folder that can be written"),
        (
            {
                "ROS_SECURITY_ENABLE": "true",
                "ROS_SECURITY_STRATEGY": "Enforce",
                "ROS_SECURITY_KEYSTORE": f"{__file__}/keystore",
            },
            "set ROS_SECURITY_KEYSTORE to a keystore",
        ),
    ],
)
def test_wrong_environment_variables_give_one_line_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], remedy: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    node = NodeProcess(free_domain_id(), tmp_path / "node.log", [])
    assert node.process.wait(120) == 1
    (line,) = [line for line in node.log.splitlines() if line.startswith("anomseg node: error: ")]
    assert remedy in line and "Traceback" not in node.log


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--camera", "front"], "--camera front needs --cameras, the file with this camera"),
        (
            ["--cameras", "c.yaml", "--bundle", "x"],
            "--bundle is for a single camera; with --cameras, set bundle in the",
        ),
        (["--image-topic", ""], "--image-topic is '': topic name '' is invalid"),
        (["--cameras", "c.yaml", "--image-topic", "/x"], "--image-topic is for a single camera"),
        (["--cameras", "/nowhere.yaml"], "/nowhere.yaml: No such file or directory; give the YAML file of the cameras"),
        (["--cameras", str(ROOT / "config/cameras.yaml"), "--camera", "left"], "unknown camera 'left'; known: front"),
    ],
)
def test_wrong_camera_options_give_one_line_error(
    no_transport_chosen: None, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert life.run(words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("anomseg node: error: ") and message in line


def test_unexpected_transition_error_is_logged(tmp_path: Path, tiny_bundle: Path) -> None:
    override = "qos_overrides./detector/labels.publisher.depth:=deep"
    node = NodeProcess(
        free_domain_id(), tmp_path / "node.log", ["--bundle", str(tiny_bundle), "--ros-args", "-p", override]
    )
    assert node.process.wait(120) == 1
    assert "cannot configure: unexpected " in node.log and "Traceback" not in node.log


FAILING_TIMER = """
import sys
from anomseg_ros.node import detector_node, main

def fail(node):
    raise RuntimeError("nobody thought of this")

detector_node.DetectorNode._publish_diagnostics = fail
main.main(["--no-autostart"])
"""


@pytest.mark.slow
def test_failing_callback_is_logged_and_node_stays_responsive(tmp_path: Path) -> None:
    domain, log = free_domain_id(), tmp_path / "node.log"
    with log.open("w") as stream:
        node = subprocess.Popen([sys.executable, "-c", FAILING_TIMER], env=local_environment(domain), stderr=stream)
    client = Client(domain, {})
    try:
        assert wait_until(lambda: log.read_text().count("not handled: RuntimeError: nobody thought of this") > 1, 60)
        assert state(client) == UNCONFIGURED
        node.send_signal(signal.SIGTERM)
        assert node.wait(30) == 0
        assert "Traceback" not in log.read_text()
    finally:
        client.close()
        node.kill()
        node.wait()


def test_fixed_parameter_descriptors_say_when_they_can_be_set() -> None:
    fixed = [parameter for parameter in PARAMETERS if not parameter.live]
    assert {"bundle", "backend", "image_transport"} <= {parameter.name for parameter in fixed}
    for parameter in fixed:
        assert "only while the node is unconfigured" in parameter.descriptor().additional_constraints


def test_memory_does_not_grow_with_number_of_messages() -> None:
    context = rclpy.Context()
    context.init(domain_id=free_domain_id())
    node = rclpy.create_node("spun", context=context)
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1

    node.create_timer(0.001, count)
    stop: Future = Future()
    thread = Thread(target=life._spin, args=(node, stop))
    thread.start()
    assert wait_until(lambda: calls > 100, 30.0)
    objects, start = len(gc.get_objects()), calls
    assert wait_until(lambda: calls > start + 1000, 60.0)
    assert len(gc.get_objects()) < objects + 200
    stop.set_result(None)
    thread.join(5.0)
    assert not thread.is_alive()
    node.destroy_node()
    context.shutdown()
