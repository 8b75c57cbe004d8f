"""Published layouts fit key by key, wrong files are refused by name, and nothing in a file is run."""

from __future__ import annotations

import json
import os

import pytest
import torch
from network_contract import random_images
from published_keys import (
    EDGENETS_UNUSED,
    coincheung_bisenet_v1,
    coincheung_bisenet_v2,
    davidtvs_enet,
    edgenets_espnetv2,
    eromera_erfnet,
)
from safetensors.torch import save_file

from anomseg_ros.errors import CheckpointError, ConfigError
from anomseg_ros.networks import build_network
from anomseg_ros.networks.checkpoints import FORMAT, load_checkpoint, save_checkpoint
from anomseg_ros.networks.layouts import COINCHEUNG_MEAN, COINCHEUNG_STD, LAYOUTS

PUBLISHED = {
    "davidtvs/PyTorch-ENet": ("enet", davidtvs_enet(19)),
    "Eromera/erfnet_pytorch": ("erfnet", eromera_erfnet(19)),
    "CoinCheung/BiSeNet": ("bisenet_v1", coincheung_bisenet_v1(19, True)),
    "CoinCheung/BiSeNet, inference only": ("bisenet_v1", coincheung_bisenet_v1(19, False)),
    "CoinCheung/BiSeNet v2": ("bisenet_v2", coincheung_bisenet_v2(19, True)),
    "CoinCheung/BiSeNet v2, inference only": ("bisenet_v2", coincheung_bisenet_v2(19, False)),
    "sacmehta/EdgeNets, scale 0.5": ("espnetv2", edgenets_espnetv2(19, (16, 32, 64, 128))),
    "sacmehta/EdgeNets, scale 1.25": ("espnetv2", edgenets_espnetv2(19, (32, 80, 160, 320))),
    "sacmehta/EdgeNets, scale 2.0": ("espnetv2", edgenets_espnetv2(19, (32, 128, 256, 512))),
}


def random_state(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.tensor(3) if key.endswith("tracked") else torch.rand(shape, generator=generator) * 0.2 + 0.01
        for key, shape in shapes.items()
    }


@pytest.fixture
def enet_state():
    return random_state(davidtvs_enet(19))


@pytest.mark.parametrize("layout", PUBLISHED)
def test_published_layouts_fit_completely(layout, tmp_path):
    name, shapes = PUBLISHED[layout]
    state = random_state(shapes)
    torch.save(state, tmp_path / "published.pth")
    network = load_checkpoint(tmp_path / "published.pth", name, 19)
    assert network.source_layout == layout.replace(" v2", "")
    # Every published value arrives, once: the same numbers under other names.
    arrived = sorted(float(value.double().sum()) for value in network.state_dict().values())
    unused = ("encoder.output_conv.weight", "encoder.output_conv.bias", *EDGENETS_UNUSED)
    sent = sorted(float(value.double().sum()) for key, value in state.items() if key not in unused)
    assert arrived == pytest.approx(sent)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.network}: {layout.name}")
def test_no_two_parameters_share_a_published_key(layout):
    keys = build_network(layout.network, 3).state_dict()
    assert len({layout.published_key(key) for key in keys}) == len(keys)


def test_bisenet_checkpoints_bring_their_normalisation(tmp_path):
    torch.save(random_state(coincheung_bisenet_v2(19, False)), tmp_path / "published.pth")
    network = load_checkpoint(tmp_path / "published.pth", "bisenet_v2", 19)
    assert (network.mean, network.std) == (COINCHEUNG_MEAN, COINCHEUNG_STD)


@pytest.mark.parametrize(
    ("wrapper", "prefix", "suffix"),
    [
        ("state_dict", "module.", ".tar"),
        ("model", "", ".pt"),
        ("model_state_dict", "", ".pth"),
        (None, "module.", ".pth"),
    ],
)
def test_wrappers_and_prefixes_are_removed(enet_state, tmp_path, wrapper, prefix, suffix):
    content = {prefix + key: value for key, value in enet_state.items()}
    torch.save({"epoch": 3, wrapper: content} if wrapper else content, tmp_path / f"published{suffix}")
    network = load_checkpoint(tmp_path / f"published{suffix}", "enet", 19)
    assert torch.equal(network.state_dict()["classifier.weight"], enet_state["transposed_conv.weight"])


def test_files_without_step_counters_load(enet_state, tmp_path):
    torch.save({key: value for key, value in enet_state.items() if "tracked" not in key}, tmp_path / "old.pth")
    assert load_checkpoint(tmp_path / "old.pth", "enet", 19).source_layout == "davidtvs/PyTorch-ENet"


def test_missing_unexpected_and_misshapen_published_keys_are_named(enet_state, tmp_path):
    for key in [key for key in enet_state if key.startswith("regular1_1.ext_conv1")]:
        del enet_state[key]
    enet_state["stray"] = torch.zeros(1)
    enet_state["initial_block.main_branch.weight"] = torch.zeros(13, 3, 5, 5)
    torch.save(enet_state, tmp_path / "wrong.pth")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "wrong.pth", "enet", 19)
    message = str(caught.value)
    assert "closest layout 'davidtvs/PyTorch-ENet'" in message
    assert "6 missing (" in message and "regular1_1.ext_conv1.0.weight" in message and ", ...)" in message
    assert "1 unexpected (stray)" in message
    assert "1 misshapen (initial_block.main_branch.weight (13, 3, 5, 5) where (13, 3, 3, 3) is expected)" in message


