"""What compressing costs and gains: one table per network, the papers' rows beside ours, in benchmarks/compression.md.

Each network whose weights are in ANOMSEG_WEIGHTS is exported at 512x1024, quantized to 8 bits (calibrated on CamVid's
training frames, measured on others) and pruned at the papers' fractions; every bundle is evaluated on the anomaly sets
of ANOMSEG_DATA, protocol `seeds`, score void. Then the checkpoint in torch eager and both graphs in ONNX Runtime and
OpenVINO take turns in one run. BiSeNets, whose weights are not there, get random ones: their times hold, nothing else.
Finished parts stay in --work, so that a run that was killed goes on. The papers' own speeds are relative to their
unpruned float network.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, write_result

from anomseg_ros.backends import open_detector
from anomseg_ros.bench.published import PublishedPoint, published_points
from anomseg_ros.cli import main as anomseg
from anomseg_ros.compression.cost import graph_cost
from anomseg_ros.core.bundle import load_bundle
from anomseg_ros.datasets import open_named
from anomseg_ros.networks import build_network
from anomseg_ros.networks.checkpoints import save_checkpoint

SHARED = Path(__file__).resolve().parents[2] / "shared"
DATA = Path(os.environ.get("ANOMSEG_DATA", SHARED / "data"))
WEIGHTS = Path(os.environ.get("ANOMSEG_WEIGHTS", SHARED / "weights"))
TABLE = Path(__file__).resolve().parent / "compression.md"

SETS = {"road_anomaly_21": "RoadAnomaly21", "road_obstacle_21": "RoadObstacle21", "fs_static": "fs_static"}
FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5)
SIZE = ("512", "1024")
OUTPUTS, VOID_CLASS = 20, 19
PUBLISHED_PLACES = (0, 1, 3)
"""Where a published row has the sets of SETS."""


@dataclass(frozen=True)
class Case:
    """A network. file: its checkpoint in ANOMSEG_WEIGHTS, None for random weights; paper: how the papers call it;
    fractions: of the weights that are pruned."""

    network: str
    file: str | None
    paper: str
    fractions: tuple[float, ...] = ()

    @property
    def trained(self) -> bool:
        """Whether the weights are here."""
        return self.file is not None and (WEIGHTS / self.file).is_file()


CASES = (
    Case("erfnet", "erfnet_void20_dequantized.safetensors", "ERFNet", FRACTIONS),
    Case("enet", "enet_560_epochs_finetuned.pth", "ENet", FRACTIONS),
    Case("mide_net", "midenet_distilled.pth", "MiDE-Net"),
    Case("bisenet_v1", None, "BiSeNet"),
    Case("bisenet_v2", None, "BiSeNet v2"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("compression_work"), help="folder for finished parts")
    parser.add_argument("--networks", nargs="+", default=[case.network for case in CASES], help="which ones")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved measurements; 0: no times yet")
    parser.add_argument("--threads", type=int, default=2, help="threads of each engine")
    args = parser.parse_args()
    rows = {}
    for case in CASES:
        if case.network in args.networks:
            rows[case.network] = measure(case, args.work / case.network, args.rounds, args.threads)
    path = RESULTS / "compression.json"
    kept = json.loads(path.read_text())["networks"] if path.is_file() else {}
    result = {"size": "x".join(SIZE), "threads": args.threads, "score": "void", "protocol": "seeds"}
    print(write_result("compression", {**result, "networks": {**kept, **rows}}))
    TABLE.write_text(as_markdown({**kept, **rows}, args.threads))


def measure(case: Case, folder: Path, rounds: int, threads: int) -> dict[str, Any]:
    """Return all figures of one network."""
    checkpoint = checkpoint_of(case, folder)
    real = case.trained
    bundles = {"float": export(case, checkpoint, folder), "int8": quantize(folder, real)}
    bundles |= {f"{share:.0%} pruned": prune(folder, checkpoint, share) for share in case.fractions if real}
    speeds = times(folder, checkpoint, rounds, threads) if rounds else {"torch eager": {}}
    rows: dict[str, dict[str, Any]] = {"torch eager": speeds["torch eager"]}
    for name, bundle in bundles.items():
        for backend in ("onnxruntime", "openvino") if name in ("float", "int8") else ("onnxruntime",):
            title = name if backend == "onnxruntime" else f"{name}, {backend}"
            rows[title] = {**speeds.get(title, {}), **counted(bundle)}
            if real:
                figures = accuracy(bundle, backend), agreement(bundles["float"], bundle, backend)
                rows[title] |= dict(zip(("accuracy", "label_agreement"), figures, strict=True))
    return {"weights": case.file if real else "random", "rows": rows}


def checkpoint_of(case: Case, folder: Path) -> Path:
    """Return the network's checkpoint, random weights where there is none."""
    if case.file is not None and case.trained:
        return WEIGHTS / case.file
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "random.safetensors"
    torch.manual_seed(0)
    save_checkpoint(path, build_network(case.network, OUTPUTS), {})
    return path


