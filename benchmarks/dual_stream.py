"""Dual-stream adapters: the rows of the paper's ablation on CamVid, and what training costs beside other ways.

    nice -n 15 python dual_stream.py ablation --output /tmp/streams
    python dual_stream.py cost
    python dual_stream.py cost --size large --side-px 768 --batch-size 1 --device cuda

`ablation` trains the small encoder, then each row on it: dual-stream adapters, these without the loss of streams,
without the prior and without refinement (table 5a), and each row's stage of outliers with cut-out objects. AuPRC and
FPR95 are measured after both stages by the protocol `seeds`. Every run resumes where it was stopped. `--epochs`
shortens the runs, and `--set` changes all of them, as in `--set run.threads=1`. The encoder is trained from scratch, so
the figures compare rows, not systems.

`cost` measures dual-stream adapters, ViT-Adapter, side adapter, full fine-tuning and LoRA on the same frozen encoder
with the same decoder: parameters that train, by part; median time of a training step on random frames; and peak memory,
each in a process of its own. On a processor, time is the process's own, whatever else runs, and memory is the growth of
its peak since before the network was built. On a GPU, time is wall time, and memory the peak that torch allocated.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import DATA, write_result
from trained_rows import SETS, cells, figures, train

CAMVID, CUTOUTS = DATA / "CamVid", DATA / "cutouts"
SCORES = ("mask_msp", "rba")
ROWS: dict[str, tuple[str, ...]] = {
    "dual-stream": (),
    "without-stream-loss": ("loss.stream_weight=0",),
    "without-prior": ("network.options.prior=false",),
    "without-refinement": ("network.options.refinement=false",),
}
"""Row -> changes of dual_stream_adapter-camvid."""
PAPER = {
    "dual-stream": "59.6 / 3.0",
    "without-stream-loss": "50.2 / 5.3",
    "without-prior": "12.0 / 13.2",
    "without-refinement": "18.5 / 7.7",
}
"""Row -> AuPRC / FPR95 on RoadObstacle21 in the paper's table 5a."""
TABLE = Path(__file__).resolve().parent / "dual_stream.md"
CLASSES, RANK = 19, 16
WAYS: dict[str, dict[str, Any]] = {
    "dual-stream": {"streams": 2},
    "vit-adapter": {"streams": 1, "injector": True},
    "side-adapter": {"streams": 0, "side_depth": 8},
    "fine-tuned": {"streams": 0},
    "lora": {"streams": 0},
}
"""Way of training -> options of the network."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    ablation = kinds.add_parser("ablation", help="train and measure the rows")
    ablation.add_argument("--output", type=Path, required=True, help="folder of the runs")
    ablation.add_argument(
        "--epochs",
        type=int,
        nargs=3,
        metavar=("ENCODER", "ROW", "OUTLIERS"),
        default=[60, 40, 10],
        help="epochs of the encoder, of each row and of its stage of outliers (default: those of the recipes)",
    )
    ablation.add_argument("--set", action="append", default=[], help="change of every run, key=value")
    cost = kinds.add_parser("cost", help="measure training")
    cost.add_argument("--size", default="tiny", choices=("tiny", "large"), help="size of the paper")
    cost.add_argument("--side-px", type=int, default=256, help="height and width of the crops")
    cost.add_argument("--batch-size", type=int, default=2)
    cost.add_argument("--steps", type=int, default=5, help="measured steps, after one that is not")
    cost.add_argument("--device", default="cpu", help="device of torch")
    cost.add_argument("--threads", type=int, default=1)
    cost.add_argument("--way", choices=tuple(WAYS), help=argparse.SUPPRESS)  # of the processes it starts
    args = parser.parse_args()
    if args.kind == "ablation":
        rows = run_ablation(args.output, args.epochs, args.set)
        print(write_result("dual_stream_ablation", {"epochs": args.epochs, "changes": args.set, "rows": rows}))
        TABLE.write_text(page(rows, args.epochs, args.set), encoding="utf-8")
    elif args.way:
        print(json.dumps(measure_way(args)))
    else:
        settings = {key: value for key, value in vars(args).items() if key not in ("kind", "way")}
        ways = {way: in_a_process(way) for way in WAYS}
        print(write_result(f"dual_stream_cost_{args.size}_{args.device}", {**settings, "ways": ways}))


def run_ablation(output: Path, epochs: list[int], changes: list[str]) -> dict[str, Any]:
    """Return the figures of every row after both stages."""
    encoder = output / "encoder"
    of_encoder, of_row, of_outliers = ([f"run.epochs={number}", *changes] for number in epochs)
    train("dual_stream_adapter-camvid-finetuned", CAMVID, encoder, SCORES, of_encoder)
    rows: dict[str, Any] = {"fine-tuned": figures(encoder, SCORES)}
    for row, own in ROWS.items():
        first, second = output / row, output / f"{row}-outliers"
        start = f"network.initial={{checkpoint: {encoder / 'best.safetensors'}, part: encoder}}"
        train("dual_stream_adapter-camvid", CAMVID, first, SCORES, [start, *own, *of_row])
        options = [change for change in own if change.startswith("network.")]
        start = f"network.initial={{checkpoint: {first / 'best.safetensors'}}}"
        objects = f"data.cut_paste.objects={CUTOUTS}"
        train("dual_stream_adapter-outliers-camvid", CAMVID, second, SCORES, [start, objects, *options, *of_outliers])
        rows[row], rows[f"{row}-outliers"] = figures(first, SCORES), figures(second, SCORES)
    return rows


def page(rows: dict[str, Any], epochs: list[int], changes: list[str]) -> str:
    """Return the figures of the rows in Markdown, beside those of the paper's table 5a."""
    words = ["python dual_stream.py ablation --output DIR --epochs", *map(str, epochs)]
    lines = [
        "# Dual-stream adapters on CamVid",
        "",
        "AuPRC / FPR95 in per cent, protocol `seeds`; mIoU on CamVid's val. One run each, of a small encoder that was",
        "trained from scratch: the figures compare rows, not systems. Rows named -outliers are those above after the",
        "stage of outliers. The paper's figures are those of its table 5a: RoadObstacle21, DSA-Tiny, without outliers.",
        f"Written by `{' '.join([*words, *(f'--set {change}' for change in changes)])}`.",
        "",
        f"| row (mIoU) | score | {' | '.join(SETS)} | the paper |",
        "|---" * (len(SETS) + 3) + "|",
    ]
    for name, row in rows.items():
        for score in SCORES:
            paper = PAPER.get(name, "") if score == SCORES[0] else ""
            lines.append(f"| {name} ({100 * row['miou']:.1f}) | `{score}` | {cells(row, score)} | {paper} |")
    return "\n".join(lines) + "\n"


