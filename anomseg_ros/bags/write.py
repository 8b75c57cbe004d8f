"""Write ROS 2 bags of camera frames with the rosbags library: no ROS installation needed.

A bag is a directory with metadata.yaml and one storage file (MCAP or sqlite3). It is written beside its destination and
renamed when complete, so a killed run leaves no half-written bag under the name asked for.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt
from rosbags.interfaces import Connection
from rosbags.rosbag2 import StoragePlugin, Writer, WriterError
from rosbags.typesys import Stores, get_typestore

from anomseg_ros.core.image_files import decode_rgb, image_files
from anomseg_ros.errors import BagError, FrameError, unknown_name

DEFAULT_TOPIC = "/camera/image"
DEFAULT_FOV_DEG = 60.0
"""Horizontal field of view of the camera_info of frames whose camera is unknown; a common one for a road camera."""

STORAGES = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}

# File formats that a CompressedImage carries as they are; others are re-encoded as PNG, which loses nothing.
_VERBATIM = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png"}

ANOMALY_TRUTH, LABELS_TRUTH = "ground_truth/anomaly", "ground_truth/labels"
"""Topics of the ground truth below the namespace of the image: mono8 0 known, 1 anomaly, 255 ignored; mono8 train
ids, 255 unlabelled."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PinholeCamera:
    """Intrinsics of an undistorted or plumb_bob camera: size, focal lengths and principal point in pixels.

    Pixel centres are at integer coordinates. distortion: k1, k2, t1, t2, k3 of the plumb_bob model.
    """

    width_px: int
    height_px: int
    fx_px: float
    fy_px: float
    cx_px: float
    cy_px: float
    distortion: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, 0.0)

    @classmethod
    def with_field_of_view(cls, width_px: int, height_px: int, fov_deg: float = DEFAULT_FOV_DEG) -> PinholeCamera:
        """Return a camera with square pixels, the given horizontal field of view and a centred principal point."""
        if not 0 < fov_deg < 180:
            raise BagError(f"got a field of view of {fov_deg!r} degrees; expected more than 0 and less than 180")
        focal_px = width_px / 2 / math.tan(math.radians(fov_deg) / 2)
        return cls(width_px, height_px, focal_px, focal_px, (width_px - 1) / 2, (height_px - 1) / 2)


@dataclass(frozen=True)
class EncodedImage:
    """The bytes of an image file, its format as CompressedImage.format states it, and its size in pixels."""

    data: bytes
    format: str
    width_px: int
    height_px: int


class LabelledImage(Protocol):
    """A frame with its ground truth: image (H, W, 3) uint8 RGB, labels and anomaly (H, W) uint8 or None."""

    @property
    def image(self) -> npt.NDArray[np.uint8]: ...

    @property
    def labels(self) -> npt.NDArray[np.uint8] | None: ...

    @property
    def anomaly(self) -> npt.NDArray[np.uint8] | None: ...


def namespace_of(image_topic: str) -> str:
    """Return the namespace of an image topic, without a slash at its end: /camera for /camera/image/compressed."""
    return image_topic.removesuffix("/compressed").rsplit("/", 1)[0]


