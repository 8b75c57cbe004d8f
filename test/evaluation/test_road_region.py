"""Alarms limited to the road compared with alarms everywhere: on datasets, on bags, and in the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from painted_frames import street, without_road

from anomseg_ros.cli import main
from anomseg_ros.core.bundle import Bundle
from anomseg_ros.errors import ConfigError, MetricError
from anomseg_ros.evaluation.evaluate import Request, evaluate
from anomseg_ros.evaluation.measures import Measures, MeasureSpec, road_of
from anomseg_ros.evaluation.results import load_evaluation

NATIVE = ("fishyscapes", "smiyc", "fishyscapes+road", "smiyc+road")


def write_streets(folder: Path, roads: tuple[bool, ...] = (True, True)) -> str:
    """Write streets with or without a road; return the command line's NAME=PATH."""
    for name in ("images", "labels_masks"):
        (folder / name).mkdir(parents=True)
    for index, road in enumerate(roads):
        frame, anomaly = street(road=road)
        cv2.imwrite(str(folder / "images" / f"{index}.png"), frame[..., ::-1])
        cv2.imwrite(str(folder / "labels_masks" / f"{index}.png"), anomaly)
    return f"road_obstacle_21={folder}"


def request_of(bundle: Path, dataset: str, protocols: tuple[str, ...] = NATIVE, **changed: Any) -> Request:
    return Request((bundle,), (dataset,), ("void",), protocols, exact=True, allow_partial=True, **changed)


def test_protocols_with_and_without_region_are_both_measured(painted: Bundle, tmp_path: Path) -> None:
    outcome = evaluate(request_of(painted.directory, write_streets(tmp_path / "streets"), pictures=True))
    assert outcome.errors == () and outcome.warnings == ()
    results = {result.protocol: result for result in outcome.results}
    assert tuple(results) == NATIVE
    for name in ("fishyscapes", "smiyc"):
        everywhere, on_road = results[name], results[f"{name}+road"]
        assert everywhere.auprc == pytest.approx(0.5, abs=0.01)  # as many alarms beside the road as on it
        assert on_road.auprc == pytest.approx(1.0) and on_road.fpr95 == 0.0
        assert (everywhere.known_px, everywhere.anomaly_px) == (on_road.known_px, on_road.anomaly_px)
        assert (everywhere.ece is not None) == (name == "fishyscapes") and on_road.ece is None
    assert results["smiyc"].components is not None and results["smiyc"].components.ppv == pytest.approx(0.5)
    assert results["smiyc+road"].components is not None and results["smiyc+road"].components.ppv == 1.0
    pictures = [
        cv2.imdecode(np.frombuffer(outcome.pictures[key], np.uint8), cv2.IMREAD_COLOR)
        for key in ((*results[name].key, "0") for name in ("fishyscapes", "fishyscapes+road"))
    ]
    hot = [
        int(picture[65, 90, 2]) - int(picture[65, 90, 0]) for picture in pictures
    ]  # red minus blue in the region of the anomaly
    assert hot[0] > hot[1] + 50


def test_frames_without_a_road_are_not_limited_and_noted(painted: Bundle, tmp_path: Path) -> None:
    dataset = write_streets(tmp_path / "streets", (True, False, True))
    everywhere, on_road = evaluate(request_of(painted.directory, dataset, ("seeds", "seeds+road"))).results
    assert on_road.notes == ("no road was found in 1 of 3 frames: there, scores are not limited to it",)
    assert not everywhere.notes
    assert everywhere.auprc is not None and on_road.auprc is not None and everywhere.auprc < on_road.auprc < 0.99
    assert (on_road.per_frame[1].auprc, on_road.per_frame[1].fpr95) == (
        everywhere.per_frame[1].auprc,
        everywhere.per_frame[1].fpr95,
    )


