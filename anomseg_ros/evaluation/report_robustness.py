"""The report's tables on corruptions as plain values: kinds by severities, one table per figure.

A cell is darker the more of the clean figure is lost; it is darkest at AuPRC or mIoU 0, or FPR95 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from anomseg_ros.evaluation.results import Figures, Robustness
from anomseg_ros.evaluation.robustness import FIGURES, kinds_of, mean_of, severities_of

MOST_SHADE = 60
"""Per cent of colour where all is lost; more would make the number hard to read."""

Cell = tuple[float | None, int]
"""A figure, and its shade in per cent."""


@dataclass(frozen=True)
class HeatTable:
    """One figure: rows of cells by severity by kind of corruption, the last cell and the last row their means."""

    figure: str
    severities: Sequence[int]
    rows: Mapping[str, Sequence[Cell]]


def robustness_figures(robustness: Sequence[Robustness]) -> list[str]:
    """Return the figures that some clean result has."""
    return [name for name in FIGURES if any(getattr(one.clean, name) is not None for one in robustness)]


def heat_tables(one: Robustness) -> list[HeatTable]:
    """Return the tables of the figures that the clean result has."""
    return [_heat_table(one, name) for name in robustness_figures([one])]


def _heat_table(one: Robustness, figure: str) -> HeatTable:
    of = {(cell.kind, cell.severity): cell.figures for cell in one.corruptions}
    kinds, severities = kinds_of(one), severities_of(one)
    figures: dict[str, list[Figures]] = {}
    for kind in kinds:
        cells = [of[kind, severity] for severity in severities]
        figures[kind] = [*cells, mean_of(cells)]
    figures["mean"] = [*(mean_of([of[kind, severity] for kind in kinds]) for severity in severities), one.mean]
    clean = getattr(one.clean, figure)
    rows = {
        name: [_cell(getattr(cell, figure), clean, FIGURES[figure]) for cell in row] for name, row in figures.items()
    }
    return HeatTable(figure, severities, rows)


def _cell(value: float | None, clean: float, higher_is_better: bool) -> Cell:
    if value is None:
        return None, 0
    room = clean if higher_is_better else 1.0 - clean
    lost = (clean - value if higher_is_better else value - clean) / room if room > 0 else 0.0
    return value, round(MOST_SHADE * min(max(lost, 0.0), 1.0))