def write_image_bag(
    images: Sequence[Path] | Path,
    output: Path,
    rate_hz: float,
    *,
    storage: str = "mcap",
    topic: str = DEFAULT_TOPIC,
    compressed: bool = False,
    frame_id: str = "camera",
    start_time_s: float | None = None,
    camera_info: PinholeCamera | None = None,
    fov_deg: float = DEFAULT_FOV_DEG,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> int:
    """Write image files as a bag of camera frames and return the number of frames.

    images: files in the order to write, or a folder, whose images are taken in natural order of their names. rate_hz:
    frames per second of the stamps, the first at start_time_s (seconds since 1970; None: now). See BagWriter for the
    rest. progress(done, total) is called after each frame.

    Raises:
        BagError: no images, an unreadable image, an output that exists, a wrong rate, storage or topic.
    """
    paths = _images(images)
    if not paths:
        raise BagError("got no images to write; give at least one")
    stamps_ns = frame_stamps_ns(rate_hz, start_time_s)
    with BagWriter(
        output,
        storage=storage,
        topic=topic,
        compressed=compressed,
        frame_id=frame_id,
        fov_deg=fov_deg,
        overwrite=overwrite,
    ) as bag:
        for index, path in enumerate(paths):
            image = _encoded_file(path) if compressed else _pixels_of(path)[0]
            bag.write_frame(stamps_ns(index), image, camera_info)
            if progress is not None:
                progress(index + 1, len(paths))
    return len(paths)


def write_labelled_frames(
    bag: BagWriter, frames: Iterable[LabelledImage], rate_hz: float, start_time_s: float | None = None
) -> int:
    """Write frames with their ground truth and return their number; a compressed bag gets PNG, which loses nothing.

    rate_hz, start_time_s: as for write_image_bag. Raises BagError.
    """
    stamps_ns = frame_stamps_ns(rate_hz, start_time_s)
    count = 0
    for frame in frames:
        image = _encoded(frame.image, ".png", []) if bag.compressed else frame.image
        bag.write_frame(stamps_ns(count), image, labels=frame.labels, anomaly=frame.anomaly)
        count += 1
    return count


class BagWriter:
    """A bag of camera frames that is being written; a context manager.

    Topics: `topic` (sensor_msgs/Image rgb8), or `topic`/compressed (CompressedImage) with compressed=True;
    camera_info, ground_truth/anomaly and ground_truth/labels (Image mono8) beside it in the same namespace. Messages
    of a frame share stamp and frame_id, and the stamp is the bag's time of the message. Frames may differ in size.

    On leaving the block without an error the bag gets its name; on an error nothing is left.

    Raises:
        BagError: the output exists (with overwrite=True: exists and is no bag), or a wrong storage, topic or field of
        view.
    """

    def __init__(
        self,
        output: Path,
        *,
        storage: str = "mcap",
        topic: str = DEFAULT_TOPIC,
        compressed: bool = False,
        frame_id: str = "camera",
        fov_deg: float = DEFAULT_FOV_DEG,
        overwrite: bool = False,
    ) -> None:
        if storage not in STORAGES:
            raise BagError(unknown_name("bag storage", storage, STORAGES))
        if not topic.startswith("/") or topic.endswith("/") or "//" in topic or " " in topic:
            raise BagError(f"got topic {topic!r}; expected an absolute name such as {DEFAULT_TOPIC!r}")
        PinholeCamera.with_field_of_view(2, 2, fov_deg)
        self.output = Path(output)
        self.overwrite = overwrite
        self._refuse_to_destroy()
        namespace = namespace_of(topic)
        self.image_topic = f"{topic}/compressed" if compressed else topic
        self.camera_info_topic = f"{namespace}/camera_info"
        self.anomaly_topic = f"{namespace}/{ANOMALY_TRUTH}"
        self.labels_topic = f"{namespace}/{LABELS_TRUTH}"
        self.compressed = compressed
        self.frame_id = frame_id
        self.fov_deg = fov_deg
        self._storage = STORAGES[storage]
        self._types = get_typestore(Stores.ROS2_JAZZY)
        self._connections: dict[str, Connection] = {}

    def __enter__(self) -> BagWriter:
        self.output.parent.mkdir(parents=True, exist_ok=True)
        # rosbags names the storage file after the bag's directory, so that one must have its final name already.
        self._folder = Path(tempfile.mkdtemp(prefix=f".{self.output.name}.", suffix=".partial", dir=self.output.parent))
        self._writer = Writer(self._folder / self.output.name, version=9, storage_plugin=self._storage)
        self._writer.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._writer.close()
                self._put_in_place()
            else:
                with contextlib.suppress(Exception):
                    self._writer.close()
        except (WriterError, OSError) as cause:
            raise BagError(f"bag {str(self.output)!r} cannot be written: {cause}") from cause
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def topics(self) -> tuple[str, ...]:
        """Topics that have a message by now."""
        return tuple(self._connections)

    def write_frame(
        self,
        stamp_ns: int,
        image: npt.NDArray[np.uint8] | EncodedImage,
        camera_info: PinholeCamera | None = None,
        labels: npt.NDArray[np.uint8] | None = None,
        anomaly: npt.NDArray[np.uint8] | None = None,
    ) -> None:
        """Write one frame.

        image: (H, W, 3) uint8 RGB; in a compressed bag also an image file's bytes (an array is encoded as JPEG,
        quality 95).
        camera_info: None writes a pinhole camera of the image's size with the writer's field of view.
        labels: (H, W) uint8 train ids, 255 unlabelled. anomaly: (H, W) uint8, 0 known, 1 anomaly, 255 ignored.
        """
        if isinstance(image, EncodedImage):
            if not self.compressed:
                raise BagError("got an encoded image for a bag of raw images; open the bag with compressed=True")
            height_px, width_px = image.height_px, image.width_px
        else:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
                raise BagError(f"got an image of shape {image.shape} and dtype {image.dtype}; expected (H, W, 3) uint8")
            height_px, width_px = image.shape[:2]
        camera = camera_info or PinholeCamera.with_field_of_view(width_px, height_px, self.fov_deg)
        self._write(stamp_ns, self.image_topic, *self._image_message(stamp_ns, image))
        self._write(stamp_ns, self.camera_info_topic, *self._camera_info_message(stamp_ns, camera))
        for name, topic, truth in (("labels", self.labels_topic, labels), ("anomaly", self.anomaly_topic, anomaly)):
            if truth is None:
                continue
            if truth.dtype != np.uint8 or truth.ndim != 2 or truth.size == 0:
                raise BagError(f"got {name} of shape {truth.shape} and dtype {truth.dtype}; expected (H, W) uint8")
            self._write(stamp_ns, topic, *self._raw_message(stamp_ns, truth, "mono8"))

    def write_serialized(self, time_ns: int, topic: str, type_name: str, data: bytes) -> None:
        """Write a message's CDR bytes, as ROS 2 delivers them to a raw subscription. time_ns: the bag's time of it."""
        self._put(time_ns, topic, type_name, data)

    def state(self, key: str, value: str) -> None:
        """Note a fact about the whole bag, such as its label set; Bag.facts reads them. Kept in metadata.yaml."""
        self._writer.set_custom_data(key, value)

    def _image_message(self, stamp_ns: int, image: npt.NDArray[np.uint8] | EncodedImage) -> tuple[str, Any]:
        if not self.compressed:
            assert not isinstance(image, EncodedImage)
            return self._raw_message(stamp_ns, image, "rgb8")
        if not isinstance(image, EncodedImage):
            image = _encoded(image, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, 95])
        name = "sensor_msgs/msg/CompressedImage"
        data = np.frombuffer(image.data, np.uint8)
        return name, self._types.types[name](header=self._header(stamp_ns), format=image.format, data=data)

    def _raw_message(self, stamp_ns: int, pixels: npt.NDArray[np.uint8], encoding: str) -> tuple[str, Any]:
        name = "sensor_msgs/msg/Image"
        data = np.ascontiguousarray(pixels).reshape(-1)
        height_px, width_px = pixels.shape[:2]
        message = self._types.types[name](
            header=self._header(stamp_ns),
            height=height_px,
            width=width_px,
            encoding=encoding,
            is_bigendian=0,
            step=data.size // height_px,
            data=data,
        )
        return name, message

    def _camera_info_message(self, stamp_ns: int, camera: PinholeCamera) -> tuple[str, Any]:
        name = "sensor_msgs/msg/CameraInfo"
        fx, fy, cx, cy = camera.fx_px, camera.fy_px, camera.cx_px, camera.cy_px
        region = self._types.types["sensor_msgs/msg/RegionOfInterest"]
        message = self._types.types[name](
            header=self._header(stamp_ns),
            height=camera.height_px,
            width=camera.width_px,
            distortion_model="plumb_bob",
            d=np.array(camera.distortion, np.float64),
            k=np.array([fx, 0, cx, 0, fy, cy, 0, 0, 1], np.float64),
            r=np.eye(3).ravel(),
            p=np.array([fx, 0, cx, 0, 0, fy, cy, 0, 0, 0, 1, 0], np.float64),
            binning_x=0,
            binning_y=0,
            roi=region(x_offset=0, y_offset=0, height=0, width=0, do_rectify=False),
        )
        return name, message

    def _header(self, stamp_ns: int) -> Any:
        stamp = self._types.types["builtin_interfaces/msg/Time"](
            sec=stamp_ns // 1_000_000_000, nanosec=stamp_ns % 1_000_000_000
        )
        return self._types.types["std_msgs/msg/Header"](stamp=stamp, frame_id=self.frame_id)

    def _write(self, stamp_ns: int, topic: str, type_name: str, message: Any) -> None:
        self._put(stamp_ns, topic, type_name, self._types.serialize_cdr(message, type_name))

    def _put(self, time_ns: int, topic: str, type_name: str, data: bytes | memoryview) -> None:
        try:
            if topic not in self._connections:
                self._connections[topic] = self._writer.add_connection(topic, type_name, typestore=self._types)
            self._writer.write(self._connections[topic], time_ns, data)
        except (WriterError, OSError) as error:
            raise BagError(f"bag {str(self.output)!r} cannot be written: {error}") from error

    def _refuse_to_destroy(self) -> None:
        if not self.output.exists():
            return
        if not self.overwrite:
            raise BagError(f"{str(self.output)!r} exists; choose another output or ask to overwrite it")
        if not (self.output / "metadata.yaml").is_file():
            raise BagError(f"{str(self.output)!r} is not a bag and is not overwritten; choose another output")

    def _put_in_place(self) -> None:
        self._refuse_to_destroy()  # someone else may have written it meanwhile
        if self.output.exists():
            self.output.rename(self._folder / "replaced")
        (self._folder / self.output.name).rename(self.output)


