"""Start the detector node: `ros2 launch anomseg_ros detector.launch.py image_topic:=/camera/image`.

An argument that is left empty leaves what the parameter file says.
"""

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, EmitEvent, LogInfo, OpaqueFunction, RegisterEventHandler
from launch.conditions import IfCondition
from launch.events import matches_action
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import LifecycleNode, Node
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare
from lifecycle_msgs.msg import Transition

BOOLEAN = ["true", "false"]
BACKENDS = ["onnxruntime", "openvino", "torch"]
SCORES = ["msp", "max_logit", "max_entropy", "energy", "void"]
ROAD_REGIONS = ["none", "road", "road_and_sidewalk"]
PACKAGE = "anomseg_ros"
NODE = "detector"

# What the RViz layout shows; its topics follow the namespace of the node.
SHOWN_TOPICS = ["overlay", "labels", "anomaly/score", "anomaly/mask"]


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
            description="Topic of the camera; compressed images are expected on IMAGE_TOPIC/compressed.",
        ),
        DeclareLaunchArgument(
            "image_transport",
            default_value="",
            choices=["", "raw", "compressed"],
            description="Whether the camera sends sensor_msgs/Image or CompressedImage.",
        ),
    ]


def model_arguments() -> list[DeclareLaunchArgument]:
    return [
        DeclareLaunchArgument(
            "bundle", default_value="", description="Model: the directory of a bundle, or the name of a shipped one."
        ),
        DeclareLaunchArgument(
            "backend", default_value="", choices=["", *BACKENDS], description="What runs the model's graph."
        ),
        DeclareLaunchArgument(
            "precision",
            default_value="",
            choices=["", "auto", "fp32", "fp16", "int8"],
            description="Precision the model must have; auto takes it as it is.",
        ),
        DeclareLaunchArgument(
            "score", default_value="", choices=["", *SCORES], description="Anomaly score, one of those the bundle has."
        ),
        DeclareLaunchArgument(
            "target_fpr",
            default_value="",
            description="False-positive rate, 0 to 1, that picks the mask's threshold from the bundle's table.",
        ),
        DeclareLaunchArgument(
            "road_region",
            default_value="",
            choices=["", *ROAD_REGIONS],
            description="Limits alarms to the road and what stands on it; none does not.",
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
            "log_level",
            default_value="info",
            choices=["debug", "info", "warn", "error", "fatal"],
            description="Least severity the node logs.",
        ),
        DeclareLaunchArgument(
            "rviz", default_value="false", choices=BOOLEAN, description="Start RViz with the package's layout as well."
        ),
    ]


def start_detector(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    namespace = value(context, "namespace")
    image_topic = value(context, "image_topic")
    camera_info = f"{image_topic.rpartition('/')[0]}/camera_info"
    detector = LifecycleNode(
        package=PACKAGE,
        executable="detector",
        name=NODE,
        namespace=namespace,
        output="screen",
        parameters=[value(context, "params_file"), overrides(context)],
        remappings=[
            ("image", image_topic),
            ("image/compressed", f"{image_topic}/compressed"),
            ("camera_info", camera_info),
        ],
        ros_arguments=["--log-level", value(context, "log_level")],
    )
    start = transitions(detector) if value(context, "autostart") == "true" else []
    # Handlers first: the node must not reach a state before somebody listens.
    return [*start[1:], detector, *start[:1], rviz(namespace)]


def overrides(context: LaunchContext) -> dict[str, object]:
    """The node's parameters that were given as arguments, over those of the file."""
    # Typed, or a bundle named 2024 would arrive as an integer.
    given: dict[str, object] = {
        name: ParameterValue(value(context, name), value_type=str)
        for name in ("image_transport", "bundle", "backend", "precision", "score", "road_region")
        if value(context, name)
    }
    if value(context, "target_fpr"):
        given["target_fpr"] = float(value(context, "target_fpr"))
    # The launch file does the transitions or leaves them to a manager; the node must not do them as well.
    return {**given, "use_sim_time": value(context, "use_sim_time") == "true", "autostart": False}


def transitions(detector: LifecycleNode) -> list[LaunchDescriptionEntity]:
    """Configure at the start; activate when that has succeeded."""

    def change(transition_id: int) -> EmitEvent:
        return EmitEvent(
            event=ChangeState(lifecycle_node_matcher=matches_action(detector), transition_id=transition_id)
        )

    def after_configuring(goal_state: str, action: LaunchDescriptionEntity) -> RegisterEventHandler:
        return RegisterEventHandler(
            OnStateTransition(
                target_lifecycle_node=detector, start_state="configuring", goal_state=goal_state, entities=[action]
            )
        )

    failed = LogInfo(msg="The detector could not be configured; its own message says why and what to do.")
    return [
        change(Transition.TRANSITION_CONFIGURE),
        after_configuring("inactive", change(Transition.TRANSITION_ACTIVATE)),
        after_configuring("unconfigured", failed),
        after_configuring("errorprocessing", failed),
    ]


def rviz(namespace: str) -> Node:
    base = f"/{namespace.strip('/')}" if namespace.strip("/") else ""
    return Node(
        package="rviz2",
        executable="rviz2",
        arguments=["-d", PathJoinSubstitution([FindPackageShare(PACKAGE), "config", "detector.rviz"])],
        remappings=[(f"/{NODE}/{topic}", f"{base}/{NODE}/{topic}") for topic in SHOWN_TOPICS] if base else [],
        parameters=[{"use_sim_time": LaunchConfiguration("use_sim_time")}],
        condition=IfCondition(LaunchConfiguration("rviz")),
    )


def value(context: LaunchContext, argument: str) -> str:
    return LaunchConfiguration(argument).perform(context)
