"""Tables of papers as printed, and figures of ours beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from anomseg_ros.core.resources import shipped_yaml
from anomseg_ros.core.schema import from_plain
from anomseg_ros.core.untrusted_text import parse_yaml
from anomseg_ros.errors import ConfigError, closest_first
from anomseg_ros.evaluation.results import Evaluation

FOLDER = "config/papers"
NOT_PUBLISHED, NOT_MEASURED = "not published", "not measured"

Pair = tuple[float | None, float | None]
"""AuPRC and FPR95, percent; None where the paper prints none."""


@dataclass(frozen=True)
class PaperRow:
    """A row. id: what measured figures are given for. checkpoint: a catalog entry; None: none exists.

    values: dataset -> figures as printed.
    """

    id: str
    label: str
    score: str
    values: Mapping[str, Pair]
    checkpoint: str | None = None


@dataclass(frozen=True)
class PaperFact:
    """A figure that is no accuracy, in words."""

    label: str
    published: str
    ours: str


@dataclass(frozen=True)
class PaperTable:
    """A table of rows, or of facts."""

    name: str
    rows: tuple[PaperRow, ...] = ()
    facts: tuple[PaperFact, ...] = ()


@dataclass(frozen=True)
class Paper:
    """The tables of a paper."""

    title: str
    source: str
    tables: tuple[PaperTable, ...]


def papers() -> dict[str, Paper]:
    """Return the papers that ship, by name. Raises ConfigError for a damaged file."""
    return {name: read_paper(path) for name, path in shipped_yaml(FOLDER).items()}


def read_paper(path: Path) -> Paper:
    """Return the paper of a file. Raises ConfigError if it is damaged."""
    try:
        return from_plain(Paper, parse_yaml(path.read_text(encoding="utf-8")), str(path))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error


def row_ids(papers_by_name: Mapping[str, Paper]) -> list[str]:
    """Return the ids of all rows."""
    rows = (row for paper in papers_by_name.values() for table in paper.tables for row in table.rows)
    return list(dict.fromkeys(row.id for row in rows))


def check_ids(given: Sequence[str], papers_by_name: Mapping[str, Paper]) -> None:
    """Raise ConfigError for an id that no row has."""
    known = row_ids(papers_by_name)
    for name in given:
        if name not in known:
            raise ConfigError(f"no row of the papers is called {name!r}; rows: {', '.join(closest_first(name, known))}")


def tables_page(papers_by_name: Mapping[str, Paper], measured: Mapping[str, Evaluation]) -> str:
    """Return Markdown with every table. measured: id of a row -> the evaluation of a network that stands for it."""
    lines = [
        "# The papers' tables",
        "",
        "Written by `anomseg papers --tables`. AuPRC / FPR95, percent; ours in bold, with its protocol.",
    ]
    for paper in papers_by_name.values():
        lines += ["", f"## {paper.title}", "", paper.source]
        for table in paper.tables:
            lines += ["", f"### {table.name}", "", *_rows(table, measured), *_facts(table)]
    return "\n".join(lines) + "\n"


def _rows(table: PaperTable, measured: Mapping[str, Evaluation]) -> list[str]:
    if not table.rows:
        return []
    datasets = list(dict.fromkeys(name for row in table.rows for name in row.values))
    lines = [f"| row | score | {' | '.join(datasets)} | checkpoint |", "|---" * (len(datasets) + 3) + "|"]
    for row in table.rows:
        cells = [_cell(row, name, measured.get(row.id)) for name in datasets]
        checkpoint = NOT_PUBLISHED if row.checkpoint is None else f"`{row.checkpoint}`"
        lines.append(f"| {row.label} | `{row.score}` | {' | '.join(cells)} | {checkpoint} |")
    return lines


def _facts(table: PaperTable) -> list[str]:
    if not table.facts:
        return []
    lines = ["| | published | ours |", "|---|---|---|"]
    return lines + [f"| {fact.label} | {fact.published} | {fact.ours} |" for fact in table.facts]


def _cell(row: PaperRow, dataset: str, measured: Evaluation | None) -> str:
    published = _pair(row.values.get(dataset, (None, None)))
    if measured is None:
        return f"{published}; {NOT_MEASURED}"
    own = [
        f"**{_pair((_percent(result.auprc), _percent(result.fpr95)))}** ({result.protocol})"
        for result in measured.results
        if result.dataset == dataset and result.score == row.score
    ]
    return "; ".join([published, *(own or [NOT_MEASURED])])


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _pair(values: Pair) -> str:
    return " / ".join("-" if value is None else f"{value:.2f}" for value in values)
