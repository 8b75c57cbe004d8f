"""The segmentation networks, in torch: one paper, one file."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from anomseg_ros.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from anomseg_ros.networks.base import SegmentationNetwork

NETWORKS: dict[str, str] = {
    "bisenet_lite": "anomseg_ros.networks.bisenet_lite:BiSeNetLite",
    "bisenet_v1": "anomseg_ros.networks.bisenet_v1:BiSeNetV1",
    "bisenet_v2": "anomseg_ros.networks.bisenet_v2:BiSeNetV2",
    "enet": "anomseg_ros.networks.enet:ENet",
    "erfnet": "anomseg_ros.networks.erfnet:ERFNet",
    "erfnet_encoder": "anomseg_ros.networks.erfnet:ERFNetEncoder",
    "espnetv2": "anomseg_ros.networks.espnetv2:ESPNetv2",
    "mide_net": "anomseg_ros.networks.mide_net:MiDENet",
}
"""Network name -> "module:Class". The modules are imported on first use, so that this table costs no torch import."""


def network_class(name: str) -> type[SegmentationNetwork]:
    """Return the class of a network of the table; ConfigError for an unknown name, closest names first."""
    if name not in NETWORKS:
        raise ConfigError(unknown_name("network", name, NETWORKS))
    module_name, _, class_name = NETWORKS[name].partition(":")
    found: type[SegmentationNetwork] = getattr(importlib.import_module(module_name), class_name)
    return found


def build_network(name: str, num_classes: int) -> SegmentationNetwork:
    """Return a freshly initialised network with `num_classes` outputs, in training mode.

    Raises ConfigError for an unknown name or a class count below 1.
    """
    return network_class(name)(num_classes)
