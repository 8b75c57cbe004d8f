"""Matching of queries to the classes of an image, and the losses of matched masks at sampled points.

MaskFormer (Cheng et al. 2021, arXiv 2107.06278) and Mask2Former (Cheng et al., CVPR 2022, arXiv 2112.01527, section
3.3), as EoMT trains. With p = sigmoid(mask logit) and t the truth at P sampled points of one mask:

    bce = mean over points of -(t log p + (1 - t) log(1 - p))
    dice = 1 - (2 sum p t + 1) / (sum p + sum t + 1)

Both are summed over the matched masks and divided by the number of true masks. Pixels without a class belong to no
mask.
Values, random numbers included, are those of transformers' EomtLoss, which a test compares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from anomseg_ros.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class MatchingConfig:
    """Weights of the costs, and how points are sampled.

    points: per mask. oversample, importance: for the losses, points x oversample are drawn, of which the share
    `importance` of `points` with the least certain logits is used; the rest are drawn anew.
    """

    mask: float
    dice: float
    classes: float
    points: int
    oversample: float
    importance: float


@dataclass(frozen=True, eq=False)
class Truth:
    """The masks of an image: float (M, H, W) of 0 and 1, and int64 (M,) their classes."""

    masks: Tensor
    classes: Tensor


def truths(target: Tensor, classes: int) -> list[Truth]:
    """Return the masks of each image of a target (N, H, W), one for each class below `classes` that it shows."""
    found = []
    for labels in target:
        present = labels.unique()
        present = present[present < classes]
        found.append(Truth((labels[None] == present[:, None, None]).float(), present))
    return found


def at_points(maps: Tensor, points: Tensor) -> Tensor:
    """Return bilinear values (M, P) of maps (M, H, W) at points (M, P, 2) or (1, P, 2), x and y from 0 to 1."""
    points = points.expand(len(maps), -1, -1)
    return F.grid_sample(maps[:, None], 2.0 * points[:, :, None] - 1.0, align_corners=False)[:, 0, :, 0]


@torch.no_grad()
def match(mask_logits: Tensor, class_logits: Tensor, truth: Truth, config: MatchingConfig) -> tuple[Tensor, Tensor]:
    """Return int64 (queries, masks): which query is matched to which mask of one image, by least cost.

    The cost of a pair is -p(class), bce and dice at random points, each with its weight.

    Args:
        mask_logits: float (Q, h, w).
        class_logits: float (Q, C + 1).
        truth: the image's masks.
        config: weights and number of points.

    Raises:
        ConfigError: scipy is not installed.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ModuleNotFoundError as error:
        raise ConfigError(
            "matching masks needs scipy, which is not installed: pip install 'anomseg_ros[heavy]'"
        ) from error
    points = torch.rand(1, config.points, 2, device=mask_logits.device)
    wanted, logits = at_points(truth.masks, points), at_points(mask_logits, points)
    positive, negative = F.softplus(-logits), F.softplus(logits)
    bce = (positive @ wanted.T + negative @ (1.0 - wanted).T) / config.points
    shares = logits.sigmoid()
    dice = 1.0 - (2.0 * shares @ wanted.T + 1.0) / (shares.sum(1)[:, None] + wanted.sum(1)[None] + 1.0)
    fit = class_logits.softmax(-1)[:, truth.classes]
    cost = config.mask * bce - config.classes * fit + config.dice * dice
    # Pairs whose cost is not finite are taken last; the loss reports what is wrong.
    cost = torch.nan_to_num(cost, *3 * (torch.finfo(cost.dtype).max,))
    queries, masks = linear_sum_assignment(cost.cpu().numpy())
    pairs = torch.as_tensor(queries), torch.as_tensor(masks)
    return pairs[0].to(mask_logits.device), pairs[1].to(mask_logits.device)


@torch.no_grad()
def uncertain_points(mask_logits: Tensor, config: MatchingConfig) -> Tensor:
    """Return points (M, P, 2) of masks (M, h, w), most of them where the logits are near 0 (PointRend)."""
    drawn = torch.rand(len(mask_logits), int(config.points * config.oversample), 2, device=mask_logits.device)
    uncertain = int(config.importance * config.points)
    order = (-at_points(mask_logits, drawn).abs()).topk(uncertain, dim=1).indices
    chosen = drawn.gather(1, order[:, :, None].expand(-1, -1, 2))
    if uncertain == config.points:
        return chosen
    more = torch.rand(len(mask_logits), config.points - uncertain, 2, device=mask_logits.device)
    return torch.cat((chosen, more), 1)


def mask_losses(mask_logits: Tensor, masks: Tensor, count: int, config: MatchingConfig) -> tuple[Tensor, Tensor]:
    """Return (bce, dice) of matched mask logits (M, h, w) and true masks (M, H, W), divided by `count`, 1 at least."""
    if not len(mask_logits):
        return mask_logits.sum(), mask_logits.sum()
    points = uncertain_points(mask_logits, config)
    wanted, logits = at_points(masks, points), at_points(mask_logits, points)
    bce = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(1).sum()
    shares = logits.sigmoid()
    dice = 1.0 - (2.0 * (shares * wanted).sum(1) + 1.0) / (shares.sum(1) + wanted.sum(1) + 1.0)
    return bce / max(count, 1), dice.sum() / max(count, 1)


def wanted_classes(class_logits: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], found: Sequence[Truth]) -> Tensor:
    """Return int64 (N, Q): the class of each query of class logits (N, Q, C + 1), C for unmatched ones."""
    wanted = torch.full(class_logits.shape[:2], class_logits.shape[2] - 1, device=class_logits.device)
    for image, ((queries, masks), truth) in enumerate(zip(pairs, found, strict=True)):
        wanted[image, queries] = truth.classes[masks]
    return wanted