def test_the_number_of_classes_in_a_published_file_is_named(enet_state, tmp_path):
    torch.save(enet_state, tmp_path / "published.pth")
    with pytest.raises(CheckpointError, match="trained for 19 classes, not 20; ask for num_classes=19"):
        load_checkpoint(tmp_path / "published.pth", "enet", 20)


def test_a_checkpoint_of_another_network_says_which(enet_state, tmp_path):
    torch.save(enet_state, tmp_path / "published.pth")
    with pytest.raises(CheckpointError, match="it fits network 'enet' with num_classes=19"):
        load_checkpoint(tmp_path / "published.pth", "mide_net", 19)


def test_our_checkpoint_of_another_network_says_which(tmp_path):
    save_checkpoint(tmp_path / "own.safetensors", build_network("enet", 3), {})
    with pytest.raises(CheckpointError, match="holds network 'enet', not 'erfnet'"):
        load_checkpoint(tmp_path / "own.safetensors", "erfnet", 3)


def test_an_unknown_network_is_named_before_the_file_is_read(tmp_path):
    with pytest.raises(ConfigError, match="unknown network 'erf'"):
        load_checkpoint(tmp_path / "none.pth", "erf", 3)


class Intruder:
    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_file_is_not_run(tmp_path):
    intruder = Intruder()
    intruder.path = tmp_path / "was_run"
    torch.save({"state_dict": intruder}, tmp_path / "hostile.pth")
    with pytest.raises(CheckpointError, match=r"weights only \(.*mkdir.*save model.state_dict\(\) alone"):
        load_checkpoint(tmp_path / "hostile.pth", "enet", 19)
    assert not (tmp_path / "was_run").exists()


def test_a_whole_pickled_model_says_what_to_do(tmp_path):
    torch.save(build_network("mide_net", 3), tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"MiDENet.*save model.state_dict\(\) alone") as caught:
        load_checkpoint(tmp_path / "model.pth", "mide_net", 3)
    assert "weights_only=False" not in str(caught.value)


@pytest.mark.parametrize("name", ["broken.pth", "broken.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04" + bytes(60), b"\xff" * 100])
def test_damaged_files_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(tmp_path / name, "enet", 19)


def test_a_truncated_file_is_refused(tmp_path):
    save_checkpoint(tmp_path / "whole.safetensors", build_network("mide_net", 3), {})
    (tmp_path / "half.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_checkpoint(tmp_path / "half.safetensors", "mide_net", 3)


@pytest.mark.parametrize(
    ("content", "expected"),
    [([1, 2], "holds a list"), ({}, "holds a dict"), ({"epoch": 3, "lr": 0.1}, r"more than tensors \(epoch, lr\)")],
)
def test_files_without_weights_are_refused(tmp_path, content, expected):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=expected):
        load_checkpoint(tmp_path / "other.pth", "enet", 19)


def test_missing_files_and_unknown_suffixes_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint file"):
        load_checkpoint(tmp_path / "none.pth", "enet", 19)
    (tmp_path / "weights.onnx").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"ends in '\.onnx'"):
        load_checkpoint(tmp_path / "weights.onnx", "enet", 19)


GOOD = {"version": 1, "network": "mide_net", "options": {}, "mean": [0, 0, 0], "std": [1, 1, 1]}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"version": 2}, "format 2, newer than 1; update"),
        ({"network": "vgg"}, "holds network 'vgg', unknown here"),
        ({"options": {"depth": 3}}, "damaged"),
        ({"mean": [0]}, "damaged"),
        ({"std": [1, 0, 1]}, "damaged"),
        ({"version": "x"}, "damaged"),
    ],
)
def test_a_wrong_description_in_our_file_is_refused(tmp_path, change, expected):
    header = {FORMAT: json.dumps({**GOOD, "source_layout": None, "metadata": {}, **change})}
    state = build_network("mide_net", 3).state_dict()
    save_file(state, tmp_path / "own.safetensors", header)
    with pytest.raises(CheckpointError, match=expected):
        load_checkpoint(tmp_path / "own.safetensors", "mide_net", 3)


def test_saving_keeps_the_variant_and_where_the_weights_came_from(enet_state, tmp_path):
    torch.save(enet_state, tmp_path / "published.pth")
    network = load_checkpoint(tmp_path / "published.pth", "enet", 19)
    save_checkpoint(tmp_path / "own.safetensors", network, {"note": "fine-tuned"})
    again = load_checkpoint(tmp_path / "own.safetensors", "enet", 19)
    assert again.source_layout == "davidtvs/PyTorch-ENet"
    assert again.options() == network.options()
    images = random_images(64, 96)
    with torch.no_grad():
        assert torch.equal(again(images), network(images))


def test_saving_refuses_what_it_cannot_write(tmp_path):
    network = build_network("mide_net", 3)
    with pytest.raises(CheckpointError, match=r"must end in \.safetensors"):
        save_checkpoint(tmp_path / "own.pth", network, {})
    with pytest.raises(CheckpointError, match="what JSON cannot"):
        save_checkpoint(tmp_path / "own.safetensors", network, {"optimizer": object()})
    with pytest.raises(CheckpointError, match="cannot write"):
        save_checkpoint(tmp_path / "no_such_folder" / "own.safetensors", network, {})
    assert list(tmp_path.iterdir()) == []
