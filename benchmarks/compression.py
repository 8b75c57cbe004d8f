"""Costs and gains of compression: a table of our and the papers' rows per network, in benchmarks/compression.md.

Each network whose weights are in ANOMSEG_WEIGHTS is exported at 512x1024, quantized to 8 bits (calibrated on CamVid's
training frames, measured on others) for ONNX Runtime, OpenVINO and torch, pruned with the methods and fractions of the
papers, then quantized again. Every bundle is evaluated on the anomaly sets in ANOMSEG_DATA with protocol `seeds`. Then
the checkpoint in torch eager and the graphs are timed in turns in one run. There are no weights for the BiSeNets; they
get random ones, so only their times are meaningful. Finished parts stay in --work, so that a killed run can resume.

    anomseg train erfnet-camvid --data CAMVID
    python benchmarks/compression.py --trained runs/erfnet-camvid

adds that network, pruned, fine-tuned and quantized with the recipe erfnet-camvid-prune30-int8, with mIoU on CamVid.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import DATA, RESULTS, WEIGHTS, ensure_bundle, run, write_result
from compression_table import SETS, as_markdown

from anomseg_ros.backends import open_detector
from anomseg_ros.compression.cost import graph_cost
from anomseg_ros.core.bundle import GRAPH_FILE, load_bundle
from anomseg_ros.datasets import open_named
from anomseg_ros.networks import build_network
from anomseg_ros.networks.checkpoints import save_checkpoint

TABLE = Path(__file__).resolve().parent / "compression.md"

FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5)
SIZE = ("512", "1024")
OUTPUTS, VOID_CLASS = 20, 19
BOTH = ("onnxruntime", "openvino")
TUNED = "30% removed, fine-tuned"


@dataclass(frozen=True)
class Case:
    """A network to compress.

    file: checkpoint in ANOMSEG_WEIGHTS, None for random weights; paper: name in the papers; fractions: shares of the
    weights to set to zero; run: folder of `anomseg train erfnet-camvid`, used instead of `file`.
    """

    network: str
    file: str | None
    paper: str
    fractions: tuple[float, ...] = ()
    run: Path | None = None

    @property
    def key(self) -> str:
        """Name in the results."""
        return self.network if self.run is None else f"{self.network}_camvid"

    @property
    def score(self) -> str:
        """Anomaly score of the rows."""
        return "void" if self.run is None else "max_logit"

    @property
    def trained(self) -> bool:
        """Whether trained weights are available."""
        return self.run is not None or (self.file is not None and (WEIGHTS / self.file).is_file())


@dataclass(frozen=True)
class Row:
    """A bundle in a table. engines: one row for each; timed: whether its times are measured."""

    bundle: Path
    engines: tuple[str, ...] = ("onnxruntime",)
    timed: bool = False

    def title(self, name: str, engine: str) -> str:
        """Return the row's heading."""
        return name if engine == self.engines[0] else f"{name}, {engine}"


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
    parser.add_argument("--networks", nargs="*", default=[case.network for case in CASES], help="networks to measure")
    parser.add_argument("--trained", type=Path, help="folder of a run of `anomseg train erfnet-camvid`")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved measurements; 0: no times")
    parser.add_argument("--threads", type=int, default=2, help="threads of each engine")
    args = parser.parse_args()
    cases = [case for case in CASES if case.network in args.networks]
    if args.trained is not None:
        cases.append(Case("erfnet", None, "ERFNet", run=args.trained))
    rows = {case.key: measure(case, args.work / case.key, args.rounds, args.threads) for case in cases}
    path = RESULTS / "compression.json"
    earlier = json.loads(path.read_text())["networks"] if path.is_file() else {}
    networks = {**earlier, **rows}
    print(write_result("compression", {"protocol": "seeds", "networks": networks}))
    papers = {case.network: case.paper for case in CASES}
    TABLE.write_text(as_markdown(networks, papers))


