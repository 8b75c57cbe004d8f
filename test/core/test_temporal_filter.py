from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from anomseg_ros.core.temporal_filter import EXPONENTIAL, NO_FILTER, WARPED, FilterSpec, FrameFlow, ScoreFilter
from anomseg_ros.errors import ConfigError

SHAPE = (64, 128)
FRAME = np.zeros((*SHAPE, 3), np.uint8)
TENTH_S = 100_000_000
E = math.exp(-0.5)
"""Weight of the past after half a time constant, which is 0.1 s here."""

SLOW = FilterSpec(EXPONENTIAL, 0.2)


def flat(value: float) -> np.ndarray:
    return np.full(SHAPE, value, np.float32)


def texture(shift_px: int) -> np.ndarray:
    """Return a blurred pattern, uint8 (H, W, 3), that is shifted to the right by shift_px."""
    noise = np.random.default_rng(0).integers(0, 256, (SHAPE[0], SHAPE[1] + 64), dtype=np.uint8)
    smooth = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX)
    return cv2.cvtColor(smooth[:, 32 - shift_px : 32 - shift_px + SHAPE[1]], cv2.COLOR_GRAY2RGB)


def test_no_filter_returns_the_same_array() -> None:
    scores = flat(1.0)
    assert ScoreFilter().filtered(FilterSpec(NO_FILTER), "void", 0, scores, FRAME) is scores


@pytest.mark.parametrize(
    ("kind", "constant_s", "message"),
    [
        ("kalman", 0.1, "'kalman'; known: "),
        (EXPONENTIAL, 0.0, "is 0.0; expected"),
        (WARPED, math.inf, "is inf"),
        (WARPED, 60.0, "is 60.0; expected 0.01 to 10 seconds"),
    ],
)
def test_invalid_filters_are_refused(kind: str, constant_s: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FilterSpec(kind, constant_s)


def test_exponential_filter_follows_stamps_not_frames() -> None:
    running = ScoreFilter()
    assert (running.filtered(SLOW, "void", TENTH_S, flat(0.0), FRAME) == 0).all()
    after = running.filtered(SLOW, "void", 2 * TENTH_S, flat(1.0), FRAME)
    assert after == pytest.approx(1 - E)
    after = running.filtered(SLOW, "void", 4 * TENTH_S, flat(1.0), FRAME)  # one frame was dropped
    assert after == pytest.approx(1 - E**3) and after.dtype == np.float32
    given = flat(0.5)
    running.filtered(SLOW, "void", 5 * TENTH_S, given, FRAME)
    assert (given == 0.5).all()


@pytest.mark.parametrize("kind", [EXPONENTIAL, WARPED])
@pytest.mark.parametrize(
    ("stamp_ns", "score", "shape", "spec"),
    [
        (TENTH_S, "void", SHAPE, {}),  # the same stamp
        (TENTH_S // 2, "void", SHAPE, {}),  # back
        (12 * TENTH_S, "void", SHAPE, {"time_constant_s": 5.0}),  # a gap of more than a second
        (2 * TENTH_S, "void", SHAPE, {"time_constant_s": 0.01}),  # ten time constants
        (2 * TENTH_S, "max_logit", SHAPE, {}),
        (2 * TENTH_S, "void", (32, 64), {}),
    ],
    ids=["same stamp", "stamp back", "gap", "many constants", "score", "size"],
)
def test_filter_restarts_after_a_change(
    kind: str, stamp_ns: int, score: str, shape: tuple[int, int], spec: dict[str, float]
) -> None:
    running = ScoreFilter()
    used = FilterSpec(kind, **{"time_constant_s": 0.2, **spec})
    running.filtered(used, "void", TENTH_S, flat(0.0), FRAME)
    assert (running.filtered(used, score, stamp_ns, np.ones(shape, np.float32), FRAME) == 1).all()


def test_filter_restarts_after_reset_off_or_non_finite_scores() -> None:
    running = ScoreFilter()
    broken = flat(np.nan)
    for forget in (
        running.reset,
        lambda: running.filtered(FilterSpec(NO_FILTER), "void", TENTH_S, flat(0.0), FRAME),
        lambda: running.filtered(SLOW, "void", TENTH_S + 1, broken, FRAME),
    ):
        running.filtered(SLOW, "void", TENTH_S, flat(0.0), FRAME)
        forget()
        assert (running.filtered(SLOW, "void", 2 * TENTH_S, flat(1.0), FRAME) == 1).all()


def test_warped_filter_moves_past_scores_with_the_scene() -> None:
    shift_px = 8
    before, after = (np.zeros(SHAPE, np.float32) for _ in range(2))
    before[20:40, 40:60] = 1
    after[20:40, 40 + shift_px : 60 + shift_px] = 1
    results = {}
    for kind in (EXPONENTIAL, WARPED):
        running = ScoreFilter()
        running.filtered(FilterSpec(kind, 0.2), "void", TENTH_S, before, texture(0))
        results[kind] = running.filtered(FilterSpec(kind, 0.2), "void", 2 * TENTH_S, after, texture(shift_px))
    inside, left = np.s_[24:36, 44 + shift_px : 56 + shift_px], np.s_[24:36, 40:46]
    assert results[WARPED][inside].min() > 0.99 and results[WARPED][left].max() < 0.01
    assert results[EXPONENTIAL][left].min() == pytest.approx(E)  # smeared
    assert results[WARPED][:, :4] == pytest.approx(after[:, :4], abs=1e-6)


def test_flow_is_scaled_to_the_scores_and_marks_pixels_in_view() -> None:
    flow = FrameFlow(*SHAPE)
    large = [np.asarray(cv2.resize(texture(shift), (512, 256)), np.uint8) for shift in (0, 6)]
    places = flow.between(*map(flow.small, large))
    x, y = np.meshgrid(np.arange(SHAPE[1]), np.arange(SHAPE[0]))
    middle = np.s_[10:-10, 16:-16]
    assert places[..., 0][middle] == pytest.approx(x[middle] - 6, abs=0.5)
    assert places[..., 1][middle] == pytest.approx(y[middle], abs=0.5)
    seen = flow.in_view(places)
    assert not seen[10:-10, :4].any() and seen[middle].all()
    still = flow.between(flow.small(large[0]), flow.small(large[0]))
    assert (still[..., 0] == x).all() and (still[..., 1] == y).all()
