"""Transport time of a camera frame between two processes, with and without config/fastdds.xml.

Each round starts a publisher and a subscriber as separate processes, first without and then with the profile, so that a
slower machine affects both. Latency is the time from before publish() to the subscriber's callback, which gets the
deserialized message. Both processes read CLOCK_MONOTONIC. The publisher is reliable; the subscriber is reliable or,
like the detector, best effort (sensor-data QoS). Best effort loses frames that the transport does not deliver in time.
Its latencies are those of the frames that arrived, so compare the number received, too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import write_result

PROFILE = Path(__file__).resolve().parents[1] / "config" / "fastdds.xml"
VARIABLE = "FASTRTPS_DEFAULT_PROFILES_FILE"
WARM_UP_FRAMES = 5
RELIABILITIES = ("reliable", "best_effort")


def main() -> None:
    options = parse_arguments()
    if options.role:
        {"publish": publish, "listen": listen}[options.role](options)
        return
    latencies_ms = measure_interleaved(options)
    result = summarise(latencies_ms, options)
    print(json.dumps(result, indent=2))
    print("written to", write_result("shared_memory", result))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["512x1024", "1024x2048"], help="height x width of rgb8 frames")
    parser.add_argument("--frames", type=int, default=45, help="frames per round")
    parser.add_argument("--rate", type=float, default=10.0, help="frames per second")
    parser.add_argument("--rounds", type=int, default=3, help="rounds with and without the profile")
    parser.add_argument("--domain", type=int, default=77, help="ROS_DOMAIN_ID to use")
    parser.add_argument("--reliability", choices=RELIABILITIES, default=RELIABILITIES[0], help=argparse.SUPPRESS)
    parser.add_argument("--role", choices=("publish", "listen"), help=argparse.SUPPRESS)
    return parser.parse_args()


def measure_interleaved(options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Return "rgb8 SIZE RELIABILITY" -> "default" or "profile" -> latencies in milliseconds of all rounds."""
    latencies_ms: dict[str, dict[str, list[float]]] = {
        f"rgb8 {size} {reliability}": {"default": [], "profile": []}
        for size in options.sizes
        for reliability in RELIABILITIES
    }
    for case, kinds in latencies_ms.items():
        _, size, reliability = case.split()
        for _ in range(options.rounds):
            for kind, found in kinds.items():
                found += one_round(size, reliability, kind == "profile", options)
    return latencies_ms


def one_round(size: str, reliability: str, with_profile: bool, options: argparse.Namespace) -> list[float]:
    environment = {
        **os.environ,
        "ROS_DOMAIN_ID": str(options.domain),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
    }
    environment.pop(VARIABLE, None)
    if with_profile:
        environment[VARIABLE] = str(PROFILE)
    command = [sys.executable, __file__, "--sizes", size, "--frames", str(options.frames), "--rate", str(options.rate)]
    listener = subprocess.Popen(
        [*command, "--role", "listen", "--reliability", reliability], env=environment, stdout=subprocess.PIPE, text=True
    )
    publisher = subprocess.Popen([*command, "--role", "publish"], env=environment)
    publisher.wait()
    output, _ = listener.communicate(timeout=60)
    # Fast DDS also logs to the standard output.
    latencies: list[float] = json.loads(output.splitlines()[-1])
    return latencies


def summarise(latencies_ms: dict[str, dict[str, list[float]]], options: argparse.Namespace) -> dict[str, Any]:
    summary: dict[str, Any] = {"frames_sent_each": options.rounds * (options.frames - WARM_UP_FRAMES)}
    for case, kinds in latencies_ms.items():
        rows = {
            kind: {
                "received": len(values),
                "median_ms": percentile_ms(values, 50),
                "p95_ms": percentile_ms(values, 95),
            }
            for kind, values in kinds.items()
        }
        if all(kinds.values()):
            rows["speedup"] = {
                name: round(rows["default"][f"{name}_ms"] / rows["profile"][f"{name}_ms"], 2)
                for name in ("median", "p95")
            }
        summary[case] = rows
    return summary


def percentile_ms(values: list[float], percent: float) -> float | None:
    return round(float(np.percentile(values, percent)), 2) if values else None


def publish(options: argparse.Namespace) -> None:
    import array

    import rclpy
    from sensor_msgs.msg import Image

    rclpy.init()
    node = rclpy.create_node("publisher")
    publisher = node.create_publisher(Image, "image", 5)
    height_px, width_px = (int(part) for part in options.sizes[0].split("x"))
    message = Image(height=height_px, width=width_px, encoding="rgb8", step=3 * width_px)
    message.data = array.array("B", bytes(3 * width_px * height_px))
    while publisher.get_subscription_count() == 0:
        time.sleep(0.02)
    time.sleep(0.5)
    started = time.monotonic()
    for index in range(options.frames):
        time.sleep(max(0.0, started + index / options.rate - time.monotonic()))
        message.header.frame_id = str(index)
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(time.monotonic_ns(), 1_000_000_000)
        publisher.publish(message)
    time.sleep(1.0)
    node.destroy_node()
    rclpy.shutdown()


def listen(options: argparse.Namespace) -> None:
    import rclpy
    from rclpy.qos import QoSProfile, qos_profile_sensor_data
    from sensor_msgs.msg import Image

    rclpy.init()
    node = rclpy.create_node("listener")
    latencies_ms: list[float] = []
    last_seen = [time.monotonic() + 20]  # discovery

    def on_image(message: Image) -> None:
        now_ns = time.monotonic_ns()
        sent_ns = message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec
        last_seen[0] = time.monotonic()
        if int(message.header.frame_id) >= WARM_UP_FRAMES:
            latencies_ms.append((now_ns - sent_ns) / 1e6)

    qos = qos_profile_sensor_data if options.reliability == "best_effort" else QoSProfile(depth=5)
    node.create_subscription(Image, "image", on_image, qos)
    while time.monotonic() < last_seen[0] + 2.0 and len(latencies_ms) < options.frames - WARM_UP_FRAMES:
        rclpy.spin_once(node, timeout_sec=0.2)
    print(json.dumps(latencies_ms))
    node.destroy_node()
    rclpy.shutdown()


if __name__ == "__main__":
    main()
