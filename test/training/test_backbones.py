"""ImageNet weights for BiSeNet v1: their mapping, and the behaviour without timm and without internet."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import socket
import sys
import time
import types
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomseg_ros.errors import CheckpointError, ConfigError
from anomseg_ros.networks import build_network
from anomseg_ros.networks.bisenet_v1 import BiSeNetV1
from anomseg_ros.training import backbones
from anomseg_ros.training.backbones import fill_resnet18, load_imagenet_backbone

STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))


def published_resnet18(seed: int = 0) -> dict[str, Tensor]:
    """Return random weights with the names of torchvision and timm."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}

    def conv(name: str, out_channels: int, in_channels: int, kernel: int) -> None:
        values = torch.randn(out_channels, in_channels, kernel, kernel, generator=generator)
        state[name + ".weight"] = values * (2 / (in_channels * kernel * kernel)) ** 0.5

    def norm(name: str, channels: int) -> None:
        state[name + ".weight"] = torch.rand(channels, generator=generator) + 0.5
        state[name + ".bias"] = torch.randn(channels, generator=generator) * 0.1
        state[name + ".running_mean"] = torch.randn(channels, generator=generator) * 0.1
        state[name + ".running_var"] = torch.rand(channels, generator=generator) + 0.5
        state[name + ".num_batches_tracked"] = torch.tensor(7)

    conv("conv1", 64, 3, 7)
    norm("bn1", 64)
    before = 64
    for stage, (channels, stride) in enumerate(STAGES, 1):
        for block in range(2):
            name = f"layer{stage}.{block}"
            conv(f"{name}.conv1", channels, before, 3)
            norm(f"{name}.bn1", channels)
            conv(f"{name}.conv2", channels, channels, 3)
            norm(f"{name}.bn2", channels)
            if block == 0 and (stride != 1 or before != channels):
                conv(f"{name}.downsample.0", channels, before, 1)
                norm(f"{name}.downsample.1", channels)
            before = channels
    state["fc.weight"], state["fc.bias"] = torch.zeros(1000, 512), torch.zeros(1000)
    return state


def reference_features(state: dict[str, Tensor], images: Tensor) -> list[Tensor]:
    """Return the features of ResNet-18 at 1/4 to 1/32, implemented from He et al. (CVPR 2016), figure 3 and table 1."""

    def norm(name: str, x: Tensor) -> Tensor:
        mean, var = state[name + ".running_mean"], state[name + ".running_var"]
        return F.batch_norm(x, mean, var, state[name + ".weight"], state[name + ".bias"])

    x = F.relu(norm("bn1", F.conv2d(images, state["conv1.weight"], stride=2, padding=3)))
    x = F.max_pool2d(x, 3, 2, 1)
    features = []
    for stage, (_, stride) in enumerate(STAGES, 1):
        for block in range(2):
            name, step = f"layer{stage}.{block}", stride if block == 0 else 1
            y = F.relu(norm(f"{name}.bn1", F.conv2d(x, state[f"{name}.conv1.weight"], stride=step, padding=1)))
            y = norm(f"{name}.bn2", F.conv2d(y, state[f"{name}.conv2.weight"], padding=1))
            if f"{name}.downsample.0.weight" in state:
                x = norm(f"{name}.downsample.1", F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=step))
            x = F.relu(x + y)
        features.append(x)
    return features


def our_features(network: BiSeNetV1, images: Tensor) -> list[Tensor]:
    """Return the features of the context path at 1/8, 1/16 and 1/32."""
    backbone = network.context_path.backbone
    with torch.no_grad():
        features8 = backbone.layer2(backbone.layer1(backbone.pool(backbone.stem(images))))
        return [features8, *backbone(images)]


def build_bisenet() -> BiSeNetV1:
    network = build_network("bisenet_v1", 11)
    assert isinstance(network, BiSeNetV1)
    return network.eval()


