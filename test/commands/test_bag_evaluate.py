from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rosbags", reason="needs the rosbags library: pip install '.[bags]'")

from bag_scenes import Drawn, frames, write_bag

from anomseg_ros.bags.read import open_bag
from anomseg_ros.evaluation.results import load_evaluation


def bag_evaluate(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "anomseg_ros.cli", "bag", "evaluate", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bag(tmp_path_factory.mktemp("bags") / "drive", frames(count=8))


@pytest.mark.slow
def test_writes_table_json_and_html(tiny_bundle: Path, bag: Path, tmp_path: Path) -> None:
    files = ["--json", tmp_path / "out.json", "--html", tmp_path / "out.html"]
    done = bag_evaluate(
        tiny_bundle, bag, "--score", "void,msp", "--protocol", "fishyscapes", "--threshold", 0.05, *files
    )
    assert done.returncode == 0, done.stderr
    assert "alarms" in done.stdout and "per minute" in done.stdout and "objects detected" in done.stdout
    first, second = load_evaluation(tmp_path / "out.json").results
    assert (first.dataset, first.score, first.protocol, first.frames) == ("drive", "void", "fishyscapes", 8)
    assert first.auprc is not None and first.drive is not None and first.drive.duration_s == pytest.approx(0.8)
    assert second.score == "msp" and second.drive is None and second.consistency is None
    assert first.consistency is not None and first.consistency.pairs == 7 and first.streaming is None
    assert "temporal consistency" in done.stdout and "streaming" not in done.stdout
    plain = json.loads((tmp_path / "out.json").read_text())
    assert plain["command"].startswith("anomseg bag evaluate") and plain["settings"]["threshold"] == 0.05
    assert "data:image/jpeg;base64" in (tmp_path / "out.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["BUNDLE"], "no bag to evaluate; give BUNDLE BAG"),
        (["BUNDLE", "nothing.mcap"], "there is no bag 'nothing.mcap'"),
        (["nothing", "BAG"], "neither a bundle directory"),
        (["BUNDLE", "BAG", "--image-topic", "/camera/imag"], "no topic '/camera/imag'; it has /camera/image"),
        (["BUNDLE", "BAG", "--score", "voyd"], "unknown score 'voyd'"),
        (["BAG", "--recorded"], "no recorded scores on '/detector/anomaly/score'"),
        (["BUNDLE", "BAG", "--live", "--keep", "BAG"], "exists; choose another name"),
        (["BUNDLE", "BAG", "--alarm-frames-n", "3", "--alarm-frames-m", "2"], "alarm_frames_n is 3"),
    ],
)
def test_wrong_arguments_give_one_line_error(words: list[str], message: str, tiny_bundle: Path, bag: Path) -> None:
    places = {"BAG": str(bag), "BUNDLE": str(tiny_bundle)}
    done = bag_evaluate(*(places.get(word, word) for word in words))
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_bad_frame_keeps_results_measured_before(tiny_bundle: Path, tmp_path: Path) -> None:
    drawn: list[Any] = [*frames(count=4)]
    drawn[2] = Drawn(drawn[2].image, None, drawn[2].anomaly + 30)
    path = write_bag(tmp_path / "drive", drawn)
    done = bag_evaluate(tiny_bundle, path, "--score", "void", "--json", tmp_path / "out.json")
    assert done.returncode == 1 and "2 of 4 frames were measured, then: unknown label values" in done.stderr
    (result,) = load_evaluation(tmp_path / "out.json").results
    assert result.frames == 2 and result.auprc is not None


@pytest.mark.slow
def test_live_evaluation_uses_real_node(tiny_bundle: Path, bag: Path, tmp_path: Path) -> None:
    pytest.importorskip("rclpy", reason="needs ROS 2")
    kept, file = tmp_path / "kept", tmp_path / "out.json"
    words = ["--score", "void", "--protocol", "fishyscapes", "--threshold", 0.05, "--threads", 1]
    done = bag_evaluate(tiny_bundle, bag, *words, "--live", "--rate", 0.5, "--keep", kept, "--json", file)
    assert done.returncode == 0, done.stdout + done.stderr
    complete, live = load_evaluation(file).results
    assert (complete.live, live.dataset) == (None, "drive live") and live.live is not None
    told = live.live
    assert (
        told.frames == 8 and told.answered + told.dropped + told.lost + told.bad == 8 and told.answered == live.frames
    )
    assert 0 < told.processing_ms["p50"] <= told.processing_ms["p95"] <= told.processing_ms["p99"]
    assert set(told.latency_ms) == {"p50", "p95", "p99"}
    # A listener has a score later than the node has computed it.
    assert told.processing_ms["p50"] < told.age_ms["p50"] <= told.age_ms["p95"] <= told.age_ms["p99"] < 10_000
    assert told.difference["auprc"] == live.auprc - complete.auprc
    if told.answered == 8:  # nothing was dropped: the node says what the model says
        assert set(told.difference.values()) == {0.0} and live.drive == complete.drive
        assert live.consistency == complete.consistency
    assert complete.streaming is None and live.streaming is not None
    assert live.streaming.frames_before_first_answer >= 1 and live.streaming.median_age_ms >= 100.0
    assert live.streaming.frames + live.streaming.frames_before_first_answer == 8
    assert "streaming accuracy" in done.stdout
    with open_bag(kept) as outputs:
        assert outputs.counts == {"/detector/anomaly/score": told.answered, "/detector/labels": told.answered}
    assert "frame to listener, ms" in done.stdout and "stamp to output" not in done.stdout


@pytest.mark.slow
def test_live_without_ros_gives_error_and_keeps_other_results(tiny_bundle: Path, bag: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['rclpy'] = None\n"
        "from anomseg_ros.cli import main\n"
        "sys.exit(main(['bag', 'evaluate', *sys.argv[1:]]))"
    )
    file = tmp_path / "out.json"
    words = [tiny_bundle, bag, "--score", "void", "--live", "--json", file]
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 1 and "--live needs ROS 2" in done.stderr and "Traceback" not in done.stderr
    assert len(load_evaluation(file).results) == 1
