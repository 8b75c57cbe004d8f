"""The table of scores: the stated properties of each score hold, and its two formulas are equal."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from anomseg_ros.core.types import ScoreMap
from anomseg_ros.errors import ConfigError
from anomseg_ros.scores import (
    SCORES,
    check_scores,
    confidence_score,
    default_scores,
    find_score,
    fitted_names,
    reference_score,
    score_facts,
    start_fits,
    threshold_of,
)
from anomseg_ros.scores.score import ANOMALY, IMAGE, MISTAKE, FeatureMaps, Given

ROOT = Path(__file__).resolve().parents[2]

# One pixel, two known classes with logits ln 3 and 0 (p = .75, .25), and a void class.
LOGITS = np.array([np.log(3.0), 0.0, np.log(4.0)], np.float64).reshape(3, 1, 1)


CHANNELS = 16
FEATURES = [
    FeatureMaps((np.random.default_rng(seed).normal(size=(CHANNELS, 12, 14)).astype(np.float32),), (48, 56))
    for seed in range(3)
]
"""Maps with one feature per 4 x 4 pixels. They extend below the frame of random_logits."""
PICTURE = np.random.default_rng(9).normal(size=(3, 84, 84)).astype(np.float32)


def features_for(name: str, maps: FeatureMaps[npt.NDArray[np.floating]]) -> FeatureMaps[npt.NDArray[np.floating]]:
    """Return the maps that a score chooses, among features and the frame itself."""
    chosen, (height_px, width_px) = find_score(name).choose_features(("encoder", "decoder")), maps.padded_px
    picture = PICTURE[:, :height_px, :width_px]
    return FeatureMaps(tuple(picture if one == IMAGE else maps.maps[0] for one in chosen), maps.padded_px)


def random_logits(classes: int, seed: int = 3, scale: float = 12.0) -> npt.NDArray[np.float32]:
    """Return logits (classes, 40, 56) with regions, similar to those of trained networks."""
    generator = np.random.default_rng(seed)
    coarse = generator.normal(scale=scale, size=(classes, 5, 7)).repeat(8, 1).repeat(8, 2)
    return (coarse + generator.normal(size=coarse.shape)).astype(np.float32)


def fitted_of(name: str, known: int) -> dict[str, npt.NDArray[np.floating]]:
    """Return the tensors of a score, fitted on other logits; empty for a score without tensors."""
    fit = find_score(name).start_fit(known)
    if fit is None:
        return {}
    for seed in (10, 11):
        fit.add(Given(random_logits(known, seed), features=features_for(name, FEATURES[seed - 10])))
    return fit.tensors()


def evidence_of(name: str, logits: npt.NDArray[np.floating]) -> npt.NDArray[np.floating] | None:
    """Return evidence (C, H, W) for a score that needs it: other values than the logits."""
    return np.sin(np.roll(logits, 5, axis=2)) if find_score(name).needs_evidence else None


def score_of(name: str, logits: npt.NDArray[np.floating], void_class: int | None, temperature: float = 1.0) -> ScoreMap:
    known = len(logits) - (void_class is not None)
    evidence = evidence_of(name, logits)
    given = features_for(name, FEATURES[2])
    return reference_score(name, logits, void_class, temperature, fitted_of(name, known), given, evidence)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("msp", 0.25),
        ("max_logit", -np.log(3.0)),
        ("max_entropy", -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))),
        ("energy", -np.log(4.0)),
        ("void", 0.5),
        # S = 3 and 1 of the known classes, 4 of void; the evidence is 2 and 5.
        ("rba", -(np.tanh(3.0) + np.tanh(1.0))),
        ("rba_sum", -3.0),
        ("mask_msp", -2.0),
        ("mask_max_entropy", -3.0 * np.log(3.0)),
        ("mask_energy", -np.log(np.exp(3.0) + np.exp(1.0))),
        ("mask_void", 4.0),
        ("mask_max_logit", -5.0),
    ],
)
def test_score_equals_the_manual_value(name: str, expected: float) -> None:
    evidence = np.array([2.0, 5.0, 9.0]).reshape(3, 1, 1)
    score = reference_score(name, LOGITS, void_class=2, evidence=evidence)
    assert score.dtype == np.float32 and score.shape == (1, 1)
    assert score[0, 0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("msp", 1 - np.sqrt(3) / (np.sqrt(3) + 1)),
        ("max_logit", -np.log(3.0)),
        ("energy", -2 * np.log(np.sqrt(3) + 1)),
        ("void", 2 / (np.sqrt(3) + 1 + 2)),
    ],
)
def test_score_at_temperature_2_equals_the_manual_value(name: str, expected: float) -> None:
    assert reference_score(name, LOGITS, void_class=2, temperature=2.0)[0, 0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("void_class", [None, 19, 7])
@pytest.mark.parametrize("temperature", [1.0, 2.3])
def test_graph_equals_the_reference(name: str, void_class: int | None, temperature: float) -> None:
    """Check the contract of every score on logits as large as those of trained networks."""
    if void_class is None and find_score(name).needs_void:
        pytest.skip("needs a void class")
    classes = 19 if void_class is None else 20
    score, logits, fitted = find_score(name), random_logits(classes), fitted_of(name, 19)
    constants = {key: torch.from_numpy(value) for key, value in fitted.items()}
    pixels = torch.from_numpy(logits)[None]
    known_outputs = [index for index in range(classes) if index != void_class]
    known, array = pixels[:, known_outputs], evidence_of(name, logits.astype(np.float64))
    evidence = None if array is None else torch.from_numpy(array[None, known_outputs].astype(np.float32))
    void = None if void_class is None else pixels[:, void_class]
    given_maps = features_for(name, FEATURES[2])
    features = FeatureMaps(tuple(torch.from_numpy(map_)[None] for map_ in given_maps.maps), given_maps.padded_px)
    given = Given(known, void, temperature, constants, evidence=evidence)
    fused = score.frame_graph(score.pixel_graph(given), constants, features)
    double = logits.astype(np.float64)
    reference = reference_score(name, double, void_class, temperature, fitted, given_maps, array)
    assert fused.shape == (1, 40, 56) and fused.dtype == torch.float32
    assert fused[0].numpy() == pytest.approx(reference, abs=1e-5, rel=1e-5)


def test_void_class_can_have_any_index() -> None:
    logits = random_logits(3)
    moved = logits[[2, 0, 1]]
    for name in SCORES:
        assert score_of(name, moved, 0) == pytest.approx(score_of(name, logits, 2)), name


def test_huge_logits_do_not_overflow() -> None:
    logits = np.full((3, 40, 56), np.array([1e4, -1e4, 0.0], np.float32).reshape(3, 1, 1))
    for name in SCORES:
        assert np.isfinite(score_of(name, logits, 2)).all(), name


def test_uniform_logits_are_the_most_anomalous() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(19, 8, 8))
    logits[:, 0, 0] = 0.0
    for name in ("msp", "max_entropy"):
        assert reference_score(name, logits).argmax() == 0
    assert reference_score("max_entropy", logits)[0, 0] == pytest.approx(np.log(19))


def test_unknown_scores_and_missing_void_class_are_refused() -> None:
    for look in (find_score, lambda name: check_scores(("msp", name), None), lambda name: start_fits((name,), 2)):
        with pytest.raises(ConfigError, match="unknown score 'entropy'; known: max_entropy"):
            look("entropy")
    for name in SCORES:
        assert find_score(name).name == name
        if find_score(name).needs_void:
            with pytest.raises(ConfigError, match=f"{name!r} needs a void class"):
                check_scores((name,), None)


@pytest.mark.parametrize("name", SCORES)
def test_stated_properties_of_a_score_hold(name: str) -> None:
    score, logits = find_score(name), random_logits(20, 1, scale=8)
    values = score_of(name, logits, 19)
    low, high = score.drawn_range(19)
    assert score.lowest <= low < high
    assert not score.bounded or (values.min() >= low - 1e-6 and values.max() <= high + 1e-6)
    assert bool((score_of(name, logits, 19, temperature=3.0) != values).any()) == score.uses_temperature
    louder = logits.copy()
    louder[19] += 4.0
    changed = score_of(name, louder, 19)
    assert bool((changed != values).any()) == score.needs_void
    assert bool((changed >= values - 1e-6).all())
    assert score.probability_of in (None, ANOMALY, MISTAKE)
    widths = [CHANNELS for _ in score.choose_features(("encoder", "decoder"))]
    score.check_fitted(fitted_of(name, 19), 19, widths)


@pytest.mark.parametrize("name", SCORES)
def test_class_change_affects_only_pixels_within_the_stated_reach(name: str) -> None:
    """Nothing changes beyond label_reach_px. A score with a reach of 0 is continuous."""
    score = find_score(name)
    logits = np.full((3, 81, 81), -20.0, np.float32)
    logits[0] = np.random.default_rng(2).normal(scale=2.0, size=(81, 81))
    if score.needs_masks:  # logits are log S
        logits[0] -= logits[0].max()
    after = logits.copy()
    logits[1, 40, 40], after[1, 40, 40] = (logits[0, 40, 40] + step for step in (-1e-5, 1e-5))
    fitted, features = fitted_of(name, 2), features_for(name, FeatureMaps((FEATURES[2].maps[0],), (84, 84)))
    changed = [
        reference_score(name, one, 2, fitted=fitted, features=features, evidence=one if score.needs_evidence else None)
        for one in (logits, after)
    ]
    rows, columns = np.nonzero(np.abs(changed[1] - changed[0]) > 3e-5 * score.steepness(fitted))
    reach = max([0, *np.abs(rows - 40), *np.abs(columns - 40)])
    assert (len(rows) > 0) == (score.label_reach_px > 0) and reach <= score.label_reach_px


def test_every_score_is_documented() -> None:
    rows = (ROOT / "docs" / "scores.md").read_text().splitlines()
    for name in SCORES:
        assert any(row.startswith(f"| `{name}` | ") for row in rows), name


NOT_SCORES = {
    ("core/labels.py", "void"),
    ("datasets/imports/write.py", "void"),
    ("commands/models.py", "void"),
    ("training", "energy"),
    ("training", "rba"),
}
NOT_SCORES |= {("metrics/protocols.py", "rba")}
"""Places where the name of a score means something else: a class, a part of a loss, a protocol."""


def test_no_other_module_contains_a_score_name() -> None:
    package = ROOT / "anomseg_ros"
    files = [path for path in package.rglob("*.py") if path.parent.name != "scores"]
    for path in [*files, *(ROOT / "launch").glob("*.py")]:
        words = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        inside = path.relative_to(package).as_posix() if path in files else path.name
        named = {name for name in SCORES if name in words}
        allowed = {name for place, name in NOT_SCORES if inside == place or inside.startswith(f"{place}/")}
        assert named <= allowed, f"{inside}: {named - allowed}"


def test_default_and_confidence_scores() -> None:
    assert default_scores(with_void=True) == ("void", "max_logit", "msp", "max_entropy")
    assert default_scores(with_void=False) == ("max_logit", "msp", "max_entropy")
    assert confidence_score() == "msp"


def test_recorded_score_has_a_range_and_no_probability() -> None:
    facts = score_facts("recorded")
    assert facts.drawn_range(19) == (0.0, 1.0) and facts.probability_of is None and not facts.bounded


def test_natural_threshold_replaces_a_missing_calibration(painted) -> None:  # type: ignore[no-untyped-def]
    void = threshold_of(painted, "void", 0.01)
    assert void is not None and (void.value, void.calibrated) == (0.5, False)
    assert threshold_of(painted, "max_logit", 0.01) is None


def test_score_without_tensors_cannot_be_fitted() -> None:
    assert fitted_names() == [name for name in SCORES if find_score(name).fitted_shapes(2, (4,))]
    with pytest.raises(ConfigError, match="score 'msp' has nothing to fit; those that have: sml, cdnp, cluster_ratio"):
        start_fits(("sml", "msp"), 19)


@pytest.mark.parametrize("name", fitted_names())
@pytest.mark.parametrize("fault", ["absent", "fewer", "more", "shape", "not finite", "empty"])
def test_invalid_fitted_tensors_are_refused(name: str, fault: str) -> None:
    fitted = {key: value.copy() for key, value in fitted_of(name, 19).items()}
    first, widths = next(iter(fitted)), [CHANNELS for _ in find_score(name).choose_features(("encoder", "decoder"))]
    message = f"score '{name}'.*run `anomseg calibrate score"
    if fault == "absent":
        fitted, message = {}, "is not fitted to this checkpoint: run `anomseg calibrate score"
    elif fault == "fewer":
        del fitted[first]
    elif fault == "more":
        fitted["other"] = fitted[first]
    elif fault == "shape":
        fitted[first], message = fitted[first][None], "it was fitted to another network; run"
    elif fault == "not finite":
        fitted[first].flat[0], message = np.nan, "is not finite everywhere"
    elif fault == "empty":
        fitted[first] = fitted[first][:0]
    with pytest.raises(ConfigError, match=message):
        find_score(name).check_fitted(fitted, 19, widths)
