"""The cameras file: the options that it gives the nodes, and errors for mistakes before anything starts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from anomseg_ros.core.resources import share_file
from anomseg_ros.errors import ConfigError
from anomseg_ros.node.cameras import read_cameras, select_cameras, threads_per_process

FRONT = {"name": "front", "image_topic": "/front/image_raw", "bundle": "enet-synthetic"}


def write_cameras(folder: Path, *cameras: object, **keys: object) -> Path:
    path = folder / "cameras.yaml"
    path.write_text(yaml.safe_dump({"cameras": list(cameras), **keys}))
    return path


def test_shipped_cameras_file_is_read_into_node_values() -> None:
    front, rear = read_cameras(share_file("config/cameras.yaml"))
    assert (front.name, rear.name) == ("front", "rear")
    assert rear.parameter_values == {
        "bundle": rear.bundle,
        "image_transport": "compressed",
        "score": "max_logit",
        "target_fpr": 0.02,
        "ego_mask": "",
        "min_rate_hz": 8.0,
        "hardware_id": "rear camera",
    }
    assert Path(front.bundle).name == "bisenet_lite-world-small-int8"
    options = rear.node_options()
    assert options["namespace"] == "rear"
    assert options["cli_args"][1::2] == ["-r"] * 3
    assert options["cli_args"][2::2] == [
        "image:=/rear/image_raw",
        "image/compressed:=/rear/image_raw/compressed",
        "camera_info:=/rear/calibration/camera_info",
    ]
    assert {parameter.name: parameter.value for parameter in options["parameter_overrides"]} == rear.parameter_values
    assert front.node_options()["cli_args"][-1] == "camera_info:=/front/camera_info"


def test_values_get_parameter_types_and_paths_are_relative_to_file(tmp_path: Path, tiny_bundle: Path) -> None:
    (tmp_path / "tiny").symlink_to(tiny_bundle)
    (tmp_path / "mask.png").touch()
    entry = {**FRONT, "bundle": "tiny", "ego_mask": "mask.png", "threshold": 1, "parameters": {"max_image_age_s": 2}}
    (camera,) = read_cameras(write_cameras(tmp_path, entry))
    assert camera.bundle == str(tmp_path / "tiny") and camera.ego_mask == str(tmp_path / "mask.png")
    values = camera.parameter_values
    for name, expected in (("threshold", 1.0), ("max_image_age_s", 2.0)):
        assert values[name] == expected and type(values[name]) is float


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bundel": "x"}, "unknown key 'bundel'; did you mean 'bundle'"),
        ({"bundle": None}, "bundle: expected str, got None"),
        ({"bundle": "enet-sinthetic"}, "camera 'front': 'enet-sinthetic' is neither a bundle directory nor a shipped"),
        ({"bundle": "/"}, "has no bundle.yaml; give a bundle that `anomseg export` has written"),
        ({"name": "front camera"}, "a name consists of letters, digits and _"),
        ({"name": "2nd"}, "a name consists of letters, digits and _"),
        ({"name": "a" * 300}, "namespace should not exceed"),
        ({"image_topic": "/"}, "image_topic is '/': topic name '/' is invalid"),
        ({"image_topic": "/front image"}, "give a topic such as /camera/image"),
        ({"camera_info_topic": "front//info"}, "camera_info_topic is 'front//info': Invalid topic name"),
        ({"parameters": {"qos_overrides./front/image_raw.subscription.dept": 5}}, "'dept'; known: depth"),
        ({"parameters": {"qos_overrides./front/image_raw.subscription.depth": None}}, "is None; expected a number"),
        ({"ego_mask": "nowhere.png"}, "ego_mask: 'nowhere.png' is not a file"),
        ({"score": "viod"}, "unknown value of parameter 'score': 'viod'; known: void"),
        ({"target_fpr": 5}, "parameter 'target_fpr' is 5.0; expected 0 to 1"),
        ({"image_transport": "theora"}, "unknown value of parameter 'image_transport': 'theora'"),
        ({"parameters": {"jpeg_qualty": 5}}, "unknown parameter 'jpeg_qualty'; known: jpeg_quality"),
        ({"parameters": {"jpeg_quality": 5.5}}, "parameter 'jpeg_quality' is 5.5; expected int"),
        ({"parameters": {"spin": "yes"}}, "parameter 'spin' is 'yes'; expected bool"),
        ({"parameters": {"region_of_interest": [0, 0, 2, 1]}}, "expected left, top, right, bottom"),
        ({"score": "void", "parameters": {"score": "msp"}}, "'score' is given twice"),
    ],
)
def test_wrong_entry_error_names_file_and_entry(tmp_path: Path, changed: dict[str, object], message: str) -> None:
    path = write_cameras(tmp_path, {**FRONT, "name": "rear"}, {**FRONT, **changed})
    with pytest.raises(ConfigError) as raised:
        read_cameras(path)
    assert str(path) in str(raised.value) and message in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cameras: [a\n  b: {", "is not YAML: while parsing"),
        ("cameras: []", "the list of cameras is empty"),
        ("", "expected the key 'cameras' with a list"),
        ("cameras: []\ncameras: [x]", "'cameras' is given 2 times"),
        ("cameras: front", "cameras: expected a list, got 'front'"),
        ("{}", "missing key(s) 'cameras'"),
        ("cameras: [{name: a, image_topic: /b}]", "cameras[0]: missing key(s) 'bundle'"),
        ("cameras: []\ncamera: 1", "unknown key 'camera'"),
    ],
)
def test_wrong_file_error_says_what_is_expected(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "cameras.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        read_cameras(path)
    assert str(path) in str(raised.value) and message in str(raised.value)


def test_duplicate_names_and_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 cameras are named 'front'; give each camera a unique name"):
        read_cameras(write_cameras(tmp_path, FRONT, FRONT))
    with pytest.raises(ConfigError, match="No such file or directory; give the YAML file of the cameras"):
        read_cameras(tmp_path / "absent.yaml")


def test_cameras_are_selected_by_name(tmp_path: Path) -> None:
    cameras = read_cameras(write_cameras(tmp_path, FRONT, {**FRONT, "name": "vehicle/rear"}))
    assert select_cameras(cameras, ()) == cameras and select_cameras(cameras, ["vehicle/rear"]) == cameras[1:]
    assert select_cameras(cameras, ["vehicle/rear", "vehicle/rear"]) == cameras[1:]
    with pytest.raises(ConfigError, match="unknown camera 'raer'; known: "):
        select_cameras(cameras, ["raer"])


def test_cores_are_divided_among_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    assert [threads_per_process(processes) for processes in (1, 2, 3, 16)] == [8, 4, 2, 1]
