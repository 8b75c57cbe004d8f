"""Names and shapes of the parameters in InternImage's published segmentors, derived from the published code."""

from __future__ import annotations

from collections.abc import Sequence

Shapes = dict[str, tuple[int, ...]]


def _pair(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": (shape[0],)}


def _conv_module(name: str, outputs: int, inputs: int, kernel: int) -> Shapes:
    shapes: Shapes = {f"{name}.conv.weight": (outputs, inputs, kernel, kernel), f"{name}.bn.num_batches_tracked": ()}
    return {**shapes, **{f"{name}.bn.{part}": (outputs,) for part in ("weight", "bias", "running_mean", "running_var")}}


def opengvlab_intern_image(
    channels: int, depths: Sequence[int], groups: Sequence[int], post_norm: bool = True, classes: int = 150
) -> Shapes:
    """InternImage, segmentation/mmseg_custom/models/backbones/intern_image.py, and mmsegmentation's heads."""
    stem = "backbone.patch_embed"
    shapes = {**_pair(f"{stem}.conv1", channels // 2, 3, 3, 3), **_pair(f"{stem}.norm1.1", channels // 2)}
    shapes |= {**_pair(f"{stem}.conv2", channels, channels // 2, 3, 3), **_pair(f"{stem}.norm2.1", channels)}
    widths = [channels << stage for stage in range(4)]
    for stage, width in enumerate(widths):
        level = f"backbone.levels.{stage}"
        for block in range(depths[stage]):
            shapes |= _block(f"{level}.blocks.{block}", width, groups[stage])
        if not post_norm:
            shapes |= _pair(f"{level}.norm.0", width)
        if stage < 3:
            shapes[f"{level}.downsample.conv.weight"] = (2 * width, width, 3, 3)
            shapes |= _pair(f"{level}.downsample.norm.1", 2 * width)
    for index in range(4):
        shapes |= _conv_module(f"decode_head.psp_modules.{index}.1", 512, widths[3], 1)
    shapes |= _conv_module("decode_head.bottleneck", 512, widths[3] + 4 * 512, 3)
    for index in range(3):
        shapes |= _conv_module(f"decode_head.lateral_convs.{index}", 512, widths[index], 1)
        shapes |= _conv_module(f"decode_head.fpn_convs.{index}", 512, 512, 3)
    shapes |= _conv_module("decode_head.fpn_bottleneck", 512, 4 * 512, 3)
    shapes |= _conv_module("auxiliary_head.convs.0", 256, widths[2], 3)
    return {
        **shapes,
        **_pair("decode_head.conv_seg", classes, 512, 1, 1),
        **_pair("auxiliary_head.conv_seg", classes, 256, 1, 1),
    }


def _block(name: str, width: int, groups: int) -> Shapes:
    shapes: Shapes = {f"{name}.gamma1": (width,), f"{name}.gamma2": (width,)}
    for norm in ("norm1.0", "norm2.0", "dcn.dw_conv.1.1"):
        shapes |= _pair(f"{name}.{norm}", width)
    shapes |= _pair(f"{name}.dcn.dw_conv.0", width, 1, 3, 3)
    for layer, outputs, inputs in (
        ("dcn.offset", groups * 18, width),
        ("dcn.mask", groups * 9, width),
        ("dcn.input_proj", width, width),
        ("dcn.output_proj", width, width),
        ("mlp.fc1", 4 * width, width),
        ("mlp.fc2", width, 4 * width),
    ):
        shapes |= _pair(f"{name}.{layer}", outputs, inputs)
    return shapes
