"""The segmentation networks, in torch: one paper, one file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anomseg_ros.core.table import class_of

if TYPE_CHECKING:
    from anomseg_ros.networks.network import SegmentationNetwork

NETWORKS: dict[str, str] = {
    "bisenet_lite": "anomseg_ros.networks.bisenet_lite:BiSeNetLite",
    "bisenet_v1": "anomseg_ros.networks.bisenet_v1:BiSeNetV1",
    "bisenet_v2": "anomseg_ros.networks.bisenet_v2:BiSeNetV2",
    "dual_stream_adapter": "anomseg_ros.networks.dual_stream_adapter:DualStreamAdapter",
    "enet": "anomseg_ros.networks.enet:ENet",
    "eomt": "anomseg_ros.networks.eomt:EoMT",
    "erfnet": "anomseg_ros.networks.erfnet:ERFNet",
    "erfnet_encoder": "anomseg_ros.networks.erfnet:ERFNetEncoder",
    "espnetv2": "anomseg_ros.networks.espnetv2:ESPNetv2",
    "intern_image": "anomseg_ros.networks.intern_image:InternImage",
    "mide_net": "anomseg_ros.networks.mide_net:MiDENet",
}
"""Network name -> "module:Class". Modules are imported on first use, so the table does not import torch."""


def network_class(name: str) -> type[SegmentationNetwork]:
    """Return the class of a network of the table; ConfigError for an unknown name, closest names first."""
    network: type[SegmentationNetwork] = class_of("network", name, NETWORKS)
    return network


def build_network(name: str, num_classes: int, **options: Any) -> SegmentationNetwork:
    """Return a freshly initialised network with `num_classes` outputs, in training mode.

    options: further arguments of its class. Raises ConfigError for an unknown name or a value that is out of range.
    """
    return network_class(name)(num_classes, **options)
