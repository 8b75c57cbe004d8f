"""Scores of clusters: equation 3 on known maps, options of the fit, sizes and padding, awkward frames."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from anomseg_ros.errors import ConfigError
from anomseg_ros.scores import find_score, start_fits
from anomseg_ros.scores.clusters import ClusterScore, cluster_labels
from anomseg_ros.scores.score import FeatureMaps, Given

Array = npt.NDArray[np.floating]
NAMES = ("cluster_ratio", "cluster_binary", "cluster_mean", "cluster_mix")


def regions(height: int = 6, width: int = 8) -> tuple[Array, npt.NDArray[np.int64]]:
    """Return features (4, height, width) of three regions, and the region of each: left, right, a block in the left."""
    labels = np.zeros((height, width), np.int64)
    labels[:, width // 2 :] = 1
    labels[1:3, 1:3] = 2
    centres = np.array([[0, 0, 0, 0], [9, 0, 0, 0], [0, 9, 9, 0]], np.float32)
    noise = np.random.default_rng(0).normal(scale=0.1, size=(height, width, 4)).astype(np.float32)
    return (centres[labels] + noise).transpose(2, 0, 1), labels


def given_of(
    best: Array, features: Array, padded_px: tuple[int, int], clusters: int = 3, **tensors: float
) -> Given[Array]:
    """Return the input of a score of two classes whose larger logit is `best` (H, W)."""
    fitted = {"clusters": np.arange(clusters, dtype=np.float32)}
    fitted |= {name: np.array([value], np.float32) for name, value in tensors.items()}
    return Given(np.stack([best, best - 3.0]), fitted=fitted, features=FeatureMaps((features,), padded_px))


def in_graph(name: str, given: Given[Array]) -> Array:
    score = find_score(name)
    constants = {key: torch.from_numpy(value) for key, value in given.fitted.items()}
    known = torch.from_numpy(given.known.astype(np.float32))[None]
    maps = tuple(torch.from_numpy(map_.astype(np.float32))[None] for map_ in given.features.maps)
    pixel_maps = score.pixel_graph(Given(known, fitted=constants))
    return score.frame_graph(pixel_maps, constants, FeatureMaps(maps, given.features.padded_px))[0].numpy()


@pytest.mark.parametrize("size", [(96, 128), (90, 121)])
def test_scores_are_those_of_equation_3_on_known_regions(size: tuple[int, int]) -> None:
    """One feature covers 16 pixels; the second size is that of a frame that was padded."""
    features, labels = regions()
    best = np.random.default_rng(1).normal(size=size)
    best[16:48, 16:48] -= 2.0
    pixels = labels.repeat(16, 0).repeat(16, 1)[: size[0], : size[1]]
    ratio, mean = np.zeros(size), np.zeros(size)
    for region in range(3):
        ratio[pixels == region] = (best[pixels == region] < -1.0).mean()
        mean[pixels == region] = (-best[pixels == region]).mean()
    given = given_of(best, features, (96, 128), tau=-1.0, T=0.3, w=4.0)
    expected = {"cluster_ratio": ratio, "cluster_binary": ratio > 0.3, "cluster_mean": mean}
    expected["cluster_mix"] = -best + 4.0 * np.maximum(ratio - 0.3, 0.0) / 0.7
    assert ratio[20, 20] > 0.7 and ratio[0, 0] < 0.3
    for name, values in expected.items():
        assert find_score(name).reference(given) == pytest.approx(values.astype(np.float64)), name
        assert in_graph(name, given) == pytest.approx(values.astype(np.float64), abs=1e-5), name


def test_fine_features_are_averaged_to_16_pixels() -> None:
    coarse, labels = regions()
    noise = np.random.default_rng(2).normal(size=(4, 6, 4, 8, 4))
    fine = coarse[:, :, None, :, None] + noise - noise.mean(axis=(2, 4), keepdims=True)
    maps = FeatureMaps((fine.reshape(4, 24, 32),), (96, 128))
    found = cluster_labels(maps, 3)
    expected = cluster_labels(FeatureMaps((coarse,), (96, 128)), 3)
    assert np.array_equal(found, expected) and len(np.unique(found)) == len(np.unique(labels))
    given = given_of(np.random.default_rng(3).normal(size=(96, 128)), maps.maps[0], (96, 128))
    assert in_graph("cluster_mean", given) == pytest.approx(find_score("cluster_mean").reference(given), abs=1e-5)


@pytest.mark.parametrize(("size", "padded_px"), [((3, 5), (96, 160)), ((15, 9), (60, 36))])
def test_features_that_16_pixels_do_not_divide_stay_as_they_are(
    size: tuple[int, int], padded_px: tuple[int, int]
) -> None:
    features = np.random.default_rng(0).normal(size=(4, *size)).astype(np.float32)
    given = given_of(np.random.default_rng(3).normal(size=padded_px), features, padded_px)
    labels = cluster_labels(given.features, 3)
    assert labels.shape == padded_px
    assert in_graph("cluster_mean", given) == pytest.approx(find_score("cluster_mean").reference(given), abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("clusters", [3, 64])
def test_constant_frames_are_one_cluster(name: str, clusters: int) -> None:
    given = given_of(
        np.full((32, 64), -2.0), np.ones((4, 2, 4), np.float32), (32, 64), clusters, tau=-1.0, T=0.3, w=4.0
    )
    value = {"cluster_ratio": 1.0, "cluster_binary": 1.0, "cluster_mean": 2.0, "cluster_mix": 6.0}[name]
    assert find_score(name).reference(given) == pytest.approx(np.full((32, 64), value), abs=1e-6)
    assert in_graph(name, given) == pytest.approx(np.full((32, 64), value), abs=1e-5)


def test_pixels_at_tau_are_not_below_it_and_a_ratio_of_t_is_not_above_it() -> None:
    best = np.zeros((32, 32))
    best[:16] = -1.0
    given = given_of(best, np.ones((1, 2, 2), np.float32), (32, 32), 2, tau=0.0, T=0.5)
    assert (find_score("cluster_ratio").reference(given) == 0.5).all()
    assert (find_score("cluster_binary").reference(given) == 0.0).all()
    assert (in_graph("cluster_binary", given) == 0.0).all()


def test_tau_is_the_stated_quantile_of_training_frames() -> None:
    best = [np.random.default_rng(seed).normal(size=(40, 50)) for seed in range(4)]
    fits = start_fits(NAMES, 2, {"quantile": 0.2, "clusters": 6, "T": 0.4, "strength": 3.0})
    for fit in fits.values():
        for one in best:
            fit.add(Given(np.stack([one, one - 1.0])))
    tensors = {name: fit.tensors() for name, fit in fits.items()}
    assert tensors["cluster_ratio"]["tau"] == pytest.approx(np.quantile(best, 0.2), abs=1e-6)
    assert tensors["cluster_binary"]["T"] == pytest.approx(0.4)
    assert set(tensors["cluster_mean"]) == {"clusters"}
    assert all(found["clusters"].tolist() == [0, 1, 2, 3, 4, 5] for found in tensors.values())
    samples = np.stack(best)
    assert tensors["cluster_mix"]["w"] == pytest.approx(3.0 * samples.std(), rel=1e-5)
    score = find_score("cluster_binary")
    assert score.describe(tensors["cluster_binary"]).endswith(f"; K 6, tau {np.quantile(best, 0.2):.4g}, T 0.4")


def test_mix_is_the_plain_score_where_no_cluster_is_suspicious() -> None:
    features, _ = regions()
    best = np.random.default_rng(1).normal(size=(96, 128))
    given = given_of(best, features, (96, 128), tau=-1.0, T=0.8, w=4.0)
    assert np.array_equal(find_score("cluster_mix").reference(given), -best)
    assert find_score("cluster_mix").start_fit(2).options["T"] == 0.9  # type: ignore[union-attr]
    assert find_score("cluster_binary").start_fit(2).options["T"] == 0.3  # type: ignore[union-attr]


def test_given_tau_replaces_the_quantile() -> None:
    (fit,) = start_fits(("cluster_ratio",), 2, {"tau": 1.5}).values()
    fit.add(Given(np.zeros((2, 4, 4))))
    assert fit.tensors()["tau"].tolist() == [1.5]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clusters": 1}, "clusters=1: expected a whole number from 2 to 64"),
        ({"clusters": 2.5}, "clusters=2.5: expected a whole"),
        ({"clusters": 65}, "clusters=65: expected a whole"),
        ({"quantile": 1.5}, "quantile=1.5: expected a share"),
        ({"T": -0.1}, "T=-0.1: expected a share"),
        ({"T": 1.0}, "T=1: expected a share from 0 to less than 1"),
        ({"strength": -1.0}, "strength=-1: expected a number from 0"),
        ({"cluster": 5}, "unknown option of cluster_ratio 'cluster'; known: clusters"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        start_fits(("cluster_ratio",), 19, options)


def test_fit_without_frames_and_scores_without_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="need at least 1 frame"):
        start_fits(("cluster_ratio",), 2)["cluster_ratio"].tensors()
    with pytest.raises(ConfigError, match="unknown option of sml 'clusters'"):
        start_fits(("sml",), 2, {"clusters": 5})
    assert start_fits(("sml", "cluster_mean"), 2, {"clusters": 7})["cluster_mean"].options["clusters"] == 7


def test_clusters_that_are_not_counted_from_0_are_refused() -> None:
    for name in NAMES:
        score = find_score(name)
        assert isinstance(score, ClusterScore)
        fitted = {key: np.zeros(1, np.float32) for key in score.tensor_names}
        with pytest.raises(ConfigError, match="'clusters' is not 0, 1, 2 and so on: run `anomseg calibrate score"):
            score.check_fitted({"clusters": np.array([0.0, 2.0], np.float32), **fitted}, 19, (4,))
