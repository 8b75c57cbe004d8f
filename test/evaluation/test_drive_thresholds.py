"""Thresholds from a drive without labels hold on the part that is held back, or the difference is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dataset_trees import write
from drives import write_pictures
from painted_frames import BLUE, GREEN, HEIGHT_PX, OLIVE, RED, WIDTH_PX, painted_bundle

from anomseg_ros.backends import open_detector
from anomseg_ros.core.bundle import Bundle, load_bundle
from anomseg_ros.core.preprocess import resized_scores
from anomseg_ros.core.road_region import road_region
from anomseg_ros.datasets.unlabelled_drive import open_drive
from anomseg_ros.errors import MetricError
from anomseg_ros.evaluation.drive_thresholds import DriveRequest, calibrate_on_drive, split_blocks


@pytest.mark.slow
@pytest.mark.parametrize(("count", "blocks"), [(20, 1), (100, 1), (180, 2), (1000, 10), (100_000, 10)])
def test_a_third_is_held_back_in_blocks(count: int, blocks: int) -> None:
    used, held_back = split_blocks(count)
    assert sorted((*used, *held_back)) == list(range(count))
    assert len(held_back) == pytest.approx(count / 3, abs=1 + count / 100)
    starts = [frame for frame in held_back if frame - 1 not in held_back]
    assert len(starts) == blocks and 0 in used and count - 1 in used


def test_rates_are_those_of_the_detector(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle, drive = load_bundle(tiny_bundle), open_drive([write_pictures(tmp_path / "street", 24)])
    found = calibrate_on_drive(DriveRequest(bundle, drive, ("void", "max_logit"), (0.05, 0.01)))
    assert (found.used, found.held_back, found.roadless) == (16, 8, 0)
    assert [(rate.change.score, rate.change.target_fpr) for rate in found.rates] == [
        *(("void", 0.01), ("void", 0.05)),
        *(("max_logit", 0.01), ("max_logit", 0.05)),
    ]
    assert all(rate.holds and rate.change.achieved_fpr <= rate.change.target_fpr for rate in found.rates)
    detector = open_detector(bundle)
    for rate in found.rates:
        name = rate.change.score
        above = [
            resized_scores(detector.detect(drive.load(index).image, [name]).scores[name], 48, 96)
            > np.float32(rate.change.threshold)
            for index in range(8, 16)
        ]
        assert rate.fpr == pytest.approx(float(np.mean(above))) and rate.change.detected is None


def painted_drive(folder: Path, marked: range, patch: tuple[int, int, int] = GREEN) -> Path:
    """Write 30 frames of road below buildings. Each has an olive patch of 64 pixels in the sky; those of `marked` have
    a patch of 128 pixels as well."""
    for number in range(30):
        frame = np.full((HEIGHT_PX, WIDTH_PX, 3), BLUE, np.uint8)
        frame[60:, 40:216] = RED
        frame[4:12, 8:16] = OLIVE
        if number in marked:
            frame[20:28, 20:36] = patch
        write(folder / f"{number}.png", frame)
    return folder


def request_of(bundle: Bundle, folder: Path, rate: float = 0.005) -> DriveRequest:
    return DriveRequest(bundle, open_drive([folder]), ("void",), (rate,))


def test_other_road_in_the_part_held_back_is_told(tmp_path: Path) -> None:
    bundle = painted_bundle(tmp_path / "painted")
    (same,) = calibrate_on_drive(request_of(bundle, painted_drive(tmp_path / "same", range(30)))).rates
    assert same.holds and same.fpr == same.change.achieved_fpr == pytest.approx(128 / (HEIGHT_PX * WIDTH_PX))
    (other,) = calibrate_on_drive(request_of(bundle, painted_drive(tmp_path / "other", range(10, 20)), 0.001)).rates
    assert other.change.achieved_fpr == 0 and other.fpr == pytest.approx(128 / (HEIGHT_PX * WIDTH_PX))
    assert not other.holds and other.ratio == pytest.approx(3.9, abs=0.01)


def test_only_pixels_of_the_region_count(tmp_path: Path) -> None:
    bundle = painted_bundle(tmp_path / "painted")
    request = request_of(bundle, painted_drive(tmp_path / "drive", range(30)))
    on_road = calibrate_on_drive(replace(request, road=road_region("road", bundle.contract)))
    assert on_road.rates[0].fpr == 0 and on_road.rates[0].change.threshold < 0.5 and on_road.roadless == 0
    mask = np.zeros((HEIGHT_PX, WIDTH_PX), np.uint8)
    mask[16:] = 255
    masked = replace(request, drive=open_drive([tmp_path / "drive"], ego_mask=mask))
    (rate,) = calibrate_on_drive(replace(masked, target_fprs=(0.02,))).rates
    assert rate.fpr == pytest.approx(64 / (16 * WIDTH_PX))
    mask[:] = 255
    with pytest.raises(MetricError, match="no known pixel"):
        calibrate_on_drive(replace(masked, drive=open_drive([tmp_path / "drive"], ego_mask=mask)))


def test_frames_without_a_road_are_counted(tmp_path: Path) -> None:
    bundle = painted_bundle(tmp_path / "painted")
    for number in range(20):
        write(tmp_path / "drive" / f"{number}.png", np.full((HEIGHT_PX, WIDTH_PX, 3), BLUE, np.uint8))
    request = replace(request_of(bundle, tmp_path / "drive"), road=road_region("road", bundle.contract))
    assert calibrate_on_drive(request).roadless == 20


def test_too_few_frames_are_refused_before_any_is_read(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "street", 19)
    (folder / "0.png").write_bytes(b"")
    message = "the drive has 19 frames; thresholds need at least 20, and hundreds are better: give a longer drive"
    with pytest.raises(MetricError, match=message):
        calibrate_on_drive(request_of(load_bundle(tiny_bundle), folder))