def test_mapped_backbone_equals_the_published_network() -> None:
    network, state = build_bisenet(), published_resnet18()
    images = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    fill_resnet18(network.context_path.backbone, state)
    expected = reference_features(state, images)[1:]
    for ours, theirs in zip(our_features(network, images), expected, strict=True):
        assert theirs.std() > 0.1
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_mapped_backbone_equals_timm() -> None:
    pytest.importorskip("timm", reason="the extra `backbones` is not installed", exc_type=Exception)  # type: ignore[arg-type]
    import timm

    network, state = build_bisenet(), published_resnet18()
    theirs = timm.create_model("resnet18", pretrained=False).eval()
    theirs.load_state_dict(state, strict=True)
    features = timm.create_model("resnet18", pretrained=False, features_only=True).eval()
    features.load_state_dict({key: value for key, value in state.items() if not key.startswith("fc.")}, strict=True)
    fill_resnet18(network.context_path.backbone, theirs.state_dict())
    images = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = features(images)[2:]
    for ours, feature in zip(our_features(network, images), expected, strict=True):
        torch.testing.assert_close(ours, feature, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("damage", ["missing", "unexpected", "misshapen"])
def test_mismatched_weights_are_refused_and_change_nothing(damage: Any) -> None:
    network, state = build_bisenet(), published_resnet18()
    key = "layer3.0.downsample.1.bias"
    if damage == "missing":
        del state[key]
    elif damage == "unexpected":
        key = "layer3.0.conv3.weight"
        state[key] = torch.zeros(3)
    else:
        state[key] = torch.zeros(3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=rf"1 missing, unexpected or misshapen \({key}\)"):
        fill_resnet18(network.context_path.backbone, state)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("name", ["enet", "bisenet_v2", "erfnet"])
def test_network_without_a_backbone_error_lists_those_with_one(name: Any) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' has no ImageNet backbone; those with one: bisenet_v1"):
        load_imagenet_backbone(build_network(name, 11), "timm")


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_missing_timm_error_gives_the_install_command() -> None:
    with pytest.raises(ConfigError, match=r"pip install 'anomseg_ros\[backbones\]', or set network.backbone=none"):
        load_imagenet_backbone(build_bisenet(), "timm")


class _Model(nn.Module):
    """A module with the published state, as timm returns it."""

    def state_dict(self, *_: object, **__: object) -> dict[str, Tensor]:  # type: ignore[override]
        return published_resnet18()


def fake_timm(create_model: object) -> types.ModuleType:
    module = types.ModuleType("timm")
    module.create_model = create_model  # type: ignore[attr-defined]
    return module


def test_downloaded_weights_set_the_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def create_model(name: str, pretrained: bool) -> nn.Module:
        asked.append((name, pretrained))
        return _Model()

    monkeypatch.setitem(sys.modules, "timm", fake_timm(create_model))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    network = build_bisenet()
    assert load_imagenet_backbone(network, "timm") is True
    assert asked == [("resnet18.tv_in1k", True)]
    assert network.source_layout == "timm resnet18.tv_in1k, backbone"
    assert network.mean == (0.485, 0.456, 0.406)
    state = network.state_dict()
    assert torch.equal(state["context_path.backbone.stem.conv.weight"], published_resnet18()["conv1.weight"])


def test_offline_training_starts_from_scratch_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def create_model(name: str, pretrained: bool) -> nn.Module:
        urllib.request.urlopen("http://127.0.0.1:9/weights", timeout=5)  # the discard port, on which nothing listens
        raise AssertionError("something listens on port 9")

    monkeypatch.setitem(sys.modules, "timm", fake_timm(create_model))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    network = build_bisenet()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        assert load_imagenet_backbone(network, "timm") is False
    assert "the backbone of bisenet_v1 is trained from scratch" in caplog.text
    assert network.source_layout is None
    # A run may start offline and continue online, so the normalisation must be the same.
    assert network.mean == (0.485, 0.456, 0.406)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_offline_timm_gives_up_quickly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="the extra `backbones` is not installed", exc_type=Exception)  # type: ignore[arg-type]
    hub = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    assert load_imagenet_backbone(build_bisenet(), "timm") is False
    assert time.monotonic() - start < 20
    assert hub.HF_HUB_OFFLINE is False


def test_reachability_of_a_server_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert backbones._reachable(f"https://127.0.0.1:{port}")
    assert not backbones._reachable(f"https://127.0.0.1:{port}")
    assert not backbones._reachable("https://hub.invalid")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert backbones._reachable("https://hub.invalid")