def frame_stamps_ns(rate_hz: float, start_time_s: float | None) -> Callable[[int], int]:
    """Return the function from a frame's number to its stamp in nanoseconds.

    rate_hz, start_time_s: as for write_image_bag. Raises BagError for a rate that is not above 0.
    """
    if not (math.isfinite(rate_hz) and rate_hz > 0):
        raise BagError(f"got a rate of {rate_hz!r} Hz; expected a number above 0")
    start_ns = time.time_ns() if start_time_s is None else round(start_time_s * 1e9)
    return lambda index: start_ns + round(index * 1e9 / rate_hz)


def _pixels_of(path: Path) -> tuple[npt.NDArray[np.uint8], bytes]:
    try:
        data = path.read_bytes()
        return decode_rgb(np.frombuffer(data, np.uint8), f"image {str(path)!r}"), data
    except OSError as error:
        raise BagError(f"image {str(path)!r} cannot be read: {error.strerror or error}") from error
    except FrameError as error:
        raise BagError(str(error)) from error


def _images(images: Sequence[Path] | Path) -> list[Path]:
    if not isinstance(images, Path):
        return list(images)
    try:
        return image_files(images)
    except FrameError as error:
        raise BagError(str(error)) from error


def _encoded_file(path: Path) -> EncodedImage:
    rgb, data = _pixels_of(path)
    if path.suffix.lower() not in _VERBATIM:
        return _encoded(rgb, ".png", [])
    return EncodedImage(data, _VERBATIM[path.suffix.lower()], rgb.shape[1], rgb.shape[0])


def _encoded(rgb: npt.NDArray[np.uint8], suffix: str, options: list[int]) -> EncodedImage:
    done, data = cv2.imencode(suffix, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise BagError(f"OpenCV could not encode an image of shape {rgb.shape} as {suffix}")
    return EncodedImage(data.tobytes(), _VERBATIM[suffix], rgb.shape[1], rgb.shape[0])