def in_a_process(way: str) -> dict[str, Any]:
    """Return the figures of one way of training, measured in a process of its own."""
    words = [sys.executable, __file__, *sys.argv[1:], "--way", way]
    found: dict[str, Any] = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    print(
        f"{way:>12}: {found['trained']:,} parameters train, step {found['step_ms']:.0f} ms, {found['peak_mb']:.0f} MB"
    )
    return found


def measure_way(args: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one way of training."""
    import torch

    from anomseg_ros.networks.dual_stream_adapter import SIZES, DualStreamAdapter
    from anomseg_ros.training.dual_stream_objective import DualStreamObjective, DualStreamOptions
    from anomseg_ros.training.objectives import Task
    from anomseg_ros.training.start import set_training_mode

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    before_kb, device = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, torch.device(args.device)
    network = DualStreamAdapter(CLASSES, **{**SIZES[args.size], **WAYS[args.way]})
    network.encoder.requires_grad_(args.way == "fine-tuned")
    lora = {"lora": lora_config()} if args.way == "lora" else {}
    options = DualStreamOptions(stream_weight=0.1 if args.way == "dual-stream" else 0.0, **lora)
    objective = DualStreamObjective(options, Task(None, None, 1000))
    objective.prepare(network)
    network.to(device)
    set_training_mode(network)
    trained = {name: value for name, value in network.named_parameters() if value.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), 1e-4)
    size = (args.batch_size, args.side_px // 8, args.side_px // 8)
    target = torch.randint(0, CLASSES, size).repeat_interleave(8, 1).repeat_interleave(8, 2)
    target[:, : args.side_px // 8] = 255
    images = torch.rand(args.batch_size, 3, args.side_px, args.side_px).to(device)
    times_ms, clock = [], time.perf_counter if device.type == "cuda" else time.process_time
    for _ in range(args.steps + 1):
        start = clock()
        optimizer.zero_grad()
        objective.loss(objective.ask(network, images, 0), target.to(device), [], 0)["total"].backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times_ms.append(1e3 * (clock() - start))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) * 1024
    parts = {part: sum(v.numel() for n, v in trained.items() if n.startswith(part)) for part in ("encoder", "adapter")}
    total = sum(value.numel() for value in trained.values())
    return {
        "parameters": sum(value.numel() for value in network.parameters()),
        "trained": total,
        "trained_by_part": {**parts, "decoder": total - sum(parts.values())},
        "step_ms": statistics.median(times_ms[1:]),
        "peak_mb": (torch.cuda.max_memory_allocated() if device.type == "cuda" else grown) / 2**20,
    }


def lora_config() -> Any:
    from anomseg_ros.networks.lora import LoraConfig

    return LoraConfig(RANK)


if __name__ == "__main__":
    main()
