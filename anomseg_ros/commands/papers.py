"""`anomseg papers`: measure the published checkpoints and write published and measured figures side by side."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from anomseg_ros.commands import options
from anomseg_ros.commands.evaluate import ProgressLines, add_worker_options, evaluation_of
from anomseg_ros.errors import ConfigError
from anomseg_ros.evaluation.evaluate import Outcome, Request, evaluate
from anomseg_ros.evaluation.results import Evaluation, Result, save_evaluation
from anomseg_ros.evaluation.workers import Workers
from anomseg_ros.export import ExportConfig, export_checkpoint

PROTOCOL = "seeds"
REPRODUCED_WITHIN = 0.05
PUBLISHED_WITHIN = 0.3
"""Percentage points by which a measured figure may differ from a reproduced and from a published one."""

Figures = tuple[float, float]
"""AuPRC and FPR95, percent."""


@dataclass(frozen=True)
class Model:
    """A published void classifier: its checkpoint, and its row for each dataset.

    published: as printed in the papers. reproduced: measured from the same checkpoint by the authors' own code path.
    """

    title: str
    network: str
    checkpoint: str
    published: dict[str, Figures]
    reproduced: dict[str, Figures]
    note: str = ""


DATASETS = {"road_anomaly_21": "RoadAnomaly21", "road_obstacle_21": "RoadObstacle21", "fs_static": "fs_static"}
"""Name -> folder below --data."""

MODELS = {
    "enet": Model(
        "ENet (560 epochs, fine-tuned on void)",
        "enet",
        "enet_560_epochs_finetuned.pth",
        {"road_anomaly_21": (13.29, 90.85), "road_obstacle_21": (1.39, 76.90), "fs_static": (11.26, 67.53)},
        {"road_anomaly_21": (13.294, 90.849), "fs_static": (11.261, 67.535)},
    ),
    "mide_net": Model(
        "MiDE-Net (distilled)",
        "mide_net",
        "midenet_distilled.pth",
        {"road_anomaly_21": (18.50, 79.20), "road_obstacle_21": (0.69, 98.02), "fs_static": (5.55, 93.66)},
        {"road_anomaly_21": (18.502, 79.190), "fs_static": (5.549, 93.686)},
    ),
    "erfnet": Model(
        "ERFNet (fine-tuned on void)",
        "erfnet",
        "erfnet_void20_dequantized.safetensors",
        {"road_anomaly_21": (19.31, 78.29), "road_obstacle_21": (1.41, 99.79), "fs_static": (20.77, 23.87)},
        {"road_anomaly_21": (19.165, 78.047), "road_obstacle_21": (1.463, 99.791), "fs_static": (20.702, 23.703)},
        "weights dequantized from the published int8 checkpoint; the published row is of the float32 one",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Export, evaluate, write; returns 0 if every figure is within its tolerance, else 1."""
    parser = options.parser("papers", "Measure the published checkpoints by the papers' protocol and write a table.")
    parser.add_argument("--weights", required=True, type=Path, help="folder of the checkpoints")
    parser.add_argument("--data", required=True, type=Path, help=f"folder with {', '.join(DATASETS.values())}")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/papers.md"), help="file to write")
    parser.add_argument("--json", type=Path, help="file for everything measured (anomseg compare, anomseg report)")
    add_worker_options(parser)
    options.add_backend_options(parser)
    args = parser.parse_args(argv)

    datasets = tuple(f"{name}={args.data / folder}" for name, folder in DATASETS.items())
    with tempfile.TemporaryDirectory(prefix="anomseg-papers-") as folder, ProgressLines() as lines:
        bundles = _export_all(args.weights, Path(folder), lines)
        request = Request(
            bundles=bundles,
            datasets=datasets,
            scores=("void",),
            protocols=(PROTOCOL,),
            backend=args.backend,
            options=options.backend_options(args),
            workers=Workers(args.workers, args.ray),
        )
        outcome = evaluate(request, lines)
    evaluation = evaluation_of(outcome, "anomseg papers --weights WEIGHTS --data DATA")
    if args.json is not None:
        save_evaluation(evaluation, args.json)
    rows = rows_of(outcome.results)
    _write(args.output, page(rows, evaluation))
    return _report(rows, outcome, args.output)


