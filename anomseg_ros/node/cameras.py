"""Read and check the file of a vehicle's cameras: YAML with one entry per camera (config/cameras.yaml)."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rclpy.parameter import Parameter

from anomseg_ros.core.bundle import CONTRACT_FILE
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.core.schema import from_plain, shown
from anomseg_ros.core.untrusted_text import parse_yaml
from anomseg_ros.errors import AnomsegError, ConfigError, unknown_name
from anomseg_ros.node.names import check_namespace, check_topic
from anomseg_ros.node.parameters import checked_values

CAMERA_NAME = re.compile(r"[A-Za-z]\w*(/[A-Za-z]\w*)*", re.ASCII)


@dataclass(frozen=True)
class Camera:
    """One entry of the file. Its node is /NAME/detector; the parameter file decides what the entry leaves out.

    camera_info_topic: None for camera_info in the namespace of image_topic. parameters: further parameters of the node.
    """

    name: str
    image_topic: str
    bundle: str
    image_transport: str | None = None
    camera_info_topic: str | None = None
    score: str | None = None
    target_fpr: float | None = None
    threshold: float | None = None
    ego_mask: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parameter_values(self) -> dict[str, Any]:
        """Parameter name -> value, for those that the entry sets. Raises ConfigError if the node would refuse one."""
        keys = ("bundle", "image_transport", "score", "target_fpr", "threshold", "ego_mask")
        entry_values = {key: getattr(self, key) for key in keys if getattr(self, key) is not None}
        if duplicates := entry_values.keys() & self.parameters.keys():
            raise ConfigError(f"{sorted(duplicates)[0]!r} is given twice: leave it out of parameters")
        return checked_values({**entry_values, **self.parameters})

    def node_options(self) -> dict[str, Any]:
        """Return the keyword arguments for rclpy's node."""
        rules = [word for rule in remappings(self.image_topic, self.camera_info_topic) for word in ("-r", rule)]
        return {
            "namespace": self.name,
            "cli_args": ["--ros-args", *rules],
            "parameter_overrides": [Parameter(name, value=value) for name, value in self.parameter_values.items()],
        }


@dataclass(frozen=True)
class _CameraFile:
    cameras: tuple[Camera, ...]


def remappings(image_topic: str, camera_info_topic: str | None = None) -> list[str]:
    """Return the remapping rules that connect a node to its camera.

    camera_info_topic: None for camera_info in the namespace of image_topic.
    """
    camera_info_topic = camera_info_topic or f"{image_topic.rpartition('/')[0]}/camera_info"
    return [
        f"image:={image_topic}",
        f"image/compressed:={image_topic}/compressed",
        f"camera_info:={camera_info_topic}",
    ]


def read_cameras(path: str | Path) -> tuple[Camera, ...]:
    """Return the cameras of a file, with the paths of their bundles and ego masks resolved.

    Only checks that each bundle exists: a bundle that cannot be loaded affects its own camera alone. Raises ConfigError
    that names the file, the entry and the remedy.
    """
    path = Path(path)
    data = _parse_file(path)
    if not isinstance(data, Mapping):
        raise ConfigError(
            f"{path}: expected the key 'cameras' with a list, as in config/cameras.yaml, got {shown(data)}"
        )
    cameras = from_plain(_CameraFile, data, str(path)).cameras
    if not cameras:
        raise ConfigError(f"{path}: the list of cameras is empty; give at least one, as in config/cameras.yaml")
    for name, count in Counter(camera.name for camera in cameras).items():
        if count > 1:
            raise ConfigError(f"{path}: {count} cameras are named {name!r}; give each camera a unique name")
    return tuple(_resolve_entry(camera, path) for camera in cameras)


def select_cameras(cameras: Sequence[Camera], names: Sequence[str]) -> tuple[Camera, ...]:
    """Return the cameras with these names, each once, or all cameras if no name is given. Raises ConfigError."""
    by_name = {camera.name: camera for camera in cameras}
    for name in names:
        if name not in by_name:
            raise ConfigError(unknown_name("camera", name, by_name))
    return tuple(by_name[name] for name in dict.fromkeys(names)) or tuple(cameras)


def threads_per_process(processes: int) -> int:
    """Return how many threads each of several processes may use so that together they use every core once."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // processes)


def _parse_file(path: Path) -> object:
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give the YAML file of the cameras") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} is not YAML: {reason}; compare it with config/cameras.yaml") from error


def _resolve_entry(camera: Camera, path: Path) -> Camera:
    """Return the entry with absolute paths. Raises ConfigError for an entry that is wrong."""
    where = f"{path}: camera {camera.name!r}"
    if not CAMERA_NAME.fullmatch(camera.name):
        raise ConfigError(
            f"{where}: a name consists of letters, digits and _ and begins with a letter; / separates namespaces"
        )
    try:
        check_namespace(camera.name, "name")
        for key in ("image_topic", "camera_info_topic"):
            if (topic := getattr(camera, key)) is not None:
                check_topic(topic, key, f"/{camera.name}")
        bundle = find_bundle(_relative_to_file(path, camera.bundle))
        if not (bundle / CONTRACT_FILE).is_file():
            raise ConfigError(
                f"bundle: {str(bundle)!r} has no {CONTRACT_FILE}; give a bundle that `anomseg export` has written"
            )
        paths: dict[str, Any] = {"bundle": str(bundle)}
        if camera.ego_mask:
            paths["ego_mask"] = _relative_to_file(path, camera.ego_mask)
            if not Path(paths["ego_mask"]).is_file():
                raise ConfigError(f"ego_mask: {camera.ego_mask!r} is not a file; give an image file, or leave it out")
        resolved = Camera(**{**vars(camera), **paths})
        _ = resolved.parameter_values  # raises for a wrong value
    except AnomsegError as error:
        raise ConfigError(f"{where}: {error}") from error
    return resolved


def _relative_to_file(path: Path, name: str) -> str:
    """Return `name` as an absolute path if it exists relative to the folder of `path`, otherwise unchanged."""
    candidate = path.parent / name
    return str(candidate.absolute()) if candidate.exists() else name
