from __future__ import annotations

import numpy as np
import pytest

from anomseg_ros.core.anomaly_marks import anomaly_color
from anomseg_ros.core.labels import CAMVID, CITYSCAPES, VOID, ClassInfo, palette
from anomseg_ros.core.picture_legend import class_legend, score_bar, with_class_legend, with_score_bar
from anomseg_ros.core.score_scale import color_map, score_scale

SCALE = score_scale({0.05: 0.1, 0.01: 0.4, 0.001: 0.8}, (0.0, 1.0), bounded=True)
OWN = (ClassInfo("Straße", (10, 20, 200), 0), ClassInfo("道路", (200, 90, 0), 1), ClassInfo("x" * 60, (1, 99, 33), 2))


def count(picture: np.ndarray, color: tuple[int, ...]) -> int:
    return int((picture == np.array(color)).all(axis=-1).sum())


@pytest.mark.parametrize("width", [200, 640, 1280, 2048])
@pytest.mark.parametrize("classes", [(*CITYSCAPES, VOID), CAMVID, OWN, ()])
def test_every_class_has_a_swatch(classes: tuple[ClassInfo, ...], width: int) -> None:
    strip = class_legend(classes, width)
    assert strip.shape[1:] == (width, 3)
    known = [info for info in classes if info is not VOID]
    assert all(count(strip, info.color) >= 40 for info in known)
    assert count(strip, anomaly_color(palette(classes))) >= 10
    assert count(class_legend(classes, width, anomalies=False), anomaly_color(palette(classes))) == 0


def test_pixels_of_no_known_class_are_explained_where_there_can_be_any() -> None:
    """They keep the frame's own colour, so the swatch is empty: an outline alone."""
    width, outline = 2048, (120, 120, 120)
    with_void, without = class_legend((*CAMVID, VOID), width), class_legend(CAMVID, width)
    swatch = count(without, outline) / len(CAMVID)
    # All have one size. Smoothed letters have a few pixels of this grey, too, how many depends on OpenCV's version.
    assert count(with_void, outline) - count(without, outline) == pytest.approx(swatch, rel=0.2)


def test_the_picture_is_kept_above_the_legend() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (90, 640, 3), dtype=np.uint8)
    for taller in (with_class_legend(picture, CAMVID), with_score_bar(picture, SCALE, "void", 0.4)):
        assert taller.shape[0] > 90 and (taller[:90] == picture).all()


@pytest.mark.parametrize("width", [120, 640, 1280])
def test_the_bar_has_the_colours_and_a_tick_at_each_threshold(width: int) -> None:
    strip = score_bar(SCALE, "void", width)
    rows = strip[len(strip) // 3 : 2 * len(strip) // 3]
    assert count(strip, tuple(color_map()[0])) and count(strip, tuple(color_map()[255]))
    middle = [int(x) for x in np.flatnonzero((rows == 240).all(axis=-1).any(axis=0))]
    for place in (0.25, 0.5, 0.75):
        assert any(abs(x - place * width) < 0.05 * width + 2 for x in middle)


def test_the_threshold_of_the_mask_is_marked() -> None:
    plain, marked = score_bar(SCALE, "void", 640), score_bar(SCALE, "void", 640, 0.4)
    changed = np.flatnonzero((plain != marked).any(axis=(0, 2)))
    assert 315 <= changed.min() <= 325
