"""What the demo plays: the shipped drive with objects pasted onto its road, a video, a bag, or a synthetic drive."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from anomseg_ros.bags.pixels import frame_from_message
from anomseg_ros.bags.read import camera_topic, open_bag, read_images
from anomseg_ros.bags.write import ANOMALY_TRUTH, BagWriter, LabelledImage, PinholeCamera, frame_stamps_ns, namespace_of
from anomseg_ros.commands import options
from anomseg_ros.core.image_files import IMAGE_SUFFIXES
from anomseg_ros.core.resources import DEMO_BUNDLE, ROAD_BUNDLE, SYNTHETIC_BUNDLE, share_file
from anomseg_ros.core.types import RgbImage
from anomseg_ros.core.video import VIDEO_SUFFIXES, Video, is_video
from anomseg_ros.datasets.base import LabelledFrame
from anomseg_ros.datasets.road_drive import RoadScene, load_road_scene, paste_on_road
from anomseg_ros.datasets.synthetic import SyntheticConfig, SyntheticSequence
from anomseg_ros.errors import BagError, FrameError

SHIPPED_VIDEO, SHIPPED_SCENE = "demo/drive.mp4", "demo/drive.yaml"

# Beyond the seeds of the shipped bundle's training frames.
SYNTHETIC_SEED = 1_000_105
SYNTHETIC_FRAMES = 100
ANOMALY_SIZE_M = (0.4, 2.0)

START_S = 1.0
"""Stamp of the first frame: 0 would mean "no stamp" to a ROS node."""

_BAG_SUFFIXES = (".mcap", ".db3", ".bag")


@dataclass(frozen=True)
class DemoDrive:
    """A drive that is ready to be played.

    truth_topic: of the anomaly masks (0, 1, 255), None where nobody knows what is anomalous. period_s: mean time
    between frames. about: sentences for people, on what is real and what is not. bundle: shipped bundle that suits it.
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
    """Write the shipped video with its pasted objects as a bag and return it. frames: at most this many."""
    video, scene = Video(share_file(SHIPPED_VIDEO)), load_road_scene(share_file(SHIPPED_SCENE))
    pasted = paste_on_road(video, video.rate_hz, scene)
    count = _write(bag, pasted, video.rate_hz, video.frame_count, frames, _lens(scene))
    about = (
        f"Road, light and traffic are real: {scene.source}, {count} frames at {video.rate_hz:g} Hz.",
        f"{_listed(scene)} are drawn and pasted onto the road. They stand still and grow as the car comes closer; "
        "which pixels are theirs is known exactly. Nothing else on this page is made up.",
    )
    return _opened(bag, None, "drive.mp4", about, DEMO_BUNDLE)


def video_drive(path: Path, bag: Path, frames: int | None = None) -> DemoDrive:
    """Write a video's frames as a bag, with stamps at the video's rate, and return it.

    Raises:
        FrameError: no such file, no video, or one that is cut short. BagError: a video that states no rate.
    """
    video = Video(path)
    images = (LabelledFrame(str(index), image, None, None) for index, image in enumerate(video))
    count = _write(bag, images, video.rate_hz, video.frame_count, frames)
    return _opened(bag, None, path.name, (f"{count} frames of a video, at {video.rate_hz:g} Hz.",), ROAD_BUNDLE)


def synthetic_drive(bag: Path, frames: int | None = None, seed: int = SYNTHETIC_SEED) -> DemoDrive:
    """Draw a synthetic drive with anomalies as a bag and return it."""
    sequence = SyntheticSequence(seed, SyntheticConfig(anomaly_probability=1.0, anomaly_size_m=ANOMALY_SIZE_M))
    lens, count = sequence.camera, SYNTHETIC_FRAMES if frames is None else frames
    camera = PinholeCamera(lens.width_px, lens.height_px, lens.fx, lens.fy, lens.cx, lens.cy)
    _write(bag, sequence.frames(count), sequence.config.rate_hz, count, None, camera)
    about = (f"Everything is drawn: scene {seed}, with anomalies on its road.",)
    return _opened(bag, None, "synthetic drive", about, SYNTHETIC_BUNDLE)


def recorded_drive(path: Path, topic: str | None) -> DemoDrive:
    """Take a bag as it is.

    Raises:
        BagError: no bag, a damaged one, or not one camera topic. FrameError: neither a bag nor a video, or a first
            frame that cannot be read.
    """
    if path.is_file() and path.suffix not in _BAG_SUFFIXES and path.name != "metadata.yaml":
        hint = "; write images as a bag first: `anomseg bag write`" if path.suffix.lower() in IMAGE_SUFFIXES else ""
        raise FrameError(
            f"{str(path)!r} is neither a bag nor a video; expected a bag directory, a file ending in .mcap or .db3, or "
            f"a video ending in {', '.join(VIDEO_SUFFIXES)}{hint}"
        )
    return _opened(path, topic, path.name, ("A recorded drive.",), ROAD_BUNDLE)


def open_drive(source: Path | None, bag: Path, topic: str | None, frames: int | None) -> DemoDrive:
    """Return the drive that was asked for: None is the shipped one. bag: where to write what is not a bag yet."""
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
    """Write frames, at most `limit`, as JPEG with stamps at the rate; return their number."""
    count, stamps_ns = 0, frame_stamps_ns(rate_hz, START_S)
    with options.progress_bar() as progress, BagWriter(bag, compressed=True, overwrite=True) as writer:
        # Without a limit a source is read to its end, where a video notices what is missing.
        total = expected if limit is None or expected is None else min(limit, expected)
        for frame in progress.track(islice(frames, limit), total=total, description="preparing the drive"):
            writer.write_frame(stamps_ns(count), frame.image, camera, frame.labels, frame.anomaly)
            count += 1
    return count


def _opened(bag: Path, topic: str | None, name: str, about: tuple[str, ...], bundle: str) -> DemoDrive:
    """Look into a bag. Raises BagError, FrameError."""
    with open_bag(bag) as opened:
        topic = topic or camera_topic(opened)
        first = next(read_images(opened, topic), None)
        if first is None:
            raise BagError(f"topic {topic!r} of bag {str(bag)!r} has no message; choose one that has")
        frames, duration_s = opened.counts[topic], (opened.end_ns - opened.start_ns) / 1e9
        truth_topic = f"{namespace_of(topic)}/{ANOMALY_TRUTH}"
        return DemoDrive(
            name=name,
            bag=bag,
            topic=topic,
            truth_topic=truth_topic if opened.counts.get(truth_topic) else None,
            frames=frames,
            period_s=duration_s / max(frames - 1, 1),
            first=frame_from_message(first.message),
            about=about,
            bundle=bundle,
        )


def _lens(scene: RoadScene) -> PinholeCamera:
    camera = scene.camera
    middle_px = camera.vanishing_px, camera.horizon_px
    return PinholeCamera(camera.width_px, camera.height_px, camera.focal_px, camera.focal_px, *middle_px)


def _listed(scene: RoadScene) -> str:
    """Return the names of the objects as the beginning of a sentence: `A cart, an animal and a tyre`."""
    *others, last = (standing.name for standing in scene.objects)
    text = f"{', '.join(others)} and {last}" if others else last
    return text[0].upper() + text[1:]
