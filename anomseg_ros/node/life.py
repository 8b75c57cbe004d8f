"""Run one node or several in this process: command line, autostart, spinning and an orderly shutdown."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Sequence

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future

from anomseg_ros.command_table import example_of
from anomseg_ros.errors import AnomsegError, ConfigError
from anomseg_ros.node.cameras import Camera, read_cameras, remappings, select_cameras
from anomseg_ros.node.detector_node import DetectorNode
from anomseg_ros.node.engines import Engines
from anomseg_ros.node.names import check_parameter_files, check_qos_overrides, check_topic
from anomseg_ros.node.parameters import PARAMETERS
from anomseg_ros.node.stop_signals import stop_was_requested
from anomseg_ros.node.transport import use_large_shared_memory

STOP_S = 3.0
"""How long the nodes may take to shut down, seconds; `ros2 launch` sends SIGTERM 5 s after SIGINT, then SIGKILL."""

PARAMETER_OPTIONS = {
    "bundle": str,
    "backend": str,
    "provider": str,
    "score": str,
    "image_transport": str,
    "ego_mask": str,
    "road_region": str,
    "threads": int,
    "target_fpr": float,
    "target_alarms_per_minute": float,
    "min_rate_hz": float,
    "threshold": float,
    "temporal_filter": str,
    "filter_time_constant_s": float,
    "alarm_frames_n": int,
    "alarm_frames_m": int,
}
"""Option of the command that sets a parameter of the node -> its type."""

REMEDIES = (
    ("initialize logging", "set ROS_LOG_DIR to a folder that can be written, or give --disable-external-lib-logs"),
    (
        "security",
        "set ROS_SECURITY_KEYSTORE to a keystore with the enclave, and use a middleware with security (docs/deploy.md)",
    ),
    ("", "check the arguments after --ros-args, and that each parameter file exists and is a ROS parameter file"),
)
"""Text in the error with which ROS 2 did not start, in lower case, and the remedy; the first match applies."""


def run(argv: Sequence[str] | None = None) -> int:
    """Run the node, or the nodes of several cameras, until a stop signal.

    Returns 0, or 1 if a node could not be started or the node ended without a signal.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    use_large_shared_memory()
    try:
        ros_arguments, cameras = _parse_command_line(words)
        return _run_until_stopped(_new_nodes(ros_arguments, cameras))
    except AnomsegError as error:
        print(f"anomseg node: error: {error}", file=sys.stderr)
        return 1


def _new_nodes(ros_arguments: list[str], cameras: Sequence[Camera]) -> list[DetectorNode]:
    engines = Engines()
    try:
        rclpy.init(args=ros_arguments, signal_handler_options=SignalHandlerOptions.NO)
        if cameras:  # each entry names its bundle, so a file without parameters for a camera does not change the model
            nodes = [DetectorNode(engines, **camera.node_options()) for camera in cameras]
        else:
            nodes = [DetectorNode(engines)]
            check_parameter_files(ros_arguments, nodes[0].get_fully_qualified_name())
        check_qos_overrides(nodes)
        return nodes
    except AnomsegError:
        raise
    except Exception as error:  # rclpy raises several classes for an unusable environment or unusable arguments
        reason = " ".join(str(error).split()).split(", at /")[0]
        remedy = next(remedy for text, remedy in REMEDIES if text in reason.lower())
        raise ConfigError(f"ROS 2 did not start: {reason}; {remedy}") from error


def _run_until_stopped(nodes: Sequence[DetectorNode]) -> int:
    stop: Future = Future()
    threads = [_NodeThread(node, stop) for node in nodes]
    for thread in threads:
        thread.start()
    # The nodes run in other threads, so that this one sees a signal even while a bundle loads or a frame hangs.
    while any(thread.is_serving for thread in threads) and not stop_was_requested(within_s=0.2):
        pass
    failed = [thread.name for thread in threads if not thread.is_serving]
    stop.set_result(None)
    shutdown = threading.Thread(target=_shut_down, args=(threads,), name="shutdown", daemon=True)
    shutdown.start()
    shutdown.join(STOP_S)
    if shutdown.is_alive():
        print(f"anomseg node: still busy {STOP_S:g} s after the signal; the process ends anyway", file=sys.stderr)
    if failed and len(nodes) > 1:
        print(f"anomseg node: not started: {', '.join(failed)}; see their error messages", file=sys.stderr)
    return 1 if failed else 0


def _shut_down(threads: Sequence[_NodeThread]) -> None:
    for thread in threads:
        thread.join()
    rclpy.try_shutdown()