def export(case: Case, checkpoint: Path, folder: Path) -> Path:
    """Return the float bundle."""
    output = folder / "float"
    shape = ["--num-classes", str(OUTPUTS), "--void-class", str(VOID_CLASS), "--height", SIZE[0], "--width", SIZE[1]]
    made = ["export", "--network", case.network, "--checkpoint", str(checkpoint), *shape, "--name", case.network]
    return finished(output, [*made, "--output", str(output)])


def quantize(folder: Path, real: bool) -> Path:
    """Return the int8 bundle: as the command makes it by default, but for random weights, whose labels mean nothing."""
    output = folder / "int8"
    words = ["quantize", str(folder / "float"), "--frames", f"camvid={DATA / 'CamVid'}:train", "--output", str(output)]
    words += ["--dataset", *datasets(), "--allow-partial"] if real else ["--keep-float", "none"]
    return finished(output, [*words, "--accept-drift"])


def prune(folder: Path, checkpoint: Path, share: float) -> Path:
    """Return the bundle with this share of the weights zero, as the papers' tables have it."""
    output = folder / f"pruned{share:.0%}"
    words = ["prune", str(folder / "float"), "--checkpoint", str(checkpoint), "--method", "unstructured"]
    words += ["--fraction", str(share), "--frames", f"camvid={DATA / 'CamVid'}:train", "--output", str(output)]
    return finished(output, [*words, "--accept-drift"])


def times(folder: Path, checkpoint: Path, rounds: int, threads: int) -> dict[str, Any]:
    """Return speeds relative to the checkpoint in torch eager, and sizes, by bundle."""
    output = folder / f"bench{threads}.json"
    words = ["bench", str(folder / "float"), str(folder / "int8"), "--rounds", str(rounds), "--threads", str(threads)]
    words += ["--backend", "onnxruntime", "openvino", "--score", "void"]
    words += ["--torch-checkpoint", f"{folder / 'float'}={checkpoint}", "--json", str(output)]
    if not output.is_file():
        run(words)
    found = {}
    for entry in json.loads(output.read_text())["entries"]:
        name = "torch eager" if "eager" in entry["backend"] else "int8" if entry["precision"] == "int8" else "float"
        name += ", openvino" if entry["backend"] == "openvino" else ""
        speedup = entry["speedup"].get(entry["own_eager"] or "", {}) if name != "torch eager" else {}
        found[name] = {"as_eager": speedup, "rounds": entry["rounds"], "file_bytes": entry["file_bytes"]}
        found[name] |= {"peak_memory_mib": entry["peak_memory_mib"], "p50_ms": entry["latency_ms"]["p50"]}
    return found


def counted(bundle: Path) -> dict[str, Any]:
    """Return the effective size of a bundle's network, and what was done to it."""
    loaded = load_bundle(bundle)
    cost = graph_cost(loaded.graph_path)
    kept = loaded.contract.compression
    return {
        "effective_multiply_adds": cost.effective_multiply_adds,
        "nonzero_parameters": cost.nonzero_parameters,
        "method": kept.get("method", "float32"),
    }


def agreement(parent: Path, child: Path, backend: str) -> float:
    """Return the share of pixels labelled as by the float graph in ONNX Runtime, over all frames of the sets."""
    kept = child.with_name(f"{child.name}.{backend}.agreement.json")
    if not kept.is_file():
        before, after = open_detector(parent), open_detector(child, backend)
        shares = []
        for name, folder in SETS.items():
            dataset = open_named(f"{name}={DATA / folder}")
            for index in range(len(dataset)):
                frame = dataset.load(index).image
                shares.append(float((before.detect(frame, ()).labels == after.detect(frame, ()).labels).mean()))
        kept.write_text(json.dumps(float(np.mean(shares))))
    return float(json.loads(kept.read_text()))


def datasets() -> list[str]:
    """Return the anomaly sets as the commands take them."""
    return [f"{name}={DATA / folder}" for name, folder in SETS.items()]


