"""The public detector: the same figures as the rest of the package, and errors that say what to do."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomseg_ros import AnomsegError, Detector, read_frames
from anomseg_ros.backends import open_detector
from anomseg_ros.core.output_files import write_image
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.core.types import Outputs, RgbImage
from anomseg_ros.scores import scale_of


@pytest.fixture(scope="module")
def frame() -> RgbImage:
    return np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector.load("enet-synthetic", threads=1)


def test_outputs_equal_those_of_the_package(detector: Detector, frame: RgbImage) -> None:
    ours = detector.detect(frame)
    theirs = open_detector(find_bundle("enet-synthetic")).detect(frame)
    assert (ours.labels == theirs.labels).all()
    assert all((ours.scores[name] == theirs.scores[name]).all() for name in detector.score_names)


def test_mask_is_where_the_score_is_above_the_threshold(detector: Detector, frame: RgbImage) -> None:
    outputs = detector.detect(frame, source_size=True)
    score = outputs.scores[detector.score_names[0]]
    mask = detector.mask(outputs)
    assert mask.shape == frame.shape[:2] and mask.dtype == np.uint8
    threshold = detector.threshold()
    assert threshold is not None and ((mask == 255) == (score > np.float32(threshold))).all()
    middle = float(np.median(score))
    assert 0 < (detector.mask(outputs, threshold=middle) > 0).mean() < 1


def test_mask_stays_on_the_road(detector: Detector, frame: RgbImage) -> None:
    outputs = detector.detect(frame)
    region = np.zeros_like(outputs.labels)
    region[: region.shape[0] // 2] = 255
    limited = Outputs(outputs.labels, outputs.scores, 0.0, region)
    assert (detector.mask(limited, threshold=-1e9) == region).all()


def test_overlay_marks_the_mask(detector: Detector, frame: RgbImage) -> None:
    outputs = detector.detect(frame, source_size=True)
    everything = np.full(frame.shape[:2], 255, np.uint8)
    plain, marked = detector.overlay(frame, outputs), detector.overlay(frame, outputs, everything)
    assert plain.shape == marked.shape == frame.shape and (plain != marked).any()


def test_pictures_have_the_frame_s_size_and_legends_below(detector: Detector, frame: RgbImage) -> None:
    outputs = detector.detect(frame)
    mask = detector.mask(outputs)
    for plain, with_legend in (
        (detector.overlay(frame, outputs, mask), detector.overlay(frame, outputs, mask, legend=True)),
        (
            detector.score_picture(frame, outputs),
            detector.score_picture(frame, outputs, legend=True, threshold=detector.threshold()),
        ),
    ):
        assert plain.shape == frame.shape and plain.dtype == np.uint8
        assert len(with_legend) > len(plain) and (with_legend[: len(plain)] == plain).all()


def test_score_picture_has_the_colours_of_the_bundle_s_thresholds(detector: Detector, frame: RgbImage) -> None:
    scale = scale_of(detector.bundle.contract, detector.score_names[0])
    values = [value for value, _ in scale.ticks]
    assert values == [detector.threshold(target_fpr=rate) for rate in (0.05, 0.01, 0.001)]
    flat = np.full((60, 90), values[1], np.float32)
    outputs = Outputs(None, {detector.score_names[0]: flat})
    assert (detector.score_picture(frame, outputs) == scale.colored(flat)).all()
    region = np.zeros((60, 90), np.uint8)
    outside = detector.score_picture(frame, Outputs(None, outputs.scores, 0.0, region))
    assert (outside == scale.colored(np.zeros((60, 90), np.float32))).all()


def test_classes_and_scores_are_named(detector: Detector) -> None:
    assert detector.class_names[0] == "road" and "max_logit" in detector.score_names


def test_context_closes_the_backend() -> None:
    class Closing(Detector):
        closed = False

        def close(self) -> None:
            super().close()
            self.closed = True

    with Closing.load("enet-synthetic", threads=1) as opened:
        assert isinstance(opened, Closing) and not opened.closed
    assert opened.closed


def test_frames_are_read_in_order(frame: RgbImage, tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_image(tmp_path / f"{name}.png", frame)
    assert [(name, (image == frame).all()) for name, image in read_frames(tmp_path)] == [("a", True), ("b", True)]


def test_wrong_use_says_what_to_do(detector: Detector, tiny_bundle: Path, frame: RgbImage) -> None:
    with pytest.raises(AnomsegError, match=r"nor a shipped bundle; did you mean 'enet-synthetic'\? shipped: enet-syn"):
        Detector.load("enet-synthetik")
    with pytest.raises(AnomsegError, match="unknown backend 'onnx'; known: onnxruntime"):
        Detector.load("enet-synthetic", backend="onnx")
    with pytest.raises(AnomsegError, match=r"hold no score 'msp', only \['max_logit'\]; ask detect for it"):
        detector.mask(detector.detect(frame, ["max_logit"]), "msp")
    with pytest.raises(AnomsegError, match="hold no labels; ask detect for them"):
        detector.overlay(frame, detector.detect(frame, labels=False))
    with pytest.raises(AnomsegError, match=r"hold no score 'msp', only \['max_logit'\]; ask detect for it"):
        detector.score_picture(frame, detector.detect(frame, ["max_logit"]), "msp")
    plain = Detector.load(tiny_bundle, threads=1)
    with pytest.raises(AnomsegError, match="no threshold for the score 'max_logit': give threshold=, or find one"):
        plain.mask(plain.detect(frame), "max_logit")
    with pytest.raises(AnomsegError, match="target_fpr 2: expected a share of the known pixels, 0 to 1"):
        detector.threshold(target_fpr=2)
    with pytest.raises(AnomsegError, match="non-empty uint8"):
        detector.detect(frame[:, :, 0])


def test_one_score_may_be_given_by_its_name(detector: Detector, frame: RgbImage) -> None:
    assert list(detector.detect(frame, "max_logit").scores) == ["max_logit"]
    with pytest.raises(AnomsegError, match=r"unknown score 'max'; known: .*max_logit"):
        detector.detect(frame, "max")


@pytest.mark.parametrize("given", ["x.jpg", None])
def test_what_is_no_frame_is_refused(detector: Detector, given: Any) -> None:
    what = f"uint8 .* RGB array, got {type(given).__name__}; .read_frames.path.. reads files"
    with pytest.raises(AnomsegError, match=what):
        detector.detect(given)
    with pytest.raises(AnomsegError, match="takes paths of images, folders and videos, got NoneType"):
        read_frames(None)  # type: ignore[arg-type]


def test_closed_detector_says_so(frame: RgbImage) -> None:
    with Detector.load("enet-synthetic", threads=1) as opened:
        pass
    with pytest.raises(AnomsegError, match=r"'enet-synthetic' is closed; detect before .close., and inside the .with."):
        opened.detect(frame)


def test_arguments_in_the_wrong_place_are_refused(detector: Detector, frame: RgbImage) -> None:
    given: Any = frame
    for call in (detector.mask, partial(detector.overlay, frame), partial(detector.score_picture, frame)):
        with pytest.raises(AnomsegError, match=r"expected the outputs of .detect., got ndarray; call"):
            call(given)
    with pytest.raises(AnomsegError, match=r"a score is given by its name, such as '.*', got 0.01"):
        detector.threshold(0.01)  # type: ignore[arg-type]
    with pytest.raises(AnomsegError, match=r"target_fpr '0.01': expected a share"):
        detector.threshold(target_fpr="0.01")  # type: ignore[arg-type]


@pytest.mark.parametrize("source_size", [False, True])
def test_frames_and_masks_of_other_sizes_are_refused(detector: Detector, frame: RgbImage, source_size: bool) -> None:
    outputs = detector.detect(frame, source_size=source_size)
    mask = detector.mask(outputs)
    for draw in (partial(detector.overlay, mask=mask), detector.score_picture):
        with pytest.raises(AnomsegError, match=r"the frame is \(30, 90\), the outputs are of a frame of \(60, 90\)"):
            draw(frame[:30], outputs)
    wrong_masks: tuple[Any, ...] = (mask[:10], mask > 0, "mask.png")
    for wrong in wrong_masks:
        with pytest.raises(AnomsegError, match=r"a mask must be a uint8 array of .*; give that of .detector.mask."):
            detector.overlay(frame, outputs, wrong)
