"""Bags without ground truth: what a detector does on them, alarms, and not how accurate it is."""

from __future__ import annotations

from dataclasses import replace

from anomseg_ros.datasets.bag import has_ground_truth
from anomseg_ros.errors import BagError
from anomseg_ros.evaluation.bag_plan import BagRequest, BagSource, scores_of
from anomseg_ros.metrics.protocols import on_road, protocol

PROTOCOL = "fishyscapes"
"""Frames at their own size; no figure of the protocol is measured."""


def with_unlabelled_bags(request: BagRequest) -> BagRequest:
    """Return the request for bags without ground truth, where no bag has any and none is asked for; else as given."""
    if not all(map(_is_unlabelled, request.bags)):
        return request
    regions = (protocol(name).road_region for name in request.protocols)
    limited = tuple(on_road(PROTOCOL, region) for region in dict.fromkeys(regions) if region is not None)
    bags = tuple(replace(bag, known=True) for bag in request.bags)
    return replace(request, bags=bags, scores=scores_of(request)[:1], protocols=(PROTOCOL, *limited))


def _is_unlabelled(bag: BagSource) -> bool:
    if bag.anomaly_topic is not None or bag.labels_topic is not None:
        return False
    try:
        return not has_ground_truth(bag.path, bag.topic)
    except BagError:  # told when the bag is measured
        return False
