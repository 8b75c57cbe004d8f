"""Play a bag into the detector node: `ros2 launch anomseg_ros replay.launch.py bag:=drive.mcap`.

All arguments of detector.launch.py are accepted as well. The launch ends shortly after the end of the bag.
"""

import sys
from pathlib import Path

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    GroupAction,
    IncludeLaunchDescription,
    OpaqueFunction,
    Shutdown,
    TimerAction,
)
from launch.events.process import ProcessExited
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution, ThisLaunchFileDir

BOOLEAN = ["true", "false"]

# The player waits this long for the node to load the model and subscribe.
WAIT_FOR_NODE_S = "60"
# Time for the node to process its last frames after the end of the bag.
LAST_FRAMES_S = 3.0


def generate_launch_description() -> LaunchDescription:
    # The bag is checked first, so that nothing starts without it.
    return LaunchDescription([*declare_arguments(), OpaqueFunction(function=play_bag), include_detector()])


def declare_arguments() -> list[DeclareLaunchArgument]:
    return [
        DeclareLaunchArgument("bag", description="Bag to play: a bag directory, an .mcap file or a .db3 file."),
        DeclareLaunchArgument("rate", default_value="1.0", description="Playback speed; 1.0 is the recorded speed."),
        DeclareLaunchArgument(
            "loop", default_value="false", choices=BOOLEAN, description="Play the bag again whenever it ends."
        ),
        DeclareLaunchArgument("clock", default_value="100", description="Messages on /clock per second."),
    ]


def include_detector() -> GroupAction:
    detector = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(PathJoinSubstitution([ThisLaunchFileDir(), "detector.launch.py"])),
        launch_arguments={"use_sim_time": "true"}.items(),
    )
    # Without the group, the arguments of an include would also apply to everything after it, even in other files.
    return GroupAction([detector], scoped=True)


def play_bag(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    bag, rate, loop, clock = (LaunchConfiguration(name).perform(context) for name in ("bag", "rate", "loop", "clock"))
    if not Path(bag).exists():
        raise RuntimeError(f"bag:={bag!r} does not exist; give a bag directory, an .mcap file or a .db3 file")
    command = [sys.executable, "-m", "anomseg_ros.cli", "bag", "play", bag]
    command += ["--rate", rate, "--clock", clock, "--wait", WAIT_FOR_NODE_S, "--needs-subscriber"]
    command += ["--loop"] if loop == "true" else []
    return [ExecuteProcess(name="bag_player", cmd=command, output="screen", on_exit=end_with_player)]


def end_with_player(event: ProcessExited, context: LaunchContext) -> list[LaunchDescriptionEntity]:
    if event.returncode != 0 and not context.is_shutdown:
        raise RuntimeError(f"the bag was not played (status {event.returncode}); see the player's error message")
    return [TimerAction(period=LAST_FRAMES_S, actions=[Shutdown(reason="the bag has been played")])]
