"""InternImage: published parameters of its five sizes, published files, deformation in exported graphs, options."""

from __future__ import annotations

import logging
from typing import Any

import onnx
import pytest
import torch
from network_contract import NetworkFigures, random_images
from published_intern_image import opengvlab_intern_image

from anomseg_ros.core.bundle import Provenance
from anomseg_ros.errors import ConfigError
from anomseg_ros.export import ExportConfig, export_network, write_graph
from anomseg_ros.networks import build_network
from anomseg_ros.networks.checkpoints import load_checkpoint
from anomseg_ros.networks.counting import count_multiply_adds
from anomseg_ros.networks.intern_image import PUBLISHED_HEAD, SIZES, InternImage
from anomseg_ros.networks.layouts import LAYOUTS

FIELDS = ("channels", "depths", "groups", "post_norm")


class TestInternImage(NetworkFigures):
    name = "intern_image"
    # Of the small default network, counted by this package; the published sizes are below.
    parameters = 568_597
    parameters_tolerance = 0.0
    multiply_adds = 2.372e9
    logit_stride = 4
    auxiliary_sizes = ((6, 8),)


PUBLISHED = {
    "T": (28_769_520, 29_678_742, 628_886, 59.08),
    "S": (48_502_560, 30_588_054, 776_342, 79.87),
    "B": (94_909_920, 32_406_678, 1_071_254, 128.39),
    "L": (218_952_370, 35_134_614, 1_513_622, 255.60),
    "XL": (328_971_228, 36_953_238, 1_808_534, 367.73),
}
"""Parameters of backbone, head and auxiliary head with 150 outputs, and the whole in millions."""


def parameters(*modules):
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@pytest.mark.parametrize("size", SIZES)
def test_sizes_of_the_authors_have_the_published_parameters(size):
    with torch.device("meta"):
        network = InternImage(150, **SIZES[size], **PUBLISHED_HEAD)
    backbone = parameters(network.stem, network.levels, network.downsamples)
    head, auxiliary = parameters(network.head, network.classifier), parameters(network.auxiliary_heads)
    assert (backbone, head, auxiliary) == PUBLISHED[size][:3]
    assert round(parameters(network) / 1e6, 2) == PUBLISHED[size][3]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "published_g"), [("T", 944), ("B", 1185), ("L", 3234 / 2)])
def test_multiply_adds_are_the_published_ones_at_512x2048(size, published_g):
    """The authors' figure is for 512x2048 (L: for 1024x2048) and includes normalisations and DCNv3's sums."""
    with torch.device("meta"):
        network = InternImage(150, **SIZES[size], **PUBLISHED_HEAD)
    assert count_multiply_adds(network, 512, 2048) / 1e9 == pytest.approx(published_g, rel=0.006)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dataset", ["Cityscapes", "ADE20k"])
