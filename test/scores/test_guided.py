"""Guided shares: they follow the picture's edges, stay in range, and are equal in numpy and in the graph."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from anomseg_ros.scores import find_score
from anomseg_ros.scores.guided import _guided_graph, guided
from anomseg_ros.scores.score import IMAGE


@pytest.mark.parametrize("size", [(64, 96), (61, 83), (3, 5)])
def test_graph_equals_numpy(size: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    values, image = generator.random(size), generator.normal(size=(3, *size))
    graph = _guided_graph(torch.from_numpy(values).float()[None], torch.from_numpy(image).float()[None])
    assert graph.shape == (1, *size)
    assert graph[0].numpy() == pytest.approx(guided(values, image), abs=1e-4)


def test_edge_of_a_cell_moves_to_the_edge_of_the_picture() -> None:
    """The object ends at column 70, the cell of its cluster at column 64 or 80."""
    image = np.zeros((3, 96, 160))
    image[:, :, :70] = 1.0
    shares = np.zeros((96, 160))
    shares[:, :80] = 1.0
    found = guided(shares, image)
    assert found[48, 72:78].mean() < found[48, 58:68].mean() - 0.3
    assert found.min() >= 0.0 and found.max() <= 1.0


def test_flat_picture_gives_smooth_shares_and_constant_shares_stay() -> None:
    shares = np.zeros((64, 64))
    shares[:, :32] = 1.0
    smooth = guided(shares, np.full((3, 64, 64), 5.0))
    assert (np.diff(smooth[32]) <= 1e-9).all() and 0.3 < smooth[32, 32] < 0.7
    constant = np.full((64, 64), 0.25)
    assert guided(constant, np.random.default_rng(0).normal(size=(3, 64, 64))) == pytest.approx(constant, abs=1e-6)


def test_frame_itself_is_among_the_features() -> None:
    assert find_score("cluster_guided").choose_features(("early", "encoder", "decoder")) == ("encoder", IMAGE)
