"""What corruptions leave of a detector: figures per kind and severity, their means, and the ratio to clean frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from anomseg_ros.datasets.corruptions import Corruption
from anomseg_ros.evaluation.results import CorruptedFigures, Figures, Result, Robustness

FIGURES: dict[str, bool] = {"auprc": True, "fpr95": False, "miou": True}
"""Attribute of Figures -> whether higher is better."""

NAMES = {"auprc": "AuPRC", "fpr95": "FPR95", "miou": "mIoU"}


def robustness_of(clean: Sequence[Result], corrupted: Mapping[Corruption, Sequence[Result]]) -> tuple[Robustness, ...]:
    """Return one Robustness per clean result, from the results of the same job under each corruption."""
    return tuple(_robustness(result, corrupted) for result in clean)


def mean_of(cells: Sequence[Figures]) -> Figures:
    """Return the mean of each figure, None where any of the cells lacks it: a mean over fewer means something else."""
    return _figures(lambda name: _mean([getattr(cell, name) for cell in cells]))


def kinds_of(robustness: Robustness) -> tuple[str, ...]:
    """Return the kinds of corruption, in the order in which they were measured."""
    return tuple(dict.fromkeys(cell.kind for cell in robustness.corruptions))


def severities_of(robustness: Robustness) -> tuple[int, ...]:
    """Return the severities, ascending; every kind was measured at each."""
    return tuple(sorted({cell.severity for cell in robustness.corruptions}))


def _robustness(clean: Result, corrupted: Mapping[Corruption, Sequence[Result]]) -> Robustness:
    cells = []
    for corruption, results in corrupted.items():
        own = next(result for result in results if result.key == clean.key)
        figures = Figures(own.auprc, own.fpr95, own.miou)
        cells.append(CorruptedFigures(corruption.kind, corruption.severity, own.frames, figures))
    before = Figures(clean.auprc, clean.fpr95, clean.miou)
    mean = mean_of([cell.figures for cell in cells])
    return Robustness(
        bundle=clean.bundle,
        dataset=clean.dataset,
        score=clean.score,
        protocol=clean.protocol,
        clean=before,
        mean=mean,
        ratio=_figures(lambda name: _ratio(getattr(mean, name), getattr(before, name))),
        corruptions=tuple(cells),
    )


def _figures(of: Callable[[str], float | None]) -> Figures:
    return Figures(**{name: of(name) for name in FIGURES})


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _ratio(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base