def accuracy(bundle: Path, backend: str) -> dict[str, Any]:
    """Return dataset -> AuPRC and FPR95 of the void score, fractions."""
    output = bundle.with_name(f"{bundle.name}.{backend}.json")
    words = ["evaluate", str(bundle), "--dataset", *datasets(), "--protocol", "seeds", "--allow-partial"]
    if not output.is_file():
        run([*words, "--score", "void", "--backend", backend, "--json", str(output)])
    results = json.loads(output.read_text())["results"]
    return {row["dataset"]: {"auprc": row["auprc"], "fpr95": row["fpr95"]} for row in results if row["score"] == "void"}


def finished(output: Path, words: list[str]) -> Path:
    """Return a bundle, made by the command unless it is there."""
    if not (output / "bundle.yaml").is_file():
        run(words)
    return output


def run(words: list[str]) -> None:
    """Run a command as a user would; stop where it fails."""
    print("anomseg", *words, flush=True)
    status = anomseg(words)
    if status:
        raise SystemExit(status)


def as_markdown(networks: dict[str, Any], threads: int) -> str:
    """Return one table per network: ours, then the papers'."""
    published = published_points()
    lines = [
        "# What compressing costs and gains",
        "",
        "Written by `benchmarks/compression.py`; do not edit. Ours: 512x1024, void score, protocol `seeds`, per cent,",
        f"AuPRC / FPR95; times as fast as the same checkpoint in torch eager float32, {threads} threads, median of one",
        "interleaved run with its 95 % interval; labels: share of pixels labelled as by the float graph, on all frames",
        "of the three sets. Pruned: unstructured, zeros in a dense graph, whose time stays the float graph's; the",
        "estimate is the papers' way of counting, the share of multiply-adds left, and not a measured time.",
        "Theirs: speeds relative to their unpruned float network, estimated in PTQ, on other machines (docs/bench.md);",
        "mIoU on Cityscapes, which is not measured here. ERFNet's checkpoint was int8 before: a third of its weights",
        "are 0 as they come, so that pruning that share changes nothing.",
    ]
    for case in CASES:
        if case.network in networks:
            lines += ["", f"## {case.paper}", "", *table(case, networks[case.network], published)]
    return "\n".join(lines) + "\n"


def table(case: Case, network: dict[str, Any], published: Iterable[PublishedPoint]) -> list[str]:
    """Return the rows of a network."""
    headings = ["", "source", "times as fast", "estimated", "labels", "mIoU", *SETS]
    lines = ["| " + " | ".join(headings) + " |", "|---|---|" + "---:|" * (len(headings) - 2)]
    whole = network["rows"]["float"]["effective_multiply_adds"]
    for name, row in network["rows"].items():
        lines.append("| " + " | ".join([name, "ours", *our_cells(name, row, whole)]) + " |")
    theirs = [p for p in published if p.label == case.paper or p.label.startswith(f"{case.paper},")]
    whole_ms = {point.table: point.latency_ms for point in theirs if point.label == case.paper}
    whole_ms["PTQ table 7"] = next((p.latency_ms for p in theirs if p.table in ("PTQ table 5", "PTQ table 6")), 0.0)
    for point in theirs:
        speed = f"{whole_ms[point.table] / point.latency_ms:.2f}"
        pairs = [f"{point.auprc[at]:.2f} / {point.fpr95[at]:.2f}" for at in PUBLISHED_PLACES]
        cells = ["", speed] if point.estimated else [speed, ""]
        lines.append("| " + " | ".join([point.label, point.table, *cells, "", f"{point.miou:.2f}", *pairs]) + " |")
    if network["weights"] == "random":
        lines += ["", "Our rows: random weights, so times only; quantized whole, as nothing can be said of the labels."]
    return lines


def our_cells(name: str, row: dict[str, Any], whole_multiply_adds: int) -> list[str]:
    """Return the cells of a row of ours, behind its name."""
    speed = row.get("as_eager", {})
    cells = [f"{speed['median']:.2f} ({speed['low']:.2f} to {speed['high']:.2f})" if speed else ""]
    effective = row.get("effective_multiply_adds", whole_multiply_adds)
    cells.append(f"{whole_multiply_adds / effective:.2f}" if "pruned" in name else "")
    cells.append(f"{100 * row['label_agreement']:.2f}" if "label_agreement" in row else "")
    pairs = row.get("accuracy", {})
    figures = [f"{100 * pairs[name]['auprc']:.2f} / {100 * pairs[name]['fpr95']:.2f}" if pairs else "" for name in SETS]
    return [*cells, "", *figures]


if __name__ == "__main__":
    main()
