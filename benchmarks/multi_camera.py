"""Several cameras in both modes of multi_camera.launch.py: one process with a shared model, or one process per camera.

The modes take turns for each number of cameras. A separate process publishes frames at a fixed rate, the nodes answer,
and this process listens to the mask of each camera. Frames per second are the masks received in the window. Memory is
that of the nodes' processes at the end of the window, from /proc/PID/smaps_rollup: resident (RSS), which counts shared
memory once per process, and proportional (PSS), which counts it once. Processor time is that of the nodes per answered
frame; it includes receiving the frames that newer ones replaced. Each process gets as many threads as the launch file
gives it (cores / processes, at least one); the shared process gets all cores. All nodes run in one session, as
`ros2 launch` starts them: Linux divides the cores of a busy machine among sessions, so both modes get the same share.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from common import camera_frames, parse_size, write_result
from rich.progress import Progress

from anomseg_ros.backends import BACKENDS
from anomseg_ros.core.resources import DEMO_BUNDLE, find_bundle
from anomseg_ros.node.cameras import threads_per_process
from anomseg_ros.node.transport import use_large_shared_memory
from anomseg_ros.replay.process import NodeProcess, free_domain_id

MODES = ("shared", "processes")
PATTERNS = 4
START_S = 90.0
TRIES = 3
MIB = 2**20


class NoAnswer(Exception):
    """A camera got no answer in a run."""


@dataclass(frozen=True)
class Setting:
    """One run. rate_hz: of each camera; settle_s: wait before the window of window_s, seconds; size: height, width."""

    mode: str
    cameras: int
    bundle: str
    backend: str
    rate_hz: float
    window_s: float
    settle_s: float
    size: tuple[int, int]

    @property
    def names(self) -> list[str]:
        """Names of the cameras."""
        return [f"camera_{index}" for index in range(self.cameras)]

    @property
    def threads(self) -> int:
        """Threads of each engine; 0 = one per core."""
        return 0 if self.mode == "shared" else threads_per_process(self.cameras)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default=DEMO_BUNDLE, help=f"bundle of all cameras (default: {DEMO_BUNDLE})")
    parser.add_argument(
        "--backend", default="onnxruntime", choices=sorted(BACKENDS), help="engine (default: onnxruntime)"
    )
    parser.add_argument(
        "--cameras", type=int, nargs="+", default=[1, 2, 4, 6], help="numbers of cameras (default: 1 2 4 6)"
    )
    parser.add_argument("--rate", type=float, default=10.0, help="frames per second of each camera (default: 10)")
    parser.add_argument("--seconds", type=float, default=15.0, help="length of the window (default: 15)")
    parser.add_argument("--settle", type=float, default=4.0, help="seconds before the window (default: 4)")
    parser.add_argument("--rounds", type=int, default=2, help="runs per setting, in turns (default: 2)")
    parser.add_argument(
        "--size", type=parse_size, default=(720, 1280), metavar="HxW", help="frames (default: 720x1280)"
    )
    args = parser.parse_args()
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    use_large_shared_memory()
    settings = [
        Setting(mode, cameras, args.bundle, args.backend, args.rate, args.seconds, args.settle, args.size)
        for round_ in range(args.rounds)
        for cameras in args.cameras
        for mode in (MODES if round_ % 2 == 0 else MODES[::-1])
    ]
    runs = []
    with Progress() as progress:
        for setting in progress.track(settings, description="runs"):
            runs.append(measure(setting))
            print(run_line(runs[-1]), flush=True)
    print(table(summary(runs)))
    print(write_result("multi_camera", {"cores": len(os.sched_getaffinity(0)), "summary": summary(runs), "runs": runs}))


def measure(setting: Setting) -> dict[str, Any]:
    """Return the figures of one run. Repeat a run whose processes do not find each other."""
    for _ in range(TRIES - 1):
        try:
            return measure_once(setting)
        except NoAnswer as error:
            print(error, flush=True)
    return measure_once(setting)


def measure_once(setting: Setting) -> dict[str, Any]:
    """Return the figures of one run. Raises NoAnswer."""
    domain = free_domain_id()
    with (
        tempfile.TemporaryDirectory() as folder,
        running_nodes(setting, domain, Path(folder)) as nodes,
        running_cameras(setting, domain),
        Listener(setting, domain) as listener,
    ):
        listener.wait_for_answers(nodes)
        listener.listen(setting.settle_s)
        nodes_start_s, machine_start_s = sum(map(processor_s, nodes)), machine_processor_s()
        masks, window_s = listener.listen(setting.window_s)
        nodes_s = sum(map(processor_s, nodes)) - nodes_start_s
        machine_s = machine_processor_s() - machine_start_s
        memory = [memory_mib(node.process.pid) for node in nodes]
    rates = [masks[name] / window_s for name in setting.names]
    return {
        **asdict(setting),
        "threads": setting.threads,
        "frames_per_second": rates,
        "pss_mib": sum(each["Pss"] for each in memory),
        "rss_mib": sum(each["Rss"] for each in memory),
        "processor_ms_per_frame": 1e3 * nodes_s / max(1, sum(masks.values())),
        "cores_of_nodes": nodes_s / window_s,
        "cores_of_machine": machine_s / window_s,
    }


@contextlib.contextmanager
def running_nodes(setting: Setting, domain: int, folder: Path) -> Iterator[list[NodeProcess]]:
    """Run the nodes in one process, or in one process per camera."""
    entries = [
        {"name": name, "image_topic": f"/{name}/image", "bundle": str(find_bundle(setting.bundle))}
        for name in setting.names
    ]
    file = folder / "cameras.yaml"
    file.write_text(yaml.safe_dump({"cameras": entries}))
    words = ["--cameras", str(file), "--backend", setting.backend, "--threads", str(setting.threads)]
    options = [[]] if setting.mode == "shared" else [["--camera", name] for name in setting.names]
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(NodeProcess(domain, folder / f"{index}.log", [*words, *own], own_session=False))
            for index, own in enumerate(options)
        ]


@contextlib.contextmanager
def running_cameras(setting: Setting, domain: int) -> Iterator[None]:
    """Publish the frames of all cameras from another process."""
    spawn = multiprocessing.get_context("spawn")
    cameras = spawn.Process(target=run_cameras, args=(setting, domain), daemon=True)
    cameras.start()
    try:
        yield
        if not cameras.is_alive():
            raise SystemExit("the process of the cameras ended before the nodes")
    finally:
        cameras.terminate()
        cameras.join()


def run_cameras(setting: Setting, domain: int) -> None:
    """Publish the frames of all cameras in turns at the fixed rate until the process is terminated."""
    import rclpy
    from rclpy.qos import qos_profile_sensor_data
    from rclpy.signals import SignalHandlerOptions
    from sensor_msgs.msg import Image
    from std_msgs.msg import Header

    from anomseg_ros.node.conversions import image_from_array

    os.setsid()  # a session of its own, so that the nodes do not slow the cameras down
    images, _ = camera_frames(PATTERNS, *setting.size)
    messages = [image_from_array(image, "rgb8", Header(frame_id="camera")) for image in images]
    rclpy.init(args=[], domain_id=domain, signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node("cameras")
    publishers = [node.create_publisher(Image, f"/{name}/image", qos_profile_sensor_data) for name in setting.names]
    started = time.monotonic()
    number = 0
    while True:
        for index, publisher in enumerate(publishers):
            due = started + (number + index / len(publishers)) / setting.rate_hz
            time.sleep(max(0.0, due - time.monotonic()))
            message = messages[(number + index) % PATTERNS]
            message.header.stamp = node.get_clock().now().to_msg()
            publisher.publish(message)
        number += 1


class Listener:
    """Counts the masks of each camera."""

    def __init__(self, setting: Setting, domain: int) -> None:
        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.qos import QoSProfile, ReliabilityPolicy
        from sensor_msgs.msg import Image

        self.names = setting.names
        self.masks: Counter[str] = Counter()
        self.context = rclpy.Context()
        self.context.init(domain_id=domain)
        self.node = rclpy.create_node("listener", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        qos = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
        for name in self.names:
            topic = f"/{name}/detector/anomaly/mask"
            self.node.create_subscription(Image, topic, partial(self._count, name), qos)

    def _count(self, name: str, _: Any) -> None:
        self.masks[name] += 1

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()

    def wait_for_answers(self, nodes: Sequence[NodeProcess]) -> None:
        """Listen until every camera has an answer. Raises NoAnswer."""
        deadline = time.monotonic() + START_S
        while not all(self.masks[name] for name in self.names):
            self.executor.spin_once(timeout_sec=0.2)
            for node in nodes:
                node.require_running()
            if time.monotonic() > deadline:
                silent = [name for name in self.names if not self.masks[name]]
                raise NoAnswer(f"no answer to {', '.join(silent)} within {START_S:g} s: {nodes[0].log[-2000:]}")

    def listen(self, duration_s: float) -> tuple[Counter[str], float]:
        """Return camera -> masks received within the duration, and the actual duration, seconds."""
        self.masks.clear()
        started = time.monotonic()
        while time.monotonic() < started + duration_s:
            self.executor.spin_once(timeout_sec=0.05)
        return Counter(self.masks), time.monotonic() - started


def memory_mib(pid: int) -> dict[str, float]:
    """Return the entries of a process's smaps_rollup, MiB (Linux)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {name: int(value.split()[0]) * 1024 / MIB for name, _, value in (line.partition(":") for line in lines)}


