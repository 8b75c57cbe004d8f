"""Play a bag into the detector node: `ros2 launch anomseg_ros replay.launch.py bag:=drive.mcap`.

All arguments of detector.launch.py can be given as well. The launch ends shortly after the bag.
"""

import sys

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
    Shutdown,
    TimerAction,
)
from launch.event_handlers import OnProcessExit
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution, ThisLaunchFileDir

BOOLEAN = ["true", "false"]

# The model loads before the node subscribes; playing begins when it does.
WAIT_FOR_NODE_S = "60"
# For the frames that the node still has when the last message is out.
LAST_FRAMES_S = 3.0


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([*declare_arguments(), include_detector(), OpaqueFunction(function=play_bag)])


def declare_arguments() -> list[DeclareLaunchArgument]:
    return [
        DeclareLaunchArgument("bag", description="Bag to play: a bag directory, an .mcap file or a .db3 file."),
        DeclareLaunchArgument("rate", default_value="1.0", description="Speed; 1.0 is the bag's own."),
        DeclareLaunchArgument(
            "loop", default_value="false", choices=BOOLEAN, description="Begin again at the end of the bag."
        ),
        DeclareLaunchArgument("clock", default_value="100", description="Ticks of /clock per second."),
    ]


def include_detector() -> IncludeLaunchDescription:
    return IncludeLaunchDescription(
        PythonLaunchDescriptionSource(PathJoinSubstitution([ThisLaunchFileDir(), "detector.launch.py"])),
        launch_arguments={"use_sim_time": "true"}.items(),
    )


def play_bag(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    bag, rate, loop, clock = (LaunchConfiguration(name).perform(context) for name in ("bag", "rate", "loop", "clock"))
    command = [sys.executable, "-m", "anomseg_ros.cli", "bag", "play", bag]
    command += ["--rate", rate, "--clock", clock, "--wait", WAIT_FOR_NODE_S]
    player = ExecuteProcess(name="bag_player", cmd=command + (["--loop"] if loop == "true" else []), output="screen")
    end = TimerAction(period=LAST_FRAMES_S, actions=[Shutdown(reason="the bag has been played")])
    return [RegisterEventHandler(OnProcessExit(target_action=player, on_exit=[end])), player]
