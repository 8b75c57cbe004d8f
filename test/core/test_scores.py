from __future__ import annotations

import numpy as np
import pytest

from anomseg_ros.core.scores import SCORE_NAMES, SCORES, check_score_names, reference_score
from anomseg_ros.errors import ConfigError

# One pixel, two known classes with logits ln 3 and 0 (p = .75, .25), and a void class.
LOGITS = np.array([np.log(3.0), 0.0, np.log(4.0)], np.float64).reshape(3, 1, 1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("msp", 0.25),
        ("max_logit", -np.log(3.0)),
        ("max_entropy", -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))),
        ("energy", -np.log(4.0)),
        ("void", 0.5),
    ],
)
def test_values_by_hand(name: str, expected: float) -> None:
    score = reference_score(name, LOGITS, void_class=2)
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
def test_temperature_two(name: str, expected: float) -> None:
    assert reference_score(name, LOGITS, void_class=2, temperature=2.0)[0, 0] == pytest.approx(expected, rel=1e-6)


def test_the_void_class_may_stand_anywhere() -> None:
    moved = LOGITS[[2, 0, 1]]
    for name in SCORE_NAMES:
        assert reference_score(name, moved, void_class=0) == pytest.approx(reference_score(name, LOGITS, void_class=2))


def test_huge_logits_do_not_overflow() -> None:
    logits = np.array([1e4, -1e4, 0.0], np.float32).reshape(3, 1, 1)
    for name in SCORE_NAMES:
        assert np.isfinite(reference_score(name, logits, void_class=2)).all(), name


def test_uniform_logits_are_the_most_anomalous() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(19, 8, 8))
    logits[:, 0, 0] = 0.0
    for name in ("msp", "max_entropy"):
        assert reference_score(name, logits).argmax() == 0
    assert reference_score("max_entropy", logits)[0, 0] == pytest.approx(np.log(19))


def test_names_are_checked() -> None:
    with pytest.raises(ConfigError, match="unknown score 'entropy'; known: max_entropy"):
        check_score_names(("msp", "entropy"), None)
    for name in SCORE_NAMES:
        if SCORES[name].needs_void:
            with pytest.raises(ConfigError, match=f"{name!r} needs a void class"):
                check_score_names((name,), None)


@pytest.mark.parametrize("name", SCORE_NAMES)
def test_what_the_table_states_of_a_score_is_true_of_its_formula(name: str) -> None:
    generator = np.random.default_rng(1)
    score, logits = SCORES[name], generator.normal(scale=8, size=(20, 40, 40))
    values = reference_score(name, logits, void_class=19)
    low, high = score.drawn_range(19)
    assert not score.bounded or (values.min() >= low - 1e-6 and values.max() <= high + 1e-6)
    warmer = reference_score(name, logits, void_class=19, temperature=3.0)
    assert bool((warmer != values).any()) == score.uses_temperature
    louder = logits.copy()
    louder[19] += 4.0
    changed = reference_score(name, louder, void_class=19)
    assert bool((changed != values).any()) == score.needs_void
    assert bool((changed >= values - 1e-6).all())
    assert score.probability_of in (None, "anomaly", "mistake")
