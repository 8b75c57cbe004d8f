"""Anomaly scores: one table that says of each score what it means, its range and its formulas.

A score has two formulas: a reference in numpy, here, and one in torch for the exported graph, in
networks/score_graphs.py. A contract test over the table holds every pair equal. Nothing else knows a score by name.

References take logits z, float (C, H, W), of the known classes only, unless `needs_void` says that the void class is
part of the formula; they return float (H, W), higher = more anomalous. p = softmax(z / T).

Sources: MSP Hendrycks and Gimpel 2016 with the temperature of Guo et al. 2017 (paper MiDE eq. 2); max-logit Hendrycks
et al. 2022 (MiDE eq. 3, no temperature); maximum entropy Chan et al. 2020 (MiDE eq. 4); energy Liu et al. 2020; void
classifier (PTQ 4.4, MiDE eq. 5).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from anomseg_ros.core.types import ScoreMap
from anomseg_ros.errors import ConfigError, unknown_name

Logits = npt.NDArray[np.floating]

UNBOUNDED = (-20.0, 0.0)
"""Drawn range of scores without bounds: where the logits of trained road-scene networks live."""


def log_sum_exp(z: Logits) -> Logits:
    """Return log sum exp over the first axis, shifted by the maximum so that it cannot overflow."""
    peak = z.max(axis=0)
    return np.asarray(peak + np.log(np.exp(z - peak).sum(axis=0)))


def softmax(z: Logits) -> Logits:
    """Return softmax over the first axis."""
    exponentials = np.exp(z - z.max(axis=0))
    return np.asarray(exponentials / exponentials.sum(axis=0))


def msp(z: Logits, temperature: float = 1.0) -> Logits:
    """1 - max p, in [0, 1)."""
    return np.asarray(1.0 - softmax(z / temperature).max(axis=0))


def max_logit(z: Logits, temperature: float = 1.0) -> Logits:
    """-max z; the temperature does not enter."""
    return np.asarray(-z.max(axis=0))


def max_entropy(z: Logits, temperature: float = 1.0) -> Logits:
    """-sum p log p in nats, in [0, ln C]; computed from log p so that p = 0 gives 0."""
    scaled = z / temperature
    log_p = scaled - log_sum_exp(scaled)
    return np.asarray(-(np.exp(log_p) * log_p).sum(axis=0))


def energy(z: Logits, temperature: float = 1.0) -> Logits:
    """-T log sum exp(z / T)."""
    return np.asarray(-temperature * log_sum_exp(z / temperature))


def void(known: Logits, void_logit: Logits, temperature: float = 1.0) -> Logits:
    """Probability of the void class, in (0, 1)."""
    return np.asarray(softmax(np.concatenate([known, void_logit[None]]) / temperature)[-1])


@dataclass(frozen=True)
class Score:
    """What there is to know of one score.

    meaning: the formula, for people. reference: the function of numpy; with needs_void it takes the known classes'
    logits and the void class's apart. graph: "module:function" of torch, see networks/score_graphs.py.
    uses_temperature: whether T enters, so that a threshold depends on it. drawn_range: (lowest, highest) for C known
    classes, in which it is drawn. bounded: whether it cannot leave that range. probability_of: the event that it is a
    probability of, "anomaly" or "mistake" (of the predicted class), whose calibration error can be measured.
    natural_threshold: what stands for a threshold before any is calibrated.
    """

    meaning: str
    reference: Callable[..., Logits]
    graph: str
    needs_void: bool = False
    uses_temperature: bool = True
    drawn_range: Callable[[int], tuple[float, float]] = lambda known: (0.0, 1.0)
    bounded: bool = True
    probability_of: str | None = None
    natural_threshold: float | None = None


_GRAPHS = "anomseg_ros.networks.score_graphs"

SCORES: dict[str, Score] = {
    "msp": Score("1 - max p", msp, f"{_GRAPHS}:msp", probability_of="mistake", natural_threshold=0.5),
    "max_logit": Score(
        "-max z",
        max_logit,
        f"{_GRAPHS}:max_logit",
        uses_temperature=False,
        drawn_range=lambda known: UNBOUNDED,
        bounded=False,
    ),
    "max_entropy": Score(
        "-sum p log p", max_entropy, f"{_GRAPHS}:max_entropy", drawn_range=lambda known: (0.0, float(np.log(known)))
    ),
    "energy": Score(
        "-T log sum exp(z / T)",
        energy,
        f"{_GRAPHS}:energy",
        drawn_range=lambda known: UNBOUNDED,
        bounded=False,
    ),
    "void": Score(
        "probability of the void class",
        void,
        f"{_GRAPHS}:void",
        needs_void=True,
        probability_of="anomaly",
        natural_threshold=0.5,
    ),
}

_FOREIGN = Score("as recorded", max_logit, "", bounded=False)

SCORE_NAMES = tuple(SCORES)
CONFIDENCE_SCORE = "msp"
"""The score that is 1 - confidence in the predicted class."""
DEFAULT_SCORES = ("max_logit", "msp", "max_entropy")
"""What export puts into a graph, the default score first, where none are asked for; behind `void` with a void class."""


def score_facts(name: str) -> Score:
    """Return what the table says of a score; of one that no graph of ours computed, a recorded map, almost nothing."""
    return SCORES.get(name, _FOREIGN)


def check_score_names(names: tuple[str, ...], void_class: int | None) -> None:
    """Raise ConfigError for an unknown score, or for one that needs a void class without one."""
    for name in names:
        if name not in SCORES:
            raise ConfigError(unknown_name("score", name, SCORES))
        if SCORES[name].needs_void and void_class is None:
            raise ConfigError(f"score {name!r} needs a void class: say which output it is (--void-class 19)")


def reference_score(name: str, logits: Logits, void_class: int | None = None, temperature: float = 1.0) -> ScoreMap:
    """Return one score of logits (C, H, W) over all classes; `void_class` is the index of the void class, if any."""
    check_score_names((name,), void_class)
    known = logits if void_class is None else np.delete(logits, void_class, axis=0)
    parts = (known, logits[void_class]) if SCORES[name].needs_void else (known,)
    return SCORES[name].reference(*parts, temperature).astype(np.float32)
