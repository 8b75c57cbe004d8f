"""The layouts of InternImage's published segmentors, github.com/OpenGVLab/InternImage and mmsegmentation's names.

Every published Cityscapes configuration has num_classes=150, so that its files have 150 outputs. Training gave labels 0
to 18 alone: the first 19 outputs are Cityscapes' classes in train-id order, the others are left out.
"""

from __future__ import annotations

import re
from dataclasses import replace

from anomseg_ros.networks.intern_image import PUBLISHED_HEAD, SIZES
from anomseg_ros.networks.layout import Layout, Rules, State, by_rules
from anomseg_ros.networks.network import IMAGENET_MEAN, IMAGENET_STD

CITYSCAPES_OUTPUTS = 19
CLASSIFIERS = re.compile(r"^(decode|auxiliary)_head\.conv_seg\.")
CUT = (
    f"the first {CITYSCAPES_OUTPUTS} outputs of the file are used: files of Cityscapes have 150, and training used "
    "these alone (a file of ADE20k needs num_classes 150)"
)

_OPENGVLAB: Rules = (
    (r"^stem\.norm(\d)\.", r"backbone.patch_embed.norm\1.1."),
    (r"^stem\.", "backbone.patch_embed."),
    (r"^levels\.(\d)\.norm\.", r"backbone.levels.\1.norm.0."),
    (r"^levels\.", "backbone.levels."),
    (r"^downsamples\.(\d)\.norm\.", r"backbone.levels.\1.downsample.norm.1."),
    (r"^downsamples\.(\d)\.", r"backbone.levels.\1.downsample."),
    (r"\.(norm[12])\.(weight|bias)$", r".\1.0.\2"),
    (r"\.dcn\.depthwise\.", ".dcn.dw_conv.0."),
    (r"\.dcn\.norm\.", ".dcn.dw_conv.1.1."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.2\.", ".mlp.fc2."),
    (r"^head\.pooled\.(\d)\.", r"decode_head.psp_modules.\1.1."),
    (r"^head\.context\.", "decode_head.bottleneck."),
    (r"^head\.laterals\.", "decode_head.lateral_convs."),
    (r"^head\.smooth\.", "decode_head.fpn_convs."),
    (r"^head\.fusion\.", "decode_head.fpn_bottleneck."),
    (r"^classifier\.", "decode_head.conv_seg."),
    (r"^auxiliary_heads\.0\.smooth\.", "auxiliary_head.convs.0."),
    (r"^auxiliary_heads\.0\.classifier\.", "auxiliary_head.conv_seg."),
    (r"^((?:decode|auxiliary)_head\..*)\.norm\.", r"\1.bn."),
)


def _cut_outputs(state: State) -> State:
    """Return the state with Cityscapes' outputs of both classifiers alone."""
    return {key: value[:CITYSCAPES_OUTPUTS] if CLASSIFIERS.match(key) else value for key, value in state.items()}


def _layouts(size: str) -> tuple[Layout, Layout]:
    name, published_key = f"OpenGVLab/InternImage-{size}", by_rules(_OPENGVLAB)
    options = {**SIZES[size], **PUBLISHED_HEAD}
    ade20k = Layout(f"{name}, ADE20k", "intern_image", published_key, options, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return replace(ade20k, name=f"{name}, Cityscapes", prepare=_cut_outputs, note=CUT), ade20k


INTERN_IMAGE = tuple(layout for size in SIZES for layout in _layouts(size))
"""Of each size, Cityscapes' and ADE20k's files; only the number of classes that is asked for tells them apart."""
