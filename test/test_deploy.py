"""deploy() writes a bundle with temperature, thresholds and quality from a checkpoint in one export."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from labelled_by_itself import write_own_labels
from network_contract import randomize

from anomseg_ros.core.bundle import Bundle, Provenance, load_bundle
from anomseg_ros.core.staging import put_in_place
from anomseg_ros.datasets import open_named
from anomseg_ros.deploy import Deployment, deploy
from anomseg_ros.errors import BundleError
from anomseg_ros.export import ExportConfig
from anomseg_ros.networks import build_network
from anomseg_ros.networks.checkpoints import save_checkpoint

CONFIG = ExportConfig("deployed", 11, label_set="camvid", height_px=64, width_px=128, scores=("msp",))


def quiet(what: str, done: int, total: int) -> None:
    """Ignore progress reports."""


@pytest.mark.slow
def test_deploy_writes_one_bundle_with_all_measured_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = build_network("mide_net", CONFIG.num_classes)
    randomize(network)
    network.eval()
    save_checkpoint(tmp_path / "c.safetensors", network, {})
    held_out = open_named(write_own_labels(network, tmp_path / "own"))
    counts = {"exported": 0, "put in place": 0}
    count_calls(monkeypatch, counts, "exported", "torch.onnx.export", torch.onnx.export)
    count_calls(monkeypatch, counts, "put in place", "anomseg_ros.core.bundle.put_in_place", put_in_place)
    wanted = Deployment("mide_net", tmp_path / "c.safetensors", CONFIG, Provenance(licence="ours"), (0.01, 0.05))
    bundle = deploy(wanted, held_out, tmp_path / "out", quiet)
    assert counts["exported"] == 1 and counts["put in place"] == 1
    check_bundle(bundle, tmp_path / "out")
    (tmp_path / "home").mkdir()
    with pytest.raises(BundleError, match="is not a bundle"):  # before anything is computed
        deploy(wanted, held_out, tmp_path / "home", quiet)
    assert counts["exported"] == 1


def count_calls(monkeypatch: pytest.MonkeyPatch, counts: dict[str, int], what: str, where: str, right: object) -> None:
    def counted(*args: object, **options: object) -> object:
        counts[what] += 1
        return right(*args, **options)  # type: ignore[operator]

    monkeypatch.setattr(where, counted)


def check_bundle(bundle: Bundle, folder: Path) -> None:
    contract = bundle.contract
    assert bundle == load_bundle(folder) and contract.name == "deployed"
    assert contract.temperature != 1.0  # the labels of one pixel in five differ from the prediction
    table = contract.thresholds["msp"]
    assert set(table.by_target_fpr) == {0.01, 0.05} and table.calibrated_on == "camvid val (2 frames)"
    assert contract.quality["camvid val"]["iou"]["building"] >= 0 and contract.quality["camvid val"]["frames"] == 2
    assert contract.provenance.source_checkpoint == "c.safetensors" and contract.provenance.licence == "ours"
    assert not list(folder.parent.glob(".*"))
