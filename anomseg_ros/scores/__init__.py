"""The table of anomaly scores. Each score is one file; the rest of the package asks the table and knows no names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from anomseg_ros.core.bundle import Bundle, Contract
from anomseg_ros.core.score_scale import ScoreScale, score_scale
from anomseg_ros.core.table import class_of
from anomseg_ros.core.thresholds import Threshold, alarm_threshold
from anomseg_ros.core.types import ScoreMap
from anomseg_ros.errors import ConfigError, unknown_name
from anomseg_ros.scores.score import MISTAKE, Array, FeatureMaps, Fit, Given, Score, ScoreFacts

SCORES: dict[str, str] = {
    "msp": "anomseg_ros.scores.msp:Msp",
    "max_logit": "anomseg_ros.scores.max_logit:MaxLogit",
    "max_entropy": "anomseg_ros.scores.max_entropy:MaxEntropy",
    "energy": "anomseg_ros.scores.energy:Energy",
    "void": "anomseg_ros.scores.void:Void",
    "sml": "anomseg_ros.scores.sml:Sml",
    "cdnp": "anomseg_ros.scores.cdnp:Cdnp",
    "rba": "anomseg_ros.scores.rba:Rba",
    "rba_sum": "anomseg_ros.scores.rba_sum:RbaSum",
    "mask_void": "anomseg_ros.scores.mask_void:MaskVoid",
    "mask_msp": "anomseg_ros.scores.mask_msp:MaskMsp",
    "mask_max_logit": "anomseg_ros.scores.mask_max_logit:MaskMaxLogit",
    "mask_max_entropy": "anomseg_ros.scores.mask_max_entropy:MaskMaxEntropy",
    "mask_energy": "anomseg_ros.scores.mask_energy:MaskEnergy",
    "cluster_ratio": "anomseg_ros.scores.clusters:ClusterRatio",
    "cluster_binary": "anomseg_ros.scores.clusters:ClusterBinary",
    "cluster_mean": "anomseg_ros.scores.clusters:ClusterMean",
    "cluster_mix": "anomseg_ros.scores.clusters:ClusterMix",
    "cluster_guided": "anomseg_ros.scores.guided:ClusterGuided",
}
"""Score name -> "module:Class"."""

RECORDED = ScoreFacts()
"""The facts of a map that somebody else computed."""


def find_score(name: str) -> Score:
    """Return a score of the table; ConfigError for an unknown name, closest names first."""
    score: Score = class_of("score", name, SCORES)()
    return score


def score_facts(name: str) -> ScoreFacts:
    """Return the facts of a score, or those of a recorded map, whose name is the recorder's."""
    return find_score(name) if name in SCORES else RECORDED


def default_scores(with_void: bool) -> tuple[str, ...]:
    """Return the scores that export uses when none are asked for, the default score first."""
    ranks = {name: find_score(name).default_rank for name in SCORES if with_void or not find_score(name).needs_void}
    return tuple(sorted((name for name, rank in ranks.items() if rank is not None), key=lambda name: ranks[name] or 0))


def confidence_score() -> str:
    """Return the score that is 1 - confidence in the predicted class."""
    return next(name for name in SCORES if find_score(name).probability_of == MISTAKE)


def check_scores(names: tuple[str, ...], void_class: int | None) -> None:
    """Raise ConfigError for an unknown score, or if a score needs a void class and there is none."""
    for name in names:
        if find_score(name).needs_void and void_class is None:
            raise ConfigError(f"score {name!r} needs a void class: say which output it is (--void-class 19)")


def fitted_names() -> list[str]:
    """Return the scores that have tensors to fit."""
    return [name for name in SCORES if find_score(name).start_fit(1) is not None]


def start_fits(names: Sequence[str], known: int, options: Mapping[str, float] = MappingProxyType({})) -> dict[str, Fit]:
    """Return a Fit per score, for `known` classes.

    options: name -> value, for each Fit that has an option of that name. Raises ConfigError for a score without fitted
    tensors, an option that no Fit has, or a value out of range.
    """
    fits = {}
    for name in names:
        fit = find_score(name).start_fit(known)
        if fit is None:
            raise ConfigError(f"score {name!r} has nothing to fit; those that have: {', '.join(fitted_names())}")
        fits[name] = fit
    known_options = {option for fit in fits.values() for option in fit.options}
    for option in options:
        if option not in known_options:
            raise ConfigError(unknown_name(f"option of {', '.join(names)}", option, sorted(known_options)))
    for fit in fits.values():
        fit.choose({option: value for option, value in options.items() if option in fit.options})
    return fits


def threshold_of(bundle: Bundle, name: str, target_fpr: float, alarms_per_minute: float = 0.0) -> Threshold | None:
    """Return the bundle's calibrated threshold, else the score's natural one, if it has one.

    alarms_per_minute: above 0, it selects the threshold instead of `target_fpr`. Raises ConfigError if `target_fpr` is
    no share, or every calibrated rate, or number of alarms, is above the given one.
    """
    if alarms_per_minute > 0:
        contract = bundle.contract
        return alarm_threshold(contract.name, name, contract.thresholds.get(name), alarms_per_minute)
    natural = find_score(name).natural_threshold
    fallback = None if natural is None else Threshold(natural, f"default {natural:g}, not calibrated", False)
    return bundle.threshold(name, target_fpr) or fallback


def scale_of(contract: Contract, name: str) -> ScoreScale:
    """Return the colours of a score's maps: by the bundle's thresholds, else by the score's usual range."""
    table, facts = contract.thresholds.get(name), score_facts(name)
    thresholds = {} if table is None else table.by_target_fpr
    return score_scale(thresholds, facts.drawn_range(contract.known_count), facts.bounded)


def reference_score(
    name: str,
    logits: Array,
    void_class: int | None = None,
    temperature: float = 1.0,
    fitted: Mapping[str, Array] | None = None,
    features: FeatureMaps[Array] | None = None,
    evidence: Array | None = None,
) -> ScoreMap:
    """Return one score, float32 (H, W), by its numpy reference.

    Args:
        name: a score of the table.
        logits: float (C, H, W) of all classes.
        void_class: index of the void class, if there is one.
        temperature: T of softmax(z / T).
        fitted: the score's fitted tensors.
        features: the feature maps that the score chose.
        evidence: float (C, H, W) of all classes, see Prediction.evidence, if the score needs it.

    Raises:
        ConfigError: the score is unknown, or needs a void class and there is none.
    """
    check_scores((name,), void_class)
    known = logits if void_class is None else np.delete(logits, void_class, axis=0)
    void = None if void_class is None else logits[void_class]
    if evidence is not None and void_class is not None:
        evidence = np.delete(evidence, void_class, axis=0)
    given = Given(known, void, temperature, fitted or {}, features or FeatureMaps(), evidence)
    return find_score(name).reference(given).astype(np.float32)
