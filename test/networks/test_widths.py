"""Checkpoints of pruned networks load like others. Narrow weights that are not marked as pruned are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from network_contract import random_images, randomize, with_auxiliary
from safetensors import safe_open
from safetensors.torch import save_file

from anomseg_ros.compression.structured import prune_structured
from anomseg_ros.errors import CheckpointError
from anomseg_ros.networks import NETWORKS, build_network
from anomseg_ros.networks.checkpoints import FORMAT, load_checkpoint, save_checkpoint
from anomseg_ros.networks.network import SegmentationNetwork


def narrow_network(name: str, fraction: float = 0.4) -> SegmentationNetwork:
    torch.manual_seed(0)
    network = build_network(name, 5)
    randomize(network)
    return prune_structured(network.eval(), fraction)


def read_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


NOT_NARROWED = ("dual_stream_adapter", "eomt", "espnetv2", "intern_image")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in NOT_NARROWED])
def test_pruned_network_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    network = narrow_network(name)
    save_checkpoint(tmp_path / "own.safetensors", network, {"step": 3})
    loaded = load_checkpoint(tmp_path / "own.safetensors", name, 5)
    assert loaded.checkpoint_metadata == {"step": 3} and not loaded.training
    images = random_images(64, 96)
    with torch.no_grad():
        assert torch.equal(loaded(images), network(images))
        if network.auxiliary_heads:
            ours, theirs = (with_auxiliary(one, images) for one in (network, loaded))
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    # A loaded network that is saved again, as in training, keeps the mark.
    save_checkpoint(tmp_path / "again.safetensors", loaded, {"step": 3})
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "own.safetensors").read_bytes()
    loaded.train()(random_images(64, 96, batch=2)).mean().backward()
    assert loaded.get_parameter(loaded.class_parameter[0]).grad is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["enet", "bisenet_v2"])
def test_only_pruned_networks_are_marked(name: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "full.safetensors", build_network(name, 5), {})
    assert "pruned" not in json.loads(read_checkpoint(tmp_path / "full.safetensors")[1][FORMAT])
    save_checkpoint(tmp_path / "narrow.safetensors", narrow_network(name), {})
    assert "pruned" in json.loads(read_checkpoint(tmp_path / "narrow.safetensors")[1][FORMAT])


def test_pruned_weights_without_the_mark_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "own.safetensors", narrow_network("mide_net"), {})
    state, header = read_checkpoint(tmp_path / "own.safetensors")
    description = json.loads(header[FORMAT])
    del description["pruned"]
    save_file(state, tmp_path / "unmarked.safetensors", {FORMAT: json.dumps(description)})
    with pytest.raises(CheckpointError, match=r"\d+ misshapen"):
        load_checkpoint(tmp_path / "unmarked.safetensors", "mide_net", 5)


@pytest.mark.slow
def test_number_of_classes_of_a_pruned_network_is_checked(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "own.safetensors", narrow_network("enet"), {})
    with pytest.raises(CheckpointError, match="for 5 classes, not 7; ask for num_classes=5"):
        load_checkpoint(tmp_path / "own.safetensors", "enet", 7)


@pytest.mark.parametrize(
    ("key", "change", "words"),
    [
        ("stage1.0.reduce.conv.weight", lambda w: w[:, :-1].contiguous(), "do not fit together"),
        ("stage1.0.spatial.conv.weight", lambda w: w[..., :1].contiguous(), "1 misshapen"),
        ("stage1.0.spatial.norm.bias", lambda w: w[:-1].contiguous(), "1 misshapen"),
        ("stage1.0.reduce.conv.weight", None, "1 missing"),
    ],
)
def test_damaged_widths_are_refused(key: str, change: object, words: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "own.safetensors", narrow_network("mide_net"), {})
    state, header = read_checkpoint(tmp_path / "own.safetensors")
    if change is None:
        del state[key]
    else:
        state[key] = change(state[key])  # type: ignore[operator]
    save_file(state, tmp_path / "wrong.safetensors", header)
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(tmp_path / "wrong.safetensors", "mide_net", 5)


def test_damaged_mark_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "own.safetensors", narrow_network("mide_net"), {})
    state, header = read_checkpoint(tmp_path / "own.safetensors")
    description = {**json.loads(header[FORMAT]), "pruned": "yes"}
    save_file(state, tmp_path / "wrong.safetensors", {FORMAT: json.dumps(description)})
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(tmp_path / "wrong.safetensors", "mide_net", 5)
