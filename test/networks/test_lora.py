"""LoRA: counts to the integer, equal networks at the start and after merging, and only the encoder's layers."""

from __future__ import annotations

import sys
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft", reason="the extra `heavy` is not installed")

from network_contract import random_images  # noqa: E402

from anomseg_ros.errors import ConfigError  # noqa: E402
from anomseg_ros.networks.counting import count_parameters  # noqa: E402
from anomseg_ros.networks.dual_stream_adapter import DualStreamAdapter  # noqa: E402
from anomseg_ros.networks.eomt import SIZES, EoMT  # noqa: E402
from anomseg_ros.networks.lora import (  # noqa: E402
    RELEASED_TARGETS,
    LoraConfig,
    add_lora,
    lora_parameters,
    merged_lora,
)

SMALL: dict[str, Any] = {"width": 64, "depth": 2, "query_blocks": 1, "queries": 6, "grid": (4, 4)}


def adapted(config: LoraConfig, **options) -> EoMT:
    torch.manual_seed(0)
    network = EoMT(3, **{**SMALL, **options})
    add_lora(network, config)
    return network


@pytest.mark.parametrize("encoder", ["vit", "beit"])
def test_encoder_of_dual_stream_adapters_takes_updates(encoder):
    torch.manual_seed(0)
    network = DualStreamAdapter(3, encoder, streams=0)
    keys = network.state_dict().keys()
    add_lora(network, LoraConfig(4))
    assert all(name.startswith("encoder.blocks.") for name in lora_parameters(network))
    assert sum(value.numel() for value in lora_parameters(network).values()) == 4 * 4 * (3 * 128 + 2 * 320)
    frozen = {name for name, value in network.named_parameters() if not value.requires_grad}
    assert frozen == {name for name, _ in network.named_parameters() if name.startswith("encoder.")} - {
        *lora_parameters(network)
    }
    with torch.no_grad():
        for parameter in lora_parameters(network).values():
            parameter.normal_(0, 0.05)
        merged = merged_lora(network.eval())
        images = random_images(64, 96)
        torch.testing.assert_close(merged(images), network(images), atol=1e-4, rtol=1e-4)
    assert merged.state_dict().keys() == keys


def test_updates_change_nothing_until_they_are_trained():
    images = random_images(48, 80)
    torch.manual_seed(0)
    plain = EoMT(3, **SMALL).eval()
    network = adapted(LoraConfig(4)).eval()
    with torch.no_grad():
        torch.testing.assert_close(network(images), plain(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("targets", [("q", "k", "v", "fc1", "fc2"), RELEASED_TARGETS, ("v", "fc2")])
def test_merged_equals_unmerged(targets):
    network = adapted(LoraConfig(4, 12.0, 0.1, targets)).eval()
    with torch.no_grad():
        for parameter in lora_parameters(network).values():
            parameter.normal_(0, 0.05)
        images = random_images(48, 80)
        merged = merged_lora(network)
        assert merged.state_dict().keys() == EoMT(3, **SMALL).state_dict().keys()
        first: Any = network.predict(images)
        second: Any = merged.predict(images)
        torch.testing.assert_close(first.mask_logits, second.mask_logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(first.class_logits, second.class_logits, atol=1e-5, rtol=1e-5)
    assert lora_parameters(network), "the network itself goes on as it was"


@pytest.mark.parametrize(
    ("size", "rank", "targets", "count"),
    [
        ("base", 8, RELEASED_TARGETS, 1_179_648),
        ("base", 16, LoraConfig().targets, 147_456 * 16),
        ("base", 1, LoraConfig().targets, 147_456),
        ("base", 4, ("qkv", "fc1", "fc2"), 516_096),
        ("large", 6, LoraConfig().targets, 393_216 * 6),
    ],
)
def test_counts_of_the_paper(size, rank, targets, count):
    with torch.device("meta"):
        network = EoMT(20, **dict[str, Any](SIZES[size]), grid=(40, 40))
        before = count_parameters(network)
        add_lora(network, LoraConfig(rank, targets=targets))
    assert sum(value.numel() for value in lora_parameters(network).values()) == count
    assert count_parameters(network) == before + count
    if (size, rank) == ("base", 8):
        assert before + count == 94_679_061


def test_encoder_is_frozen_and_heads_are_not_adapted():
    network = adapted(LoraConfig(2))
    for name, parameter in network.named_parameters():
        is_encoder = name.startswith(network.encoder_parts)
        assert parameter.requires_grad == (".lora_" in name or not is_encoder), name
        assert is_encoder or ".lora_" not in name
    assert {name.split(".lora_")[0].split(".", 2)[2] for name in lora_parameters(network)} == {
        "attn.qkv.q",
        "attn.qkv.k",
        "attn.qkv.v",
        "mlp.fc1",
        "mlp.fc2",
    }


def test_parts_that_were_frozen_stay_frozen():
    network = EoMT(3, **SMALL)
    network.q.requires_grad_(False)
    add_lora(network, LoraConfig(2))
    assert not network.q.weight.requires_grad and network.mask_head[0].weight.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "lora.rank is 0"),
        ({"dropout": 1.0}, "lora.dropout is 1.0"),
        ({"targets": ("q", "qvk")}, "unknown target of LoRA 'qvk'; known: qkv"),
        ({"targets": ("q", "qkv")}, "give layers, and either qkv or q, k and v"),
        ({"targets": ()}, "give layers"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        LoraConfig(**options)


def test_missing_peft_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(
        ConfigError, match=r"LoRA needs peft, which is not installed: pip install 'anomseg_ros\[heavy\]'"
    ):
        adapted(LoraConfig(2))
