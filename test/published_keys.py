"""Names and shapes of the parameters in published checkpoints, derived from the structure of the published code.

They are independent of anomseg_ros.networks.layouts, so that tests detect a wrong mapping there.
"""

from __future__ import annotations

import math

Shapes = dict[str, tuple[int, ...]]


def _norm(name: str, channels: int) -> Shapes:
    shapes: Shapes = {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}
    return {**shapes, f"{name}.num_batches_tracked": ()}


def _conv(name: str, *shape: int, bias: int = 0) -> Shapes:
    return {f"{name}.weight": shape, **({f"{name}.bias": (bias,)} if bias else {})}


def davidtvs_enet(classes: int) -> Shapes:
    """PyTorch-ENet, models/enet.py."""
    shapes = {**_conv("initial_block.main_branch", 13, 3, 3, 3), **_norm("initial_block.batch_norm", 16)}
    shapes["initial_block.out_activation.weight"] = (1,)

    def branch(name: str, inputs: int, inner: int, outputs: int, first: int, asymmetric: bool, prelu: bool) -> None:
        shapes.update(_conv(f"{name}.ext_conv1.0", inner, inputs, first, first) | _norm(f"{name}.ext_conv1.1", inner))
        kernels = [(5, 1), (1, 5)] if asymmetric else [(3, 3)]
        for index, kernel in enumerate(kernels):
            shapes.update(_conv(f"{name}.ext_conv2.{3 * index}", inner, inner, *kernel))
            shapes.update(_norm(f"{name}.ext_conv2.{3 * index + 1}", inner))
        shapes.update(_conv(f"{name}.ext_conv3.0", outputs, inner, 1, 1) | _norm(f"{name}.ext_conv3.1", outputs))
        if prelu:
            slopes = ["ext_conv1.2", "ext_conv2.2", "ext_conv3.2", "out_activation"]
            slopes += ["ext_conv2.5"] if asymmetric else []
            shapes.update({f"{name}.{slope}.weight": (1,) for slope in slopes})

    branch("downsample1_0", 16, 4, 64, 2, False, True)
    for index in range(1, 5):
        branch(f"regular1_{index}", 64, 16, 64, 1, False, True)
    branch("downsample2_0", 64, 16, 128, 2, False, True)
    words = ["regular", "dilated", "asymmetric", "dilated", "regular", "dilated", "asymmetric", "dilated"]
    for stage, start in ((2, 1), (3, 0)):
        for index, word in enumerate(words):
            branch(f"{word}{stage}_{index + start}", 128, 32, 128, 1, word == "asymmetric", True)
    for name, inputs, outputs in (("upsample4_0", 128, 64), ("upsample5_0", 64, 16)):
        inner = inputs // 4
        shapes.update(_conv(f"{name}.main_conv1.0", outputs, inputs, 1, 1) | _norm(f"{name}.main_conv1.1", outputs))
        shapes.update(_conv(f"{name}.ext_conv1.0", inner, inputs, 1, 1) | _norm(f"{name}.ext_conv1.1", inner))
        shapes.update(_conv(f"{name}.ext_tconv1", inner, inner, 2, 2) | _norm(f"{name}.ext_tconv1_bnorm", inner))
        shapes.update(_conv(f"{name}.ext_conv2.0", outputs, inner, 1, 1) | _norm(f"{name}.ext_conv2.1", outputs))
    for name, channels in (("regular4_1", 64), ("regular4_2", 64), ("regular5_1", 16)):
        branch(name, channels, channels // 4, channels, 1, False, False)
    return {**shapes, **_conv("transposed_conv", 16, classes, 3, 3)}


def eromera_erfnet(classes: int) -> Shapes:
    """erfnet_pytorch, train/erfnet.py, with the encoder's own classifier."""

    def resize(name: str, *shape: int, bias: int, channels: int) -> Shapes:
        return {**_conv(f"{name}.conv", *shape, bias=bias), **_norm(f"{name}.bn", channels)}

    def residual(name: str, channels: int) -> Shapes:
        shapes: Shapes = {}
        for pair in "12":
            shapes.update(_conv(f"{name}.conv3x1_{pair}", channels, channels, 3, 1, bias=channels))
            shapes.update(_conv(f"{name}.conv1x3_{pair}", channels, channels, 1, 3, bias=channels))
            shapes.update(_norm(f"{name}.bn{pair}", channels))
        return shapes

    shapes = {
        **resize("encoder.initial_block", 13, 3, 3, 3, bias=13, channels=16),
        **resize("encoder.layers.0", 48, 16, 3, 3, bias=48, channels=64),
        **resize("encoder.layers.6", 64, 64, 3, 3, bias=64, channels=128),
        **resize("decoder.layers.0", 128, 64, 3, 3, bias=64, channels=64),
        **resize("decoder.layers.3", 64, 16, 3, 3, bias=16, channels=16),
        **_conv("encoder.output_conv", classes, 128, 1, 1, bias=classes),
        **_conv("decoder.output_conv", 16, classes, 2, 2, bias=classes),
    }
    places = [(f"encoder.layers.{index}", 64 if index < 6 else 128) for index in (*range(1, 6), *range(7, 15))]
    places += [("decoder.layers.1", 64), ("decoder.layers.2", 64), ("decoder.layers.4", 16), ("decoder.layers.5", 16)]
    for name, channels in places:
        shapes.update(residual(name, channels))
    return shapes


def _coincheung_conv(name: str, outputs: int, inputs: int, kernel: int) -> Shapes:
    return {**_conv(f"{name}.conv", outputs, inputs, kernel, kernel), **_norm(f"{name}.bn", outputs)}


def coincheung_bisenet_v1(classes: int, auxiliary: bool) -> Shapes:
    """BiSeNet, lib/models/bisenetv1.py and resnet.py."""
    block = _coincheung_conv
    shapes = {**_conv("cp.resnet.conv1", 64, 3, 7, 7), **_norm("cp.resnet.bn1", 64)}
    for layer, inputs, outputs in ((1, 64, 64), (2, 64, 128), (3, 128, 256), (4, 256, 512)):
        for index in range(2):
            name = f"cp.resnet.layer{layer}.{index}"
            shapes.update(_conv(f"{name}.conv1", outputs, outputs if index else inputs, 3, 3))
            shapes.update(_conv(f"{name}.conv2", outputs, outputs, 3, 3))
            shapes.update(_norm(f"{name}.bn1", outputs) | _norm(f"{name}.bn2", outputs))
        if inputs != outputs:
            shapes.update(_conv(f"cp.resnet.layer{layer}.0.downsample.0", outputs, inputs, 1, 1))
            shapes.update(_norm(f"cp.resnet.layer{layer}.0.downsample.1", outputs))
    for name, inputs in (("cp.arm16", 256), ("cp.arm32", 512)):
        shapes.update(block(f"{name}.conv", 128, inputs, 3))
        shapes.update(_conv(f"{name}.conv_atten", 128, 128, 1, 1) | _norm(f"{name}.bn_atten", 128))
    shapes.update(block("cp.conv_head32", 128, 128, 3) | block("cp.conv_head16", 128, 128, 3))
    shapes.update(block("cp.conv_avg", 128, 512, 1))
    shapes.update(block("sp.conv1", 64, 3, 7) | block("sp.conv2", 64, 64, 3) | block("sp.conv3", 64, 64, 3))
    shapes.update(block("sp.conv_out", 128, 64, 1) | block("ffm.convblk", 256, 256, 1))
    shapes.update(_conv("ffm.conv", 256, 256, 1, 1) | _norm("ffm.bn", 256))
    heads = [("conv_out", 256, 256), *((("conv_out16", 128, 64), ("conv_out32", 128, 64)) if auxiliary else ())]
    for name, inputs, inner in heads:
        shapes.update(block(f"{name}.conv", inner, inputs, 3))
        shapes.update(_conv(f"{name}.conv_out", classes, inner, 1, 1, bias=classes))
    return shapes


def coincheung_bisenet_v2(classes: int, auxiliary: bool) -> Shapes:
    """BiSeNet, lib/models/bisenetv2.py."""
    block = _coincheung_conv
    shapes: Shapes = {}
    for name, outputs, inputs in (
        ("S1.0", 64, 3), ("S1.1", 64, 64), ("S2.0", 64, 64), ("S2.1", 64, 64), ("S2.2", 64, 64),
        ("S3.0", 128, 64), ("S3.1", 128, 128), ("S3.2", 128, 128),
    ):  # fmt: skip
        shapes.update(block(f"detail.{name}", outputs, inputs, 3))
    stem = "segment.S1S2"
    shapes.update(block(f"{stem}.conv", 16, 3, 3) | block(f"{stem}.left.0", 8, 16, 1))
    shapes.update(block(f"{stem}.left.1", 16, 8, 3) | block(f"{stem}.fuse", 16, 32, 3))
    for stage, inputs, outputs, count in (("S3", 16, 32, 2), ("S4", 32, 64, 2), ("S5_4", 64, 128, 4)):
        shapes.update(_gather_expand_down(f"segment.{stage}.0", inputs, outputs))
        for index in range(1, count):
            name, inner = f"segment.{stage}.{index}", outputs * 6
            shapes.update(block(f"{name}.conv1", outputs, outputs, 3))
            shapes.update(_conv(f"{name}.dwconv.0", inner, 1, 3, 3) | _norm(f"{name}.dwconv.1", inner))
            shapes.update(_conv(f"{name}.conv2.0", outputs, inner, 1, 1) | _norm(f"{name}.conv2.1", outputs))
    shapes.update(_norm("segment.S5_5.bn", 128) | block("segment.S5_5.conv_gap", 128, 128, 1))
    shapes.update(block("segment.S5_5.conv_last", 128, 128, 3))
    for name, inputs in (("left1", 1), ("right2", 1), ("left2", 128), ("right1", 128), ("conv", 128)):
        shapes.update(_conv(f"bga.{name}.0", 128, inputs, 3, 3) | _norm(f"bga.{name}.1", 128))
    shapes.update(_conv("bga.left1.2", 128, 128, 1, 1) | _conv("bga.right2.2", 128, 128, 1, 1))
    shapes.update(block("head.conv", 1024, 128, 3) | _conv("head.conv_out.1", classes, 1024, 1, 1, bias=classes))
    for name, inputs, scale in (("aux2", 16, 4), ("aux3", 32, 8), ("aux4", 64, 16), ("aux5_4", 128, 32)):
        if auxiliary:
            inner = scale * scale
            shapes.update(block(f"{name}.conv", 128, inputs, 3) | block(f"{name}.conv_out.0.1", inner, 128, 3))
            shapes.update(_conv(f"{name}.conv_out.1", classes, inner, 1, 1, bias=classes))
    return shapes


def _gather_expand_down(name: str, inputs: int, outputs: int) -> Shapes:
    inner = inputs * 6
    return {
        **_coincheung_conv(f"{name}.conv1", inputs, inputs, 3),
        **_conv(f"{name}.dwconv1.0", inner, 1, 3, 3),
        **_norm(f"{name}.dwconv1.1", inner),
        **_conv(f"{name}.dwconv2.0", inner, 1, 3, 3),
        **_norm(f"{name}.dwconv2.1", inner),
        **_conv(f"{name}.conv2.0", outputs, inner, 1, 1),
        **_norm(f"{name}.conv2.1", outputs),
        **_conv(f"{name}.shortcut.0", inputs, 1, 3, 3),
        **_norm(f"{name}.shortcut.1", inputs),
        **_conv(f"{name}.shortcut.2", outputs, inputs, 1, 1),
        **_norm(f"{name}.shortcut.3", outputs),
    }


EDGENETS_UNUSED = tuple(f"base_net.level{level}_0.eesp.module_act.weight" for level in (2, 3, 4))


def edgenets_espnetv2(classes: int, widths: tuple[int, int, int, int]) -> Shapes:
    """EdgeNets, model/segmentation/espnetv2.py, nn_layers/eesp.py, efficient_pyramid_pool.py and efficient_pt.py."""
    prelu = _norm_prelu
    shapes: Shapes = {**_conv("base_net.level1.conv", widths[0], 3, 3, 3), **prelu("base_net.level1", widths[0])}

    def eesp(name: str, inputs: int, outputs: int) -> None:
        inner = outputs // 4
        shapes.update(_conv(f"{name}.proj_1x1.conv", inner, inputs // 4, 1, 1) | prelu(f"{name}.proj_1x1", inner))
        for branch in range(4):
            shapes.update(_conv(f"{name}.spp_dw.{branch}.conv", inner, 1, 3, 3))
        shapes.update(prelu(f"{name}.br_after_cat", outputs))
        shapes.update(_conv(f"{name}.conv_1x1_exp.conv", outputs, inner, 1, 1))
        shapes.update(_norm(f"{name}.conv_1x1_exp.bn", outputs) | {f"{name}.module_act.weight": (outputs,)})

    for level, units in ((2, 0), (3, 3), (4, 7)):
        inputs, outputs = widths[level - 2 : level]
        name = f"base_net.level{level}_0"
        eesp(f"{name}.eesp", inputs, outputs - inputs)
        shapes.update(_conv(f"{name}.inp_reinf.0.conv", 3, 3, 3, 3) | prelu(f"{name}.inp_reinf.0", 3))
        shapes.update(_conv(f"{name}.inp_reinf.1.conv", outputs, 3, 1, 1))
        shapes.update(_norm(f"{name}.inp_reinf.1.bn", outputs) | {f"{name}.act.weight": (outputs,)})
        for unit in range(units):
            eesp(f"base_net.level{level}.{unit}", outputs, outputs)

    for level, (inputs, outputs) in enumerate(((widths[3], 64), (64, 48), (48, 32), (32, classes)), start=1):
        name = f"bu_dec_l{level}"
        shapes.update(_edgenets_cbr(f"{name}.projection_layer.cbr", 10, inputs, 1))
        for stage in range(5):
            shapes.update(_conv(f"{name}.stages.{stage}", 10, 1, 3, 3))
        shapes.update(_edgenets_br(f"{name}.merge_layer.0.br", 50))
        shapes.update(_edgenets_cbr(f"{name}.merge_layer.2.cbr", 10, 5, 3))
        shapes.update(_conv(f"{name}.merge_layer.3", outputs, 10, 1, 1, bias=classes if level == 4 else 0))
        shapes.update(_edgenets_br(f"{name}.br.br", outputs) if level < 4 else {})
    for level, inputs, outputs in ((2, widths[2], 64), (3, widths[1], 48), (4, widths[0], 32)):
        name = f"merge_enc_dec_l{level}"
        shapes.update(_conv(f"{name}.wt_layer.1", outputs, inputs, 1, 1))
        shapes.update(_edgenets_cbr(f"{name}.expansion_layer.cbr", outputs, inputs // math.gcd(inputs, outputs), 3))
        shapes.update(_edgenets_br(f"bu_br_l{level}", outputs))
    return shapes


def _norm_prelu(name: str, channels: int) -> Shapes:
    return {**_norm(f"{name}.bn", channels), f"{name}.act.weight": (channels,)}


def _edgenets_br(name: str, channels: int) -> Shapes:
    return {**_norm(f"{name}.0", channels), f"{name}.1.weight": (channels,)}


def _edgenets_cbr(name: str, outputs: int, inputs: int, kernel: int) -> Shapes:
    return {
        **_conv(f"{name}.0", outputs, inputs, kernel, kernel),
        **_norm(f"{name}.1", outputs),
        f"{name}.2.weight": (outputs,),
    }


def tue_mps_eomt(classes: int, width: int, depth: int, queries: int, grid: int, query_blocks: int) -> Shapes:
    """EoMT, models/eomt.py, models/vit.py and models/scale_block.py, as training/lightning_module.py saves it."""
    backbone = "network.encoder.backbone"
    shapes = _vision_transformer(backbone, width, depth, 16, "reg_token")
    shapes[f"{backbone}.pos_embed"] = (1, grid * grid, width)
    shapes |= {f"network.encoder.pixel_{part}": (1, 3, 1, 1) for part in ("mean", "std")}
    shapes |= {"network.q.weight": (queries, width), "network.attn_mask_probs": (query_blocks,)}
    shapes |= _linear("network.class_head", width, classes + 1)
    for index in (0, 2, 4):
        shapes |= _linear(f"network.mask_head.{index}", width, width)
    for index in (0, 1):
        shapes |= _conv(f"network.upscale.{index}.conv1", width, width, 2, 2, bias=width)
        shapes |= _conv(f"network.upscale.{index}.conv2", width, 1, 3, 3)
        shapes |= _conv(f"network.upscale.{index}.norm", width, bias=width)
    return {**shapes, "criterion.empty_weight": (classes + 1,)}


def facebookresearch_dinov2(width: int, depth: int) -> Shapes:
    """DINOv2 with four registers, dinov2/models/vision_transformer.py: patches of 14 pixels of images of 518x518."""
    shapes = _vision_transformer("", width, depth, 14, "register_tokens")
    return {**shapes, "pos_embed": (1, 37 * 37 + 1, width), "mask_token": (1, width)}


def timm_vit(width: int, depth: int, grid: int, classes: int) -> Shapes:
    """A vision transformer with patches of 16 pixels, as timm and facebookresearch/deit save it."""
    shapes = _vision_transformer("", width, depth, 16, "none")
    apart = {key: shape for key, shape in shapes.items() if ".ls" not in key and key != "none"}
    return {**apart, "pos_embed": (1, grid * grid + 1, width), **_linear("head", width, classes)}


def microsoft_beit(width: int, depth: int, grid: int, classes: int) -> Shapes:
    """BEiT, beit/modeling_finetune.py of microsoft/unilm, fine-tuned on classes."""
    shapes = {key: shape for key, shape in timm_vit(width, depth, grid, classes).items() if key != "pos_embed"}
    shapes = {key.replace("norm.", "fc_norm.") if key.startswith("norm.") else key: s for key, s in shapes.items()}
    rows, tokens = (2 * grid - 1) ** 2 + 3, grid * grid + 1
    for index in range(depth):
        attention = f"blocks.{index}.attn"
        del shapes[f"{attention}.qkv.bias"]
        shapes |= {f"{attention}.{part}_bias": (width,) for part in "qv"}
        shapes |= {f"{attention}.relative_position_bias_table": (rows, width // 64)}
        shapes |= {f"{attention}.relative_position_index": (tokens, tokens)}
        shapes |= {f"blocks.{index}.gamma_{part}": (width,) for part in (1, 2)}
    return shapes


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _vision_transformer(place: str, width: int, depth: int, patch_px: int, registers: str) -> Shapes:
    shapes = _conv("patch_embed.proj", width, 3, patch_px, patch_px, bias=width)
    shapes |= {"cls_token": (1, 1, width), registers: (1, 4, width)} | _conv("norm", width, bias=width)
    for index in range(depth):
        block = f"blocks.{index}"
        shapes |= _conv(f"{block}.norm1", width, bias=width) | _conv(f"{block}.norm2", width, bias=width)
        shapes |= _linear(f"{block}.attn.qkv", width, 3 * width) | _linear(f"{block}.attn.proj", width, width)
        shapes |= _linear(f"{block}.mlp.fc1", width, 4 * width) | _linear(f"{block}.mlp.fc2", 4 * width, width)
        shapes |= {f"{block}.ls{part}.gamma": (width,) for part in (1, 2)}
    return {f"{place}.{key}" if place else key: shape for key, shape in shapes.items()}
