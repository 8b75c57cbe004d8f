"""Soak test: detector nodes process camera frames for hours over ROS 2. Measures memory, latency and frame counts.

Each camera has its own node, a process like that of `anomseg node`. This process publishes the frames of all cameras at
a fixed rate (sensor-data QoS) and listens to each mask. Every minute one line per camera is added to --readings: PSS of
the node, frames by outcome, and ages from stamp to the arrival of the mask. A soak can run in slices: --resume adds a
slice with new processes until the total is --hours. Then the readings are summarised in benchmarks/results/soak.json
and drawn in docs/images/soak.svg.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common import RESULTS, camera_frames, parse_size, write_result
from rich.progress import Progress
from soak_figures import figures, hours_of, last_slice, read_readings
from soak_picture import picture

from anomseg_ros.bench.statistics import percentiles
from anomseg_ros.node.transport import use_large_shared_memory
from anomseg_ros.replay.process import NodeProcess, free_domain_id

READINGS = RESULTS / "soak.jsonl"
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "soak.svg"
PATTERNS = 14
COUNTS = ("received", "published", "dropped", "bad", "idle", "in_work", "lost")
OUTCOMES = COUNTS[1:6]
START_S, DRAIN_S = 120.0, 15.0


@dataclass(frozen=True)
class Setting:
    """Settings of a soak. rate_hz: of each camera; size: height and width of its frames, pixels."""

    bundle: str
    cameras: int
    rate_hz: float
    size: tuple[int, int]
    threads: int


@dataclass
class Camera:
    """One camera, the process of its node, and what was received from it. ages_ms: since the last reading."""

    name: str
    node: NodeProcess
    publisher: Any = None
    sent: int = 0
    heard: int = 0
    reports: int = 0
    unbalanced: int = 0
    ages_ms: list[float] = field(default_factory=list)
    diagnostics: dict[str, str] = field(default_factory=dict)

    def count(self, name: str) -> int:
        """Return a frame count of the node, 0 before its first report."""
        return int(self.diagnostics.get(name, 0))

    @property
    def is_balanced(self) -> bool:
        """Whether the counts of all outcomes add up to the received frames."""
        return self.count("received") == sum(map(self.count, OUTCOMES))

    @property
    def is_answered(self) -> bool:
        """Whether no frame is being processed and every published mask has arrived."""
        return self.count("in_work") == 0 and self.is_balanced and self.heard >= self.count("published")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="bisenet_lite-world-small-int8", help="bundle directory or shipped name")
    parser.add_argument("--hours", type=float, default=6.0, help="total of all slices (default: 6)")
    parser.add_argument("--cameras", type=int, default=2, help="cameras, each with its node (default: 2)")
    parser.add_argument("--rate", type=float, default=5.0, help="frames per second of each camera (default: 5)")
    parser.add_argument("--size", type=parse_size, default=(360, 640), metavar="HxW", help="frames (default: 360x640)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each engine (default: 1)")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two readings (default: 60)")
    parser.add_argument("--readings", type=Path, default=READINGS, help=f"readings, JSON lines (default: {READINGS})")
    parser.add_argument("--picture", type=Path, default=PICTURE, help=f"file of the chart (default: {PICTURE})")
    parser.add_argument("--resume", action="store_true", help="add a slice to existing readings")
    args = parser.parse_args()
    if args.readings.is_file() and not args.resume:
        parser.error(f"{args.readings} exists: give --resume to continue, or remove it")
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    use_large_shared_memory()
    setting = Setting(args.bundle, args.cameras, args.rate, args.size, args.threads)
    start_or_resume(args.readings, setting)
    remaining_s = 3600 * (args.hours - hours_of(read_readings(args.readings)))
    if remaining_s > 0:
        soak(setting, remaining_s, args.every, args.readings)
    readings = read_readings(args.readings)
    result = figures(readings)
    print(json.dumps(result, indent=2))
    print(write_result("soak", {"setting": asdict(setting), **result}))
    args.picture.write_text(picture(readings, result), encoding="utf-8")
    print(args.picture)


def start_or_resume(readings: Path, setting: Setting) -> None:
    """Write the setting as the first line of new readings. Raises SystemExit if existing readings have another one."""
    line = json.dumps({"setting": asdict(setting)})
    if not readings.is_file():
        readings.write_text(f"{line}\n", encoding="utf-8")
    elif (first := readings.read_text(encoding="utf-8").splitlines()[0]) != line:
        raise SystemExit(f"{readings} has the setting {first}, not {line}: give the same options, or another file")


def soak(setting: Setting, seconds: float, every_s: float, readings: Path) -> None:
    """Run one slice and append its readings to the file. An interrupted slice keeps its readings."""
    import rclpy

    number, domain = last_slice(read_readings(readings)) + 1, free_domain_id()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        cameras = [
            Camera(name, stack.enter_context(NodeProcess(domain, Path(folder) / name, node_arguments(name, setting))))
            for name in (f"camera_{index + 1}" for index in range(setting.cameras))
        ]
        for camera in cameras:
            camera.node.wait_for_log(" on ", START_S)
        rclpy.init(args=[], domain_id=domain)
        client = rclpy.create_node("soak")
        try:
            connect(client, cameras)
            start_publishing(client, cameras, setting)
            watch(client, cameras, seconds, every_s, readings, number)
        except KeyboardInterrupt:
            print("interrupted: the readings so far are kept; --resume continues")
        finally:
            client.destroy_node()
            rclpy.try_shutdown()


def node_arguments(name: str, setting: Setting) -> list[str]:
    """Return the arguments of `anomseg node` for one camera."""
    words = ["--bundle", setting.bundle, "--threads", str(setting.threads), "--image-topic", f"/{name}/image"]
    return [*words, "--ros-args", "-r", f"__ns:=/{name}"]


def connect(client: Any, cameras: Sequence[Camera]) -> None:
    """Subscribe to masks and diagnostics, create the publishers, and wait until the nodes listen to them."""
    import rclpy
    from diagnostic_msgs.msg import DiagnosticArray
    from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
    from sensor_msgs.msg import Image

    by_name = {camera.name: camera for camera in cameras}

    def on_mask(camera: Camera, message: Image) -> None:
        stamp = message.header.stamp
        camera.heard += 1
        camera.ages_ms.append(time.time_ns() / 1e6 - (stamp.sec * 1e3 + stamp.nanosec / 1e6))

    def on_diagnostics(report: DiagnosticArray) -> None:
        for status in report.status:
            camera = by_name.get(status.name.split("/")[1])
            if camera is not None and status.name.endswith("frames"):
                camera.diagnostics = {pair.key: pair.value for pair in status.values}
                camera.reports += 1
                camera.unbalanced += not camera.is_balanced

    reliable = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
    client.create_subscription(DiagnosticArray, "/diagnostics", on_diagnostics, 10)
    for camera in cameras:
        callback = lambda message, camera=camera: on_mask(camera, message)  # noqa: E731
        client.create_subscription(Image, f"/{camera.name}/detector/anomaly/mask", callback, reliable)
        camera.publisher = client.create_publisher(Image, f"/{camera.name}/image", qos_profile_sensor_data)
    deadline = time.monotonic() + START_S
    while not all(camera.publisher.get_subscription_count() and camera.reports for camera in cameras):
        rclpy.spin_once(client, timeout_sec=0.1)
        if time.monotonic() > deadline:
            raise SystemExit(f"the nodes do not listen to their cameras after {START_S:g} s")


def start_publishing(client: Any, cameras: Sequence[Camera], setting: Setting) -> None:
    """Start a timer per camera that publishes its next frame, stamped with the current time."""
    from builtin_interfaces.msg import Time
    from std_msgs.msg import Header

    from anomseg_ros.node.conversions import image_from_array

    images, _ = camera_frames(PATTERNS, *setting.size)
    messages = [image_from_array(image, "rgb8", Header(frame_id="camera")) for image in images]

    def publish(camera: Camera) -> None:
        message = messages[camera.sent % len(messages)]
        seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        message.header.stamp = Time(sec=seconds, nanosec=nanoseconds)
        camera.publisher.publish(message)
        camera.sent += 1

    for camera in cameras:
        client.create_timer(1 / setting.rate_hz, lambda camera=camera: publish(camera))


def watch(client: Any, cameras: Sequence[Camera], seconds: float, every_s: float, readings: Path, number: int) -> None:
    """Run the timers and write regular readings of every camera. At the end, wait until every frame is answered."""
    import rclpy

    started = written = time.monotonic()
    with Progress() as progress, readings.open("a", encoding="utf-8") as stream:
        task = progress.add_task(f"soak, slice {number}", total=seconds)
        while (now := time.monotonic()) - started < seconds:
            rclpy.spin_once(client, timeout_sec=0.1)
            progress.update(task, completed=now - started)
            if now - written >= every_s:
                written = now
                write_readings(stream, cameras, number, now - started)
        for timer in list(client.timers):
            client.destroy_timer(timer)
        reports, deadline = [camera.reports + 2 for camera in cameras], now + DRAIN_S
        while time.monotonic() < deadline and not all(
            camera.is_answered and camera.reports >= fresh for camera, fresh in zip(cameras, reports, strict=True)
        ):
            rclpy.spin_once(client, timeout_sec=0.1)
        write_readings(stream, cameras, number, time.monotonic() - started, ended=True)


def write_readings(
    stream: Any, cameras: Sequence[Camera], number: int, elapsed_s: float, *, ended: bool = False
) -> None:
    """Write one line per camera and clear the ages."""
    for camera in cameras:
        camera.node.require_running()
        reading = {
            "slice": number,
            "time": round(time.time()),
            "elapsed_s": round(elapsed_s, 1),
            "camera": camera.name,
            **memory_mib(camera.node.process.pid),
            "sent": camera.sent,
            "heard": camera.heard,
            "unbalanced": camera.unbalanced,
            **{name: camera.count(name) for name in COUNTS},
        }
        if camera.ages_ms:
            ages = percentiles(camera.ages_ms)
            reading |= {f"age_ms_{name}": round(ages[name], 2) for name in ("p50", "p99", "max")}
        if ended:
            reading["ended"] = True
        camera.ages_ms.clear()
        stream.write(json.dumps(reading) + "\n")
    stream.flush()


def memory_mib(pid: int) -> dict[str, float]:
    """Return the memory of a process in MiB (Linux).

    pss_mib: proportional set size, which has its share of the pages that processes share. It falls when others load the
    same libraries, and rises when they end. anonymous_mib: what the process has allocated, which others do not change.
    """
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return {
        name: round(int(fields[field].split()[0]) / 1024, 2)
        for name, field in (("pss_mib", "Pss"), ("anonymous_mib", "Anonymous"))
    }


if __name__ == "__main__":
    main()
