"""k-means: known clusters are found, the graph gives those of numpy, and awkward points have an answer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from anomseg_ros.scores.kmeans import cluster, cluster_graph


def in_graph(points: npt.NDArray[np.floating], count: int) -> npt.NDArray[np.int64]:
    members = cluster_graph(torch.from_numpy(points.astype(np.float32)), torch.arange(count, dtype=torch.float32))
    assert members.shape == (len(points), count) and bool((members.sum(1) == 1).all())
    return members.argmax(1).numpy()


def blobs(seed: int, spread: float = 1.0) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.int64]]:
    """Return 600 points of 5 clusters in 24 dimensions, far from the origin, and their clusters."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 5, 600)
    points = generator.normal(scale=3.0, size=(5, 24))[labels] + generator.normal(scale=spread, size=(600, 24))
    return (points + 100.0).astype(np.float32), labels


@pytest.mark.parametrize("seed", range(3))
def test_known_clusters_are_found(seed: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the oracle: install it to compare with it")
    sklearn_cluster = pytest.importorskip("sklearn.cluster")
    points, labels = blobs(seed)
    found = cluster(points, 5)
    assert metrics.adjusted_rand_score(labels, found) == 1.0
    theirs = sklearn_cluster.KMeans(5, n_init=4, random_state=0).fit_predict(points)
    assert metrics.adjusted_rand_score(theirs, found) == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_graph_gives_the_clusters_of_numpy(seed: int) -> None:
    points, _ = blobs(seed, spread=3.0)  # clusters that overlap
    assert np.array_equal(in_graph(points, 7), cluster(points, 7))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_scale_and_place_of_the_points_do_not_matter(scale: float) -> None:
    points, _ = blobs(0)
    expected = cluster(points, 5)
    moved = ((points - 100.0) * scale).astype(np.float32)
    assert np.array_equal(cluster(moved, 5), expected) and np.array_equal(in_graph(moved, 5), expected)


@pytest.mark.parametrize("clusters", [cluster, in_graph])
def test_first_of_equal_distances_wins(clusters) -> None:  # type: ignore[no-untyped-def]
    """The points at -1 and 1 are the centres; the one at 0 is as far from both."""
    assert clusters(np.array([[-1.0], [0.0], [1.0]]), 2).tolist() == [0, 0, 1]


@pytest.mark.parametrize("clusters", [cluster, in_graph])
@pytest.mark.parametrize("distinct", [1, 2, 3])
def test_more_clusters_than_different_points(clusters, distinct: int) -> None:  # type: ignore[no-untyped-def]
    points = np.repeat(np.arange(distinct, dtype=np.float32)[:, None] * 2.0, 4, axis=0).repeat(3, axis=1)
    found = clusters(points, 6)
    assert len(set(found.tolist())) == distinct
    assert all(len(set(found[start : start + 4].tolist())) == 1 for start in range(0, len(points), 4))


@pytest.mark.parametrize("clusters", [cluster, in_graph])
def test_equal_points_are_one_cluster(clusters) -> None:  # type: ignore[no-untyped-def]
    assert clusters(np.full((12, 3), 7.5, np.float32), 5).tolist() == [0] * 12


def test_clusters_that_lose_their_points_keep_their_centres() -> None:
    """Among random points, some Lloyd steps empty a cluster; none divides by zero."""
    generator = np.random.default_rng(0)
    counts = set()
    for _ in range(40):
        points = generator.normal(size=(12, 2)) * generator.integers(1, 9, size=(12, 1))
        found = cluster(points, 6)
        assert np.array_equal(in_graph(points, 6), found)
        counts.add(len(set(found.tolist())))
    assert counts <= {5, 6}
