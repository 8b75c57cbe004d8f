from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from fitted_networks import PIXEL_SCORES, fit_on_noise
from torch import nn

from anomseg_ros import parity
from anomseg_ros.backends import open_detector
from anomseg_ros.core.bundle import Provenance, load_bundle
from anomseg_ros.core.image_files import read_image
from anomseg_ros.core.labels import CAMVID
from anomseg_ros.errors import ConfigError, ExportError
from anomseg_ros.export import (
    DetectorGraph,
    ExportConfig,
    StripGraph,
    export_checkpoint,
    export_network,
)
from anomseg_ros.networks import NETWORKS, build_network
from anomseg_ros.networks.network import pixels_to_input
from anomseg_ros.networks.score_head import ScoreHead
from anomseg_ros.parity import JUMPING_SHARE, check_parity
from anomseg_ros.scores import find_score

SMALL = ExportConfig("small", 20, 19, height_px=64, width_px=128)
PUBLISHED = {
    "enet": "enet_560_epochs_finetuned.pth",
    "erfnet": "erfnet_void20_dequantized.safetensors",
    "mide_net": "midenet_distilled.pth",
}


@pytest.mark.parametrize("void_class", [None, 19, 7])
def test_labels_are_train_ids_of_the_argmax(void_class: int | None) -> None:
    classes = 19 if void_class is None else 20
    config = ExportConfig("x", classes, void_class)
    logits = 12 * torch.randn((1, classes, 16, 24), generator=torch.Generator().manual_seed(3))
    graph = DetectorGraph(build_network("mide_net", classes), config)
    train_ids = np.array([info.train_id for info in config.classes()])
    assert (graph.labels(logits)[0].numpy() == train_ids[logits[0].argmax(0).numpy()]).all()


def test_labels_need_no_constant_of_the_cpu() -> None:
    """A CUDA graph cannot be captured where an operator reads one."""

    class Labels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.graph = DetectorGraph(build_network("mide_net", 20), SMALL)

        def forward(self, logits: torch.Tensor) -> torch.Tensor:
            return self.graph.labels(logits)

    program = torch.export.export(Labels(), (torch.zeros((1, 20, 4, 4)),))
    assert not [node for node in program.graph.nodes if "lift_fresh" in str(node.target)]


def test_scores_of_huge_logits_are_finite() -> None:
    network, config = build_network("mide_net", 20).eval(), dataclasses.replace(SMALL, scores=PIXEL_SCORES)
    fit_on_noise(network, config)
    graph, logits = DetectorGraph(network, config), torch.zeros((1, 20, 2, 2))
    logits[:, 3], logits[:, 4] = 1e4, -1e4
    prediction = network.predict(torch.zeros(1, 3, 64, 128), graph.features)
    logits = logits.repeat(1, 1, 32, 64)
    scores = graph.scores.frame_scores(graph.scores.pixel_maps(logits), prediction)
    assert len(scores) == len(PIXEL_SCORES) and all(torch.isfinite(score).all() for score in scores)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("void_class", [None, 19, 7])
def test_strip_graph_equals_the_whole_graph(network: str, void_class: int | None) -> None:
    """The size is a multiple of neither the stride nor the height of a strip."""
    torch.manual_seed(2)
    classes = 19 if void_class is None else 20
    built = build_network(network, classes).eval()
    scores = [find_score(name) for name in PIXEL_SCORES]
    # With a void class, the outputs do not show where the predicted known class differs.
    names = tuple(one.name for one in scores if not (one.needs_void if void_class is None else one.label_reach_px))
    config = ExportConfig("x", classes, void_class, height_px=100, width_px=150, scores=names)
    fit_on_noise(built, config)
    image = torch.randint(0, 256, (1, 100, 150, 3), dtype=torch.uint8)
    with torch.inference_mode():
        whole, strips = DetectorGraph(built, config)(image), StripGraph(built, config)(image)
    assert (whole[0] != strips[0]).float().mean() < 1e-3  # nearly equal classes
    ties = (whole[0] != strips[0])[0].numpy().astype(np.uint8)
    for name, before, after in zip(names, whole[1:], strips[1:], strict=True):
        assert after.shape == (1, 100, 150)
        score, fitted = find_score(name), built.fitted_scores.get(name)
        same = cv2.dilate(ties, np.ones((2 * score.label_reach_px + 1,) * 2, np.uint8)) == 0
        tolerance = 1e-4 * (1.0 if fitted is None else score.steepness(fitted.tensors))
        kept = torch.from_numpy(same if score.label_reach_px else np.ones_like(same))
        if score.jumps:  # where a feature is as far from two centres, up to rounding
            assert (~torch.isclose(after[0], before[0], atol=tolerance, rtol=1e-4)).float().mean() < JUMPING_SHARE
        else:
            torch.testing.assert_close(after[0, kept], before[0, kept], atol=tolerance, rtol=1e-4)


