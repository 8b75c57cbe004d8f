"""scripts/ship_bundle.py: a bundle and its 8-bit version are written with model cards."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import ship_bundle
import yaml
from flat_dataset import write_flat_dataset
from pictures import spread_evenly

from anomseg_ros.core.bundle import load_bundle, save_bundle
from anomseg_ros.core.thresholds import ThresholdTable
from anomseg_ros.errors import DatasetError


def write_data(folder: Path) -> None:
    """Write an anomaly set, a frame of CamVid and one of Cityscapes, all of noise."""
    write_flat_dataset(folder / "RoadAnomaly21", frames=3)
    generator = np.random.default_rng(4)
    image = generator.integers(0, 256, (48, 96, 3), dtype=np.uint8)
    places = {
        "CamVid/val/a.png": image,
        "CamVid/valannot/a.png": generator.integers(0, 12, (48, 96), dtype=np.uint8),
        "cityscapes_aachen/images/aachen_000000_000019_leftImg8bit.png": image,
        "cityscapes_aachen/labels/aachen_000000_000019_gtFine_labelIds.png": generator.integers(
            0, 34, (48, 96), dtype=np.uint8
        ),
    }
    for place, pixels in places.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(folder / place), pixels)


def write_run(folder: Path, bundle: Path, name: str, **changes: object) -> Path:
    """Write the folder of a run: a copy of a bundle, weights, configuration and duration."""
    opened = load_bundle(bundle)
    folder.mkdir(parents=True)
    graph = onnx.load(opened.graph_path)
    graph.doc_string = name
    onnx.save(graph, folder / "model.onnx")
    contract = replace(opened.contract, **changes)  # type: ignore[arg-type]
    save_bundle(contract, {"model.onnx": folder / "model.onnx"}, folder / "bundle")
    (folder / "best.safetensors").write_bytes(b"weights")
    config = {"name": name, "network": {"name": "mide_net"}, "run": {"seed": 0, "epochs": 3}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "result.json").write_text('{"seconds": 120}')
    return folder


@pytest.mark.slow
def test_float_and_int8_bundles_are_shipped_with_cards(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, models = tmp_path / "data", tmp_path / "models"
    write_data(data)
    tables = {"void": ThresholdTable("elsewhere", {0.01: 0.05})}
    run = write_run(tmp_path / "run", tiny_bundle, "lite", thresholds=tables)
    compression = {"method": "int8 static", "parent": {"name": "lite"}, "settings": {}, "drift": {}}
    int8 = write_run(tmp_path / "int8", tiny_bundle, "lite8", precision="int8", compression=compression)
    (models / "lite").mkdir(parents=True)
    monkeypatch.setattr(ship_bundle, "MODELS", models)
    sheet = tmp_path / "sheet.jpg"
    words = ["lite", str(run), "--int8", str(int8 / "bundle"), "--data", str(data), "--sheet", str(sheet)]
    (models / "lite" / "bundle.yaml").write_text("an older one")
    (models / "lite" / "README.md").write_text("# old\n\n## What it is good for\n\nHand-written.\n")
    monkeypatch.setattr(sys, "argv", ["ship_bundle.py", *words])
    ship_bundle.main()

    card = (models / "lite" / "README.md").read_text()
    assert card == capsys.readouterr().out.rstrip("\n") + "\n" and card.endswith(
        "What it is good for\n\nHand-written.\n"
    )
    assert "19 are mapped to them" in card and "Cityscapes, Aachen, 1 frame at its own size" in card
    assert "| time | 2 minutes, on " in card and "`lite` (seed 0, 3 epochs)" in card
    assert "in 8 bits" in card and "before outlier exposure" not in card
    shipped = load_bundle(models / "lite")
    quality = shipped.contract.quality
    assert {"camvid val", "cityscapes_aachen", "road_anomaly_21"} <= set(quality)
    rate = quality["road_anomaly_21"]["fpr_at_threshold_0.01"]
    assert f"| void, this bundle | {100 * quality['road_anomaly_21']['auprc']:.2f} / " in card
    table = card.partition("## Rates at the threshold for 1 %")[2]
    assert f"| void, this bundle | {100 * rate:.2f} / " in table and "void, in 8 bits" not in table
    sibling = load_bundle(models / "lite-int8")
    assert sibling.contract.name == "lite-int8" and sibling.contract.precision == "int8"
    other = (models / "lite-int8" / "README.md").read_text()
    assert "[lite](../lite/README.md) in 8 bits: int8 static" in other and "void, in float" in other
    for picture in (models / "lite/curves.png", models / "lite/scenes.jpg", sheet):
        assert cv2.imread(str(picture)) is not None
    assert (models / "lite/checkpoint.safetensors").read_bytes() == b"weights"


def test_missing_anomaly_sets_are_an_error(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="has none of RoadAnomaly21"):
        ship_bundle.measure(load_bundle(tiny_bundle), tmp_path)


def test_spread_takes_files_evenly_from_all_groups() -> None:
    groups = [[Path(f"{name}{number}") for number in range(size)] for name, size in (("a", 100), ("b", 2), ("c", 9))]
    found = [str(path) for path in spread_evenly(groups, 12)]
    assert [sum(name.startswith(letter) for name in found) for letter in "abc"] == [5, 2, 5]
    assert found[:5] == ["a10", "a30", "a50", "a70", "a90"] and len(set(found)) == 12
    assert len(spread_evenly(groups[1:], 30)) == 11
