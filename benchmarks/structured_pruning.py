"""Gain in speed and loss of mIoU of a network with 30 % of its channels removed, fine-tuned on CamVid.

    anomseg train erfnet-camvid --data CAMVID
    python benchmarks/structured_pruning.py runs/erfnet-camvid/bundle runs/erfnet-camvid/best.safetensors

writes the pruned bundle with `anomseg prune` if it is missing, exports both checkpoints at 512x1024, and times them in
turns in one run. The mIoU before and after is that of CamVid's validation frames at the bundle's own size.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from common import DATA, write_result

from anomseg_ros.cli import main as anomseg
from anomseg_ros.core.bundle import CHECKPOINT_FILE, load_bundle

CAMVID = DATA / "CamVid"
SIZE = "512x1024"
FRACTION = 0.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="bundle of the trained network")
    parser.add_argument("checkpoint", type=Path, help="its checkpoint")
    parser.add_argument("--recipe", default="erfnet-camvid", help="training configuration of the fine-tuning")
    parser.add_argument("--set", action="append", default=[], help="change of the configuration, key=value")
    parser.add_argument("--output", type=Path, default=Path("pruned"), help="the pruned bundle")
    parser.add_argument("--rounds", type=int, default=21, help="interleaved measurements of each kind")
    parser.add_argument("--threads", type=int, default=2, help="threads of ONNX Runtime")
    args = parser.parse_args()
    if not (args.output / "bundle.yaml").is_file():
        prune(args)
    compression = load_bundle(args.output).contract.compression
    before, after = compression["drift"]["datasets"]["camvid"]["miou"]
    result = {"network": load_bundle(args.bundle).contract.network, "fraction": FRACTION, "size": SIZE}
    result |= {"threads": args.threads, "camvid_miou": {"before": before, "after": after}}
    result |= {"fine_tune": compression["settings"].get("fine_tune"), **measure_speed(args)}
    print(write_result("structured_pruning", result))


def prune(args: argparse.Namespace) -> None:
    """Write the pruned bundle."""
    changes = [f"--set={change}" for change in args.set]
    words = ["prune", str(args.bundle), "--checkpoint", str(args.checkpoint), "--fraction", str(FRACTION)]
    words += ["--fine-tune", args.recipe, "--data", str(CAMVID), *changes, "--frames", f"camvid={CAMVID}:train"]
    run([*words, "--dataset", f"camvid={CAMVID}:val", "--output", str(args.output)])


def measure_speed(args: argparse.Namespace) -> dict[str, Any]:
    """Return time and size of both networks at 512x1024, and the relative speed of the pruned one."""
    titles = {"before": (args.bundle, args.checkpoint), "after": (args.output, args.output / CHECKPOINT_FILE)}
    with tempfile.TemporaryDirectory() as folder:
        exported = [export(bundle, file, Path(folder) / name) for name, (bundle, file) in titles.items()]
        report = Path(folder) / "bench.json"
        words = ["bench", *map(str, exported), "--rounds", str(args.rounds), "--threads", str(args.threads)]
        run([*words, "--no-memory", "--json", str(report)])
        entries = json.loads(report.read_text())["entries"]
    rows = dict(zip(titles, entries, strict=True))
    speedup = next(iter(rows["after"]["speedup"].values()))
    sizes = ("parameters", "multiply_adds", "file_bytes")
    figures = {name: {"p50_ms": row["latency_ms"]["p50"], **{k: row[k] for k in sizes}} for name, row in rows.items()}
    print(f"{speedup['median']:.2f} times as fast ({speedup['low']:.2f} to {speedup['high']:.2f})")
    return {"times_as_fast": speedup, **figures}


def export(bundle: Path, checkpoint: Path, output: Path) -> Path:
    """Export a checkpoint at 512x1024; return its bundle."""
    contract = load_bundle(bundle).contract
    words = ["export", "--network", contract.network, "--checkpoint", str(checkpoint), "--label-set", "camvid"]
    words += ["--num-classes", str(len(contract.classes)), "--size", SIZE]
    words += [] if contract.void_class is None else ["--void-class", str(contract.void_class)]
    run([*words, "--output", str(output)])
    return output


def run(words: list[str]) -> None:
    """Run a command of `anomseg`. Raises SystemExit if it fails."""
    status = anomseg(words)
    if status:
        raise SystemExit(status)


if __name__ == "__main__":
    main()
