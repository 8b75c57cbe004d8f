"""The launch files, read as source everywhere and evaluated where launch and launch_ros are installed."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import yaml
from launch_harness import CONFIG, LAUNCH, ROOT, executable, launched, load, parameters_of

from anomseg_ros.core.road_region import NO_REGION, SURFACES
from anomseg_ros.core.temporal_filter import FILTERS

DETECTOR_ARGUMENTS = {
    "namespace",
    "params_file",
    "image_topic",
    "image_transport",
    "min_rate_hz",
    "bundle",
    "backend",
    "precision",
    "score",
    "target_fpr",
    "target_alarms_per_minute",
    "road_region",
    "temporal_filter",
    "use_sim_time",
    "autostart",
    "respawn",
    "log_level",
    "rviz",
}
CAMERAS_ARGUMENTS = {
    "cameras",
    "mode",
    "params_file",
    "threads",
    "use_sim_time",
    "autostart",
    "respawn",
    "log_level",
}
REQUIRED_ARGUMENTS = {"bag", "cameras"}
CLOSED_ARGUMENTS = {
    "image_transport",
    "precision",
    "use_sim_time",
    "autostart",
    "respawn",
    "log_level",
    "rviz",
    "backend",
    "score",
    "road_region",
    "temporal_filter",
}


def declared(path: Path) -> dict[str, dict[str, ast.expr]]:
    """Launch argument -> its keyword arguments, from the calls of DeclareLaunchArgument."""
    calls = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "DeclareLaunchArgument"
    ]
    return {ast.literal_eval(call.args[0]): {word.arg: word.value for word in call.keywords} for call in calls}


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("detector.launch.py", DETECTOR_ARGUMENTS),
        ("replay.launch.py", {"bag", "rate", "loop", "clock"}),
        ("multi_camera.launch.py", CAMERAS_ARGUMENTS),
    ],
)
def test_every_argument_is_declared_and_described(file: str, expected: set[str]) -> None:
    arguments = declared(LAUNCH / file)
    assert set(arguments) == expected
    for name, words in arguments.items():
        description = ast.literal_eval(words["description"])
        assert description.endswith(".") or "..." in description, name
        assert ("default_value" in words) == (name not in REQUIRED_ARGUMENTS)
        assert ("choices" in words) == (name in CLOSED_ARGUMENTS | {"loop", "mode"}), name


def test_arguments_are_parameters_of_the_node() -> None:
    parameters = yaml.safe_load((CONFIG / "detector.yaml").read_text())["/**"]["ros__parameters"]
    named = {"image_transport", "min_rate_hz", "bundle", "backend", "precision", "score", "target_fpr", "autostart"}
    assert named <= set(parameters)
    choices = {
        name: words["choices"] for name, words in declared(LAUNCH / "detector.launch.py").items() if "choices" in words
    }
    for name in ("image_transport", "precision"):
        assert parameters[name] in ast.literal_eval(choices[name])


def test_closed_choices_are_the_package_s_tables() -> None:
    tree = ast.parse((LAUNCH / "detector.launch.py").read_text(encoding="utf-8"))
    lists = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.List)
    }
    tables = [
        node for node in tree.body if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("anomseg")
    ]
    assert [alias.name for node in tables for alias in node.names] == ["BACKENDS", "SCORES"]
    assert lists["ROAD_REGIONS"] == [NO_REGION, *SURFACES]
    assert lists["TEMPORAL_FILTERS"] == [*FILTERS]


def test_rviz_and_foxglove_show_topics_of_the_node() -> None:
    rviz = yaml.safe_load((CONFIG / "detector.rviz").read_text())
    shown = {display["Topic"]["Value"] for display in rviz["Visualization Manager"]["Displays"]}
    source = ast.parse((LAUNCH / "detector.launch.py").read_text())
    (names,) = (
        ast.literal_eval(node.value)
        for node in source.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id == "RVIZ_TOPICS"
    )
    assert shown == {f"/detector/{name}" for name in names}
    layout = json.loads((CONFIG / "foxglove_layout.json").read_text())
    assert set(re.findall(r"\w+!\w+", json.dumps(layout["layout"]))) == set(layout["configById"])
    images = {panel["imageMode"]["imageTopic"] for panel in layout["configById"].values() if "imageMode" in panel}
    assert images - {"/camera/image"} <= shown


def test_fast_dds_profile_has_the_segment_and_is_the_default() -> None:
    space = {"": "http://www.eprosima.com/XMLSchemas/fastRTPS_Profiles"}
    root = ElementTree.parse(CONFIG / "fastdds.xml").getroot()
    transports = {
        item.findtext("transport_id", None, space): item for item in root.iterfind(".//transport_descriptor", space)
    }
    used = [item.text for item in root.iterfind(".//userTransports/transport_id", space)]
    assert set(used) == set(transports)
    kinds = {transports[name].findtext("type", None, space): transports[name] for name in used}
    assert set(kinds) == {"SHM", "UDPv4"}
    segment = int(kinds["SHM"].findtext("segment_size", None, space))
    message = int(kinds["SHM"].findtext("maxMessageSize", None, space))
    assert segment == 64 * 2**20 and 2160 * 3840 * 3 < message <= segment
    assert root.find(".//participant", space).get("is_default_profile") == "true"
    assert root.findtext(".//useBuiltinTransports", None, space) == "false"


def started(**arguments: Any) -> tuple[list[Any], Any]:
    """What detector.launch.py starts with these arguments, and the context it was evaluated in."""
    from launch import LaunchContext  # type: ignore[attr-defined]

    context = LaunchContext(argv=[])
    context.launch_configurations.update(arguments)
    module = load("detector.launch.py")
    for argument in module.declare_arguments():
        argument.execute(context)
    return module.start_detector(context), context


def the_detector(entities: list[Any]) -> Any:
    (node,) = (entity for entity in entities if executable(entity) == "detector")
    return node


def test_without_arguments_the_file_decides(installed: Path) -> None:
    entities, context = started()
    assert parameters_of(the_detector(entities), context) == {"use_sim_time": False, "autostart": True}


def test_arguments_go_over_the_file_and_keep_their_type(installed: Path) -> None:
    numbers = {"target_fpr": "0.05", "target_alarms_per_minute": "2"}
    entities, context = started(bundle="2024", precision="int8", use_sim_time="true", **numbers)
    assert parameters_of(the_detector(entities), context) == {
        "bundle": "2024",
        "target_fpr": 0.05,
        "target_alarms_per_minute": 2.0,
        "precision": "int8",
        "use_sim_time": True,
        "autostart": True,
    }


def test_a_manager_s_node_does_not_start_by_itself(installed: Path) -> None:
    entities, context = started(autostart="false")
    assert parameters_of(the_detector(entities), context)["autostart"] is False
    # Nothing in the launch changes states, now or when the node reports one.
    assert {executable(entity) for entity in entities} == {"detector", "rviz2"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "arguments", "message"),
    [
        ("detector.launch.py", ["bundle:=nowhere"], "'nowhere' is neither a bundle directory nor a shipped bundle"),
        ("detector.launch.py", ["params_file:=/nowhere.yaml"], "params_file:='/nowhere.yaml' is not a file"),
        ("detector.launch.py", ["target_fpr:=low"], "target_fpr:='low' is not a number; give one such as 0.5"),
        ("multi_camera.launch.py", [f"cameras:={CONFIG / 'cameras.yaml'}", "threads:=two"], "threads:='two' is not a"),
        ("replay.launch.py", ["bag:=/nowhere"], "bag:='/nowhere' does not exist"),
        ("replay.launch.py", [f"bag:={ROOT / 'demo'}"], "the bag was not played"),
        ("multi_camera.launch.py", ["cameras:=/nowhere.yaml"], "No such file or directory; give the YAML file"),
        ("multi_camera.launch.py", [f"cameras:={CONFIG / 'detector.yaml'}"], "unknown key '/**'"),
    ],
)
def test_what_cannot_run_ends_the_launch_with_status_1(
    installed: Path, file: str, arguments: list[str], message: str
) -> None:
    launch = launched(file, *arguments)
    output, _ = launch.communicate(timeout=60)
    assert launch.returncode == 1 and message in output and "Traceback" not in output


@pytest.mark.slow
def test_the_detector_respawns_and_ends_with_status_0(installed: Path) -> None:
    launch = launched("detector.launch.py", "bundle:=enet-synthetic", "respawn:=true")
    configured: list[str] = []  # launch repeats a line that it held when the process ended, so a line counts once
    for line in launch.stdout:
        if started_with := re.search(r"process started with pid \[(\d+)\]", line):
            detector = int(started_with[1])
        if "bundle enet-synthetic (" in line and line not in configured:  # configured by itself, also the second time
            configured.append(line)
            if len(configured) == 1:
                os.kill(detector, signal.SIGKILL)
            else:
                os.killpg(launch.pid, signal.SIGINT)  # as a terminal does
    assert launch.wait(30) == 0 and len(configured) == 2


@pytest.mark.slow
def test_a_detector_that_died_ends_the_launch_with_status_1(installed: Path) -> None:
    launch = launched("detector.launch.py", "bundle:=enet-synthetic")
    output = ""
    for line in launch.stdout:
        output += line
        if started_with := re.search(r"process started with pid \[(\d+)\]", line):
            os.kill(int(started_with[1]), signal.SIGKILL)
    assert launch.wait(30) == 1 and "the detector ended with status -9" in output


@pytest.mark.parametrize("name", sorted(CLOSED_ARGUMENTS))
def test_values_outside_the_choices_are_refused(installed: Path, name: str) -> None:
    with pytest.raises(RuntimeError, match="not valid"):
        started(**{name: "nonsense"})


def test_namespace_moves_node_and_rviz_topics(installed: Path) -> None:
    entities, context = started(namespace="front", rviz="true")
    node = the_detector(entities)
    node._perform_substitutions(context)
    assert node.node_name == "/front/detector"
    (rviz,) = (entity for entity in entities if executable(entity) == "rviz2")
    text = [tuple(part[0].text for part in pair) for pair in rviz._Node__remappings]
    assert ("/detector/overlay", "/front/detector/overlay") in text


def test_replay_plays_the_bag_into_the_detector(installed: Path) -> None:
    from launch import LaunchContext  # type: ignore[attr-defined]
    from launch.actions import ExecuteProcess

    context = LaunchContext(argv=[])
    context.launch_configurations.update(bag=str(ROOT), rate="2.0", loop="true", clock="50")
    entities = load("replay.launch.py").play_bag(context)
    (player,) = (entity for entity in entities if isinstance(entity, ExecuteProcess))
    words = [part[0].text for part in player.cmd]
    assert words[1:] == [
        *("-m", "anomseg_ros.cli", "bag", "play", str(ROOT)),
        *("--rate", "2.0", "--clock", "50", "--wait", "60", "--needs-subscriber", "--loop"),
    ]
    from anomseg_ros.commands.bag_play import argument_parser

    options = argument_parser().parse_args(words[5:])
    assert (options.rate, options.clock, options.loop, str(options.file)) == (2.0, 50.0, True, str(ROOT))
