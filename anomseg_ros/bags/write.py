"""Write ROS 2 bags of camera frames with the rosbags library; no ROS installation is needed.

A bag is a directory with metadata.yaml and one storage file (MCAP or sqlite3). It is written beside its destination and
renamed when complete, so a killed run leaves no incomplete bag under the requested name.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt
from rosbags.interfaces import Connection
from rosbags.rosbag2 import StoragePlugin, Writer, WriterError
from rosbags.typesys import Stores, get_typestore

from anomseg_ros.bags.encoded_image import EncodedImage, encode_image, read_encoded_image, read_rgb
from anomseg_ros.bags.frame_stamps import frame_stamps_ns
from anomseg_ros.bags.pinhole_camera import DEFAULT_FOV_DEG, PinholeCamera
from anomseg_ros.core.image_files import image_files
from anomseg_ros.core.output_files import check_output_folder, make_output_folder
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.core.video import Video, is_video
from anomseg_ros.errors import BagError, FrameError, describe_os_error, unknown_name

DEFAULT_TOPIC = "/camera/image"
STORAGES = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}

_URI_CHARACTERS = "?#%"
"""Characters with a meaning in URIs; rosbags opens SQLite databases by a URI without escaping them."""

ANOMALY_TRUTH, LABELS_TRUTH = "ground_truth/anomaly", "ground_truth/labels"
"""Topics of the ground truth below the namespace of the image, both mono8: 0 known, 1 anomaly, 255 ignored; and train
ids, 255 unlabelled."""

_WRITE_ERRORS = (WriterError, OSError, sqlite3.Error)


class LabelledImage(Protocol):
    """A frame with its ground truth: image (H, W, 3) uint8 RGB, labels and anomaly (H, W) uint8 or None."""

    @property
    def image(self) -> npt.NDArray[np.uint8]: ...

    @property
    def labels(self) -> npt.NDArray[np.uint8] | None: ...

    @property
    def anomaly(self) -> npt.NDArray[np.uint8] | None: ...


def namespace_of(image_topic: str) -> str:
    """Return the namespace of an image topic without a trailing slash: /camera for /camera/image/compressed."""
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
    progress: Progress = no_progress,
) -> int:
    """Write image files or a video as a bag of camera frames and return the number of frames.

    Args:
        images: files in the order to write; a folder, whose images are written in natural order of their names; or a
            video, whose frames become JPEG where `compressed`.
        output: directory of the bag.
        rate_hz: frames per second of the stamps.
        storage, topic, compressed, frame_id, fov_deg, overwrite: see BagWriter.
        start_time_s: stamp of the first frame in seconds since 1970; None: now.
        camera_info: see BagWriter.write_frame.
        progress: called after each frame.

    Raises:
        BagError: no images, an unreadable image, an existing output, or a wrong rate, storage or topic.
        FrameError: a video that is damaged or cut short.
    """
    frames, stated = _frames_of(images, compressed)
    count = 0
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
        for image in frames:
            bag.write_frame(stamps_ns(count), image, camera_info)
            count += 1
            progress("frames written", count, max(count, stated))
    return count


def write_labelled_frames(
    bag: BagWriter, frames: Iterable[LabelledImage], rate_hz: float, start_time_s: float | None = None
) -> int:
    """Write frames with their ground truth and return their number; a compressed bag gets PNG, which is lossless.

    Args:
        bag: an open bag.
        frames: the frames, in order.
        rate_hz: frames per second of the stamps.
        start_time_s: stamp of the first frame in seconds since 1970; None: now.

    Raises:
        BagError: a frame of another shape or dtype, a wrong rate or start time, or a write error.
    """
    stamps_ns = frame_stamps_ns(rate_hz, start_time_s)
    count = 0
    for frame in frames:
        image = encode_image(frame.image, ".png") if bag.compressed else frame.image
        bag.write_frame(stamps_ns(count), image, labels=frame.labels, anomaly=frame.anomaly)
        count += 1
    return count


class BagWriter:
    """Writes a bag of camera frames; a context manager.

    Topics: `topic` (sensor_msgs/Image rgb8), or `topic`/compressed (CompressedImage) with compressed=True; in the same
    namespace camera_info, ground_truth/anomaly and ground_truth/labels (Image mono8). The messages of a frame share
    stamp and frame_id, and the stamp is their bag time. Frames may differ in size.

    When the block ends without an error, the bag gets its final name; after an error, nothing remains.

    Args:
        output: directory of the bag.
        storage: mcap or sqlite3.
        topic: absolute name of the image topic.
        compressed: write CompressedImage.
        frame_id: frame_id of all headers.
        fov_deg: horizontal field of view of the default camera.
        overwrite: replace an existing bag.

    Raises:
        BagError: the output exists (with overwrite=True: exists and is not a bag), or a wrong storage, topic or field
            of view.
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
        PinholeCamera.with_field_of_view(2, 2, fov_deg)  # checks fov_deg
        if storage == "sqlite3" and any(letter in str(Path(output).absolute()) for letter in _URI_CHARACTERS):
            raise BagError(
                f"{str(output)!r}: a path with one of {_URI_CHARACTERS} cannot be written as sqlite3; choose mcap"
            )
        if os.fsencode(Path(output).name).decode("utf-8", "ignore") != Path(output).name:
            raise BagError(f"{str(output)!r} is not UTF-8, which metadata.yaml requires; choose another name")
        self.output = Path(output)
        self.overwrite = overwrite
        self._check_output()
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
        check_output_folder(self.output)
        make_output_folder(self.output.parent)
        try:
            # rosbags names the storage file after the bag's directory, so the directory needs its final name now.
            self._folder = Path(tempfile.mkdtemp(prefix=".bag.", suffix=".partial", dir=self.output.parent))
            self._writer = Writer(self._folder / self.output.name, version=9, storage_plugin=self._storage)
            self._writer.open()
        except OSError as error:
            raise BagError(f"bag {describe_os_error(error, self.output)}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._writer.close()
                self._move_to_output()
            else:
                with contextlib.suppress(Exception):
                    self._writer.close()
        except _WRITE_ERRORS as cause:
            raise self._write_error(cause) from cause
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def topics(self) -> tuple[str, ...]:
        """Topics with at least one message so far."""
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

        Args:
            stamp_ns: stamp and bag time of all messages of the frame.
            image: (H, W, 3) uint8 RGB; in a compressed bag also the bytes of an image file. There, an array is encoded
                as JPEG with quality 95.
            camera_info: None writes a pinhole camera of the image's size with the writer's field of view.
            labels: (H, W) uint8 train ids, 255 unlabelled.
            anomaly: (H, W) uint8, 0 known, 1 anomaly, 255 ignored.

        Raises:
            BagError: an array of another shape or dtype, an encoded image for a raw bag, or a write error.
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
        """Write a message's CDR bytes, as ROS 2 delivers them to a raw subscription. Raises BagError.

        Args:
            time_ns: bag time of the message.
            topic: its topic.
            type_name: its type, such as sensor_msgs/msg/Image.
            data: its serialized bytes.
        """
        self._put(time_ns, topic, type_name, data)

    def add_fact(self, key: str, value: str) -> None:
        """Store a fact about the bag, such as its label set, in metadata.yaml. Bag.facts returns these facts."""
        self._writer.set_custom_data(key, value)

    def _image_message(self, stamp_ns: int, image: npt.NDArray[np.uint8] | EncodedImage) -> tuple[str, Any]:
        if not self.compressed:
            assert not isinstance(image, EncodedImage)
            return self._raw_message(stamp_ns, image, "rgb8")
        if not isinstance(image, EncodedImage):
            image = encode_image(image, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, 95])
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
        except _WRITE_ERRORS as error:
            raise self._write_error(error) from error

    def _write_error(self, error: Exception) -> BagError:
        reason = (
            describe_os_error(error, self.output) if isinstance(error, OSError) else f"{str(self.output)!r}: {error}"
        )
        return BagError(f"cannot write the bag {reason}")

    def _check_output(self) -> None:
        if not self.output.exists():
            return
        if not self.overwrite:
            raise BagError(f"{str(self.output)!r} exists; choose another output or pass --overwrite")
        if not (self.output / "metadata.yaml").is_file():
            raise BagError(f"{str(self.output)!r} is not a bag and is not overwritten; choose another output")

    def _move_to_output(self) -> None:
        self._check_output()  # another process may have created it since the first check
        if self.output.exists():
            self.output.rename(self._folder / "replaced")
        (self._folder / self.output.name).rename(self.output)


def _frames_of(
    images: Sequence[Path] | Path, compressed: bool
) -> tuple[Iterable[npt.NDArray[np.uint8] | EncodedImage], int]:
    """Return the frames to write, and how many there are as stated."""
    if isinstance(images, Path) and is_video(images):
        video = Video(images)
        return video, video.frame_count or 0
    try:
        paths = image_files(images) if isinstance(images, Path) else images
    except FrameError as error:
        raise BagError(f"{error}, or a video") from error
    if not paths:
        raise BagError("got no images to write; give at least one")
    return (read_encoded_image(path) if compressed else read_rgb(path)[0] for path in paths), len(paths)
