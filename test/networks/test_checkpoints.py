"""Published layouts load key by key, errors name invalid files, and code in a file is not run."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

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
from safetensors import safe_open
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
def test_published_layouts_load_completely(layout, tmp_path):
    name, shapes = PUBLISHED[layout]
    state = random_state(shapes)
    torch.save(state, tmp_path / "published.pth")
    network = load_checkpoint(tmp_path / "published.pth", name, 19)
    assert network.source_layout == layout.replace(" v2", "")
    # Every published value is loaded exactly once, under another name.
    arrived = sorted(float(value.double().sum()) for value in network.state_dict().values())
    unused = ("encoder.output_conv.weight", "encoder.output_conv.bias", *EDGENETS_UNUSED)
    sent = sorted(float(value.double().sum()) for key, value in state.items() if key not in unused)
    assert arrived == pytest.approx(sent)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.network}: {layout.name}")
def test_published_keys_are_unique_per_layout(layout):
    keys = build_network(layout.network, 3).state_dict()
    assert len({layout.published_key(key) for key in keys}) == len(keys)


def test_bisenet_checkpoint_sets_the_normalisation(tmp_path):
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


def test_checkpoint_without_step_counters_loads(enet_state, tmp_path):
    torch.save({key: value for key, value in enet_state.items() if "tracked" not in key}, tmp_path / "old.pth")
    assert load_checkpoint(tmp_path / "old.pth", "enet", 19).source_layout == "davidtvs/PyTorch-ENet"


def test_error_names_missing_unexpected_and_misshapen_published_keys(enet_state, tmp_path):
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


def test_error_names_the_number_of_classes_of_a_published_file(enet_state, tmp_path):
    torch.save(enet_state, tmp_path / "published.pth")
    with pytest.raises(CheckpointError, match="trained for 19 classes, not 20; ask for num_classes=19"):
        load_checkpoint(tmp_path / "published.pth", "enet", 20)


def test_error_names_the_network_of_a_published_checkpoint(enet_state, tmp_path):
    torch.save(enet_state, tmp_path / "published.pth")
    with pytest.raises(CheckpointError, match="it fits network 'enet' with num_classes=19"):
        load_checkpoint(tmp_path / "published.pth", "mide_net", 19)


def test_error_names_the_network_of_our_checkpoint(tmp_path):
    save_checkpoint(tmp_path / "own.safetensors", build_network("enet", 3), {})
    with pytest.raises(CheckpointError, match="holds network 'enet', not 'erfnet'"):
        load_checkpoint(tmp_path / "own.safetensors", "erfnet", 3)


def test_unknown_network_is_refused_before_the_file_is_read(tmp_path):
    with pytest.raises(ConfigError, match="unknown network 'erf'"):
        load_checkpoint(tmp_path / "none.pth", "erf", 3)


class MaliciousObject:
    path: Path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    intruder = MaliciousObject()
    intruder.path = tmp_path / "was_run"
    torch.save({"state_dict": intruder}, tmp_path / "hostile.pth")
    with pytest.raises(CheckpointError, match=r"weights only \(.*mkdir.*save model.state_dict\(\) alone"):
        load_checkpoint(tmp_path / "hostile.pth", "enet", 19)
    assert not (tmp_path / "was_run").exists()


def test_pickled_model_error_states_the_remedy(tmp_path):
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


def test_truncated_file_is_refused(tmp_path):
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


def test_missing_file_and_unknown_suffix_are_refused(tmp_path):
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
        ({"version": float("inf")}, "damaged"),
        ({"metadata": 5}, "damaged"),
        ({"pruned": {"groups": []}}, "damaged"),
        ({"fitted": ["void"]}, "damaged"),
        ({"source_layout": {}}, "damaged"),
    ],
)
def test_invalid_description_in_our_checkpoint_is_refused(tmp_path, change, expected):
    header = {FORMAT: json.dumps({**GOOD, "source_layout": None, "metadata": {}, **change})}
    state = build_network("mide_net", 3).state_dict()
    save_file(state, tmp_path / "own.safetensors", header)
    with pytest.raises(CheckpointError, match=expected):
        load_checkpoint(tmp_path / "own.safetensors", "mide_net", 3)


@pytest.mark.parametrize("text", ["[" * 3000, "{}", "null", '{"version": 1}'])
def test_hostile_description_is_refused(tmp_path, text):
    save_file(build_network("mide_net", 3).state_dict(), tmp_path / "own.safetensors", {FORMAT: text})
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(tmp_path / "own.safetensors", "mide_net", 3)


@pytest.mark.parametrize("damage", ["missing", "unexpected", "misshapen"])
def test_error_names_a_wrong_key_in_our_checkpoint(tmp_path, damage):
    save_checkpoint(tmp_path / "own.safetensors", build_network("mide_net", 3), {})
    with safe_open(tmp_path / "own.safetensors", "pt") as file:
        state, header = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    key = "classifier.weight"
    if damage == "missing":
        del state[key]
    elif damage == "unexpected":
        key = "intruder.weight"
        state[key] = torch.zeros(3)
    else:
        state[key] = state[key].unsqueeze(-1).repeat_interleave(3, -1)
    save_file(state, tmp_path / "wrong.safetensors", header)
    with pytest.raises(CheckpointError, match=rf"1 {damage} \({key}"):
        load_checkpoint(tmp_path / "wrong.safetensors", "mide_net", 3)


def test_saved_checkpoint_keeps_variant_and_source_layout(enet_state, tmp_path):
    torch.save(enet_state, tmp_path / "published.pth")
    network = load_checkpoint(tmp_path / "published.pth", "enet", 19)
    save_checkpoint(tmp_path / "own.safetensors", network, {"note": "fine-tuned"})
    again = load_checkpoint(tmp_path / "own.safetensors", "enet", 19)
    assert again.source_layout == "davidtvs/PyTorch-ENet"
    assert again.options() == network.options()
    images = random_images(64, 96)
    with torch.no_grad():
        assert torch.equal(again(images), network(images))


def test_unwritable_path_or_metadata_is_refused_when_saving(tmp_path):
    network = build_network("mide_net", 3)
    with pytest.raises(CheckpointError, match=r"must end in \.safetensors"):
        save_checkpoint(tmp_path / "own.pth", network, {})
    with pytest.raises(CheckpointError, match="what JSON cannot"):
        save_checkpoint(tmp_path / "own.safetensors", network, {"optimizer": object()})
    with pytest.raises(CheckpointError, match="cannot write"):
        save_checkpoint(tmp_path / "no_such_folder" / "own.safetensors", network, {})
    assert list(tmp_path.iterdir()) == []


WRAPPED = ["module.", "module._orig_mod.", "model."]


@pytest.mark.parametrize("prefix", WRAPPED)
def test_wrapper_module_prefixes_are_removed(enet_state, tmp_path, prefix):
    wrapped = {"state_dict": {prefix + key: value for key, value in enet_state.items()}}
    torch.save(wrapped, tmp_path / "wrapped.ckpt")
    torch.save(enet_state, tmp_path / "plain.pth")
    plain = load_checkpoint(tmp_path / "plain.pth", "enet", 19).state_dict()
    network = load_checkpoint(tmp_path / "wrapped.ckpt", "enet", 19)
    assert network.source_layout == "davidtvs/PyTorch-ENet"
    assert all(torch.equal(value, plain[key]) for key, value in network.state_dict().items())


@pytest.mark.slow
def test_partial_prefix_or_keys_that_do_not_fit_are_refused(enet_state, tmp_path):
    keys = list(enet_state)
    some = {("model." if key in keys[:5] else "") + key: value for key, value in enet_state.items()}
    torch.save(some, tmp_path / "some.pth")
    with pytest.raises(CheckpointError, match=r" missing .*5 unexpected \(model\."):
        load_checkpoint(tmp_path / "some.pth", "enet", 19)
    more = {f"model.{key}": value for key, value in enet_state.items()} | {"model.stray": torch.zeros(1)}
    torch.save(more, tmp_path / "more.pth")
    with pytest.raises(CheckpointError, match=r"network 'enet' .*: 1 unexpected \(stray\)"):
        load_checkpoint(tmp_path / "more.pth", "enet", 19)
    wrapped = {f"model.{key}": value for key, value in enet_state.items()}
    torch.save(wrapped, tmp_path / "wrapped.pth")
    with pytest.raises(CheckpointError, match="it fits network 'enet' with num_classes=19"):
        load_checkpoint(tmp_path / "wrapped.pth", "mide_net", 19)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is a Git LFS pointer.*git lfs pull"),
        (b"<!DOCTYPE html><html><title>Virus scan warning</title></html>", "is an HTML or XML page of 61 bytes"),
        (b"No such object\n", "is a text of 15 bytes, not a checkpoint"),
    ],
)
def test_foreign_content_is_described_in_the_error(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name} {said}"):
        load_checkpoint(tmp_path / name, "enet", 19)


def test_error_omits_the_advice_of_torch_to_run_the_file(tmp_path):
    for number, content in enumerate((b"\0" * 100, b"\x80\4\x95junk", b"PK\3\4" + b"x" * 100)):
        path = tmp_path / f"{number}.pth"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="cannot be loaded as weights only") as caught:
            load_checkpoint(path, "enet", 19)
        assert not re.search(r"weights_only|PyTorch 2\.6|Weights only load failed|miniz", str(caught.value))
