"""Anomaly scores: the reference formulas in numpy, to which every exported graph is held equal.

Every function takes logits z, float (C, H, W), of the known classes only, and returns float32 (H, W), higher = more
anomalous. p = softmax(z / T). `void` alone takes the logits of all classes.

Sources: MSP Hendrycks and Gimpel 2016 with the temperature of Guo et al. 2017 (paper MiDE eq. 2); max-logit Hendrycks
et al. 2022 (MiDE eq. 3, no temperature); maximum entropy Chan et al. 2020 (MiDE eq. 4); energy Liu et al. 2020; void
classifier (PTQ 4.4, MiDE eq. 5).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from anomseg_ros.core.types import ScoreMap
from anomseg_ros.errors import ConfigError, unknown_name

Logits = npt.NDArray[np.floating]


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


SCORES: dict[str, Callable[[Logits, float], Logits]] = {
    "msp": msp,
    "max_logit": max_logit,
    "max_entropy": max_entropy,
    "energy": energy,
}

SCORE_NAMES = (*SCORES, "void")


def check_score_names(names: tuple[str, ...], void_class: int | None) -> None:
    """Raise ConfigError for an unknown score, or for `void` without a void class."""
    for name in names:
        if name not in SCORE_NAMES:
            raise ConfigError(unknown_name("score", name, SCORE_NAMES))
    if "void" in names and void_class is None:
        raise ConfigError("score 'void' needs a void class: say which output it is (--void-class 19)")


def reference_score(name: str, logits: Logits, void_class: int | None = None, temperature: float = 1.0) -> ScoreMap:
    """Return one score of logits (C, H, W) over all classes; `void_class` is the index of the void class, if any."""
    check_score_names((name,), void_class)
    if name == "void":
        return softmax(logits / temperature)[void_class].astype(np.float32)
    known = logits if void_class is None else np.delete(logits, void_class, axis=0)
    return SCORES[name](known, temperature).astype(np.float32)
