"""`anomseg bag evaluate` on bags without ground truth: alarms, their area and duration, the worst moments."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from bag_scenes import Drawn, frames, write_bag
from dataset_trees import write
from painted_frames import BLUE, GREEN, HEIGHT_PX, RED, WIDTH_PX, painted_bundle

from anomseg_ros.cli import main
from anomseg_ros.evaluation.results import DriveAlarm, load_evaluation


def drive(patches: dict[int, int], count: int = 24) -> list[Drawn]:
    """Return road below buildings, with a green square in the sky: frame -> pixels of its side."""
    drawn = []
    for number in range(count):
        frame = np.full((HEIGHT_PX, WIDTH_PX, 3), BLUE, np.uint8)
        frame[60:, 40:216] = RED
        side = patches.get(number, 0)
        frame[10 : 10 + side, 20 : 20 + side] = GREEN
        drawn.append(Drawn(frame, None, None))
    return drawn


def evaluate(*words: object) -> int:
    return main(["bag", "evaluate", *map(str, words), "--threshold", "0.5"])


def test_alarms_of_an_unlabelled_bag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, bag = painted_bundle(tmp_path / "painted"), write_bag(tmp_path / "drive", drive({3: 10, 4: 20, 17: 12}))
    files = ("--json", tmp_path / "out.json", "--html", tmp_path / "out.html")
    assert evaluate(bundle.directory, bag, "--protocol", "smiyc", *files) == 0
    said = capsys.readouterr()
    assert "2 of 50 px or more, 50.00 per minute" in said.out and "AuPRC" not in said.out
    assert "272 px (median), 400 px (most)" in said.out and "0.15 s (median), 0.20 s (longest)" in said.out
    assert "objects detected" not in said.out and "0.082 % of all" in said.out
    assert "the bag has no ground truth: accuracy is not measured" in said.err
    (result,) = load_evaluation(tmp_path / "out.json").results
    assert (result.score, result.frames, result.auprc, result.known_px) == ("void", 24, None, 0)
    assert result.drive is not None and result.drive.alarms == 2
    assert result.drive.events == (DriveAlarm(0.3, 0.2, 400), DriveAlarm(1.7, 0.1, 144))
    page = (tmp_path / "out.html").read_text()
    assert '<span class="protocol"></span>' not in page  # an empty badge
    assert "Most pixels in alarms first" in page and "50.00 alarms per minute" in page and "AuPRC –" not in page
    assert "protocol" not in re.sub(r"<(style|script|code).*?</\1>|class=\"protocol\"", "", page, flags=re.S)
    pictures = [page.index(f'data-v="{text}') for text in ("0.4 s into the drive (stamp 100.4", "1.7 s into the drive")]
    assert pictures == sorted(pictures) and page.count("data:image/jpeg;base64") == 2


def test_own_vehicle_does_not_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, bag = painted_bundle(tmp_path / "painted"), write_bag(tmp_path / "drive", drive({3: 10, 4: 20, 17: 12}))
    mask = np.zeros((HEIGHT_PX, WIDTH_PX), np.uint8)
    mask[10:22, 20:32] = 255
    write(tmp_path / "ego.png", mask)
    words = (bundle.directory, bag, "--json", tmp_path / "out.json", "--ego-mask")
    assert evaluate(*words, tmp_path / "ego.png") == 0
    (result,) = load_evaluation(tmp_path / "out.json").results
    assert result.drive is not None and result.drive.events == (DriveAlarm(0.4, 0.1, 400 - 144),)
    capsys.readouterr()
    assert evaluate(*words, tmp_path / "none.png") == 1
    assert "--ego-mask: " in capsys.readouterr().err


def test_region_and_several_bags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = painted_bundle(tmp_path / "painted").directory
    one, other = write_bag(tmp_path / "one", drive({3: 10}, 10)), write_bag(tmp_path / "other", drive({1: 12}, 10))
    files = ("--json", tmp_path / "out.json", "--html", tmp_path / "out.html")
    assert evaluate(bundle, one, other, "--road-region", "road", *files) == 0
    everywhere, on_road = load_evaluation(tmp_path / "out.json").results
    assert everywhere.drive is not None and [alarm.largest_px for alarm in everywhere.drive.events] == [100, 144]
    assert on_road.drive is not None and (on_road.drive.alarms, on_road.drive.road_region) == (0, "road")
    page = (tmp_path / "out.html").read_text()
    assert 'data-v="one/0.3 s into' in page and 'data-v="other/0.1 s into' in page and "alarms limited to road" in page


def test_copies_of_a_bundle_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, bag = painted_bundle(tmp_path / "painted").directory, write_bag(tmp_path / "drive", drive({3: 10}, 10))
    copy = shutil.copytree(bundle, tmp_path / "calibrated")
    for one in (bundle, copy):
        assert evaluate(one, bag, "--html", tmp_path / f"{one.name}.html") == 0
        assert f"{one.name} on drive: " in capsys.readouterr().out
        assert f"<title>Evaluation: {one.name} on drive</title>" in (tmp_path / f"{one.name}.html").read_text()


def test_bundle_without_threshold_and_bag_with_truth_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, bag = painted_bundle(tmp_path / "painted").directory, write_bag(tmp_path / "bare", drive({}, 3))
    assert main(["bag", "evaluate", str(bundle), str(bag), "--score", "max_logit"]) == 1
    assert "score 'max_logit' has no threshold; give --threshold" in capsys.readouterr().err
    labelled = write_bag(tmp_path / "labelled", frames(count=3))
    assert evaluate(bundle, bag, labelled) == 1
    assert "bag bare: bag" in " ".join(capsys.readouterr().err.split())
    assert evaluate(bundle, bag, "--anomaly-topic", "/truth") == 1
    assert "no topic '/truth'" in capsys.readouterr().err


@pytest.mark.slow
def test_alarms_of_a_calibrated_bundle_are_those_that_were_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = painted_bundle(tmp_path / "painted").directory
    patches = {number: side for start in range(0, 60, 20) for number, side in ((start + 5, 8), (start + 11, 8))}
    bag = write_bag(tmp_path / "drive", drive(patches, 60))
    words = ("calibrate", "threshold", str(bundle), "--score", "void", "--frames", str(bag))
    assert main([*words, "--target-alarms-per-minute", "30,60"]) == 0
    for target, alarms in ((60, 6), (40, 0)):
        found = ("--target-alarms-per-minute", str(target), "--json", str(tmp_path / "out.json"))
        assert main(["bag", "evaluate", str(bundle), str(bag), "--score", "void", *found]) == 0
        (result,) = load_evaluation(tmp_path / "out.json").results
        assert result.drive is not None and result.drive.alarms == alarms
        assert result.drive.threshold_source.startswith(f"target_alarms_per_minute {30 if target == 40 else 60} on unl")
    assert main(["bag", "evaluate", str(bundle), str(bag), "--score", "void", "--target-alarms-per-minute", "1"]) == 1
    assert "has thresholds of 'void' only for 30, 60" in capsys.readouterr().err
