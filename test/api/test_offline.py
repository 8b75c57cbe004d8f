"""Measuring and exporting from Python give what the commands give."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from anomseg_ros import AnomsegError, Detector, evaluate, export_checkpoint
from anomseg_ros.cli import main
from anomseg_ros.networks import build_network
from anomseg_ros.networks.checkpoints import save_checkpoint


@pytest.mark.slow
def test_results_equal_those_of_the_command(tiny_bundle: Path, tmp_path: Path) -> None:
    told = []
    (result,) = evaluate(
        tiny_bundle, {"synthetic": "1000105:2"}, scores=["void"], progress=lambda *words: told.append(words)
    )
    words = ["evaluate", str(tiny_bundle), "--dataset", "synthetic=1000105:2", "--score", "void"]
    assert main([*words, "--json", str(tmp_path / "r.json")]) == 0
    (row,) = json.loads((tmp_path / "r.json").read_text())["results"]
    assert (result.auprc, result.fpr95, result.miou) == (row["auprc"], row["fpr95"], row["miou"])
    assert result.frames == 2 and told


def test_what_cannot_be_measured_raises(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(AnomsegError, match="unknown dataset 'synthetik'; known: synthetic"):
        evaluate([tiny_bundle], {"synthetik": "1:2"})
    with pytest.raises(AnomsegError, match=r"must map names to folders, such as \{'camvid': .*\}, got 'drive'"):
        evaluate(tiny_bundle, "drive")  # type: ignore[arg-type]
    with pytest.raises(AnomsegError, match="unknown score 'voi'"):
        evaluate(tiny_bundle, {"synthetic": "1000105:2"}, scores="voi")
    with pytest.raises(AnomsegError, match="is not a folder"):
        evaluate(tiny_bundle, {"fs_static": tmp_path / "nowhere"})


@pytest.mark.slow
def test_exported_bundle_is_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "net.safetensors", build_network("mide_net", 20).eval(), {})
    export = partial(export_checkpoint, num_classes=20, void_class=19, height_px=64, width_px=128)
    bundle = export("mide_net", tmp_path / "net.safetensors", tmp_path / "net")
    assert bundle == tmp_path / "net"
    assert Detector.load(bundle, threads=1).score_names[0] == "void"
    with pytest.raises(AnomsegError, match="overwrite"):
        export("mide_net", tmp_path / "net.safetensors", tmp_path / "net")
