"""The drift of a compressed bundle from its parent, and its limits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_bundles import small_bundle, street_frames

from anomseg_ros.compression.drift import (
    Drift,
    Guard,
    ScoreDrift,
    Tolerance,
    compressed_contract,
    keeps_alarms,
    measure_drift,
    rank_correlation,
    require,
    with_original,
)
from anomseg_ros.core.bundle import GRAPH_FILE, Bundle, load_bundle, save_bundle
from anomseg_ros.core.thresholds import ThresholdTable
from anomseg_ros.errors import CompressionError

pytestmark = pytest.mark.slow

GOOD = Drift(4, 8, 0.99, {"void": ScoreDrift(0.999, 0.01)}, {"d": {"auprc": (0.5, 0.495)}}, Tolerance())


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with a threshold."""
    return small_bundle("mide_net", tmp_path_factory.mktemp("parent"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Another network with the same outputs."""
    return small_bundle("erfnet", tmp_path_factory.mktemp("stranger"))


def test_rank_correlation_equals_scipy() -> None:
    from scipy.stats import spearmanr

    generator = np.random.default_rng(0)
    first = generator.integers(0, 30, 500).astype(np.float32)
    second = first + generator.integers(0, 20, 500).astype(np.float32)
    assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)
    assert np.isnan(rank_correlation(first, np.zeros(500, np.float32)))


def test_bundle_has_no_drift_from_itself(parent: Bundle) -> None:
    drift = measure_drift(parent, parent, street_frames(2))
    assert drift.label_agreement == 1 and drift.frames == 2
    assert {name: score.rank_correlation for name, score in drift.scores.items()} == {"void": 1.0, "max_logit": 1.0}
    assert require(drift).accepted and not drift.accepted


def test_another_network_is_refused(parent: Bundle, stranger: Bundle) -> None:
    drift = measure_drift(parent, stranger, street_frames(2))
    with pytest.raises(CompressionError, match=r"labels agree in .* \(at least 97.00%\).*accept_drift"):
        require(drift)
    assert require(drift, accept=True).accepted


def test_drift_without_frames_is_refused(parent: Bundle) -> None:
    with pytest.raises(CompressionError, match="held-out"):
        measure_drift(parent, parent, [])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label_agreement": 0.96}, r"labels agree in 96\.00%"),
        ({"scores": {"void": ScoreDrift(0.97, 1.0)}}, "'void' has rank correlation 0.97"),
        ({"scores": {"void": ScoreDrift(float("nan"), 1.0)}}, "rank correlation nan"),
        ({"datasets": {"d": {"auprc": (0.5, 0.48)}}}, r"auprc on d went from 50\.00 to 48\.00"),
        ({"datasets": {"d": {"fpr95": (0.5, 0.52)}}}, r"fpr95 on d went from 50\.00 to 52\.00"),
        ({"datasets": {"d": {"miou": (0.5, 0.4)}}}, "miou on d"),
    ],
)
def test_drift_beyond_the_tolerance_is_refused(change: dict[str, object], words: str) -> None:
    assert GOOD.excesses() == []
    with pytest.raises(CompressionError, match=words):
        require(replace(GOOD, **change))  # type: ignore[arg-type]


def test_improvement_is_not_drift() -> None:
    better = {"d": {"auprc": (0.5, 0.9), "fpr95": (0.5, 0.1), "miou": (0.5, 0.6)}}
    assert replace(GOOD, datasets=better).excesses() == []


def test_contract_records_the_compression(parent: Bundle, tmp_path: Path) -> None:
    tables = {name: ThresholdTable("frames", {0.01: 0.5}) for name in ("void", "max_logit")}
    with_thresholds = replace(parent, contract=replace(parent.contract, thresholds=tables, quality={"d": 1}))
    alarms = {"void": {0.01: (0.010, 0.0105)}, "max_logit": {0.01: (0.01, 0.02)}}
    contract = compressed_contract(with_thresholds, "int8", "by hand", {"a": (1, 2)}, replace(GOOD, alarms=alarms))
    written = save_bundle(contract, {GRAPH_FILE: parent.graph_path}, tmp_path / "child")
    read = load_bundle(written.directory).contract
    assert list(read.thresholds) == ["void"] and read.quality == {} and read.precision == "int8"
    assert read.compression["parent"] == {"name": "mide_net", "sha256": parent.contract.files[GRAPH_FILE]}
    assert read.compression["settings"] == {"a": [1, 2]}
    assert read.compression["drift"]["datasets"]["d"]["auprc"] == [0.5, 0.495]


def test_contract_records_both_steps_and_the_drift_from_the_original(parent: Bundle) -> None:
    pruned = replace(GOOD, datasets={"d": {"auprc": (0.6, 0.5), "fpr95": (0.1, 0.2)}, "alone": {"miou": (0.7, 0.6)}})
    first = compressed_contract(parent, "fp32", "pruned", {}, pruned)
    second = compressed_contract(replace(parent, contract=first), "int8", "rounded", {}, GOOD)
    assert second.compression["method"] == "pruned; then rounded"
    assert second.compression["parent"]["compression"] == first.compression
    told = with_original(second, parent, replace(GOOD, label_agreement=0.8)).compression
    assert told["drift"] == second.compression["drift"]
    assert told["original"]["drift"]["label_agreement"] == 0.8
    assert told["original"]["drift"]["datasets"] == {"d": {"auprc": [0.6, 0.495]}}


def test_two_datasets_of_the_same_name_are_both_measured(parent: Bundle, stranger: Bundle) -> None:
    drift = measure_drift(parent, stranger, street_frames(1), Guard(datasets=("synthetic=3:2", "synthetic=4:2")))
    assert set(drift.datasets) == {"synthetic=3:2", "synthetic=4:2"}
    assert all({"auprc", "fpr95"} <= set(measures) for measures in drift.datasets.values())


def test_alarm_rates_within_the_tolerance_keep_thresholds() -> None:
    assert keeps_alarms({0.01: (0.010, 0.0109), 0.001: (0.0, 0.00009)})
    assert not keeps_alarms({0.01: (0.010, 0.0112)})