def test_published_keys_and_shapes_are_those_of_the_layout(size, dataset):
    (layout,) = (one for one in LAYOUTS if one.name == f"OpenGVLab/InternImage-{size}, {dataset}")
    with torch.device("meta"):
        network = InternImage(150, **layout.options)
    ours = {layout.published_key(key): tuple(value.shape) for key, value in network.state_dict().items()}
    shape = {name: value for name, value in SIZES[size].items() if name in FIELDS}
    assert ours == opengvlab_intern_image(**shape)
    assert layout.options.get("offset_scale", 1.0) == (2.0 if size in ("L", "XL") else 1.0)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file like that of InternImage-T, with random weights and what mmsegmentation saves beside them."""
    generator = torch.Generator().manual_seed(0)
    shape = {name: value for name, value in SIZES["T"].items() if name in FIELDS}
    state = {
        key: torch.tensor(3) if key.endswith("tracked") else torch.rand(size, generator=generator) * 0.02 + 0.01
        for key, size in opengvlab_intern_image(**shape).items()
    }
    path = tmp_path_factory.mktemp("published") / "upernet_internimage_t.pth"
    meta = {"CLASSES": ("road", "sidewalk"), "PALETTE": [[128, 64, 128]], "iter": 160000, "env_info": "text"}
    torch.save({"meta": meta, "state_dict": state, "optimizer": {"param_groups": []}}, path)
    return path, state


@pytest.mark.slow
def test_outputs_of_a_cityscapes_file_are_cut_and_the_log_says_so(published, caplog):
    path, state = published
    with caplog.at_level(logging.WARNING):
        network: Any = load_checkpoint(path, "intern_image", 19)
    assert "the first 19 outputs of the file are used" in caplog.text and str(path) in caplog.text
    assert network.source_layout == "OpenGVLab/InternImage-T, Cityscapes"
    assert (
        network.num_classes == len(network.classifier.weight) == len(network.auxiliary_heads[0].classifier.bias) == 19
    )
    assert torch.equal(network.classifier.weight, state["decode_head.conv_seg.weight"][:19])
    assert torch.equal(network.auxiliary_heads[0].classifier.bias, state["auxiliary_head.conv_seg.bias"][:19])
    moved = {"backbone.levels.2.blocks.3.dcn.dw_conv.1.1.bias": network.levels[2].blocks[3].dcn.norm.bias}
    moved["backbone.levels.0.norm.0.weight"] = network.levels[0].norm.weight
    moved["decode_head.psp_modules.3.1.bn.running_var"] = network.head.pooled[3].norm.running_var
    assert all(torch.equal(state[key], value) for key, value in moved.items())
    assert network.mean == pytest.approx((123.675 / 255, 116.28 / 255, 103.53 / 255))
    assert network.std == pytest.approx((58.395 / 255, 57.12 / 255, 57.375 / 255))


@pytest.mark.slow
def test_ade20k_file_has_all_its_outputs(published, caplog):
    path, state = published
    with caplog.at_level(logging.WARNING):
        network: Any = load_checkpoint(path, "intern_image", 150)
    assert network.source_layout == "OpenGVLab/InternImage-T, ADE20k" and not caplog.text
    assert torch.equal(network.classifier.weight, state["decode_head.conv_seg.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("deform_conv", [False, True])
def test_exported_graph_equals_the_network_with_offsets(tmp_path, deform_conv):
    """Fresh networks have no offsets; these have, at a size that is no multiple of the stride."""
    torch.manual_seed(0)
    network = InternImage(19, depths=(1, 1, 1, 1), offset_scale=2.0, post_norm=False, auxiliary_width=0).eval()
    for name, parameter in network.named_parameters():
        if ".offset." in name or ".mask." in name:
            torch.nn.init.normal_(parameter, std=0.5)
    config = ExportConfig("deformed", 19, height_px=72, width_px=104, scores=("max_logit",), deform_conv=deform_conv)
    bundle, parity = export_network(network, "intern_image", config, tmp_path / "deformed", Provenance())
    assert parity.label_disagreement <= 0.001 and not any(layer.dcn.as_operator for layer in network.levels[0].blocks)
    kinds = {node.op_type for node in onnx.load(bundle.graph_path).graph.node}
    assert {"DeformConv", "GridSample"} & kinds == {"DeformConv" if deform_conv else "GridSample"}


def test_deform_conv_of_another_network_is_refused(tmp_path):
    config = ExportConfig("plain", 19, height_px=32, width_px=64, deform_conv=True)
    with pytest.raises(ConfigError, match="needs a network of deformable convolutions"):
        write_graph(build_network("mide_net", 19).eval(), config, tmp_path)


def test_third_stage_has_a_sixteenth_of_the_size():
    network = InternImage(3, auxiliary_width=0).eval()
    with torch.no_grad():
        features = network.predict(random_images(64, 96), ("stage3",)).features["stage3"]
    assert features.shape == (1, 64, 4, 6)
    assert network.options()["auxiliary_width"] == 0 and not network.auxiliary_heads


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"channels": 15}, "channels is 15; expected an even number"),
        ({"depths": (1, 1, 1)}, r"depths is \(1, 1, 1\); expected 4 numbers from 1"),
        ({"groups": (1, 2, 4, 0)}, r"groups is \(1, 2, 4, 0\); expected 4 numbers"),
        ({"groups": (3, 2, 4, 8)}, "3 does not divide the 16 channels"),
    ],
)
def test_invalid_options_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        InternImage(3, **options)
