"""Image, CompressedImage and CameraInfo messages through conversions and pipeline, as the node takes them."""

from __future__ import annotations

import array
import math
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
from builtin_interfaces.msg import Time
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from anomseg_ros.backends import open_detector
from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.core.bundle import load_bundle
from anomseg_ros.core.encodings import ENCODINGS
from anomseg_ros.core.road_region import NO_REGION
from anomseg_ros.errors import FrameError
from anomseg_ros.node import pipeline
from anomseg_ros.node.conversions import image_from_array
from anomseg_ros.node.parameters import PARAMETERS, LiveParameters, live_parameters
from fuzzing.odd_values import odd_float, odd_integer, odd_text
from fuzzing.pictures import hostile_picture, valid_pictures
from fuzzing.targets import Target

FOREIGN_ENCODINGS = (
    "",
    "RGB8",
    "rgb16",
    "bgr16",
    "32FC1",
    "64FC4",
    "16SC1",
    "8UC2",
    "mono",
    "jpeg",
    "bayer_rggb",
    "yuv",
)
OUTPUTS = (
    pipeline.LABELS,
    pipeline.SCORE,
    pipeline.MASK,
    pipeline.OVERLAY,
    pipeline.OVERLAY_COMPRESSED,
    pipeline.CAMERA_INFO,
)
SETTINGS = 24
NOISE_BYTES = 1 << 20


class Case(NamedTuple):
    """A message and what the node was set to and asked for when it came."""

    message: Image | CompressedImage
    infos: tuple[CameraInfo, ...]
    wanted: tuple[str, ...]
    settings: int


class Frames(Target):
    """What all kinds of messages share: a pipeline of a small bundle, with many settings."""

    refusals = (FrameError,)

    def __init__(self, folder: Path, bundle: Path) -> None:
        """Open the pipeline."""
        super().__init__(folder, bundle)
        rng = Random("settings")
        loaded = load_bundle(bundle)
        detector = open_detector(loaded, "onnxruntime", BackendOptions(threads=1))
        self.settings = [pipeline.resolve(some_live(rng), loaded) for _ in range(SETTINGS)]
        self.pipeline = pipeline.FramePipeline(detector, self.settings[0])
        self.network_size = (loaded.contract.input.width_px, loaded.contract.input.height_px)
        self.noise = np.random.default_rng(0).integers(0, 256, NOISE_BYTES, dtype=np.uint8).tobytes()

    def check(self, case: Case) -> None:
        """Every output of the message is whole, or its error is a declared one."""
        settings = self.settings[case.settings]
        self.pipeline.settings = settings
        published = self.pipeline.process(case.message, case.wanted, case.infos)
        undeclared = [reason for reason in published.failed.values() if reason.startswith("unexpected")]
        assert not undeclared, undeclared[0]
        size = published.frame_size if settings.live.source_size else self.network_size
        for topic, message in published.messages.items():
            assert message.header == case.message.header, f"{topic}: another header"
            check_message(topic, message, size)

    def close(self) -> None:
        """Release the engine."""
        self.pipeline.detector.close()


def check_message(topic: str, message: Any, size: tuple[int, int]) -> None:
    """Fail unless an output message is whole. size: width and height, pixels."""
    if isinstance(message, CompressedImage):
        assert len(message.data) > 0, f"{topic} is empty"
        return
    assert (message.width, message.height) == size, f"{topic} is {message.width}x{message.height}, expected {size}"
    if isinstance(message, Image):
        assert len(message.data) == message.step * message.height, f"{topic} has {len(message.data)} bytes"
        if message.encoding == "32FC1":
            values = np.frombuffer(message.data, np.float32)
            assert not np.isnan(values).any(), f"{topic} has {np.isnan(values).sum()} pixels of NaN"


def some_live(rng: Random) -> LiveParameters:
    """Return live parameters as a user might set them: any allowed choice, thresholds low and high, regions."""
    values = {parameter.name: parameter.default for parameter in PARAMETERS}
    values |= {one.name: rng.choice(one.choices) for one in PARAMETERS if one.live and one.choices}
    left, top = rng.choice(((0.0, 0.0), (0.25, 0.5), (0.9, 0.9)))
    values |= {
        "score": "",
        "road_region": NO_REGION,  # the small bundle has no labels of a road
        "threshold": rng.choice((0.0, -1e30, 1e30, 0.5)),
        "min_component_px": rng.choice((1, 50, 100_000_000)),
        "jpeg_quality": rng.choice((1, 85, 100)),
        "region_of_interest": [left, top, 1.0, 1.0],
        "alarm_frames_n": rng.choice((1, 2)),
        "alarm_frames_m": rng.choice((2, 5)),
    }
    return live_parameters(values)


def odd_header(rng: Random) -> Header:
    """Return a header with any stamp and frame."""
    seconds = rng.choice((0, 1, 1_800_000_000, -1, 2**31 - 1, -(2**31)))
    nanoseconds = rng.choice((0, 1, 999_999_999, 2**32 - 1))
    return Header(stamp=Time(sec=seconds, nanosec=nanoseconds), frame_id=rng.choice(("camera", odd_text(rng))))


def some_outputs(rng: Random) -> tuple[str, ...]:
    """Return the topics that are listened to: some, all or none."""
    return OUTPUTS if rng.random() < 0.1 else tuple(topic for topic in OUTPUTS if rng.random() < 0.3)


class Images(Frames):
    """sensor_msgs/Image: every encoding, with sizes, steps, byte orders and data that do or do not fit one another."""

    def make(self, rng: Random) -> Case:
        """Return a message whose fields fit, but for none, one or several of them."""
        return Case(odd_image(rng, self.noise), (), some_outputs(rng), rng.randrange(SETTINGS))


