"""benchmarks/road_anomaly.py: a small bundle through the whole benchmark, its stored parts, the page and the chart."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import onnx
import pytest
import road_anomaly
from flat_dataset import write_flat_dataset
from road_anomaly_table import as_markdown, chart

from anomseg_ros.bench.figures import FORMAT_VERSION, BenchReport, Entry
from anomseg_ros.core.bundle import Bundle, load_bundle, save_bundle
from anomseg_ros.core.thresholds import ThresholdTable
from anomseg_ros.evaluation.evaluate import Request, evaluate

SETS = ["road_anomaly_21", "fs_static", "camvid"]


def copy_of(bundle: Bundle, output: Path, **changes: Any) -> Path:
    """Return a copy of a bundle with changes in its contract and another digest."""
    graph = onnx.load(bundle.graph_path)
    graph.doc_string = output.name
    changed = output.with_suffix(".onnx")
    onnx.save(graph, changed)
    return save_bundle(replace(bundle.contract, **changes), {"model.onnx": changed}, output).directory


@pytest.fixture
def datasets(tmp_path: Path) -> list[str]:
    """An anomaly set and a frame of CamVid, both of noise."""
    for folder in ("val", "valannot"):
        (tmp_path / "camvid" / folder).mkdir(parents=True)
    generator = np.random.default_rng(3)
    cv2.imwrite(str(tmp_path / "camvid/val/a.png"), generator.integers(0, 256, (48, 96, 3), dtype=np.uint8))
    cv2.imwrite(str(tmp_path / "camvid/valannot/a.png"), generator.integers(0, 12, (48, 96), dtype=np.uint8))
    return [write_flat_dataset(tmp_path / "flat", frames=3), f"camvid={tmp_path / 'camvid'}:val"]


@pytest.mark.slow
def test_bundle_is_measured_once_and_reported(
    tiny_bundle: Path, datasets: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DATA", "WEIGHTS"):
        monkeypatch.setattr(road_anomaly, name, tmp_path / "absent")
    monkeypatch.setattr(road_anomaly, "shipped_bundles", dict)
    monkeypatch.setattr(road_anomaly, "TABLE", tmp_path / "page.md")
    monkeypatch.setattr(road_anomaly, "PICTURE", tmp_path / "picture.svg")
    monkeypatch.setattr("common.RESULTS", tmp_path)
    table = ThresholdTable("elsewhere", {0.01: 0.05})
    bundle = copy_of(load_bundle(tiny_bundle), tmp_path / "calibrated", thresholds={"void": table})
    words = ["--bundle", str(bundle), "--dataset", *datasets, "--work", str(tmp_path / "work"), "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", ["road_anomaly.py", *words])
    road_anomaly.main()

    document = json.loads((tmp_path / "road_anomaly.json").read_text())
    (row,) = document["rows"]
    own = evaluate(Request((bundle,), tuple(datasets), protocols=("seeds", "smiyc"), allow_partial=True)).results
    results = {(one.dataset, one.score, one.protocol): one for one in own}
    seeds, smiyc = (results["road_anomaly_21", "void", name] for name in ("seeds", "smiyc"))
    found = row["sets"]["road_anomaly_21"]
    assert (found["auprc"], found["fpr95"]) == (seeds.auprc, seeds.fpr95)
    assert smiyc.components is None or found["f1"] == smiyc.components.f1
    assert smiyc.at_threshold is not None and found["fpr"] == smiyc.at_threshold.fpr
    assert row["other_scores"]["msp"]["road_anomaly_21"]["auprc"] == results["road_anomaly_21", "msp", "seeds"].auprc
    assert row["miou"] == results["camvid", "void", "smiyc"].miou and row["sets"]["camvid"]["fpr"] is not None
    assert {"onnxruntime"} <= set(row["times"]) and row["times"]["onnxruntime"]["rounds"] == 2
    assert "ENet (560 epochs)" in document["missing"]
    page = (tmp_path / "page.md").read_text()
    assert "| tiny | ours |" in page and "Not on this machine: RoadObstacle21" in page and "(road_anomaly.svg)" in page
    assert "void at" not in (tmp_path / "picture.svg").read_text()

    def refused(*arguments: object, **named: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(road_anomaly, "evaluate", refused)
    monkeypatch.setattr(road_anomaly, "measure", refused)
    road_anomaly.main()
    assert json.loads((tmp_path / "road_anomaly.json").read_text())["rows"] == document["rows"]
    monkeypatch.setattr(sys, "argv", ["road_anomaly.py", *words, "--retime"])
    with pytest.raises(AssertionError, match="measured again"):
        road_anomaly.main()


def test_failed_measurement_is_an_error_in_the_row(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    model = road_anomaly.Model("tiny", "ours", (bundle,))
    nowhere = {"fs_static": f"fs_static={tmp_path}"}
    row = road_anomaly.measure_row(model, bundle, nowhere, tmp_path / "work", None, lambda what, done, total: None)
    assert row["sets"] == {} and "fs_static" in row["errors"][0]


def test_int8_bundle_is_listed_after_its_parent(tiny_bundle: Path, tmp_path: Path) -> None:
    whole = load_bundle(tiny_bundle)
    parent = {"parent": {"name": "tiny", "sha256": whole.contract.program_sha256}}
    int8 = copy_of(whole, tmp_path / "int8", precision="int8", compression=parent)
    orphan = copy_of(whole, tmp_path / "orphan", name="orphan", compression={"parent": {"sha256": "f" * 64}})
    models = road_anomaly.our_models([int8, orphan, tiny_bundle, tiny_bundle])
    assert [[b.directory.name for b in model.bundles] for model in models] == [["orphan"], ["tiny", "int8"]]


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--dataset", "cityscapes=/x"], "expected NAME=PATH with a name of"), (["--only", "nobody"], "known: ")],
)
def test_invalid_arguments_are_refused(words: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["road_anomaly.py", *words])
    with pytest.raises(SystemExit, match=said):
        road_anomaly.main()


def row(name: str, **more: Any) -> dict[str, Any]:
    figures = {"auprc": 0.5, "fpr95": 0.125, "f1": 0.25, "fpr": 0.02, "tpr": 0.75, "threshold": 1.0}
    base: dict[str, Any] = {
        "model": name,
        "source": "ours",
        "precision": "fp32",
        "input": "64x128",
        "score": "void",
        "sha256": name,
        "parameters": 1_250_000,
        "multiply_adds": 3_500_000_000,
        "file_bytes": 2**20,
        "sets": {"road_anomaly_21": figures, "fs_static": {**figures, "auprc": 0.25}, "camvid": {"fpr": 0.011}},
        "other_scores": {"msp": {"fs_static": {"auprc": 0.1, "fpr95": 0.2}}},
        "errors": [],
        "miou": 0.625,
        "times": {
            "onnxruntime": {"p50": 20.0, "p99": 30.0, "frames_per_second": 50.0},
            "openvino": {"p50": 10.0, "p99": 15.5, "frames_per_second": 100.0},
        },
    }
    return base | more


def test_page_has_our_rows_and_those_of_papers() -> None:
    bare = row("bare", precision="int8", sets={"fs_static": {"auprc": 0.1, "fpr95": 0.2}}, times={}, miou=None)
    result = {"rows": [row("net"), bare], "sets": SETS, "frames_timed": (720, 1280), "threads": 0, "target_fpr": 0.01}
    page = as_markdown({**result, "missing": {"X": "not there"}}, {"cpu": "A chip", "cores": 2})
    lines = page.splitlines()
    assert (
        "| net | ours | 1.25 | `void` | 50.00 / 12.50 |  | 25.00 / 12.50 |  |  | 62.5 | 10.0 / 15.5 | 100.0 |" in lines
    )
    assert "| bare, int8 | ours | 1.25 | `void` |  |  | 10.00 / 20.00 |  |  |  |  |  |" in lines
    assert "| net | `void` | 25.00 | 25.00 | 2.00 / 75.00 | 2.00 / 75.00 | 1.10 |" in lines
    assert "| net | 64x128 | 1.25 | 3.50 | 1.00 | 20.0 / 30.0 | 50.0 | 10.0 / 15.5 | 100.0 |" in lines
    assert "| net | `msp` |  | 10.00 / 20.00 |" in lines
    large = "| DSA-Tiny, outlier exposure | DSA, table 2 | 28.5 |  | 72.10 / 35.00 | 77.90 / 2.60 | 80.30 / 8.60 |"
    assert f"{large} 49.50 / 17.40 | 52.30 / 65.60 |  |  |  |" in lines
    assert "- Not measured: X: not there" in lines and "1280x720 pixels" in page and "rate of 1 %" in page
    widths = [text.count("|") for text in lines if text.startswith("|")]
    assert all(width in (13, 8, 10, 5) for width in widths)


def test_chart_shows_each_bundle_on_its_faster_backend() -> None:
    def entry(backend: str, latency_ms: float) -> Entry:
        times = {"p50": latency_ms, "p95": latency_ms, "p99": latency_ms}
        return Entry(
            f"net, {backend}", "net", backend, backend, 2, 64, 128, "fp32", "void", times, 9.0, 9, sha256="net"
        )

    report = BenchReport(FORMAT_VERSION, (entry("onnxruntime", 20), entry("openvino", 10)))
    root = ElementTree.fromstring(chart([row("net")], [report]))
    groups = [group for group in root.iter("{http://www.w3.org/2000/svg}g") if group.get("data-entry")]
    assert [group.get("data-entry") for group in groups] == ["net, openvino, 64x128"]
    said = groups[0].find("{http://www.w3.org/2000/svg}title")
    assert said is not None and said.text is not None and "AuPRC 37.50 %" in said.text
    # The points of the papers are means over the same sets.
    published = [group for group in root.iter() if group.get("data-published") == "MiDE-Net"]
    assert len(published) == 1
