"""The frame path with a real detector and real messages, without topics."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from builtin_interfaces.msg import Time
from painted_frames import HORIZON_PX, street, without_road
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from anomseg_ros.backends import open_detector
from anomseg_ros.core.bundle import Bundle, load_bundle
from anomseg_ros.core.detector import Detector
from anomseg_ros.errors import ConfigError, FrameError
from anomseg_ros.node import pipeline
from anomseg_ros.node.conversions import compressed_from_array, image_from_array, rgb_from_image
from anomseg_ros.node.parameters import PARAMETERS, live_parameters

IMAGES = (pipeline.LABELS, pipeline.SCORE, pipeline.MASK, pipeline.OVERLAY, pipeline.OVERLAY_COMPRESSED)


@pytest.fixture(scope="module")
def detector(tiny_bundle: Path) -> Detector:
    return open_detector(tiny_bundle)


def make(detector: Detector, ego_mask: np.ndarray | None = None, **values: object) -> pipeline.FramePipeline:
    defaults = {parameter.name: parameter.default for parameter in PARAMETERS}
    live = live_parameters({**defaults, **values})
    return pipeline.FramePipeline(detector, pipeline.resolve(live, detector.bundle), ego_mask)


@pytest.fixture()
def frame() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)


def message(frame: np.ndarray) -> Image:
    return image_from_array(frame, "rgb8", Header(stamp=Time(sec=12, nanosec=34), frame_id="front"))


def array(msg: Image) -> np.ndarray:
    return (
        np.frombuffer(msg.data, np.float32 if msg.encoding == "32FC1" else np.uint8)
        .reshape(msg.height, msg.width, -1)
        .squeeze()
    )


def test_messages_are_what_the_detector_says(detector: Detector, frame: np.ndarray) -> None:
    outputs = detector.detect(frame, ["void"])
    middle = float(np.median(outputs.scores["void"]))
    published = make(detector, threshold=middle).process(message(frame), IMAGES)
    assert (array(published.messages[pipeline.LABELS]) == outputs.labels).all()
    assert (array(published.messages[pipeline.SCORE]) == outputs.scores["void"]).all()
    mask = array(published.messages[pipeline.MASK])
    assert (mask == np.where(outputs.scores["void"] > middle, 255, 0)).all() and 0 < mask.mean() < 255
    encodings = {topic: published.messages[topic].encoding for topic in IMAGES[:4]}
    assert list(encodings.values()) == ["mono8", "32FC1", "mono8", "rgb8"]
    assert published.frame_size == (160, 90)


def test_stamp_and_frame_id_are_the_frame_s(detector: Detector, frame: np.ndarray) -> None:
    published = make(detector).process(
        message(frame), (*IMAGES, pipeline.CAMERA_INFO), CameraInfo(width=160, height=90)
    )
    assert len(published.messages) == 6
    for output in published.messages.values():
        assert (output.header.stamp.sec, output.header.stamp.nanosec, output.header.frame_id) == (12, 34, "front")


def test_only_what_is_wanted_is_made(detector: Detector, frame: np.ndarray) -> None:
    assert set(make(detector).process(message(frame), [pipeline.MASK]).messages) == {pipeline.MASK}
    assert make(detector).process(message(frame), []).messages == {}


def test_compressed_frames(detector: Detector, frame: np.ndarray) -> None:
    compressed = compressed_from_array(frame, Header(frame_id="front"), format="png")
    running = make(detector)
    from_png = running.process(compressed, [pipeline.LABELS]).messages[pipeline.LABELS]
    from_raw = running.process(message(frame), [pipeline.LABELS]).messages[pipeline.LABELS]
    assert from_png.data == from_raw.data and from_png.header.frame_id == "front"


def test_source_size(detector: Detector, frame: np.ndarray) -> None:
    running = make(detector, output_size="source")
    published = running.process(message(frame), (*IMAGES[:4], pipeline.CAMERA_INFO), CameraInfo(width=160, height=90))
    assert {(output.width, output.height) for output in published.messages.values()} == {(160, 90)}


def test_camera_info_is_scaled_with_the_output(detector: Detector, frame: np.ndarray) -> None:
    info = CameraInfo(width=160, height=90, k=[100.0, 0.0, 79.5, 0.0, 100.0, 44.5, 0.0, 0.0, 1.0])
    scaled = make(detector).process(message(frame), [pipeline.CAMERA_INFO], info).messages[pipeline.CAMERA_INFO]
    assert (scaled.width, scaled.height) == (128, 64)
    assert scaled.k[0] == pytest.approx(80.0) and scaled.k[4] == pytest.approx(100 * 64 / 90)
    assert pipeline.CAMERA_INFO not in make(detector).process(message(frame), [pipeline.CAMERA_INFO]).messages


def test_mono8_scores(detector: Detector, frame: np.ndarray) -> None:
    gray = make(detector, score_encoding="mono8").process(message(frame), [pipeline.SCORE]).messages[pipeline.SCORE]
    assert gray.encoding == "mono8"
    assert array(gray) == pytest.approx(detector.detect(frame, ["void"]).scores["void"] * 255, abs=1)


def test_road_region(painted: Bundle) -> None:
    detector = open_detector(painted)
    frame, anomaly = street()
    everywhere = make(detector).process(message(frame), IMAGES)
    on_road = make(detector, road_region="road").process(message(frame), IMAGES)
    patch = np.s_[20:32, 30:42]
    assert (array(everywhere.messages[pipeline.MASK])[patch] == 255).all()
    assert ((array(on_road.messages[pipeline.MASK]) > 0) == (anomaly > 0)).all()
    assert on_road.messages[pipeline.LABELS].data == everywhere.messages[pipeline.LABELS].data
    before, after = (array(published.messages[pipeline.SCORE]) for published in (everywhere, on_road))
    assert (after[anomaly > 0] == before[anomaly > 0]).all() and (before[patch] > 0.9).all()
    assert (after[: HORIZON_PX - 10] == 0).all()
    overlays = [array(published.messages[pipeline.OVERLAY]) for published in (everywhere, on_road)]
    assert (overlays[0][25, 35] != overlays[1][25, 35]).any() and (overlays[0][95, 125] == overlays[1][95, 125]).all()
    assert not on_road.roadless and not everywhere.roadless


def test_road_region_at_the_source_s_size_within_a_region_of_interest(painted: Bundle) -> None:
    frame, anomaly = (cv2.resize(a, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST) for a in street())
    running = make(
        open_detector(painted),
        road_region="road",
        output_size="source",
        threshold=-1.0,  # below every score: all that may be an alarm is one
        region_of_interest=[0.0, 0.0, 1.0, 0.75],
    )
    published = running.process(message(frame), [pipeline.MASK])
    mask = array(published.messages[pipeline.MASK]) > 0
    assert mask.shape == (256, 512) and mask[:192][anomaly[:192] > 0].all()
    assert not mask[192:].any() and not mask[: 2 * HORIZON_PX - 20].any()


def test_without_a_road_alarms_are_everywhere(painted: Bundle) -> None:
    frame, _ = street(road=False)
    detector = open_detector(painted)
    published = make(detector, road_region="road").process(message(frame), [pipeline.MASK])
    assert published.roadless
    assert (
        published.messages[pipeline.MASK].data
        == make(detector).process(message(frame), [pipeline.MASK]).messages[pipeline.MASK].data
    )
    assert array(published.messages[pipeline.MASK])[25, 35] == 255
    # Nobody wants alarms: the road is not looked for.
    assert not make(detector, road_region="road").process(message(frame), [pipeline.LABELS]).roadless


def test_a_bundle_without_a_road_is_refused(painted: Bundle, tmp_path: Path) -> None:
    detector = open_detector(load_bundle(without_road(painted, tmp_path / "lawn")))
    with pytest.raises(ConfigError, match="road region 'road': bundle 'painted' has no class 'road'"):
        make(detector, road_region="road")
    assert make(detector).settings.road is None


def test_region_of_interest_and_ego_mask(detector: Detector, frame: np.ndarray) -> None:
    ego = np.zeros((90, 160), np.uint8)
    ego[80:] = 1
    running = make(detector, ego, threshold=-1.0, region_of_interest=[0.25, 0.5, 1.0, 1.0])
    published = running.process(message(frame), IMAGES).messages
    expected = np.zeros((64, 128), bool)
    expected[32:57, 32:] = True  # row 80 of 90 is row 56.9 of 64
    assert ((array(published[pipeline.MASK]) > 0) == expected).all()
    assert (array(published[pipeline.LABELS])[~expected] == 255).all()
    assert (array(published[pipeline.SCORE])[~expected] == 0).all()
    assert (
        array(published[pipeline.SCORE])[expected] == detector.detect(frame, ["void"]).scores["void"][expected]
    ).all()


def test_without_a_threshold_there_is_no_mask_but_all_else(detector: Detector, frame: np.ndarray) -> None:
    published = make(detector, score="max_logit").process(message(frame), IMAGES).messages
    assert set(published) == set(IMAGES) - {pipeline.MASK}


def test_settings_change_between_frames(detector: Detector, frame: np.ndarray) -> None:
    running = make(detector, threshold=2.0)
    assert array(running.process(message(frame), [pipeline.MASK]).messages[pipeline.MASK]).max() == 0
    running.settings = make(detector, threshold=-1.0).settings
    assert array(running.process(message(frame), [pipeline.MASK]).messages[pipeline.MASK]).min() == 255


def test_frames_of_another_size_mid_stream(detector: Detector, frame: np.ndarray) -> None:
    running = make(detector)
    for pixels in (frame, frame[:40, :100].copy(), frame):
        published = running.process(message(pixels), [pipeline.LABELS])
        assert (array(published.messages[pipeline.LABELS]) == detector.detect(pixels, []).labels).all()


def test_a_bad_frame_is_refused_and_the_next_one_works(detector: Detector, frame: np.ndarray) -> None:
    running, bad = make(detector), message(frame)
    bad.data = bad.data[:100]
    with pytest.raises(FrameError):
        running.process(bad, [pipeline.LABELS])
    assert running.process(message(frame), [pipeline.LABELS]).messages


def test_settings_that_do_not_fit_the_bundle(detector: Detector) -> None:
    defaults = {parameter.name: parameter.default for parameter in PARAMETERS}
    live = live_parameters({**defaults, "score": "energy"})
    assert pipeline.resolve(live, detector.bundle).score == "energy"
    assert pipeline.resolve(live, detector.bundle).threshold is None


def test_ego_mask_files(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "ego.png"), np.full((4, 6), 255, np.uint8))
    mask = pipeline.read_ego_mask(str(tmp_path / "ego.png"))
    assert mask is not None and mask.shape == (4, 6)
    assert pipeline.read_ego_mask("") is None
    with pytest.raises(ConfigError, match=r"'ego_mask': '.*absent\.png' cannot be read"):
        pipeline.read_ego_mask(str(tmp_path / "absent.png"))


def test_overlay_is_a_picture_of_the_frame(detector: Detector, frame: np.ndarray) -> None:
    picture = rgb_from_image(make(detector).process(message(frame), [pipeline.OVERLAY]).messages[pipeline.OVERLAY])
    assert picture.shape == (64, 128, 3)
