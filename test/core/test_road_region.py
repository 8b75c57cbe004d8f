"""The road region in drawn label images and in the outputs of a detector."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from painted_frames import HORIZON_PX, street

from anomseg_ros.backends import open_detector
from anomseg_ros.core.bundle import Bundle
from anomseg_ros.core.labels import CAMVID, CITYSCAPES
from anomseg_ros.core.road_region import GRID_WIDTH_PX, OBJECT_HEIGHT, RoadRegion, limited_scores, road_region
from anomseg_ros.errors import ConfigError

ROAD, SIDEWALK, BUILDING, VOID = 0, 1, 2, 255
HEIGHT, WIDTH, HORIZON = 512, 1024, 240
REGION = RoadRegion("road", (ROAD,))


def road_labels(half_top: int = 30, half_bottom: int = 400) -> np.ndarray:
    """Return labels of a straight road, a trapezoid from the horizon to the lower edge, between buildings."""
    labels = np.full((HEIGHT, WIDTH), BUILDING, np.uint8)
    middle = WIDTH // 2
    corners = [(middle - half_top, HORIZON), (middle + half_top, HORIZON)]
    corners += [(middle + half_bottom, HEIGHT - 1), (middle - half_bottom, HEIGHT - 1)]
    cv2.fillConvexPoly(labels, np.array(corners, np.int32), ROAD)
    return labels


def find_region(labels: np.ndarray, region: RoadRegion = REGION) -> np.ndarray:
    mask = region.find(labels)
    assert (
        mask is not None and mask.shape == labels.shape and mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 255}
    )
    return mask > 0


def test_region_has_the_road_without_areas_above_or_far_beside_it() -> None:
    labels = road_labels()
    inside = find_region(labels)
    assert inside[labels == ROAD].all()
    assert not inside[: HORIZON - 20].any() and not inside[: HEIGHT // 2, :100].any()
    assert inside.mean() < 0.5


@pytest.mark.parametrize(
    ("name", "box"),
    [
        ("in the middle", np.s_[380:440, 480:560]),
        ("at the lower edge", np.s_[430:512, 440:600]),
        ("at the road's left edge", np.s_[400:450, 180:300]),
        ("small and far", np.s_[256:264, 508:520]),
        ("across the whole road", np.s_[330:380, 0:1024]),
    ],
)
def test_object_on_the_road_is_inside(name: str, box: tuple[slice, slice]) -> None:
    whole = road_labels()
    on_road = np.zeros_like(whole, bool)
    on_road[box] = whole[box] == ROAD
    for label in (VOID, BUILDING):  # for any label that the network gives it
        labels = whole.copy()
        labels[box] = label
        assert find_region(labels)[on_road].all(), name


def test_object_beside_the_road_is_inside_up_to_the_object_height() -> None:
    labels = road_labels()
    foot, left, right = 400, 150, 200  # the foot is on the road, the rest above the road in these columns
    top_row = int(np.flatnonzero(labels[:, right] == ROAD)[0])
    tall = round(OBJECT_HEIGHT * (top_row - HORIZON))
    labels[top_row - tall : foot, left:right] = VOID
    inside = find_region(labels)
    assert inside[top_row - tall + 8 : top_row, right - 4 : right].all()
    assert not inside[: HORIZON - 20, left:right].any()


def test_blocked_road_is_extended_upwards() -> None:
    labels = road_labels()
    labels[:420] = VOID  # a wall over 420 of the 512 rows
    inside = find_region(labels)
    assert inside[360:420, 512].all() and not inside[:300].any()


def test_several_road_parts_are_inside_and_specks_are_not() -> None:
    labels = road_labels()
    labels[300:, 640:720] = BUILDING  # a median
    labels[10:20, 900:910] = ROAD
    inside = find_region(labels)
    assert inside[200:][labels[200:] == ROAD].all() and not inside[:100].any()


def test_sidewalk_is_inside_if_the_region_includes_it() -> None:
    labels = road_labels(half_bottom=200)
    labels[400:, 800:1000] = SIDEWALK
    both = RoadRegion("road_and_sidewalk", (ROAD, SIDEWALK))
    assert not find_region(labels)[450:, 850:950].any() and find_region(labels, both)[450:, 850:950].all()


def test_no_road_or_a_speck_gives_no_region() -> None:
    labels = np.full((HEIGHT, WIDTH), BUILDING, np.uint8)
    assert REGION.find(labels) is None
    labels[500:510, 100:200] = ROAD  # 0.2 % of the frame
    assert REGION.find(labels) is None
    assert find_region(np.full((HEIGHT, WIDTH), ROAD, np.uint8)).all()


@pytest.mark.parametrize("size", [(7, 5), (64, 128), (333, 517), (1, GRID_WIDTH_PX), (1080, 1920), (2, 4000)])
def test_region_has_any_label_size(size: tuple[int, int]) -> None:
    labels = np.full(size, ROAD, np.uint8)
    assert find_region(labels).all()


def test_region_uses_the_road_classes_of_the_bundle(painted: Bundle) -> None:
    contract = painted.contract
    assert road_region("none", contract) is None
    assert road_region("road", contract) == RoadRegion("road", (0,))
    assert road_region("road_and_sidewalk", contract) == RoadRegion("road_and_sidewalk", (0, 1))
    camvid = replace(contract, classes=CAMVID)
    assert road_region("road", camvid) == RoadRegion("road", (3,))
    assert road_region("road_and_sidewalk", camvid) == RoadRegion("road_and_sidewalk", (3, 4))


def test_missing_class_and_unknown_region_are_refused(painted: Bundle) -> None:
    with pytest.raises(ConfigError, match="bundle 'painted' has no class 'sidewalk' or 'pavement', but road; choose"):
        road_region("road_and_sidewalk", replace(painted.contract, classes=CITYSCAPES[:1]))
    with pytest.raises(ConfigError, match="has no class 'road' or 'road line', but none"):
        road_region("road", replace(painted.contract, classes=()))
    with pytest.raises(ConfigError, match="unknown road region 'raod'; known: road"):
        road_region("raod", painted.contract)


def test_scores_outside_the_region_get_the_given_value() -> None:
    scores = np.arange(8, dtype=np.float32).reshape(2, 4)
    region = np.array([[255, 0]], np.uint8)
    limited = limited_scores(scores, region, -20.0)
    assert limited.dtype == np.float32 and (limited == [[0, 1, -20, -20], [4, 5, -20, -20]]).all()
    assert limited_scores(scores, None, -20.0) is scores


def test_detector_returns_the_road_region(painted: Bundle) -> None:
    detector = open_detector(painted)
    frame, anomaly = street()
    plain = detector.detect(frame)
    assert plain.region is None
    outputs = detector.detect(frame, ("void",), labels=False, road=REGION)
    assert outputs.labels is None and set(outputs.scores) == {"void"}
    assert (outputs.scores["void"] == plain.scores["void"]).all()  # scores still cover the whole frame
    assert (
        outputs.region is not None and outputs.region[anomaly > 0].all() and not outputs.region[: HORIZON_PX - 8].any()
    )
    twice = np.asarray(cv2.resize(frame, None, fx=2, fy=2), np.uint8)
    large = detector.detect(twice, (), road=REGION, source_size=True)
    assert large.labels is not None and large.region is not None and large.region.shape == (256, 512)
    assert large.region[::2, ::2] == pytest.approx(outputs.region)
    assert detector.detect(street(road=False)[0], road=REGION).region is None