@dataclass(frozen=True)
class Row:
    """One figure, percent. tolerance: how far `measured` may be from `reference`, which is reproduced or published."""

    model: str
    dataset: str
    figure: str
    published: float
    reproduced: float | None
    measured: float

    @property
    def difference(self) -> float:
        """Measured minus reproduced, or minus published where it was not reproduced."""
        return self.measured - (self.published if self.reproduced is None else self.reproduced)

    @property
    def within(self) -> bool:
        """Whether the difference is within the tolerance of its kind."""
        return abs(self.difference) <= (PUBLISHED_WITHIN if self.reproduced is None else REPRODUCED_WITHIN)


def rows_of(results: Sequence[Result]) -> list[Row]:
    """Return two rows, AuPRC and FPR95, for every result that is of a published model and dataset."""
    rows = []
    for result in results:
        model = MODELS[result.bundle]
        published, reproduced = model.published[result.dataset], model.reproduced.get(result.dataset)
        for number, (figure, value) in enumerate((("AuPRC", result.auprc), ("FPR95", result.fpr95))):
            assert value is not None  # these datasets have anomalies, or evaluate() said so
            known = None if reproduced is None else reproduced[number]
            rows.append(Row(model.title, result.dataset, figure, published[number], known, 100 * value))
    return rows


def page(rows: Sequence[Row], evaluation: Evaluation) -> str:
    """Return the Markdown page."""
    lines = [
        "# The papers' figures, measured",
        "",
        "Written by `anomseg papers`; do not edit. Void score, 512x1024, protocol `seeds` (docs/evaluate.md), percent.",
        "AuPRC up, FPR95 down. Reproduced: the same checkpoint through the authors' own code, where that was",
        f"done; the difference is to it, and must be within {REPRODUCED_WITHIN} points; else it is to the",
        f"published figure, and must be within {PUBLISHED_WITHIN}.",
        "",
        "| model | dataset | figure | published | reproduced | measured | difference | |",
        "|---|---|---|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        known = "" if row.reproduced is None else f"{row.reproduced:.3f}"
        verdict = "ok" if row.within else "OFF"
        lines.append(
            f"| {row.model} | {row.dataset} | {row.figure} | {row.published:.2f} | {known} | {row.measured:.3f} | "
            f"{row.difference:+.3f} | {verdict} |"
        )
    notes = (f"{model.title}: {model.note}." for model in MODELS.values() if model.note)
    lines += ["", *notes, "", "## Measured with", ""]
    lines += [f"- {name} {version}" for name, version in evaluation.versions.items()]
    machine = evaluation.machine
    lines.append(f"- {machine['cpu']}, {machine['cores']} cores, {machine['system']}, Python {machine['python']}")
    graphs = {result.bundle: result.bundle_sha256 for result in evaluation.results}
    lines += [f"- {name}: graph sha256 {digest}" for name, digest in graphs.items()]
    return "\n".join(lines) + "\n"


def _export_all(weights: Path, folder: Path, lines: ProgressLines) -> tuple[Path, ...]:
    missing = [model.checkpoint for model in MODELS.values() if not (weights / model.checkpoint).is_file()]
    if missing:
        raise ConfigError(f"{weights} lacks {', '.join(missing)}; --weights is the folder of the published checkpoints")
    for number, (name, model) in enumerate(MODELS.items()):
        config = ExportConfig(name, num_classes=20, void_class=19, scores=("void",))
        export_checkpoint(model.network, weights / model.checkpoint, config, folder / name)
        lines("exporting checkpoints", number + 1, len(MODELS))
    return tuple(folder / name for name in MODELS)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _report(rows: Sequence[Row], outcome: Outcome, output: Path) -> int:
    console = Console(stderr=True)
    off = [row for row in rows if not row.within]
    for row in off:
        console.print(f"off: {row.model}, {row.dataset}, {row.figure}: {row.measured:.3f}, {row.difference:+.3f}")
    for error in outcome.errors:
        console.print(f"anomseg: error: {error}", style="red", soft_wrap=True, markup=False)
    kept = f"{len(rows) - len(off)} of {len(rows)} figures within tolerance"
    console.print(f"{kept}; written to {output}", soft_wrap=True)
    return 1 if off or outcome.errors else 0
