"""`anomseg papers`: measure the published checkpoints and write a table of published and measured figures."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from anomseg_ros.commands import options
from anomseg_ros.commands.evaluate import add_worker_options, evaluation_of
from anomseg_ros.commands.progress_lines import ProgressLines
from anomseg_ros.commands.result_files import write_each
from anomseg_ros.core.output_files import write_results
from anomseg_ros.errors import ConfigError
from anomseg_ros.evaluation.evaluate import Outcome, Request, evaluate
from anomseg_ros.evaluation.paper_tables import check_ids, papers, row_ids, tables_page
from anomseg_ros.evaluation.results import Evaluation, Result, load_evaluation, save_evaluation
from anomseg_ros.evaluation.workers import Workers
from anomseg_ros.export import ExportConfig, export_checkpoint
from anomseg_ros.scores import default_scores

PROTOCOL = "seeds"
REPRODUCED_WITHIN = 0.05
PUBLISHED_WITHIN = 0.3
"""Largest differences, in percentage points, between a measured figure and a reproduced or published one."""

Figures = tuple[float, float]
"""AuPRC and FPR95, percent."""


@dataclass(frozen=True)
class Model:
    """A published void classifier: its checkpoint, and its figures by dataset.

    published: figures in the papers. reproduced: figures of the same checkpoint, measured with the authors' code.
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


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of `anomseg papers`."""
    parser = options.parser(
        "papers",
        "Measure the published checkpoints with the papers' protocol and write a table. Or write the tables of "
        "the papers on large networks, with figures of ours beside them (--tables).",
    )
    parser.add_argument("--weights", type=Path, help="folder of the checkpoints")
    parser.add_argument("--data", type=Path, help=f"folder with {', '.join(DATASETS.values())}")
    tables_help = "write the tables of the large networks' papers (config/papers) to this file; measures nothing"
    parser.add_argument("--tables", type=options.output_file, metavar="FILE", help=tables_help)
    measured_help = f"with --tables: evaluation that stands for a row, one of {', '.join(row_ids(papers()))}"
    parser.add_argument("--measured", nargs="+", default=[], metavar="ROW=JSON", help=measured_help)
    parser.add_argument("--output", type=options.output_file, default="benchmarks/papers.md", help="file to write")
    parser.add_argument(
        "--json", type=options.output_file, help="JSON file for all results, for anomseg compare and anomseg report"
    )
    add_worker_options(parser)
    options.add_backend_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Export, evaluate and write the files; return 0 if every figure is within its tolerance, else 1."""
    args = argument_parser().parse_args(argv)
    if args.tables is not None:
        return _write_tables(args)
    if args.measured:
        raise ConfigError(f"--measured {args.measured[0]} needs --tables, the file to write")
    if args.weights is None or args.data is None:
        raise ConfigError("give --weights and --data to measure the published checkpoints, or --tables FILE")
    datasets = tuple(f"{name}={args.data / folder}" for name, folder in DATASETS.items())
    with tempfile.TemporaryDirectory(prefix="anomseg-papers-") as folder, ProgressLines() as lines:
        bundles = _export_all(args.weights, Path(folder), lines)
        request = Request(
            bundles=bundles,
            datasets=datasets,
            scores=default_scores(with_void=True)[:1],
            protocols=(PROTOCOL,),
            backend=args.backend,
            options=options.backend_options(args),
            workers=Workers(args.workers, args.ray),
        )
        outcome = evaluate(request, lines)
    evaluation = evaluation_of(outcome, "anomseg papers --weights WEIGHTS --data DATA")
    rows = rows_of(outcome.results)
    status = _print_summary(rows, outcome)
    writes = [partial(write_results, args.output, page(rows, evaluation))]
    if args.json is not None:
        writes.append(partial(save_evaluation, evaluation, args.json))
    write_each(*writes)
    Console(stderr=True).print(f"written to {args.output}", soft_wrap=True)
    return status


