"""Small labelled frames, and bags and datasets of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rosbags.typesys import Stores, get_typestore

from anomseg_ros.bags.write import BagWriter, write_labelled_frames
from anomseg_ros.scenes.sequence import SyntheticConfig, SyntheticFrame, SyntheticSequence

HEIGHT, WIDTH, FRAMES, RATE_HZ, START_S = 128, 256, 5, 10.0, 100.0
TYPES = get_typestore(Stores.ROS2_JAZZY)
IMAGE = "sensor_msgs/msg/Image"


@dataclass(frozen=True)
class Drawn:
    """One labelled frame."""

    image: np.ndarray
    labels: np.ndarray | None
    anomaly: np.ndarray | None


@functools.cache
def frames(seed: int = 7, count: int = FRAMES) -> tuple[SyntheticFrame, ...]:
    """Return synthetic frames with an anomaly in each."""
    config = SyntheticConfig(width_px=WIDTH, height_px=HEIGHT, anomaly_probability=1.0, anomaly_size_m=(1.0, 2.0))
    return tuple(SyntheticSequence(seed, config).frames(count))


def write_bag(path: Path, drawn: Sequence[Any], storage: str = "mcap", **options: Any) -> Path:
    """Write frames at 10 Hz, the first at 100 s."""
    with BagWriter(path, storage=storage, **options) as bag:
        write_labelled_frames(bag, drawn, RATE_HZ, START_S)
    return path


def write_flat(path: Path, drawn: Sequence[Any]) -> Path:
    """Write frames as a dataset in the flat layout."""
    for name in ("images", "labels_masks"):
        (path / name).mkdir(parents=True)
    for index, frame in enumerate(drawn):
        cv2.imwrite(str(path / "images" / f"{index}.png"), frame.image[..., ::-1])
        cv2.imwrite(str(path / "labels_masks" / f"{index}.png"), frame.anomaly)
    return path


def image_message(
    stamp_ns: int, pixels: np.ndarray, encoding: str, padding: int = 0, big: bool = False
) -> tuple[str, bytes]:
    """Return type and CDR bytes of an Image. padding: number of extra bytes per row."""
    rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(len(pixels), -1)
    rows = np.concatenate([rows, np.full((len(rows), padding), 77, np.uint8)], axis=1)
    stamp = TYPES.types["builtin_interfaces/msg/Time"](sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    message = TYPES.types[IMAGE](
        header=TYPES.types["std_msgs/msg/Header"](stamp=stamp, frame_id="camera"),
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        is_bigendian=int(big),
        step=rows.shape[1],
        data=rows.reshape(-1),
    )
    return IMAGE, bytes(TYPES.serialize_cdr(message, IMAGE))


def stamp_ns(index: int) -> int:
    """Return the stamp that write_bag gives a frame."""
    return round(START_S * 1e9) + round(index * 1e9 / RATE_HZ)
