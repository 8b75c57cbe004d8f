"""Small networks distilled from the detector that ships, bisenet_lite-world, on all anomaly sets.

    nice -n 15 python distilled_networks.py --data WORLD --output DIR --erfnet CHECKPOINT

WORLD is a folder of `anomseg datasets pseudo-label` (docs/datasets.md); ./objects and ./models hold what the recipe
enet-world names. ENet and ERFNet start from the features of enet-camvid and erfnet-camvid (CHECKPOINT: best.safetensors
of `anomseg train erfnet-camvid`), MiDE-Net from random weights. The teacher sees the pasted objects. The sets only
measure. The figures go into distilled_networks.md. Every run resumes where it was stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import write_result
from trained_rows import cells, figures, train

from anomseg_ros.networks import build_network

RECIPE, OUTPUTS = "enet-world", 20
SCORES = ("void", "max_logit", "max_entropy")
ENET = "models/enet-camvid/checkpoint.safetensors"
ROWS: Mapping[str, tuple[str, int]] = {
    "MiDE-Net": ("mide_net", 6),
    "ENet": ("enet", 3),
    "ERFNet": ("erfnet", 2),
}
"""Row -> network and epochs."""
TABLE = Path(__file__).resolve().parent / "distilled_networks.md"


def main() -> None:
    args = parse_arguments()
    rows = {}
    for name in args.only:
        network, epochs = ROWS[name]
        folder = args.output / name
        train(RECIPE, args.data, folder, SCORES, [*changes_of(name, args.erfnet), *args.set])
        rows[name] = {"network": network, "epochs": epochs, **figures(folder, SCORES)}
    print(write_result("distilled_networks", {"changes": args.set, "rows": rows}))
    TABLE.write_text(page(rows), encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="WORLD", help="folder of pseudo-labelled frames")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--erfnet", type=Path, required=True, metavar="CHECKPOINT", help="weights of erfnet-camvid")
    parser.add_argument(
        "--only", nargs="*", default=list(ROWS), choices=list(ROWS), metavar="ROW", help="rows to run and to write"
    )
    parser.add_argument("--set", action="append", default=[], help="change of every run, key=value")
    return parser.parse_args()


def changes_of(name: str, erfnet: Path) -> list[str]:
    """Return the changes of the recipe for a row."""
    network, epochs = ROWS[name]
    initial = {"enet": Path(ENET), "erfnet": erfnet}.get(network)
    changes = [f"network.name={network}", f"run.epochs={epochs}", "run.precision=32-true"]
    if initial is not None:
        changes.append(f"network.initial={{checkpoint: {initial}, num_classes: 12, part: features}}")
    return changes


def page(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the figures of the rows in Markdown."""
    lines = [
        "# Small networks distilled from bisenet_lite-world",
        "",
        "AuPRC / FPR95 in per cent, protocol `seeds`; mIoU on the validation frames of WORLD (pseudo-labels).",
        "Each row is one run. Written by",
        "`python distilled_networks.py --data WORLD --output DIR --erfnet CHECKPOINT`.",
        "",
        "| network | M params | epochs | mIoU | score | RoadAnomaly21 | RoadObstacle21 | FS Static |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        parameters = sum(weight.numel() for weight in build_network(row["network"], OUTPUTS).parameters())
        head = f"| {name} | {parameters / 1e6:.2f} | {row['epochs']} | {100 * row['miou']:.1f}"
        lines += [f"{head} | `{score}` | {cells(row, score)} |" for score in SCORES]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
