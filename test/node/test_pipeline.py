"""The frame path with a real detector and real messages, without topics."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from builtin_interfaces.msg import Time
from painted_frames import HORIZON_PX, street, without_road
from plain_bundles import plain_bundle
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from anomseg_ros.backends import open_detector
from anomseg_ros.core.bundle import Bundle, load_bundle
from anomseg_ros.core.detector import Detector
from anomseg_ros.core.labels import palette
from anomseg_ros.core.overlay import anomaly_mask, overlay
from anomseg_ros.core.thresholds import AlarmThreshold, ThresholdTable
from anomseg_ros.errors import ConfigError, FrameError
from anomseg_ros.node import conversions, pipeline
from anomseg_ros.node.conversions import compressed_from_array, image_from_array, rgb_from_image
from anomseg_ros.node.parameters import PARAMETERS, live_parameters
from anomseg_ros.scores import scale_of

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


def message(frame: np.ndarray, tenths: int = 0) -> Image:
    stamp = Time(sec=12, nanosec=34 + tenths * 100_000_000)
    return image_from_array(frame, "rgb8", Header(stamp=stamp, frame_id="front"))


def array(msg: Image) -> np.ndarray:
    return (
        np.frombuffer(msg.data, np.float32 if msg.encoding == "32FC1" else np.uint8)
        .reshape(msg.height, msg.width, -1)
        .squeeze()
    )


def test_published_messages_equal_detector_outputs(detector: Detector, frame: np.ndarray) -> None:
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


def test_outputs_copy_stamp_and_frame_id_of_frame(detector: Detector, frame: np.ndarray) -> None:
    published = make(detector).process(
        message(frame), (*IMAGES, pipeline.CAMERA_INFO), [CameraInfo(width=160, height=90)]
    )
    assert len(published.messages) == 6
    for output in published.messages.values():
        assert (output.header.stamp.sec, output.header.stamp.nanosec, output.header.frame_id) == (12, 34, "front")


def test_only_requested_outputs_are_computed(detector: Detector, frame: np.ndarray) -> None:
    assert set(make(detector).process(message(frame), [pipeline.MASK]).messages) == {pipeline.MASK}
    assert make(detector).process(message(frame), []).messages == {}


def test_compressed_frame_gives_same_labels_as_raw(detector: Detector, frame: np.ndarray) -> None:
    compressed = compressed_from_array(frame, Header(frame_id="front"), format="png")
    running = make(detector)
    from_png = running.process(compressed, [pipeline.LABELS]).messages[pipeline.LABELS]
    from_raw = running.process(message(frame), [pipeline.LABELS]).messages[pipeline.LABELS]
    assert from_png.data == from_raw.data and from_png.header.frame_id == "front"


def test_source_output_size_is_used_for_all_outputs(detector: Detector, frame: np.ndarray) -> None:
    running = make(detector, output_size="source")
    published = running.process(message(frame), (*IMAGES[:4], pipeline.CAMERA_INFO), CameraInfo(width=160, height=90))
    assert {(output.width, output.height) for output in published.messages.values()} == {(160, 90)}


def test_camera_info_is_scaled_to_output_size(detector: Detector, frame: np.ndarray) -> None:
    info = CameraInfo(width=160, height=90, k=[100.0, 0.0, 79.5, 0.0, 100.0, 44.5, 0.0, 0.0, 1.0])
    scaled = make(detector).process(message(frame), [pipeline.CAMERA_INFO], [info]).messages[pipeline.CAMERA_INFO]
    assert (scaled.width, scaled.height) == (128, 64)
    assert scaled.k[0] == pytest.approx(80.0) and scaled.k[4] == pytest.approx(100 * 64 / 90)
    assert pipeline.CAMERA_INFO not in make(detector).process(message(frame), [pipeline.CAMERA_INFO]).messages


def test_mono8_score_encoding_is_scaled_by_the_bundle_s_thresholds(detector: Detector, frame: np.ndarray) -> None:
    scores = detector.detect(frame, ["void"]).scores["void"]
    rates = dict(zip((0.05, 0.01, 0.001), map(float, np.quantile(scores, (0.5, 0.8, 0.95))), strict=True))
    contract = replace(detector.bundle.contract, thresholds={"void": ThresholdTable("here", rates)})
    calibrated = Detector(Bundle(detector.bundle.directory, contract), detector.backend)
    gray = make(calibrated, score_encoding="mono8").process(message(frame), [pipeline.SCORE]).messages[pipeline.SCORE]
    scale = scale_of(contract, "void")
    assert [scale.place(value) for value in rates.values()] == pytest.approx([0.25, 0.5, 0.75])
    assert (array(gray) == scale.gray(scores)).all() and len(np.unique(array(gray))) > 50


def test_mono8_score_encoding_scales_scores_to_255(detector: Detector, frame: np.ndarray) -> None:
    gray = make(detector, score_encoding="mono8").process(message(frame), [pipeline.SCORE]).messages[pipeline.SCORE]
    assert gray.encoding == "mono8"
    assert array(gray) == pytest.approx(detector.detect(frame, ["void"]).scores["void"] * 255, abs=1)


def test_road_region_limits_mask_to_road(painted: Bundle) -> None:
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


def test_road_region_with_source_size_and_region_of_interest(painted: Bundle) -> None:
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


def test_road_region_is_ignored_on_frame_without_road(painted: Bundle) -> None:
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


def test_road_region_with_bundle_without_road_class_is_refused(painted: Bundle, tmp_path: Path) -> None:
    detector = open_detector(load_bundle(without_road(painted, tmp_path / "lawn")))
    with pytest.raises(ConfigError, match="road region 'road': bundle 'painted' has no class 'road'"):
        make(detector, road_region="road")
    assert make(detector).settings.road is None


def test_region_of_interest_and_ego_mask_limit_mask(detector: Detector, frame: np.ndarray) -> None:
    ego = np.zeros((90, 160), np.uint8)
    ego[80:] = 1
    running = make(detector, ego, threshold=-1.0, region_of_interest=[0.25, 0.5, 1.0, 1.0])
    published = running.process(message(frame), IMAGES).messages
    expected = np.zeros((64, 128), bool)
    expected[32:57, 32:] = True  # row 80 of 90 is row 56.9 of 64
    assert ((array(published[pipeline.MASK]) > 0) == expected).all()
    assert (array(published[pipeline.LABELS])[~expected] == 255).all()
    scores, plain = array(published[pipeline.SCORE]), detector.detect(frame, ["void"]).scores["void"]
    assert (scores[~expected] == 0).all() and (scores[expected] == plain[expected]).all()
    with pytest.raises(FrameError, match="the ego mask is 160x90 pixels, the frame 90x90"):
        running.process(message(frame[:, :90]), IMAGES)


def test_missing_threshold_omits_only_the_mask(detector: Detector, frame: np.ndarray) -> None:
    published = make(detector, score="max_logit").process(message(frame), IMAGES).messages
    assert set(published) == set(IMAGES) - {pipeline.MASK}


def test_changed_settings_apply_to_next_frame(detector: Detector, frame: np.ndarray) -> None:
    running = make(detector, threshold=2.0)
    assert array(running.process(message(frame), [pipeline.MASK]).messages[pipeline.MASK]).max() == 0
    running.settings = make(detector, threshold=-1.0).settings
    assert array(running.process(message(frame), [pipeline.MASK]).messages[pipeline.MASK]).min() == 255


def test_frame_size_may_change_between_frames(detector: Detector, frame: np.ndarray) -> None:
    running = make(detector)
    for pixels in (frame, frame[:40, :100].copy(), frame):
        published = running.process(message(pixels), [pipeline.LABELS])
        assert (array(published.messages[pipeline.LABELS]) == detector.detect(pixels, []).labels).all()


def test_bad_frame_is_refused_and_next_frame_is_processed(detector: Detector, frame: np.ndarray) -> None:
    running, bad = make(detector), message(frame)
    bad.data = bad.data[:100]
    with pytest.raises(FrameError):
        running.process(bad, [pipeline.LABELS])
    assert running.process(message(frame), [pipeline.LABELS]).messages


def test_score_without_thresholds_resolves_to_no_threshold(detector: Detector) -> None:
    defaults = {parameter.name: parameter.default for parameter in PARAMETERS}
    live = live_parameters({**defaults, "score": "energy"})
    assert pipeline.resolve(live, detector.bundle).score == "energy"
    assert pipeline.resolve(live, detector.bundle).threshold is None


def test_alarms_per_minute_select_the_threshold(tmp_path: Path) -> None:
    table = ThresholdTable("camvid", {0.01: 0.5}).with_alarms({1.0: AlarmThreshold(0.8, "my drive")})
    bundle = plain_bundle(tmp_path / "bundle", thresholds={"void": table})
    defaults = {parameter.name: parameter.default for parameter in PARAMETERS} | {"score": "void"}
    for targets, value, source in (
        ({}, 0.5, "target_fpr 0.01 on camvid"),
        ({"target_alarms_per_minute": 2.0}, 0.8, "target_alarms_per_minute 1 on my drive"),
        ({"target_alarms_per_minute": 2.0, "threshold": 0.9}, 0.9, "parameter threshold"),
    ):
        threshold = pipeline.resolve(live_parameters(defaults | targets), bundle).threshold
        assert threshold is not None and (threshold.value, threshold.source) == (value, source)
    with pytest.raises(ConfigError, match="has thresholds of 'void' only for 1"):
        pipeline.resolve(live_parameters({**defaults, "target_alarms_per_minute": 0.5}), bundle)


def test_read_ego_mask_with_file_empty_path_and_missing_file(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "ego.png"), np.full((4, 6), 255, np.uint8))
    mask = pipeline.read_ego_mask(str(tmp_path / "ego.png"))
    assert mask is not None and mask.shape == (4, 6)
    assert pipeline.read_ego_mask("") is None
    with pytest.raises(ConfigError, match=r"'ego_mask': '.*absent\.png' cannot be read"):
        pipeline.read_ego_mask(str(tmp_path / "absent.png"))


def test_overlay_is_rgb_image_of_input_size(detector: Detector, frame: np.ndarray) -> None:
    picture = rgb_from_image(make(detector).process(message(frame), [pipeline.OVERLAY]).messages[pipeline.OVERLAY])
    assert picture.shape == (64, 128, 3)


def test_failing_output_does_not_stop_other_outputs(
    detector: Detector, frame: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = make(detector, threshold=0.5)
    topics = (*IMAGES, pipeline.CAMERA_INFO)
    good = running.process(message(frame), topics, [CameraInfo(width=160, height=90)])
    assert set(good.messages) == set(topics) and not good.failed
    monkeypatch.delattr(cv2, "addWeighted")  # an OpenCV without a function of the overlay
    monkeypatch.setattr(conversions, "compressed_from_array", lambda *_, **__: pytest.fail("there is no overlay"))
    sizeless = CameraInfo(k=[80.0, 0, 79.5, 0, 80.0, 44.5, 0, 0, 1.0])
    published = running.process(message(frame), topics, [sizeless])
    assert set(published.messages) == {pipeline.LABELS, pipeline.SCORE, pipeline.MASK}
    assert all(published.messages[topic].data == good.messages[topic].data for topic in published.messages)
    assert set(published.failed) == {pipeline.OVERLAY, pipeline.OVERLAY_COMPRESSED, pipeline.CAMERA_INFO}
    assert "unexpected AttributeError" in published.failed[pipeline.OVERLAY] and "addWeighted" in str(published.failed)
    assert "its size is 0x0" in published.failed[pipeline.CAMERA_INFO]


def test_failing_encoder_drops_only_compressed_overlay(
    detector: Detector, frame: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cv2, "imencode", lambda *_: (False, None))
    published = make(detector).process(message(frame), IMAGES[3:])
    assert set(published.messages) == {pipeline.OVERLAY}
    assert "could not encode" in published.failed[pipeline.OVERLAY_COMPRESSED]


def info_at(sec: int, focal_px: float, width: int = 160) -> CameraInfo:
    header = Header(stamp=Time(sec=sec, nanosec=34), frame_id="front")
    return CameraInfo(header=header, width=width, height=90, k=[focal_px, 0, 79.5, 0, focal_px, 44.5, 0, 0, 1.0])


def test_camera_info_is_matched_by_stamp(detector: Detector, frame: np.ndarray) -> None:
    running = make(detector, output_size="source")

    def focal_px(*infos: CameraInfo) -> float:
        return running.process(message(frame), [pipeline.CAMERA_INFO], infos).messages[pipeline.CAMERA_INFO].k[0]

    assert focal_px(info_at(11, 70.0), info_at(12, 80.0), info_at(13, 90.0)) == 80.0
    fixed = info_at(0, 60.0)
    fixed.header.stamp = Time()
    assert focal_px(fixed, info_at(12, 80.0)) == 80.0 and focal_px(info_at(11, 70.0), fixed) == 60.0


@pytest.mark.parametrize(
    ("infos", "reason"),
    [
        ([info_at(11, 70.0)], "no CameraInfo has the frame's stamp 12.000000034, the newest has 11.000000034"),
        ([info_at(12, 80.0, width=320)], "CameraInfo is for 320x90 pixels, the frame has 160x90"),
    ],
)
def test_mismatched_camera_info_is_refused_with_reason(
    detector: Detector, frame: np.ndarray, infos: list[CameraInfo], reason: str
) -> None:
    published = make(detector).process(message(frame), [pipeline.CAMERA_INFO, pipeline.LABELS], infos)
    assert set(published.messages) == {pipeline.LABELS} and reason in published.failed[pipeline.CAMERA_INFO]


def test_binned_and_cropped_camera_info_is_accepted(detector: Detector, frame: np.ndarray) -> None:
    info = info_at(12, 80.0, width=640)
    info.height, info.binning_x, info.binning_y = 480, 2, 2
    info.roi.width, info.roi.height = 320, 180
    assert not make(detector).process(message(frame), [pipeline.CAMERA_INFO], [info]).failed


def noisy(count: int) -> list[np.ndarray]:
    """Return frames of coarse noise, so that scores differ from place to place and from frame to frame."""
    coarse = np.random.default_rng(1).integers(0, 256, (count, 9, 16, 3), dtype=np.uint8)
    return [cv2.resize(grid, (160, 90), interpolation=cv2.INTER_NEAREST) for grid in coarse]


@pytest.mark.parametrize("kind", ["exponential", "warped"])
def test_temporal_filter_can_change_live_and_uses_stamps(detector: Detector, kind: str) -> None:
    one, two = noisy(2)
    plain = [detector.detect(frame, ["void"]).scores["void"] for frame in (one, two)]
    wanted = [pipeline.SCORE, pipeline.MASK]
    running = make(detector, threshold=0.05)
    assert (array(running.process(message(one), wanted).messages[pipeline.SCORE]) == plain[0]).all()
    running.settings = make(detector, threshold=0.05, temporal_filter=kind, filter_time_constant_s=0.2).settings
    running.process(message(one, tenths=1), wanted)
    messages = running.process(message(two, tenths=3), wanted).messages
    scores, past = array(messages[pipeline.SCORE]), math.exp(-1)
    assert np.abs(scores - plain[1]).max() > 1e-5
    if kind == "exponential":
        assert scores == pytest.approx(past * plain[0] + (1 - past) * plain[1], abs=1e-7)
    assert (array(messages[pipeline.MASK]) == np.where(scores > np.float32(0.05), 255, 0)).all()
    running.forget_past()
    assert (array(running.process(message(two, tenths=4), wanted).messages[pipeline.SCORE]) == plain[1]).all()
    running.settings = make(detector, threshold=0.05).settings
    assert (array(running.process(message(one, tenths=5), wanted).messages[pipeline.SCORE]) == plain[0]).all()


def test_temporal_filter_includes_ignored_pixels(detector: Detector) -> None:
    one, two = noisy(2)
    running = make(detector, region_of_interest=[0.0, 0.5, 1.0, 1.0], temporal_filter="exponential")
    running.process(message(one), [pipeline.SCORE])
    scores = array(running.process(message(two, tenths=1), [pipeline.SCORE]).messages[pipeline.SCORE])
    assert (scores[:32] == 0).all() and (scores[32:] > 0).all()
    running.settings = make(detector, temporal_filter="exponential").settings
    grown = array(running.process(message(two, tenths=2), [pipeline.SCORE]).messages[pipeline.SCORE])
    assert np.abs(grown - detector.detect(two, ["void"]).scores["void"])[:32].max() > 1e-5


def test_outputs_without_filtering_equal_detector_byte_for_byte(detector: Detector) -> None:
    running = make(detector, threshold=0.05)
    for tenths, frame in enumerate(noisy(3)):
        published = running.process(message(frame, tenths), IMAGES).messages
        outputs = detector.detect(frame, ["void"])
        mask = anomaly_mask(outputs.scores["void"], 0.05)
        resized = np.asarray(cv2.resize(frame, (128, 64), interpolation=cv2.INTER_LINEAR), np.uint8)
        picture = overlay(resized, outputs.labels, mask, palette(detector.bundle.contract.classes))
        expected: tuple[Any, ...] = (outputs.labels, outputs.scores["void"], mask, picture)
        for topic, pixels in zip(IMAGES[:4], expected, strict=True):
            assert bytes(published[topic].data) == pixels.tobytes()


def test_n_of_m_alarms_appear_in_mask_and_overlay_once_confirmed(painted: Bundle) -> None:
    detector = open_detector(painted)
    there, wanted = street()[0], [pipeline.OVERLAY, pipeline.MASK]
    nothing = np.full_like(there, (0, 0, 255))
    at_once = make(detector).process(message(there), wanted).messages
    running = make(detector, min_component_px=20, alarm_frames_n=2, alarm_frames_m=3)
    frames = (there, nothing, there)
    published = [running.process(message(frame, tenths), wanted).messages for tenths, frame in enumerate(frames)]
    assert array(at_once[pipeline.MASK]).any() and not array(published[0][pipeline.MASK]).any()
    assert published[0][pipeline.OVERLAY].data != at_once[pipeline.OVERLAY].data
    for topic in wanted:
        assert published[2][topic].data == at_once[topic].data
    running.settings = make(detector).settings
    running.forget_past()
    assert running.process(message(there, 3), wanted).messages[pipeline.MASK].data == at_once[pipeline.MASK].data


def test_failing_filter_drops_only_score_outputs(
    detector: Detector, frame: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(cv2, "DISOpticalFlow_create")  # an OpenCV without it
    published = make(detector, temporal_filter="warped").process(message(frame), IMAGES)
    assert set(published.messages) == {pipeline.LABELS} and set(published.failed) == set(IMAGES[1:])
    assert "DISOpticalFlow_create" in published.failed[pipeline.SCORE]
