"""The accumulator compared with scikit-learn; merging, saving, constant memory and valid bounds."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from anomseg_ros.errors import MetricError
from anomseg_ros.metrics.curve import FPR_RULES, FprRule
from anomseg_ros.metrics.pixel_curves import PixelCurves

LIMITS = settings(max_examples=80, deadline=None, derandomize=True)
FLOAT32 = st.one_of(
    st.floats(
        width=32, allow_nan=False, allow_infinity=False
    ),  # any magnitude, with denormal numbers and negative zero
    st.floats(0, 1, width=32),
    st.sampled_from([0.0, -0.0, 0.25, 0.5, 1.0, -3.0]),  # ties
)


@st.composite
def frames(draw: st.DrawFn, both: bool = True) -> Any:
    """Draw scores float32 and labels (1, N). both: with at least one known and one anomalous pixel."""
    size = draw(st.integers(2, 80))
    kind = draw(st.sampled_from(["mixed", "ties", "constant"]))
    values = {"mixed": FLOAT32, "ties": st.sampled_from([-1.0, 0.0, 0.5]), "constant": st.just(0.5)}[kind]
    scores = draw(hnp.arrays(np.float32, (1, size), elements=values))
    labels = draw(hnp.arrays(np.uint8, (1, size), elements=st.sampled_from([0, 1, 1, 255, 7])))
    if both:
        labels[0, :2] = [0, 1]
    return scores, labels


def curves_of(*pairs: Any, **options: Any) -> PixelCurves:
    curves = PixelCurves(**options)
    for scores, labels in pairs:
        curves.add(scores, labels)
    return curves


def random_frames(count: int, size: tuple[int, int] = (30, 40), seed: int = 0) -> Any:
    generator = np.random.default_rng(seed)
    for _ in range(count):
        labels = generator.choice(np.array([0, 1, 255], np.uint8), size, p=[0.8, 0.1, 0.1])
        logits = generator.normal(-3, 2, size) + 2 * (labels == 1)
        yield (1 / (1 + np.exp(-logits))).astype(np.float32), labels


def sklearn_figures(scores: Any, labels: Any) -> dict[str, float]:
    counted = labels <= 1
    # Double precision, because scikit-learn does not convert single precision.
    truth, values = labels[counted], scores[counted].astype(np.float64)
    fpr, tpr, _ = roc_curve(truth, values, drop_intermediate=False)
    true, false = tpr * (truth == 1).sum(), fpr * (truth == 0).sum()
    return {
        "auprc": average_precision_score(truth, values),
        "auroc": roc_auc_score(truth, values),
        "interpolated": float(np.interp(0.95, *roc_curve(truth, values)[1::-1])),
        "first_at_least": float(fpr[np.argmax(tpr >= 0.95)]),
        "first_above": float(fpr[np.argmax(tpr > 0.95)]),
        "f1": float((2 * true / (true + false + (truth == 1).sum())).max()),
    }


def our_figures(curves: PixelCurves) -> Any:
    curve = curves.curve()
    rules = {rule: curve.fpr_at_recall(rule=rule) for rule in get_args(FprRule) if rule != "nearest"}
    return {"auprc": curve.average_precision(), "auroc": curve.auroc(), "f1": curve.best_f1(), **rules}


@LIMITS
@given(frames())
def test_figures_equal_scikit_learn(frame: Any) -> None:
    ours = our_figures(curves_of(frame))
    for name, value in sklearn_figures(*frame).items():
        assert ours[name].value == pytest.approx(value, abs=1e-12), name
        assert ours[name].bound == 0


@LIMITS
@given(frames())
def test_float16_figures_are_exact(frame: Any) -> None:
    scores = np.clip(frame[0], -60000, 60000).astype(np.float16)
    half = curves_of((scores, frame[1]))
    assert half == curves_of((scores.astype(np.float32), frame[1]))
    for name, value in sklearn_figures(scores, frame[1]).items():
        assert our_figures(half)[name].value == pytest.approx(value, abs=1e-12), name


@LIMITS
@given(frames(), st.integers(2, 40))
def test_exact_figure_is_within_the_bound(frame: Any, max_bins: int) -> None:
    curves = curves_of(frame, max_bins=max_bins)
    assert curves.known.keys.size <= max_bins
    ours = our_figures(curves)
    for name, value in sklearn_figures(*frame).items():
        assert abs(ours[name].value - value) <= ours[name].bound + 1e-12, name


@pytest.mark.parametrize("rule", FPR_RULES)
def test_every_fpr_rule_is_within_its_bound(rule: Any) -> None:
    pairs = list(random_frames(8))
    exact = curves_of(*pairs, exact=True).curve().fpr_at_recall(rule=rule)
    for max_bins in (20, 200, 2000):
        coarse = curves_of(*pairs, max_bins=max_bins).curve().fpr_at_recall(rule=rule)
        assert 0 < coarse.bound < 0.5
        assert abs(coarse.value - exact.value) <= coarse.bound + 1e-12


def test_fpr_rules_differ_for_ties_at_the_recall() -> None:
    labels = np.array([[1] * 20 + [0] * 20], np.uint8)
    scores = np.array([[0.9, 0.8, 0.7, 0.6] * 5 + [0.85, 0.65, 0.6, 0.1] * 5], np.float32)
    curve = curves_of((scores, labels)).curve()
    assert curve.fpr_at_recall(rule="interpolated").value == pytest.approx(0.70)
    assert curve.fpr_at_recall(rule="first_at_least").value == pytest.approx(0.75)


def test_merging_is_associative_and_commutative_for_any_split() -> None:
    pairs = list(random_frames(7))
    whole = curves_of(*pairs, max_bins=100)
    assert whole.known.shift > 0  # the bins were coarsened
    for order in itertools.islice(itertools.permutations(range(7)), 0, 5040, 500):
        a, b, c = (curves_of(*(pairs[i] for i in part), max_bins=100) for part in (order[:1], order[1:3], order[3:]))
        assert a.merge(b).merge(c) == a.merge(b.merge(c)) == c.merge(a).merge(b) == whole
        assert PixelCurves.merged([b, c, a]) == whole
    assert whole != curves_of(*pairs[:6], max_bins=100)


def test_merging_keeps_the_parts_and_accepts_more_frames() -> None:
    one, two, three = ((s, y) for s, y in random_frames(3))
    a, b = curves_of(one), curves_of(two)
    union = a.merge(b)
    union.add(*three)
    assert a == curves_of(one)
    assert b == curves_of(two)
    assert union == curves_of(one, two, three)


def test_reading_between_frames_changes_nothing() -> None:
    pairs = list(random_frames(4))
    curves = PixelCurves(max_bins=64)
    for count, pair in enumerate(pairs, 1):
        curves.add(*pair)
        assert curves.curve().positives == sum(int((y == 1).sum()) for _, y in pairs[:count])
    assert curves == curves_of(*pairs, max_bins=64)


def test_accumulators_of_different_modes_do_not_merge() -> None:
    with pytest.raises(MetricError, match="max_bins None and 64"):
        PixelCurves(exact=True).merge(PixelCurves(max_bins=64))


@pytest.mark.parametrize("options", [{}, {"exact": True}, {"max_bins": 50}])
def test_saved_and_pickled_accumulators_are_equal_and_continue(tmp_path: Path, options: Any) -> None:
    first, second = random_frames(2)
    curves = curves_of(first, **options)
    curves.save(tmp_path / "curves.npz")
    loaded = PixelCurves.load(tmp_path / "curves.npz")
    assert loaded == curves == pickle.loads(pickle.dumps(curves))
    loaded.add(*second)
    assert loaded == curves_of(first, second, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["curves.npz"]


def test_damaged_or_foreign_file_error_names_it(tmp_path: Path) -> None:
    path = tmp_path / "curves.npz"
    with pytest.raises(MetricError, match=r"no file .*curves\.npz"):
        PixelCurves.load(path)
    curves_of(*random_frames(1)).save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(MetricError, match=r"curves\.npz.*not a readable"):
        PixelCurves.load(path)
    np.savez(path, kind=np.array("another"))
    with pytest.raises(MetricError, match="holds 'another'"):
        PixelCurves.load(path)
    np.savez(path, kind=np.array([{}], dtype=object))
    with pytest.raises(MetricError, match="not a readable"):
        PixelCurves.load(path)


def test_memory_does_not_grow_with_frames() -> None:
    curves = PixelCurves(max_bins=5000)
    sizes = []
    for pair in random_frames(30, (100, 100)):
        curves.add(*pair)
        sizes.append(len(pickle.dumps(curves)))
    assert curves.known_px > 200_000
    assert max(sizes) < 2 * 5000 * 12 + 2000


@pytest.mark.slow
def test_default_bounds_are_below_1e_5_for_a_million_scores() -> None:
    pairs = list(random_frames(3, (1000, 1000)))
    curves = curves_of(*pairs)
    assert curves.known.shift > 0
    exact = our_figures(curves_of(*pairs, exact=True))
    for name, figure in our_figures(curves).items():
        assert 0 <= figure.bound < 1e-5
        assert abs(figure.value - exact[name].value) <= figure.bound


def test_exact_mode_keeps_every_distinct_score() -> None:
    scores = np.arange(1, 3_000_001, dtype=np.float32).reshape(1000, 3000)
    curves = curves_of((scores, np.zeros_like(scores, np.uint8)), exact=True)
    assert curves.known.shift == 0
    assert curves.known.keys.size == 3_000_000
    np.testing.assert_array_equal(curves.known.highest_scores(), scores.ravel())


def test_best_f1_threshold_gives_the_best_f1() -> None:
    scores, labels = next(random_frames(1))
    best = curves_of((scores, labels)).curve().best_f1()
    flagged = scores >= best.threshold
    true = int((flagged & (labels == 1)).sum())
    false, missed = int((flagged & (labels == 0)).sum()), int((~flagged & (labels == 1)).sum())
    assert best.value == pytest.approx(2 * true / (2 * true + false + missed), abs=1e-12)


@pytest.mark.parametrize(("value", "text"), [(np.nan, "2 NaN, 0 infinite"), (-np.inf, "0 NaN, 2 infinite")])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_non_finite_scores_are_refused_and_nothing_counted(value: Any, text: Any, dtype: Any) -> None:
    scores = np.zeros((20, 30), dtype)
    scores[3, 5] = scores[19, 29] = value
    curves = PixelCurves()
    with pytest.raises(MetricError, match=rf"2 of 600 scores .*{text}.*\(3, 5\)"):
        curves.add(scores, np.zeros((20, 30), np.uint8))
    assert curves == PixelCurves()


@pytest.mark.parametrize(
    ("scores", "labels", "text"),
    [
        (np.zeros((2, 3)), np.zeros((2, 3), np.uint8), "float64"),
        (np.zeros((2, 3), np.float32), np.zeros((2, 3), np.int64), "int64"),
        (np.zeros((2, 3), np.float32), np.zeros((3, 2), np.uint8), r"\(2, 3\), labels \(3, 2\)"),
        (np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), r"\(0, 3\)"),
    ],
)
def test_arrays_of_other_types_or_shapes_are_refused(scores: Any, labels: Any, text: str) -> None:
    with pytest.raises(MetricError, match=text):
        PixelCurves().add(scores, labels)


def test_missing_known_or_anomalous_pixels_are_an_error() -> None:
    scores = np.zeros((2, 3), np.float32)
    with pytest.raises(MetricError, match="0 anomalous pixels"):
        curves_of((scores, np.zeros((2, 3), np.uint8))).curve().average_precision()
    with pytest.raises(MetricError, match="0 known pixels"):
        curves_of((scores, np.ones((2, 3), np.uint8))).curve().auroc()
    with pytest.raises(MetricError, match="0 anomalous pixels"):
        PixelCurves().curve().average_precision()
    with pytest.raises(MetricError, match="0 anomalous pixels"):
        PixelCurves().curve().best_f1()
    assert curves_of((scores, np.ones((2, 3), np.uint8))).curve().average_precision().value == 1


def test_strided_views_count_like_their_copies() -> None:
    scores, labels = next(random_frames(1))
    view = (scores[::2, ::-1], labels[::2, ::-1])
    assert curves_of(view) == curves_of(tuple(np.ascontiguousarray(array) for array in view))
