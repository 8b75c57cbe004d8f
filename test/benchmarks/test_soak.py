"""benchmarks/soak.py: hours, slope of memory, counts and chart of given readings, and a real soak of seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import soak
import soak_figures
import soak_picture

SETTING = soak.Setting("enet-synthetic", 1, 5.0, (72, 128), 1)


def reading(number: int, elapsed_s: float, camera: str, pss_mib: float, **more: Any) -> soak_figures.Reading:
    counts = {name: 0 for name in soak_figures.SUMMED} | {"published": int(elapsed_s), "received": int(elapsed_s)}
    ages = {"age_ms_p50": 10.0, "age_ms_p99": 20.0, "age_ms_max": 30.0}
    return {
        "slice": number,
        "elapsed_s": elapsed_s,
        "camera": camera,
        "pss_mib": pss_mib,
        **counts,
        **ages,
        **more,
    }


def readings() -> list[soak_figures.Reading]:
    """Return two slices of two cameras: PSS grows by 6 MiB per hour, and the second slice begins 40 MiB higher.

    Allocated memory, which older readings lack, grows by 3 MiB per hour in the second slice.
    """
    return [
        reading(number, 60.0 * minute, camera, 200 + 40 * number + 0.1 * minute, dropped=minute // 30)
        | ({"anonymous_mib": 90 + 0.05 * minute} if number == 2 else {})
        for number, minutes in ((1, 60), (2, 30))
        for minute in range(1, minutes + 1)
        for camera in ("front", "rear")
    ]


def test_figures_cover_all_slices_of_each_camera() -> None:
    found = soak_figures.figures(readings())
    assert found["hours"] == pytest.approx(1.5) and found["slices"] == 2 and set(found["cameras"]) == {"front", "rear"}
    front = found["cameras"]["front"]
    assert front["slope_per_hour"] == pytest.approx({"pss_mib": 6.0, "anonymous_mib": 3.0})
    assert front["slope_error_per_hour"] == pytest.approx({"pss_mib": 0.0, "anonymous_mib": 0.0}, abs=1e-6)
    flat = [one | ({"pss_mib": 240.0} if one["slice"] == 2 else {}) for one in readings()]
    front_of_flat = soak_figures.figures(flat)["cameras"]["front"]
    assert front_of_flat["last_slice_slope_per_hour"] == pytest.approx({"pss_mib": 0.0, "anonymous_mib": 3.0}, abs=1e-6)
    assert front["received"] == 3600 + 1800 and front["dropped"] == 2 + 1
    assert front["age_ms"] == {"p50": 10.0, "p99": 20.0, "worst_p99": 20.0, "max": 30.0}


def test_truncated_line_is_ignored_and_another_setting_refused(tmp_path: Path) -> None:
    path = tmp_path / "soak.jsonl"
    soak.start_or_resume(path, SETTING)
    lines = [json.dumps(one) for one in readings()[:3]]
    with path.open("a") as stream:
        stream.write("\n".join(lines) + '\n{"slice": 1, "elaps')
    assert soak_figures.read_readings(path) == readings()[:3]
    soak.start_or_resume(path, SETTING)
    with pytest.raises(SystemExit, match="give the same options, or another file"):
        soak.start_or_resume(path, soak.Setting("enet-synthetic", 2, 5.0, (72, 128), 1))
    assert soak_figures.read_readings(tmp_path / "absent.jsonl") == []


def test_chart_has_every_curve() -> None:
    rows = readings()
    svg = soak_picture.picture(rows, soak_figures.figures(rows))
    root = ElementTree.fromstring(svg)
    paths = root.findall("{http://www.w3.org/2000/svg}path")
    assert len(paths) == 2 * 2 * (1 + 2 + 1) + 2  # cameras, slices, curves; one slice of allocated memory
    assert "1.5 hours in 2 slices" in svg and "front: last slice +3.00 ± 0.00 MiB/h, p99 20 ms" in svg


@pytest.mark.slow
def test_short_soak_runs_with_the_real_node(tmp_path: Path) -> None:
    pytest.importorskip("rclpy", reason="needs ROS 2")
    path = tmp_path / "soak.jsonl"
    soak.start_or_resume(path, SETTING)
    soak.soak(SETTING, 3.0, 1.0, path)
    found = soak_figures.figures(soak_figures.read_readings(path))["cameras"]["camera_1"]
    assert found["sent"] >= 5 and found["unbalanced"] == 0 and found["heard"] == found["published"] > 0
    assert found["sent"] == found["received"] + found["lost"] and found["pss_mib"]["last"] > 20
