"""Launch files evaluated or run, for tests where launch and launch_ros are installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from anomseg_ros.replay.process import free_domain_id, local_environment

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"
CONFIG = ROOT / "config"


def load(file: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.split(".")[0], LAUNCH / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parameters_of(node: Any, context: Any) -> dict[str, Any]:
    from launch_ros.utilities import evaluate_parameters

    files = evaluate_parameters(context, node._Node__parameters)
    assert Path(files[0]).samefile(CONFIG / "detector.yaml")
    return dict(files[1])


def executable(entity: Any) -> str:
    return entity.node_executable if isinstance(entity.node_executable, str) else entity.node_executable[0].text


def included(file: str, arguments: dict[str, str], *, scoped: bool) -> Any:
    """A launch file with these arguments, in a group of its own as docs/cameras.md has it, or bare."""
    from launch.actions import GroupAction, IncludeLaunchDescription
    from launch.launch_description_sources import PythonLaunchDescriptionSource

    source = PythonLaunchDescriptionSource(str(LAUNCH / file))
    include = IncludeLaunchDescription(source, launch_arguments=arguments.items())
    return GroupAction([include], scoped=True, forwarding=False) if scoped else include


def nodes_in(entities: list[Any], context: Any) -> list[tuple[Any, dict[str, Any]]]:
    """The detectors that these entities come to, visited as launch does, none started; each with its parameters."""
    from launch_ros.actions import Node

    found: list[tuple[Any, dict[str, Any]]] = []
    for entity in entities:
        if isinstance(entity, Node):
            if executable(entity) == "detector":
                entity._perform_substitutions(context)
                found.append((entity, parameters_of(entity, context)))
        else:
            found += nodes_in(entity.visit(context) or [], context)
    return found


def launched(file: str, *arguments: str) -> subprocess.Popen[str]:
    """Launch as `ros2 launch` does, in a process group of its own and a ROS domain of its own."""
    code = """if True:
        import sys
        from launch import LaunchDescription, LaunchService
        from launch.actions import IncludeLaunchDescription
        from launch.launch_description_sources import AnyLaunchDescriptionSource
        file, *words = sys.argv[1:]
        service = LaunchService()
        included = IncludeLaunchDescription(
            AnyLaunchDescriptionSource(file), launch_arguments=[word.split(":=", 1) for word in words]
        )
        service.include_launch_description(LaunchDescription([included]))
        sys.exit(service.run())
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # scripts/detector asks for python3
    return subprocess.Popen(
        [sys.executable, "-c", code, str(LAUNCH / file), *arguments],
        env={**local_environment(free_domain_id()), "PATH": path, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