def odd_image(rng: Random, noise: bytes) -> Image:
    """Return a raw image, now and then a valid one. noise: where its pixels are taken from."""
    known = rng.random() < 0.9
    encoding = rng.choice(tuple(ENCODINGS)) if known else rng.choice((*FOREIGN_ENCODINGS, odd_text(rng)))
    layout = ENCODINGS.get(encoding, ENCODINGS["rgb8"])
    width, height = (rng.choice((1, 2, 3, 4, 5, 16, 33, 64, rng.randrange(1, 97))) for _ in range(2))
    if rng.random() < 0.02:  # thin and long
        width, height = rng.choice(((1, 40_000), (40_000, 1), (2, 20_000), (20_000, 2)))
    step = width * layout.bytes_per_pixel + rng.choice((0, 0, 0, 1, 7, 64))
    size = step * (height * layout.rows_per_two // 2)
    fault = rng.random()
    if fault < 0.1:
        size = rng.choice((0, 1, 4, max(size - 1, 0), size + 1, size // 2))
    elif fault < 0.2:
        step = rng.choice((0, max(step - 1, 0), odd_integer(rng)))
    elif fault < 0.3:
        width = odd_integer(rng)
    elif fault < 0.4:
        height = odd_integer(rng)
    elif fault < 0.45:
        width, height, step = (odd_integer(rng) for _ in range(3))
    size = min(size, NOISE_BYTES)
    begin = rng.randrange(NOISE_BYTES - size + 1)
    message = Image(
        header=odd_header(rng), height=height, width=width, encoding=encoding.replace("\x00", ""), step=step
    )
    message.is_bigendian = rng.choice((0, 0, 1, 255))
    data = array.array("B")
    data.frombytes(noise[begin : begin + size] if rng.random() < 0.9 else bytes(size))
    message.data = data
    return message


class CompressedImages(Frames):
    """sensor_msgs/CompressedImage: damaged files, and files whose headers state what is not there."""

    def __init__(self, folder: Path, bundle: Path) -> None:
        """Encode the valid pictures."""
        super().__init__(folder, bundle)
        self.pictures = valid_pictures()

    def make(self, rng: Random) -> Case:
        """Return a message of a picture that is whole, damaged or hostile."""
        return Case(odd_compressed(rng, self.pictures), (), some_outputs(rng), rng.randrange(SETTINGS))


def odd_compressed(rng: Random, pictures: dict[str, bytes]) -> CompressedImage:
    """Return a compressed image, now and then a valid one."""
    name, data = hostile_picture(rng, pictures)
    message = CompressedImage(header=odd_header(rng), format=rng.choice((name, odd_text(rng))).replace("\x00", ""))
    message.data = array.array("B", data)
    return message


class CameraInfos(Frames):
    """sensor_msgs/CameraInfo beside a good frame: its own, those of other frames, sizes and matrices that are none."""

    def __init__(self, folder: Path, bundle: Path) -> None:
        """Make the frame."""
        super().__init__(folder, bundle)
        pixels = np.frombuffer(self.noise, np.uint8, 24 * 16 * 3).reshape(16, 24, 3)
        self.frame = image_from_array(pixels, "rgb8", Header(stamp=Time(sec=5, nanosec=6), frame_id="camera"))

    def make(self, rng: Random) -> Case:
        """Return the frame with some CameraInfos."""
        infos = tuple(odd_camera_info(rng, self.frame) for _ in range(rng.choice((0, 1, 1, 1, 2, 5))))
        return Case(self.frame, infos, (pipeline.CAMERA_INFO,), rng.randrange(SETTINGS))

    def check(self, case: Case) -> None:
        """As every frame; and what is published of a good calibration is finite."""
        super().check(case)
        if not case.infos:
            return
        if all(math.isfinite(value) and abs(value) < 1e9 for info in case.infos for value in (*info.k, *info.p)):
            self.pipeline.settings = replace(self.settings[0])
            for message in self.pipeline.process(case.message, case.wanted, case.infos).messages.values():
                assert np.isfinite([*message.k, *message.p]).all(), "the scaled matrices are not finite"


def odd_camera_info(rng: Random, frame: Image) -> CameraInfo:
    """Return a calibration that more or less fits the frame."""
    info = CameraInfo(header=frame.header if rng.random() < 0.6 else odd_header(rng))
    if rng.random() < 0.3:
        info.header = Header()
    info.width, info.height = (
        (frame.width, frame.height) if rng.random() < 0.6 else (odd_integer(rng), odd_integer(rng))
    )
    if rng.random() < 0.3:
        info.binning_x, info.binning_y = odd_integer(rng), odd_integer(rng)
    if rng.random() < 0.3:
        info.roi.x_offset, info.roi.y_offset = odd_integer(rng), odd_integer(rng)
        info.roi.width, info.roi.height = rng.choice(
            ((frame.width, frame.height), (odd_integer(rng), odd_integer(rng)))
        )
    for name, size in (("k", 9), ("p", 12), ("r", 9)):
        values = [rng.uniform(0, 1000) for _ in range(size)]
        for _ in range(rng.choice((0, 0, 1, size))):
            values[rng.randrange(size)] = odd_float(rng)
        setattr(info, name, np.array(values))
    info.d = array.array("d", [odd_float(rng) for _ in range(rng.choice((0, 5, 8, 64)))])
    info.distortion_model = rng.choice(("plumb_bob", "", odd_text(rng))).replace("\x00", "")
    return info
