"""cDNP compared with the formula of the paper and all distances computed explicitly."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import distance
from scipy.special import logsumexp

from anomseg_ros.errors import ConfigError
from anomseg_ros.scores.cdnp import CANDIDATES_PER_FRAME, REFERENCES, Cdnp
from anomseg_ros.scores.score import FeatureMaps, Given

GENERATOR = np.random.default_rng(1)
FITTED = {
    "references": GENERATOR.normal(size=(30, 4)),
    "parametric": np.array([-9.0, 1.0]),
    "distance": np.array([2.5]),
}


def test_score_is_the_sum_of_both_scaled_parts() -> None:
    """There is one feature per pixel, so the distances are not resized."""
    logits, features = GENERATOR.normal(size=(3, 6, 8)), GENERATOR.normal(size=(4, 6, 8))
    given = Given(logits, fitted=FITTED, features=FeatureMaps((features,), (6, 8)))
    distances = distance.cdist(features.reshape(4, -1).T, FITTED["references"])
    nearest = np.sort(distances, axis=1)[:, :3].mean(axis=1).reshape(6, 8)
    expected = (-logsumexp(logits, axis=0) + 9.0) / 10.0 + nearest / 2.5
    assert Cdnp().reference(given) == pytest.approx(expected)


def test_distant_features_score_higher_than_fitted_ones() -> None:
    features = np.repeat(FITTED["references"].mean(axis=0)[:, None], 16, axis=1).reshape(4, 4, 4)
    features[:, 0, 0] += 100.0
    given = Given(np.zeros((2, 8, 8)), fitted=FITTED, features=FeatureMaps((features,), (8, 8)))
    score = Cdnp().reference(given)
    assert score.argmax() == 0 and score[0, 0] > 50 and score[4:, 4:].max() < 3


def test_features_of_the_encoder_are_chosen() -> None:
    assert Cdnp().choose_features(("early", "encoder", "decoder")) == ("encoder",)
    assert Cdnp().choose_features(("encoder",)) == ("encoder",)


def test_fit_samples_references_and_measures_ranges_on_others() -> None:
    fit, logits = Cdnp().start_fit(3), []
    frames = [GENERATOR.normal(size=(4, 30, 40)).astype(np.float32) for _ in range(3)]
    for frame in frames:
        logits.append(GENERATOR.normal(size=(3, 60, 80)))
        fit.add(Given(logits[-1], features=FeatureMaps((frame,), (60, 80))))
    found = fit.tensors()
    references = found["references"]
    assert references.shape == (REFERENCES, 4) and 3 * CANDIDATES_PER_FRAME > REFERENCES
    pixels = np.concatenate([frame.reshape(4, -1).T for frame in frames])
    assert {tuple(one) for one in references} <= {tuple(one) for one in pixels}
    parametric = [-logsumexp(one, axis=0) for one in logits]
    assert found["parametric"] == pytest.approx([np.min(parametric), np.max(parametric)], rel=1e-5)
    others = np.sort(distance.cdist(pixels, references), axis=1)[:, :3].mean(axis=1)
    assert 0.3 * others.max() < found["distance"][0] <= others.max() + 1e-6


def test_small_fit_excludes_the_distance_of_a_feature_to_itself() -> None:
    fit, frame = Cdnp().start_fit(3), GENERATOR.normal(size=(4, 3, 3)).astype(np.float32)
    fit.add(Given(np.zeros((3, 6, 6)), features=FeatureMaps((frame,), (6, 6))))
    found = fit.tensors()
    distances = np.sort(distance.cdist(frame.reshape(4, -1).T, frame.reshape(4, -1).T), axis=1)[:, 1:4].mean(axis=1)
    assert found["distance"][0] == pytest.approx(distances.max(), rel=1e-5)
    assert found["parametric"][1] > found["parametric"][0]


def test_fit_without_frames_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs more than 3 features to be fitted on; give more frames"):
        Cdnp().start_fit(4).tensors()
