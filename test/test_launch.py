"""The launch files, read as source everywhere and evaluated where launch and launch_ros are installed."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from anomseg_ros.backends import BACKENDS
from anomseg_ros.core.road_region import NO_REGION, SURFACES
from anomseg_ros.core.scores import SCORE_NAMES

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"
CONFIG = ROOT / "config"

DETECTOR_ARGUMENTS = {
    "namespace",
    "params_file",
    "image_topic",
    "image_transport",
    "bundle",
    "backend",
    "precision",
    "score",
    "target_fpr",
    "road_region",
    "use_sim_time",
    "autostart",
    "log_level",
    "rviz",
}
CLOSED_ARGUMENTS = {
    "image_transport",
    "precision",
    "use_sim_time",
    "autostart",
    "log_level",
    "rviz",
    "backend",
    "score",
    "road_region",
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
    [("detector.launch.py", DETECTOR_ARGUMENTS), ("replay.launch.py", {"bag", "rate", "loop", "clock"})],
)
def test_every_argument_is_declared_and_described(file: str, expected: set[str]) -> None:
    arguments = declared(LAUNCH / file)
    assert set(arguments) == expected
    for name, words in arguments.items():
        description = ast.literal_eval(words["description"])
        assert description.endswith(".") or "..." in description, name
        assert ("default_value" in words) == (name != "bag")
        assert ("choices" in words) == (name in CLOSED_ARGUMENTS | {"loop"}), name


def test_arguments_are_parameters_of_the_node() -> None:
    parameters = yaml.safe_load((CONFIG / "detector.yaml").read_text())["/**"]["ros__parameters"]
    assert {"image_transport", "bundle", "backend", "precision", "score", "target_fpr", "autostart"} <= set(parameters)
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
    assert set(lists["BACKENDS"]) == set(BACKENDS)
    assert set(lists["SCORES"]) == set(SCORE_NAMES)
    assert lists["ROAD_REGIONS"] == [NO_REGION, *SURFACES]


def test_rviz_and_foxglove_show_topics_of_the_node() -> None:
    rviz = yaml.safe_load((CONFIG / "detector.rviz").read_text())
    shown = {display["Topic"]["Value"] for display in rviz["Visualization Manager"]["Displays"]}
    source = ast.parse((LAUNCH / "detector.launch.py").read_text())
    (names,) = (
        ast.literal_eval(node.value)
        for node in source.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id == "SHOWN_TOPICS"
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


# The folder `launch` of this repository can be imported as a namespace package, so the name alone proves nothing.


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A prefix that ament finds, with the package's share folder and an executable detector."""
    pytest.importorskip("launch.actions", reason="launch is not on PyPI: source a ROS installation")
    pytest.importorskip("launch_ros.actions", reason="launch_ros is not on PyPI: source a ROS installation")
    for folder, target in (("share/anomseg_ros", ROOT), ("lib/anomseg_ros/detector", ROOT / "scripts" / "detector")):
        (tmp_path / folder).parent.mkdir(parents=True)
        (tmp_path / folder).symlink_to(target)
    marker = tmp_path / "share/ament_index/resource_index/packages/anomseg_ros"
    marker.parent.mkdir(parents=True)
    marker.touch()
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"{tmp_path}{os.pathsep}{os.environ.get('AMENT_PREFIX_PATH', '')}")
    return tmp_path


def load(file: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.split(".")[0], LAUNCH / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def started(**arguments: str) -> tuple[list[object], object]:
    """What detector.launch.py starts with these arguments, and the context it was evaluated in."""
    from launch import LaunchContext

    context = LaunchContext(argv=[])
    context.launch_configurations.update(arguments)
    module = load("detector.launch.py")
    for argument in module.declare_arguments():
        argument.execute(context)
    return module.start_detector(context), context


def parameters_of(node: object, context: object) -> dict[str, object]:
    from launch_ros.utilities import evaluate_parameters

    files = evaluate_parameters(context, node._Node__parameters)
    assert Path(files[0]).samefile(CONFIG / "detector.yaml")
    return dict(files[1])


def the_detector(entities: list[object]) -> object:
    from launch_ros.actions import LifecycleNode

    (node,) = (entity for entity in entities if isinstance(entity, LifecycleNode))
    return node


def test_without_arguments_the_file_decides(installed: Path) -> None:
    entities, context = started()
    assert parameters_of(the_detector(entities), context) == {"use_sim_time": False, "autostart": False}


def test_arguments_go_over_the_file_and_keep_their_type(installed: Path) -> None:
    entities, context = started(bundle="2024", target_fpr="0.05", precision="int8", use_sim_time="true")
    assert parameters_of(the_detector(entities), context) == {
        "bundle": "2024",
        "target_fpr": 0.05,
        "precision": "int8",
        "use_sim_time": True,
        "autostart": False,
    }


def test_autostart_emits_configure_and_only_then_activates(installed: Path) -> None:
    from launch.actions import EmitEvent, RegisterEventHandler

    entities, _ = started()
    kinds = [type(entity) for entity in entities]
    assert kinds.count(EmitEvent) == 1 and kinds.count(RegisterEventHandler) == 3
    node = entities.index(the_detector(entities))
    assert kinds.index(EmitEvent) > node > kinds.index(RegisterEventHandler)
    manual, _ = started(autostart="false")
    assert not {EmitEvent, RegisterEventHandler} & {type(entity) for entity in manual}


@pytest.mark.parametrize("name", sorted(CLOSED_ARGUMENTS))
def test_values_outside_the_choices_are_refused(installed: Path, name: str) -> None:
    with pytest.raises(RuntimeError, match="not valid"):
        started(**{name: "nonsense"})


def test_namespace_moves_node_and_rviz_topics(installed: Path) -> None:
    from launch_ros.actions import LifecycleNode

    entities, context = started(namespace="front", rviz="true")
    node = the_detector(entities)
    node._perform_substitutions(context)
    assert node.node_name == "/front/detector"
    (rviz,) = (
        entity for entity in entities if type(entity).__name__ == "Node" and not isinstance(entity, LifecycleNode)
    )
    text = [tuple(part[0].text for part in pair) for pair in rviz._Node__remappings]
    assert ("/detector/overlay", "/front/detector/overlay") in text


def test_replay_plays_the_bag_into_the_detector(installed: Path) -> None:
    from launch import LaunchContext
    from launch.actions import ExecuteProcess

    context = LaunchContext(argv=[])
    context.launch_configurations.update(bag="/data/drive", rate="2.0", loop="true", clock="50")
    entities = load("replay.launch.py").play_bag(context)
    (player,) = (entity for entity in entities if isinstance(entity, ExecuteProcess))
    words = [part[0].text for part in player.cmd]
    assert words[1:] == [
        *("-m", "anomseg_ros.cli", "bag", "play", "/data/drive"),
        *("--rate", "2.0", "--clock", "50", "--wait", "60", "--loop"),
    ]
    from anomseg_ros.commands.bag_play import parser

    options = parser().parse_args(words[5:])
    assert (options.rate, options.clock, options.loop, str(options.file)) == (2.0, 50.0, True, "/data/drive")
