from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from anomseg_ros.backends import open_detector
from anomseg_ros.core.bundle import Provenance, load_bundle
from anomseg_ros.core.image_files import read_image
from anomseg_ros.core.scores import SCORE_NAMES, SCORES, reference_score
from anomseg_ros.errors import ConfigError, ExportError
from anomseg_ros.export import (
    DetectorGraph,
    ExportConfig,
    StripGraph,
    check_parity,
    export_checkpoint,
    export_network,
    leaky,
    pixels_to_input,
)
from anomseg_ros.networks import build_network

SMALL = ExportConfig("small", 20, 19, height_px=64, width_px=128)
PUBLISHED = {
    "enet": "enet_560_epochs_finetuned.pth",
    "erfnet": "erfnet_void20_dequantized.safetensors",
    "mide_net": "midenet_distilled.pth",
}


@pytest.mark.parametrize("void_class", [None, 19, 7])
@pytest.mark.parametrize("temperature", [1.0, 2.3])
def test_fused_scores_equal_the_reference(void_class: int | None, temperature: float) -> None:
    """The contract between core/scores.py and the exported formulas, on logits as large as trained networks give."""
    classes = 19 if void_class is None else 20
    names = tuple(name for name in SCORE_NAMES if void_class is not None or not SCORES[name].needs_void)
    config = ExportConfig("x", classes, void_class, scores=names, temperature=temperature)
    logits = 12 * torch.randn((1, classes, 16, 24), generator=torch.Generator().manual_seed(3))
    graph = DetectorGraph(build_network("mide_net", classes), config)
    for name, fused in zip(names, graph.scores(logits), strict=True):
        reference = reference_score(name, logits[0].double().numpy(), void_class, temperature)
        assert fused[0].numpy() == pytest.approx(reference, abs=1e-5, rel=1e-5), name
    train_ids = np.array([info.train_id for info in config.classes()])
    assert (graph.labels(logits)[0].numpy() == train_ids[logits[0].argmax(0).numpy()]).all()


def test_fused_scores_survive_huge_logits() -> None:
    graph = DetectorGraph(build_network("mide_net", 20), dataclasses.replace(SMALL, scores=SCORE_NAMES))
    logits = torch.zeros((1, 20, 2, 2))
    logits[:, 3], logits[:, 4] = 1e4, -1e4
    assert all(torch.isfinite(score).all() for score in graph.scores(logits))


@pytest.mark.parametrize("network", ["enet", "erfnet", "mide_net", "bisenet_v1", "bisenet_v2", "espnetv2"])
@pytest.mark.parametrize("void_class", [None, 19, 7])
def test_strips_give_what_the_whole_frame_gives(network: str, void_class: int | None) -> None:
    """Of a size that neither the stride nor a strip divides."""
    torch.manual_seed(2)
    classes = 19 if void_class is None else 20
    built = build_network(network, classes).eval()
    config = ExportConfig("x", classes, void_class, height_px=100, width_px=150)
    image = torch.randint(0, 256, (1, 100, 150, 3), dtype=torch.uint8)
    with torch.inference_mode():
        whole, strips = DetectorGraph(built, config)(image), StripGraph(built, config)(image)
    assert (whole[0] != strips[0]).float().mean() < 1e-3  # near ties
    for before, after in zip(whole[1:], strips[1:], strict=True):
        assert after.shape == (1, 100, 150)
        torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


def test_leaky_changes_a_copy() -> None:
    network = nn.Sequential(nn.PReLU(init=0.1), nn.Sequential(nn.PReLU(3, init=0.2)))
    changed = leaky(network)  # type: ignore[arg-type]
    assert [type(module) for module in network.modules()][1:] == [nn.PReLU, nn.Sequential, nn.PReLU]
    assert [type(module) for module in changed.modules()][1:] == [nn.LeakyReLU, nn.Sequential, nn.PReLU]
    values = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(changed(values), network(values))


def test_the_graph_names_no_file_of_this_machine(tiny_bundle: Path) -> None:
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
        (ExportConfig("x", 20), "has 19 classes, the network 20"),
        (ExportConfig("x", 20, 20), "void class 20 is not one of the outputs 0 to 19"),
        (ExportConfig("x", 20, 19, label_set="kitti"), "unknown label set 'kitti'"),
    ],
)
def test_wrong_classes(config: ExportConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.classes()


def test_a_graph_of_other_weights_is_refused(tiny_bundle: Path) -> None:
    torch.manual_seed(99)
    other = build_network("mide_net", 20).eval()
    frame = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    with pytest.raises(ExportError, match="the exported graph is wrong, nothing was written"):
        check_parity(load_bundle(tiny_bundle), other, [frame])


def test_a_refused_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A graph that is off: its logits are scaled, as a wrong normalisation would do.
    right = DetectorGraph.scores
    monkeypatch.setattr(DetectorGraph, "scores", lambda self, logits: right(self, logits * 1.05))
    with pytest.raises(ExportError, match=r"score '(void|max_logit)'"):
        export_network(build_network("mide_net", 20).eval(), "mide_net", SMALL, tmp_path / "out", Provenance())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("network", ["enet", "erfnet", "mide_net", "bisenet_v1", "bisenet_v2", "espnetv2"])
def test_every_network_exports(network: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = dataclasses.replace(SMALL, name=network)
    bundle, parity = export_network(
        build_network(network, 20).eval(), network, config, tmp_path / network, Provenance()
    )
    assert parity.frames == 2
    outputs = open_detector(bundle).detect(np.zeros((100, 200, 3), np.uint8))
    assert outputs.labels is not None and outputs.labels.shape == (64, 128)


@pytest.mark.slow
@pytest.mark.parametrize("network", PUBLISHED)
def test_published_checkpoints_on_real_frames(
    network: str, shared_weights: Path, shared_data: Path, tmp_path: Path
) -> None:
    frames = [read_image(shared_data / "RoadObstacle21" / "images" / f"{index}.webp") for index in (0, 1)]
    config = ExportConfig(network, 20, 19)
    checkpoint = shared_weights / PUBLISHED[network]
    bundle, parity = export_checkpoint(network, checkpoint, config, tmp_path / network, frames=frames)
    assert parity.frames == 4
    assert bundle.contract.provenance.source_checkpoint == checkpoint.name
    labels = open_detector(bundle).detect(frames[0]).labels
    assert labels is not None
    if network != "mide_net":  # it takes this road for a building, in the published evaluation as well
        assert (labels[300:400, 460:560] == 0).mean() > 0.9


def test_pixels_to_input() -> None:
    image = torch.arange(24, dtype=torch.uint8).reshape(1, 2, 4, 3)
    assert torch.equal(
        pixels_to_input(image)[0, 1, 1, 2] * 255, torch.tensor(image[0, 1, 2, 1].item(), dtype=torch.float32)
    )
