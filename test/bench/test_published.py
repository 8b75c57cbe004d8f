"""The transcribed tables agree with the figures in the texts of the papers."""

from __future__ import annotations

from collections import Counter

import pytest

from anomseg_ros.bench.published import published_points, published_rows


def test_all_published_rows_are_present() -> None:
    rows = Counter(point.table for point in published_points())
    tables = {f"PTQ table {number}": 6 for number in (4, 5, 6)}
    assert rows == {**tables, "PTQ table 7": 2, "MiDE tables 4 and 5": 7}


def test_figures_agree_with_the_text_of_the_papers() -> None:
    mide = {point.label: point for point in published_points() if point.table.startswith("MiDE")}
    # MiDE, section 4.7: quantization takes mIoU from 64.31 to 44.80, at 0.22 and 1.62 frames per second.
    assert (mide["ERFNet"].miou, mide["ERFNet, int8"].miou) == (64.31, 44.80)
    assert 1e3 / mide["ERFNet"].latency_ms == pytest.approx(0.22)
    assert 1e3 / mide["ERFNet, int8"].latency_ms == pytest.approx(1.62)
    assert mide["MiDE-Net"].figure("auprc", "road_anomaly") == pytest.approx(0.1178)
    assert mide["MiDE-Net, pruned, int8"].figure("auprc", "fs_lost_found") == pytest.approx(0.0057)
    assert mide["ERFNet, pruned, int8"].figure("fpr95", "road_obstacle_21") == pytest.approx(0.9531)
    ptq = {(point.table, point.label): point for point in published_points()}
    # PTQ, section 5: BiSeNet falls to 36.41 % at one half pruned.
    assert ptq["PTQ table 6", "BiSeNet, 50 % pruned"].miou == 36.41
    assert ptq["PTQ table 7", "BiSeNet, int8"].figure("auprc", "fs_static") == pytest.approx(0.0502)
    assert ptq["PTQ table 7", "ERFNet, int8"].latency_ms == pytest.approx(42.0 * 0.056)


def test_unprinted_figures_are_none() -> None:
    point = published_points()[0]
    assert point.figure("miou", "cityscapes") == pytest.approx(0.3806)
    for metric, dataset in (
        ("miou", "camvid"),
        ("auprc", "cityscapes"),
        ("auroc", "fs_static"),
        ("auprc", "synthetic"),
    ):
        assert point.figure(metric, dataset) is None


def test_times_are_marked_as_estimated_or_measured() -> None:
    for point in published_points():
        assert point.estimated == point.table.startswith("PTQ")
        assert point.hardware and 1 < point.latency_ms < 5000
        assert all(0 < value < 100 for value in (point.miou, *point.auprc, *point.fpr95))


def test_published_rows_without_times() -> None:
    rows = {row.label: row for row in published_rows()}
    assert not any("pruned" in label for label in rows)
    assert rows["DSA-Tiny, outlier exposure"].figure("fpr95", "fs_lost_found") == pytest.approx(0.174)
    assert rows["EoMT-B, LoRA, outlier class"].figure("auprc", "fs_lost_found") is None
    assert rows["EoMT-B, LoRA, outlier class"].figure("miou", "cityscapes") is None
    assert rows["EoMT-B, LoRA, outlier class"].figure("auprc", "road_anomaly") == pytest.approx(0.4269)
    # MiDE's table 3 and its table 4 print the same ENet and ERFNet.
    tables = Counter(row.table for row in published_rows())
    assert tables["MiDE tables 4 and 5"] == 2 and tables["MiDE table 3"] == 4 and tables["PTQ table 7"] == 2


def test_mean_figure_needs_every_dataset() -> None:
    row = next(row for row in published_rows() if row.label == "ERFNet, void")
    assert row.figure("auprc", "road_anomaly_21, fs_static") == pytest.approx((0.1931 + 0.2077) / 2)
    large = next(row for row in published_rows() if row.label.startswith("EoMT"))
    assert large.figure("auprc", "road_anomaly_21, fs_lost_found") is None