def _write_tables(args: argparse.Namespace) -> int:
    known = papers()
    given = dict(_assignment(text) for text in args.measured)
    check_ids(list(given), known)
    measured = {name: load_evaluation(path) for name, path in given.items()}
    write_results(args.tables, tables_page(known, measured))
    Console(stderr=True).print(f"written to {args.tables}", soft_wrap=True)
    return 0


def _assignment(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise ConfigError(f"--measured {text!r}: expected ROW=JSON, such as eomt=results.json")
    return name, Path(path)


@dataclass(frozen=True)
class Row:
    """One figure of a model on a dataset, in percent. reproduced: None if it was not reproduced."""

    model: str
    dataset: str
    figure: str
    published: float
    reproduced: float | None
    measured: float

    @property
    def difference(self) -> float:
        """Measured minus reproduced, or minus published if it was not reproduced."""
        return self.measured - (self.published if self.reproduced is None else self.reproduced)

    @property
    def is_within_tolerance(self) -> bool:
        """Whether the difference is at most REPRODUCED_WITHIN, or PUBLISHED_WITHIN if it was not reproduced."""
        return abs(self.difference) <= (PUBLISHED_WITHIN if self.reproduced is None else REPRODUCED_WITHIN)


def rows_of(results: Sequence[Result]) -> list[Row]:
    """Return two rows, AuPRC and FPR95, for every result."""
    rows = []
    for result in results:
        model = MODELS[result.bundle]
        published, reproduced = model.published[result.dataset], model.reproduced.get(result.dataset)
        for index, (figure, value) in enumerate((("AuPRC", result.auprc), ("FPR95", result.fpr95))):
            assert value is not None  # evaluate() raises an error for datasets without anomalies
            reproduced_value = None if reproduced is None else reproduced[index]
            rows.append(Row(model.title, result.dataset, figure, published[index], reproduced_value, 100 * value))
    return rows


def page(rows: Sequence[Row], evaluation: Evaluation) -> str:
    """Return the Markdown page."""
    lines = [
        "# The papers' figures, measured",
        "",
        "Written by `anomseg papers`; do not edit. Void score, 512x1024, protocol `seeds` (docs/evaluate.md), percent.",
        "AuPRC up, FPR95 down. Reproduced: the same checkpoint, measured with the authors' code. The difference is",
        f"measured minus reproduced, at most {REPRODUCED_WITHIN} points; without a reproduced figure, it is measured",
        f"minus published, at most {PUBLISHED_WITHIN} points.",
        "",
        "| model | dataset | figure | published | reproduced | measured | difference | |",
        "|---|---|---|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        reproduced = "" if row.reproduced is None else f"{row.reproduced:.3f}"
        verdict = "ok" if row.is_within_tolerance else "OFF"
        lines.append(
            f"| {row.model} | {row.dataset} | {row.figure} | {row.published:.2f} | {reproduced} | {row.measured:.3f} | "
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
    for number, (name, model) in enumerate(MODELS.items(), start=1):
        config = ExportConfig(name, num_classes=20, void_class=19, scores=default_scores(with_void=True)[:1])
        export_checkpoint(model.network, weights / model.checkpoint, config, folder / name)
        lines("exporting checkpoints", number, len(MODELS))
    return tuple(folder / name for name in MODELS)


def _print_summary(rows: Sequence[Row], outcome: Outcome) -> int:
    """Print the figures outside their tolerance and the errors; return the exit status."""
    console = Console(stderr=True)
    outside = [row for row in rows if not row.is_within_tolerance]
    for row in outside:
        console.print(f"off: {row.model}, {row.dataset}, {row.figure}: {row.measured:.3f}, {row.difference:+.3f}")
    for error in outcome.errors:
        console.print(f"anomseg: error: {error}", style="red", soft_wrap=True, markup=False)
    console.print(f"{len(rows) - len(outside)} of {len(rows)} figures within tolerance")
    return 1 if outside or outcome.errors else 0
