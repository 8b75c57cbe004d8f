"""Results outlive a file that cannot be written, and say what their sources did not deliver."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("rosbags", reason="needs the rosbags library: pip install '.[bags]'")

from bag_scenes import frames, write_bag

from anomseg_ros.bench.figures import load_report
from anomseg_ros.cli import main
from anomseg_ros.evaluation.results import load_evaluation, save_evaluation

PROTOCOL = ("--protocol", "fishyscapes", "--score", "void")


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bag(tmp_path_factory.mktemp("bags") / "drive", frames(count=3))


@pytest.fixture(autouse=True)
def spare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "spare"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def saved_elsewhere(error: str, spare: Path) -> Path:
    """Return the file that an error names."""
    lines = [line for line in error.splitlines() if line.startswith("anomseg: error")]
    assert len(lines) == 1 and "cannot write '/dev/full': No space left on device" in lines[0]
    path = Path(re.findall(r"The results are in '([^']*)'", lines[0])[-1])
    assert spare in path.parents
    return path


@pytest.mark.slow
def test_evaluation_is_printed_and_saved_elsewhere(
    tiny_bundle: Path, tmp_path: Path, spare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--json", "/dev/full", "--html", str(tmp_path / "page.html"), "--state", str(tmp_path / "state")]
    assert main(["evaluate", str(tiny_bundle), "--dataset", "synthetic=5:2", *PROTOCOL, *files]) == 1
    told = capsys.readouterr()
    assert "AuPRC" in told.out and (tmp_path / "page.html").is_file()
    (result,) = load_evaluation(saved_elsewhere(told.err, spare)).results
    assert result.frames == 2 and not Path("/dev/full.state").exists()


def test_bag_evaluation_is_printed_and_saved_elsewhere(
    tiny_bundle: Path, bag: Path, spare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bag", "evaluate", str(bag), str(tiny_bundle), *PROTOCOL, "--json", "/dev/full"]) == 1
    told = capsys.readouterr()
    assert "AuPRC" in told.out
    (result,) = load_evaluation(saved_elsewhere(told.err, spare)).results
    assert result.frames == 3


def test_bench_times_are_printed_and_saved_elsewhere(
    tiny_bundle: Path, tmp_path: Path, spare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = str(tmp_path / "b.svg")
    words = ["--rounds", "3", "--no-memory", "--threads", "1", "--json", "/dev/full", "--plot", picture]
    assert main(["bench", str(tiny_bundle), *words]) == 1
    told = capsys.readouterr()
    assert "p50 ms" in told.out and Path(picture).is_file()
    assert len(load_report(saved_elsewhere(told.err, spare)).times_ms) == 3


def test_missing_bag_messages_are_in_output_json_and_page(
    tiny_bundle: Path, bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(bag, tmp_path / "drive")
    metadata = tmp_path / "drive" / "metadata.yaml"
    document: dict[str, Any] = yaml.safe_load(metadata.read_text())
    for entry in document["rosbag2_bagfile_information"]["topics_with_message_count"]:
        if entry["topic_metadata"]["name"] == "/camera/image":
            entry["message_count"] = 12
        if entry["topic_metadata"]["name"] == "/camera/ground_truth/anomaly":
            entry["message_count"] = 1
    metadata.write_text(yaml.safe_dump(document))
    files = ["--json", str(tmp_path / "out.json"), "--html", str(tmp_path / "out.html")]
    assert main(["bag", "evaluate", str(tmp_path / "drive"), str(tiny_bundle), *PROTOCOL, *files]) == 1
    told = capsys.readouterr()
    loss = "states 12 messages of '/camera/image', 3 could be read"
    more = "states 1 messages of '/camera/ground_truth/anomaly', 3 could be read"
    plain = json.loads((tmp_path / "out.json").read_text())
    page = (tmp_path / "out.html").read_text().replace("&#39;", "'")
    assert loss in " ".join(told.err.split()) and loss in plain["settings"]["errors"][0] and loss in page
    assert more in " ".join(told.err.split()) and more in " ".join(plain["settings"]["warnings"]) and more in page
    assert plain["results"][0]["frames"] == 3 and plain["settings"]["bags"][0]["frames"] == 3


@pytest.mark.slow
def test_missing_evaluation_frames_are_reported(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.json"
    assert main(["evaluate", str(tiny_bundle), "--dataset", "synthetic=5:2", *PROTOCOL, "--json", str(path)]) == 0
    assert main(["report", str(path)]) == 0 and main(["compare", str(path), str(path)]) == 0
    evaluation = load_evaluation(path)
    (result,) = evaluation.results
    cut = type(evaluation)(**{**vars(evaluation), "results": (type(result)(**{**vars(result), "frames": 5}),)})
    save_evaluation(cut, tmp_path / "cut.json")
    for words in (["report", str(tmp_path / "cut.json")], ["compare", str(path), str(tmp_path / "cut.json")]):
        capsys.readouterr()
        assert main(words) == 1
        assert "anomseg: error: " in (error := capsys.readouterr().err) and "states 5 frames, 2 could" in error
    assert (tmp_path / "cut.html").is_file()
