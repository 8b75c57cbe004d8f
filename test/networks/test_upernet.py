"""UPerNet's head equals that of transformers on the same weights."""

from __future__ import annotations

import re

import pytest
import torch
from network_contract import random_images

from anomseg_ros.networks.upernet import UPerHead

CHANNELS, WIDTH = (8, 16, 24, 32), 12
RULES = (
    (r"^pooled\.(\d)\.", r"psp_modules.\1.1."),
    (r"^context\.", "bottleneck."),
    (r"^laterals\.", "lateral_convs."),
    (r"^smooth\.", "fpn_convs."),
    (r"^fusion\.", "fpn_bottleneck."),
    (r"\.norm\.", ".batch_norm."),
)


def their_key(key):
    for pattern, replacement in RULES:
        key = re.sub(pattern, replacement, key)
    return key


@pytest.mark.parametrize("size", [(64, 96), (96, 224)])
def test_head_equals_that_of_transformers(size):
    reason = "transformers is the oracle: install it to compare with its head"
    upernet = pytest.importorskip("transformers.models.upernet.modeling_upernet", reason=reason)
    config = upernet.UperNetConfig(hidden_size=WIDTH, pool_scales=[1, 2, 3, 6], num_labels=5)
    theirs = upernet.UperNetHead(config, list(CHANNELS)).eval()
    ours = UPerHead(CHANNELS, WIDTH).eval()
    generator = torch.Generator().manual_seed(0)
    for value in ours.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) * 0.4 + 0.05)
    shared = {their_key(key): value for key, value in ours.state_dict().items()}
    classifier = {key: value for key, value in theirs.state_dict().items() if key.startswith("classifier.")}
    theirs.load_state_dict(shared | classifier, strict=True)
    stages = [
        random_images(size[0] >> 2 + stage, size[1] >> 2 + stage, seed=stage)
        .mean(1, keepdim=True)
        .repeat(1, count, 1, 1)
        * torch.rand(1, count, 1, 1, generator=generator)
        for stage, count in enumerate(CHANNELS)
    ]
    with torch.no_grad():
        torch.testing.assert_close(theirs.classifier(ours(stages)), theirs(stages), atol=1e-4, rtol=1e-5)
