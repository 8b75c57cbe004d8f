"""Start the detector node: `ros2 launch anomseg_ros detector.launch.py image_topic:=/camera/image`.

An argument that is left empty does not override the parameter file.
"""

import signal
from pathlib import Path

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.conditions import IfCondition
from launch.events.process import ProcessExited
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from anomseg_ros.backends import BACKENDS
from anomseg_ros.scores import SCORES

BOOLEAN = ["true", "false"]
ROAD_REGIONS = ["none", "road", "road_and_sidewalk"]
TEMPORAL_FILTERS = ["none", "exponential", "warped"]
PACKAGE = "anomseg_ros"
NODE = "detector"
RESPAWN_DELAY_S = 1.0

# Topics of the RViz layout, which are remapped to the namespace of the node.
RVIZ_TOPICS = ["overlay", "labels", "anomaly/score", "anomaly/mask"]


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([*declare_arguments(), OpaqueFunction(function=start_detector)])


def declare_arguments() -> list[DeclareLaunchArgument]:
    return [*node_arguments(), *model_arguments(), *run_arguments()]


def node_arguments() -> list[DeclareLaunchArgument]:
    return [
        DeclareLaunchArgument(
            "namespace", default_value="", description="Namespace of the node; its topics are NAMESPACE/detector/..."
        ),
        DeclareLaunchArgument(
            "params_file",
            default_value=PathJoinSubstitution([FindPackageShare(PACKAGE), "config", "detector.yaml"]),
            description="YAML file with the node's parameters.",
        ),
        DeclareLaunchArgument(
            "image_topic",
            default_value="/camera/image",
            description="Topic of the camera, of type Image or CompressedImage; with image_transport:=compressed, "
            "images are also expected on IMAGE_TOPIC/compressed.",
        ),
        DeclareLaunchArgument(
            "image_transport",
            default_value="",
            choices=["", "raw", "compressed"],
            description="Whether the camera sends sensor_msgs/Image or CompressedImage.",
        ),
        DeclareLaunchArgument(
            "min_rate_hz",
            default_value="",
            description="Expected rate, frames per second; a lower rate of processed frames is an error; 0 is off.",
        ),
    ]


def model_arguments() -> list[DeclareLaunchArgument]:
    return [
        DeclareLaunchArgument(
            "bundle", default_value="", description="Bundle directory, or the name of a shipped bundle."
        ),
        DeclareLaunchArgument(
            "backend", default_value="", choices=["", *BACKENDS], description="Engine that runs the bundle's graph."
        ),
        DeclareLaunchArgument(
            "precision",
            default_value="",
            choices=["", "auto", "fp32", "fp16", "bf16", "int8"],
            description="Precision that the bundle must have; auto accepts any.",
        ),
        DeclareLaunchArgument(
            "score", default_value="", choices=["", *SCORES], description="Anomaly score, one that the bundle has."
        ),
        DeclareLaunchArgument(
            "target_fpr",
            default_value="",
            description="False-positive rate, 0 to 1, that selects the bundle's threshold.",
        ),
        DeclareLaunchArgument(
            "target_alarms_per_minute",
            default_value="",
            description="Alarms per minute that select the bundle's threshold instead of target_fpr.",
        ),
        DeclareLaunchArgument(
            "road_region",
            default_value="",
            choices=["", *ROAD_REGIONS],
            description="Limit alarms to this surface and objects on it; none is no limit.",
        ),
        DeclareLaunchArgument(
            "temporal_filter",
            default_value="",
            choices=["", *TEMPORAL_FILTERS],
            description="Smooth the score over time; none is off.",
        ),
    ]


