"""Start a detector for each of several cameras: `ros2 launch anomseg_ros multi_camera.launch.py cameras:=cameras.yaml`.

All cameras run in one process that loads each model once, or each camera runs in its own process. An argument that is
left empty does not override the parameter file.
"""

import signal
from pathlib import Path

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.events.process import ProcessExited
from launch.logging import get_logger
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

from anomseg_ros.node.cameras import read_cameras, threads_per_process

BOOLEAN = ["true", "false"]
PACKAGE = "anomseg_ros"
RESPAWN_DELAY_S = 1.0


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([*declare_arguments(), OpaqueFunction(function=start_cameras)])


def declare_arguments() -> list[DeclareLaunchArgument]:
    return [
        DeclareLaunchArgument("cameras", description="YAML file of the cameras, such as config/cameras.yaml."),
        DeclareLaunchArgument(
            "mode",
            default_value="shared",
            choices=["shared", "processes"],
            description="shared: one process, where cameras of one bundle share a model; processes: one for each.",
        ),
        DeclareLaunchArgument(
            "params_file",
            default_value=PathJoinSubstitution([FindPackageShare(PACKAGE), "config", "detector.yaml"]),
            description="YAML file with parameters for all nodes; parameters of a camera take precedence.",
        ),
        DeclareLaunchArgument(
            "threads",
            default_value="",
            description="Processor threads for one frame; if empty, mode processes divides the cores equally.",
        ),
        DeclareLaunchArgument(
            "use_sim_time", default_value="false", choices=BOOLEAN, description="Take the time from /clock."
        ),
        DeclareLaunchArgument(
            "autostart",
            default_value="true",
            choices=BOOLEAN,
            description="Configure and activate the nodes; false leaves that to a lifecycle manager.",
        ),
        DeclareLaunchArgument(
            "respawn", default_value="false", choices=BOOLEAN, description="Restart a process whenever it ends."
        ),
        DeclareLaunchArgument(
            "log_level",
            default_value="info",
            choices=["debug", "info", "warn", "error", "fatal"],
            description="Lowest severity that the nodes log.",
        ),
    ]


def start_cameras(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    path = argument_value(context, "cameras")
    names = [camera.name for camera in read_cameras(path)]
    if argument_value(context, "mode") == "shared":
        processes = {", ".join(names): ["--cameras", path]}
    else:
        processes = {name: ["--cameras", path, "--camera", name] for name in names}
    monitor = ExitMonitor(list(processes))
    return [detector(context, name, arguments, monitor, len(processes)) for name, arguments in processes.items()]


def detector(context: LaunchContext, name: str, arguments: list[str], monitor: "ExitMonitor", processes: int) -> Node:
    respawn = argument_value(context, "respawn") == "true"
    return Node(
        package=PACKAGE,
        executable="detector",
        arguments=arguments,
        output="screen",
        parameters=[existing_file(argument_value(context, "params_file")), overrides(context, processes)],
        ros_arguments=["--log-level", argument_value(context, "log_level")],
        respawn=respawn,
        respawn_delay=RESPAWN_DELAY_S,
        on_exit=None if respawn else lambda event, exit_context: monitor.record_exit(name, event, exit_context),
    )


class ExitMonitor:
    """Records how the processes end. A failed process does not stop the others; the launch fails after the last exit.

    running: names of the processes that have not ended. failed: names and statuses of those that ended with an error.
    """

    def __init__(self, names: list[str]) -> None:
        self.running = names
        self.failed: list[str] = []

    def record_exit(self, name: str, event: ProcessExited, context: LaunchContext) -> None:
        self.running.remove(name)
        # Ctrl-C before the interpreter has started kills the node, which has nothing to clean up at that time.
        stopped = context.is_shutdown and event.returncode in (-signal.SIGINT, -signal.SIGTERM)
        if event.returncode != 0 and not stopped:
            self.failed.append(f"{name} (status {event.returncode})")
            get_logger("multi_camera").error(f"the detector of {self.failed[-1]} ended; see its error messages")
        if self.failed and not self.running:  # only an exception gives the launch a status other than 0
            raise RuntimeError(f"detectors that ended with an error: {'; '.join(self.failed)}")


def existing_file(path: str) -> str:
    # Without this check launch_ros only warns, and the nodes start with default values.
    if not Path(path).is_file():
        raise RuntimeError(f"params_file:={path!r} is not a file; give the YAML file of the nodes' parameters")
    return path


def whole_number(argument: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise RuntimeError(f"{argument}:={text!r} is not a whole number; give one such as 2") from None


def overrides(context: LaunchContext, processes: int) -> dict[str, object]:
    """Return the parameters of all nodes that take precedence over the parameter file."""
    parameters: dict[str, object] = {}
    for name in ("use_sim_time", "autostart"):
        parameters[name] = argument_value(context, name) == "true"
    if argument_value(context, "threads"):
        parameters["threads"] = whole_number("threads", argument_value(context, "threads"))
    elif processes > 1:
        parameters["threads"] = threads_per_process(processes)
    return parameters


def argument_value(context: LaunchContext, argument: str) -> str:
    return LaunchConfiguration(argument).perform(context)
