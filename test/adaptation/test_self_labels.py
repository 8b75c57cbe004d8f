"""Labels of a drive by its own network: limits per class, time, and what is strange."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from adaptation_runs import small_request
from small_bundles import small_network

from anomseg_ros.adaptation.input_frames import known_classes
from anomseg_ros.adaptation.self_labels import (
    SelfLabelConfig,
    SelfLabelled,
    class_limits,
    disagreement,
    kept_labels,
    label_drive,
)
from anomseg_ros.core.labels import KNOWN_UNCERTAIN
from anomseg_ros.core.pixel_files import read_label
from anomseg_ros.networks import build_network


def test_rare_classes_keep_their_most_confident_pixels() -> None:
    counts = np.zeros((3, 256), np.int64)
    counts[0, 250:] = 100  # common and confident: the limit is `sure`
    counts[1, [100, 110, 120]] = 1, 1, 1  # rare and never sure
    limits = class_limits(counts, share=0.66, sure=0.9)
    assert limits == (0.9, 110 / 255, 0.9)
    labels, confidence = np.array([[0, 1, 1, 2, 255]], np.uint8), np.array([[228, 109, 110, 0, 0]], np.uint8)
    kept = kept_labels(labels, confidence, np.asarray(limits, np.float32))
    assert kept.tolist() == [[KNOWN_UNCERTAIN, KNOWN_UNCERTAIN, 1, KNOWN_UNCERTAIN, 255]]


def moved(shift_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a textured scene and its labels, moved to the right."""
    noise = np.random.default_rng(5).integers(0, 256, (64, 160, 3), np.uint8)
    texture = cv2.GaussianBlur(noise, (0, 0), 2)
    labels = np.zeros((64, 160), np.uint8)
    labels[20:40, 60:90] = 7
    return np.roll(texture, shift_px, 1)[:, 16:-16].copy(), np.roll(labels, shift_px, 1)[:, 16:-16].copy()


def test_a_moved_thing_agrees_with_itself_and_a_flicker_does_not() -> None:
    (image, labels), (beside, beside_labels) = moved(4), moved(0)
    assert disagreement(image, labels, beside, beside_labels).mean() < 0.02
    flickers = labels.copy()
    flickers[45:60, 20:60] = 3
    found = disagreement(image, flickers, beside, beside_labels)
    assert found[45:60, 20:60].mean() > 0.8 and found.mean() < 0.15


def test_pixels_whose_look_changed_have_no_vote() -> None:
    image, labels = moved(0)
    beside = image.copy()
    beside[10:30, 10:30] = 255 - beside[10:30, 10:30] // 4
    others = np.full_like(labels, 9)
    assert disagreement(image, labels, image, others).all()
    assert disagreement(image, labels, beside, others)[12:28, 12:28].mean() < 0.3


def test_strange_pixels_and_the_own_vehicle_are_not_used(tmp_path: Path) -> None:
    request = small_request(tmp_path)
    drive, folder = request.drive_request(request.bundle), tmp_path / "labels"
    networks, config = [small_network("mide_net")], SelfLabelConfig(scales=(0.5, 1.0), share=1.0, sure=0.0)
    told: list[int] = []
    summary = label_drive(drive, -1.0, (3, 5), networks, config, folder, lambda *now: told.append(now[1]))
    assert summary.unused == 1.0 and told == [0, 1, 2], "every pixel is above the threshold"
    everything = label_drive(drive, 2.0, (3, 5), networks, config, tmp_path / "all")
    assert everything.unused == 0 and everything.labelled + everything.uncertain == pytest.approx(1, abs=1e-3)
    classes, spec = known_classes(request.bundle.contract), request.bundle.contract.input
    labelled = SelfLabelled(tmp_path / "all", request.drive, (3, 5), spec, classes, everything.limits)
    frame = labelled.load(1)
    assert len(labelled) == 2 and frame.id == labelled.frame_id(1) == "005" and frame.image.shape == (64, 128, 3)
    assert frame.labels is not None and set(np.unique(frame.labels)) <= {*range(19), KNOWN_UNCERTAIN}
    disagrees = read_label(tmp_path / "all" / "000005_disagrees.png") > 0
    assert (frame.labels[disagrees] == KNOWN_UNCERTAIN).all()


def test_frames_that_are_labelled_are_not_labelled_again(tmp_path: Path) -> None:
    request = small_request(tmp_path)
    drive, folder = request.drive_request(request.bundle), tmp_path / "labels"
    first = label_drive(drive, 0.5, (1, 2), [small_network("mide_net")], SelfLabelConfig(), folder)
    assert label_drive(drive, 0.5, (1, 2), [], SelfLabelConfig(), folder) == first, "no network is asked"


def test_a_teachers_views_are_averaged_with_the_networks(tmp_path: Path) -> None:
    request = small_request(tmp_path)
    drive, network = request.drive_request(request.bundle), small_network("mide_net")
    alone = label_drive(drive, 2.0, (1,), [network], SelfLabelConfig(), tmp_path / "alone")
    same = label_drive(drive, 2.0, (1,), [network, network], SelfLabelConfig(), tmp_path / "same")
    other = label_drive(
        drive, 2.0, (1,), [network, build_network("mide_net", 20).eval()], SelfLabelConfig(), tmp_path / "o"
    )
    assert same == alone and other != alone
