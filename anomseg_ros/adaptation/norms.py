"""Batch normalisation that follows a drive: UBNA, Klingner et al., WACV 2022, arXiv 2011.08502.

Weights stay as they are. The means and variances of the norms move from those of the training data towards those of the
drive, with a momentum that decays, so that both are mixed. In step k, with the statistics of a batch:

    eta_k = eta_0 exp(-alpha k)
    statistics_k+1 = (1 - eta_k) statistics_k + eta_k statistics of the batch

Deviation: the published code adapts the norms of its encoder, a ResNet or VGG. Networks here have norms in the decoder
as well, which see the same road, so all norms are adapted.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import ConfigError
from anomseg_ros.networks.network import SegmentationNetwork, pixels_to_input


@dataclass(frozen=True)
class NormConfig:
    """Settings of the adaptation; defaults: those of the published code (experiments/gta_to_cs/adapt_ubna.sh).

    momentum: eta_0. decay: alpha, per step. steps: number of batches. batch_size: frames in a batch. With the defaults,
    27 % of the statistics remain those of the training data.
    """

    momentum: float = 0.1
    decay: float = 0.08
    steps: int = 50
    batch_size: int = 6

    def __post_init__(self) -> None:
        """Raise ConfigError for values out of range."""
        if not 0 < self.momentum <= 1 or not 0 <= self.decay < math.inf:
            raise ConfigError(
                f"momentum {self.momentum!r} and decay {self.decay!r}: expected a momentum above 0, 1 at most, and a "
                "decay from 0 up"
            )
        if min(self.steps, self.batch_size) < 1:
            raise ConfigError(f"steps {self.steps!r} and batch_size {self.batch_size!r}: expected at least 1 each")

    @property
    def kept(self) -> float:
        """Share of the statistics that remain those of the training data."""
        return math.prod(1 - self.momentum_at(step) for step in range(self.steps))

    def momentum_at(self, step: int) -> float:
        """Return eta_k of a step, from 0."""
        return self.momentum * math.exp(-self.decay * step)


def norms_of(network: SegmentationNetwork) -> list[nn.BatchNorm2d]:
    """Return the norms with statistics that inference uses: those of auxiliary heads are left out."""
    unused = set(network.auxiliary_heads.modules())
    found = (one for one in network.modules() if isinstance(one, nn.BatchNorm2d) and one not in unused)
    return [norm for norm in found if norm.running_mean is not None]


def require_norms(network: SegmentationNetwork) -> None:
    """Raise ConfigError for a network without batch normalisation."""
    if not norms_of(network):
        raise ConfigError(
            f"network {network.name!r} has no batch normalisation whose statistics could be adapted; leave this stage "
            "out with --stages self"
        )


def adapt_norms(
    network: SegmentationNetwork,
    frames: Sequence[RgbImage],
    config: NormConfig,
    seed: int = 0,
    progress: Progress = no_progress,
) -> SegmentationNetwork:
    """Return a copy of a network, in evaluation mode, whose norms follow the drive.

    Args:
        network: what is copied.
        frames: uint8 (H, W, 3) in the network's channel order, all of one size; read again for every batch.
        config: how.
        seed: decides which frames a batch has.
        progress: called after each batch.

    Raises:
        ConfigError: no frame, or no batch normalisation.
    """
    require_norms(network)
    if not len(frames):
        raise ConfigError("there is no frame to take the statistics of the norms from")
    adapted = copy.deepcopy(network).eval()
    norms = norms_of(adapted)
    for norm in norms:
        norm.train()
    with torch.no_grad():
        for step, batch in enumerate(_batches(frames, config, seed)):
            for norm in norms:
                norm.momentum = config.momentum_at(step)
            adapted.predict(pixels_to_input(torch.from_numpy(np.stack(batch))))
            progress("norms", step + 1, config.steps)
    for norm, before in zip(norms, norms_of(network), strict=True):
        norm.momentum = before.momentum
    return adapted.eval()


def _batches(frames: Sequence[RgbImage], config: NormConfig, seed: int) -> Iterator[list[RgbImage]]:
    """Yield the batches: permutations of the frames one after another."""
    rng = np.random.default_rng([seed, 3])
    order: list[int] = []
    for _ in range(config.steps):
        while len(order) < config.batch_size:
            order += rng.permutation(len(frames)).tolist()
        yield [frames[index] for index in order[: config.batch_size]]
        del order[: config.batch_size]
