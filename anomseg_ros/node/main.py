"""`anomseg node` and the ROS executable `detector`: start the node, stop it on SIGINT (also twice) and SIGTERM."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.signals import SignalHandlerOptions

from anomseg_ros.errors import AnomsegError
from anomseg_ros.node.detector_node import DetectorNode
from anomseg_ros.node.parameters import PARAMETERS
from anomseg_ros.node.transport import use_large_shared_memory

EXECUTOR_STOP_S = 5.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the node until it is told to stop; return 0, or 1 if it could not start."""
    ros_arguments = _ros_arguments(list(sys.argv[1:] if argv is None else argv))
    stop = _stop_on_signals()
    use_large_shared_memory()
    rclpy.init(args=ros_arguments, signal_handler_options=SignalHandlerOptions.NO)
    try:
        return _run(stop)
    except AnomsegError as error:
        print(f"anomseg node: error: {error}", file=sys.stderr)
        return 1
    finally:
        rclpy.try_shutdown()


def _run(stop: threading.Event) -> int:
    node = DetectorNode()
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    spinner = threading.Thread(target=executor.spin, name="executor", daemon=True)
    started = True
    try:
        if node.get_parameter("autostart").value:
            started = _start(node, stop)
        if started:
            spinner.start()
            stop.wait()
    finally:
        executor.shutdown(EXECUTOR_STOP_S)
        if spinner.ident is not None:
            spinner.join(EXECUTOR_STOP_S)
        node.trigger_shutdown()
        node.destroy_node()
    return 0 if started else 1


def _start(node: DetectorNode, stop: threading.Event) -> bool:
    """Configure and activate; False if that failed, the node having said why. A stop signal in between is honoured."""
    for step in (node.trigger_configure, node.trigger_activate):
        if stop.is_set():
            return True
        if step() != TransitionCallbackReturn.SUCCESS:
            return False
    return True


def _stop_on_signals() -> threading.Event:
    """Return an event that SIGINT and SIGTERM set. A second signal changes nothing: `ros2 launch` sends one and the
    terminal another, and the first is already being obeyed."""
    stop = threading.Event()

    def handle(signum: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)
    return stop


def _ros_arguments(words: list[str]) -> list[str]:
    """Translate the command's own options into ROS arguments; everything from --ros-args on is passed through."""
    split = words.index("--ros-args") if "--ros-args" in words else len(words)
    own, passed = words[:split], words[split:]
    if split == 0 and passed:  # started by ros2 run or launch: their words are the whole truth
        return passed
    args = _parser().parse_args(own)
    translated = ["--ros-args", "-p", f"autostart:={str(not args.no_autostart).lower()}"]
    for name in ("bundle", "backend", "provider", "score", "image_transport", "road_region"):
        if getattr(args, name) is not None:
            translated += ["-p", f"{name}:={getattr(args, name)}"]
    for name in ("threads", "target_fpr", "threshold"):
        if getattr(args, name) is not None:
            translated += ["-p", f"{name}:={getattr(args, name)}"]
    if args.use_sim_time:
        translated += ["-p", "use_sim_time:=true"]
    if args.params_file:
        translated += ["--params-file", args.params_file]
    if args.image_topic:
        folder = args.image_topic.rsplit("/", 1)[0]
        translated += ["-r", f"image:={args.image_topic}", "-r", f"image/compressed:={args.image_topic}/compressed"]
        translated += ["-r", f"camera_info:={folder}/camera_info"]
    return translated + passed


def _parser() -> argparse.ArgumentParser:
    descriptions = {parameter.name: parameter.description for parameter in PARAMETERS}
    parser = argparse.ArgumentParser(
        prog="anomseg node",
        description="Start the detector node, configured and active. Everything after --ros-args goes to ROS 2.",
    )
    parser.add_argument("--image-topic", help="camera topic; its camera_info is expected beside it (default: image)")
    parser.add_argument("--params-file", help="ROS parameter file, such as config/detector.yaml")
    parser.add_argument("--use-sim-time", action="store_true", help="take the time from /clock, for replayed bags")
    parser.add_argument("--no-autostart", action="store_true", help="wait for a lifecycle manager")
    for name, kind in (
        ("bundle", str),
        ("backend", str),
        ("provider", str),
        ("score", str),
        ("image_transport", str),
        ("road_region", str),
        ("threads", int),
        ("target_fpr", float),
        ("threshold", float),
    ):
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=descriptions[name])
    return parser


if __name__ == "__main__":
    sys.exit(main())
