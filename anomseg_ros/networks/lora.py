"""LoRA: trained updates of low rank of frozen linear layers (Hu et al., ICLR 2022, arXiv 2106.09685), by peft.

h = W0 x + (alpha / r) B A x, with A Gaussian and B zero at the start (equation 1 of EoMT-LoRA-ArcFace). The targets are
layers of the transformer's blocks alone: peft's own matching of "fc1" would also hit heads of that name. Queries, keys
and values are one matrix here; the targets "q", "k" and "v" split it while LoRA trains, so that each has an update of
its own, as in the paper. The target "qkv" adapts the joint matrix, as the paper's released code does.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anomseg_ros.errors import ConfigError, unknown_name
from anomseg_ros.networks.network import StagedMaskNetwork

PARTS = ("q", "k", "v")
TARGETS: Mapping[str, str] = {
    **{part: f"attn.qkv.{part}" for part in PARTS},
    "qkv": "attn.qkv",
    "proj": "attn.proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
"""Target -> layer of a block."""
PAPER_TARGETS = ("q", "k", "v", "fc1", "fc2")
RELEASED_TARGETS = ("qkv", "proj", "fc1", "fc2")


@dataclass(frozen=True)
class LoraConfig:
    """rank: r. alpha: None for 2 r. dropout: of the input of A. targets: see TARGETS; the default is the paper's."""

    rank: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    targets: tuple[str, ...] = PAPER_TARGETS

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"lora.rank is {self.rank!r}; expected 1 or more")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora.dropout is {self.dropout!r}; expected a share from 0 up, below 1")
        for target in self.targets:
            if target not in TARGETS:
                raise ConfigError(unknown_name("target of LoRA", target, TARGETS))
        if not self.targets or ("qkv" in self.targets and set(PARTS) & set(self.targets)):
            raise ConfigError(f"lora.targets is {list(self.targets)!r}; give layers, and either qkv or q, k and v")


class SplitProjection(nn.Module):
    """Queries, keys and values as layers of their own: (…, D) -> (…, 3 D)."""

    def __init__(self, joint: nn.Linear) -> None:
        super().__init__()
        width = joint.out_features // 3
        for index, part in enumerate(PARTS):
            layer = nn.Linear(joint.in_features, width, bias=joint.bias is not None)
            with torch.no_grad():
                layer.weight.copy_(joint.weight[index * width : (index + 1) * width])
                if joint.bias is not None:
                    layer.bias.copy_(joint.bias[index * width : (index + 1) * width])
            setattr(self, part, layer.to(joint.weight.device))

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.cat([getattr(self, part)(tokens) for part in PARTS], -1)

    def joint(self) -> nn.Linear:
        """Return the one layer that computes the same."""
        layers = [getattr(self, part) for part in PARTS]
        width, has_bias = layers[0].out_features, layers[0].bias is not None
        joint = nn.Linear(layers[0].in_features, 3 * width, has_bias, device=layers[0].weight.device)
        with torch.no_grad():
            joint.weight.copy_(torch.cat([layer.weight for layer in layers]))
            if has_bias:
                joint.bias.copy_(torch.cat([layer.bias for layer in layers]))
        return joint


def add_lora(network: StagedMaskNetwork, config: LoraConfig) -> None:
    """Freeze the encoder of a network, in place, and add an update to each target. Raises ConfigError without peft."""
    try:
        import peft
    except ModuleNotFoundError as error:
        raise ConfigError("LoRA needs peft, which is not installed: pip install 'anomseg_ros[heavy]'") from error
    trained = {
        name
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and not name.startswith(network.encoder_parts)
    }
    if set(PARTS) & set(config.targets):
        for attention in _attentions(network):
            attention.qkv = SplitProjection(attention.qkv)
    layers = "|".join(TARGETS[target].replace(".", r"\.") for target in config.targets)
    alpha = 2 * config.rank if config.alpha is None else config.alpha
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        target_modules=rf"(encoder\.)?blocks\.\d+\.({layers})",
        init_lora_weights="gaussian",
    )
    peft.inject_adapter_in_model(settings, network)
    for name, parameter in network.named_parameters():  # peft freezes everything else
        if name in trained:
            parameter.requires_grad_(True)


def merged_lora(network: StagedMaskNetwork) -> StagedMaskNetwork:
    """Return a copy of a network with its updates added to the weights, without any trace of LoRA."""
    plain = copy.deepcopy(network)
    for module in list(plain.modules()):
        for name, child in list(module.named_children()):
            if hasattr(child, "lora_A"):
                layer: Any = child
                layer.merge(safe_merge=True)
                setattr(module, name, layer.get_base_layer())
    for attention in _attentions(plain):
        if isinstance(attention.qkv, SplitProjection):
            attention.qkv = attention.qkv.joint()
    return plain


def lora_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of the updates by name."""
    return {name: value for name, value in network.named_parameters() if ".lora_" in name}


def _attentions(network: nn.Module) -> list[Any]:
    return [module for module in network.modules() if isinstance(getattr(module, "qkv", None), nn.Module)]
