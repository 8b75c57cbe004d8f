"""The drives of the demo: the shipped drive with objects pasted onto its road, a video, a bag, or a synthetic drive."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from anomseg_ros.bags.frame_stamps import frame_stamps_ns
from anomseg_ros.bags.pinhole_camera import PinholeCamera
from anomseg_ros.bags.pixels import frame_from_message
from anomseg_ros.bags.read import camera_topic, open_bag, read_images
from anomseg_ros.bags.write import ANOMALY_TRUTH, BagWriter, LabelledImage, namespace_of
from anomseg_ros.commands.progress_lines import ProgressLines
from anomseg_ros.core.image_files import IMAGE_SUFFIXES
from anomseg_ros.core.resources import DEMO_BUNDLE, ROAD_BUNDLE, SYNTHETIC_BUNDLE, share_file
from anomseg_ros.core.types import RgbImage
from anomseg_ros.core.video import VIDEO_SUFFIXES, Video, is_video
from anomseg_ros.datasets.dataset import LabelledFrame
from anomseg_ros.datasets.road_drive import RoadScene, load_road_scene, paste_on_road
from anomseg_ros.errors import BagError, ConfigError, FrameError
from anomseg_ros.scenes.sequence import SyntheticConfig, SyntheticSequence

SHIPPED_VIDEO, SHIPPED_SCENE = "demo/drive.mp4", "demo/drive.yaml"

# Outside the range of seeds of the shipped bundle's training frames.
SYNTHETIC_SEED = 1_000_105
SYNTHETIC_FRAMES = 100
ANOMALY_SIZE_M = (0.4, 2.0)

START_S = 1.0
"""Stamp of the first frame; in ROS, a stamp of 0 means "no stamp"."""

_BAG_SUFFIXES = (".mcap", ".db3", ".bag")


@dataclass(frozen=True)
class DemoDrive:
    """A drive that is ready to be played.

    truth_topic: topic of the anomaly masks (0, 1, 255), None without ground truth. period_s: mean time between frames.
    first: first frame. about: sentences on the page that describe the drive. bundle: name of the shipped bundle for it.
    """

    name: str
    bag: Path
    topic: str
    truth_topic: str | None
    frames: int
    period_s: float
    first: RgbImage
    about: tuple[str, ...]
    bundle: str


def shipped_drive(bag: Path, frames: int | None = None) -> DemoDrive:
    """Write the shipped video with its pasted objects as a bag and return it. frames: largest number of frames."""
    video, scene = Video(share_file(SHIPPED_VIDEO)), load_road_scene(share_file(SHIPPED_SCENE))
    pasted = paste_on_road(video, video.rate_hz, scene)
    count = _write(bag, pasted, video.rate_hz, video.frame_count, frames, _pinhole_camera(scene))
    about = (
        f"Road, light and traffic are real: {scene.source}, {count} frames at {video.rate_hz:g} Hz.",
        f"{_object_names(scene)} are drawn and pasted onto the road. They stand still and grow as the car comes "
        "closer; their pixels are known exactly. Nothing else on this page is artificial.",
    )
    return _drive_of_bag(bag, None, "drive.mp4", about, DEMO_BUNDLE)


def video_drive(path: Path, bag: Path, frames: int | None = None) -> DemoDrive:
    """Write a video's frames as a bag, with stamps at the video's rate, and return it.

    Raises:
        FrameError: the file does not exist, is not a video, or is cut short.
        BagError: the video states no frame rate.
    """
    video = Video(path)
    images = (LabelledFrame(str(index), image, None, None) for index, image in enumerate(video))
    count = _write(bag, images, video.rate_hz, video.frame_count, frames)
    return _drive_of_bag(bag, None, path.name, (f"{count} frames of a video, at {video.rate_hz:g} Hz.",), ROAD_BUNDLE)


def synthetic_drive(bag: Path, frames: int | None = None, seed: int = SYNTHETIC_SEED) -> DemoDrive:
    """Draw a synthetic drive with anomalies as a bag and return it."""
    sequence = SyntheticSequence(seed, SyntheticConfig(anomaly_probability=1.0, anomaly_size_m=ANOMALY_SIZE_M))
    lens, count = sequence.camera, SYNTHETIC_FRAMES if frames is None else frames
    camera = PinholeCamera(lens.width_px, lens.height_px, lens.fx, lens.fy, lens.cx, lens.cy)
    _write(bag, sequence.frames(count), sequence.config.rate_hz, count, None, camera)
    about = (f"Everything is drawn: scene {seed}, with anomalies on its road.",)
    return _drive_of_bag(bag, None, "synthetic drive", about, SYNTHETIC_BUNDLE)


def recorded_drive(path: Path, topic: str | None) -> DemoDrive:
    """Return the drive of an existing bag.

    Raises:
        BagError: the bag does not exist, is damaged, or does not have exactly one camera topic.
        FrameError: the path is neither a bag nor a video, or the first frame cannot be read.
    """
    if path.is_file() and path.suffix not in _BAG_SUFFIXES and path.name != "metadata.yaml":
        hint = "; write images as a bag first: `anomseg bag write`" if path.suffix.lower() in IMAGE_SUFFIXES else ""
        raise FrameError(
            f"{str(path)!r} is neither a bag nor a video; expected a bag directory, a file ending in .mcap or .db3, or "
            f"a video ending in {', '.join(VIDEO_SUFFIXES)}{hint}"
        )
    return _drive_of_bag(path, topic, path.name, ("A recorded drive.",), ROAD_BUNDLE)


def open_drive(source: Path | None, bag: Path, topic: str | None, frames: int | None) -> DemoDrive:
    """Return the drive of a video or bag; None: the shipped drive.

    Args:
        source: video or bag.
        bag: bag to write a video to.
        topic: camera topic of a bag; None: its only one.
        frames: largest number of frames of a video.

    Raises ConfigError for a topic without a bag.
    """
    if topic is not None and (source is None or is_video(source)):
        given = "the shipped drive" if source is None else f"the video {str(source)!r}"
        raise ConfigError(f"the image topic {topic!r} is for a bag; {given} has no topics")
    if source is None:
        return shipped_drive(bag, frames)
    return video_drive(source, bag, frames) if is_video(source) else recorded_drive(source, topic)


def _write(
    bag: Path,
    frames: Iterable[LabelledImage],
    rate_hz: float,
    expected: int | None,
    limit: int | None,
    camera: PinholeCamera | None = None,
) -> int:
    """Write at most `limit` frames as JPEG with stamps at the rate; return their number."""
    count, stamps_ns = 0, frame_stamps_ns(rate_hz, START_S)
    with ProgressLines() as lines, BagWriter(bag, compressed=True, overwrite=True) as writer:
        # Without a limit, islice reads to the end of a video, which then reports missing frames.
        total = expected if limit is None or expected is None else min(limit, expected)
        for frame in lines.bars.track(islice(frames, limit), total=total, description="preparing the drive"):
            writer.write_frame(stamps_ns(count), frame.image, camera, frame.labels, frame.anomaly)
            count += 1
    return count


def _drive_of_bag(path: Path, topic: str | None, name: str, about: tuple[str, ...], bundle: str) -> DemoDrive:
    """Return the drive of a bag, with the facts that the bag contains. Raises BagError, FrameError."""
    with open_bag(path) as bag:
        topic = topic or camera_topic(bag)
        first = next(read_images(bag, topic), None)
        if first is None:
            raise BagError(f"topic {topic!r} of bag {str(path)!r} has no messages; choose another topic")
        frames, duration_s = bag.counts[topic], (bag.end_ns - bag.start_ns) / 1e9
        truth_topic = f"{namespace_of(topic)}/{ANOMALY_TRUTH}"
        return DemoDrive(
            name=name,
            bag=path,
            topic=topic,
            truth_topic=truth_topic if bag.counts.get(truth_topic) else None,
            frames=frames,
            period_s=duration_s / max(frames - 1, 1),
            first=frame_from_message(first.message),
            about=about,
            bundle=bundle,
        )


def _pinhole_camera(scene: RoadScene) -> PinholeCamera:
    camera = scene.camera
    principal_point_px = camera.vanishing_px, camera.horizon_px
    return PinholeCamera(camera.width_px, camera.height_px, camera.focal_px, camera.focal_px, *principal_point_px)


def _object_names(scene: RoadScene) -> str:
    """Return the names of the objects as the beginning of a sentence, such as `A cart, an animal and a tyre`."""
    *others, last = (placed.name for placed in scene.objects)
    text = f"{', '.join(others)} and {last}" if others else last
    return text[0].upper() + text[1:]
