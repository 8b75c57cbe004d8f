"""Tables of thresholds whose rates are calibrated separately."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from plain_bundles import plain_bundle

from anomseg_ros.core.bundle import CONTRACT_FILE, load_bundle
from anomseg_ros.core.thresholds import AlarmThreshold, ThresholdTable
from anomseg_ros.errors import BundleError, ConfigError
from anomseg_ros.scores import threshold_of

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


def test_thresholds_by_alarms_are_stored_and_selected(tmp_path: Path) -> None:
    alarms = {1.0: AlarmThreshold(0.8, "my drive"), 5.0: AlarmThreshold(0.6, "another")}
    table = OLD.with_alarms(alarms)
    bundle = load_bundle(plain_bundle(tmp_path / "alarms", thresholds={"void": table}).directory)
    assert bundle.contract.thresholds == {"void": table}
    threshold = threshold_of(bundle, "void", 0.01, 3.0)
    assert threshold is not None and threshold.calibrated and threshold.value == 0.8
    assert threshold.source == "target_alarms_per_minute 1 on my drive"
    assert threshold_of(bundle, "void", 0.01, 0.0) == table.at(0.01)
    assert table.updated("my drive", {0.01: 0.4}).by_target_alarms_per_minute == alarms
    assert table.with_alarms({1.0: AlarmThreshold(0.7, "new")}).at_alarms(1).value == 0.7  # type: ignore[union-attr]


def test_missing_threshold_by_alarms_says_how_to_add_one(tmp_path: Path) -> None:
    table = OLD.with_alarms({1.0: AlarmThreshold(0.8, "my drive"), 5.0: AlarmThreshold(0.6, "another")})
    bundle = plain_bundle(tmp_path / "alarms", thresholds={"void": table})
    remedy = "`anomseg calibrate threshold --frames DRIVE --target-alarms-per-minute` adds one"
    with pytest.raises(
        ConfigError, match=f"alarms_per_minute 0.5: .* has thresholds of 'void' only for 1, 5; {remedy}"
    ):
        threshold_of(bundle, "void", 0.01, 0.5)
    for tables in ({}, {"void": OLD}):
        plain = plain_bundle(tmp_path / f"plain{len(tables)}", thresholds=tables)
        with pytest.raises(ConfigError, match=f"has no such threshold of 'void'; {remedy}"):
            threshold_of(plain, "void", 0.01, 5)
