"""The accuracy of a bundle comes from evaluations of its graph, or else from its contract."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from anomseg_ros.bench.accuracy import Wanted, common_dataset, drift_figures, find_accuracy, mean_accuracy
from anomseg_ros.core.bundle import GRAPH_FILE, Contract, load_bundle
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.errors import ConfigError
from anomseg_ros.evaluation.results import FORMAT_VERSION, Evaluation, Result


@pytest.fixture()
def contract() -> Contract:
    return load_bundle(find_bundle("enet-synthetic")).contract


def result(contract: Contract, dataset: str, score: str, auprc: float | None, miou: float | None = None) -> Result:
    digest = contract.files[GRAPH_FILE]
    return Result("b", dataset, score, "seeds", 3, auprc, 0.5, 0.5, miou, bundle_sha256=digest)


def test_accuracy_of_an_evaluation_has_priority(contract: Contract) -> None:
    evaluation = Evaluation(
        FORMAT_VERSION, (result(contract, "fs_static", "void", 0.2), result(contract, "x", "msp", 0.3))
    )
    found = find_accuracy(contract, Wanted("auprc", "x", ""), [evaluation])
    assert found is not None and (found.value, found.dataset) == (0.3, "x")
    assert find_accuracy(contract, Wanted("auprc", "x", "void"), [evaluation]) is None
    own = find_accuracy(contract, Wanted("miou"), [evaluation])
    assert own is not None and own.source == "bundle.yaml" and own.value == contract.quality["held_out_kinds"]["miou"]


def test_evaluation_of_other_weights_does_not_count(contract: Contract) -> None:
    evaluation = Evaluation(FORMAT_VERSION, (replace(result(contract, "fs_static", "void", 0.2), bundle_sha256="0"),))
    assert find_accuracy(contract, Wanted("auprc"), [evaluation]) is None


def test_common_dataset_is_the_one_of_most_bundles(contract: Contract, tiny_bundle: Path) -> None:
    other = load_bundle(tiny_bundle).contract
    both = (result(contract, "a", "void", 0.2), result(contract, "b", "void", 0.2), result(other, "b", "void", 0.1))
    assert common_dataset([contract, other], "auprc", [Evaluation(FORMAT_VERSION, both)]) == "b"
    assert common_dataset([other], "auprc", []) == ""


def test_mean_accuracy_needs_every_dataset(contract: Contract) -> None:
    a, b = result(contract, "a", "void", 0.2), result(contract, "b", "void", 0.4)
    found = mean_accuracy([a, b, result(contract, "a", "msp", 0.9)], "auprc", "void")
    assert found is not None and found.value == pytest.approx(0.3) and found.dataset == "a, b"
    assert mean_accuracy([a, replace(b, auprc=None)], "auprc", "void") is None
    assert mean_accuracy([], "auprc", "void") is None


def test_drift_figures_are_those_of_the_compressed_bundle() -> None:
    drift = {"frames": 20, "datasets": {"fs_static": {"auprc": [0.21, 0.2], "miou": None}, "odd": 3}}
    assert list(drift_figures({"drift": drift}, "auprc")) == [("fs_static", 0.2, ", drift")]
    assert list(drift_figures({"drift": drift}, "miou")) == []
    assert list(drift_figures({"method": "int8"}, "auprc")) == list(drift_figures({}, "auprc")) == []


def test_unknown_metric_error_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="known: auprc"):
        Wanted("aupr")
