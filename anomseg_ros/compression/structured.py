"""Structured pruning: remove channels of small L2 norm, together with all channels that they are coupled with.

The MiDE-Net report (section 3.5) treats each convolution alone. It sets the 30 % of the filters of least L2 norm "along
the output channel dimension" to zero, which keeps the network's size and time. Here channels are removed, and coupled
channels together. So the norm is that of all weights of a channel in all layers that share it (DepGraph, Fang et al.,
CVPR 2023).
"""

from __future__ import annotations

import copy

from torch import nn

from anomseg_ros.compression.channels import ChannelClass, CoupledChannels
from anomseg_ros.errors import CompressionError
from anomseg_ros.networks.counting import count_multiply_adds
from anomseg_ros.networks.network import SegmentationNetwork
from anomseg_ros.networks.widths import widths_are_consistent

OF = ("channels", "macs")
ROUND_TO = 8
FEWEST_MULTIPLES = 4
"""A width becomes a multiple of at most its fourth part. Otherwise a narrow layer would lose half of it, or nothing."""
SEARCH_STEPS = 8
"""Halvings of the interval of the share of channels that gives the wanted share of multiply-adds."""


def prune_structured(
    network: SegmentationNetwork,
    fraction: float,
    *,
    of: str = "channels",
    round_to: int = ROUND_TO,
    size_px: tuple[int, int] = (512, 1024),
) -> SegmentationNetwork:
    """Return a narrower copy of a network in evaluation mode.

    Args:
        network: is not changed.
        fraction: what to remove, in (0, 1).
        of: what the fraction is a share of: "channels" of each layer, or "macs", all multiply-adds.
        round_to: widths become multiples of it where they are wide enough. Integer and blocked float kernels work on 8
            or 16 channels at a time; a width in between costs as much as the next multiple.
        size_px: (height, width) for which multiply-adds are counted.

    Raises:
        CompressionError: an argument is out of range, or no channels can be removed.
    """
    require_fraction(fraction)
    if of not in OF or round_to < 1:
        raise CompressionError(f"of {of!r} and round_to {round_to!r}: expected one of {', '.join(OF)}, and 1 or more")
    if of == "channels":
        return _remove_channels(network, fraction, round_to)
    return _remove_multiply_adds(network, fraction, round_to, size_px)


def require_fraction(fraction: float) -> None:
    """Raise CompressionError for a share that is not between 0 and 1."""
    if not 0 < fraction < 1:
        raise CompressionError(f"fraction {fraction:g}: expected more than 0 and less than 1, such as 0.3 for 30 %")


def plan_removals(
    classes: tuple[ChannelClass, ...], fraction: float, round_to: int
) -> list[tuple[nn.Module, tuple[int, ...]]]:
    """Return (layer, outputs to remove); each layer loses about this share of its channels, least norm first."""
    # A layer may carry several classes: features that a wider layer takes over, and new ones. The narrowest layer
    # carries the class with the most places, which comes first. Wider layers then remove what is left to remove.
    removed: dict[str, int] = {}
    removals = []
    for group in sorted(classes, key=lambda group: -group.places):
        width = group.owner_width
        goal = width - target_width(width, fraction, round_to if group.alike == 1 else 1)
        count = max(0, min(goal - removed.get(group.owner, 0), len(group.indices) - 1))
        chosen = _least(group, count)
        for carrier in group.carriers:
            removed[carrier] = removed.get(carrier, 0) + len(chosen)
        if chosen:
            removals.append((group.root, chosen))
    return removals


def target_width(width: int, fraction: float, round_to: int) -> int:
    """Return how many of `width` channels stay: the multiple nearest to the remaining share, at least one."""
    multiple = min(round_to, max(1, width // FEWEST_MULTIPLES))
    nearest = int(width * (1 - fraction) / multiple + 0.5) * multiple
    return max(multiple, min(nearest, width))


def _least(group: ChannelClass, count: int) -> tuple[int, ...]:
    """Return `count` channels of the class with the least norm; where runs must stay alike, as many of each run."""
    length = len(group.indices) // group.alike
    chosen: list[int] = []
    for start in range(0, len(group.indices), length):
        order = sorted(range(start, start + length), key=lambda place: group.importances[place])
        chosen += [group.indices[place] for place in order[: min(round(count / group.alike), length - 1)]]
    return tuple(sorted(chosen))


def _remove_channels(network: SegmentationNetwork, fraction: float, round_to: int) -> SegmentationNetwork:
    coupled = CoupledChannels(copy.deepcopy(network))
    for root, indices in plan_removals(coupled.classes, fraction, round_to):
        coupled.group(root, indices).prune()
    pruned = coupled.finish()
    if not widths_are_consistent(pruned):
        raise CompressionError(
            f"network {network.name!r}: the channels that were left do not fit together; nothing was written; please "
            "report this network"
        )
    return pruned


def _remove_multiply_adds(
    network: SegmentationNetwork, fraction: float, round_to: int, size_px: tuple[int, int]
) -> SegmentationNetwork:
    """Return the network whose multiply-adds are nearest to the goal, by bisecting the share of channels."""
    wanted = (1 - fraction) * count_multiply_adds(network, *size_px)
    low, high, tried = 0.0, 1.0, []
    for _ in range(SEARCH_STEPS):
        share = (low + high) / 2
        candidate = _remove_channels(network, share, round_to)
        left = count_multiply_adds(candidate, *size_px)
        tried.append((abs(left - wanted), candidate))
        low, high = (share, high) if left > wanted else (low, share)
    return min(tried, key=lambda pair: pair[0])[1]