def test_graph_contains_no_paths_of_this_machine(tiny_bundle: Path) -> None:
    graph = (tiny_bundle / "model.onnx").read_bytes()
    assert b".py" not in graph and str(Path(__file__).resolve().parents[1]).encode() not in graph


def test_default_scores_and_classes() -> None:
    assert SMALL.score_names() == ("void", "max_logit", "msp", "max_entropy")
    assert ExportConfig("x", 19).score_names() == ("max_logit", "msp", "max_entropy")
    assert [info.name for info in SMALL.classes()][-2:] == ["bicycle", "void"]
    assert ExportConfig("x", 12, 0, label_set="camvid").classes()[0].train_id == 255


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ExportConfig("x", 20), "has 19 classes, the network has 20"),
        (ExportConfig("x", 20, 20), "void class 20 is not one of the outputs 0 to 19"),
        (ExportConfig("x", 20, 19, label_set="kitti"), "unknown label set 'kitti'"),
        (ExportConfig("x", 2, label_set="mine", known_classes=CAMVID[:1]), "label set 'mine' .* has 1 classes"),
        (ExportConfig("x", 2, label_set="mine", known_classes=CAMVID[1:3]), "train ids in another order than 0, 1, 2"),
    ],
)
def test_invalid_classes_are_refused(config: ExportConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.classes()


def test_graph_of_other_weights_fails_the_parity_check(tiny_bundle: Path) -> None:
    torch.manual_seed(99)
    other = build_network("mide_net", 20).eval()
    fit_on_noise(other, SMALL)
    frame = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    with pytest.raises(ExportError, match="the exported graph is wrong, nothing was written"):
        check_parity(load_bundle(tiny_bundle), other, [frame])


@pytest.mark.slow
def test_failed_export_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Scale the logits of the graph, like a wrong normalisation.
    right = ScoreHead.pixel_maps
    monkeypatch.setattr(ScoreHead, "pixel_maps", lambda self, logits, *more: right(self, logits * 1.05, *more))
    with pytest.raises(ExportError, match=r"score '(void|max_logit)'"):
        export_network(build_network("mide_net", 20).eval(), "mide_net", SMALL, tmp_path / "out", Provenance())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("network", PUBLISHED)
def test_published_checkpoints_are_exported_and_run_on_real_frames(
    network: str, shared_weights: Path, shared_data: Path, tmp_path: Path
) -> None:
    frames = [read_image(shared_data / "RoadObstacle21" / "images" / f"{index}.webp") for index in (0, 1)]
    config = ExportConfig(network, 20, 19, height_px=256, width_px=512)
    checkpoint = shared_weights / PUBLISHED[network]
    bundle, measured = export_checkpoint(network, checkpoint, config, tmp_path / network, frames=frames)
    assert measured.frames == 4
    assert bundle.contract.provenance.source_checkpoint == checkpoint.name
    labels = open_detector(bundle).detect(frames[0]).labels
    assert labels is not None
    if network != "mide_net":  # it predicts building here, also in the published evaluation
        assert (labels[150:200, 230:280] == 0).mean() > 0.9


def test_a_few_ties_of_max_unpooling_on_noise_are_no_wrong_graph(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path
) -> None:
    """The published ENet differs in 15 of 131072 pixels of noise at 256x512."""
    bundle = load_bundle(tiny_bundle)
    contract = bundle.contract
    frame = np.random.default_rng(0).integers(0, 256, (contract.input.height_px, contract.input.width_px, 3), np.uint8)
    network = build_network(contract.network, len(contract.classes)).eval()  # other weights: everything differs
    fit_on_noise(network, ExportConfig("x", len(contract.classes), contract.void_class, scores=contract.score_names))
    monkeypatch.setattr(parity, "UNPOOLING_SHARE", 1.0)
    with pytest.raises(ExportError, match="the exported graph is wrong"):
        check_parity(bundle, network, [frame])
    monkeypatch.setattr(type(network), "max_unpooling", True)
    assert check_parity(bundle, network, [frame]).label_disagreement > 0.01
    monkeypatch.setattr(parity, "UNPOOLING_SHARE", 0.005)
    with pytest.raises(ExportError, match="the exported graph is wrong"):
        check_parity(bundle, network, [frame])


def test_pixels_to_input_scales_and_transposes() -> None:
    image = torch.arange(24, dtype=torch.uint8).reshape(1, 2, 4, 3)
    assert torch.equal(
        pixels_to_input(image)[0, 1, 1, 2] * 255, torch.tensor(image[0, 1, 2, 1].item(), dtype=torch.float32)
    )
