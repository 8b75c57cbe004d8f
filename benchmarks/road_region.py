"""Alarms with and without the road region, on RoadObstacle21's validation frames at their own size.

An alarm is an 8-connected region of the mask of at least 50 px. It is false if it touches no obstacle. An obstacle is
detected if alarms cover at least a tenth of its pixels.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.backends import open_detector
from anomseg_ros.core.bundle import load_bundle
from anomseg_ros.core.resources import ROAD_BUNDLE, find_bundle
from anomseg_ros.core.road_region import limited_scores, road_region
from anomseg_ros.datasets import open_named
from anomseg_ros.datasets.dataset import ANOMALY

MIN_ALARM_PX = 50
MIN_COVERAGE = 0.1

Pixels = npt.NDArray[np.bool_]


@dataclass
class Counts:
    """Sums over frames."""

    false_alarms: int = 0
    obstacles: int = 0
    detected: int = 0
    obstacle_px: int = 0
    other_px: int = 0

    def add(self, above: Pixels, obstacles: Pixels) -> None:
        """Count a frame. above: pixels above the threshold; obstacles: their pixels; both bool (H, W)."""
        alarms = np.zeros_like(above)
        for part in parts_of(above):
            if part.sum() >= MIN_ALARM_PX:
                alarms |= part
                self.false_alarms += not (part & obstacles).any()
        for part in parts_of(obstacles):
            self.obstacles += 1
            self.detected += bool(alarms[part].mean() >= MIN_COVERAGE)
        self.obstacle_px += int((above & obstacles).sum())
        self.other_px += int((above & ~obstacles).sum())


def parts_of(pixels: Pixels) -> list[Pixels]:
    """Return the 8-connected parts of bool (H, W)."""
    count, ids = cv2.connectedComponents(pixels.astype(np.uint8), connectivity=8)
    return [ids == index for index in range(1, count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder of RoadObstacle21")
    parser.add_argument("--bundle", default=ROAD_BUNDLE)
    parser.add_argument("--target-fpr", type=float, default=0.01, help="selects the bundle's threshold (default: 0.01)")
    args = parser.parse_args()
    bundle, dataset = load_bundle(find_bundle(args.bundle)), open_named(f"road_obstacle_21={args.data}")
    detector, region = open_detector(bundle, "openvino"), road_region("road", bundle.contract)
    score = bundle.contract.score_names[0]
    threshold = np.float32(bundle.threshold(score, args.target_fpr).value)
    counts = {"everywhere": Counts(), "road": Counts()}
    for index in range(len(dataset)):
        frame = dataset.load(index)
        outputs = detector.detect(frame.image, [score], source_size=True, road=region)
        obstacles = frame.anomaly == ANOMALY
        counts["everywhere"].add(outputs.scores[score] > threshold, obstacles)
        counts["road"].add(limited_scores(outputs.scores[score], outputs.region, -np.inf) > threshold, obstacles)
    for name, one in counts.items():
        print(f"{name}: {one.false_alarms / len(dataset):.1f} false alarms per frame, ", end="")
        print(f"{one.detected} of {one.obstacles} obstacles detected, ", end="")
        print(f"{one.obstacle_px:,} of their pixels above the threshold and {one.other_px:,} others")


if __name__ == "__main__":
    main()
