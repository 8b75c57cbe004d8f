"""Several detectors in one launch: included twice, and multi_camera.launch.py; where launch_ros is installed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from launch_harness import LAUNCH, included, launched, load, nodes_in, parameters_of


def test_two_detectors_in_groups_share_no_arguments(installed: Path) -> None:
    from launch import LaunchContext  # type: ignore[attr-defined]

    front = {"namespace": "front", "image_topic": "/front/image", "bundle": "enet-synthetic", "target_fpr": "0.05"}
    rear = {"namespace": "rear", "image_topic": "/rear/image"}
    for scoped in (True, False):
        context = LaunchContext(argv=[])
        context.launch_configurations["mine"] = "stays"
        includes = [included("detector.launch.py", arguments, scoped=scoped) for arguments in (front, rear)]
        (one, first), (two, second) = nodes_in(includes, context)
        assert (one.node_name, two.node_name) == ("/front/detector", "/rear/detector")
        assert first["bundle"] == "enet-synthetic" and first["target_fpr"] == 0.05
        # Bare includes leak: that is launch's own way, and why there is the group.
        assert ("bundle" in second) == ("target_fpr" in second) == (not scoped)
        assert (dict(context.launch_configurations) == {"mine": "stays"}) == scoped


def test_replay_leaves_no_arguments_of_the_detector_behind(installed: Path) -> None:
    from launch import LaunchContext  # type: ignore[attr-defined]

    context = LaunchContext(argv=[])
    context.extend_locals({"current_launch_file_directory": str(LAUNCH)})
    ((_, parameters),) = nodes_in([load("replay.launch.py").include_detector()], context)
    assert parameters["use_sim_time"] is True and not context.launch_configurations


def cameras_file(folder: Path, *names: str, **keys: object) -> Path:
    entries = [{"name": name, "image_topic": f"/{name}/image", "bundle": "enet-synthetic", **keys} for name in names]
    path = folder / "cameras.yaml"
    path.write_text(yaml.safe_dump({"cameras": entries}))
    return path


def started_cameras(**arguments: Any) -> tuple[list[Any], Any]:
    """What multi_camera.launch.py starts with these arguments, and the context."""
    from launch import LaunchContext  # type: ignore[attr-defined]

    context = LaunchContext(argv=[])
    context.launch_configurations.update(arguments)
    module = load("multi_camera.launch.py")
    for argument in module.declare_arguments():
        argument.execute(context)
    return module.start_cameras(context), context


def words_of(node: Any) -> list[str]:
    words = [part[0].text for part in node.cmd[1:]]
    return words[: words.index("--ros-args")]


def test_cameras_are_one_process_or_one_each(installed: Path, tmp_path: Path) -> None:
    path = str(cameras_file(tmp_path, "front", "rear"))
    (shared,), context = started_cameras(cameras=path)
    assert words_of(shared) == ["--cameras", path]
    assert parameters_of(shared, context) == {"use_sim_time": False, "autostart": True}
    nodes, context = started_cameras(cameras=path, mode="processes", use_sim_time="true")
    assert [words_of(node) for node in nodes] == [["--cameras", path, "--camera", name] for name in ("front", "rear")]
    from anomseg_ros.node.cameras import threads_per_process

    expected = {"use_sim_time": True, "autostart": True, "threads": threads_per_process(2)}
    assert [parameters_of(node, context) for node in nodes] == [expected] * 2
    nodes, context = started_cameras(cameras=path, mode="processes", threads="3", autostart="false")
    assert parameters_of(nodes[0], context) == {"use_sim_time": False, "autostart": False, "threads": 3}


def record_exit(context: Any, monitor: Any, name: str, status: int) -> None:
    from launch.events.process import ProcessExited

    fields = {"name": name, "cmd": [], "cwd": None, "env": None, "pid": 1}
    monitor.record_exit(name, ProcessExited(action=None, returncode=status, **fields), context)


def test_the_launch_fails_with_the_last_process_if_any_failed(installed: Path) -> None:
    from launch import LaunchContext  # type: ignore[attr-defined]

    module, context = load("multi_camera.launch.py"), LaunchContext(argv=[])
    monitor = module.ExitMonitor(["front", "left", "right"])
    record_exit(context, monitor, "left", 1)
    record_exit(context, monitor, "right", 0)
    context._set_is_shutdown(True)
    with pytest.raises(RuntimeError, match=r"ended with an error: left \(status 1\)"):
        record_exit(context, monitor, "front", -signal.SIGINT)
    monitor = module.ExitMonitor(["front"])
    record_exit(context, monitor, "front", -signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["shared", "processes"])
def test_a_camera_that_cannot_be_configured_leaves_the_others_and_a_status(
    installed: Path, tmp_path: Path, mode: str
) -> None:
    path = cameras_file(tmp_path, "front", "rear")
    cameras = yaml.safe_load(path.read_text())
    cameras["cameras"][1] |= {"bundle": "enet-camvid", "score": "max_entropy", "parameters": {"precision": "int8"}}
    path.write_text(yaml.safe_dump(cameras))
    launch = launched("multi_camera.launch.py", f"cameras:={path}", f"mode:={mode}")
    output, stopped = "", False
    for line in launch.stdout:
        output += line
        both = "bundle enet-synthetic (" in output and "[rear.detector]: cannot configure: parameter 'prec" in output
        if both and not stopped and (mode == "shared" or "the detector of rear (status 1) ended" in output):
            assert launch.poll() is None
            os.killpg(launch.pid, signal.SIGINT)
            stopped = True
    assert launch.wait(30) == 1, output
    named = "not started: /rear/detector" if mode == "shared" else "ended with an error: rear (status 1)"
    assert named in output and "Traceback" not in output