def measure(case: Case, folder: Path, rounds: int, threads: int) -> dict[str, Any]:
    """Return all figures of one network."""
    checkpoint = checkpoint_of(case, folder)
    bundles = trained_rows(case, folder) if case.run is not None else published_rows(case, checkpoint, folder)
    speeds = times(case, bundles, checkpoint, folder, rounds, threads) if rounds else {}
    rows: dict[str, dict[str, Any]] = {"torch eager": speeds.get("torch eager", {})}
    for name, row in bundles.items():
        for engine in row.engines:
            title = row.title(name, engine)
            rows[title] = {**speeds.get(title, {}), **network_size(row.bundle)}
            if case.trained:
                rows[title]["accuracy"] = accuracy(case, folder, row.bundle, engine)
                rows[title]["label_agreement"] = agreement(folder, bundles["float"].bundle, row.bundle, engine)
    size = load_bundle(bundles["float"].bundle).contract.input
    result: dict[str, Any] = {
        "weights": "random" if not case.trained else case.file or "trained on CamVid",
        "score": case.score,
    }
    result |= {"network": case.network, "size": f"{size.height_px}x{size.width_px}", "threads": threads}
    return {**result, "timed": timing_origin(folder, threads) if rounds else None, "rows": rows}


def published_rows(case: Case, checkpoint: Path, folder: Path) -> dict[str, Row]:
    """Return the rows of published or random weights, without fine-tuning because Cityscapes is not available."""
    whole = export(case, checkpoint, folder)
    int8 = quantize(whole, folder / "int8", case.trained)
    rows = {"float": Row(whole, BOTH, timed=True), "int8": Row(int8, BOTH, timed=True)}
    if not case.trained:
        return rows
    words = ["--backend", "torch", "--checkpoint", str(checkpoint)]
    rows["int8, torch"] = Row(quantize(whole, folder / "int8_torch", True, words), ("torch",), timed=True)
    for share in case.fractions:
        zeroed = prune(whole, folder / f"pruned{share:.0%}", checkpoint, "unstructured", share)
        rows[f"{share:.0%} pruned"] = Row(zeroed)
    rows["30% masked"] = Row(prune(whole, folder / "masked30%", checkpoint, "masked", 0.3))
    removed = prune(whole, folder / "removed30%", checkpoint, "structured", 0.3)
    rows["30% removed"] = Row(removed, BOTH, timed=True)
    rows["30% removed, int8"] = Row(quantize(removed, folder / "removed30%_int8", True), BOTH, timed=True)
    return rows


def trained_rows(case: Case, folder: Path) -> dict[str, Row]:
    """Return the rows of the network in case.run, pruned and fine-tuned with the shipped recipe."""
    assert case.run is not None
    whole = case.run / "bundle"
    camvid = DATA / "CamVid"
    tuned = folder / "pruned30-int8"
    words = ["compress", "erfnet-camvid-prune30-int8", str(whole), "--checkpoint", str(checkpoint_of(case, folder))]
    words += ["--data", str(camvid), "--frames", f"camvid={camvid}:train", "--dataset", f"camvid={camvid}:val"]
    tuned = ensure_bundle(tuned, [*words, "--output", str(tuned)])
    return {
        "float": Row(whole, BOTH, timed=True),
        "int8": Row(quantize(whole, folder / "int8", True), BOTH, timed=True),
        TUNED: Row(tuned.with_name(f"{tuned.name}-float"), BOTH, timed=True),
        f"{TUNED}, int8": Row(tuned, BOTH, timed=True),
    }


def checkpoint_of(case: Case, folder: Path) -> Path:
    """Return the network's checkpoint; write one with random weights if there is none."""
    if case.run is not None:
        return case.run / "best.safetensors"
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
    shape = ["--num-classes", str(OUTPUTS), "--void-class", str(VOID_CLASS), "--size", "x".join(SIZE)]
    words = ["export", "--network", case.network, "--checkpoint", str(checkpoint), *shape, "--name", case.network]
    return ensure_bundle(output, [*words, "--output", str(output)])


def quantize(parent: Path, output: Path, real: bool, options: Sequence[str] = ()) -> Path:
    """Return the int8 bundle with the command's defaults. Random weights (not real) get all layers in int8."""
    words = ["quantize", str(parent), "--frames", f"camvid={DATA / 'CamVid'}:train", "--output", str(output), *options]
    words += ["--dataset", *datasets(), "--allow-partial"] if real else ["--keep-float", "none"]
    return ensure_bundle(output, [*words, "--accept-drift"])