def run_arguments() -> list[DeclareLaunchArgument]:
    return [
        DeclareLaunchArgument(
            "use_sim_time", default_value="false", choices=BOOLEAN, description="Take the time from /clock."
        ),
        DeclareLaunchArgument(
            "autostart",
            default_value="true",
            choices=BOOLEAN,
            description="Configure and activate the node; false leaves that to a lifecycle manager.",
        ),
        DeclareLaunchArgument(
            "respawn",
            default_value="false",
            choices=BOOLEAN,
            description="Restart the node whenever it ends; with false, the launch ends with the node.",
        ),
        DeclareLaunchArgument(
            "log_level",
            default_value="info",
            choices=["debug", "info", "warn", "error", "fatal"],
            description="Lowest severity that the node logs.",
        ),
        DeclareLaunchArgument(
            "rviz", default_value="false", choices=BOOLEAN, description="Also start RViz with the package's layout."
        ),
    ]


def start_detector(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    namespace = argument_value(context, "namespace")
    image_topic = argument_value(context, "image_topic")
    camera_info = f"{image_topic.rpartition('/')[0]}/camera_info"
    respawn = argument_value(context, "respawn") == "true"
    detector = Node(
        package=PACKAGE,
        executable="detector",
        name=NODE,
        namespace=namespace,
        output="screen",
        parameters=[existing_file(argument_value(context, "params_file")), overrides(context)],
        remappings=[
            ("image", image_topic),
            ("image/compressed", f"{image_topic}/compressed"),
            ("camera_info", camera_info),
        ],
        ros_arguments=["--log-level", argument_value(context, "log_level")],
        respawn=respawn,
        respawn_delay=RESPAWN_DELAY_S,
        on_exit=None if respawn else fail_with_detector,
    )
    return [detector, rviz(namespace)]


def existing_file(path: str) -> str:
    # Without this check launch_ros only warns, and the node starts with default values, so with another model.
    if not Path(path).is_file():
        raise RuntimeError(f"params_file:={path!r} is not a file; give the YAML file of the node's parameters")
    return path


def number(argument: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise RuntimeError(f"{argument}:={text!r} is not a number; give one such as 0.5") from None


def fail_with_detector(event: ProcessExited, context: LaunchContext) -> None:
    """End the launch with a status other than 0 if the detector failed; launch only does so for an exception."""
    # Ctrl-C before the interpreter has started kills the node, which has nothing to clean up at that time.
    stopped = context.is_shutdown and event.returncode in (-signal.SIGINT, -signal.SIGTERM)
    if event.returncode != 0 and not stopped:
        raise RuntimeError(f"the detector ended with status {event.returncode}; see its error messages")


def overrides(context: LaunchContext) -> dict[str, object]:
    """Return the node's parameters that are set by arguments; they take precedence over the parameter file."""
    # The type is explicit because launch would convert a bundle named 2024 to an integer.
    parameters: dict[str, object] = {
        name: ParameterValue(argument_value(context, name), value_type=str)
        for name in ("image_transport", "bundle", "backend", "precision", "score", "road_region", "temporal_filter")
        if argument_value(context, name)
    }
    for name in ("target_fpr", "target_alarms_per_minute", "min_rate_hz"):
        if argument_value(context, name):
            parameters[name] = number(name, argument_value(context, name))
    # With autostart the node itself configures and activates, once, so that this also happens after a respawn.
    for name in ("use_sim_time", "autostart"):
        parameters[name] = argument_value(context, name) == "true"
    return parameters


def rviz(namespace: str) -> Node:
    base = f"/{namespace.strip('/')}" if namespace.strip("/") else ""
    return Node(
        package="rviz2",
        executable="rviz2",
        arguments=["-d", PathJoinSubstitution([FindPackageShare(PACKAGE), "config", "detector.rviz"])],
        remappings=[(f"/{NODE}/{topic}", f"{base}/{NODE}/{topic}") for topic in RVIZ_TOPICS] if base else [],
        parameters=[{"use_sim_time": LaunchConfiguration("use_sim_time")}],
        condition=IfCondition(LaunchConfiguration("rviz")),
    )


def argument_value(context: LaunchContext, argument: str) -> str:
    return LaunchConfiguration(argument).perform(context)
