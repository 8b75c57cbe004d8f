"""Tables of thresholds whose rates are calibrated separately."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from plain_bundles import plain_bundle

from anomseg_ros.core.bundle import CONTRACT_FILE, load_bundle
from anomseg_ros.core.thresholds import ThresholdTable
from anomseg_ros.errors import BundleError

OLD = ThresholdTable("camvid val", {0.001: 0.9, 0.01: 0.5, 0.05: 0.1})


def test_update_replaces_given_rates_and_keeps_other_sources() -> None:
    table = OLD.updated("my drive", {0.02: 0.4, 0.01: 0.45})
    assert list(table.by_target_fpr.items()) == [(0.001, 0.9), (0.01, 0.45), (0.02, 0.4), (0.05, 0.1)]
    assert [table.source(rate) for rate in table.by_target_fpr] == ["camvid val", "my drive", "my drive", "camvid val"]
    threshold = table.at(0.03)
    assert threshold is not None and threshold.value == 0.4 and threshold.source == "target_fpr 0.02 on my drive"
    assert table.at(0.0005) is None
    again = table.updated("another", {rate: 0.0 for rate in table.by_target_fpr})
    assert again == ThresholdTable("another", dict.fromkeys(table.by_target_fpr, 0.0))  # one source for all rates


def test_mixed_table_that_does_not_fall_is_detected() -> None:
    assert OLD.falls and OLD.updated("my drive", {0.01: 0.1}).falls
    assert not OLD.updated("my drive", {0.01: 0.95}).falls
    assert not OLD.updated("my drive", {0.01: 0.05}).falls


def test_threshold_sources_are_stored_in_the_bundle(tmp_path: Path) -> None:
    table = OLD.updated("my drive", {0.01: 0.45})
    bundle = plain_bundle(tmp_path / "mixed", thresholds={"void": table})
    assert load_bundle(bundle.directory).contract.thresholds == {"void": table}
    # Versions that know only one source can still read a table with one source.
    text = (plain_bundle(tmp_path / "old", thresholds={"void": OLD}).directory / CONTRACT_FILE).read_text()
    assert set(yaml.safe_load(text)["thresholds"]["void"]) == {"calibrated_on", "by_target_fpr"}


def test_source_without_a_rate_is_refused(tmp_path: Path) -> None:
    table = ThresholdTable("camvid val", {0.01: 0.5}, {0.02: "my drive"})
    with pytest.raises(BundleError, match=r"thresholds of void: calibrated_elsewhere names no rate: 0\.02"):
        plain_bundle(tmp_path / "bundle", thresholds={"void": table})