def processor_s(node: NodeProcess) -> float:
    """Return the processor time of a node since its start, seconds (proc(5), stat)."""
    fields = Path(f"/proc/{node.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def machine_processor_s() -> float:
    """Return the processor time of the whole machine since boot, seconds."""
    user, nice, system, _, _, irq, soft = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def summary(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return medians over the rounds by number of cameras and mode. Slowest and fastest camera are over all rounds."""
    rows = []
    for cameras, mode in dict.fromkeys(
        (run["cameras"], run["mode"]) for run in sorted(runs, key=lambda run: run["cameras"])
    ):
        same = [run for run in runs if (run["cameras"], run["mode"]) == (cameras, mode)]
        keys = ("pss_mib", "rss_mib", "processor_ms_per_frame", "cores_of_nodes", "cores_of_machine")
        rows.append(
            {
                "cameras": cameras,
                "mode": mode,
                "threads": same[0]["threads"],
                "frames_per_second_each": statistics.median(statistics.mean(run["frames_per_second"]) for run in same),
                "slowest_camera": min(min(run["frames_per_second"]) for run in same),
                "fastest_camera": max(max(run["frames_per_second"]) for run in same),
                **{key: statistics.median(run[key] for run in same) for key in keys},
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the summary as a table in Markdown."""
    head = "| cameras | | PSS, MiB | RSS, MiB | frames/s of each camera | slowest to fastest | processor ms per frame |"
    lines = [
        f"| {row['cameras']} | {row['mode']} | {row['pss_mib']:.0f} | {row['rss_mib']:.0f} | "
        f"{row['frames_per_second_each']:.1f} | {row['slowest_camera']:.1f} to {row['fastest_camera']:.1f} | "
        f"{row['processor_ms_per_frame']:.0f} |"
        for row in rows
    ]
    return "\n".join([head, "|---" * 7 + "|", *lines])


def run_line(run: dict[str, Any]) -> str:
    """Return the figures of a run in one line."""
    rates = ", ".join(f"{rate:.1f}" for rate in run["frames_per_second"])
    return (
        f"{run['cameras']} cameras, {run['mode']}: {rates} frames/s; PSS {run['pss_mib']:.0f} MiB, RSS "
        f"{run['rss_mib']:.0f} MiB, {run['processor_ms_per_frame']:.0f} ms of processor per frame; "
        f"{run['cores_of_nodes']:.2f} of {run['cores_of_machine']:.2f} busy cores"
    )


if __name__ == "__main__":
    main()