def test_bundle_without_road_class_and_several_regions_are_refused(painted: Bundle, tmp_path: Path) -> None:
    dataset = write_streets(tmp_path / "streets", (True,))
    outcome = evaluate(request_of(without_road(painted, tmp_path / "lawn"), dataset, ("seeds", "seeds+road")))
    assert outcome.results == () and "bundle 'painted' has no class 'road'" in outcome.errors[0]
    with pytest.raises(ConfigError, match="limit alarms to 'road' and 'road_and_sidewalk'; expected one"):
        road_of(painted.contract, ("seeds+road", "smiyc+road", "seeds+road_and_sidewalk"))
    assert road_of(painted.contract, ("seeds", "smiyc")) is None


def test_roadless_frames_are_saved_loaded_and_merged(tmp_path: Path) -> None:
    spec = MeasureSpec(("void",), ("seeds",))
    first, second = Measures(spec, {0, 1}, roadless={1}), Measures(spec, {2}, roadless={2})
    first.save(tmp_path)
    assert Measures.load(spec, tmp_path).roadless == {1}
    assert first.merge(second).roadless == {1, 2}
    with pytest.raises(MetricError, match="cannot merge"):
        first.merge(Measures(MeasureSpec(("void",), ("seeds+road",))))


def test_evaluate_command_limits_alarms_to_the_region(
    painted: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(painted.directory), "--dataset", write_streets(tmp_path / "streets"), "--allow-partial"]
    words += ["--score", "void", "--road-region", "road_and_sidewalk", "--json", str(tmp_path / "out.json")]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "protocol seeds: AuPRC" in told and "protocol seeds+road_and_sidewalk: AuPRC" in told
    protocols = [result.protocol for result in load_evaluation(tmp_path / "out.json").results]
    assert protocols == ["seeds", "seeds+road_and_sidewalk"]


def test_bag_evaluate_command_limits_alarms_to_the_region(
    painted: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rosbags", reason="needs the rosbags library: pip install '.[bags]'")
    from bag_scenes import Drawn, write_bag

    frame, anomaly = street()
    bag = write_bag(tmp_path / "drive", [Drawn(frame, None, anomaly)] * 4)
    words = ["bag", "evaluate", str(bag), str(painted.directory), "--score", "void", "--protocol", "fishyscapes"]
    words += ["--threshold", "0.5", "--road-region", "road", "--json", str(tmp_path / "out.json")]
    words += ["--html", str(tmp_path / "out.html")]
    assert main(words) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "alarms limited to the region 'road'" in told and told.count("objects detected") == 2
    everywhere, on_road = load_evaluation(tmp_path / "out.json").results
    assert everywhere.drive is not None and on_road.drive is not None
    assert (everywhere.drive.road_region, everywhere.drive.alarms) == (None, 1)
    assert (on_road.drive.road_region, on_road.drive.alarms) == ("road", 0)
    assert everywhere.drive.objects == on_road.drive.objects and on_road.drive.objects_detected == 1
    assert "Alarms limited to" in (tmp_path / "out.html").read_text()
    assert main([*words[:2], str(bag), "--recorded", "--road-region", "road"]) == 1
    assert "protocol 'seeds+road' needs a model's labels" in capsys.readouterr().err


def test_run_command_limits_alarms_to_the_region(
    painted: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_streets(tmp_path / "streets", (True, False))
    words = ["run", str(painted.directory), str(tmp_path / "streets" / "images"), "--threshold", "0.5"]
    for region in ([], ["--road-region", "road"]):
        assert main([*words, *region, "--output", str(tmp_path / f"out{len(region)}")]) == 0
    assert "no road was found in 1 of 2 frames; alarms in them are not limited" in capsys.readouterr().err
    before, after = tmp_path / "out0", tmp_path / "out2"
    scores = [np.load(folder / "0_void.npy") for folder in (before, after)]
    assert scores[0][25, 35] > 0.9 and scores[1][25, 35] == 0.0 and scores[0][95, 125] == scores[1][95, 125] > 0.9
    overlays = [cv2.imread(str(folder / "0_overlay.png")) for folder in (before, after)]
    assert (overlays[0][25, 35] != overlays[1][25, 35]).any() and (overlays[0][95, 125] == overlays[1][95, 125]).all()
    assert (np.load(before / "1_void.npy") == np.load(after / "1_void.npy")).all()
    assert (cv2.imread(str(before / "0_labels.png")) == cv2.imread(str(after / "0_labels.png"))).all()
