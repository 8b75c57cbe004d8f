"""The checkpoint layouts of published implementations: which of their keys holds which of our parameters.

A layout is a function from our key to theirs. Every parameter and buffer of a network has exactly one published
counterpart, so that missing and unexpected keys are known by name before anything is loaded.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict

import torch

from anomseg_ros.networks.enet import CONTEXT_SCHEDULE, DAVIDTVS, YASSOUALI
from anomseg_ros.networks.erfnet import NORM_EPSILON
from anomseg_ros.networks.espnetv2 import WIDTHS
from anomseg_ros.networks.layout import Layout, Rules, State, by_rules
from anomseg_ros.networks.layouts_dual_stream import DUAL_STREAM_LAYOUTS
from anomseg_ros.networks.layouts_eomt import EOMT_LAYOUTS
from anomseg_ros.networks.layouts_intern_image import INTERN_IMAGE
from anomseg_ros.networks.network import IMAGENET_MEAN, IMAGENET_STD

# --- ENet ---------------------------------------------------------------------------------------------------------

_BLOCK = re.compile(r"(down|stage|up)(\d)\.(?:(\d+)\.)?")
"""The part of our key that names a bottleneck: kind, stage and index within the stage."""


def _is_asymmetric(kind: str, number: int, index: int) -> bool:
    return kind == "stage" and number in (2, 3) and CONTEXT_SCHEDULE[index] is None


_YASSOUALI_PARTS: Rules = (
    (r"\.shortcut\.conv\.", ".spatil_conv."),
    (r"\.shortcut\.norm\.", ".bn_up."),
    (r"\.spatial\.first_conv\.", ".conv2.0."),
    (r"\.spatial\.first_norm\.", ".conv2.1."),
    (r"\.spatial\.first_activation\.", ".conv2.2."),
    (r"\.output_activation\.", ".prelu_out."),
    (r"\.(reduce|spatial|expand)\.norm\.", r".\1.bn."),
    (r"\.(reduce|spatial|expand)\.activation\.", r".\1.prelu."),
    (r"\.reduce\.(\w+)\.", r".\g<1>1."),
    (r"\.spatial\.(\w+)\.", r".\g<1>2."),
    (r"\.expand\.(\w+)\.", r".\g<1>3."),
    (r"^initial\.norm\.", "initial.bn."),
    (r"^initial\.activation\.", "initial.prelu."),
    (r"^classifier\.", "fullconv."),
)


def _yassouali_key(key: str) -> str:
    block = _BLOCK.match(key)
    if block:
        # Bottleneck 0 of a stage resizes; stage 3 has none and begins with 1.
        kind, number, index = block.groups()
        place = int(index) + 1 if kind == "stage" else 0
        key = f"bottleneck{number}{place}.{key[block.end() :]}"
        if _is_asymmetric(kind, int(number), int(index or 0)):
            # Both convolutions of the pair are in one Sequential.
            key = key.replace(".spatial.conv.", ".conv2.3.")
    return by_rules(_YASSOUALI_PARTS)(key)


def _davidtvs_block(kind: str, number: int, index: int) -> str:
    if kind != "stage":
        return f"{kind}sample{number}_0"
    rate = CONTEXT_SCHEDULE[index] if number in (2, 3) else 1
    word = "asymmetric" if rate is None else "regular" if rate == 1 else "dilated"
    return f"{word}{number}_{index if number == 3 else index + 1}"


_DAVIDTVS_UPSAMPLING: Rules = (
    (r"\.shortcut\.conv\.", ".main_conv1.0."),
    (r"\.shortcut\.norm\.", ".main_conv1.1."),
    (r"\.reduce\.conv\.", ".ext_conv1.0."),
    (r"\.reduce\.norm\.", ".ext_conv1.1."),
    (r"\.spatial\.conv\.", ".ext_tconv1."),
    (r"\.spatial\.norm\.", ".ext_tconv1_bnorm."),
    (r"\.expand\.conv\.", ".ext_conv2.0."),
    (r"\.expand\.norm\.", ".ext_conv2.1."),
)

_DAVIDTVS_OTHERS: Rules = (
    (r"\.spatial\.first_conv\.", ".ext_conv2.0."),
    (r"\.spatial\.first_norm\.", ".ext_conv2.1."),
    (r"\.spatial\.first_activation\.", ".ext_conv2.2."),
    (r"\.reduce\.", ".ext_conv1."),
    (r"\.spatial\.", ".ext_conv2."),
    (r"\.expand\.", ".ext_conv3."),
    (r"\.output_activation\.", ".out_activation."),
    (r"\.conv\.", ".0."),
    (r"\.norm\.", ".1."),
    (r"\.activation\.", ".2."),
)

_DAVIDTVS_ENDS: Rules = (
    (r"^initial\.conv\.", "initial_block.main_branch."),
    (r"^initial\.norm\.", "initial_block.batch_norm."),
    (r"^initial\.activation\.", "initial_block.out_activation."),
    (r"^classifier\.", "transposed_conv."),
)


def _davidtvs_key(key: str) -> str:
    block = _BLOCK.match(key)
    if not block:
        return by_rules(_DAVIDTVS_ENDS)(key)
    kind, number, index = block[1], int(block[2]), int(block[3] or 0)
    inner = "." + key[block.end() :]
    if _is_asymmetric(kind, number, index):
        for place, part in ((3, "conv"), (4, "norm"), (5, "activation")):
            inner = inner.replace(f".spatial.{part}.", f".ext_conv2.{place}.")
    rules = _DAVIDTVS_UPSAMPLING if kind == "up" else _DAVIDTVS_OTHERS
    return _davidtvs_block(kind, number, index) + by_rules(rules)(inner)


# --- ERFNet -------------------------------------------------------------------------------------------------------

_EROMERA: Rules = (
    (r"^encoder\.0\.", "encoder.initial_block."),
    (r"^encoder\.(\d+)\.", lambda match: f"encoder.layers.{int(match[1]) - 1}."),
    (r"^decoder\.(\d+)\.", r"decoder.layers.\1."),
    (r"^classifier\.", "decoder.output_conv."),
    (r"\.vertical(\d)\.", r".conv3x1_\1."),
    (r"\.horizontal(\d)\.", r".conv1x3_\1."),
    (r"\.norm(\d?)\.", r".bn\1."),
)

_ACTIVATION_RANGE = re.compile(r"(^|[._])(scale|zero_point)(_\d+)?$")


def _unquantize_erfnet(state: State) -> State:
    """Return the float form of an ERFNet after FX graph-mode static quantization (torch.ao.quantization).

    Weights are dequantized. Ranges of activations are dropped, because only quantized kernels use them. The
    normalisation of residual blocks was folded into the convolutions before it and becomes the identity.
    """
    plain = {key: value.dequantize() for key, value in state.items() if not _ACTIVATION_RANGE.search(key)}
    for key in [key for key in plain if re.search(r"\.conv1x3_\d\.bias$", key)]:
        norm = re.sub(r"\.conv1x3_(\d)\.bias$", r".bn\1.", key)
        if norm + "weight" not in plain:
            ones = torch.ones_like(plain[key])
            plain[norm + "weight"] = ones * math.sqrt(1.0 + NORM_EPSILON)
            plain[norm + "running_var"] = ones
            plain[norm + "bias"] = torch.zeros_like(ones)
            plain[norm + "running_mean"] = torch.zeros_like(ones)
    return plain


# --- MiDE-Net -----------------------------------------------------------------------------------------------------

_MIDENET: Rules = (
    (r"^stage(\d)\.", r"bottleneck\1."),
    (r"\.shortcut\.", ".match_channels."),
    (r"\.reduce\.(\w+)\.", r".\g<1>1."),
    (r"\.spatial\.(\w+)\.", r".\g<1>2."),
    (r"\.expand\.(\w+)\.", r".\g<1>3."),
    (r"\.norm(\d?)\.", r".bn\1."),
)

# --- BiSeNet ------------------------------------------------------------------------------------------------------

_COINCHEUNG_V1: Rules = (
    (r"^spatial_path\.3\.", "sp.conv_out."),
    (r"^spatial_path\.(\d)\.", lambda match: f"sp.conv{int(match[1]) + 1}."),
    (r"^context_path\.backbone\.stem\.conv\.", "cp.resnet.conv1."),
    (r"^context_path\.backbone\.stem\.norm\.", "cp.resnet.bn1."),
    (r"^context_path\.backbone\.", "cp.resnet."),
    (r"\.first\.(\w+)\.", r".\g<1>1."),
    (r"\.second\.(\w+)\.", r".\g<1>2."),
    (r"\.shortcut\.conv\.", ".downsample.0."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"^context_path\.refine(\d+)\.", r"cp.arm\1."),
    (r"^context_path\.smooth(\d+)\.", r"cp.conv_head\1."),
    (r"^context_path\.global_context\.", "cp.conv_avg."),
    (r"^fusion\.project\.", "ffm.convblk."),
    (r"^fusion\.attention\.layers\.", "ffm."),
    (r"\.attention\.layers\.(\w+)\.", r".\g<1>_atten."),
    (r"\.project\.", ".conv."),
    (r"^head\.", "conv_out."),
    (r"^auxiliary_heads\.0\.", "conv_out16."),
    (r"^auxiliary_heads\.1\.", "conv_out32."),
    (r"\.smooth\.", ".conv."),
    (r"\.classifier\.", ".conv_out."),
    (r"\.norm(_atten|\d?)\.", r".bn\1."),
)

_DETAIL_PLACES = ("S1.0", "S1.1", "S2.0", "S2.1", "S2.2", "S3.0", "S3.1", "S3.2")

_COINCHEUNG_V2: Rules = (
    (r"^detail\.(\d)\.", lambda match: f"detail.{_DETAIL_PLACES[int(match[1])]}."),
    (r"^semantic\.stem\.", "segment.S1S2."),
    (r"^semantic\.stage([34])\.", r"segment.S\1."),
    (r"^semantic\.stage5\.", "segment.S5_4."),
    (r"^semantic\.context\.norm\.", "segment.S5_5.bn."),
    (r"^semantic\.context\.project\.", "segment.S5_5.conv_gap."),
    (r"^semantic\.context\.smooth\.", "segment.S5_5.conv_last."),
    # Inside a gather-and-expansion layer; those with stride 2 are the first of their stage.
    (r"^(segment\.S(?:3|4|5_4)\.\d)\.gather\.", r"\1.conv1."),
    (r"^(segment\.S(?:3|4|5_4)\.0)\.expand\.conv\.", r"\1.dwconv1.0."),
    (r"^(segment\.S(?:3|4|5_4)\.0)\.expand\.norm\.", r"\1.dwconv1.1."),
    (r"^(segment\.S(?:3|4|5_4)\.\d)\.expand\.conv\.", r"\1.dwconv.0."),
    (r"^(segment\.S(?:3|4|5_4)\.\d)\.expand\.norm\.", r"\1.dwconv.1."),
    (r"\.depthwise\.conv\.", ".dwconv2.0."),
    (r"\.depthwise\.norm\.", ".dwconv2.1."),
    (r"\.project\.conv\.", ".conv2.0."),
    (r"\.project\.norm\.", ".conv2.1."),
    (r"\.shortcut_depthwise\.conv\.", ".shortcut.0."),
    (r"\.shortcut_depthwise\.norm\.", ".shortcut.1."),
    (r"\.shortcut_project\.conv\.", ".shortcut.2."),
    (r"\.shortcut_project\.norm\.", ".shortcut.3."),
    (r"^aggregation\.detail\.dwconv2\.", "bga.left1."),
    (r"^aggregation\.detail\.pointwise\.", "bga.left1.2."),
    (r"^aggregation\.semantic\.dwconv2\.", "bga.right2."),
    (r"^aggregation\.semantic\.pointwise\.", "bga.right2.2."),
    (r"^aggregation\.detail_down\.", "bga.left2."),
    (r"^aggregation\.semantic_up\.", "bga.right1."),
    (r"^aggregation\.smooth\.", "bga.conv."),
    (r"^(bga\.\w+)\.conv\.", r"\1.0."),
    (r"^(bga\.\w+)\.norm\.", r"\1.1."),
    (r"^auxiliary_heads\.3\.", "aux5_4."),
    (r"^auxiliary_heads\.(\d)\.", lambda match: f"aux{int(match[1]) + 2}."),
    (r"\.smooth\.", ".conv."),
    (r"^(aux\w+)\.expand\.", r"\1.conv_out.0.1."),
    (r"\.classifier\.", ".conv_out.1."),
    (r"\.norm\.", ".bn."),
)

COINCHEUNG_MEAN = (0.3257, 0.3690, 0.3223)
COINCHEUNG_STD = (0.2112, 0.2148, 0.2115)
"""Mean and standard deviation of Cityscapes in RGB, from CoinCheung/BiSeNet, lib/data/cityscapes_cv2.py."""


def _coincheung(network: str, rules: Rules) -> tuple[Layout, ...]:
    """Return the layouts with the heads for training and without them."""
    return tuple(
        Layout(name, network, by_rules(rules), {"auxiliary_heads": auxiliary}, (), COINCHEUNG_MEAN, COINCHEUNG_STD)
        for name, auxiliary in (("CoinCheung/BiSeNet", True), ("CoinCheung/BiSeNet, inference only", False))
    )


# --- ESPNetv2 -----------------------------------------------------------------------------------------------------

_EDGENETS_PARTS = ("down4", "level2_0"), ("down8", "level3_0"), ("stage8", "level3"), ("down16", "level4_0")

_EDGENETS: Rules = (
    (r"^encoder\.stem\.", "base_net.level1."),
    *((rf"^encoder\.{ours}\.", f"base_net.{theirs}.") for ours, theirs in _EDGENETS_PARTS),
    (r"^encoder\.stage16\.", "base_net.level4."),
    (r"^(base_net\..*)\.reduce\.", r"\1.proj_1x1."),
    (r"^(base_net\..*)\.branches\.(\d)\.", r"\1.spp_dw.\2.conv."),
    (r"^(base_net\..*)\.joined\.", r"\1.br_after_cat."),
    (r"^(base_net\..*)\.expand\.", r"\1.conv_1x1_exp."),
    (r"^(base_net\..*)\.image\.", r"\1.inp_reinf."),
    (r"^(base_net\..*)\.output_activation\.", r"\1.module_act."),
    (r"^(base_net\..*)\.norm\.", r"\1.bn."),
    (r"^(base_net\..*)\.activation\.", r"\1.act."),
    (r"^decoder\.(?:pyramids|expansions)\.(\d)\.", lambda match: f"bu_dec_l{int(match[1]) + 1}."),
    (r"^decoder\.merges\.(\d)\.joined\.", lambda match: f"bu_br_l{int(match[1]) + 2}."),
    (r"^decoder\.merges\.(\d)\.", lambda match: f"merge_enc_dec_l{int(match[1]) + 2}."),
    (r"^(bu_dec_l\d)\.conv\.", r"\1.merge_layer.3."),
    (r"^(bu_dec_l\d)\.(norm|activation)\.", r"\1.br.br.\2."),
    (r"^(bu_dec_l\d)\.project\.", r"\1.projection_layer.cbr."),
    (r"^(bu_dec_l\d)\.branches\.", r"\1.stages."),
    (r"^(bu_dec_l\d)\.joined\.", r"\1.merge_layer.0.br."),
    (r"^(bu_dec_l\d)\.fuse\.", r"\1.merge_layer.2.cbr."),
    (r"^(merge_enc_dec_l\d)\.weigh\.", r"\1.wt_layer.1."),
    (r"^(merge_enc_dec_l\d)\.project\.", r"\1.expansion_layer.cbr."),
    (r"^classifier\.", "bu_dec_l4.merge_layer.3."),
    (r"\.cbr\.conv\.", ".cbr.0."),
    (r"\.cbr\.norm\.", ".cbr.1."),
    (r"\.cbr\.activation\.", ".cbr.2."),
    (r"\.norm\.", ".0."),
    (r"\.activation\.", ".1."),
)


def _edgenets() -> tuple[Layout, ...]:
    """Return one layout per scale. Published units that halve the size hold slopes that they do not apply."""
    unused = tuple(f"base_net.level{level}_0.eesp.module_act.weight" for level in (2, 3, 4))
    return tuple(
        Layout(name, "espnetv2", by_rules(_EDGENETS), {"scale": scale}, unused, IMAGENET_MEAN, IMAGENET_STD)
        for name, scale in ((f"sacmehta/EdgeNets, scale {scale}", scale) for scale in WIDTHS)
    )


LAYOUTS: tuple[Layout, ...] = (
    # yassouali's Cityscapes loader normalises. The published weights of emariesanna/AnomalySegmentation-AMLProject, in
    # the same layout, were trained on plain 0..1 images.
    Layout("yassouali/pytorch-segmentation", "enet", _yassouali_key, {"variant": asdict(YASSOUALI)}),
    Layout("davidtvs/PyTorch-ENet", "enet", _davidtvs_key, {"variant": asdict(DAVIDTVS)}),
    Layout(
        "Eromera/erfnet_pytorch",
        "erfnet",
        by_rules(_EROMERA),
        unused=("encoder.output_conv.weight", "encoder.output_conv.bias"),
    ),
    Layout(
        "Eromera/erfnet_pytorch, quantized by torch FX",
        "erfnet",
        by_rules(_EROMERA),
        quantized=True,
        prepare=_unquantize_erfnet,
    ),
    Layout("emariesanna/AnomalySegmentation-AMLProject", "mide_net", by_rules(_MIDENET)),
    *_coincheung("bisenet_v1", _COINCHEUNG_V1),
    *_coincheung("bisenet_v2", _COINCHEUNG_V2),
    *_edgenets(),
    *DUAL_STREAM_LAYOUTS,
    *EOMT_LAYOUTS,
    *INTERN_IMAGE,
)
