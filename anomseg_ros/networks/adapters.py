"""Files of LoRA adapters: what a run trained, without the base that it trained on.

An adapter holds the updates of low rank and the heads, all that is not the frozen encoder: a few megabytes beside
hundreds. The base is any checkpoint whose encoder is the same to the bit, which a SHA-256 over its tensors tells,
whatever file they come from. An adapter on its base is the network that the run saved merged.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from anomseg_ros.core.schema import from_plain, to_plain
from anomseg_ros.core.staging import replace_bytes
from anomseg_ros.core.untrusted_text import parse_json
from anomseg_ros.errors import CheckpointError
from anomseg_ros.networks import build_network
from anomseg_ros.networks.checkpoints import load_checkpoint
from anomseg_ros.networks.lora import LoraConfig, add_lora, merged_lora
from anomseg_ros.networks.network import SegmentationNetwork, StagedMaskNetwork

FORMAT = "anomseg_ros.adapter"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class _Description:
    """What a file says beside its tensors."""

    version: int
    network: str
    num_classes: int
    options: Mapping[str, Any]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    lora: LoraConfig
    base_sha256: str
    metadata: Mapping[str, Any]


def save_adapter(
    path: str | os.PathLike[str], network: StagedMaskNetwork, lora: LoraConfig, metadata: Mapping[str, Any]
) -> None:
    """Write the updates and heads of a network with LoRA to a `.safetensors` file in one step.

    Args:
        path: file to write.
        network: as `add_lora` changed it.
        lora: the settings of its updates.
        metadata: JSON types.

    Raises:
        CheckpointError: the file cannot be written.
    """
    description = _Description(
        version=FORMAT_VERSION,
        network=network.name,
        num_classes=network.num_classes,
        options=network.options(),
        mean=network.mean,
        std=network.std,
        lora=lora,
        base_sha256=_digest(network),
        metadata=dict(metadata),
    )
    tensors = {name: value.detach().cpu().contiguous() for name, value in _own(network).items()}
    try:
        replace_bytes(Path(path), safetensors.torch.save(tensors, {FORMAT: json.dumps(to_plain(description))}))
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror}; choose a folder that can be written") from error


def load_with_adapter(base: str | os.PathLike[str], adapter: str | os.PathLike[str]) -> SegmentationNetwork:
    """Return the network of a base checkpoint and an adapter, merged, in evaluation mode.

    base: a whole network of as many classes or of one class less, or the file of a pretrained encoder.
    Raises CheckpointError if the base is another one, or one of the files is damaged.
    """
    path = Path(adapter)
    description, tensors = _read(path)
    network = build_network(description.network, description.num_classes, **description.options)
    if not isinstance(network, StagedMaskNetwork):
        raise CheckpointError(f"{path} is an adapter of {description.network!r}, which takes none; train it again")
    network.set_normalisation(description.mean, description.std)
    _take_encoder(network, _open_base(Path(base), description))
    add_lora(network, description.lora)
    if _digest(network) != description.base_sha256:
        raise CheckpointError(
            f"{base} is not the base that {path} was trained on: its encoder has another digest; give the checkpoint "
            "of the run's network.initial"
        )
    own = _own(network)
    wrong = sorted(own.keys() ^ tensors.keys())
    wrong += [name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape]
    if wrong:
        raise CheckpointError(f"{path} does not fit its own description ({', '.join(wrong[:3])}); copy it again")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])
    merged = merged_lora(network).eval()
    merged.checkpoint_metadata = dict(description.metadata)
    return merged


def _take_encoder(network: StagedMaskNetwork, source: SegmentationNetwork) -> None:
    weights = network.weights_of(source)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.startswith(network.encoder_parts) and name in weights and weights[name].shape == value.shape:
                value.copy_(weights[name])


def _open_base(base: Path, description: _Description) -> SegmentationNetwork:
    first: CheckpointError | None = None
    for num_classes, encoder_only in (
        (description.num_classes, False),
        (description.num_classes - 1, False),
        (description.num_classes, True),
    ):
        try:
            return load_checkpoint(base, description.network, max(1, num_classes), encoder_only=encoder_only)
        except CheckpointError as error:
            first = first or error
    assert first is not None
    raise first


def _read(path: Path) -> tuple[_Description, dict[str, Tensor]]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file ({error}); copy it again") from error
    if FORMAT not in header:
        raise CheckpointError(f"{path} is no adapter; give a *.adapter.safetensors of a run with loss.lora")
    try:
        plain = parse_json(header[FORMAT])
        if isinstance(plain["version"], int) and plain["version"] > FORMAT_VERSION:
            newer = f"{path} is of format {plain['version']}, newer than {FORMAT_VERSION}"
            raise CheckpointError(f"{newer}; update anomseg_ros")
        description = from_plain(_Description, plain, "description")
        with torch.device("meta"):
            build_network(description.network, description.num_classes, **description.options)
    except CheckpointError:
        raise
    except Exception as error:  # what a network makes of options that are not its own is not limited
        raise CheckpointError(f"{path} has a damaged {FORMAT} description ({error!r}); save it again") from error
    return description, tensors


def _own(network: StagedMaskNetwork) -> dict[str, Tensor]:
    """Return the tensors of an adapter: the updates, and all that is no encoder."""
    return {
        name: value
        for name, value in network.state_dict().items()
        if ".lora_" in name or not name.startswith(network.encoder_parts)
    }


def _digest(network: StagedMaskNetwork) -> str:
    """Return the SHA-256 over names, shapes and values of the encoder of a network with LoRA."""
    own, digest = _own(network), hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        if name not in own:
            digest.update(f"{name} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().to(torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()
