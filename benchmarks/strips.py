"""Speed of graphs that classify in strips of rows, as bundles do, compared with graphs that classify the whole frame.

Each network is exported at 512x1024 in three forms: `whole`; `whole_leaky`, where PReLUs with a single slope are leaky
ReLUs; and `strips`. They compute labels and void score from camera pixels, in turns in one run per backend. The weights
are random, which does not change the time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import write_result

from anomseg_ros.cli import main as anomseg
from anomseg_ros.core.bundle import Provenance
from anomseg_ros.export import DetectorGraph, ExportConfig, StripGraph, export_network
from anomseg_ros.networks import build_network
from anomseg_ros.networks.leaky_relus import with_leaky_relus

NETWORKS = ("mide_net", "enet", "erfnet", "bisenet_v2")
FORMS = ("whole", "whole_leaky", "strips")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help="networks to compare")
    parser.add_argument("--backends", nargs="+", default=["onnxruntime", "openvino"], help="backends to compare")
    parser.add_argument("--rounds", type=int, default=21, help="interleaved measurements of each kind")
    parser.add_argument("--threads", type=int, default=2, help="threads of a network")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = {name: measure(name, args, Path(folder)) for name in args.networks}
    for name, forms in results.items():
        for backend, row in forms.items():
            print(f"{name:>12} {backend:>12}: " + ", ".join(f"{form} {row[form]:.1f} ms" for form in FORMS))
    print(write_result("strips", {"threads": args.threads, "size": "512x1024", "by_network": results}))


def measure(name: str, args: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    """Return backend -> median time of each form, milliseconds, and the speed of strips relative to whole."""
    torch.manual_seed(0)
    network = build_network(name, 20).eval()
    config = ExportConfig(name, 20, 19, scores=("void",))
    forms = {"whole": (network, DetectorGraph), "whole_leaky": (with_leaky_relus(network), DetectorGraph)}
    for title, (variant, form) in {**forms, "strips": (network, StripGraph)}.items():
        export_network(variant, name, config, folder / name / title, Provenance(), graph_class=form)
    return {backend: times(folder / name, backend, args) for backend in args.backends}


def times(bundles: Path, backend: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return the median times in one backend, measured with `anomseg bench`."""
    report = bundles / f"{backend}.json"
    words = ["bench", *(str(bundles / form) for form in FORMS), "--backend", backend, "--no-memory"]
    words += ["--rounds", str(args.rounds), "--threads", str(args.threads), "--json", str(report)]
    status = anomseg(words)
    if status:
        raise SystemExit(status)
    entries = dict(zip(FORMS, json.loads(report.read_text())["entries"], strict=True))
    medians = {form: entry["latency_ms"]["p50"] for form, entry in entries.items()}
    return {**medians, "times_as_fast": next(iter(entries["strips"]["speedup"].values()))}


if __name__ == "__main__":
    main()