def prune(parent: Path, output: Path, checkpoint: Path, method: str, share: float) -> Path:
    """Return the bundle without this share of weights or channels, without fine-tuning."""
    words = ["prune", str(parent), "--checkpoint", str(checkpoint), "--method", method, "--fraction", str(share)]
    words += ["--frames", f"camvid={DATA / 'CamVid'}:train", "--rounds", "0", "--output", str(output)]
    return ensure_bundle(output, [*words, "--accept-drift"])


def times(
    case: Case, bundles: Mapping[str, Row], checkpoint: Path, folder: Path, rounds: int, threads: int
) -> dict[str, Any]:
    """Return row heading -> speed relative to the checkpoint in torch eager, and size."""
    output = folder / f"bench{threads}.json"
    timed = {name: row for name, row in bundles.items() if row.timed}
    words = ["bench", *(str(row.bundle) for row in timed.values()), "--rounds", str(rounds), "--threads", str(threads)]
    words += ["--backend", *sorted({engine for row in timed.values() for engine in row.engines}), "--score", case.score]
    words += ["--torch-checkpoint", f"{bundles['float'].bundle}={checkpoint}", "--no-memory", "--json", str(output)]
    if not output.is_file():
        run(words)
    programs = {load_bundle(row.bundle).contract.program_sha256: name for name, row in timed.items()}
    found = {}
    for entry in json.loads(output.read_text())["entries"]:
        eager = entry["backend"] == "torch eager"
        name = "torch eager" if eager else programs[entry["sha256"]]
        title = name if eager else timed[name].title(name, entry["backend"])
        found[title] = {"as_eager": next(iter(entry["speedup"].values()), {}), "rounds": entry["rounds"]}
        found[title] |= {"file_bytes": entry["file_bytes"], "p50_ms": entry["latency_ms"]["p50"]}
    return found


def timing_origin(folder: Path, threads: int) -> dict[str, Any]:
    """Return date, machine and versions of the timing of a network. Networks may have been timed in different runs."""
    report = json.loads((folder / f"bench{threads}.json").read_text())
    return {name: report[name] for name in ("created", "machine", "versions")}


def network_size(bundle: Path) -> dict[str, Any]:
    """Return compression method and effective size of a bundle's network."""
    loaded = load_bundle(bundle)
    found: dict[str, Any] = {"method": loaded.contract.compression.get("method", "float32")}
    if GRAPH_FILE in loaded.contract.files:
        cost = graph_cost(loaded.graph_path)
        found["effective_multiply_adds"] = cost.effective_multiply_adds
        found["nonzero_parameters"] = cost.nonzero_parameters
    return found


def agreement(folder: Path, parent: Path, child: Path, backend: str) -> float:
    """Return the share of pixels with the label of the float graph in ONNX Runtime, over all frames of the sets."""
    path = folder / f"{child.name}.{backend}.agreement.json"
    if not path.is_file():
        before, after = open_detector(parent), open_detector(child, backend)
        shares = []
        for name, place in SETS.items():
            dataset = open_named(f"{name}={DATA / place}")
            for index in range(len(dataset)):
                frame = dataset.load(index).image
                shares.append(float((before.detect(frame, ()).labels == after.detect(frame, ()).labels).mean()))
        path.write_text(json.dumps(float(np.mean(shares))))
    return float(json.loads(path.read_text()))


def datasets() -> list[str]:
    """Return the anomaly sets in the form that --dataset expects."""
    return [f"{name}={DATA / folder}" for name, folder in SETS.items()]


def accuracy(case: Case, folder: Path, bundle: Path, backend: str) -> dict[str, Any]:
    """Return dataset -> AuPRC and FPR95 of the score, fractions; for a network trained on CamVid also the mIoU."""
    output = folder / f"{bundle.name}.{backend}.json"
    sets = [*datasets(), f"camvid={DATA / 'CamVid'}:val"] if case.run is not None else datasets()
    words = ["evaluate", str(bundle), "--dataset", *sets, "--protocol", "seeds", "--allow-partial"]
    if not output.is_file():
        run([*words, "--score", case.score, "--backend", backend, "--json", str(output)])
    results = json.loads(output.read_text())["results"]
    figures: dict[str, Any] = {}
    for row in results:
        if row["dataset"] == "camvid":
            figures["miou"] = row["miou"]
        elif row["score"] == case.score:
            figures[row["dataset"]] = {"auprc": row["auprc"], "fpr95": row["fpr95"]}
    return figures


if __name__ == "__main__":
    main()
