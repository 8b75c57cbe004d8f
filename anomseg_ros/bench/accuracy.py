"""How good a bundle is, from evaluations or from the figures in the bundle itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from anomseg_ros.bench.figures import Accuracy
from anomseg_ros.core.bundle import Contract
from anomseg_ros.errors import ConfigError, unknown_name
from anomseg_ros.evaluation.results import Evaluation, Result

METRICS = ("auprc", "miou", "fpr95", "auroc")


@dataclass(frozen=True)
class Wanted:
    """Which figure to show. dataset, score: "" for the first one that has the metric."""

    metric: str
    dataset: str = ""
    score: str = ""

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ConfigError(unknown_name("metric", self.metric, METRICS))


def find_accuracy(contract: Contract, wanted: Wanted, evaluations: Sequence[Evaluation]) -> Accuracy | None:
    """Return a bundle's figure from evaluations of its graph, else from its contract, else None."""
    measured = _of_evaluations(contract, wanted, evaluations)
    return measured if measured is not None else _of_contract(contract, wanted)


def common_dataset(contracts: Sequence[Contract], metric: str, evaluations: Sequence[Evaluation]) -> str:
    """Return the dataset for which most bundles have a figure, "" if there is none. A chart shows one dataset."""
    counts: Counter[str] = Counter()
    for contract in contracts:
        names = {result.dataset for result in _results_of(contract, evaluations) if _figure(result, metric) is not None}
        counts.update(sorted(names | {name for name, _, _ in _stated(contract, metric)}))
    return counts.most_common(1)[0][0] if counts else ""


def mean_accuracy(results: Sequence[Result], metric: str, score: str) -> Accuracy | None:
    """Return the mean of a metric over the datasets of one bundle's results; None where one of them lacks it."""
    own = [result for result in results if result.score == score]
    values = [value for result in own if (value := _figure(result, metric)) is not None]
    if not own or len(values) != len(own):
        return None
    return Accuracy(mean(values), metric, ", ".join(result.dataset for result in own), f"protocol {own[0].protocol}")


def _of_evaluations(contract: Contract, wanted: Wanted, evaluations: Sequence[Evaluation]) -> Accuracy | None:
    for result in _results_of(contract, evaluations):
        value = _figure(result, wanted.metric)
        fits = wanted.dataset in ("", result.dataset) and wanted.score in ("", result.score)
        if value is not None and fits:
            return Accuracy(value, wanted.metric, result.dataset, f"evaluation, protocol {result.protocol}")
    return None


def _results_of(contract: Contract, evaluations: Sequence[Evaluation]) -> Iterator[Result]:
    digest = contract.program_sha256
    # By digest: a name survives changes to the weights.
    return (r for evaluation in evaluations for r in evaluation.results if digest and r.bundle_sha256 == digest)


def _figure(result: Result, metric: str) -> float | None:
    value: float | None = getattr(result, metric)
    return value


def _of_contract(contract: Contract, wanted: Wanted) -> Accuracy | None:
    for dataset, value, source in _stated(contract, wanted.metric):
        if wanted.dataset in ("", dataset):
            return Accuracy(value, wanted.metric, dataset, f"bundle.yaml{source}")
    return None


def _stated(contract: Contract, metric: str) -> Iterator[tuple[str, float, str]]:
    """Yield (dataset, value, source) of the figures in a contract."""
    compression = contract.compression
    # The quality of a compressed bundle may be that of its parent, unless tune wrote it.
    yield from drift_figures(compression, metric)
    if "parent" not in compression or "tuned" in compression:
        yield from _qualities(contract.quality, metric)


def drift_figures(compression: Mapping[str, Any], metric: str) -> Iterator[tuple[str, float, str]]:
    """Yield (dataset, value, source) of the figures that compressing measured of the bundle."""
    drift = compression.get("drift")
    datasets = drift.get("datasets") if isinstance(drift, Mapping) else None
    for dataset, figures in (datasets or {}).items():
        pair = figures.get(metric) if isinstance(figures, Mapping) else None
        if isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[1], (int, float)):
            yield str(dataset), float(pair[1]), ", drift"


def _qualities(quality: Mapping[str, Any], metric: str) -> Iterator[tuple[str, float, str]]:
    """Yield (dataset, value, protocol in words) of a contract's quality. Other tools may store other keys there."""
    for dataset, figures in quality.items():
        value = figures.get(metric) if isinstance(figures, Mapping) else None
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            protocol = figures.get("protocol")
            yield str(dataset), float(value), f", protocol {protocol}" if protocol else ""