class _NodeThread(threading.Thread):
    """One node from autostart to shutdown, in its own thread and executor, so that nodes do not wait for each other.

    A node that cannot be started keeps spinning, so that it can be configured later through its services.
    """

    def __init__(self, node: DetectorNode, stop: Future) -> None:
        super().__init__(name=node.get_fully_qualified_name(), daemon=True)
        self.node = node
        self._stop_request = stop
        self._autostart_failed = False

    @property
    def is_serving(self) -> bool:
        """Whether the thread runs; False also while the node has not been started since its autostart failed."""
        return self.is_alive() and not (self._autostart_failed and self.node.failure)

    def run(self) -> None:
        """Start, spin and shut down the node."""
        autostart = bool(self.node.get_parameter("autostart").value)
        self._autostart_failed = autostart and not _start(self.node, self._stop_request)
        _spin(self.node, self._stop_request)
        self.node.shut_down()
        self.node.destroy_node()


def _start(node: DetectorNode, stop: Future) -> bool:
    """Configure and activate the node, unless a stop is requested; return whether no transition failed."""
    transitions = (node.trigger_configure, node.trigger_activate)
    return all(stop.done() or transition() == TransitionCallbackReturn.SUCCESS for transition in transitions)


def _spin(node: DetectorNode, stop: Future) -> None:
    """Run the node's callbacks until a stop is requested."""
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    # rclpy's spin_until_future_complete adds a callback to the future for every message, so its memory grows for ever.
    # A task ends the spin_once that waits for the next message.
    stop.add_done_callback(lambda _: executor.create_task(_no_work))
    while not stop.done():
        try:
            executor.spin_once()
        except Exception as error:  # a callback that fails must not stop the executor
            node.get_logger().error(f"request or message not handled: {type(error).__name__}: {error}")
    executor.shutdown()


def _no_work() -> None:
    pass


def _parse_command_line(words: list[str]) -> tuple[list[str], tuple[Camera, ...]]:
    """Return the ROS arguments, with the command's own options translated to them, and the cameras of --cameras.

    The arguments from --ros-args on are passed through. Raises ConfigError.
    """
    split = words.index("--ros-args") if "--ros-args" in words else len(words)
    options, ros_arguments = words[:split], words[split:]
    if ros_arguments and not options:  # ros2 run and ros2 launch give every setting as a ROS argument
        return ros_arguments, ()
    args = argument_parser().parse_args(options)
    # Of two values ROS 2 uses the later one, so the options follow the parameter file.
    translated = ["--ros-args", *(["--params-file", args.params_file] if args.params_file else [])]
    translated += ["-p", f"autostart:={str(not args.no_autostart).lower()}"]
    for name in PARAMETER_OPTIONS:
        if getattr(args, name) is not None:
            translated += ["-p", f"{name}:={getattr(args, name)}"]
    if args.use_sim_time:
        translated += ["-p", "use_sim_time:=true"]
    if args.image_topic is not None:
        check_topic(args.image_topic, "--image-topic")
        translated += [word for rule in remappings(args.image_topic) for word in ("-r", rule)]
    return translated + ros_arguments, _cameras(args)


def _cameras(args: argparse.Namespace) -> tuple[Camera, ...]:
    if args.cameras is None:
        if args.camera:
            raise ConfigError(f"--camera {args.camera[0]} needs --cameras, the file with this camera")
        return ()
    for name in ("image_topic", "bundle"):
        if getattr(args, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option} is for a single camera; with --cameras, set {name} in the file")
    return select_cameras(read_cameras(args.cameras), args.camera)


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of `anomseg node`."""
    descriptions = {parameter.name: parameter.description.replace("%", "%%") for parameter in PARAMETERS}
    parser = argparse.ArgumentParser(
        prog="anomseg node",
        description="Start the detector node, configured and active. Everything after --ros-args goes to ROS 2.",
        epilog=example_of("node"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    image_topic_help = "topic of the camera, with camera_info in the same namespace (default: image)"
    parser.add_argument("--image-topic", help=image_topic_help)
    parser.add_argument("--cameras", help="YAML file of cameras, such as config/cameras.yaml, for one process")
    parser.add_argument("--camera", action="append", default=[], help="only this camera of the file; may be repeated")
    parser.add_argument("--params-file", help="ROS parameter file, such as config/detector.yaml")
    parser.add_argument("--use-sim-time", action="store_true", help="take the time from /clock, for replayed bags")
    parser.add_argument("--no-autostart", action="store_true", help="wait for a lifecycle manager")
    for name, kind in PARAMETER_OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=descriptions[name])
    return parser
